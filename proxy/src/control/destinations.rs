//! The cache of destinations: asked for on first use, shared by all workers, kept fresh by the stream, forgotten when idle.

use super::{
    slot::{Place, Slot},
    translate::{canonical, socket_address},
};
use crate::{
    error::ProxyError,
    state::{Destination, DestinationHandle},
    telemetry::Telemetry,
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Weak, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, watch};

/// Bounds of the cache.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// The longest a first use waits.
    pub resolve: Duration,
    /// Unused and unheld for so long: forgotten.
    pub idle: Duration,
    /// Destinations at most.
    pub most: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { resolve: Duration::from_secs(5), idle: Duration::from_secs(600), most: 10_000 }
    }
}

/// What is asked of the control plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Asked {
    /// An original destination.
    Address(SocketAddr),
    /// Whom a call to an address outside is for: host in lower case, and port.
    Name(Arc<str>, u16),
}

impl Asked {
    /// Reads what [`Asked`] prints, `ip:port` or `//host:port`.
    ///
    /// # Errors
    /// It is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(authority) = text.strip_prefix("//") else { return socket_address(text).map(Self::Address) };
        let parts = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?)));
        parts
            .map(|(host, port)| Self::Name(host.into(), port))
            .ok_or_else(|| format!("`{text}` is not `//host:port`"))
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(host, port) => write!(f, "//{host}:{port}"),
        }
    }
}

/// Asks for destinations; shared by all workers.
#[derive(Clone)]
pub struct Destinations(Arc<Cache>);

/// The cache itself, which what follows names in the background does not keep alive.
pub(super) struct Cache {
    slots: RwLock<HashMap<Asked, Arc<Slot>>>,
    wishes: Mutex<Wishes>,
    wished: Notify,
    bounds: Bounds,
    born: Instant,
    telemetry: Telemetry,
}

/// What the stream shall say to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Asked for on first use.
    Subscribe(Asked),
    /// Idle.
    Unsubscribe(Asked),
}

#[derive(Default)]
struct Wishes {
    // While nobody listens nothing is queued: the stream starts with all that is wanted then.
    is_connected: bool,
    queue: VecDeque<Wish>,
}

impl Destinations {
    /// An empty cache.
    pub fn new(bounds: Bounds, telemetry: Telemetry) -> Self {
        Self(Arc::new(Cache {
            slots: RwLock::default(),
            wishes: Mutex::default(),
            wished: Notify::new(),
            bounds,
            born: Instant::now(),
            telemetry,
        }))
    }

    /// The destination of an original address: from the cache, else asked for; waits at most the resolve deadline.
    ///
    /// # Errors
    /// `ResolveTimeout` when the control plane does not answer in time, `Overloaded` when the cache is full of
    /// destinations in use.
    pub async fn resolve(&self, address: SocketAddr) -> Result<DestinationHandle, ProxyError> {
        self.answer(Asked::Address(canonical(address)), address).await
    }

    /// As [`Destinations::resolve`], of whom a call to `original` outside the mesh is for.
    pub async fn resolve_name(
        &self,
        host: &str,
        original: SocketAddr,
    ) -> Result<DestinationHandle, ProxyError> {
        self.answer(Asked::Name(host.into(), original.port()), original).await
    }

    async fn answer(&self, asked: Asked, address: SocketAddr) -> Result<DestinationHandle, ProxyError> {
        let now = Instant::now();
        let known = self.0.slots.read().get(&asked).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => self.ask(asked, now)?,
        };
        slot.last_used.store(self.0.age(now), Ordering::Relaxed);
        if let Some(handle) = slot.value.borrow().as_ref() {
            return Ok(handle.clone());
        }
        let mut value = slot.value.subscribe();
        let answered = tokio::time::timeout(self.0.bounds.resolve, value.wait_for(Option::is_some)).await;
        match answered {
            Ok(Ok(handle)) => handle.clone().ok_or(ProxyError::ResolveTimeout(address)),
            _ => Err(ProxyError::ResolveTimeout(address)),
        }
    }

    /// Takes an update; `false` when nobody wants it any more. Names in it are looked up in the background, now and again.
    pub fn apply(&self, asked: &Asked, destination: Destination) -> bool {
        let Some(slot) = self.0.slots.read().get(asked).cloned() else { return false };
        slot.take(destination, &Arc::downgrade(&self.0));
        true
    }

    /// Puts in what was true before a restart; the stream asks for it again when it stands.
    pub fn recall(&self, asked: Asked, destination: Destination) {
        let mut slots = self.0.slots.write();
        if slots.len() < self.0.bounds.most && !slots.contains_key(&asked) {
            let slot = Arc::new(Slot::new(self.0.age(Instant::now())));
            slots.insert(asked, slot.clone());
            drop(slots);
            slot.take(destination, &Arc::downgrade(&self.0));
        }
    }

    /// A stream stands: everything wanted so far, to be asked for on it.
    pub fn connected(&self) -> Vec<Asked> {
        // In this order, so that no wish falls between: a slot made meanwhile is queued, perhaps asked for twice.
        let mut wishes = self.0.wishes.lock();
        wishes.is_connected = true;
        wishes.queue.clear();
        drop(wishes);
        self.0.slots.read().keys().cloned().collect()
    }

    /// The stream is gone; what we know stays.
    pub fn disconnected(&self) {
        *self.0.wishes.lock() = Wishes::default();
    }

    /// The next wish, in order.
    pub async fn wish(&self) -> Wish {
        loop {
            let wished = self.0.wished.notified();
            if let Some(wish) = self.0.wishes.lock().queue.pop_front() {
                return wish;
            }
            wished.await;
        }
    }

    /// Forgets what nobody holds and nobody used for the idle time.
    pub fn sweep(&self, now: Instant) {
        let idle = u64::try_from(self.0.bounds.idle.as_millis()).unwrap_or(u64::MAX);
        let before = self.0.age(now).saturating_sub(idle);
        let mut slots = self.0.slots.write();
        let gone: Vec<Asked> = slots
            .iter()
            .filter(|(_, slot)| slot.last_used.load(Ordering::Relaxed) < before && !slot.is_held())
            .map(|(asked, _)| asked.clone())
            .collect();
        for address in gone {
            slots.remove(&address);
            self.0.queue(Wish::Unsubscribe(address));
        }
        self.0.telemetry.metrics().set_destinations(slots.len());
    }

    /// All that is held, for people: address, and what it leads to when known.
    pub fn list(&self) -> Vec<(Asked, Option<Arc<Destination>>)> {
        let slots = self.0.slots.read();
        let mut all: Vec<_> = slots
            .iter()
            .map(|(asked, slot)| {
                (asked.clone(), slot.value.borrow().as_ref().map(DestinationHandle::current))
            })
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// What an address that a name resolved to is in the mesh, asked for like any other and fresh for as long as somebody looks.
    pub(super) fn place(&self, address: SocketAddr) -> Result<watch::Receiver<Option<Place>>, ProxyError> {
        let (asked, now) = (Asked::Address(canonical(address)), Instant::now());
        let known = self.0.slots.read().get(&asked).cloned();
        let slot = match known {
            Some(slot) => slot,
            None => self.ask(asked, now)?,
        };
        slot.last_used.store(self.0.age(now), Ordering::Relaxed);
        Ok(slot.place.subscribe())
    }

    /// The cache, when it is still there.
    pub(super) fn of(cache: &Weak<Cache>) -> Option<Self> {
        cache.upgrade().map(Self)
    }

    fn ask(&self, asked: Asked, now: Instant) -> Result<Arc<Slot>, ProxyError> {
        let mut slots = self.0.slots.write();
        if let Some(slot) = slots.get(&asked) {
            return Ok(slot.clone());
        }
        if slots.len() >= self.0.bounds.most {
            let oldest = slots
                .iter()
                .filter(|(_, slot)| !slot.is_held())
                .min_by_key(|(_, slot)| slot.last_used.load(Ordering::Relaxed))
                .map(|(asked, _)| asked.clone());
            let Some(oldest) = oldest else { return Err(ProxyError::Overloaded("too many destinations")) };
            slots.remove(&oldest);
            self.0.queue(Wish::Unsubscribe(oldest));
        }
        let slot = Arc::new(Slot::new(self.0.age(now)));
        slots.insert(asked.clone(), slot.clone());
        self.0.telemetry.metrics().set_destinations(slots.len());
        self.0.queue(Wish::Subscribe(asked));
        Ok(slot)
    }
}

impl Cache {
    fn age(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX)
    }

    fn queue(&self, wish: Wish) {
        let mut wishes = self.wishes.lock();
        if wishes.is_connected {
            wishes.queue.push_back(wish);
            drop(wishes);
            self.wished.notify_one();
        }
    }
}

#[cfg(test)]
#[path = "destinations_tests.rs"]
mod tests;
