//! Two network namespaces and what stands in them: here the server's half and the app, over a veth pair the client's half and the
//! generator of load. Redirect rules bring connections to the proxies, as in a pod.

use crate::{
    documents::{self, CALLER, NAMESPACE, SERVER, Size},
    envoy_pair,
    floor::Half,
    grpc, load,
    pairs::{APP_GRPC_PORT, APP_OTLP_PORT, APP_PORT, APP_TCP_PORT, CLIENT_IP, Pair, SERVER_IP},
};
use nix::sched::{CloneFlags, unshare};
use postern_benches::{beside, process::resident_kib};
use postern_control_plane::ControlPlane;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

const START: Duration = Duration::from_secs(30);

/// The two processes of a pair; dropping them ends them.
pub struct Halves {
    client: Child,
    server: Child,
}

impl Halves {
    /// Client's and server's.
    pub fn processes(&self) -> [u32; 2] {
        [self.client.id(), self.server.id()]
    }

    /// Resident KiB of each.
    pub fn resident(&self) -> [u64; 2] {
        self.processes().map(resident_kib)
    }
}

impl Drop for Halves {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What both halves of a pair tell about each request, besides metrics.
#[derive(Clone, Debug)]
pub struct Told {
    /// A JSON access log into a file.
    pub access_log: bool,
    /// `OTEL_*` variables of ours; without any, nothing is sent.
    pub variables: Vec<(&'static str, String)>,
}

impl Told {
    /// As all pairs are compared: nothing is sent anywhere.
    pub fn log(access_log: bool) -> Self {
        Self { access_log, variables: Vec::new() }
    }
}

/// The namespaces, the app and the control plane.
pub struct Stage {
    holder: Child,
    app: Child,
    control: ControlPlane,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    under: Vec<String>,
}

/// Goes into a network namespace of its own; where that takes a user namespace, starts this program again inside one.
pub fn enter() -> Option<ExitCode> {
    const INSIDE: &str = "POSTERN_BENCH_INSIDE";
    if unshare(CloneFlags::CLONE_NEWNET).is_ok() {
        return None;
    }
    if std::env::var_os(INSIDE).is_some() {
        eprintln!(
            "error: no network namespace can be made here, not even in a user namespace; run this as root"
        );
        return Some(ExitCode::FAILURE);
    }
    let exe = std::env::current_exe().unwrap();
    let again = Command::new("unshare")
        .arg("-r")
        .arg(exe)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status();
    let code = again.ok().and_then(|status| status.code()).and_then(|code| u8::try_from(code).ok());
    Some(ExitCode::from(code.unwrap_or(1)))
}

/// Holds the client's namespace until its input ends.
pub fn hold() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
}

impl Stage {
    /// Wires the namespaces and starts what stands behind the pairs.
    pub fn new(pairs: &[Pair], under: Vec<String>, size: Size) -> Self {
        let exe = std::env::current_exe().unwrap();
        let mut holder =
            Command::new(&exe).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut word = [0; 5];
        holder.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
        let pid = holder.id().to_string();
        for line in [
            format!("link add server type veth peer name client netns {pid}"),
            format!("addr add {SERVER_IP}/24 dev server"),
            "link set server up".into(),
            "link set lo up".into(),
            // All endpoints of the app are this one place.
            format!("route add local {}/17 dev lo", documents::ENDPOINTS),
        ] {
            run(Command::new("ip").args(line.split(' ')));
        }
        let inside = |line: &str| {
            run(Command::new("nsenter").arg(format!("--net=/proc/{pid}/ns/net")).args(line.split(' ')))
        };
        inside(&format!("ip addr add {CLIENT_IP}/24 dev client"));
        inside("ip link set client up");
        inside("ip link set lo up");
        inside(&format!("ip route add default via {SERVER_IP}"));
        let (mut output, mut prerouting) = (String::new(), String::new());
        for pair in pairs.iter().filter(|pair| **pair != Pair::Direct) {
            let target = pair.target();
            output += &format!(
                "ip daddr {} tcp dport {} redirect to :{}\n",
                target.ip(),
                target.port(),
                pair.outbound_port()
            );
            prerouting += &format!(
                "iifname server tcp dport {} redirect to :{}\n",
                pair.wire_port(),
                pair.inbound_port()
            );
        }
        rules(Command::new("nsenter").arg(format!("--net=/proc/{pid}/ns/net")).arg("nft"), "output", &output);
        rules(&mut Command::new("nft"), "prerouting", &prerouting);

        let addresses = [
            (Ipv4Addr::UNSPECIFIED, APP_OTLP_PORT),
            (Ipv4Addr::UNSPECIFIED, APP_PORT),
            (Ipv4Addr::UNSPECIFIED, APP_PORT + 1),
            (Ipv4Addr::UNSPECIFIED, APP_TCP_PORT),
            (Ipv4Addr::UNSPECIFIED, APP_GRPC_PORT),
            (Ipv4Addr::UNSPECIFIED, APP_GRPC_PORT + 1),
        ];
        let addresses = addresses.map(|address| SocketAddr::from(address).to_string());
        let app = Command::new(&exe).arg("app").args(&addresses).stdin(Stdio::null()).spawn().unwrap();
        for address in &addresses {
            until(|| TcpStream::connect(address).is_ok(), "the app");
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let control = runtime.block_on(beside::control_plane_at(
            SocketAddr::from((SERVER_IP, 0)),
            beside::read(documents::of(size)),
        ));
        let stage = Self { holder, app, control, runtime, folder: tempfile::tempdir().unwrap(), under };
        for pod in [SERVER, CALLER] {
            stage.write_identity(pod);
        }
        stage
    }

    /// Certificate, key and roots of a pod, as files for those who are not sidecars.
    fn write_identity(&self, pod: &str) {
        let folder = self.identity(pod);
        std::fs::create_dir(&folder).unwrap();
        let credentials = self.runtime.block_on(beside::identity(&self.control, NAMESPACE, pod));
        let chain: String =
            credentials.key.cert.iter().map(|certificate| beside::pem("CERTIFICATE", certificate)).collect();
        std::fs::write(folder.join("chain.pem"), chain).unwrap();
        std::fs::write(folder.join("key.pem"), beside::pem("PRIVATE KEY", credentials.private_key.as_ref()))
            .unwrap();
        std::fs::write(folder.join("roots.pem"), self.control.trust_bundle_pem()).unwrap();
    }

    fn identity(&self, pod: &str) -> PathBuf {
        self.folder.path().join(pod)
    }

    /// The sidecar's own program as it ships, where `make bench` has built it or it lies beside this one; else what this one becomes.
    fn sidecar(&self, inside: bool) -> Command {
        let here = std::env::current_exe().unwrap();
        let programs = [here.with_file_name("../dist/postern-proxy"), here.with_file_name("postern-proxy")];
        if let Some(program) = programs.into_iter().find(|program| program.exists()) {
            return self.ours(&program, inside);
        }
        let mut command = self.ours(&std::env::current_exe().unwrap(), inside);
        command.arg(beside::SIDECAR);
        command
    }

    /// A program of ours, here or in the client's namespace.
    fn ours(&self, program: &Path, inside: bool) -> Command {
        let program = program.display().to_string();
        let words: Vec<&String> = self.under.iter().chain([&program]).collect();
        let mut command = if inside { self.inside() } else { Command::new(words[0]) };
        command.args(&words[usize::from(!inside)..]);
        command
    }

    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id()));
        command
    }

    /// Starts both halves of a pair and waits until they carry a request; `None` for [`Pair::Direct`].
    pub fn start(&self, pair: Pair, envoy: Option<&Path>, told: &Told) -> Option<Halves> {
        let access_log = told.access_log;
        let spawn = |command: &mut Command, name: &str| {
            let log = std::fs::File::create(self.folder.path().join(format!("{}-{name}.log", pair.number())))
                .unwrap();
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap()
        };
        let access = |pod: &str| self.folder.path().join(format!("{}-{pod}.access", pair.number()));
        let (client, server) = match pair {
            Pair::Direct => return None,
            Pair::Postern | Pair::PosternHttp2 | Pair::PosternTcp | Pair::PosternGrpc => {
                let start = |mut command: Command, pod: &str| {
                    let token = self.folder.path().join(format!("{pod}.token"));
                    std::fs::write(&token, self.control.join_token(NAMESPACE, pod, pod)).unwrap();
                    let log = if access_log { access(pod).display().to_string() } else { "off".into() };
                    command
                        .args(["--instance", pod, "--workers", "1", "--access-log", &log])
                        .args(["--control-plane", &self.control.address().to_string()])
                        .args(["--inbound", "0.0.0.0:15006", "--outbound", "0.0.0.0:15001"])
                        .arg("--trust-bundle")
                        .arg(self.identity(pod).join("roots.pem"))
                        .arg("--join-token-file")
                        .arg(token)
                        .env("POSTERN_LOG", "warn")
                        .env("OTEL_SDK_DISABLED", told.variables.is_empty().to_string())
                        .envs(told.variables.clone());
                    spawn(&mut command, pod)
                };
                (start(self.sidecar(true), CALLER), start(self.sidecar(false), SERVER))
            }
            Pair::EnvoyHttp1 | Pair::EnvoyHttp2 | Pair::EnvoyTcp => {
                let program = envoy.expect("asked for only where there is one");
                let start = |mut command: Command, pod: &str, is_client: bool| {
                    let file = self.folder.path().join(format!("{}-{pod}.json", pair.number()));
                    let access = access_log.then(|| access(pod));
                    let config = if is_client {
                        envoy_pair::client(pair, &self.identity(pod), access.as_deref())
                    } else {
                        envoy_pair::server(pair, &self.identity(pod), access.as_deref())
                    };
                    std::fs::write(&file, config.to_string()).unwrap();
                    command.arg("-c").arg(file).args([
                        "--concurrency",
                        "1",
                        "-l",
                        "warn",
                        "--disable-hot-restart",
                    ]);
                    spawn(&mut command, pod)
                };
                let mut inside = self.inside();
                inside.arg(program);
                (start(inside, CALLER, true), start(Command::new(program), SERVER, false))
            }
            Pair::FloorHttp1 | Pair::FloorHttp2 => {
                let start = |mut command: Command, half: Half| {
                    let (pod, peer) = if half == Half::Client { (CALLER, SERVER) } else { (SERVER, CALLER) };
                    let (listen, forward, half) = match half {
                        Half::Client => {
                            (pair.outbound_port(), SocketAddr::from((SERVER_IP, pair.wire_port())), "client")
                        }
                        Half::Server => {
                            (pair.inbound_port(), SocketAddr::from((Ipv4Addr::LOCALHOST, APP_PORT)), "server")
                        }
                    };
                    command
                        .args(["floor", "--half", half, "--listen", &format!("0.0.0.0:{listen}")])
                        .args(["--forward", &forward.to_string(), "--peer", &spiffe_id(peer)])
                        .arg("--identity")
                        .arg(self.identity(pod));
                    if pair == Pair::FloorHttp2 {
                        command.arg("--http2");
                    }
                    spawn(&mut command, half)
                };
                let exe = std::env::current_exe().unwrap();
                (start(self.ours(&exe, true), Half::Client), start(self.ours(&exe, false), Half::Server))
            }
        };
        let halves = Halves { client, server };
        let begin = Instant::now();
        loop {
            let usual = self.arguments(pair, None);
            let grpc = pair == Pair::PosternGrpc;
            let path = if grpc { grpc::UNARY.into() } else { usual.path.clone() };
            let asked = load::Arguments { path, grpc, connections: 1, rate: 100, seconds: 0.1, ..usual };
            let outcome = self.load(&asked);
            if outcome.requests > 0 && outcome.errors == 0 {
                return Some(halves);
            }
            assert!(begin.elapsed() < START, "{} carries nothing: {}", pair.name(), self.logs(pair));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn logs(&self, pair: Pair) -> String {
        let begins = format!("{}-", pair.number());
        let files = std::fs::read_dir(self.folder.path()).unwrap().flatten();
        let logs = files.filter(|file| {
            let name = file.file_name().to_string_lossy().into_owned();
            name.starts_with(&begins) && (name.ends_with(".log") || name.ends_with(".access"))
        });
        logs.map(|file| {
            std::fs::read_to_string(file.path()).unwrap_or_default().chars().take(3000).collect::<String>()
        })
        .collect()
    }

    /// What every load on a pair has in common.
    pub fn arguments(&self, pair: Pair, halves: Option<&Halves>) -> load::Arguments {
        load::Arguments {
            target: pair.target(),
            path: "/api/items".into(),
            rate: 0,
            connections: 16,
            fresh: false,
            grpc: false,
            seconds: 1.0,
            processes: halves.map(|halves| halves.processes().to_vec()).unwrap_or_default(),
        }
    }

    /// Runs the generator in the client's namespace.
    pub fn load(&self, arguments: &load::Arguments) -> load::Outcome {
        let mut command = self.inside();
        command
            .arg(std::env::current_exe().unwrap())
            .args(["load", "--target", &arguments.target.to_string(), "--path", &arguments.path])
            .args([
                "--rate",
                &arguments.rate.to_string(),
                "--connections",
                &arguments.connections.to_string(),
            ])
            .args(["--seconds", &arguments.seconds.to_string()]);
        if arguments.grpc {
            command.arg("--grpc");
        }
        if arguments.fresh {
            command.arg("--fresh");
        }
        if !arguments.processes.is_empty() {
            let processes: Vec<_> = arguments.processes.iter().map(u32::to_string).collect();
            command.args(["--processes", &processes.join(",")]);
        }
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        serde_json::from_slice(&output.stdout).expect("the generator reports")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for child in [&mut self.app, &mut self.holder] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The SPIFFE ID of a pod.
pub fn spiffe_id(pod: &str) -> String {
    format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{pod}")
}

/// The client's.
pub fn caller_id() -> String {
    spiffe_id(CALLER)
}

/// The server's.
pub fn server_id() -> String {
    spiffe_id(SERVER)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn rules(command: &mut Command, hook: &str, lines: &str) {
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let text =
        format!("table ip bench {{\nchain {hook} {{\ntype nat hook {hook} priority -100;\n{lines}}}\n}}\n");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "nft: {text}");
}

fn until(is_so: impl Fn() -> bool, what: &str) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < START, "{what} is not there");
        std::thread::sleep(Duration::from_millis(10));
    }
}
