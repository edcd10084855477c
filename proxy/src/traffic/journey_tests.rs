//! Both journeys on real sockets: app <- inbound <- outbound <- client, with certificates made here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
mod endings;
mod grpc;
mod lasting;
mod limits;
mod slow;
mod trust;

use super::{Settings, Shared, governor::Governor};
use crate::{
    bootstrap::resources::Resources,
    control::{
        Destinations,
        destinations::{Bounds, Wish},
    },
    drain, inbound,
    net::{Arrival, Listener},
    outbound,
    state::{Credentials, Destination, Endpoint, Inbound, ServiceTarget, Store},
    telemetry::Telemetry,
};
use postern_config::{
    Snapshot,
    documents::{
        AuthorizationPolicy, MeshConfig, Metadata, PeerAuthentication,
        authorization_policy::{Action, From, Operation, Rule, Source, To},
        destination_rule::Traffic,
        peer_authentication::MtlsMode,
    },
    snapshot::{DeclaredPort, InboundSpec, Protocol, Workload},
};
use postern_identity::{Bundle, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const PAYMENTS: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";
const OTHER: &str = "spiffe://cluster.local/ns/payments/sa/other";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    trust: Arc<TrustBundles>,
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "cluster.local");
        params.subject_alt_names = vec![uri("spiffe://cluster.local")];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let anchors = vec![params.self_signed(&key).unwrap().der().clone()];
        let bundle = Bundle::new("cluster.local".parse().unwrap(), anchors);
        Self { issuer: Issuer::new(params, key), trust: Arc::new([bundle].into_iter().collect()) }
    }

    fn credentials(&self, id: &str) -> Credentials {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri(id)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(60);
        params.not_after = time::OffsetDateTime::now_utc() + Duration::from_secs(3600);
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let der = rustls_pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let private_key = key.serialize_der().into();
        let key = postern_identity::tls::certified_key(chain, der).unwrap();
        Credentials::prove(key, private_key, self.trust.clone()).unwrap()
    }
}

/// An app that answers every request with what it got; counts connections.
struct App {
    address: SocketAddr,
    seen: Rc<RefCell<Vec<String>>>,
}

async fn app() -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Rc::new(RefCell::new(Vec::new()));
    let noted = seen.clone();
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let noted = noted.clone();
            spawn_local(async move {
                let mut read = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let count = stream.read(&mut buffer).await.unwrap_or(0);
                    if count == 0 {
                        return;
                    }
                    read.extend_from_slice(&buffer[..count]);
                    let text = String::from_utf8_lossy(&read).into_owned();
                    let Some(end) = text.find("\r\n\r\n") else { continue };
                    let answer = if text.contains("upgrade: websocket") {
                        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello".into()
                    } else {
                        let head = &text[..end];
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())
                    };
                    noted.borrow_mut().push(text);
                    read.clear();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    App { address, seen }
}

fn spec(port: u16, mode: MtlsMode, protocol: Protocol, policies: Vec<AuthorizationPolicy>) -> InboundSpec {
    let metadata = Metadata { name: "mode".into(), namespace: "payments".into(), ..Metadata::default() };
    InboundSpec {
        workload: Workload {
            namespace: "payments".into(),
            name: "payments-api".into(),
            service_account: "payments-api".into(),
            ..Workload::default()
        },
        mesh: MeshConfig::default(),
        ports: vec![DeclaredPort { port, protocol }],
        peer_authentications: vec![PeerAuthentication { metadata, mode, ..PeerAuthentication::default() }],
        authorization_policies: policies,
        telemetries: vec![],
        upgrades: Default::default(),
    }
}

/// Only `principal` may POST to /v1/charges.
fn allow(principal: &str) -> AuthorizationPolicy {
    let source = Source { principals: vec![principal.into()], ..Source::default() };
    let operation =
        Operation { methods: vec!["POST".into()], paths: vec!["/v1/charges".into()], ..Operation::default() };
    AuthorizationPolicy {
        metadata: Metadata { name: "charges".into(), namespace: "payments".into(), ..Metadata::default() },
        action: Action::Allow,
        rules: vec![Rule { from: vec![From { source }], to: vec![To { operation }], when: vec![] }],
        ..AuthorizationPolicy::default()
    }
}

fn shared(
    credentials: Credentials,
    spec: InboundSpec,
    to: Option<Destination>,
) -> (Arc<Shared>, drain::Trigger) {
    let telemetry = Telemetry::silent();
    let store = Arc::new(Store::default());
    store.publish_credentials(credentials).unwrap();
    store.publish_inbound(Inbound { version: "1".into(), snapshot: Snapshot::compile(spec).unwrap() });
    let destinations = Destinations::new(Bounds::default(), telemetry.clone());
    if let Some(to) = to {
        destinations.connected();
        let destinations = destinations.clone();
        spawn_local(async move {
            loop {
                if let Wish::Subscribe(address) = destinations.wish().await {
                    destinations.apply(&address, to.clone());
                }
            }
        });
    }
    let (trigger, drain) = drain::channel();
    let governor = Governor::new(Resources::default());
    let settings = Settings::default();
    (Arc::new(Shared { store, destinations, telemetry, settings, governor, drain }), trigger)
}

/// Both sidecars and the app; `expected` is whom the caller's side expects at the other end.
struct Pair {
    app: App,
    inbound: SocketAddr,
    outbound: SocketAddr,
    server: Arc<Shared>,
    client: Arc<Shared>,
    _triggers: [drain::Trigger; 2],
}

async fn pair(
    protocol: Protocol,
    mode: MtlsMode,
    policies: Vec<AuthorizationPolicy>,
    expected: &str,
) -> Pair {
    let app = app().await;
    pair_to(app, protocol, mode, policies, expected).await
}

async fn pair_to(
    app: App,
    protocol: Protocol,
    mode: MtlsMode,
    policies: Vec<AuthorizationPolicy>,
    expected: &str,
) -> Pair {
    let authority = Authority::new();
    let both = [authority.credentials(CHECKOUT), authority.credentials(PAYMENTS)];
    pair_with(app, protocol, mode, policies, expected, both).await
}

/// With the credentials of the caller's side and of the app's side.
async fn pair_with(
    app: App,
    protocol: Protocol,
    mode: MtlsMode,
    policies: Vec<AuthorizationPolicy>,
    expected: &str,
    [caller, called]: [Credentials; 2],
) -> Pair {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let port = app.address.port();
    let listener = Listener::bind(any, Arrival::Fixed(app.address)).unwrap();
    let inbound = listener.local_addr().unwrap();
    let (server, first) = shared(called, spec(port, mode, protocol, policies), None);
    spawn_local(inbound::serve(listener, server.clone()));

    let (outbound, client, second) = caller_of(inbound, port, protocol, expected, caller);
    Pair { app, inbound, outbound, server, client, _triggers: [first, second] }
}

/// The caller's side alone, whose one service is at `dial`.
fn caller_of(
    dial: SocketAddr,
    port: u16,
    protocol: Protocol,
    expected: &str,
    credentials: Credentials,
) -> (SocketAddr, Arc<Shared>, drain::Trigger) {
    let endpoint = Endpoint {
        workload: "payments/payments-api-0".into(),
        dial,
        port,
        identity: Some(expected.parse().unwrap()),
        protocol,
    };
    caller_to(endpoint, Traffic::default(), credentials)
}

/// The same, whose one service has this endpoint and is treated like this.
fn caller_to(
    endpoint: Endpoint,
    traffic: Traffic,
    credentials: Credentials,
) -> (SocketAddr, Arc<Shared>, drain::Trigger) {
    let service = ServiceTarget {
        namespace: "payments".into(),
        name: "payments-api".into(),
        host: "payments-api.payments.svc.cluster.local".into(),
        port: 80,
        protocol: endpoint.protocol,
        endpoints: vec![endpoint],
        traffic: traffic.into(),
        ..ServiceTarget::default()
    };
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(any, Arrival::Fixed("10.96.0.1:80".parse().unwrap())).unwrap();
    let outbound = listener.local_addr().unwrap();
    let own = spec(1, MtlsMode::Strict, Protocol::Auto, vec![]);
    let (client, trigger) = shared(credentials, own, Some(Destination::Service(service)));
    spawn_local(outbound::serve(listener, client.clone()));
    (outbound, client, trigger)
}

async fn talk(address: SocketAddr, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
        .await
        .expect("an end in time")?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// A client's end of an HTTP/2 connection.
async fn http2_client<B>(address: SocketAddr) -> hyper::client::conn::http2::SendRequest<B>
where
    B: hyper::body::Body<Data = bytes::Bytes, Error = std::convert::Infallible> + Unpin + 'static,
{
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (sender, connection) =
        hyper::client::conn::http2::handshake(crate::http::LocalExecutor, io).await.unwrap();
    spawn_local(connection);
    sender
}

fn request(method: &str, path: &str, more: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: payments-api\r\nConnection: close\r\n{more}\r\n")
}

const CLIENT: &str = "cluster.local/ns/checkout/sa/checkout-api";

#[tokio::test]
async fn an_allowed_call_arrives_with_the_verified_identity_and_its_denied_twin_does_not() {
    LocalSet::new()
        .run_until(async {
            for protocol in [Protocol::Http, Protocol::Auto] {
                let pair = pair(protocol, MtlsMode::Strict, vec![allow(CLIENT)], PAYMENTS).await;
                let forged = "X_Forwarded_Client_Cert: forged\r\nX-Forwarded-Client-Cert: forged\r\n";
                let answer =
                    talk(pair.outbound, &request("POST", "/v1/../v1/charges", forged)).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
                let seen = pair.app.seen.borrow()[0].to_ascii_lowercase();
                assert!(seen.starts_with("post /v1/charges http/1.1"), "policy and app see one path: {seen}");
                assert!(seen.contains(&format!("x-forwarded-client-cert: by={PAYMENTS};hash=")), "{seen}");
                assert!(seen.contains(&format!(";subject=\"\";uri={CHECKOUT}")), "{seen}");
                assert!(
                    !seen.contains("forged")
                        && seen.contains("x-request-id: ")
                        && !seen.contains("traceparent: "),
                    "no spans are sent, so no trace is begun: {seen}"
                );

                let answer = talk(pair.outbound, &request("GET", "/v1/charges", "")).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
                assert!(
                    answer.contains("RBAC: access denied") && answer.contains("policy-denied"),
                    "{answer}"
                );
                assert_eq!(pair.app.seen.borrow().len(), 1, "the app received nothing of the denied call");
            }
        })
        .await;
}

#[tokio::test]
async fn plaintext_is_reset_by_strict_and_served_by_permissive_without_identity() {
    LocalSet::new()
        .run_until(async {
            let strict = pair(Protocol::Http, MtlsMode::Strict, vec![], PAYMENTS).await;
            let refused = talk(strict.inbound, &request("GET", "/", "")).await.unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
            assert!(strict.app.seen.borrow().is_empty());
            for (mode, protocol) in
                [(MtlsMode::Permissive, Protocol::Http), (MtlsMode::Disable, Protocol::Auto)]
            {
                let open = pair(protocol, mode, vec![], PAYMENTS).await;
                let answer = talk(open.inbound, &request("GET", "/", "X-Forwarded-Client-Cert: forged\r\n"))
                    .await
                    .unwrap();
                assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
                assert!(!open.app.seen.borrow()[0].to_ascii_lowercase().contains("client-cert"));
            }
        })
        .await;
}

#[tokio::test]
async fn a_request_is_not_sent_to_the_wrong_identity() {
    LocalSet::new()
        .run_until(async {
            let pair = pair(Protocol::Http, MtlsMode::Strict, vec![], OTHER).await;
            let answer = talk(pair.outbound, &request("GET", "/", "")).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("upstream-refused"), "{answer}");
            assert!(pair.app.seen.borrow().is_empty());
        })
        .await;
}

#[tokio::test]
async fn a_request_with_two_readings_is_refused_and_the_connection_closed() {
    LocalSet::new()
        .run_until(async {
            let pair = pair(Protocol::Http, MtlsMode::Disable, vec![], PAYMENTS).await;
            for bad in [
                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                "GET / HTTP/1.1\r\n\r\n",
                "GET / HTTP/1.1\nHost: a\r\n\r\n",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
            ] {
                let answer = talk(pair.inbound, bad).await.unwrap_or_else(|error| error.to_string());
                assert!(answer.starts_with("HTTP/1.1 400"), "{bad:?}: {answer}");
                assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
            }
            assert!(pair.app.seen.borrow().is_empty());
            let answer = talk(pair.inbound, "CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        })
        .await;
}

#[tokio::test]
async fn requests_share_one_connection_through_both_sidecars() {
    LocalSet::new()
        .run_until(async {
            let pair = pair(Protocol::Http, MtlsMode::Strict, vec![], PAYMENTS).await;
            let one = "GET /a HTTP/1.1\r\nHost: a\r\n\r\n";
            let both = format!("{one}{}", request("GET", "/b", ""));
            let answer = talk(pair.outbound, &both).await.unwrap();
            assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
            assert_eq!(pair.app.seen.borrow().len(), 2);
        })
        .await;
}

#[tokio::test]
async fn a_websocket_becomes_a_tunnel_and_is_cut_when_policy_withdraws_it() {
    LocalSet::new()
        .run_until(async {
            let pair = pair(Protocol::Http, MtlsMode::Strict, vec![], PAYMENTS).await;
            let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
            let ask = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(ask.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"hello") {
                assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
            }
            assert!(read.starts_with(b"HTTP/1.1 101"));
            let port = pair.app.address.port();
            let stricter = spec(port, MtlsMode::Strict, Protocol::Http, vec![allow(CLIENT)]);
            pair.server.store.publish_inbound(Inbound {
                version: "2".into(),
                snapshot: Snapshot::compile(stricter).unwrap(),
            });
            let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut read))
                .await
                .expect("an end in time");
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        })
        .await;
}

#[tokio::test]
async fn tcp_passes_when_allowed_and_is_reset_when_denied_or_revoked() {
    LocalSet::new()
        .run_until(async {
            let pair = pair(Protocol::Tcp, MtlsMode::Strict, vec![], PAYMENTS).await;
            let mut stream = TcpStream::connect(pair.outbound).await.unwrap();
            stream.write_all(b"PING\r\n\r\n").await.unwrap();
            let mut read = Vec::new();
            while !read.ends_with(b"PING") {
                assert!(stream.read_buf(&mut read).await.unwrap() > 0);
            }
            // An ALLOW policy with HTTP rules only denies all TCP.
            let port = pair.app.address.port();
            let stricter = spec(port, MtlsMode::Strict, Protocol::Tcp, vec![allow(CLIENT)]);
            pair.server.store.publish_inbound(Inbound {
                version: "2".into(),
                snapshot: Snapshot::compile(stricter).unwrap(),
            });
            let ended = tokio::time::timeout(Duration::from_secs(20), stream.read_buf(&mut read))
                .await
                .expect("an end in time");
            assert!(ended.is_err(), "an open connection is reset when its right is withdrawn: {ended:?}");
            let refused = talk(pair.outbound, "PING\r\n\r\n").await;
            assert!(refused.is_err() || refused.as_ref().is_ok_and(String::is_empty), "{refused:?}");
            assert_eq!(pair.app.seen.borrow().len(), 1, "the app received nothing of the denied connection");
        })
        .await;
}

#[tokio::test]
async fn an_app_that_closes_idle_connections_fails_no_request_and_a_dead_one_is_a_503() {
    LocalSet::new()
        .run_until(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let app = App { address: listener.local_addr().unwrap(), seen: Rc::default() };
            let serving = spawn_local(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.read(&mut [0; 4096]).await;
                    // Without announcing it: the connection is pooled, and dead.
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                }
            });
            let pair = pair_to(app, Protocol::Http, MtlsMode::Strict, vec![], PAYMENTS).await;
            for _ in 0..20 {
                let answer = talk(pair.outbound, &request("GET", "/", "")).await.unwrap();
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            serving.abort();
            assert!(serving.await.unwrap_err().is_cancelled());
            let answer = talk(pair.outbound, &request("GET", "/", "")).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connect-failure"), "{answer}");
        })
        .await;
}
