//! Counts of requests, how long they take and how large they are. Every request comes through here, so each thread counts in
//! places of its own, without a lock or a cache line that others write; a scrape adds them up.

mod scrape;

use super::{Direction, Entry};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_config::snapshot::Workload;
use prometheus_client::registry::Registry;
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Series of `istio_requests_total` and of `istio_tcp_connections_closed_total` together, at most.
pub const SERIES: usize = 2000;
/// Sets of histograms (durations, sizes) at most: each is some thirty lines of a scrape.
pub const HISTOGRAMS: usize = 200;
/// Milliseconds, upper bounds of `istio_request_duration_milliseconds`; what is above the last is counted in `+Inf`.
const MILLISECONDS: [f64; 14] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0];
/// Bytes, upper bounds of `istio_request_bytes` and `istio_response_bytes`.
const BYTES: [f64; 7] = [100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8];
/// Seconds, upper bounds of `postern_proxy_seconds`; a hop adds far less than a millisecond.
const PROXY_SECONDS: [f64; 11] =
    [25e-6, 50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 51.2e-3];
/// Kinds of requests that a thread looks at before it hashes.
const MOST_RECENT: usize = 8;
/// The sidecars of one process whose places a thread remembers: one, but in tests.
const MOST_SIDECARS: usize = 8;

/// All that tells one kind of request from another: what its series have for labels comes from it and from our own workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    direction: Direction,
    source_principal: Option<Arc<str>>,
    destination_principal: Option<Arc<str>>,
    destination_service: Option<Arc<str>>,
    protocol: &'static str,
    is_request: bool,
    code: u16,
    grpc: Option<u16>,
    flags: &'static str,
    decision: &'static str,
}

impl Key {
    fn of(entry: &Entry) -> Self {
        Self {
            direction: entry.direction,
            source_principal: entry.source_principal.clone(),
            destination_principal: entry.destination_principal.clone(),
            destination_service: entry.destination_service.clone(),
            protocol: entry.request_protocol(),
            is_request: entry.request.is_some(),
            code: code(entry),
            grpc: grpc(entry),
            flags: entry.flag,
            decision: decision(entry),
        }
    }

    /// Whether [`Key::of`] this is that, without making one.
    fn is_of(&self, entry: &Entry) -> bool {
        self.direction == entry.direction
            && self.code == code(entry)
            && self.is_request == entry.request.is_some()
            && self.decision == decision(entry)
            && self.grpc == grpc(entry)
            && self.flags == entry.flag
            && self.protocol == entry.request_protocol()
            && self.source_principal == entry.source_principal
            && self.destination_principal == entry.destination_principal
            && self.destination_service == entry.destination_service
    }
}

fn code(entry: &Entry) -> u16 {
    entry.status.filter(|status| (100..=599).contains(status)).unwrap_or(0)
}

/// The codes that gRPC defines; others are an app's invention and no label.
fn grpc(entry: &Entry) -> Option<u16> {
    entry.grpc_status.filter(|status| *status <= 16)
}

fn decision(entry: &Entry) -> &'static str {
    match &entry.decided {
        None => "none",
        Some(decided) if decided.is_allowed => "allow",
        Some(_) => "deny",
    }
}

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl Tally {
    fn add(&self, more: u64) {
        // No other thread writes, so nothing is lost between the two, and no cache line is fought for.
        self.0.store(self.read().wrapping_add(more), Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one thread has counted of one kind.
#[derive(Debug, Default)]
struct Place {
    count: Tally,
    received: Tally,
    sent: Tally,
    micros: Tally,
    proxy_nanos: Tally,
    durations: [Tally; MILLISECONDS.len() + 1],
    request_sizes: [Tally; BYTES.len() + 1],
    response_sizes: [Tally; BYTES.len() + 1],
    proxy_times: [Tally; PROXY_SECONDS.len() + 1],
}

impl Place {
    #[allow(clippy::cast_precision_loss)]
    fn count(&self, entry: &Entry) {
        self.count.add(1);
        self.received.add(entry.bytes_received);
        self.sent.add(entry.bytes_sent);
        self.proxy_nanos.add(u64::try_from(entry.proxy.as_nanos()).unwrap_or(u64::MAX));
        add(&self.proxy_times, &PROXY_SECONDS, entry.proxy.as_secs_f64());
        if entry.request.is_some() {
            self.micros.add(u64::try_from(entry.duration.as_micros()).unwrap_or(u64::MAX));
            add(&self.durations, &MILLISECONDS, entry.duration.as_secs_f64() * 1e3);
            add(&self.request_sizes, &BYTES, entry.bytes_received as f64);
            add(&self.response_sizes, &BYTES, entry.bytes_sent as f64);
        }
    }
}

fn add(tallies: &[Tally], bounds: &[f64], value: f64) {
    let at = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
    if let Some(tally) = tallies.get(at) {
        tally.add(1);
    }
}

/// All places of one kind.
#[derive(Debug, Default)]
struct Kind {
    places: Vec<Arc<Place>>,
    /// Its durations and sizes are told apart from those of others.
    has_histograms: bool,
}

/// All kinds. `None` is what came after the bound.
#[derive(Debug, Default)]
struct Kinds {
    all: HashMap<Option<Key>, Kind>,
    histograms: HashSet<scrape::Group>,
}

/// The counters and histograms of one sidecar. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct RequestMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // Tells one from another in what threads remember.
    number: u64,
    kinds: Mutex<Kinds>,
    own: ArcSwap<scrape::Own>,
}

/// The places of one thread, of one sidecar.
#[derive(Default)]
struct Mine {
    number: u64,
    recent: Vec<(Key, Arc<Place>)>,
    all: HashMap<Key, Arc<Place>>,
    /// For all that came after the bound: one place, however many kinds there are.
    other: Option<Arc<Place>>,
}

thread_local! {
    static MINE: RefCell<Vec<Mine>> = const { RefCell::new(Vec::new()) };
}

impl Default for RequestMetrics {
    fn default() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Inner {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            kinds: Mutex::default(),
            own: ArcSwap::default(),
        }))
    }
}

impl RequestMetrics {
    /// Counts a finished request or connection.
    pub fn observe(&self, entry: &Entry) {
        MINE.with_borrow_mut(|sidecars| {
            let at = sidecars.iter().position(|mine| mine.number == self.0.number).unwrap_or_else(|| {
                sidecars.truncate(MOST_SIDECARS - 1);
                sidecars.insert(0, Mine { number: self.0.number, ..Mine::default() });
                0
            });
            if let Some(mine) = sidecars.get_mut(at) {
                self.0.count(mine, entry);
            }
        });
    }

    /// Whose sidecar this is, for labels.
    pub fn set_workload(&self, workload: &Workload) {
        self.0.own.store(Arc::new(scrape::Own::of(workload)));
    }

    /// Says what is counted here.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Inner {
    fn count(&self, mine: &mut Mine, entry: &Entry) {
        if let Some(at) = mine.recent.iter().position(|(key, _)| key.is_of(entry)) {
            // The usual one comes first.
            mine.recent.swap(0, at);
        } else {
            let key = Key::of(entry);
            let place = match mine.all.get(&key) {
                Some(place) => place.clone(),
                None => {
                    let own = self.place(Some(&key));
                    let other = || self.place(None).unwrap_or_default();
                    let place = own.unwrap_or_else(|| mine.other.get_or_insert_with(other).clone());
                    // What others' certificates say is theirs to choose: not all of it is remembered.
                    if mine.all.len() < 2 * SERIES {
                        mine.all.insert(key.clone(), place.clone());
                    }
                    place
                }
            };
            mine.recent.truncate(MOST_RECENT - 1);
            mine.recent.insert(0, (key, place));
        }
        if let Some((_, place)) = mine.recent.first() {
            place.count(entry);
        }
    }

    /// A place for the calling thread; `None` where there is no room for another kind.
    fn place(&self, key: Option<&Key>) -> Option<Arc<Place>> {
        let mut kinds = self.kinds.lock();
        let Kinds { all, histograms } = &mut *kinds;
        let key = key.cloned();
        let named = all.len() - usize::from(all.contains_key(&None));
        if key.is_some() && named >= SERIES && !all.contains_key(&key) {
            return None;
        }
        let kind = all.entry(key).or_insert_with_key(|key| {
            let group = key.as_ref().map(scrape::Group::of);
            let has_histograms = group.is_some_and(|group| {
                histograms.contains(&group) || histograms.len() < HISTOGRAMS && histograms.insert(group)
            });
            Kind { places: Vec::new(), has_histograms }
        });
        let place = Arc::new(Place::default());
        kind.places.push(place.clone());
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn more_kinds_than_there_is_room_for_take_no_more_memory() {
        let metrics = RequestMetrics::default();
        let address = "10.0.0.1:1".parse().unwrap();
        let mut entry = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address, address);
        for _ in 0..3 {
            for peer in 0..5 * SERIES {
                entry.source_principal = Some(format!("spiffe://td/ns/n/sa/{peer}").into());
                metrics.observe(&entry);
            }
        }
        let kinds = metrics.0.kinds.lock();
        let places: usize = kinds.all.values().map(|kind| kind.places.len()).sum();
        assert_eq!((kinds.all.len(), places), (SERIES + 1, SERIES + 1));
        let counted = |kind: &Kind| kind.places.iter().map(|place| place.count.read()).sum::<u64>();
        assert_eq!(counted(&kinds.all[&None]), (3 * 4 * SERIES) as u64);
        assert_eq!(kinds.all.values().map(counted).sum::<u64>(), (3 * 5 * SERIES) as u64);
    }
}
