//! What happened, told once: the record, and where it goes (access log, metrics, spans, remembered denials).
//!
//! The data plane only fills a [`Record`] and drops it. Everything that formats, writes or sends runs on the control
//! runtime behind bounded queues: when a queue is full the entry is counted and dropped, traffic never waits.

pub mod access_log;
pub mod app_scrapes;
mod attributes;
mod batches;
pub mod connections;
pub mod denials;
pub mod denied;
pub mod ejections;
pub mod entry;
pub mod export;
pub mod exposition;
mod log_record;
mod metric_export;
pub mod metrics;

pub mod propagation;
pub mod record;
pub mod request_metrics;
pub mod tap;
pub mod told;
mod trace;
pub mod trace_context;
pub mod upstream_metrics;

pub use app_scrapes::AppScrape;
pub use connections::Connections;
pub use denials::{Denial, Denials};
pub use denied::DeniedKinds;
pub use ejections::{Ejection, Ejections};
pub use entry::{Direction, Entry};
pub use metrics::Metrics;
pub use record::Record;
pub use told::Told;
pub use upstream_metrics::Repeat;

use crate::{
    bootstrap::{
        AccessLogSink,
        access_log::{Format, Written},
        otel,
    },
    drain,
};
use arc_swap::ArcSwap;
use attributes::Origin;
use http::HeaderName;
use postern_config::{Snapshot, documents::mesh_config::AccessLogEncoding};
use propagation::Propagation;
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use told::Wanted;
use trace_context::Trace;

/// Sinks shared by all workers. Clones are cheap.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    metrics: Arc<Metrics>,
    denied: DeniedKinds,
    taps: tap::Taps,
    denials: Denials,
    connections: Connections,
    ejections: Ejections,
    log: Option<access_log::Queue>,
    logged_headers: Vec<HeaderName>,
    spans: Option<batches::Queue>,
    // The access log on its way to a collector.
    records: Option<batches::Queue>,
    // None where no spans are sent.
    propagation: Option<Propagation>,
    told: Arc<Told>,
    service: Arc<ArcSwap<String>>,
    drain: OnceLock<drain::Watch>,
}

/// Where entries go.
#[derive(Clone, Debug)]
pub struct Options {
    /// Access log.
    pub access_log: AccessLogSink,
    /// What its lines are like.
    pub access_log_lines: Written,
    /// Spans: which are made; and where they, metrics and the access log go.
    pub otel: otel::Settings,
    /// Name of the instance: `service.instance.id`, and `service.name` until the policy has told us the workload's name, when
    /// [`otel::Settings::service`] is not set.
    pub service: String,
}

/// The writers behind the queues: they end, with everything written, when asked to.
#[derive(Debug, Default)]
pub struct Writers {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Telemetry {
    /// Opens the sinks and spawns their writers on the current runtime.
    ///
    /// # Errors
    /// When the access-log file cannot be opened, or the files for the collector's TLS cannot be used.
    pub fn start(options: Options) -> anyhow::Result<(Self, Writers)> {
        let metrics = Arc::new(Metrics::default());
        let service = Arc::new(ArcSwap::from_pointee(options.service.clone()));
        let told = Arc::new(Told::default());
        let mut writers = Writers::default();
        let lines = &options.access_log_lines;
        let log = match access_log::start(options.access_log, lines, metrics.clone(), writers.stop.clone())? {
            Some((queue, task)) => {
                writers.tasks.push(task);
                Some(queue)
            }
            None => None,
        };
        let propagation = options
            .otel
            .exporter
            .is_some()
            .then_some(Propagation { sampler: options.otel.sampler, propagators: options.otel.propagators });
        let otel = options.otel;
        let origin = Origin {
            service: otel.service,
            workload: service.clone(),
            instance: options.service,
            attributes: otel.resource,
        };
        let mut batches = |exporter: Option<otel::Exporter>, batch| -> anyhow::Result<_> {
            let Some(exporter) = exporter else { return Ok(None) };
            let stop = writers.stop.clone();
            let (queue, task) =
                batches::start(exporter, batch, origin.clone(), told.clone(), metrics.clone(), stop)?;
            writers.tasks.push(task);
            Ok(Some(queue))
        };
        let spans = batches(otel.exporter, otel.batch)?;
        let records = batches(otel.logs, otel.log_batch)?;
        if let Some(to) = otel.metrics {
            let task = metric_export::start(to, origin, metrics.clone(), writers.stop.clone())?;
            writers.tasks.push(task);
        }
        Ok((
            Self(Arc::new(Inner {
                metrics,
                denied: DeniedKinds::default(),
                taps: tap::Taps::default(),
                denials: Denials::default(),
                connections: Connections::default(),
                ejections: Ejections::default(),
                log,
                logged_headers: options.access_log_lines.headers,
                spans,
                records,
                propagation,
                told,
                service,
                drain: OnceLock::new(),
            })),
            writers,
        ))
    }

    /// Metrics and denials only; nothing is written anywhere. Needs no runtime.
    pub fn silent() -> Self {
        Self(Arc::new(Inner {
            metrics: Arc::new(Metrics::default()),
            denied: DeniedKinds::default(),
            taps: tap::Taps::default(),
            denials: Denials::default(),
            connections: Connections::default(),
            ejections: Ejections::default(),
            log: None,
            logged_headers: vec![],
            spans: None,
            records: None,
            propagation: None,
            told: Arc::default(),
            service: Arc::default(),
            drain: OnceLock::new(),
        }))
    }

    /// From now on what is cut off at the end of the way down says so. Once.
    pub fn follow(&self, drain: drain::Watch) {
        let _ = self.0.drain.set(drain);
    }

    /// Whether the time of the way down is over, so that everything ends.
    fn is_over(&self) -> bool {
        self.0.drain.get().is_some_and(drain::Watch::is_over)
    }

    /// Opens the record of a connection.
    pub fn connection(
        &self,
        direction: Direction,
        downstream: SocketAddr,
        destination: SocketAddr,
    ) -> Record {
        Record::open(self, direction, downstream, destination)
    }

    /// Counters and gauges.
    pub fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Denials by kind, for the control plane.
    pub fn denied(&self) -> &DeniedKinds {
        &self.0.denied
    }

    /// Calls that somebody watches live.
    pub fn taps(&self) -> &tap::Taps {
        &self.0.taps
    }

    /// The denials we remember.
    pub fn denials(&self) -> &Denials {
        &self.0.denials
    }

    /// The connections that are open now.
    pub fn connections(&self) -> &Connections {
        &self.0.connections
    }

    /// The endpoints that are ejected now.
    pub fn ejections(&self) -> &Ejections {
        &self.0.ejections
    }

    /// Names the workload in spans, once policy has told us who we are.
    pub fn set_service(&self, name: &str) {
        if self.0.service.load().as_str() != name {
            self.0.service.store(Arc::new(name.to_owned()));
        }
    }

    /// Whether spans are sent at all.
    fn is_tracing(&self) -> bool {
        self.0.propagation.is_some()
    }

    /// What `Telemetry` documents say.
    pub fn told(&self) -> &Told {
        &self.0.told
    }

    /// From now on what is told is what this policy says: format and lines of the access log, traces, metrics.
    pub fn obey(&self, policy: &Snapshot) {
        self.set_access_log_encoding(policy.spec().mesh.access_log_encoding);
        self.0.told.put(policy.telemetry());
        self.0.metrics.told().leave_out(policy.telemetry());
    }

    /// The trace of a request: a span of ours in it where spans are sent, else what the caller says of its own.
    fn trace(&self, way: Option<&told::Way>, headers: &http::HeaderMap) -> Option<Trace> {
        match self.0.propagation {
            Some(own) if !way.is_some_and(told::Way::is_silent) => {
                let sampler = way.and_then(|way| way.sampler).unwrap_or(own.sampler);
                Some(Propagation { sampler, ..own }.begin(headers))
            }
            _ => propagation::traceparent(headers).map(Trace::of_caller),
        }
    }

    /// The request headers that the access log has.
    pub(crate) fn logged_headers(&self) -> &[HeaderName] {
        &self.0.logged_headers
    }

    /// Whether new work may begin: not while a lossless access log has too many lines that are not written yet.
    pub fn has_room(&self) -> bool {
        self.0.log.as_ref().is_none_or(access_log::Queue::has_room)
    }

    /// Waits until new work may begin.
    pub async fn room(&self) {
        if let Some(log) = &self.0.log {
            log.room().await;
        }
    }

    /// What the mesh says about the format of the access log.
    fn set_access_log_encoding(&self, encoding: Option<AccessLogEncoding>) {
        if let Some(log) = &self.0.log {
            log.set_format(match encoding {
                None => Format::Json,
                Some(AccessLogEncoding::Json) => Format::IstioJson,
                Some(AccessLogEncoding::Text) => Format::IstioText,
            });
        }
    }

    /// Takes a finished entry. Never waits.
    pub(crate) fn write(&self, entry: Box<Entry>) {
        self.0.metrics.observe(&entry);
        self.0.denied.observe(&entry);
        if self.0.taps.is_open() {
            self.0.taps.observe(&entry, std::time::SystemTime::now());
        }
        if let Some(spans) = &self.0.spans
            && entry.trace.is_some_and(|trace| trace.is_sampled() && trace.is_ours())
        {
            spans.push(entry.clone());
        }
        if self.0.records.is_none() && self.0.log.is_none() {
            return;
        }
        // Here and not where lines are made: what nobody wants takes no place in a queue, and holds up no lossless log.
        match self.0.told.wants(&entry) {
            Wanted::Yes => {}
            Wanted::No => return,
            Wanted::Untold => self.0.metrics.told().filter_failed(),
        }
        match (&self.0.records, &self.0.log) {
            (Some(records), None) => return records.push(entry),
            (Some(records), Some(_)) => records.push(entry.clone()),
            (None, _) => {}
        }
        if let Some(log) = &self.0.log {
            log.push(entry);
        }
    }
}

impl Writers {
    /// Writes what is queued, then ends. Call it when no record is open any more, and give it a deadline.
    pub async fn finish(mut self) {
        self.stop.cancel();
        for task in std::mem::take(&mut self.tasks) {
            let _ = task.await;
        }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
