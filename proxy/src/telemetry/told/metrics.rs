//! What of the metrics is told, and what became of filters.

use super::super::Direction;
use parking_lot::Mutex;
use postern_config::{
    documents::telemetry::Metric,
    telemetry::{Side, Sides},
};
use prometheus_client::{
    encoding::prometheus_protobuf::prometheus_data_model::{LabelPair, MetricFamily},
    metrics::counter::Counter,
    registry::Registry,
};

/// Counts of filters, and the families that are left out of scrapes and exports.
#[derive(Debug, Default)]
pub struct ToldMetrics {
    filter_errors: Counter,
    /// With the reporter whose series are left out.
    left_out: Mutex<Vec<(&'static str, &'static str)>>,
}

impl ToldMetrics {
    /// A filter looked at what the call does not have.
    pub fn filter_failed(&self) {
        self.filter_errors.inc();
    }

    /// From now on what these switch off is not told. What is counted goes on.
    pub fn leave_out(&self, sides: &Sides) {
        let of = |direction: Direction, side: &Side| {
            let off: Vec<_> = side.metrics_off.iter().filter_map(|metric| family(*metric)).collect();
            off.into_iter().map(move |family| (family, direction.reporter()))
        };
        let inbound = of(Direction::Inbound, &sides.inbound);
        *self.left_out.lock() = inbound.chain(of(Direction::Outbound, &sides.outbound)).collect();
    }

    pub(in crate::telemetry) fn take_out(&self, families: &mut [MetricFamily]) {
        for (name, reporter) in self.left_out.lock().iter() {
            let is_of = |label: &LabelPair| label.name == "reporter" && label.value == *reporter;
            for family in families.iter_mut().filter(|family| family.name == *name) {
                family.metric.retain(|series| !series.label.iter().any(is_of));
            }
        }
    }

    pub(in crate::telemetry) fn register(&self, registry: &mut Registry) {
        registry.register(
            "postern_access_log_filter_errors",
            "Lines of the access log kept since their filter looked at what the call does not have",
            self.filter_errors.clone(),
        );
    }
}

/// As scrapes name it; `None` for what we do not have.
fn family(metric: Metric) -> Option<&'static str> {
    Some(match metric {
        Metric::RequestCount => "istio_requests_total",
        Metric::RequestDuration => "istio_request_duration_milliseconds",
        Metric::RequestSize => "istio_request_bytes",
        Metric::ResponseSize => "istio_response_bytes",
        Metric::TcpClosedConnections => "istio_tcp_connections_closed_total",
        Metric::TcpSentBytes => "istio_tcp_sent_bytes_total",
        Metric::TcpReceivedBytes => "istio_tcp_received_bytes_total",
        Metric::TcpOpenedConnections | Metric::GrpcRequestMessages | Metric::GrpcResponseMessages => {
            return None;
        }
    })
}
