//! Counts of requests, how long they take and how large they are, and of the rules that decided. Every request comes through here,
//! so each thread counts in places of its own, without a lock or a cache line that others write. Who asks adds them up: a scrape
//! ([`scrape`]), and the reports to the control plane ([`edges`], [`rules`]).

pub mod edges;
mod examples;
pub mod rules;
mod scrape;

use super::{Direction, Entry, trace_context::Trace};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_api::histogram::{self, BUCKETS};
use postern_config::snapshot::Workload;
use prometheus_client::registry::Registry;
use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Series of `istio_requests_total` and of `istio_tcp_connections_closed_total` together, at most.
pub const SERIES: usize = 2000;
/// Sets of histograms (durations, sizes) that a scrape tells apart, at most: each is some thirty lines of it.
pub const HISTOGRAMS: usize = 200;
/// Bytes, upper bounds of `istio_request_bytes` and `istio_response_bytes`.
const BYTES: [u64; 7] = [100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];
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

    /// The verified other end.
    fn peer(&self) -> &Option<Arc<str>> {
        match self.direction {
            Direction::Inbound => &self.source_principal,
            Direction::Outbound => &self.destination_principal,
        }
    }

    /// It ended with a flag, or with a status of the server's.
    fn is_failure(&self) -> bool {
        self.flags != "-" || self.code >= 500
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

/// What histograms and edges are told apart by: less than requests are, since each set is long.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Group {
    is_inbound: bool,
    peer: Option<Arc<str>>,
    service: Option<Arc<str>>,
    protocol: &'static str,
    is_request: bool,
}

impl Group {
    fn of(key: &Key) -> Self {
        Self {
            is_inbound: key.direction == Direction::Inbound,
            peer: key.peer().clone(),
            service: key.destination_service.clone(),
            protocol: key.protocol,
            is_request: key.is_request,
        }
    }

    fn direction(&self) -> Direction {
        if self.is_inbound { Direction::Inbound } else { Direction::Outbound }
    }
}

/// A number that one thread adds to and others read.
#[derive(Debug, Default)]
struct Tally(AtomicU64);

impl Tally {
    fn add(&self, more: u64) {
        self.set(self.read().wrapping_add(more));
    }

    fn set(&self, value: u64) {
        // No other thread writes, so nothing is lost since it was read, and no cache line is fought for.
        self.0.store(value, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one thread has counted of one kind.
#[derive(Debug)]
struct Place {
    count: Tally,
    denied: Tally,
    received: Tally,
    sent: Tally,
    histograms: Arc<Histograms>,
}

/// What one thread has counted of one group.
#[derive(Debug)]
struct Histograms {
    micros: Tally,
    proxy_nanos: Tally,
    /// Requests with a trace, as the app got or sent them.
    traced: Tally,
    untraced: Tally,
    durations: [Tally; BUCKETS],
    proxy_times: [Tally; BUCKETS],
    request_sizes: [Tally; BYTES.len() + 1],
    response_sizes: [Tally; BYTES.len() + 1],
    /// Written by the one thread whose place this is, so that only a scrape ever holds it against another.
    sampled: Mutex<Option<Sampled>>,
}

/// The last request whose trace is recorded: the example of its buckets.
#[derive(Clone, Copy, Debug)]
struct Sampled {
    trace_id: u128,
    micros: u64,
    proxy_nanos: u64,
    ended: SystemTime,
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            micros: Tally::default(),
            proxy_nanos: Tally::default(),
            traced: Tally::default(),
            untraced: Tally::default(),
            durations: std::array::from_fn(|_| Tally::default()),
            proxy_times: std::array::from_fn(|_| Tally::default()),
            request_sizes: Default::default(),
            response_sizes: Default::default(),
            sampled: Mutex::default(),
        }
    }
}

impl Place {
    fn new(histograms: Arc<Histograms>) -> Self {
        Self {
            count: Tally::default(),
            denied: Tally::default(),
            received: Tally::default(),
            sent: Tally::default(),
            histograms,
        }
    }

    fn count(&self, entry: &Entry) {
        self.count.add(1);
        self.received.add(entry.bytes_received);
        self.sent.add(entry.bytes_sent);
        if entry.denial().is_some() {
            self.denied.add(1);
        }
        self.histograms.count(entry);
    }
}

impl Histograms {
    fn count(&self, entry: &Entry) {
        let (micros, proxy) = (nanos(entry.duration).div_ceil(1000), nanos(entry.proxy));
        self.micros.add(micros);
        self.proxy_nanos.add(proxy);
        add(&self.durations, histogram::bucket(micros));
        add(&self.proxy_times, histogram::bucket(proxy.div_ceil(1000)));
        if entry.request.is_some() {
            add(&self.request_sizes, size(entry.bytes_received));
            add(&self.response_sizes, size(entry.bytes_sent));
            let traced = if entry.is_traced() { &self.traced } else { &self.untraced };
            traced.add(1);
        }
        if let Some(trace) = entry.trace.filter(Trace::is_sampled)
            // A scrape that reads it now keeps the one of before.
            && let Some(mut sampled) = self.sampled.try_lock()
        {
            let ended = entry.began + entry.duration;
            *sampled = Some(Sampled { trace_id: trace.trace_id, micros, proxy_nanos: proxy, ended });
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn size(bytes: u64) -> usize {
    BYTES.iter().position(|bound| bytes <= *bound).unwrap_or(BYTES.len())
}

fn add(tallies: &[Tally], at: usize) {
    if let Some(tally) = tallies.get(at) {
        tally.add(1);
    }
}

/// All kinds, and all groups. `None` is what came after the bound.
#[derive(Debug, Default)]
struct Kinds {
    all: HashMap<Option<Key>, Vec<Arc<Place>>>,
    groups: HashMap<Option<Group>, GroupPlaces>,
    /// Groups that a scrape tells apart.
    told_apart: usize,
    /// Collections of edges so far.
    collections: u64,
}

/// All places of one group.
#[derive(Debug, Default)]
struct GroupPlaces {
    places: Vec<Arc<Histograms>>,
    is_told_apart: bool,
    reported: edges::Reported,
}

/// The counters and histograms of one sidecar. Clones are the same ones.
#[derive(Clone, Debug)]
pub struct RequestMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    // Tells one from another in what threads remember.
    number: u64,
    kinds: Mutex<Kinds>,
    rules: rules::Rules,
    own: ArcSwap<scrape::Own>,
}

/// The places of one thread, of one sidecar.
#[derive(Default)]
struct Mine {
    number: u64,
    recent: Vec<(Key, Arc<Place>)>,
    all: HashMap<Key, Arc<Place>>,
    groups: HashMap<Group, Arc<Histograms>>,
    /// For all that came after the bound: one place, however many kinds there are.
    other: Option<Arc<Place>>,
    rules: rules::Mine,
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
            rules: rules::Rules::default(),
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
                if let Some(decided) = &entry.decided {
                    self.0.rules.count(&mut mine.rules, decided, entry.began);
                }
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

    /// What passed on each edge since the last time.
    pub fn take_edges(&self) -> edges::Taken {
        edges::take(&mut self.0.kinds.lock())
    }

    /// What each rule did since the last time.
    pub fn take_rules(&self) -> rules::Taken {
        self.0.rules.take()
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
                    let place = self.place(&key, mine);
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

    /// A place for the calling thread, which is the common one where there is no room for another kind.
    fn place(&self, key: &Key, mine: &mut Mine) -> Arc<Place> {
        let mut kinds = self.kinds.lock();
        let named = kinds.all.len() - usize::from(kinds.all.contains_key(&None));
        let key = Some(key).filter(|key| named < SERIES || kinds.all.contains_key(&Some((*key).clone())));
        let Some(key) = key else {
            let other = || kinds.place(None, Arc::default());
            return mine.other.get_or_insert_with(other).clone();
        };
        let group = Group::of(key);
        match mine.groups.get(&group) {
            Some(histograms) => kinds.place(Some(key), histograms.clone()),
            None => {
                let place = kinds.place(Some(key), Arc::default());
                mine.groups.insert(group, place.histograms.clone());
                place
            }
        }
    }
}

impl Kinds {
    /// Enters a place of this kind, and its histograms if they are new.
    fn place(&mut self, key: Option<&Key>, histograms: Arc<Histograms>) -> Arc<Place> {
        let group = key.map(Group::of);
        let told_apart = &mut self.told_apart;
        let all = self.groups.entry(group).or_insert_with_key(|group| {
            let is_request = group.as_ref().is_some_and(|group| group.is_request);
            let is_told_apart = is_request && *told_apart < HISTOGRAMS;
            *told_apart += usize::from(is_told_apart);
            GroupPlaces { is_told_apart, ..GroupPlaces::default() }
        });
        if !all.places.iter().any(|known| Arc::ptr_eq(known, &histograms)) {
            all.places.push(histograms.clone());
        }
        let place = Arc::new(Place::new(histograms));
        self.all.entry(key.cloned()).or_default().push(place.clone());
        place
    }
}

#[cfg(test)]
#[path = "request_metrics/tests.rs"]
mod tests;
