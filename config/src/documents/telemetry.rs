//! `Telemetry` (telemetry.istio.io/v1, v1alpha1): what sidecars tell of the traffic.
use super::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The document (reference 4.11). What Postern does not do, validation refuses.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Telemetry {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.selector.matchLabels`; empty = the whole namespace, or in the root namespace the mesh.
    pub selector: BTreeMap<String, String>,
    /// `spec.targetRef` or `spec.targetRefs` is there: it is for a gateway or a waypoint.
    pub has_target_refs: bool,
    /// `spec.accessLogging`, in order: later ones count.
    pub access_logging: Vec<AccessLogging>,
    /// `spec.tracing`, in order: later ones count.
    pub tracing: Vec<Tracing>,
    /// All `spec.metrics[].overrides[]`, in order: later ones count.
    pub metrics: Vec<MetricOverride>,
}

/// What a Telemetry speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `accessLogging`
    AccessLogging,
    /// `tracing`
    Tracing,
    /// `metrics`
    Metrics,
}

impl Signal {
    /// All of them, by their fields of `spec`.
    pub const ALL: [(&'static str, Self); 3] =
        [("accessLogging", Self::AccessLogging), ("tracing", Self::Tracing), ("metrics", Self::Metrics)];
}

/// One of `providers` of an entry. It stands beside the Telemetry, since sidecars are not told: their own settings say where
/// telemetry goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedProvider {
    /// What the entry is about.
    pub signal: Signal,
    /// `name`.
    pub name: String,
    /// Where in the document, such as `spec.tracing[0].providers[0]`.
    pub path: String,
}

/// `match.mode`: which side of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mode {
    /// Both.
    #[default]
    ClientAndServer,
    /// What the workload calls.
    Client,
    /// What it is called with.
    Server,
}

/// One of `accessLogging`. It says all of the sides that it is for: a filter of a wider scope does not hold beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessLogging {
    /// `match.mode`.
    pub mode: Mode,
    /// `disabled`: no lines but those of denials.
    pub disabled: bool,
    /// `filter.expression`: lines are kept where it is true ([`crate::cel`]).
    pub filter: Option<String>,
}

/// One of `tracing`. Of what it does not say, the wider scope's word holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Tracing {
    /// `match.mode`.
    pub mode: Mode,
    /// `randomSamplingPercentage`, 0 to 100: of the traces that begin here.
    pub random_sampling_percentage: Option<f64>,
    /// `disableSpanReporting`: no spans, and callers' headers pass as they are.
    pub disable_span_reporting: Option<bool>,
    /// `customTags` by their names; all of them at once, as in Istio.
    pub custom_tags: Option<BTreeMap<String, CustomTag>>,
}

/// An attribute of spans.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum CustomTag {
    /// `literal.value`.
    Literal(String),
    /// The value of a request header.
    Header {
        /// `header.name`, lower case.
        name: String,
        /// `header.defaultValue`: where the header is absent. `None`: no attribute then.
        default: Option<String>,
    },
}

/// One of `metrics[].overrides`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MetricOverride {
    /// `match.mode`.
    pub mode: Mode,
    /// `match.metric`; `None` = `ALL_METRICS`.
    pub metric: Option<Metric>,
    /// `disabled`.
    pub disabled: bool,
}

/// Istio's metrics (`match.metric`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Metric {
    /// `istio_requests_total`
    RequestCount,
    /// `istio_request_duration_milliseconds`
    RequestDuration,
    /// `istio_request_bytes`
    RequestSize,
    /// `istio_response_bytes`
    ResponseSize,
    /// `istio_tcp_connections_opened_total`, which Postern does not have.
    TcpOpenedConnections,
    /// `istio_tcp_connections_closed_total`
    TcpClosedConnections,
    /// `istio_tcp_sent_bytes_total`
    TcpSentBytes,
    /// `istio_tcp_received_bytes_total`
    TcpReceivedBytes,
    /// `istio_request_messages_total`, which Postern does not have.
    GrpcRequestMessages,
    /// `istio_response_messages_total`, which Postern does not have.
    GrpcResponseMessages,
}

impl Metric {
    /// All of them, by Istio's words.
    pub const ALL: [(&'static str, Self); 10] = [
        ("REQUEST_COUNT", Self::RequestCount),
        ("REQUEST_DURATION", Self::RequestDuration),
        ("REQUEST_SIZE", Self::RequestSize),
        ("RESPONSE_SIZE", Self::ResponseSize),
        ("TCP_OPENED_CONNECTIONS", Self::TcpOpenedConnections),
        ("TCP_CLOSED_CONNECTIONS", Self::TcpClosedConnections),
        ("TCP_SENT_BYTES", Self::TcpSentBytes),
        ("TCP_RECEIVED_BYTES", Self::TcpReceivedBytes),
        ("GRPC_REQUEST_MESSAGES", Self::GrpcRequestMessages),
        ("GRPC_RESPONSE_MESSAGES", Self::GrpcResponseMessages),
    ];
}
