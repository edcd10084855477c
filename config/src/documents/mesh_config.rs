//! Istio's MeshConfig, the keys that Postern enforces; any other key is refused.
use super::telemetry::Signal;
use serde::{Deserialize, Serialize};

/// Mesh-wide settings, with Istio's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MeshConfig {
    /// `trustDomain`, `cluster.local` when unset.
    pub trust_domain: String,
    /// `trustDomainAliases`: accepted beside it.
    pub trust_domain_aliases: Vec<String>,
    /// `rootNamespace`, `istio-system` when unset: its policies count in every namespace.
    pub root_namespace: String,
    /// `pathNormalization.normalization`, `BASE` when unset.
    pub path_normalization: crate::path::Normalization,
    /// `accessLogFile`: empty = off; Postern's default is `/dev/stdout`.
    pub access_log_file: String,
    /// `accessLogEncoding`: Istio's default format, of JSON or of text; Postern's own when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_log_encoding: Option<AccessLogEncoding>,
    /// Percent, `defaultConfig.tracing.sampling` (0 when `enableTracing: false`); Postern's default is 100 when an OTLP endpoint is set.
    pub tracing_sampling: Option<f64>,
    /// `outboundTrafficPolicy.mode` is `REGISTRY_ONLY`.
    pub outbound_registry_only: bool,
    /// `meshMTLS.minProtocolVersion`: TLS 1.3 alone when unset, `TLS_AUTO` or `TLSV1_3`; 1.2 as well with `TLSV1_2`. (Istio's
    /// own default is 1.2.)
    #[serde(default)]
    pub tls_versions: postern_identity::tls::Versions,
}

/// `accessLogEncoding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum AccessLogEncoding {
    /// Keys and values.
    Json,
    /// Words in a fixed order.
    Text,
}

/// One of `extensionProviders`: where telemetry goes, by a name that a `Telemetry` may say. It is no part of [`MeshConfig`], since
/// sidecars are not told: their own settings say where telemetry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtensionProvider {
    /// `envoyFileAccessLog`: the lines of the access log.
    EnvoyFileAccessLog,
    /// `envoyOtelAls`: its records by OTLP.
    EnvoyOtelAls,
    /// `opentelemetry`: spans by OTLP.
    OpenTelemetry,
    /// `prometheus`: metrics that are scraped.
    Prometheus,
}

impl ExtensionProvider {
    /// All kinds, by their fields of a provider.
    pub const ALL: [(&'static str, Self); 4] = [
        ("envoyFileAccessLog", Self::EnvoyFileAccessLog),
        ("envoyOtelAls", Self::EnvoyOtelAls),
        ("opentelemetry", Self::OpenTelemetry),
        ("prometheus", Self::Prometheus),
    ];
    /// Those that Istio has without a declaration, by their names.
    pub const BUILT_IN: [(&'static str, Self); 2] =
        [("envoy", Self::EnvoyFileAccessLog), ("prometheus", Self::Prometheus)];

    /// What it is for.
    pub fn signal(self) -> Signal {
        match self {
            Self::EnvoyFileAccessLog | Self::EnvoyOtelAls => Signal::AccessLogging,
            Self::OpenTelemetry => Signal::Tracing,
            Self::Prometheus => Signal::Metrics,
        }
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: vec![],
            root_namespace: "istio-system".into(),
            path_normalization: crate::path::Normalization::default(),
            access_log_file: "/dev/stdout".into(),
            access_log_encoding: None,
            tracing_sampling: None,
            outbound_registry_only: false,
            tls_versions: postern_identity::tls::Versions::default(),
        }
    }
}
