//! Counters, gauges and histograms, as text for Prometheus.
//!
//! Labels come from configuration and from verified identities, never from a request, and the number of series is
//! bounded: what comes after the bound is counted under `other`.

use super::{
    Direction, Entry,
    app_scrapes::AppScrapes,
    entry::Would,
    exposition::{self, Format},
    request_metrics::RequestMetrics,
    told::ToldMetrics,
    upstream_metrics::UpstreamMetrics,
};
use crate::bootstrap::otel::Signal;
use parking_lot::Mutex;
use postern_config::snapshot::Workload;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        prometheus_protobuf::{self, prometheus_data_model::MetricFamily},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Series of `postern_dry_run_differences_total` at most.
pub const DIFFERENCES: usize = 500;
/// What [`Metrics::shed`] is told.
const LIMITS: [&str; 6] = ["memory", "descriptors", "connections", "source", "unproven", "access_log"];
pub(super) const OTHER: &str = "other";
pub(super) const UNKNOWN: &str = "unknown";
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DifferenceLabels {
    source_principal: Arc<str>,
    destination_workload: Arc<str>,
    verdict: &'static str,
    policy: Arc<str>,
    rule: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReporterLabels {
    reporter: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    reporter: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLabels {
    reporter: &'static str,
    parent: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of one sidecar.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: RequestMetrics,
    // How many there are; held while a new one is made, so that the bound is exact.
    difference_series: Mutex<usize>,
    differences: Family<DifferenceLabels, Counter>,
    connections_opened: Family<ReporterLabels, Counter>,
    connections_open: Family<ReporterLabels, Gauge>,
    certificate_expiry: Gauge<i64, AtomicI64>,
    certificate_begin: Gauge<i64, AtomicI64>,
    refusals: Family<RefusalLabels, Counter>,
    renewals: Family<ResultLabels, Counter>,
    clock_skew: Seconds,
    skew_known: AtomicBool,
    policy_version: Family<VersionLabels, Gauge>,
    updates: Family<ResultLabels, Counter>,
    connected: Gauge,
    control_age: Seconds,
    heard_unix_millis: AtomicU64,
    destinations: Gauge,
    log_dropped: Counter,
    told: ToldMetrics,
    spans: Family<SpanLabels, Counter>,
    spans_dropped: Counter,
    span_export_failures: Counter,
    records_dropped: Counter,
    record_export_failures: Counter,
    metric_export_failures: Counter,
    panics: Counter,
    shed: Family<LimitLabels, Counter>,
    accept_failures: Counter,
    upstreams: UpstreamMetrics,
    app_scrapes: AppScrapes,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: RequestMetrics::default(),
            difference_series: Mutex::new(0),
            differences: Family::default(),
            connections_opened: Family::default(),
            connections_open: Family::default(),
            certificate_expiry: Gauge::default(),
            certificate_begin: Gauge::default(),
            refusals: Family::default(),
            renewals: Family::default(),
            clock_skew: Gauge::default(),
            skew_known: AtomicBool::new(false),
            policy_version: Family::default(),
            updates: Family::default(),
            connected: Gauge::default(),
            control_age: Gauge::default(),
            heard_unix_millis: AtomicU64::new(0),
            destinations: Gauge::default(),
            log_dropped: Counter::default(),
            told: ToldMetrics::default(),
            spans: Family::default(),
            spans_dropped: Counter::default(),
            span_export_failures: Counter::default(),
            records_dropped: Counter::default(),
            record_export_failures: Counter::default(),
            metric_export_failures: Counter::default(),
            panics: Counter::default(),
            shed: Family::default(),
            accept_failures: Counter::default(),
            upstreams: UpstreamMetrics::default(),
            app_scrapes: AppScrapes::default(),
        };
        metrics.register();
        metrics.begin_at_zero();
        metrics
    }
}

impl Metrics {
    /// Counts a finished request or connection.
    pub fn observe(&self, entry: &Entry) {
        self.requests.observe(entry);
        if let Some(would) = entry.decided.as_ref().and_then(|decided| decided.would.as_deref()) {
            self.count_difference(entry, would);
        }
    }

    /// Counts of requests.
    pub fn requests(&self) -> &RequestMetrics {
        &self.requests
    }

    /// A decision that the dry-run policies would have changed: by caller, workload, verdict, and the rule that stands for
    /// the route.
    fn count_difference(&self, entry: &Entry, would: &Would) {
        let labels = DifferenceLabels {
            source_principal: entry.source_principal.clone().unwrap_or_else(|| Arc::from(UNKNOWN)),
            destination_workload: Arc::from(would.workload.as_str()),
            verdict: if would.is_allowed { "would_allow" } else { "would_deny" },
            policy: Arc::from(would.policy.as_deref().unwrap_or(UNKNOWN)),
            rule: would.rule.map_or_else(|| Arc::from("none"), |rule| Arc::from(rule.to_string())),
        };
        let mut series = self.difference_series.lock();
        let is_there = self.differences.get(&labels).is_some();
        if is_there || *series < DIFFERENCES {
            *series += usize::from(!is_there);
            self.differences.get_or_create(&labels).inc();
            return;
        }
        let labels = DifferenceLabels {
            source_principal: Arc::from(OTHER),
            policy: Arc::from(OTHER),
            rule: Arc::from(OTHER),
            ..labels
        };
        self.differences.get_or_create(&labels).inc();
    }

    /// What can be known before is there from the start: of a series that begins with 1, `increase()` does not see the first one.
    fn begin_at_zero(&self) {
        for result in ["success", "failure"] {
            drop(self.renewals.get_or_create(&ResultLabels { result }));
        }
        for result in ["ack", "nack"] {
            drop(self.updates.get_or_create(&ResultLabels { result }));
        }
        for limit in LIMITS {
            drop(self.shed.get_or_create(&LimitLabels { limit }));
        }
        for reporter in [Direction::Inbound, Direction::Outbound].map(Direction::reporter) {
            for parent in ["yes", "no"] {
                drop(self.spans.get_or_create(&SpanLabels { reporter, parent }));
            }
            drop(self.connections_opened.get_or_create(&ReporterLabels { reporter }));
            drop(self.connections_open.get_or_create(&ReporterLabels { reporter }));
        }
    }

    /// Whose sidecar this is, for labels.
    pub fn set_workload(&self, workload: &Workload) {
        self.requests.set_workload(workload);
    }

    /// A connection was accepted.
    pub fn connection_opened(&self, direction: Direction) {
        let labels = ReporterLabels { reporter: direction.reporter() };
        self.connections_opened.get_or_create(&labels).inc();
        self.connections_open.get_or_create(&labels).inc();
    }

    /// A connection has ended.
    pub fn connection_closed(&self, direction: Direction) {
        self.connections_open.get_or_create(&ReporterLabels { reporter: direction.reporter() }).dec();
    }

    /// Connections that are open now, of both directions.
    pub fn connections_open(&self) -> i64 {
        let open = |direction: Direction| {
            let labels = ReporterLabels { reporter: direction.reporter() };
            self.connections_open.get_or_create(&labels).get()
        };
        open(Direction::Inbound) + open(Direction::Outbound)
    }

    /// A certificate was obtained, or obtaining one failed.
    pub fn certificate_renewed(&self, is_success: bool) {
        let result = if is_success { "success" } else { "failure" };
        self.renewals.get_or_create(&ResultLabels { result }).inc();
    }

    /// The validity of the certificate in force.
    pub fn set_certificate(&self, not_before: SystemTime, not_after: SystemTime) {
        self.certificate_begin.set(unix_millis(not_before).div_euclid(1000));
        self.certificate_expiry.set(unix_millis(not_after).div_euclid(1000));
    }

    /// A peer's certificate was refused, in the handshake or on an open connection; `code` is the rule
    /// (`postern_identity::Refusal::code`).
    pub fn peer_refused(&self, direction: Direction, code: &'static str) {
        self.refusals.get_or_create(&RefusalLabels { reporter: direction.reporter(), code }).inc();
    }

    /// The authority's clock minus ours.
    pub fn set_clock_skew(&self, seconds: f64) {
        self.clock_skew.set(seconds);
        self.skew_known.store(true, Ordering::Relaxed);
    }

    /// [`Metrics::set_clock_skew`] as it was last measured; `None` before the first time.
    pub fn clock_skew(&self) -> Option<f64> {
        self.skew_known.load(Ordering::Relaxed).then(|| self.clock_skew.get())
    }

    /// The policy now in force.
    pub fn set_policy_version(&self, version: &str) {
        self.policy_version.clear();
        self.policy_version.get_or_create(&VersionLabels { version: version.to_owned() }).set(1);
    }

    /// An update was acknowledged or refused.
    pub fn update_answered(&self, is_accepted: bool) {
        let result = if is_accepted { "ack" } else { "nack" };
        self.updates.get_or_create(&ResultLabels { result }).inc();
    }

    /// Whether the stream to the control plane stands.
    pub fn set_connected(&self, is_connected: bool) {
        self.connected.set(i64::from(is_connected));
    }

    /// The control plane was heard at this moment: what we know is as fresh as that.
    pub fn control_plane_heard(&self, at: SystemTime) {
        self.heard_unix_millis.store(unix_millis(at).try_into().unwrap_or(0), Ordering::Relaxed);
    }

    /// Destinations held.
    pub fn set_destinations(&self, count: usize) {
        self.destinations.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Lines of the access log that were dropped. True at the first one, then at every thousandth: worth a warning.
    pub fn access_log_dropped(&self, count: u64) -> bool {
        let before = self.log_dropped.inc_by(count);
        before == 0 || before / 1000 != (before + count) / 1000
    }

    /// What of these metrics is told.
    pub fn told(&self) -> &ToldMetrics {
        &self.told
    }

    /// A span was made.
    pub fn span_made(&self, direction: Direction, has_parent: bool) {
        let parent = if has_parent { "yes" } else { "no" };
        self.spans.get_or_create(&SpanLabels { reporter: direction.reporter(), parent }).inc();
    }

    /// Spans, or records of the log, dropped because the queue was full or the collector did not take them. Of metrics nothing is lost:
    /// the next export has all that this one had.
    pub fn export_dropped(&self, signal: Signal, count: u64) {
        match signal {
            Signal::Traces => drop(self.spans_dropped.inc_by(count)),
            Signal::Logs => drop(self.records_dropped.inc_by(count)),
            Signal::Metrics => {}
        }
    }

    /// A batch could not be delivered to the collector.
    pub fn export_failed(&self, signal: Signal) {
        match signal {
            Signal::Traces => self.span_export_failures.inc(),
            Signal::Logs => self.record_export_failures.inc(),
            Signal::Metrics => self.metric_export_failures.inc(),
        };
    }

    /// A request or connection ended by a panic of ours.
    pub fn panicked(&self) {
        self.panics.inc();
    }

    /// Something was refused, or not accepted, since a limit was reached: `memory`, `descriptors`, `connections` (of a
    /// listener), `source` or `unproven` (of one source address), `access_log` (lines of a lossless one that are not written yet).
    pub fn shed(&self, limit: &'static str) {
        self.shed.get_or_create(&LimitLabels { limit }).inc();
    }

    /// The kernel refused to give a connection, and the listener paused.
    pub fn accept_failed(&self) {
        self.accept_failures.inc();
    }

    /// What is done about services that fail.
    pub fn upstreams(&self) -> &UpstreamMetrics {
        &self.upstreams
    }

    /// What became of asking the app for its own metrics.
    pub fn app_scrapes(&self) -> &AppScrapes {
        &self.app_scrapes
    }

    /// OpenMetrics text. `now` gives the age of what we know.
    pub fn encode(&self, now: SystemTime) -> String {
        self.text(now, Format::Open)
    }

    /// Text in this format. `now` gives the age of what we know.
    pub fn text(&self, now: SystemTime, format: Format) -> String {
        exposition::write(&self.families(now), format)
    }

    /// What all formats are written from. `now` gives the age of what we know.
    pub fn families(&self, now: SystemTime) -> Vec<MetricFamily> {
        self.note_age(now);
        // It fails on a bound or a time that is none, and there is none of these.
        let mut families = prometheus_protobuf::encode(&self.registry).unwrap_or_default();
        self.requests.add_examples(&mut families);
        self.told.take_out(&mut families);
        families
    }

    fn note_age(&self, now: SystemTime) {
        let heard = self.heard_unix_millis.load(Ordering::Relaxed);
        if heard > 0 {
            let heard = i64::try_from(heard).unwrap_or(i64::MAX);
            self.control_age.set((unix_millis(now) - heard).max(0) as f64 / 1000.0);
        }
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        self.requests.register(registry);
        self.upstreams.register(registry);
        self.app_scrapes.register(registry);
        registry.register(
            "postern_dry_run_differences",
            "Decisions that dry-run policies would change, were they enforced",
            self.differences.clone(),
        );
        registry.register(
            "postern_connections_opened",
            "Connections accepted",
            self.connections_opened.clone(),
        );
        registry.register("postern_connections_open", "Connections open now", self.connections_open.clone());
        registry.register(
            "postern_certificate_expiry_timestamp_seconds",
            "End of the current certificate, Unix time; 0 = no certificate yet",
            self.certificate_expiry.clone(),
        );
        registry.register(
            "postern_certificate_not_before_timestamp_seconds",
            "Beginning of the current certificate, Unix time; 0 = no certificate yet",
            self.certificate_begin.clone(),
        );
        registry.register(
            "postern_peer_refusals",
            "Certificates of peers refused, in handshakes and on open connections, by the rule broken",
            self.refusals.clone(),
        );
        registry.register("postern_certificate_renewals", "Certificates asked for", self.renewals.clone());
        registry.register(
            "postern_clock_skew_seconds",
            "The authority's clock minus ours, at the last certificate",
            self.clock_skew.clone(),
        );
        registry.register(
            "postern_policy_version_info",
            "Version of the inbound policy in force",
            self.policy_version.clone(),
        );
        registry.register("postern_updates", "Updates from the control plane", self.updates.clone());
        registry.register(
            "postern_control_plane_connected",
            "1 while the stream to the control plane stands",
            self.connected.clone(),
        );
        registry.register(
            "postern_control_plane_age_seconds",
            "Time since the control plane was last heard",
            self.control_age.clone(),
        );
        registry.register("postern_destinations", "Destinations held", self.destinations.clone());
        registry.register(
            "postern_access_log_dropped",
            "Lines of the access log dropped",
            self.log_dropped.clone(),
        );
        self.told.register(registry);
        registry.register(
            "postern_spans",
            "Spans made, by whether the caller named a parent; none from the source: the app does not pass traceparent on",
            self.spans.clone(),
        );
        registry.register("postern_spans_dropped", "Spans dropped", self.spans_dropped.clone());
        registry.register(
            "postern_span_export_failures",
            "Batches of spans that the collector did not take",
            self.span_export_failures.clone(),
        );
        registry.register(
            "postern_log_records_dropped",
            "Records of the access log for the collector dropped",
            self.records_dropped.clone(),
        );
        registry.register(
            "postern_log_export_failures",
            "Batches of the access log that the collector did not take",
            self.record_export_failures.clone(),
        );
        registry.register(
            "postern_metric_export_failures",
            "Exports of metrics that the collector did not take, or not whole",
            self.metric_export_failures.clone(),
        );
        registry.register("postern_panics", "Requests and connections ended by a panic", self.panics.clone());
        registry.register(
            "postern_shed",
            "Connections and requests refused, and pauses in accepting, by the limit that was reached",
            self.shed.clone(),
        );
        registry.register(
            "postern_accept_failures",
            "Times that the kernel gave no connection, as at its limit of open files",
            self.accept_failures.clone(),
        );
    }
}

fn unix_millis(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
