//! One worker: its accept loop and its pool. Everything here stays on one thread.

use super::{
    Shared, Upstreams,
    governor::{Level, Sources},
    requests::Carrying,
};
use crate::{
    drain::Side,
    error::ProxyError,
    http::{headroom::Headroom, pool::Pool},
    net::{Accepted, Greeters, Listener},
    news::News,
    state::{Credentials, Inbound, Store},
    telemetry::{Direction, Telemetry},
    tls::open::{BRISK, LOOK, Occasion, Open, Watch},
};
use postern_identity::{Peer, Refusal};
use rustls_pki_types::UnixTime;
use std::{
    collections::BTreeMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
};
use tokio_util::task::TaskTracker;

/// What the connections of one listener share.
pub struct Worker {
    /// The surroundings.
    pub shared: Arc<Shared>,
    /// Whose calls it serves.
    pub side: Side,
    /// Connections for reuse.
    pub pool: Rc<Pool>,
    /// The services that it calls.
    pub upstreams: Upstreams,
    /// What its connections have to hear.
    pub news: Rc<News>,
    /// Mutual-TLS connections, judged again when trust changes and time passes.
    pub open: Rc<Open>,
    /// Connections by the address they come from.
    pub sources: Rc<Sources>,
    /// Servers that speak first.
    pub greeters: Greeters,
    /// Tunnels, which outlive the HTTP connection that they began as.
    pub tunnels: TaskTracker,
    /// Whether there is memory for more of the bodies that are on their way.
    pub headroom: Rc<Headroom>,
}

/// Between two looks for room, when there was none.
const ROOM: Duration = Duration::from_millis(50);

/// Thorough looks happen at every change of trust and once in as many [`LOOK`]s, for authorities that end by themselves.
const THOROUGH: u32 = 12;

/// Judges open connections for as long as their worker lives.
async fn keep_judged(open: Weak<Open>, store: Arc<Store>, telemetry: Telemetry) {
    let (mut changed, mut renewed) = (store.trust_generation(), store.credentials_generation());
    let mut known = store.trust();
    let (mut looks, mut brisk) = (0u32, 0u32);
    loop {
        let pause = if brisk > 0 { BRISK.0 } else { LOOK };
        let is_news = tokio::select! {
            // The sender lives in the store that we hold, so this never fails.
            _ = changed.changed() => true,
            _ = renewed.changed() => {
                let Some(open) = open.upgrade() else { return };
                move_on(&open, &store);
                continue;
            }
            () = tokio::time::sleep(pause) => false,
        };
        let Some(open) = open.upgrade() else { return };
        looks = looks.wrapping_add(1);
        brisk = if is_news { BRISK.1 } else { brisk.saturating_sub(1) };
        let Some(trust) = store.trust() else { continue };
        let occasion = match is_news {
            true => Occasion::of_change(known.as_deref(), &trust),
            false if looks.is_multiple_of(THOROUGH) => Occasion::Round,
            false => Occasion::Clock,
        };
        for ended in open.judge(&trust, SystemTime::now(), occasion).await {
            let direction = if ended.peer_is_server { Direction::Outbound } else { Direction::Inbound };
            telemetry.metrics().peer_refused(direction, ended.code);
        }
        known = Some(trust);
        move_on(&open, &store);
    }
}

/// Connections that nobody uses go when memory gets short, and bodies wait while it is full.
async fn keep_slim(pool: Weak<Pool>, headroom: Rc<Headroom>, mut levels: watch::Receiver<Level>) {
    while levels.changed().await.is_ok() {
        let Some(pool) = pool.upgrade() else { return };
        let level = *levels.borrow_and_update();
        headroom.set_full(level == Level::Full);
        if level >= Level::Tight {
            pool.drop_idle();
        }
    }
}

/// Once our certificate is below an authority that stays, connections below one that goes are left.
fn move_on(open: &Open, store: &Store) {
    let tainted = store.tainted();
    let tainted = &tainted.keys;
    if tainted.is_empty() {
        return;
    }
    if store.credentials().is_some_and(|current| !current.authorities.iter().any(|key| tainted.contains(key)))
    {
        open.leave(tainted);
    }
}

impl Worker {
    /// A worker with an empty pool, swept from now on.
    pub fn new(shared: Arc<Shared>, side: Side) -> Rc<Self> {
        let pool = Pool::new(shared.settings.limits.idle);
        pool.keep_swept(shared.store.clone());
        let news = Rc::<News>::default();
        drop(tokio::task::spawn_local(news.clone().follow(shared.drain.clone(), side)));
        let open = Rc::new(Open::new(news.clone()));
        let judging = keep_judged(Rc::downgrade(&open), shared.store.clone(), shared.telemetry.clone());
        drop(tokio::task::spawn_local(judging));
        let headroom = Rc::<Headroom>::default();
        let slim = keep_slim(Rc::downgrade(&pool), headroom.clone(), shared.governor.levels());
        drop(tokio::task::spawn_local(slim));
        let upstreams = Upstreams::new(shared.telemetry.clone());
        let (sources, greeters, tunnels) = (Rc::default(), Greeters::default(), TaskTracker::new());
        Rc::new(Self { shared, side, pool, upstreams, news, open, sources, greeters, tunnels, headroom })
    }

    /// Takes a finished handshake into the number of those that are judged. `made_with` says under which trust it was made.
    ///
    /// # Errors
    /// When trust has changed during the handshake, and does not cover the peer any more.
    pub fn watch(
        &self,
        peer: &Peer,
        peer_is_server: bool,
        made_with: &Credentials,
    ) -> Result<Watch, Refusal> {
        // First in, then asked: so no change falls between the two.
        let watch = self.open.enter(peer.clone(), peer_is_server, &made_with.authorities);
        match self.shared.store.trust() {
            Some(trust) if !Arc::ptr_eq(&trust, &made_with.trust) => {
                peer.still_trusted(&trust, peer_is_server, UnixTime::now())?;
            }
            _ => {}
        }
        Ok(watch)
    }

    /// Accepts until the drain closes this side, then waits for what is in flight until the drain is over. A panic ends one connection.
    pub async fn accept_all<J, F>(self: Rc<Self>, listener: Listener, journey: J)
    where
        J: Fn(Rc<Self>, Accepted) -> F,
        F: Future<Output = Option<Carrying>> + 'static,
    {
        let mut acceptor = match listener.open(self.shared.telemetry.clone()) {
            Ok(acceptor) => acceptor,
            Err(error) => return tracing::error!(%error, "cannot use a listener"),
        };
        let (drain, governor) = (&self.shared.drain, &self.shared.governor);
        let mut connections = JoinSet::new();
        let mut open = InOrder::default();
        let mut levels = governor.levels();
        let closed = drain.closed(self.side);
        tokio::pin!(closed);
        loop {
            let room = match connections.len() + self.tunnels.len() < self.shared.settings.limits.connections
            {
                true if !self.shared.telemetry.has_room() => Err("access_log"),
                true => governor.has_room(),
                false => Err("connections"),
            };
            tokio::select! {
                // In this order, so that what was refused a moment ago is not accepted now.
                biased;
                () = &mut closed => break,
                Ok(()) = levels.changed() => {}
                Some(ended) = connections.join_next() => open.ended(self.report(ended)),
                accepted = acceptor.accept(), if room.is_ok() => {
                    let (place, journey) = (governor.enter(), Box::pin(journey(self.clone(), accepted)));
                    let number = open.next;
                    open.began(connections.spawn_local(async move {
                        let _place = place;
                        let carrying = journey.await;
                        if let Some(carrying) = carrying {
                            carrying.await;
                        }
                        number
                    }));
                }
                // Whoever waits stays in the kernel's queue, which costs us nothing.
                () = tokio::time::sleep(ROOM), if room.is_err() => {
                    if let Err(limit) = room {
                        self.shared.telemetry.metrics().shed(limit);
                        // What is open grows on, and the kernel would end all of it.
                        if limit == "memory" {
                            open.cut(governor.surplus(open.open.len()));
                        }
                    }
                }
            }
        }
        drop(acceptor);
        loop {
            tokio::select! {
                ended = connections.join_next() => match ended {
                    Some(ended) => open.ended(self.report(ended)),
                    None => break,
                },
                // Dropping the set aborts what is left.
                () = drain.over() => return,
            }
        }
        self.tunnels.close();
        tokio::select! {
            () = self.tunnels.wait() => {}
            () = drain.over() => {}
        }
    }

    /// Resolves when policy withdraws what it had allowed: `judge` is asked now and after each change of policy.
    pub async fn revoked(&self, judge: impl Fn(&Inbound) -> Option<ProxyError>) -> ProxyError {
        let mut generation = self.shared.store.policy_generation();
        loop {
            generation.borrow_and_update();
            if let Some(policy) = self.shared.store.inbound()
                && let Some(error) = judge(&policy)
            {
                return error;
            }
            if generation.changed().await.is_err() {
                // The store is gone, and with it whoever could change the policy.
                return std::future::pending().await;
            }
        }
    }

    /// The number of the connection that has ended; none where it broke off.
    fn report(&self, ended: Result<u64, JoinError>) -> Option<u64> {
        ended
            .inspect_err(|error| {
                if error.is_panic() {
                    self.shared.telemetry.metrics().panicked();
                    tracing::error!("a connection ended in a panic; please report it");
                }
            })
            .ok()
    }
}

/// The connections that are open, in the order in which they came.
#[derive(Default)]
struct InOrder {
    open: BTreeMap<u64, AbortHandle>,
    next: u64,
}

impl InOrder {
    fn began(&mut self, connection: AbortHandle) {
        self.open.insert(self.next, connection);
        self.next += 1;
    }

    fn ended(&mut self, number: Option<u64>) {
        match number {
            Some(number) => drop(self.open.remove(&number)),
            None => self.open.retain(|_, connection| !connection.is_finished()),
        }
    }

    /// Ends the newest, for whom the least is lost; each has its record all the same.
    fn cut(&mut self, surplus: usize) {
        for _ in 0..surplus {
            if let Some((_, connection)) = self.open.pop_last() {
                connection.abort();
            }
        }
    }
}
