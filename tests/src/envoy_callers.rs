//! The callers of the grid, as Envoy sees them: certificates for all of them, and their requests byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use crate::{
    envoy::{CASE, Reply, Wire, at, connect},
    envoy_grid::{Ask, PEERS},
};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

/// Keeps one connection for each caller, server name and pair of addresses.
pub struct Caller<'a> {
    authority: &'a Authority,
    ports: &'a [u16],
    wires: HashMap<Ends, Wire<Box<dyn Stream>>>,
}

/// Caller, server name, source address, destination.
type Ends = (Option<&'static str>, Option<&'static str>, &'static str, SocketAddr);

trait Stream: std::io::Read + std::io::Write {}
impl<T: std::io::Read + std::io::Write> Stream for T {}

impl<'a> Caller<'a> {
    /// `ports` are those that destinations count by.
    pub fn new(authority: &'a Authority, ports: &'a [u16]) -> Self {
        Self { authority, ports, wires: HashMap::new() }
    }

    /// What Envoy answers when policies of this number are asked.
    pub fn ask(&mut self, case: usize, ask: &Ask) -> Reply {
        let (address, port) = ask.destination();
        let to = at(address, self.ports[port]);
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {}\r\n{CASE}: {case}\r\n", ask.method(), ask.path(), ask.host());
        for (name, values) in [("x-forwarded-for", ask.forwarded_for()), ("x-tag", ask.tags())] {
            for value in values {
                head += &format!("{name}: {value}\r\n");
            }
        }
        head += "content-length: 0\r\n\r\n";
        let wire = self.wires.entry((ask.peer(), ask.sni(), ask.source(), to)).or_insert_with(|| {
            let stream = connect(ask.source().parse().unwrap(), to).unwrap();
            Wire::new(match (ask.peer(), ask.sni()) {
                (Some(peer), Some(name)) => Box::new(self.authority.secure(stream, peer, name)),
                _ => Box::new(stream) as Box<dyn Stream>,
            })
        });
        let reply = wire.exchange(head.as_bytes()).unwrap_or_else(|e| panic!("{e}: {head:?}"));
        assert!(!reply.closed, "the connection goes on after {head:?}");
        reply
    }
}

/// Certificates for all callers and for Envoy.
pub struct Authority {
    folder: tempfile::TempDir,
    clients: HashMap<&'static str, Arc<rustls::ClientConfig>>,
}

impl Authority {
    /// One of its own, and a certificate for each caller of the grid.
    pub fn generate() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf = |uri: &str| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let (server, server_key) = leaf("spiffe://cluster.local/ns/payments/sa/payments-api");
        for (name, text) in [
            ("root.pem", root.pem()),
            ("server.pem", server.pem()),
            ("server-key.pem", server_key.serialize_pem()),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let client = |peer: &'static str| {
            let (certificate, key) = leaf(peer);
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            let config = rustls::ClientConfig::builder_with_provider(postern_identity::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyServer))
                .with_client_auth_cert(vec![certificate.der().clone()], key)
                .unwrap();
            (peer, Arc::new(config))
        };
        let clients = PEERS.into_iter().filter(|peer| !peer.is_empty()).map(client).collect();
        Self { folder, clients }
    }

    /// What makes a listener of Envoy one that takes these callers.
    pub fn transport_socket(&self) -> Value {
        let file = |name: &str| json!({"filename": self.folder.path().join(name)});
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": true,
                "common_tls_context": {
                    "tls_certificates": [{"certificate_chain": file("server.pem"), "private_key": file("server-key.pem")}],
                    "validation_context": {"trusted_ca": file("root.pem")},
                },
            },
        })
    }

    fn secure(&self, stream: TcpStream, peer: &str, name: &'static str) -> impl Stream + use<> {
        let client = rustls::ClientConnection::new(Arc::clone(&self.clients[peer]), name.try_into().unwrap());
        rustls::StreamOwned::new(client.unwrap(), stream)
    }
}

/// Who the server is does not matter here.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        postern_identity::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
