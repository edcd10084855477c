//! `PeerAuthentication` (security.istio.io/v1, v1beta1).
use super::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Mutual TLS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Inherit from the wider scope.
    #[default]
    Unset,
    /// Plaintext only.
    Disable,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// The document (reference 1.1). Absent `mtls` is `Unset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthentication {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.selector.matchLabels`; empty = the whole namespace.
    pub selector: BTreeMap<String, String>,
    /// `spec.mtls.mode`.
    pub mode: MtlsMode,
    /// `spec.portLevelMtls` by workload port.
    pub port_level: BTreeMap<u16, MtlsMode>,
}
