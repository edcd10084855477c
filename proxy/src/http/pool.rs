//! Connections kept for the next request, one pool per worker.
//!
//! A connection is used again only for the same address, the same expected identity, the same name and protocol, and as long as
//! the credentials it was made with are the current ones.

pub use super::opening::InFlight;
use super::{
    body::{Exchange, Upload},
    budget::Budget,
    flood::Seen,
    handshake,
    http1::client,
    message::Answering,
    opening, repeat,
};
use crate::{
    error::ProxyError,
    net::dials::{self, Dials},
    state::Credentials,
    tls::{Stream, open::Watch},
};
use http::{Request, Response};
use hyper::client::conn::http2;
use postern_identity::SpiffeId;
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    hash::{Hash, Hasher},
    net::{IpAddr, SocketAddr},
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// What makes two connections interchangeable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Where it leads.
    pub address: SocketAddr,
    /// Where it comes from, when that is not the kernel's choice.
    pub source: Option<IpAddr>,
    /// Who must be there; `None`: plain.
    pub identity: Option<SpiffeId>,
    /// Server name sent in the handshake.
    pub sni: Option<Rc<str>>,
    /// HTTP/2, else HTTP/1.1.
    pub http2: bool,
}

// Who is expected hardly ever differs where the address does not, and each request would hash those texts several times. The hasher
// takes a word as fast as an octet.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.address.ip() {
            IpAddr::V4(ip) => {
                let port = u64::from(self.address.port());
                state.write_u64(u64::from(ip.to_bits()) << 17 | port << 1 | u64::from(self.http2));
            }
            IpAddr::V6(ip) => {
                state.write_u128(ip.to_bits());
                state.write_u32(u32::from(self.address.port()) << 1 | u32::from(self.http2));
            }
        }
        if let Some(source) = self.source {
            source.hash(state);
        }
    }
}

/// Streams we put on one HTTP/2 connection before we open another (what Envoy and ztunnel allow too).
const MOST_STREAMS: usize = 100;
/// Idle HTTP/1 connections kept per key.
const MOST_IDLE: usize = 64;

/// How long connections are kept without use.
#[derive(Clone, Copy, Debug)]
pub struct Idle {
    /// Plain ones: shorter than the keep-alive of common servers (5 s), so that they rarely close first.
    pub plain: Duration,
    /// Those between sidecars, which wait much longer.
    pub mesh: Duration,
}

impl Idle {
    fn of(self, mesh: bool) -> Duration {
        if mesh { self.mesh } else { self.plain }
    }
}

/// What holds for connections to one destination beside their key; they stay apart only by the key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Terms {
    /// How long one is kept without use, when that is not the usual.
    pub idle: Option<Duration>,
    /// How many requests one carries at most.
    pub requests: Option<u32>,
    /// How long a request may wait for an HTTP/2 stream, when that is not the usual.
    pub opening: Option<Duration>,
}

impl Terms {
    /// Whether a connection that has carried so many requests carries another one.
    fn has_more(&self, carried: u32) -> bool {
        self.requests.is_none_or(|most| carried < most)
    }
}

/// The pool of one worker.
pub struct Pool {
    idle: Idle,
    slots: RefCell<HashMap<Key, Slot>>,
    /// What this worker may repeat.
    pub budget: Budget,
}

struct Slot {
    terms: Terms,
    http1: Vec<IdleConnection>,
    http2: Vec<SharedConnection>,
    dials: Rc<Dials>,
}

impl Slot {
    fn of(key: &Key) -> Self {
        // One at a time for HTTP/2, so that a burst shares one connection.
        let dials = Rc::new(Dials::new(if key.http2 { 1 } else { dials::MOST }));
        Self { terms: Terms::default(), http1: Vec::new(), http2: Vec::new(), dials }
    }

    fn is_dialled(&self) -> bool {
        Rc::strong_count(&self.dials) > 1
    }
}

struct IdleConnection {
    connection: client::Connection,
    made_with: Option<Arc<Credentials>>,
    watch: Watch,
    since: Instant,
    carried: u32,
}

struct SharedConnection {
    sender: http2::SendRequest<Upload>,
    made_with: Option<Arc<Credentials>>,
    watch: Watch,
    streams: Rc<Cell<usize>>,
    seen: Rc<Seen>,
    since: Instant,
    carried: u32,
}

/// The use of a connection by one exchange.
#[derive(Default)]
pub struct Lease {
    watch: Watch,
    home: Option<Home>,
    _stream: Option<InFlight>,
    counts: Counts,
}

/// What counts an exchange while it lives: its request, its endpoint, and its share of the connections.
pub type Counts = ([Option<InFlight>; 2], Option<OwnedSemaphorePermit>);

struct Home {
    pool: Weak<Pool>,
    key: Key,
    connection: client::Connection,
    made_with: Option<Arc<Credentials>>,
    watch: Watch,
    carried: u32,
}

impl Lease {
    /// Keeps what counts the exchange until its end.
    pub fn count(&mut self, counts: Counts) {
        self.counts = counts;
    }

    /// Gives that to somebody who lasts longer: a tunnel.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The standing of the connection.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The exchange is complete: the connection may serve another one. Without this call it is closed.
    pub fn give_back(mut self) {
        if let Some(home) = self.home.take()
            && home.connection.persists()
            && let Some(pool) = home.pool.upgrade()
        {
            pool.keep(home);
        }
    }
}

/// Why there is no answer, and the request when it may be sent again.
pub struct Failure {
    /// What happened.
    pub error: ProxyError,
    /// Nobody has processed it, or processing it twice does nothing that once does not.
    pub again: Option<Box<Request<Upload>>>,
}

enum Connection {
    Http1(client::Connection, Watch, u32),
    Http2(http2::SendRequest<Upload>, InFlight, Watch, Rc<Seen>),
}

impl Pool {
    /// An empty pool.
    pub fn new(idle: Idle) -> Rc<Self> {
        Rc::new(Self { idle, slots: RefCell::default(), budget: Budget::default() })
    }

    /// Sends a request on a kept connection or a new one that `dial` opens, who is told how long the request has waited for others'
    /// connections. A request that a kept connection lost unseen goes
    /// once more on a new one; so does, within the budget, an idempotent one without a body when the connection closed without
    /// any answer, since a server may close an idle connection in the very moment of its reuse.
    pub async fn send<D, F>(
        self: &Rc<Self>,
        key: &Key,
        terms: Terms,
        credentials: Option<&Arc<Credentials>>,
        mut request: Box<Request<Upload>>,
        exchange: &Exchange,
        dial: D,
    ) -> Result<(Response<Answering>, Lease), Failure>
    where
        D: Fn(Duration) -> F,
        F: Future<Output = Result<(Stream, Watch), ProxyError>>,
    {
        let mut reuse = true;
        loop {
            let kept = if reuse { self.kept(key, terms, credentials) } else { None };
            let (connection, reused) = match kept {
                Some(kept) => (kept, true),
                // Apart, or every request would be as large as those few that open a connection.
                None => match Box::pin(self.connection(key, terms, credentials, reuse, &dial)).await {
                    Ok(connection) => connection,
                    Err(error) => return Err(Failure { error, again: Some(request) }),
                },
            };
            let (sent, lease) = match connection {
                Connection::Http1(connection, watch, carried) => {
                    let may_repeat = repeat::may_repeat(&request);
                    let sent = match connection.send(&mut request).await {
                        Ok(response) => Ok(response.map(Answering::Http1)),
                        Err(error) => {
                            let again = may_repeat && repeat::is_as_unsent(&error);
                            Err((error, again.then_some(repeat::Again::Repeat(request))))
                        }
                    };
                    let home = Home {
                        pool: Rc::downgrade(self),
                        key: key.clone(),
                        connection,
                        made_with: credentials.cloned(),
                        watch: watch.clone(),
                        carried: carried + 1,
                    };
                    let home = terms.has_more(carried + 1).then_some(home);
                    (sent, Lease { watch, home, ..Lease::default() })
                }
                Connection::Http2(mut sender, stream, watch, seen) => {
                    let spare = repeat::copy_of(&request);
                    exchange.handed_over();
                    let patience = terms.opening.unwrap_or(opening::PATIENCE);
                    let answer = sender.try_send_request(*request);
                    let Some(sent) = opening::in_time(answer, exchange, (&seen, &stream), patience).await
                    else {
                        self.leave(key, &seen);
                        let error = opening::none_free(key.address, patience);
                        return Err(Failure { error, again: repeat::harmless(spare) });
                    };
                    let sent = match sent {
                        Ok(response) => Ok(response.map(Answering::Http2)),
                        Err(error) => Err(repeat::again(error, spare)),
                    };
                    (sent, Lease { watch, _stream: Some(stream), ..Lease::default() })
                }
            };
            let (error, again) = match sent {
                Ok(response) => return Ok((response, lease)),
                Err(lost) => lost,
            };
            match again {
                Some(repeat::Again::Unsent(unsent)) if reused => request = unsent,
                Some(repeat::Again::Repeat(spare)) if reused && self.budget.withdraw() => {
                    exchange.repeated();
                    request = spare;
                }
                again => {
                    let error = match lease.watch.refusal() {
                        Some(refusal) => ProxyError::UpstreamDistrusted(refusal),
                        None => repeat::blame(&error, exchange),
                    };
                    return Err(Failure { error, again: again.map(repeat::Again::request) });
                }
            }
            reuse = false;
        }
    }

    /// A new one, or one that is given back before it is there; and whether it has carried requests.
    async fn connection<D, F>(
        self: &Rc<Self>,
        key: &Key,
        terms: Terms,
        credentials: Option<&Arc<Credentials>>,
        reuse: bool,
        dial: &D,
    ) -> Result<(Connection, bool), ProxyError>
    where
        D: Fn(Duration) -> F,
        F: Future<Output = Result<(Stream, Watch), ProxyError>>,
    {
        let kept = || if reuse { self.kept(key, terms, credentials) } else { None };
        let dials = {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.entry(key.clone()).or_insert_with(|| Slot::of(key));
            slot.terms = terms;
            slot.dials.clone()
        };
        let (_turn, waited) = match dials.turn(kept).await {
            Ok(kept) => return Ok((kept, true)),
            Err(turn) => turn,
        };
        let made = self.made(key, credentials, || dial(waited)).await;
        Ok((made.inspect_err(|_| dials.failed())?, false))
    }

    async fn made<D, F>(
        &self,
        key: &Key,
        credentials: Option<&Arc<Credentials>>,
        dial: D,
    ) -> Result<Connection, ProxyError>
    where
        D: FnOnce() -> F,
        F: Future<Output = Result<(Stream, Watch), ProxyError>>,
    {
        let (stream, watch) = dial().await?;
        if !key.http2 {
            return Ok(Connection::Http1(client::Connection::new(stream, &watch), watch, 0));
        }
        let (sender, seen) = handshake::http2(stream, key.address, watch.clone()).await?;
        let streams = Rc::new(Cell::new(0));
        let stream = InFlight::enter(&streams);
        let shared = SharedConnection {
            sender: sender.clone(),
            made_with: credentials.cloned(),
            watch: watch.clone(),
            streams,
            seen: seen.clone(),
            since: Instant::now(),
            carried: 1,
        };
        self.slots.borrow_mut().entry(key.clone()).or_insert_with(|| Slot::of(key)).http2.push(shared);
        Ok(Connection::Http2(sender, stream, watch, seen))
    }

    fn kept(&self, key: &Key, terms: Terms, credentials: Option<&Arc<Credentials>>) -> Option<Connection> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(key)?;
        slot.terms = terms;
        let now = Instant::now();
        if key.http2 {
            slot.http2.retain(|shared| !shared.sender.is_closed());
            let shared = slot.http2.iter_mut().find(|shared| {
                same(&shared.made_with, credentials)
                    && shared.streams.get()
                        < shared.seen.most_streams().map_or(MOST_STREAMS, |most| most.min(MOST_STREAMS))
                    && shared.watch.takes_more(SystemTime::now)
                    && terms.has_more(shared.carried)
            })?;
            shared.since = now;
            shared.carried = shared.carried.saturating_add(1);
            let (sender, stream) = (shared.sender.clone(), InFlight::enter(&shared.streams));
            return Some(Connection::Http2(sender, stream, shared.watch.clone(), shared.seen.clone()));
        }
        while let Some(idle) = slot.http1.pop() {
            let patience = terms.idle.unwrap_or(self.idle.of(key.identity.is_some()));
            let fresh = now - idle.since < patience;
            let good = same(&idle.made_with, credentials) && idle.watch.takes_more(SystemTime::now);
            if fresh && good && !idle.connection.is_closed() {
                return Some(Connection::Http1(idle.connection, idle.watch, idle.carried));
            }
        }
        None
    }

    /// Gives no more requests to a connection.
    fn leave(&self, key: &Key, seen: &Rc<Seen>) {
        if let Some(slot) = self.slots.borrow_mut().get_mut(key) {
            slot.http2.retain(|shared| !Rc::ptr_eq(&shared.seen, seen));
        }
    }

    fn keep(&self, home: Home) {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.entry(home.key).or_insert_with_key(Slot::of);
        if slot.http1.len() >= MOST_IDLE {
            slot.http1.remove(0);
        }
        slot.http1.push(IdleConnection {
            connection: home.connection,
            made_with: home.made_with,
            watch: home.watch,
            since: Instant::now(),
            carried: home.carried,
        });
        slot.dials.given_back();
    }

    /// Closes what has been idle for too long, or is of no more use.
    pub fn sweep(&self, current: Option<&Arc<Credentials>>) {
        let now = Instant::now();
        self.slots.borrow_mut().retain(|key, slot| {
            let patience = slot.terms.idle.unwrap_or(self.idle.of(key.identity.is_some()));
            let current = if key.identity.is_some() { current } else { None };
            let terms = slot.terms;
            slot.http1.retain(|idle| {
                now - idle.since < patience && !idle.connection.is_closed() && same(&idle.made_with, current)
            });
            slot.http2.retain(|shared| {
                let is_busy = shared.streams.get() > 0;
                let is_fresh = now - shared.since < patience && same(&shared.made_with, current);
                // What has carried its last request ends with it.
                !shared.sender.is_closed() && (is_busy || is_fresh) && terms.has_more(shared.carried)
            });
            !slot.http1.is_empty() || !slot.http2.is_empty() || slot.is_dialled()
        });
    }

    /// Closes all that nobody uses.
    pub fn drop_idle(&self) {
        self.slots.borrow_mut().retain(|_, slot| {
            slot.http1.clear();
            slot.http2.retain(|shared| shared.streams.get() > 0);
            !slot.http2.is_empty() || slot.is_dialled()
        });
    }

    /// Sweeps every second, for as long as the pool is in use.
    pub fn keep_swept(self: &Rc<Self>, store: Arc<crate::state::Store>) {
        let pool = Rc::downgrade(self);
        drop(tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let Some(pool) = pool.upgrade() else { return };
                pool.sweep(store.credentials().as_ref());
            }
        }));
    }
}

fn same(made_with: &Option<Arc<Credentials>>, current: Option<&Arc<Credentials>>) -> bool {
    match (made_with, current) {
        (None, None) => true,
        (Some(made_with), Some(current)) => Arc::ptr_eq(made_with, current),
        _ => false,
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
