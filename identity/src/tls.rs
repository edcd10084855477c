//! The verifier as rustls wants it, and the only place that builds TLS configurations: no resumption, no tickets, no early data.
//!
//! TLS 1.3 is spoken. TLS 1.2 is spoken beside it only where [`Versions::Tls12And13`] is written, which is a decision of
//! the operator of the mesh: in 1.2 certificates cross the wire in clear.
//!
//! A resumed TLS session skips the certificate verifier (expiry, removed authority and all), so mesh connections never
//! resume: the server sends no ticket and stores no session, the client keeps none.

use crate::{Accept, Peer, Refusal, TrustBundles, provider::provider_ref, svid, verify};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::{
        ClientHello, NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::sync::Arc;

pub use crate::provider::provider;

/// A key that fits its chain, checked.
///
/// # Errors
/// When the chain is empty or unreadable, the key is of an unknown kind, or the two do not belong together.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, String> {
    let key = provider_ref()
        .key_provider
        .load_private_key(key)
        .map_err(|cause| format!("the private key cannot be used: {cause}"))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|cause| match cause {
        Error::NoCertificatesPresented => "the certificate chain is empty".to_owned(),
        Error::InconsistentKeys(_) => "the private key does not belong to the certificate".to_owned(),
        other => format!("the certificate cannot be used: {other}"),
    })?;
    Ok(Arc::new(certified))
}

/// Whether a client must show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// Refuse without.
    Required,
    /// Accept without (attestation by token); one that is shown must still be good.
    Optional,
}

/// Which versions of TLS are spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Versions {
    /// TLS 1.3 and nothing else.
    #[default]
    Tls13,
    /// TLS 1.2 as well, for peers that cannot do better. Never resumed either, and only with the extended master secret
    /// (RFC 7627), without which two sessions can be made to share their keys.
    Tls12And13,
}

impl Versions {
    fn supported(self) -> &'static [&'static rustls::SupportedProtocolVersion] {
        static ALL: [&rustls::SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls13 => ALL.split_at(1).0,
            Self::Tls12And13 => &ALL,
        }
    }
}

/// [`server_config_for`] TLS 1.3.
///
/// # Errors
/// When the provider cannot do TLS 1.3; never in practice.
pub fn server_config(
    key: Arc<CertifiedKey>,
    trust: Arc<TrustBundles>,
    accept: Accept,
    client: ClientCertificate,
    alpn: &[&[u8]],
) -> Result<ServerConfig, String> {
    server_config_for(Versions::Tls13, key, trust, accept, client, alpn)
}

/// Server for mesh connections. `alpn` in preference order; a client that offers none of them is accepted without ALPN.
///
/// rustls itself ends the handshake with `no_application_protocol` when both sides name protocols and none is common.
/// So the acceptor must look first: keep this configuration and [`without_alpn`] of it, accept with
/// `tokio_rustls::LazyConfigAcceptor`, and start with [`config_for`] of the client hello. (A client that sends no
/// ALPN at all needs nothing of that.)
///
/// # Errors
/// When the provider cannot do these versions; never in practice.
pub fn server_config_for(
    versions: Versions,
    key: Arc<CertifiedKey>,
    trust: Arc<TrustBundles>,
    accept: Accept,
    client: ClientCertificate,
    alpn: &[&[u8]],
) -> Result<ServerConfig, String> {
    let verifier = Verifier { trust, accept, mandatory: client == ClientCertificate::Required };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.supported())
        .map_err(|cause| format!("TLS is not available: {cause}"))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.require_ems = true;
    Ok(config)
}

/// [`client_config_for`] TLS 1.3.
///
/// # Errors
/// When the provider cannot do TLS 1.3; never in practice.
pub fn client_config(
    key: Option<Arc<CertifiedKey>>,
    trust: Arc<TrustBundles>,
    accept: Accept,
    alpn: &[&[u8]],
) -> Result<ClientConfig, String> {
    client_config_for(Versions::Tls13, key, trust, accept, alpn)
}

/// Client for mesh connections. `key` is `None` only before the first certificate.
///
/// The server name given to the connection is sent as SNI and otherwise ignored: whom we talk to is decided by
/// `accept` on the SPIFFE ID, never by a DNS name.
///
/// # Errors
/// When the provider cannot do these versions; never in practice.
pub fn client_config_for(
    versions: Versions,
    key: Option<Arc<CertifiedKey>>,
    trust: Arc<TrustBundles>,
    accept: Accept,
    alpn: &[&[u8]],
) -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions.supported())
        .map_err(|cause| format!("TLS is not available: {cause}"))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { trust, accept, mandatory: true }));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.require_ems = true;
    Ok(config)
}

/// The same server without protocols to choose from, for clients with whom it has none in common.
pub fn without_alpn(config: &ServerConfig) -> ServerConfig {
    let mut config = config.clone();
    config.alpn_protocols.clear();
    config
}

/// Which of the two configurations ([`server_config`], [`without_alpn`]) lets this client finish its handshake.
pub fn config_for<'a>(
    hello: &ClientHello<'_>,
    with_alpn: &'a Arc<ServerConfig>,
    without_alpn: &'a Arc<ServerConfig>,
) -> &'a Arc<ServerConfig> {
    let offers = hello.alpn().into_iter().flatten();
    if alpn_for(offers, &with_alpn.alpn_protocols).is_empty() { without_alpn } else { with_alpn }
}

/// The protocols to configure for one client: all that the server supports when one of them was offered (rustls then
/// picks the server's first choice), none otherwise, so that the handshake goes on without ALPN.
pub fn alpn_for<'a>(
    client_offers: impl IntoIterator<Item = &'a [u8]>,
    server_supports: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let common = client_offers.into_iter().any(|offer| server_supports.iter().any(|ours| ours == offer));
    if common { server_supports.to_vec() } else { Vec::new() }
}

/// The peer of a finished handshake whose configuration came from this module.
///
/// Give it `peer_certificates()` of that connection and nothing else: the chain was verified in the handshake and is
/// not verified again here. `None` when the client showed no certificate ([`ClientCertificate::Optional`]).
pub fn peer(certificates: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
    let chain = certificates?;
    Some(Peer::from_verified(svid::check_leaf(chain.first()?).ok()?, chain))
}

/// The reason why the verifier refused the other end's certificate, when that is what ended the handshake.
pub fn refusal(error: &Error) -> Option<&Refusal> {
    match error {
        Error::NoCertificatesPresented => Some(&Refusal::NoCertificate),
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => cause.downcast_ref(),
        _ => None,
    }
}

/// [`refusal`] for the errors that tokio-rustls returns.
pub fn refusal_in(error: &std::io::Error) -> Option<&Refusal> {
    refusal(error.get_ref()?.downcast_ref::<Error>()?)
}

/// One verifier for both directions.
#[derive(Debug)]
struct Verifier {
    trust: Arc<TrustBundles>,
    accept: Accept,
    mandatory: bool,
}

impl Verifier {
    fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: bool,
        now: UnixTime,
    ) -> Result<(), Error> {
        let chain: Vec<CertificateDer<'_>> = std::iter::once(end_entity)
            .chain(intermediates)
            // Borrows the bytes; one more than the limit is enough to be refused for the length.
            .take(verify::MAX_CHAIN + 1)
            .map(|certificate| CertificateDer::from(certificate.as_ref()))
            .collect();
        verify::verify(&chain, &self.trust, &self.accept, server, now).map(|_| ()).map_err(|refusal| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal))))
        })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates, true, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider_ref().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider_ref().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider_ref().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Empty: hints would tell every stranger whom we trust, and SPIFFE clients have one certificate anyway.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates, false, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &provider_ref().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &provider_ref().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider_ref().signature_verification_algorithms.supported_schemes()
    }
}
