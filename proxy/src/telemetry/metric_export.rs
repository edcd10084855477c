//! Metrics to an OTLP collector, from time to time: the families of a scrape with their names, labels and values, counted since the
//! sidecar began (cumulative temporality).

use super::{
    Metrics,
    attributes::{Origin, SCHEMA, scope, text, unix_nanos},
    batches::LAST_DEADLINE,
    export::Collector,
};
use crate::bootstrap::otel::{Periodic, Signal};
use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Exemplar, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, exemplar, metric::Data, number_data_point,
    },
};
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    self as prometheus, MetricFamily,
};
use std::{sync::Arc, time::SystemTime};
use tokio::{task::JoinHandle, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Spawns the exporter on the current runtime. The collector need not be there yet.
///
/// # Errors
/// When the files for the collector's TLS cannot be used.
pub(super) fn start(
    to: Periodic,
    origin: Origin,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<JoinHandle<()>> {
    let mut exporter =
        Exporter { collector: Collector::open(to.exporter)?, origin, metrics, began: SystemTime::now() };
    Ok(tokio::spawn(async move {
        let mut ticks = tokio::time::interval(to.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once, when there is nothing to tell.
        ticks.tick().await;
        loop {
            tokio::select! { _ = ticks.tick() => {}, () = stop.cancelled() => break }
            exporter.export().await;
        }
        // The last numbers, which nobody can ask for any more.
        let _ = tokio::time::timeout(LAST_DEADLINE, exporter.export()).await;
    }))
}

struct Exporter {
    collector: Collector,
    origin: Origin,
    metrics: Arc<Metrics>,
    began: SystemTime,
}

impl Exporter {
    async fn export(&mut self) {
        let now = SystemTime::now();
        let period = Period { began: unix_nanos(self.began), now: unix_nanos(now) };
        let metrics =
            self.metrics.families(now).into_iter().filter_map(|family| period.metric(family)).collect();
        let metrics = ScopeMetrics { scope: Some(scope()), metrics, schema_url: SCHEMA.into() };
        let all = ResourceMetrics {
            resource: Some(self.origin.resource()),
            scope_metrics: vec![metrics],
            schema_url: SCHEMA.into(),
        };
        let request = ExportMetricsServiceRequest { resource_metrics: vec![all] };
        let sent: Result<ExportMetricsServiceResponse, _> = self.collector.send(request).await;
        let why = match sent {
            Ok(answer) => match answer.partial_success {
                Some(partial) if partial.rejected_data_points > 0 => partial.error_message,
                _ => return,
            },
            Err(why) => why,
        };
        self.metrics.export_failed(Signal::Metrics);
        tracing::debug!(why, "metrics could not be exported, or not whole");
    }
}

/// From when to when numbers are counted; nanoseconds of Unix time.
#[derive(Clone, Copy)]
struct Period {
    began: u64,
    now: u64,
}

impl Period {
    /// `None` for a family without series.
    fn metric(self, family: MetricFamily) -> Option<Metric> {
        let temporality = AggregationTemporality::Cumulative as i32;
        let (mut gauges, mut sums, mut histograms) = (Vec::new(), Vec::new(), Vec::new());
        for series in family.metric {
            let attributes = series.label.iter().map(|label| text(&label.name, &label.value)).collect();
            if let Some(histogram) = series.histogram {
                histograms.push(self.histogram(attributes, &histogram));
            } else if let Some(counter) = series.counter {
                sums.push(self.number(attributes, counter.value, self.began));
            } else if let Some(gauge) = series.gauge {
                gauges.push(self.number(attributes, gauge.value, 0));
            }
        }
        let data = if !sums.is_empty() {
            Data::Sum(Sum { data_points: sums, aggregation_temporality: temporality, is_monotonic: true })
        } else if !histograms.is_empty() {
            Data::Histogram(Histogram { data_points: histograms, aggregation_temporality: temporality })
        } else if !gauges.is_empty() {
            Data::Gauge(Gauge { data_points: gauges })
        } else {
            return None;
        };
        let description = family.help.trim_end_matches('.').to_owned();
        Some(Metric { name: family.name, description, data: Some(data), ..Default::default() })
    }

    fn number(self, attributes: Vec<KeyValue>, value: f64, began: u64) -> NumberDataPoint {
        NumberDataPoint {
            attributes,
            start_time_unix_nano: began,
            time_unix_nano: self.now,
            value: Some(number_data_point::Value::AsDouble(value)),
            ..Default::default()
        }
    }

    fn histogram(self, attributes: Vec<KeyValue>, histogram: &prometheus::Histogram) -> HistogramDataPoint {
        let bounds =
            histogram.bucket.iter().map(|bucket| bucket.upper_bound).filter(|bound| bound.is_finite());
        let mut before = 0;
        let counts = histogram.bucket.iter().map(|bucket| {
            let below = std::mem::replace(&mut before, bucket.cumulative_count);
            bucket.cumulative_count.saturating_sub(below)
        });
        HistogramDataPoint {
            attributes,
            start_time_unix_nano: self.began,
            time_unix_nano: self.now,
            count: histogram.sample_count,
            sum: Some(histogram.sample_sum),
            explicit_bounds: bounds.collect(),
            bucket_counts: counts.collect(),
            exemplars: histogram
                .bucket
                .iter()
                .filter_map(|bucket| exemplar(bucket.exemplar.as_ref()?))
                .collect(),
            ..Default::default()
        }
    }
}

/// `None` where the label is no trace ID.
fn exemplar(of: &prometheus::Exemplar) -> Option<Exemplar> {
    let trace = of.label.iter().find(|label| label.name == "trace_id")?;
    let trace = u128::from_str_radix(&trace.value, 16).ok()?;
    let at = of.timestamp.and_then(|at| SystemTime::try_from(at).ok())?;
    Some(Exemplar {
        time_unix_nano: unix_nanos(at),
        trace_id: trace.to_be_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(of.value)),
        ..Default::default()
    })
}
