//! SPIFFE IDs and trust domains: parsed once, canonical for ever (SPIFFE-ID section 2).
use std::{fmt, str::FromStr, sync::Arc};

/// A trust domain name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);
/// A SPIFFE ID `spiffe://<trust domain>/<path>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId { text: Arc<str>, trust_domain_end: usize }
/// Why a text is not a SPIFFE ID or trust domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(pub String);

impl TrustDomain {
    /// `td` as written, e.g. `cluster.local`.
    pub fn as_str(&self) -> &str { &self.0 }
}
impl SpiffeId {
    /// `spiffe://<td>/ns/<ns>/sa/<sa>`.
    pub fn for_service_account(_td: &TrustDomain, _namespace: &str, _service_account: &str) -> Result<Self, IdError> { todo!() }
    /// The whole URI.
    pub fn as_str(&self) -> &str { &self.text }
    /// The trust domain part.
    pub fn trust_domain(&self) -> &str { todo!() }
    /// The path with its leading slash, empty for a trust domain ID.
    pub fn path(&self) -> &str { todo!() }
    /// `(namespace, service account)` when the path is `/ns/<ns>/sa/<sa>`.
    pub fn service_account(&self) -> Option<(&str, &str)> { todo!() }
    /// The ID without `spiffe://`, as Istio policies write principals.
    pub fn principal(&self) -> &str { todo!() }
}
impl FromStr for TrustDomain { type Err = IdError; fn from_str(_: &str) -> Result<Self, IdError> { todo!() } }
impl FromStr for SpiffeId { type Err = IdError; fn from_str(_: &str) -> Result<Self, IdError> { todo!() } }
impl fmt::Display for TrustDomain { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.0) } }
impl fmt::Display for SpiffeId { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(&self.text) } }
