//! The verifier as rustls wants it, and the only two places that build TLS configurations: no resumption, no tickets, no early data.
use crate::{Accept, Peer, TrustBundles};
use rustls::{ClientConfig, ServerConfig, crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// The one provider: aws-lc-rs, X25519MLKEM768 preferred, X25519 accepted. Always passed explicitly.
pub fn provider() -> Arc<CryptoProvider> { todo!() }
/// A key that fits its chain, checked.
pub fn certified_key(_chain: Vec<CertificateDer<'static>>, _key: PrivateKeyDer<'static>) -> Result<Arc<CertifiedKey>, String> { todo!() }
/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate { /** refuse without */ Required, /** accept without (attestation by token) */ Optional }
/// TLS 1.3 server for mesh connections. `alpn` in preference order; a client that offers none of them is accepted without ALPN.
pub fn server_config(_key: Arc<CertifiedKey>, _trust: Arc<TrustBundles>, _accept: Accept, _client: ClientCertificate, _alpn: &[&[u8]]) -> Result<ServerConfig, String> { todo!() }
/// TLS 1.3 client for mesh connections. `key` is `None` only before the first certificate.
pub fn client_config(_key: Option<Arc<CertifiedKey>>, _trust: Arc<TrustBundles>, _accept: Accept, _alpn: &[&[u8]]) -> Result<ClientConfig, String> { todo!() }
/// The peer of a finished handshake whose configuration came from this module.
pub fn peer(_certificates: Option<&[CertificateDer<'_>]>) -> Option<Peer> { todo!() }
