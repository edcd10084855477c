//! Istio's MeshConfig, the keys that Postern enforces; any other key is refused.
use serde::{Deserialize, Serialize};
/// Mesh-wide settings, with Istio's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct MeshConfig {
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: String,
    pub path_normalization: crate::path::Normalization,
    /// `accessLogFile`: empty = off; Postern's default is `/dev/stdout`.
    pub access_log_file: String,
    /// Percent, `defaultConfig.tracing.sampling`; Postern's default is 100 when an OTLP endpoint is set.
    pub tracing_sampling: Option<f64>,
    /// `outboundTrafficPolicy.mode`.
    pub outbound_registry_only: bool,
}
impl Default for MeshConfig { fn default() -> Self { Self { trust_domain: "cluster.local".into(), trust_domain_aliases: vec![], root_namespace: "istio-system".into(), path_normalization: Default::default(), access_log_file: "/dev/stdout".into(), tracing_sampling: None, outbound_registry_only: false } } }
