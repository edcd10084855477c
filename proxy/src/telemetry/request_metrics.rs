//! Counts of requests, and how long they take. Every request comes through here, so a thread remembers the series it has used last.

use super::{
    Direction, Entry,
    metrics::{OTHER, UNKNOWN},
};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Series of `istio_requests_total` at most.
pub const SERIES: usize = 2000;
/// Seconds; the OpenTelemetry advice for request durations.
const REQUEST_SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Seconds; a hop adds far less than a millisecond.
const PROXY_SECONDS: [f64; 11] =
    [25e-6, 50e-6, 100e-6, 200e-6, 400e-6, 800e-6, 1.6e-3, 3.2e-3, 6.4e-3, 12.8e-3, 51.2e-3];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    reporter: &'static str,
    source_principal: Arc<str>,
    destination_service: Arc<str>,
    request_protocol: &'static str,
    response_code: u16,
    response_flags: &'static str,
    connection_security_policy: &'static str,
    decision: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProtocolLabels {
    reporter: &'static str,
    request_protocol: &'static str,
}

/// Where one kind of request is counted.
#[derive(Clone, Debug)]
struct Series {
    count: Counter,
    seconds: Histogram,
    proxy_seconds: Histogram,
}

/// Series that a thread remembers.
const MOST_RECENT: usize = 8;

thread_local! {
    /// What this thread has counted last, each with the number of its [`Metrics`].
    static RECENT: RefCell<Vec<(u64, RequestLabels, Series)>> = const { RefCell::new(Vec::new()) };
}

type Histograms = Family<ProtocolLabels, Histogram, fn() -> Histogram>;

/// The counters and histograms.
#[derive(Debug)]
pub struct RequestMetrics {
    // Tells one from another in what threads remember.
    number: u64,
    // The label for what is not known.
    unknown: Arc<str>,
    // How many there are; held while a new one is made, so that the bound is exact.
    series: Mutex<usize>,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histograms,
    proxy_seconds: Histograms,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            unknown: Arc::from(UNKNOWN),
            series: Mutex::new(0),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            proxy_seconds: Family::new_with_constructor(|| Histogram::new(PROXY_SECONDS)),
        }
    }
}

impl RequestMetrics {
    /// Counts a finished request or connection.
    pub fn observe(&self, entry: &Entry) {
        let reporter = entry.direction.reporter();
        let labels = RequestLabels {
            reporter,
            source_principal: entry.source_principal.clone().unwrap_or_else(|| self.unknown.clone()),
            destination_service: entry.destination_service.clone().unwrap_or_else(|| self.unknown.clone()),
            request_protocol: entry.request_protocol(),
            response_code: entry.status.filter(|status| (100..=599).contains(status)).unwrap_or(0),
            response_flags: entry.flag,
            connection_security_policy: security(entry),
            decision: match &entry.decided {
                None => "none",
                Some(decided) if decided.is_allowed => "allow",
                Some(_) => "deny",
            },
        };
        self.with_series(labels, |series| {
            series.count.inc();
            if entry.request.is_some() {
                series.seconds.observe(entry.duration.as_secs_f64());
            }
            series.proxy_seconds.observe(entry.proxy.as_secs_f64());
        });
    }

    /// Finds the series of these labels: among those that this thread has used last, where comparing is cheaper than hashing them
    /// once for each family, or in the families.
    fn with_series(&self, labels: RequestLabels, count: impl FnOnce(&Series)) {
        RECENT.with_borrow_mut(|recent| {
            if let Some(at) =
                recent.iter().position(|(metrics, known, _)| *metrics == self.number && *known == labels)
            {
                // The usual one comes first.
                recent.swap(0, at);
            } else {
                let series = self.series_of(&labels);
                recent.truncate(MOST_RECENT - 1);
                recent.insert(0, (self.number, labels, series));
            }
            if let Some((.., series)) = recent.first() {
                count(series);
            }
        });
    }

    fn series_of(&self, labels: &RequestLabels) -> Series {
        let protocol =
            ProtocolLabels { reporter: labels.reporter, request_protocol: labels.request_protocol };
        Series {
            count: self.counter_of(labels),
            seconds: self.request_seconds.get_or_create_owned(&protocol),
            proxy_seconds: self.proxy_seconds.get_or_create_owned(&protocol),
        }
    }

    fn counter_of(&self, labels: &RequestLabels) -> Counter {
        if let Some(counter) = self.requests.get(labels) {
            return counter.clone();
        }
        let mut series = self.series.lock();
        let is_there = self.requests.get(labels).is_some();
        if is_there || *series < SERIES {
            *series += usize::from(!is_there);
            return self.requests.get_or_create_owned(labels);
        }
        let labels = RequestLabels {
            source_principal: Arc::from(OTHER),
            destination_service: Arc::from(OTHER),
            response_code: 0,
            response_flags: OTHER,
            ..labels.clone()
        };
        self.requests.get_or_create_owned(&labels)
    }

    /// Says what is counted here.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "istio_requests",
            "Requests, and connections that carried none",
            self.requests.clone(),
        );
        registry.register(
            "postern_request_duration_seconds",
            "From the request's head to its end",
            self.request_seconds.clone(),
        );
        registry.register(
            "postern_proxy_seconds",
            "The part of a request or connection spent in the proxy itself",
            self.proxy_seconds.clone(),
        );
    }
}

fn security(entry: &Entry) -> &'static str {
    let verified = match entry.direction {
        Direction::Inbound => entry.source_principal.is_some(),
        Direction::Outbound => entry.destination_principal.is_some(),
    };
    if verified { "mutual_tls" } else { "none" }
}
