//! One destination of the cache. Names of the world outside are looked up in the background for as long as somebody uses it,
//! so that no call waits for DNS but the first.

use super::destinations::{Cache, Destinations};
use crate::{
    net::lookup,
    state::{Destination, DestinationHandle, Endpoint, ServiceTarget},
};
use futures_util::{StreamExt, stream::FuturesUnordered};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// The system's resolver tells no time to live; Envoy's default is 60 s, and half of it is half as stale.
const REFRESH: Duration = Duration::from_secs(30);
/// After a failure, doubling up to [`REFRESH`].
const AGAIN: Duration = Duration::from_secs(1);
/// The longest that one name may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// The longest that the control plane is waited for, to say what the addresses of a name are.
const ASKED: Duration = Duration::from_secs(3);
/// Addresses of one destination at most.
const MOST_ADDRESSES: usize = 256;

/// One destination of the cache, shared by all who wait for it.
pub(super) struct Slot {
    /// What it leads to; `None` before the first answer.
    pub(super) value: watch::Sender<Option<DestinationHandle>>,
    /// What it is for those who found the address by a name; known before names of its own are looked up.
    pub(super) place: watch::Sender<Option<Place>>,
    // Counts the updates, so that the lookups for an earlier one end.
    edition: AtomicU64,
    /// Milliseconds since the cache was born.
    pub(super) last_used: AtomicU64,
}

impl Slot {
    /// Nothing known yet.
    pub(super) fn new(last_used: u64) -> Self {
        Self {
            value: watch::channel(None).0,
            place: watch::channel(None).0,
            edition: AtomicU64::new(0),
            last_used: AtomicU64::new(last_used),
        }
    }

    /// Takes an update; `cache` is asked what the addresses are that its names resolve to.
    pub(super) fn take(self: &Arc<Self>, destination: Destination, cache: &Weak<Cache>) {
        let place = Place::of(&destination);
        self.place.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(&place);
            *known = Some(place);
            is_news
        });
        let edition = self.edition.fetch_add(1, Ordering::AcqRel) + 1;
        match destination {
            Destination::Service(service) if !service.lookups.is_empty() => {
                follow(self, edition, service, cache.clone());
            }
            destination => self.put(destination),
        }
    }

    /// What is true now; `None` before the first answer.
    fn current(&self) -> Option<Arc<Destination>> {
        self.value.borrow().as_ref().map(DestinationHandle::current)
    }

    /// Whether no later update has come.
    fn is_at(&self, edition: u64) -> bool {
        self.edition.load(Ordering::Acquire) == edition
    }

    /// Puts a destination in force for all who hold its handle.
    fn put(&self, destination: Destination) {
        self.value.send_if_modified(|value| match value {
            Some(handle) => {
                if **handle.0.load() != destination {
                    handle.0.store(Arc::new(destination));
                }
                false
            }
            None => {
                *value = Some(DestinationHandle::new(destination));
                true
            }
        });
    }

    /// Somebody waits for it, or holds its handle.
    pub(super) fn is_held(&self) -> bool {
        self.value.receiver_count() > 0
            || self.place.receiver_count() > 0
            || self.value.borrow().as_ref().is_some_and(|handle| Arc::strong_count(&handle.0) > 1)
    }
}

/// What an address is that a name resolved to. A name is no proof: whoever writes the zone could make a sidecar speak plaintext to
/// a workload, where it would find mutual TLS behind the workload's own address.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Place {
    /// Of the mesh: called with the identities that are there.
    Mesh(Vec<Endpoint>),
    /// Of the mesh, and nobody knows whose.
    Closed,
    /// Somewhere else: called as it is, since an entry allows the name.
    Elsewhere,
}

impl Place {
    fn of(destination: &Destination) -> Self {
        match destination {
            Destination::Workload(endpoint) => Self::Mesh(vec![endpoint.clone()]),
            // Another entry that lists the address says nothing about who is there; a service of the mesh does.
            Destination::Service(service)
                if service.lookups.is_empty()
                    && service.endpoints.iter().any(|endpoint| endpoint.identity.is_some()) =>
            {
                Self::Mesh(service.endpoints.clone())
            }
            Destination::Outside { in_mesh: true, .. } => Self::Closed,
            Destination::Service(_) | Destination::Outside { .. } => Self::Elsewhere,
        }
    }
}

/// An address that a name resolved to, and what it is as far as that is known.
struct Found {
    address: SocketAddr,
    place: watch::Receiver<Option<Place>>,
}

/// Keeps a destination's endpoints what its names resolve to, until the slot is gone or has a later update. What was known
/// of the same names stays in force meanwhile, and when a lookup fails.
fn follow(slot: &Arc<Slot>, edition: u64, service: ServiceTarget, cache: Weak<Cache>) {
    let known = match slot.current().as_deref() {
        Some(Destination::Service(current)) if current.lookups == service.lookups => {
            let first = current.endpoints.len().saturating_sub(current.looked_up);
            current.endpoints.get(first..).map(<[Endpoint]>::to_vec)
        }
        _ => None,
    };
    if let Some(known) = &known {
        slot.put(with(&service, known));
    }
    drop(tokio::spawn(keep(Arc::downgrade(slot), edition, service, known, cache)));
}

async fn keep(
    slot: Weak<Slot>,
    edition: u64,
    service: ServiceTarget,
    mut known: Option<Vec<Endpoint>>,
    cache: Weak<Cache>,
) {
    let mut pause = AGAIN;
    let here = || slot.upgrade().filter(|slot| slot.is_at(edition));
    loop {
        let looked_up = look_up(&service).await;
        let mut found = match (looked_up, Destinations::of(&cache)) {
            (_, None) => return,
            (Ok(addresses), Some(cache)) => places(&cache, addresses),
            (Err(why), Some(_)) => {
                let Some(slot) = here() else { return };
                tracing::warn!(host = service.host, %why, stale = known.is_some(), "a name of a ServiceEntry cannot be looked up; what was known of it stays");
                slot.put(with(&service, known.as_deref().unwrap_or_default()));
                pause = if known.is_some() { (pause * 2).min(REFRESH) } else { AGAIN };
                drop(slot);
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        pause = REFRESH;
        // What is not known in time is not called until it is.
        let all_known = async {
            for one in &mut found {
                let _ = one.place.wait_for(Option::is_some).await;
            }
        };
        let _ = tokio::time::timeout(ASKED, all_known).await;
        let next = tokio::time::sleep(REFRESH);
        tokio::pin!(next);
        loop {
            let Some(slot) = here() else { return };
            let endpoints = endpoints(&mut found);
            slot.put(with(&service, &endpoints));
            known = Some(endpoints);
            drop(slot);
            tokio::select! {
                () = &mut next => break,
                () = news(&mut found) => {}
            }
        }
    }
}

fn places(cache: &Destinations, addresses: Vec<SocketAddr>) -> Vec<Found> {
    let ask = |address| match cache.place(address) {
        Ok(place) => Some(Found { address, place }),
        Err(why) => {
            tracing::warn!(%address, %why, "an address of a ServiceEntry's name is not called: it cannot be asked for");
            None
        }
    };
    addresses.into_iter().filter_map(ask).collect()
}

/// What may be called of what was found, in a fixed order, each once.
fn endpoints(found: &mut [Found]) -> Vec<Endpoint> {
    let mut all = Vec::new();
    for one in found {
        match &*one.place.borrow_and_update() {
            Some(Place::Mesh(endpoints)) => all.extend_from_slice(endpoints),
            Some(Place::Elsewhere) => all.push(Endpoint::outside(one.address)),
            Some(Place::Closed) | None => {}
        }
    }
    all.sort_by_key(|endpoint| endpoint.dial);
    all.dedup();
    all
}

/// Resolves when an address is something else than before.
async fn news(found: &mut [Found]) {
    let mut changes: FuturesUnordered<_> = found.iter_mut().map(|one| one.place.changed()).collect();
    while let Some(changed) = changes.next().await {
        if changed.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

/// All addresses of all names, in a fixed order; an error only when no name has any.
async fn look_up(service: &ServiceTarget) -> Result<Vec<SocketAddr>, String> {
    let (mut found, mut failed) = (Vec::new(), None);
    for wanted in &service.lookups {
        match lookup::addresses(&wanted.name, PATIENCE).await {
            Ok(addresses) => {
                found.extend(addresses.into_iter().map(|ip| SocketAddr::new(ip, wanted.port)));
            }
            Err(cause) => failed = Some(format!("{}: {cause}", wanted.name)),
        }
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MOST_ADDRESSES);
    match failed {
        Some(why) if found.is_empty() => Err(why),
        _ => Ok(found),
    }
}

fn with(service: &ServiceTarget, looked_up: &[Endpoint]) -> Destination {
    let mut service = service.clone();
    service.endpoints.extend_from_slice(looked_up);
    service.looked_up = looked_up.len();
    Destination::Service(service)
}
