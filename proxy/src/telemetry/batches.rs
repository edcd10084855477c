//! Finished records on their way to an OTLP collector, as spans and as records of the log: queued, gathered and sent off the request
//! path, once. What has no room, or does not arrive, is lost and counted.

use super::{
    Entry, Metrics, Told,
    attributes::{Origin, SCHEMA, scope},
    entry::Entries,
    export::Collector,
    log_record::log_record,
    trace::span,
};
use crate::bootstrap::otel::{self, Signal};
use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse},
        trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    },
    logs::v1::{ResourceLogs, ScopeLogs},
    trace::v1::{ResourceSpans, ScopeSpans},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

/// At shutdown, the longest that all that is left may take.
pub(super) const LAST_DEADLINE: Duration = Duration::from_secs(5);
/// From one look at the queue to the next while a batch is gathered: waking the exporter for each entry would cost more than the entry.
const LOOK: Duration = Duration::from_millis(50);

/// The data plane's end of the queue.
#[derive(Clone, Debug)]
pub struct Queue {
    signal: Signal,
    entries: mpsc::Sender<Box<Entry>>,
    metrics: Arc<Metrics>,
}

impl Queue {
    /// Hands an entry over. Never waits.
    pub fn push(&self, entry: Box<Entry>) {
        if self.entries.try_send(entry).is_err() {
            self.metrics.export_dropped(self.signal, 1);
        }
    }
}

/// Spawns the exporter on the current runtime. The collector need not be there yet.
///
/// # Errors
/// When the files for the collector's TLS cannot be used.
pub(super) fn start(
    exporter: otel::Exporter,
    batch: otel::Batch,
    origin: Origin,
    told: Arc<Told>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<(Queue, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel(batch.queue);
    let signal = exporter.signal;
    let queue = Queue { signal, entries: sender, metrics: metrics.clone() };
    let exporter = Exporter { signal, collector: Collector::open(exporter)?, origin, told, batch, metrics };
    Ok((queue, tokio::spawn(exporter.run(receiver, stop))))
}

struct Exporter {
    signal: Signal,
    collector: Collector,
    origin: Origin,
    told: Arc<Told>,
    batch: otel::Batch,
    metrics: Arc<Metrics>,
}

impl Exporter {
    async fn run(mut self, mut entries: mpsc::Receiver<Box<Entry>>, stop: CancellationToken) {
        let otel::Batch { most, delay, .. } = self.batch;
        let mut batch = Vec::with_capacity(most);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = entries.recv_many(&mut batch, most) => if count == 0 { break },
            }
            // Gather what follows shortly, then send at once.
            let end = Instant::now() + delay;
            while batch.len() < most && Instant::now() < end && !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep_until(end.min(Instant::now() + LOOK)) => {}
                }
                while batch.len() < most
                    && let Ok(entry) = entries.try_recv()
                {
                    batch.push(entry);
                }
            }
            self.export(&mut batch).await;
        }
        entries.close();
        // One deadline for all that is left: a dead collector must not hold up the shutdown.
        let last = async {
            while entries.recv_many(&mut batch, most).await > 0 || !batch.is_empty() {
                self.export(&mut batch).await;
            }
        };
        let _ = tokio::time::timeout(LAST_DEADLINE, last).await;
    }

    async fn export(&mut self, batch: &mut Entries) {
        let count = batch.len() as u64;
        let sent = match self.signal {
            Signal::Logs => self.send_logs(batch).await,
            Signal::Traces | Signal::Metrics => self.send_spans(batch).await,
        };
        match sent {
            Ok(rejected) => {
                let rejected = u64::try_from(rejected).unwrap_or(0);
                self.metrics.export_dropped(self.signal, rejected.min(count));
            }
            Err(why) => {
                self.metrics.export_dropped(self.signal, count);
                self.metrics.export_failed(self.signal);
                tracing::debug!(signal = ?self.signal, why, "a batch could not be exported");
            }
        }
    }

    /// How many the collector has not taken.
    async fn send_spans(&mut self, batch: &mut Entries) -> Result<i64, String> {
        let said = self.told.said();
        let made = batch.drain(..).filter_map(|entry| {
            let mut span = span(&entry)?;
            if let Some(said) = &said {
                said.add_tags(&entry, &mut span.attributes);
            }
            self.metrics.span_made(entry.direction, !span.parent_span_id.is_empty());
            Some(span)
        });
        let spans = ScopeSpans { scope: Some(scope()), spans: made.collect(), schema_url: SCHEMA.into() };
        drop(said);
        let all = ResourceSpans {
            resource: Some(self.origin.resource()),
            scope_spans: vec![spans],
            schema_url: SCHEMA.into(),
        };
        let request = ExportTraceServiceRequest { resource_spans: vec![all] };
        let answer: ExportTraceServiceResponse = self.collector.send(request).await?;
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_spans))
    }

    /// How many the collector has not taken.
    async fn send_logs(&mut self, batch: &mut Entries) -> Result<i64, String> {
        let observed = SystemTime::now();
        let records = batch.drain(..).map(|entry| log_record(&entry, observed)).collect();
        let records = ScopeLogs { scope: Some(scope()), log_records: records, schema_url: SCHEMA.into() };
        let all = ResourceLogs {
            resource: Some(self.origin.resource()),
            scope_logs: vec![records],
            schema_url: SCHEMA.into(),
        };
        let request = ExportLogsServiceRequest { resource_logs: vec![all] };
        let answer: ExportLogsServiceResponse = self.collector.send(request).await?;
        Ok(answer.partial_success.map_or(0, |partial| partial.rejected_log_records))
    }
}
