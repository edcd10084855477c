//! Steady load on a mesh of processes: allowed calls at a fixed rate, on kept and on new connections, some of gRPC, and tokens;
//! beside them forbidden ones that must never be answered.
//!
//! Allowed calls are due by the clock, whatever becomes of those before them: what a slow answer holds up is made up for, at the end
//! too, so that a mesh that answers late does not get fewer calls.

use crate::{
    Answer, Request,
    standalone::Standalone,
    workload_api::{channel, marked},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use postern_api::open::{
    JwtsvidRequest, ValidateJwtsvidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient,
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// Lanes of allowed calls on connections that are kept, and on a new connection each; each lane calls 20 times a second.
const KEPT: usize = 6;
const NEW: usize = 4;
/// And of unary calls of gRPC, on a new connection each.
const GRPC: usize = 2;
const EVERY: Duration = Duration::from_millis(50);
/// What the mesh has to answer on a machine with time to spare, in calls a second; 240 are due.
const RATE: f64 = 200.0;
/// Below this share of spare time a machine is busy with something else.
const SPARE: f64 = 0.1;
/// How long after the end the calls that were due before it may still be made.
const MAKE_UP: Duration = Duration::from_secs(15);
/// The header that no allowed call carries.
pub const FORBIDDEN: &str = "x-forbidden";
/// Failures that are told; the rest is counted.
const TOLD: usize = 10;

/// Who is called.
const SERVER: &str = "server.shop.svc.cluster.local";
/// How long a forbidden call waits for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Kinds of forbidden calls.
const FORBIDDEN_KINDS: usize = 4;
/// So many calls of each kind must have been refused for the reason that is meant, and not because nobody was there.
const REFUSALS: u64 = 5;

/// Load that runs until it is stopped: 240 allowed calls a second, 80 forbidden ones.
pub struct Load {
    stop: CancellationToken,
    lanes: JoinSet<()>,
    sums: Arc<Sums>,
    began: Instant,
    processors: Option<Processors>,
}

#[derive(Default)]
struct Sums {
    /// When no more calls became due.
    ended: OnceLock<Instant>,
    due: AtomicU64,
    made: AtomicU64,
    allowed: AtomicU64,
    forbidden: AtomicU64,
    refused: [AtomicU64; FORBIDDEN_KINDS],
    failures: Mutex<Vec<String>>,
    failed: AtomicU64,
    breaches: Mutex<Vec<String>>,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// Allowed calls that were due, those for tokens apart.
    pub due: u64,
    /// How many of them were made.
    pub made: u64,
    /// From the first to the last of them.
    pub took: Duration,
    /// Share of the processors' time that was nobody's, or somebody's who steps aside for us, 0 to 1; 0 also where that is not
    /// known.
    pub spare: f64,
    /// Allowed calls that were made, those for tokens included.
    pub allowed: u64,
    /// Allowed calls that were not answered 200.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<String>,
    /// Forbidden calls that were made.
    pub forbidden: u64,
    /// How many of each kind were refused by policy or by the handshake, and not because nobody was there.
    pub refused: [u64; FORBIDDEN_KINDS],
    /// Forbidden calls that were answered 200.
    pub breaches: Vec<String>,
}

impl Load {
    /// Begins.
    pub fn start(mesh: &Standalone) -> Self {
        let mut load = Self::start_without_tokens(mesh);
        let (client, server) = (mesh.workload_api("client"), mesh.workload_api("server"));
        let (stop, sums) = (load.stop.clone(), load.sums.clone());
        load.lanes
            .spawn(async move { stop.run_until_cancelled(tokens(client, server, sums)).await.unwrap_or(()) });
        load
    }

    /// Begins where clocks jump: tokens live five minutes, and stand one minute of that.
    pub fn start_without_tokens(mesh: &Standalone) -> Self {
        let mut load = Self {
            stop: CancellationToken::new(),
            lanes: JoinSet::new(),
            sums: Arc::default(),
            began: Instant::now(),
            processors: Processors::look(),
        };
        let (entry, port) = (mesh.entry("client"), mesh.inbound("server"));
        for lane in 0..KEPT + NEW {
            let (stop, sums) = (load.stop.clone(), load.sums.clone());
            load.lanes.spawn(allowed(entry, lane < KEPT, stop, sums));
        }
        for _ in 0..GRPC {
            let (stop, sums) = (load.stop.clone(), load.sums.clone());
            load.lanes.spawn(unary(grpc(entry, "/shop.Echo/Say"), stop, sums));
        }
        let plain = |address, path: &str| Request::new(address, SERVER).path(path);
        let forbidden: [_; FORBIDDEN_KINDS] = [
            (Refusal::Policy, "a good identity that no rule allows", plain(mesh.entry("intruder"), "/ok")),
            (Refusal::Policy, "a path that no rule allows", plain(entry, "/forbidden")),
            (Refusal::Reset, "plaintext to a STRICT port", plain(port, "/ok")),
            (Refusal::Grpc, "a method of gRPC that no rule allows", grpc(entry, "/shop.Echo/Forbidden")),
        ];
        for (kind, (by, what, request)) in forbidden.into_iter().enumerate() {
            let (stop, sums) = (load.stop.clone(), load.sums.clone());
            load.lanes.spawn(refused(kind, by, what, request.header(FORBIDDEN, "1"), stop, sums));
        }
        load
    }

    /// How many allowed calls have been answered or lost so far.
    pub fn so_far(&self) -> (u64, u64) {
        (self.sums.allowed.load(Ordering::Relaxed), self.sums.failed.load(Ordering::Relaxed))
    }

    /// Goes on until this many more calls have been made.
    pub async fn pass(&self, calls: u64) {
        let enough = self.so_far().0 + calls;
        while self.so_far().0 < enough {
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Ends, and tells.
    pub async fn stop(mut self) -> Report {
        let _ = self.sums.ended.set(Instant::now());
        self.stop.cancel();
        while let Some(lane) = self.lanes.join_next().await {
            lane.expect("a lane does not break off");
        }
        let took = self.began.elapsed();
        let spare = self.processors.zip(Processors::look()).map_or(0.0, |(then, now)| then.spare_until(&now));
        let Sums { ended: _, due, made, allowed, forbidden, refused, failures, failed, breaches } =
            &*self.sums;
        Report {
            due: due.load(Ordering::Relaxed),
            made: made.load(Ordering::Relaxed),
            took,
            spare,
            allowed: allowed.load(Ordering::Relaxed),
            failed: failed.load(Ordering::Relaxed),
            failures: failures.lock().unwrap().clone(),
            forbidden: forbidden.load(Ordering::Relaxed),
            refused: refused.each_ref().map(|count| count.load(Ordering::Relaxed)),
            breaches: breaches.lock().unwrap().clone(),
        }
    }
}

impl Sums {
    fn lose(&self, what: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut failures = self.failures.lock().unwrap();
        if failures.len() < TOLD {
            failures.push(format!("{:?} {what}", std::time::SystemTime::now()));
        }
    }
}

impl Report {
    /// No allowed call was lost, no forbidden one answered, and the app saw none of those.
    pub fn assert_whole(&self, mesh: &Standalone) {
        assert!(self.allowed >= 50, "there was load: {self:?}");
        assert_eq!(self.made, self.due, "calls were due and could not be made: {self:?}\n{}", mesh.told());
        // Few enough for a double.
        #[allow(clippy::cast_precision_loss)]
        let rate = self.made as f64 / self.took.as_secs_f64();
        eprintln!(
            "{rate:.0} allowed calls a second, {:.0} % of the processors' time spare",
            self.spare * 100.0
        );
        assert!(
            rate >= RATE || self.spare < SPARE,
            "{rate:.0} calls a second were answered, while processors had time to spare: {self:?}"
        );
        assert!(
            self.refused.iter().all(|count| *count >= REFUSALS),
            "somebody was there to refuse: {self:?}"
        );
        assert_eq!(
            self.failed,
            0,
            "{} of {} calls were lost: {:#?}\n{}",
            self.failed,
            self.allowed,
            self.failures,
            mesh.told()
        );
        self.assert_no_breach(mesh);
    }

    /// No forbidden call was answered, and the app saw none of those.
    pub fn assert_no_breach(&self, mesh: &Standalone) {
        assert!(self.breaches.is_empty(), "{:#?}", self.breaches);
        let seen = mesh.app.received().into_iter().filter(|r| r.headers.contains_key(FORBIDDEN)).count();
        assert_eq!(seen, 0, "forbidden calls that the app saw");
    }
}

/// The turns of a lane of allowed calls: due by the clock.
struct Due {
    first: Instant,
    made: u32,
    stop: CancellationToken,
    sums: Arc<Sums>,
}

impl Due {
    fn new(stop: CancellationToken, sums: Arc<Sums>) -> Self {
        Self { first: Instant::now(), made: 0, stop, sums }
    }

    /// Waits until the next call is due. False when no more are, or when there was no time for them.
    async fn next(&mut self) -> bool {
        let due = self.first + EVERY * self.made;
        self.stop.run_until_cancelled(tokio::time::sleep_until(due)).await;
        let over = self.sums.ended.get().filter(|_| self.stop.is_cancelled());
        if over.is_some_and(|ended| due > *ended || ended.elapsed() > MAKE_UP) {
            return false;
        }
        self.made += 1;
        self.sums.made.fetch_add(1, Ordering::Relaxed);
        true
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        let end = self.sums.ended.get().copied().unwrap_or_else(Instant::now);
        // The first one at once; none for a lane that began too late.
        let time = end.checked_duration_since(self.first);
        let due = time.map_or(0, |time| time.as_nanos() / EVERY.as_nanos() + 1);
        self.sums.due.fetch_add(u64::try_from(due).unwrap(), Ordering::Relaxed);
    }
}

async fn allowed(entry: SocketAddr, keep: bool, stop: CancellationToken, sums: Arc<Sums>) {
    let (mut kept, mut turns) = (None, Due::new(stop, sums.clone()));
    while turns.next().await {
        let outcome = tokio::time::timeout(Duration::from_secs(10), call(entry, &mut kept)).await;
        sums.allowed.fetch_add(1, Ordering::Relaxed);
        let failure = match outcome {
            Ok(Ok(200)) => None,
            Ok(Ok(status)) => Some(format!("status {status}")),
            Ok(Err(error)) => Some(error),
            Err(_) => Some("no answer within 10 s".into()),
        };
        if let Some(failure) = failure {
            sums.lose(format!("{failure} (kept connection: {keep})"));
            kept = None;
        }
        if !keep {
            kept = None;
        }
    }
}

/// A token that the client got first, and the one that it gets now, are good for the server at all times; one that was changed
/// never is.
async fn tokens(client: PathBuf, server: PathBuf, sums: Arc<Sums>) {
    let mut first = None;
    loop {
        tokio::time::sleep(EVERY * 2).await;
        let now = match token(&client, "server").await {
            Ok(token) => token,
            // Without the control plane there is no first one.
            Err(_) if first.is_none() => continue,
            Err(reason) => {
                sums.lose(format!("no token: {reason}"));
                continue;
            }
        };
        let first = first.get_or_insert_with(|| now.clone());
        for good in [&*first, &now] {
            sums.allowed.fetch_add(1, Ordering::Relaxed);
            if let Err(reason) = is_good_token(&server, "server", good).await {
                sums.lose(format!("a good token is refused: {reason}"));
            }
        }
        let (signed, signature) = now.rsplit_once('.').unwrap();
        let changed = if signature.starts_with('A') { 'B' } else { 'A' };
        let bad = format!("{signed}.{changed}{}", &signature[1..]);
        for (bad, audience) in [(&bad, "server"), (&now, "somebody-else")] {
            sums.forbidden.fetch_add(1, Ordering::Relaxed);
            if is_good_token(&server, audience, bad).await.is_ok() {
                sums.breaches.lock().unwrap().push("a bad token is accepted".into());
            }
        }
    }
}

/// A JWT-SVID of the pod behind `socket`.
pub async fn token(socket: &Path, audience: &str) -> Result<String, String> {
    let request = JwtsvidRequest { audience: vec![audience.into()], spiffe_id: String::new() };
    let mut client = SpiffeWorkloadApiClient::new(channel(socket.to_owned()).await);
    let answer = client.fetch_jwtsvid(marked(request)).await.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().svids[0].svid.clone())
}

/// What the sidecar behind `socket` says of it.
pub async fn is_good_token(socket: &Path, audience: &str, token: &str) -> Result<(), String> {
    let request = ValidateJwtsvidRequest { audience: audience.into(), svid: token.into() };
    let mut client = SpiffeWorkloadApiClient::new(channel(socket.to_owned()).await);
    client.validate_jwtsvid(marked(request)).await.map(|_| ()).map_err(|status| status.to_string())
}

async fn call(entry: SocketAddr, kept: &mut Option<SendRequest<Empty<Bytes>>>) -> Result<u16, String> {
    // A connection that was closed in between, as HTTP allows, is opened again.
    if kept.as_ref().is_none_or(SendRequest::is_closed) {
        let stream = TcpStream::connect(entry).await.map_err(|e| format!("connect: {e}"))?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        *kept = Some(sender);
    }
    let sender = kept.as_mut().unwrap();
    sender.ready().await.map_err(|e| format!("connection: {e}"))?;
    let request = http::Request::get("/ok").header("host", SERVER).body(Empty::new()).unwrap();
    let answer = sender.send_request(request).await.map_err(|e| format!("request: {e}"))?;
    let status = answer.status().as_u16();
    answer.into_body().collect().await.map_err(|e| format!("body: {e}"))?;
    Ok(status)
}

/// A unary call of gRPC with an empty message.
fn grpc(entry: SocketAddr, path: &str) -> Request {
    let request = Request::new(entry, SERVER).http2().method("POST").path(path).body(vec![0; 5]);
    request.header("content-type", "application/grpc").header("te", "trailers")
}

/// Its status: in the trailers, or in the head of an answer that is nothing else.
fn grpc_status(answer: &Answer) -> Option<&str> {
    let told = answer.trailers.get("grpc-status").or_else(|| answer.headers.get("grpc-status"));
    told.and_then(|status| status.to_str().ok())
}

async fn unary(request: Request, stop: CancellationToken, sums: Arc<Sums>) {
    let mut turns = Due::new(stop, sums.clone());
    while turns.next().await {
        // Sooner than a [`Request`] breaks the whole test off.
        let outcome = tokio::time::timeout(Duration::from_secs(9), request.clone().send()).await;
        sums.allowed.fetch_add(1, Ordering::Relaxed);
        match outcome {
            Ok(Ok(answer)) if grpc_status(&answer) == Some("0") => {}
            other => sums.lose(format!("gRPC: {other:?}")),
        }
    }
}

/// What refuses a call.
#[derive(Clone, Copy)]
enum Refusal {
    /// An answer, 403.
    Policy,
    /// The connection, which was accepted.
    Reset,
    /// An answer, PERMISSION_DENIED.
    Grpc,
}

async fn refused(
    kind: usize,
    by: Refusal,
    what: &'static str,
    request: Request,
    stop: CancellationToken,
    sums: Arc<Sums>,
) {
    let mut turns = turns();
    while stop.run_until_cancelled(turns.tick()).await.is_some() {
        sums.forbidden.fetch_add(1, Ordering::Relaxed);
        // A frozen sidecar does not answer, which refuses nothing.
        let Ok(answer) = tokio::time::timeout(PATIENCE, request.clone().send()).await else { continue };
        let is_meant = match (by, &answer) {
            // gRPC has its denials in answers of 200.
            (Refusal::Grpc, Ok(answer)) if grpc_status(answer).is_some_and(|status| status != "0") => {
                grpc_status(answer) == Some("7")
            }
            (_, Ok(answer)) if answer.status < 400 => {
                sums.breaches.lock().unwrap().push(format!("{what}: {}", answer.status));
                false
            }
            (Refusal::Policy, Ok(answer)) => answer.status == 403,
            (Refusal::Reset, Err(broken)) => broken.is_reset(),
            _ => false,
        };
        sums.refused[kind].fetch_add(is_meant.into(), Ordering::Relaxed);
    }
}

/// What the processors of this machine have done so far, in ticks of the kernel.
struct Processors {
    spare: u64,
    all: u64,
}

impl Processors {
    /// `None` where the kernel does not say.
    fn look() -> Option<Self> {
        let text = std::fs::read_to_string("/proc/stat").ok()?;
        let numbers = text.lines().next()?.strip_prefix("cpu")?;
        // user nice system idle iowait irq softirq steal; what guests take is in user already.
        let ticks: Vec<u64> = numbers.split_whitespace().take(8).filter_map(|n| n.parse().ok()).collect();
        Some(Self { spare: ticks.get(1)? + ticks.get(3)? + ticks.get(4)?, all: ticks.iter().sum() })
    }

    fn spare_until(&self, later: &Self) -> f64 {
        // Differences of minutes: exact in a double.
        #[allow(clippy::cast_precision_loss)]
        let share = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        share(later.spare.saturating_sub(self.spare), later.all.saturating_sub(self.all))
    }
}

/// The turns of a lane of forbidden calls.
fn turns() -> Interval {
    let mut turns = tokio::time::interval(EVERY);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    turns
}
