//! TLS contexts of one certificate, accept and connect. The rules themselves live in `postern_identity::tls`.
use postern_identity::{Peer, SpiffeId, TrustBundles};
use std::sync::Arc;
use tokio_rustls::{client, server};

/// Server contexts, ready to use; client contexts are made per expected identity and cached here.
pub struct Contexts {}
/// TLS facts for the log.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct TlsFacts { pub version: Option<&'static str>, pub sni: Option<String>, pub alpn: Option<String> }
impl Contexts {
    /// Builds all contexts, or says why the certificate cannot be used (then nothing is published).
    pub fn build(_key: Arc<rustls::sign::CertifiedKey>, _trust: Arc<TrustBundles>, _own: &SpiffeId) -> Result<Self, String> { todo!() }
}
