//! Real handshakes in memory, both directions: what passes, what is refused and why, and that nothing can be resumed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod mint;

use mint::*;
use postern_identity::{
    Accept, Refusal, TrustBundles,
    tls::{self, ClientCertificate},
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, ProtocolVersion,
    ServerConfig, ServerConnection, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    server::Acceptor,
    sign::CertifiedKey,
    time_provider::TimeProvider,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;

/// The clock of the certificates, not of the machine.
#[derive(Debug)]
struct Clock;

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(now())
    }
}

struct World {
    root: Authority,
    trust: Arc<TrustBundles>,
}

impl World {
    fn new() -> Self {
        let root = root(TD, |_| {});
        let trust = Arc::new(root.trust(TD));
        Self { root, trust }
    }

    fn key(&self, id: &str) -> Arc<CertifiedKey> {
        certified(&self.root.leaf(id, |_| {}))
    }

    fn server(&self, key: Arc<CertifiedKey>, client: ClientCertificate, alpn: &[&[u8]]) -> ServerConfig {
        let accept = Accept::trust_domain(TD.parse().unwrap());
        let mut config = tls::server_config(key, self.trust.clone(), accept, client, alpn).unwrap();
        config.time_provider = Arc::new(Clock);
        config
    }

    fn client(&self, key: Option<Arc<CertifiedKey>>, expected: &str, alpn: &[&[u8]]) -> ClientConfig {
        let accept = Accept::only(expected.parse().unwrap());
        let mut config = tls::client_config(key, self.trust.clone(), accept, alpn).unwrap();
        config.time_provider = Arc::new(Clock);
        config
    }
}

fn certified(leaf: &Leaf) -> Arc<CertifiedKey> {
    tls::certified_key(vec![leaf.der.clone()], leaf.key()).unwrap()
}

struct Pair {
    client: ClientConnection,
    server: ServerConnection,
    /// Bytes from server to client, for looking at the wire.
    wire: Vec<u8>,
}

/// Which end gave up, and why.
#[derive(Debug)]
enum Failure {
    Client(Error),
    Server(Error),
}

impl Pair {
    fn new(client: ClientConfig, server: ServerConfig) -> Self {
        let name = ServerName::try_from("payments-api.payments.svc.cluster.local").unwrap();
        Self {
            client: ClientConnection::new(Arc::new(client), name).unwrap(),
            server: ServerConnection::new(Arc::new(server)).unwrap(),
            wire: Vec::new(),
        }
    }

    /// Carries bytes until both are done, or one refuses.
    fn shake(&mut self) -> Result<(), Failure> {
        for _ in 0..10 {
            let mut bytes = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut bytes).unwrap();
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                self.server.read_tls(&mut rest).unwrap();
                self.server.process_new_packets().map_err(Failure::Server)?;
            }
            let mut bytes = Vec::new();
            while self.server.wants_write() {
                self.server.write_tls(&mut bytes).unwrap();
            }
            self.wire.extend_from_slice(&bytes);
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                self.client.read_tls(&mut rest).unwrap();
                self.client.process_new_packets().map_err(Failure::Client)?;
            }
        }
        assert!(!self.client.is_handshaking() && !self.server.is_handshaking(), "the handshake stands still");
        Ok(())
    }
}

#[test]
fn two_workloads_meet_and_know_each_other() {
    let world = World::new();
    let mut pair = Pair::new(
        world.client(Some(world.key(CART)), API, &[b"istio-h2", b"istio", b"h2"]),
        world.server(world.key(API), ClientCertificate::Required, &[b"h2", b"http/1.1"]),
    );
    pair.shake().unwrap();
    assert_eq!(tls::peer(pair.server.peer_certificates()).unwrap().id().as_str(), CART);
    assert_eq!(tls::peer(pair.client.peer_certificates()).unwrap().id().as_str(), API);
    assert_eq!(pair.client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(pair.client.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519MLKEM768);
    assert_eq!(pair.server.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(pair.server.server_name(), Some("payments-api.payments.svc.cluster.local"));
}

#[test]
fn peers_without_post_quantum_groups_are_served_by_x25519_and_p256() {
    let world = World::new();
    for group in [rustls::crypto::aws_lc_rs::kx_group::X25519, rustls::crypto::aws_lc_rs::kx_group::SECP256R1]
    {
        let provider =
            rustls::crypto::CryptoProvider { kx_groups: vec![group], ..(*tls::provider()).clone() };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(world.root.der.clone()).unwrap();
        let server = world.server(world.key(API), ClientCertificate::Optional, &[]);
        // An ordinary client checks names, which a SPIFFE certificate does not have; the groups were agreed on before that.
        let client = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut pair = Pair::new(client, server);
        assert!(matches!(pair.shake(), Err(Failure::Client(Error::InvalidCertificate(_)))));
        assert_eq!(pair.server.negotiated_key_exchange_group().unwrap().name(), group.name());
    }
}

#[test]
fn tls_1_2_is_not_spoken() {
    let world = World::new();
    let mut pair = Pair::new(
        ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS12])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth(),
        world.server(world.key(API), ClientCertificate::Required, &[]),
    );
    assert!(matches!(pair.shake(), Err(Failure::Server(Error::PeerIncompatible(_)))));
}

/// The two mesh configurations, each side with these versions; what was agreed on.
fn check_versions(client: tls::Versions, server: tls::Versions, expected: Option<ProtocolVersion>) {
    let world = World::new();
    let accept = || Accept::trust_domain(TD.parse().unwrap());
    let trust = || world.trust.clone();
    let mut client = tls::client_config_for(client, Some(world.key(CART)), trust(), accept(), &[]).unwrap();
    let required = ClientCertificate::Required;
    let mut server =
        tls::server_config_for(server, world.key(API), trust(), accept(), required, &[]).unwrap();
    (client.time_provider, server.time_provider) = (Arc::new(Clock), Arc::new(Clock));
    // A client that would resume if it could.
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    assert!(client.require_ems && server.require_ems, "RFC 7627");
    for _ in 0..2 {
        let mut pair = Pair::new(client.clone(), server.clone());
        match (pair.shake(), expected) {
            (Ok(()), Some(version)) => {
                assert_eq!(pair.server.protocol_version(), Some(version));
                assert_eq!(tls::peer(pair.server.peer_certificates()).unwrap().id().as_str(), CART);
                assert_eq!(tls::peer(pair.client.peer_certificates()).unwrap().id().as_str(), API);
                assert!(matches!(pair.server.handshake_kind(), Some(HandshakeKind::Full)), "never resumed");
            }
            (Err(Failure::Server(Error::PeerIncompatible(_))), None) => {}
            (result, expected) => panic!("{result:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn tls_1_2_is_spoken_where_both_say_so_and_1_3_is_preferred_even_there() {
    use tls::Versions::{Tls12And13, Tls13};
    for (client, server) in
        [(Tls13, Tls13), (Tls13, Tls12And13), (Tls12And13, Tls13), (Tls12And13, Tls12And13)]
    {
        check_versions(client, server, Some(ProtocolVersion::TLSv1_3));
    }
    assert_eq!(tls::Versions::default(), Tls13);
}

/// A client that does not care whom it talks to.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A client of TLS 1.2 only, with this chain and this key, against a server that allows 1.2.
fn check_tls_1_2(world: &World, key: Option<Arc<CertifiedKey>>, expected: Result<(), Option<&str>>) {
    let accept = Accept::trust_domain(TD.parse().unwrap());
    let required = ClientCertificate::Required;
    let versions = tls::Versions::Tls12And13;
    let mut server =
        tls::server_config_for(versions, world.key(API), world.trust.clone(), accept, required, &[]).unwrap();
    let builder = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut client = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    (client.time_provider, server.time_provider) = (Arc::new(Clock), Arc::new(Clock));
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    for _ in 0..2 {
        let mut pair = Pair::new(client.clone(), server.clone());
        match (pair.shake(), expected) {
            (Ok(()), Ok(())) => {
                assert_eq!(pair.server.protocol_version(), Some(ProtocolVersion::TLSv1_2));
                assert!(matches!(pair.server.handshake_kind(), Some(HandshakeKind::Full)), "never resumed");
                assert!(tls::peer(pair.server.peer_certificates()).is_some());
            }
            (Err(Failure::Server(error)), Err(code)) => {
                assert_eq!(tls::refusal(&error).map(Refusal::code), code, "{error}")
            }
            (result, expected) => panic!("{result:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn tls_1_2_where_it_is_allowed_holds_to_every_rule_and_checks_who_owns_the_key() {
    let world = World::new();
    check_tls_1_2(&world, Some(world.key(CART)), Ok(()));
    check_tls_1_2(&world, None, Err(Some("no-certificate")));
    check_tls_1_2(&world, Some(certified(&self_signed(CART))), Err(Some("unknown-issuer")));
    // Somebody else's certificate, shown without its key: the signature of the handshake gives it away.
    let (stolen, own) = (world.root.leaf(CART, |_| {}), world.root.leaf(API, |_| {}));
    let signing = tls::certified_key(vec![own.der.clone()], own.key()).unwrap().key.clone();
    check_tls_1_2(&world, Some(Arc::new(CertifiedKey::new(vec![stolen.der], signing))), Err(None));
}

/// A server of TLS 1.2 only, with this certificate and tickets to give, against our client that allows 1.2.
fn check_server_of_tls_1_2(world: &World, key: Arc<CertifiedKey>, expected: Result<(), Option<&str>>) {
    let accept = Accept::only(API.parse().unwrap());
    let versions = tls::Versions::Tls12And13;
    let mut client =
        tls::client_config_for(versions, Some(world.key(CART)), world.trust.clone(), accept, &[]).unwrap();
    let mut server = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(key)));
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    (client.time_provider, server.time_provider) = (Arc::new(Clock), Arc::new(Clock));
    for _ in 0..2 {
        let mut pair = Pair::new(client.clone(), server.clone());
        match (pair.shake(), expected) {
            (Ok(()), Ok(())) => {
                assert_eq!(pair.client.protocol_version(), Some(ProtocolVersion::TLSv1_2));
                assert!(matches!(pair.client.handshake_kind(), Some(HandshakeKind::Full)), "never resumed");
            }
            (Err(Failure::Client(error)), Err(code)) => {
                assert_eq!(tls::refusal(&error).map(Refusal::code), code, "{error}")
            }
            (result, expected) => panic!("{result:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn our_client_holds_a_server_of_tls_1_2_to_every_rule_too() {
    let world = World::new();
    check_server_of_tls_1_2(&world, world.key(API), Ok(()));
    check_server_of_tls_1_2(&world, world.key(CART), Err(Some("not-accepted")));
    check_server_of_tls_1_2(&world, certified(&self_signed(API)), Err(Some("unknown-issuer")));
    let (stolen, own) = (world.root.leaf(API, |_| {}), world.root.leaf(CART, |_| {}));
    let signing = tls::certified_key(vec![own.der.clone()], own.key()).unwrap().key.clone();
    check_server_of_tls_1_2(&world, Arc::new(CertifiedKey::new(vec![stolen.der], signing)), Err(None));
}

/// A client with this certificate against a good server: the code of the server's refusal.
fn check_client(world: &World, key: Option<Arc<CertifiedKey>>, expected: Result<(), &str>) {
    let mut pair = Pair::new(
        world.client(key, API, &[]),
        world.server(world.key(API), ClientCertificate::Required, &[]),
    );
    match (pair.shake(), expected) {
        (Ok(()), Ok(())) => assert!(tls::peer(pair.server.peer_certificates()).is_some()),
        (Err(Failure::Server(error)), Err(code)) => {
            assert_eq!(tls::refusal(&error).map(Refusal::code), Some(code), "{error}");
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            assert_eq!(tls::refusal_in(&error).map(Refusal::code), Some(code), "{error}");
        }
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

/// A server with this certificate against a good client: the code of the client's refusal.
fn check_server(world: &World, key: Arc<CertifiedKey>, expected: Result<(), &str>) {
    let mut pair = Pair::new(
        world.client(Some(world.key(CART)), API, &[]),
        world.server(key, ClientCertificate::Required, &[]),
    );
    match (pair.shake(), expected) {
        (Ok(()), Ok(())) => {}
        (Err(Failure::Client(error)), Err(code)) => {
            assert_eq!(tls::refusal(&error).map(Refusal::code), Some(code), "{error}");
            assert!(
                tls::peer(pair.server.peer_certificates()).is_none(),
                "the server never saw our certificate"
            );
        }
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

#[test]
fn bad_certificates_are_refused_in_both_directions_and_the_reason_is_kept() {
    let world = World::new();
    let foreign = root("other.example", |_| {});
    let table: Vec<(Arc<CertifiedKey>, &str)> = vec![
        (certified(&self_signed(API)), "unknown-issuer"),
        (certified(&foreign.leaf(API, |_| {})), "unknown-issuer"),
        (certified(&foreign.leaf("spiffe://other.example/a", |_| {})), "unknown-trust-domain"),
        (certified(&world.root.leaf(API, |p| p.not_after = at(NOW - 1))), "expired"),
        (certified(&world.root.leaf(API, |p| p.not_before = at(NOW + 1))), "not-yet-valid"),
        (certified(&world.root.leaf(API, |p| p.subject_alt_names.push(uri(CART)))), "several-uri-sans"),
        (
            certified(&world.root.leaf(API, |p| p.key_usages.push(rcgen::KeyUsagePurpose::KeyCertSign))),
            "leaf-can-sign-certificates",
        ),
    ];
    for (key, code) in table {
        check_client(&world, Some(key.clone()), Err(code));
        check_server(&world, key, Err(code));
    }
    check_client(&world, Some(world.key(CART)), Ok(()));
    check_client(&world, None, Err("no-certificate"));
    check_server(&world, world.key(API), Ok(()));
    check_server(&world, world.key(CART), Err("not-accepted"));
}

#[test]
fn a_client_without_certificate_passes_only_where_it_is_optional_and_then_has_no_peer() {
    let world = World::new();
    let optional = || world.server(world.key(API), ClientCertificate::Optional, &[]);
    let mut pair = Pair::new(world.client(None, API, &[]), optional());
    pair.shake().unwrap();
    assert_eq!(tls::peer(pair.server.peer_certificates()), None);
    let mut pair = Pair::new(world.client(Some(world.key(CART)), API, &[]), optional());
    pair.shake().unwrap();
    assert!(tls::peer(pair.server.peer_certificates()).is_some());
    // Optional does not mean that a bad one is overlooked.
    let mut pair = Pair::new(world.client(Some(certified(&self_signed(CART))), API, &[]), optional());
    assert!(matches!(pair.shake(), Err(Failure::Server(_))));
}

#[test]
fn nothing_is_resumed_and_no_ticket_is_sent_even_to_a_client_that_wants_one() {
    let world = World::new();
    let server = world.server(world.key(API), ClientCertificate::Required, &[]);
    assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0));
    assert!(!server.session_storage.can_cache() && !server.ticketer.enabled());
    let mut client = world.client(Some(world.key(CART)), API, &[]);
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    client.enable_early_data = true;
    for _ in 0..3 {
        let mut pair = Pair::new(client.clone(), server.clone());
        assert!(pair.client.early_data().is_none());
        pair.shake().unwrap();
        assert_eq!(pair.client.tls13_tickets_received(), 0);
        assert!(matches!(pair.server.handshake_kind(), Some(HandshakeKind::Full)));
    }
}

#[test]
fn our_client_does_not_resume_with_a_server_that_offers_it() {
    let world = World::new();
    let mut server = world.server(world.key(API), ClientCertificate::Required, &[]);
    server.send_tls13_tickets = 2;
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    let client = world.client(Some(world.key(CART)), API, &[]);
    for _ in 0..2 {
        let mut pair = Pair::new(client.clone(), server.clone());
        pair.shake().unwrap();
        assert!(matches!(pair.client.handshake_kind(), Some(HandshakeKind::Full)));
    }
}

#[test]
fn no_trust_anchor_is_named_to_strangers() {
    let world = World::new();
    let mut pair = Pair::new(
        world.client(Some(world.key(CART)), API, &[]),
        world.server(world.key(API), ClientCertificate::Required, &[]),
    );
    pair.shake().unwrap();
    assert!(!pair.wire.windows(TD.len()).any(|window| window == TD.as_bytes()), "in clear, at least");
}

/// The acceptor as the proxy uses it: look at the hello, then choose.
fn check_alpn(offers: &[&[u8]], expected: Option<&[u8]>) {
    let world = World::new();
    let with =
        Arc::new(world.server(world.key(API), ClientCertificate::Required, &[b"istio-peer-exchange", b"h2"]));
    let without = Arc::new(tls::without_alpn(&with));
    let name = ServerName::try_from("api").unwrap();
    let client = world.client(Some(world.key(CART)), API, offers);
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let (mut hello, mut acceptor) = (Vec::new(), Acceptor::default());
    client.write_tls(&mut hello).unwrap();
    acceptor.read_tls(&mut &hello[..]).unwrap();
    let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap().unwrap();
    let config = tls::config_for(&accepted.client_hello(), &with, &without).clone();
    let server = accepted.into_connection(config).map_err(|(error, _)| error).unwrap();
    let mut pair = Pair { client, server, wire: Vec::new() };
    pair.shake().unwrap();
    assert_eq!(pair.server.alpn_protocol(), expected, "{offers:?}");
    assert_eq!(pair.client.alpn_protocol(), expected, "{offers:?}");
    assert!(
        tls::peer(pair.server.peer_certificates()).is_some(),
        "whoever has no common protocol is verified too"
    );
}

#[test]
fn a_client_without_a_common_protocol_is_accepted_without_alpn() {
    check_alpn(&[], None);
    check_alpn(&[b"istio"], None);
    check_alpn(&[b"istio", b"something"], None);
    check_alpn(&[b"istio", b"h2"], Some(b"h2"));
    check_alpn(&[b"h2", b"istio-peer-exchange", b"istio"], Some(b"istio-peer-exchange"));
}

#[test]
fn a_key_of_another_certificate_is_no_identity() {
    let world = World::new();
    let (a, b) = (world.root.leaf(CART, |_| {}), world.root.leaf(API, |_| {}));
    assert!(tls::certified_key(vec![a.der.clone()], a.key()).is_ok());
    assert_eq!(
        tls::certified_key(vec![a.der], b.key()).unwrap_err(),
        "the private key does not belong to the certificate"
    );
    assert_eq!(tls::certified_key(vec![], b.key()).unwrap_err(), "the certificate chain is empty");
}
