//! Full mutual TLS handshakes: our sidecar's inbound port beside an Envoy, under the same load in the same minutes.
//!
//! Each has one worker and stands before the same app, with certificates of the same authority: P-256, TLS 1.3, a client
//! certificate is a must, nothing is resumed. Four clients in this process open a connection, close it and wait until the
//! other end has closed it, too, which it does when it has verified them; or ask once before that. What is counted is CPU
//! time of the server's process from the kernel's accounting, which waiting does not touch, and connections per second.
//! Rounds are short and interleaved; of two neighbours the ratio is taken, and of all ratios the median.
//!
//! The sidecar is this program started again with the flags of `postern-proxy`, which it then is; its control plane
//! stays in this process, so that what it does is not counted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use postern_benches::{
    beside::{self, App, Sidecar},
    budgets::{self, Measured, median},
    envoy,
    process::{cores, cpu, pin},
};
use postern_control_plane::ControlPlane;
use postern_identity::{Accept, tls};
use postern_proxy::state::Credentials;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, ProtocolVersion, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs::kx_group},
    sign::SingleCertAndKey,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::{Value, json};
use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

// As in the program that the sidecar's image ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROUNDS: usize = 11;
const CLIENTS: u32 = 4;
/// Connections of each client in a round.
const CONNECTIONS: u32 = 100;
/// Requests of a round on one connection that stays open.
const REQUESTS: u32 = 400;
const NAMESPACE: &str = "mesh";
const SERVER: &str = "app";
const CLIENT: &str = "caller";
const SERVER_ID: &str = "spiffe://cluster.local/ns/mesh/sa/app";

fn main() -> ExitCode {
    if let Some(code) = beside::run_if_sidecar() {
        return code;
    }
    let smoke = std::env::args().any(|argument| argument == "--smoke");
    budgets::refuse_debug_build(smoke);
    let Some(program) = envoy::program() else { return ExitCode::SUCCESS };
    let (rounds, share) = if smoke { (1, 10) } else { (ROUNDS, 1) };

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let app = App::start();
    let control = runtime.block_on(control_plane(&app));
    let [own, caller] =
        [SERVER, CLIENT].map(|pod| runtime.block_on(beside::identity(&control, NAMESPACE, pod)));
    // The servers have a core, clients and app another one: what wakes whom is the same for both.
    let (first, last) = cores();
    pin(first);
    let sidecar = Sidecar::start(&control, NAMESPACE, SERVER, app.address);
    let (envoy, address) = start_envoy(&program, &own, &control.trust_bundle_pem(), &app);
    pin(last);

    let servers = [(envoy.id(), address), (sidecar.id(), sidecar.inbound)];
    let mesh = Arc::new(mesh_client(&caller));
    servers.iter().for_each(|(_, address)| once(&mesh, *address, true));
    let mut subjects = Vec::new();
    for (name, group) in [("X25519", kx_group::X25519), ("X25519MLKEM768", kx_group::X25519MLKEM768)] {
        let client = Arc::new(client(&caller, group));
        subjects.push(Subject::new(name, "handshake", &client));
        subjects.push(Subject::new(name, "handshake and a request", &client));
        if group.name() == kx_group::X25519.name() {
            subjects.push(Subject::new("open", "request", &client));
        }
    }
    // The first round warms up and is not kept.
    for round in 0..=rounds {
        for subject in &mut subjects {
            let costs = servers.map(|server| subject.measure(server, &app, share));
            if round > 0 {
                subject.rounds.push(costs);
            }
        }
    }
    let measured = report(&subjects);
    if smoke { ExitCode::SUCCESS } else { budgets::judge(&["handshakes"], &measured) }
}

/// What is measured, and what was.
struct Subject {
    /// Of the key exchange; `open` is a connection that stays open.
    name: &'static str,
    what: &'static str,
    client: Arc<ClientConfig>,
    /// Envoy and sidecar.
    rounds: Vec<[Cost; 2]>,
}

struct Cost {
    /// CPU of the server for each.
    microseconds: f64,
    per_second: f64,
}

impl Subject {
    fn new(name: &'static str, what: &'static str, client: &Arc<ClientConfig>) -> Self {
        Self { name, what, client: Arc::clone(client), rounds: Vec::new() }
    }

    fn measure(&self, (process, address): (u32, SocketAddr), app: &App, share: u32) -> Cost {
        let (connections, requests) = (CONNECTIONS / share, REQUESTS / share);
        let (ask, served) = (self.what != "handshake", app.served());
        let mut open = (self.name == "open").then(|| envoy::Wire::new(open(&self.client, address)));
        // The connection is made before it is measured.
        open.iter_mut().for_each(|wire| assert_eq!(wire.exchange(HEAD).unwrap().status, 200));
        let (begin, before) = (Instant::now(), cpu(process));
        let count = match &mut open {
            Some(wire) => {
                (0..requests).for_each(|_| assert_eq!(wire.exchange(HEAD).unwrap().status, 200));
                requests
            }
            None => {
                std::thread::scope(|scope| {
                    for _ in 0..CLIENTS {
                        scope.spawn(|| (0..connections).for_each(|_| once(&self.client, address, ask)));
                    }
                });
                connections * CLIENTS
            }
        };
        let (took, spent) = (begin.elapsed().as_secs_f64(), (cpu(process) - before).as_secs_f64());
        let asked = if ask { count + u32::from(open.is_some()) } else { 0 };
        assert_eq!(app.served() - served, asked);
        Cost { microseconds: spent * 1e6 / f64::from(count), per_second: f64::from(count) / took }
    }
}

const HEAD: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// A connection, perhaps with a question and an answer, until both ends have closed it.
fn once(client: &Arc<ClientConfig>, address: SocketAddr, ask: bool) {
    let mut stream = open(client, address);
    if ask {
        let mut wire = envoy::Wire::new(stream);
        let reply = wire.exchange(HEAD).unwrap();
        assert_eq!((reply.status, reply.closed), (200, false));
        stream = wire.into_inner();
    } else {
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
    }
    let group = stream.conn.negotiated_key_exchange_group().map(|group| group.name());
    assert_eq!(group, client.crypto_provider().kx_groups.first().map(|group| group.name()));
    assert_eq!(stream.conn.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    stream.conn.send_close_notify();
    stream.conn.write_tls(&mut stream.sock).unwrap();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    // A refusal of our certificate would be an alert, which is an error.
    match stream.read_to_end(&mut Vec::new()) {
        Ok(0) => {}
        // Not every server says good-bye within TLS.
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {}
        other => panic!("the connection ends with {other:?}"),
    }
    assert_eq!(stream.conn.tls13_tickets_received(), 0, "nothing that a later handshake could be spared by");
}

fn open(client: &Arc<ClientConfig>, address: SocketAddr) -> StreamOwned<ClientConnection, TcpStream> {
    let stream = envoy::connect(IpAddr::V4(Ipv4Addr::LOCALHOST), address).unwrap();
    let name = ServerName::try_from("app.mesh.svc").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::clone(client), name).unwrap(), stream)
}

/// The mesh's own client.
fn mesh_client(caller: &Credentials) -> ClientConfig {
    let accept = Accept::only(SERVER_ID.parse().unwrap());
    tls::client_config(Some(caller.key.clone()), caller.trust.clone(), accept, &[b"http/1.1"]).unwrap()
}

/// One that does as little as it can, with one key exchange alone.
fn client(caller: &Credentials, group: &'static dyn SupportedKxGroup) -> ClientConfig {
    let provider = CryptoProvider { kx_groups: vec![group], ..(*tls::provider()).clone() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(caller.key.clone())));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Who answers is asked once, by [`mesh_client`].
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
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

fn report(subjects: &[Subject]) -> Measured {
    let mut measured = Measured::new();
    println!(
        "| | sidecar : Envoy | Envoy, µs of CPU | sidecar, µs of CPU | Envoy, per second | sidecar, per second |"
    );
    println!("|---|---|---|---|---|---|");
    for Subject { name, what, rounds, .. } in subjects {
        let range = |of: &dyn Fn(&[Cost; 2]) -> f64, digits: usize| {
            let all: Vec<f64> = rounds.iter().map(of).collect();
            let least = all.iter().copied().fold(f64::INFINITY, f64::min);
            let most = all.iter().copied().fold(0.0, f64::max);
            (median(&all), format!("{:.digits$} ({least:.digits$} to {most:.digits$})", median(&all)))
        };
        let (ratio, text) = range(&|[envoy, sidecar]| sidecar.microseconds / envoy.microseconds, 2);
        let cells = [
            range(&|[envoy, _]| envoy.microseconds, 0).1,
            range(&|[_, sidecar]| sidecar.microseconds, 0).1,
            range(&|[envoy, _]| envoy.per_second, 0).1,
            range(&|[_, sidecar]| sidecar.per_second, 0).1,
        ];
        println!("| {name}, {what} | {text} | {} |", cells.join(" | "));
        measured.insert(format!("{name}, {what}/CPU to Envoy's"), ratio);
    }
    for at in [0, 1] {
        let [plain, hybrid] = [0, 3].map(|subject: usize| {
            median(&subjects[subject].rounds.iter().map(|costs| costs[at].microseconds).collect::<Vec<_>>())
        });
        let who = ["Envoy", "the sidecar"][at];
        println!(
            "{who}: the hybrid handshake costs {:.0} µs more, {:.2} times",
            hybrid - plain,
            hybrid / plain
        );
    }
    measured
}

/// An Envoy that ends mutual TLS as Istio's sidecar does.
fn start_envoy(program: &Path, own: &Credentials, roots: &str, app: &App) -> (envoy::Envoy, SocketAddr) {
    let chain: String =
        own.key.cert.iter().map(|certificate| beside::pem("CERTIFICATE", certificate)).collect();
    let inline = |text: &str| json!({"inline_string": text});
    let context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": true,
        "disable_stateless_session_resumption": true,
        "disable_stateful_session_resumption": true,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
                "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256"],
            },
            "tls_certificates": [{
                "certificate_chain": inline(&chain),
                "private_key": inline(&beside::pem("PRIVATE KEY", own.private_key.as_ref())),
            }],
            "validation_context": {"custom_validator_config": {
                "name": "envoy.tls.cert_validator.spiffe",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
                    "trust_domains": [{"name": "cluster.local", "trust_bundle": inline(roots)}],
                },
            }},
        },
    });
    beside::start_envoy(program, app.address, |address| {
        // Both tell the app who called.
        let settings = json!({
            "normalize_path": true,
            "forward_client_cert_details": "APPEND_FORWARD",
            "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true},
        });
        let manager = envoy::connection_manager(&[], &[beside::to_app()], &settings);
        let socket = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
        let chain: Value = json!({"filters": [manager], "transport_socket": socket});
        envoy::listener("inbound", &[address], &[chain])
    })
}

/// STRICT for all, and one app.
async fn control_plane(app: &App) -> ControlPlane {
    let port = app.address.port();
    let pod = |name: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {name}}}}}\n\
             spec: {{serviceAccountName: {name}, containers: [{{name: app, ports: [{{name: http, containerPort: {port}}}]}}]}}\n"
        )
    };
    let documents = beside::read(format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n\
         ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {NAMESPACE}}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n{}{}\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {SERVER}, namespace: {NAMESPACE}}}\n\
         spec: {{selector: {{app: {SERVER}}}, ports: [{{name: http, port: {port}}}]}}\n",
        pod(SERVER),
        pod(CLIENT),
    ));
    beside::control_plane(documents).await
}
