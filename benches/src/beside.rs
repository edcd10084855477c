//! What stands beside each other: our sidecar as a process of its own, an Envoy, and the same app behind both.

use crate::envoy;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Parser;
use postern_config::{
    Documents, Severity,
    documents::{self, SourceFile},
};
use postern_control_plane::{ControlPlane, Options};
use postern_identity::{Bundle, TrustBundles};
use postern_proxy::{
    bootstrap::{Address, JoinToken},
    control,
    state::Credentials,
    workload_identity::issue::{self, Tokens},
};
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// The first argument that makes a bench the sidecar.
pub const SIDECAR: &str = "sidecar";

#[derive(Parser)]
struct SidecarArguments {
    #[command(flatten)]
    flags: postern_proxy::Flags,
}

/// Is the sidecar, when [`Sidecar`] has started us as one: `postern-proxy` with the flags after the first argument.
pub fn run_if_sidecar() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let is_sidecar = arguments.next().is_some_and(|first| first == SIDECAR);
    let flags = name.into_iter().chain(arguments);
    is_sidecar.then(|| {
        postern_proxy::avoid_huge_pages();
        postern_proxy::run(SidecarArguments::parse_from(flags).flags)
    })
}

/// From the start of a sidecar to its readiness.
const START: Duration = Duration::from_secs(30);

/// What stands behind all of them: answers 200 and "ok" on connections that stay open, one thread for each.
pub struct App {
    /// Where.
    pub address: SocketAddr,
    served: Arc<AtomicU32>,
}

impl App {
    /// Its threads end with this process.
    pub fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let (address, served) = (listener.local_addr().expect("bound"), Arc::new(AtomicU32::new(0)));
        let count = served.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let count = count.clone();
                std::thread::spawn(move || answer(stream, &count));
            }
        });
        Self { address, served }
    }

    /// Requests so far.
    pub fn served(&self) -> u32 {
        self.served.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, served: &AtomicU32) {
    let _ = stream.set_nodelay(true);
    let (mut head, mut part) = (Vec::new(), [0; 4096]);
    // One request at a time and without a body, as the benches send them.
    while let Ok(read @ 1..) = stream.read(&mut part) {
        head.extend_from_slice(&part[..read]);
        if head.ends_with(b"\r\n\r\n") {
            head.clear();
            served.fetch_add(1, Ordering::SeqCst);
            if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_err() {
                return;
            }
        }
    }
}

/// An Envoy with one listener, whose configuration `listener` makes for its address, and the app as cluster `app`.
pub fn start_envoy(
    program: &Path,
    app: SocketAddr,
    listener: impl Fn(SocketAddr) -> Value,
) -> (envoy::Envoy, SocketAddr) {
    let mut last = String::new();
    for _ in 0..5 {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), envoy::free_ports(1)[0]);
        let mut config = envoy::bootstrap(&[listener(address)]);
        let socket = json!({"address": app.ip(), "port_value": app.port()});
        let endpoint = json!({"endpoint": {"address": {"socket_address": socket}}});
        config["static_resources"]["clusters"] = json!([{
            "name": "app",
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }]);
        match envoy::Envoy::start(program, &config, &[address]) {
            Ok(envoy) => return (envoy, address),
            Err(log) => last = log,
        }
    }
    panic!("Envoy did not start: {last}");
}

/// The route of everything to the app.
pub fn to_app() -> Value {
    json!({"match": {"prefix": "/"}, "route": {"cluster": "app", "timeout": "0s"}})
}

/// A running sidecar, a process of its own with one worker and no access log. Dropping it ends it.
pub struct Sidecar {
    child: Child,
    /// Where connections come in that are for the app.
    pub inbound: SocketAddr,
    /// Trust bundle and log.
    folder: tempfile::TempDir,
}

impl Sidecar {
    /// Starts the sidecar of this pod, whose service account has the same name, and waits until it is ready.
    pub fn start(control: &ControlPlane, namespace: &str, pod: &str, app: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let [bundle, token, log] = ["root.pem", "token", "log"].map(|name| folder.path().join(name));
        std::fs::write(&bundle, control.trust_bundle_pem()).expect("written");
        // The folder is ours alone.
        std::fs::write(&token, control.join_token(namespace, pod, pod)).expect("written");
        let ports = <[u16; 5]>::try_from(envoy::free_ports(5)).expect("five");
        let [inbound, admin, probes, metrics, merged] = ports.map(|port| format!("127.0.0.1:{port}"));
        let child = Command::new(std::env::current_exe().expect("a program"))
            .arg(SIDECAR)
            .args(["--instance", pod, "--workers", "1", "--access-log", "off"])
            .args(["--control-plane", &control.address().to_string()])
            .args(["--explicit-inbound", &format!("{inbound}={app}")])
            .args([
                "--admin",
                &admin,
                "--probes",
                &probes,
                "--metrics",
                &metrics,
                "--merged-metrics",
                &merged,
            ])
            .arg("--trust-bundle")
            .arg(bundle)
            .arg("--join-token-file")
            .arg(token)
            .env("POSTERN_LOG", "warn")
            .env("OTEL_SDK_DISABLED", "true")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).expect("a log"))
            .spawn()
            .expect("a process");
        let inbound = inbound.parse().expect("an address");
        let mut sidecar = Self { child, inbound, folder };
        let (begin, probes) = (Instant::now(), probes.parse().expect("an address"));
        while !is_ready(probes) {
            let has_ended = sidecar.child.try_wait().expect("a child").is_some();
            assert!(!has_ended && begin.elapsed() < START, "the sidecar is not ready: {}", sidecar.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        sidecar
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(probes: SocketAddr) -> bool {
    let Ok(stream) = envoy::connect(probes.ip(), probes) else { return false };
    let head = b"GET /healthz/ready HTTP/1.1\r\nhost: a\r\n\r\n";
    envoy::Wire::new(stream).exchange(head).is_ok_and(|reply| reply.status == 200)
}

/// Documents as people write them, which must have no errors.
pub fn read(text: String) -> Documents {
    let (documents, problems) = documents::read(&[SourceFile { name: "bench.yaml".into(), text }]);
    assert!(problems.iter().all(|problem| problem.severity != Severity::Error), "{problems:?}");
    documents
}

/// A control plane on loopback, its authority in memory.
pub async fn control_plane(documents: Documents) -> ControlPlane {
    control_plane_at(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), documents).await
}

/// The same on another address.
pub async fn control_plane_at(listen: SocketAddr, documents: Documents) -> ControlPlane {
    let control = postern_control_plane::start(Options {
        listen,
        state: None,
        trust_domain: documents.mesh.trust_domain.clone(),
        certificate_lifetime: Duration::from_secs(3600),
        unix_socket: None,
        kubernetes: None,
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
        federation: postern_control_plane::federation::Settings::default(),
    })
    .await
    .expect("the control plane starts");
    control.apply(documents);
    control
}

/// A certificate as a sidecar of this pod gets it.
pub async fn identity(control: &ControlPlane, namespace: &str, pod: &str) -> Credentials {
    let domain: postern_identity::TrustDomain = "cluster.local".parse().expect("a good one");
    let bundle = Bundle::from_pem(domain.clone(), control.trust_bundle_pem().as_bytes()).expect("a good one");
    let trust = TrustBundles::from_iter([bundle]);
    let address = Address::Tcp(control.address());
    let there = control::ControlPlane::new(address, domain, trust.clone(), None).expect("a good one");
    let token = JoinToken(control.join_token(namespace, pod, pod));
    let tokens = Tokens { join: Some(&token), service_account: None };
    issue::request(&there, None, Arc::new(trust), tokens, None).await.expect("a good one").credentials
}

/// As a file has it.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("a good one")).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
