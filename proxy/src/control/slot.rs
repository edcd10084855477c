//! One destination of the cache. Names of the world outside are looked up in the background for as long as somebody uses it,
//! so that no call waits for DNS but the first.

use crate::{
    net::lookup,
    state::{Destination, DestinationHandle, Endpoint, ServiceTarget},
};
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
/// Addresses of one destination at most.
const MOST_ADDRESSES: usize = 256;

/// One destination of the cache, shared by all who wait for it.
pub(super) struct Slot {
    /// What it leads to; `None` before the first answer.
    pub(super) value: watch::Sender<Option<DestinationHandle>>,
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
            edition: AtomicU64::new(0),
            last_used: AtomicU64::new(last_used),
        }
    }

    /// Takes an update.
    pub(super) fn take(self: &Arc<Self>, destination: Destination) {
        let edition = self.edition.fetch_add(1, Ordering::AcqRel) + 1;
        match destination {
            Destination::Service(service) if !service.lookups.is_empty() => {
                follow(self, edition, service);
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
            || self.value.borrow().as_ref().is_some_and(|handle| Arc::strong_count(&handle.0) > 1)
    }
}

/// Keeps a destination's endpoints what its names resolve to, until the slot is gone or has a later update. What was known
/// of the same names stays in force meanwhile, and when a lookup fails.
fn follow(slot: &Arc<Slot>, edition: u64, service: ServiceTarget) {
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
    drop(tokio::spawn(keep(Arc::downgrade(slot), edition, service, known)));
}

async fn keep(slot: Weak<Slot>, edition: u64, service: ServiceTarget, mut known: Option<Vec<Endpoint>>) {
    let mut pause = AGAIN;
    loop {
        let found = look_up(&service).await;
        let Some(slot) = slot.upgrade().filter(|slot| slot.is_at(edition)) else { return };
        match found {
            Ok(found) => {
                slot.put(with(&service, &found));
                (known, pause) = (Some(found), REFRESH);
            }
            Err(why) => {
                tracing::warn!(host = service.host, %why, stale = known.is_some(), "a name of a ServiceEntry cannot be looked up; what was known of it stays");
                slot.put(with(&service, known.as_deref().unwrap_or_default()));
                pause = if known.is_some() { (pause * 2).min(REFRESH) } else { AGAIN };
            }
        }
        drop(slot);
        tokio::time::sleep(pause).await;
    }
}

/// All addresses of all names, in a fixed order; an error only when no name has any.
async fn look_up(service: &ServiceTarget) -> Result<Vec<Endpoint>, String> {
    let (mut found, mut failed) = (Vec::new(), None);
    for wanted in &service.lookups {
        match lookup::addresses(&wanted.name, PATIENCE).await {
            Ok(addresses) => found
                .extend(addresses.into_iter().map(|ip| Endpoint::outside(SocketAddr::new(ip, wanted.port)))),
            Err(cause) => failed = Some(format!("{}: {cause}", wanted.name)),
        }
    }
    found.sort_by_key(|endpoint| endpoint.dial);
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
