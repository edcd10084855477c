//! `PeerAuthentication` (security.istio.io/v1, v1beta1).
use super::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
/// Mutual TLS mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum MtlsMode { #[default] Unset, Disable, Permissive, Strict }
/// The document. Absent `mtls` is `Unset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PeerAuthentication { pub metadata: Metadata, pub selector: BTreeMap<String, String>, pub mode: MtlsMode, pub port_level: BTreeMap<u16, MtlsMode> }
