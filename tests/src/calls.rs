//! Steady calls in a mesh of network namespaces, each with an id of its own; beside them forbidden ones that no app may see.
//!
//! The oracles of reliability.md 4.2: L (a call is lost), D (a POST is processed twice), U (an app sees a forbidden call),
//! R (how long until all is well again).

mod held;
mod wire;

pub use held::{End, Held, Kind};
pub use wire::{Client, ask, upgraded};

use crate::{faulty::Faulty, pods::PodNetwork};
use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Each lane calls ten times a second, unless an answer takes longer.
const EVERY: Duration = Duration::from_millis(100);
/// How long an allowed call waits for its answer.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long a forbidden one does.
const FORBIDDEN_PATIENCE: Duration = Duration::from_secs(2);
/// Ids of forbidden calls begin so.
const FORBIDDEN: &str = "forbidden-";
/// So many of each kind must have been refused for the reason that is meant, and not because nobody was there.
const REFUSALS: u64 = 3;
const FORBIDDEN_KINDS: usize = 6;

/// Ids of the calls of lanes begin so.
pub const STEADY: &str = "call-";
/// Ids are used once in a process.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// How a lane calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// HTTP/1.1 on a connection that is kept.
    Kept(&'static str),
    /// HTTP/1.1 on a connection of its own.
    Fresh(&'static str),
    /// HTTP/2 on a connection that is kept.
    Http2(&'static str),
    /// A unary call of gRPC on a connection that is kept.
    Grpc,
    /// Eight bytes to an echo and back, on a connection that is kept.
    Bytes,
}

/// What is called all the time where a scenario says nothing else.
pub const LANES: [Lane; 9] = [
    Lane::Kept("GET"),
    Lane::Kept("POST"),
    Lane::Kept("POST"),
    Lane::Fresh("GET"),
    Lane::Fresh("POST"),
    Lane::Http2("GET"),
    Lane::Http2("POST"),
    Lane::Grpc,
    Lane::Bytes,
];

impl Lane {
    /// The method of its requests; none where there are only bytes.
    pub fn method(self) -> Option<&'static str> {
        match self {
            Self::Kept(method) | Self::Fresh(method) | Self::Http2(method) => Some(method),
            Self::Grpc => Some("POST"),
            Self::Bytes => None,
        }
    }
}

/// One call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    pub lane: Lane,
    pub id: String,
    pub began: Instant,
    pub ended: Instant,
    /// The status and the body's code where it is one of ours (of gRPC the HTTP status that means the same, and the message); or why
    /// there is no answer.
    pub end: Result<(u16, String), String>,
}

impl Call {
    pub fn took(&self) -> Duration {
        self.ended - self.began
    }

    pub fn is_good(&self) -> bool {
        matches!(self.end, Ok((200, _)))
    }

    /// Whether it was answered 503 with this code, in the words of its protocol.
    pub fn is_refused(&self, code: &str) -> bool {
        let told = match self.lane {
            Lane::Grpc => {
                let table = postern_proxy::error::table();
                table.iter().find(|row| row.code == code).expect("a code of ours").public_text
            }
            _ => code,
        };
        self.end == Ok((503, told.to_owned()))
    }
}

/// Whom the lanes call and from where.
#[derive(Clone)]
pub struct Places {
    /// Allowed to GET and POST `/ok`, to call gRPC's `/shop.Echo/`, and to speak to the echo.
    pub client: PodNetwork,
    /// A good identity that no rule allows.
    pub intruder: PodNetwork,
    /// No identity.
    pub legacy: PodNetwork,
    /// The service, as its callers know it.
    pub service: SocketAddr,
    /// The echo.
    pub echo: SocketAddr,
    /// The pods behind it, where plaintext is tried.
    pub pods: Vec<SocketAddr>,
}

/// Calls that go on until they are stopped.
pub struct Calls {
    stop: CancellationToken,
    kinds: Vec<Lane>,
    lanes: JoinSet<()>,
    sums: Arc<Sums>,
}

#[derive(Default)]
struct Sums {
    calls: Mutex<Vec<Call>>,
    forbidden: AtomicU64,
    refused: [AtomicU64; FORBIDDEN_KINDS],
    breaches: Mutex<Vec<String>>,
    // A call has ended.
    ended: Notify,
}

/// What apps have seen.
pub struct Seen {
    ids: Vec<String>,
    posts: Vec<String>,
}

impl Seen {
    /// As apps of this process remember it.
    pub fn of(apps: &[Faulty]) -> Self {
        let (ids, posts) = (apps.iter().flat_map(Faulty::ids), apps.iter().flat_map(Faulty::posts));
        Self { ids: ids.collect(), posts: posts.collect() }
    }

    /// As `postern app serve` tells it in its lines: `NAME received METHOD /ok?id=ID …`.
    pub fn told<'l>(lines: impl Iterator<Item = &'l str>) -> Self {
        let mut seen = Self { ids: Vec::new(), posts: Vec::new() };
        for line in lines {
            let Some((_, told)) = line.split_once(" received ") else { continue };
            let Some((_, id)) = told.split_once("?id=") else { continue };
            let id = id.split(' ').next().unwrap_or_default().to_owned();
            if told.starts_with("POST ") {
                seen.posts.push(id.clone());
            }
            seen.ids.push(id);
        }
        seen
    }
}

/// What came of it.
pub struct Report {
    pub calls: Vec<Call>,
    kinds: Vec<Lane>,
    forbidden: u64,
    refused: [u64; FORBIDDEN_KINDS],
    breaches: Vec<String>,
}

impl Calls {
    /// Begins with the usual lanes.
    pub fn start(places: &Places) -> Self {
        Self::with(places, &LANES)
    }

    /// Begins with these lanes, and the forbidden ones.
    pub fn with(places: &Places, lanes: &[Lane]) -> Self {
        let (kinds, stop) = (lanes.to_vec(), CancellationToken::new());
        let mut calls = Self { stop, kinds, lanes: JoinSet::new(), sums: Arc::default() };
        for lane in lanes {
            let (stop, sums) = (calls.stop.clone(), calls.sums.clone());
            calls.lanes.spawn(allowed(*lane, places.clone(), stop, sums));
        }
        for forbidden in Forbidden::all(places) {
            calls.lanes.spawn(refused(forbidden, calls.stop.clone(), calls.sums.clone()));
        }
        calls
    }

    /// Calls so far.
    pub fn so_far(&self) -> Vec<Call> {
        self.sums.calls.lock().unwrap().clone()
    }

    /// Waits until so many more have ended well on every lane that is called.
    pub async fn pass(&self, more: usize) {
        self.pass_from(Instant::now(), more).await;
    }

    /// Waits until so many that began at or after this moment, which may be still to come, have ended well on every lane that is
    /// called.
    pub async fn pass_from(&self, began: Instant, more: usize) {
        loop {
            let ended = self.sums.ended.notified();
            let calls = self.so_far();
            let good = |lane: Lane| {
                calls.iter().filter(|call| call.lane == lane && call.is_good() && call.began >= began).count()
            };
            if self.kinds.iter().all(|lane| good(*lane) >= more) {
                return;
            }
            let left = Duration::from_secs(30).saturating_sub(began.elapsed());
            let waited = tokio::time::timeout(left, ended).await;
            assert!(waited.is_ok(), "no good calls: {:?}", calls.last());
        }
    }

    /// Goes on for this long: the time of the fault itself.
    pub async fn go_on(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    /// Ends, and tells.
    pub async fn stop(mut self) -> Report {
        self.stop.cancel();
        while let Some(lane) = self.lanes.join_next().await {
            lane.expect("a lane does not break off");
        }
        let Sums { calls, forbidden, refused, breaches, .. } = &*self.sums;
        Report {
            kinds: self.kinds,
            calls: calls.lock().unwrap().clone(),
            forbidden: forbidden.load(Ordering::Relaxed),
            refused: refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
            breaches: breaches.lock().unwrap().clone(),
        }
    }
}

impl Report {
    /// Calls without a good answer.
    pub fn lost(&self) -> Vec<&Call> {
        self.calls.iter().filter(|call| !call.is_good()).collect()
    }

    /// U and D: no app has seen a forbidden call, none was answered, somebody was there to refuse them; no POST came twice, and what
    /// was answered has arrived.
    pub fn assert_safe(&self, seen: &Seen) {
        assert!(self.breaches.is_empty(), "{:#?}", self.breaches);
        let forbidden: Vec<_> = seen.ids.iter().filter(|id| id.starts_with(FORBIDDEN)).collect();
        assert!(forbidden.is_empty(), "apps have seen forbidden calls: {forbidden:?}");
        assert!(
            self.refused.iter().all(|count| *count >= REFUSALS),
            "somebody was there to refuse: {:?} of {}",
            self.refused,
            self.forbidden
        );
        let mut once = HashSet::new();
        let twice: Vec<_> = seen.posts.iter().filter(|id| !once.insert(*id)).collect();
        assert!(twice.is_empty(), "processed twice: {twice:?}");
        let seen: HashSet<&String> = seen.ids.iter().collect();
        let made_up: Vec<_> = self
            .calls
            .iter()
            .filter(|c| c.is_good() && c.lane != Lane::Bytes && !seen.contains(&c.id))
            .collect();
        assert!(made_up.is_empty(), "answered 200 and never seen by an app: {made_up:?}");
    }

    /// L: nothing was lost.
    pub fn assert_whole(&self, seen: &Seen) {
        assert!(self.calls.len() >= 50, "there was load: {}", self.calls.len());
        let lost = self.lost();
        assert!(
            lost.is_empty(),
            "{} of {} are lost: {:#?}",
            lost.len(),
            self.calls.len(),
            &lost[..lost.len().min(10)]
        );
        self.assert_safe(seen);
    }

    /// R: every call that began `within` after the end of the fault was answered well, and there were such calls on every lane.
    pub fn assert_recovered(&self, over: Instant, within: Duration) {
        let late: Vec<&Call> = self.calls.iter().filter(|call| call.began >= over + within).collect();
        let bad: Vec<_> = late.iter().filter(|call| !call.is_good()).collect();
        let after = |call: &Call| call.began.saturating_duration_since(over);
        let told: Vec<_> = bad.iter().take(10).map(|call| (after(call), *call)).collect();
        assert!(bad.is_empty(), "{} of {} after {within:?}: {told:#?}", bad.len(), late.len());
        for lane in &self.kinds {
            assert!(late.iter().any(|call| call.lane == *lane), "{lane:?} is not called again");
        }
    }

    /// Nobody waited longer than this.
    pub fn assert_no_hang(&self, longest: Duration) {
        let slow: Vec<_> = self.calls.iter().filter(|call| call.took() > longest).collect();
        assert!(
            slow.is_empty(),
            "{} took longer than {longest:?}: {:#?}",
            slow.len(),
            &slow[..slow.len().min(10)]
        );
    }

    /// The latency that so many of a thousand good calls did not exceed, of those that began in this time.
    pub fn quantile(&self, per_mille: usize, from: Instant, to: Instant) -> Duration {
        let chosen = self.calls.iter().filter(|call| call.is_good() && call.began >= from && call.began < to);
        let mut times: Vec<Duration> = chosen.map(Call::took).collect();
        assert!(times.len() >= 20, "only {} calls", times.len());
        times.sort_unstable();
        times[(times.len() - 1) * per_mille / 1000]
    }
}

async fn allowed(lane: Lane, places: Places, stop: CancellationToken, sums: Arc<Sums>) {
    let mut turns = interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut kept = None;
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        let id = format!("{STEADY}{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let began = Instant::now();
        let outcome = tokio::time::timeout(PATIENCE, wire::one(lane, &places, &mut kept, &id)).await;
        let end = outcome.unwrap_or_else(|_| Err("no answer in time".into()));
        if end.is_err() || matches!(lane, Lane::Fresh(_)) {
            kept = None;
        }
        sums.calls.lock().unwrap().push(Call { lane, id, began, ended: Instant::now(), end });
        sums.ended.notify_waiters();
    }
}

/// A call that must never be answered, nor seen by an app.
struct Forbidden {
    what: &'static str,
    from: PodNetwork,
    to: SocketAddr,
    asks: Asks,
}

/// How it is made, and so what is meant to refuse it.
#[derive(Clone, Copy)]
enum Asks {
    Path,
    Identity,
    Plaintext,
    Grpc,
    WebSocket,
    Bytes,
}

impl Forbidden {
    fn all(places: &Places) -> Vec<Self> {
        let new = |what, from: &PodNetwork, to, asks| Self { what, from: from.clone(), to, asks };
        let Places { client, intruder, legacy, service, pods, .. } = places;
        let mut all = vec![
            new("a path that no rule allows", client, *service, Asks::Path),
            new("an identity that no rule allows", intruder, *service, Asks::Identity),
            new("a method of gRPC that no rule allows", client, *service, Asks::Grpc),
            new("a WebSocket at a path that no rule allows", client, *service, Asks::WebSocket),
            new("bytes of an identity that no rule allows", intruder, places.echo, Asks::Bytes),
        ];
        let plain = pods.iter().map(|pod| new("plaintext to a STRICT port", legacy, *pod, Asks::Plaintext));
        all.extend(plain);
        all
    }

    async fn ask(&self, id: &str) -> Result<(u16, String), String> {
        let (from, to) = (&self.from, self.to);
        match self.asks {
            Asks::Path => ask(from, to, "GET", "/forbidden", id).await.map(wire::told),
            Asks::Identity | Asks::Plaintext => ask(from, to, "GET", "/ok", id).await.map(wire::told),
            Asks::Grpc => wire::ask_grpc(from, to, "/shop.Echo/Forbidden", id).await,
            Asks::WebSocket => match upgraded(from, to, "/forbidden", id).await? {
                Ok(_) => Ok((101, String::new())),
                Err(refused) => Ok(wire::told(refused)),
            },
            Asks::Bytes => wire::ask_bytes(from, to, id).await,
        }
    }

    /// Whether it ended as is meant, and not because nobody was there.
    fn is_meant(&self, end: &Result<(u16, String), String>) -> bool {
        match (self.asks, end) {
            (Asks::Plaintext | Asks::Bytes, Err(broken)) => {
                broken.starts_with("request: ") && broken.contains("ConnectionReset")
            }
            (Asks::Grpc, Ok((status, message))) => {
                *status == 403 && message.starts_with("RBAC: access denied")
            }
            (Asks::Path | Asks::Identity | Asks::WebSocket, Ok((status, code))) => {
                *status == 403 && code == "policy-denied"
            }
            _ => false,
        }
    }
}

async fn refused(forbidden: Forbidden, stop: CancellationToken, sums: Arc<Sums>) {
    let mut turns = interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let kind = forbidden.asks as usize;
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        let number = sums.forbidden.fetch_add(1, Ordering::Relaxed);
        let id = format!("{FORBIDDEN}{kind}-{number}");
        // Who does not answer refuses nothing.
        let Ok(end) = tokio::time::timeout(FORBIDDEN_PATIENCE, forbidden.ask(&id)).await else { continue };
        if let Ok((status, _)) = &end
            && *status < 400
        {
            sums.breaches.lock().unwrap().push(format!("{}: {id} {status}", forbidden.what));
        }
        sums.refused[kind].fetch_add(forbidden.is_meant(&end).into(), Ordering::Relaxed);
    }
}
