//! A mesh of separate processes without namespaces: one control plane, a sidecar for each pod, one app; each of them can be
//! killed, restarted, and given a clock of its own, while the others go on.
//!
//! Three pods: `server` (its app is in this process and remembers what reached it), `client` (allowed to GET `/ok`),
//! `intruder` (a good identity that no rule allows).

use crate::{App, apps::Speech};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use postern_control_plane::admin::pages::Authorities;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

/// The longest wait for something that should happen soon, on a machine that is busy with other tests.
pub const SOON: Duration = Duration::from_secs(30);
/// Where the service `server` is meant to be; redirect rules would catch it, here each caller has a listener for it.
const SERVICE: &str = "10.96.7.1:80";

/// The running processes. Dropping it kills them.
pub struct Standalone {
    folder: tempfile::TempDir,
    control: Option<Child>,
    control_address: SocketAddr,
    control_flags: Vec<String>,
    control_clock: Option<PathBuf>,
    sidecars: BTreeMap<String, Sidecar>,
    descriptors: Option<u32>,
    pub app: App,
    app_address: SocketAddr,
}

/// One sidecar: how it is started, and where it listens.
struct Sidecar {
    child: Option<Child>,
    flags: Vec<String>,
    clock: Option<PathBuf>,
    admin: SocketAddr,
    probes: SocketAddr,
    metrics: SocketAddr,
    /// Where the pod's app calls the service.
    outbound: SocketAddr,
    /// Where others reach this pod.
    inbound: SocketAddr,
}

/// What differs from the usual.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Further flags of the control plane.
    pub control_plane: Vec<String>,
    /// Further flags of every sidecar.
    pub sidecars: Vec<String>,
    /// Lifetime of workload certificates that each sidecar asks for, in seconds.
    pub certificate_lifetime: Option<u32>,
    /// Give every process a clock of its own (libfaketime, by file).
    pub clocks: bool,
    /// Open files that the sidecar of `server` may have, by `prlimit`.
    pub descriptors: Option<u32>,
    /// Further documents, such as telemetry; they begin with `---`.
    pub documents: String,
}

/// The program under test.
pub fn program() -> PathBuf {
    crate::up::built()
}

/// An address that nothing listens on, below the range from which the kernel takes ports for outgoing connections: whoever is
/// killed finds it free again.
fn free() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 100).unwrap() * 180;
    loop {
        let port = 12_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        }
    }
}

impl Standalone {
    /// Starts everything and waits until the sidecars are ready.
    pub async fn start(settings: Settings) -> Self {
        let app = App::default();
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let app_address = listener.local_addr().unwrap();
        app.serve(listener, Speech::Http);
        let mut mesh = Self {
            folder: tempfile::Builder::new().prefix("postern-standalone").tempdir_in(memory()).unwrap(),
            control: None,
            control_address: free(),
            control_flags: settings.control_plane.clone(),
            control_clock: None,
            sidecars: BTreeMap::new(),
            descriptors: settings.descriptors,
            app,
            app_address,
        };
        if settings.clocks {
            mesh.control_clock = Some(mesh.clock("control-plane"));
        }
        for name in ["server", "client", "intruder"] {
            let (admin, probes, metrics, outbound, inbound) = (free(), free(), free(), free(), free());
            let mut flags = vec![
                format!("--instance={name}"),
                format!("--control-plane={}", mesh.control_address),
                format!("--trust-bundle={}", mesh.path("state/root.pem").display()),
                format!("--admin={admin}"),
                format!("--probes={probes}"),
                format!("--metrics={metrics}"),
                format!("--merged-metrics={}", free()),
                format!("--explicit-outbound={outbound}={SERVICE}"),
                format!("--explicit-inbound={inbound}={app_address}"),
                format!("--state={}", mesh.sidecar_state(name).display()),
                format!("--join-token-file={}", mesh.path(&format!("tokens/shop.{name}.token")).display()),
                format!("--workload-api=unix:{}", mesh.workload_api(name).display()),
                format!("--access-log={}", mesh.path(&format!("{name}.log")).display()),
                "--workers=1".into(),
            ];
            flags.extend(settings.sidecars.clone());
            if let Some(seconds) = settings.certificate_lifetime {
                flags.push(format!("--certificate-lifetime={seconds}"));
            }
            let clock = settings.clocks.then(|| mesh.clock(name));
            mesh.sidecars.insert(
                name.into(),
                Sidecar { child: None, flags, clock, admin, probes, metrics, outbound, inbound },
            );
        }
        fs::create_dir(mesh.path("mesh")).unwrap();
        fs::write(mesh.path("mesh/mesh.yaml"), mesh.yaml() + &settings.documents).unwrap();
        mesh.start_control_plane().await;
        for name in ["server", "client", "intruder"] {
            mesh.start_sidecar(name).await;
        }
        mesh
    }

    /// A path in the folder of this mesh.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where the sidecar of a pod keeps what survives its restart.
    pub fn sidecar_state(&self, name: &str) -> PathBuf {
        self.path(&format!("sidecars/{name}"))
    }

    /// The socket of the Workload API of a pod.
    pub fn workload_api(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.sock"))
    }

    fn clock(&self, name: &str) -> PathBuf {
        let path = self.path(&format!("{name}.clock"));
        fs::write(&path, "+0\n").unwrap();
        path
    }

    fn yaml(&self) -> String {
        let port = self.app_address.port();
        let pod = |name: &str, ip: &str| {
            let inbound = self.sidecars[name].inbound;
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}, \
                 annotations: {{postern.dev/inbound: '{port}={inbound}'}}}}\n\
                 spec: {{serviceAccountName: {name}, containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}\n\
                 status: {{podIP: {ip}}}\n"
            )
        };
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio-injection: enabled}}}}\n\
             ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: server, namespace: shop}}\n\
             ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: client, namespace: shop}}\n\
             ---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: intruder, namespace: shop}}\n{}{}{}\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: shop}}\n\
             spec: {{selector: {{app: server}}, clusterIP: 10.96.7.1, ports: [{{name: http, port: 80, targetPort: {port}}}]}}\n\
             ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: strict, namespace: shop}}\n\
             spec: {{mtls: {{mode: STRICT}}}}\n\
             ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: server, namespace: shop}}\n\
             spec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: ALLOW\n  rules:\n\
             \x20 - from: [{{source: {{principals: [cluster.local/ns/shop/sa/client]}}}}]\n\
             \x20   to:\n\
             \x20   - operation: {{methods: [GET], paths: [/ok]}}\n\
             \x20   - operation: {{methods: [POST], paths: [/shop.Echo/Say]}}\n",
            pod("server", "10.77.0.1"),
            pod("client", "10.77.0.2"),
            pod("intruder", "10.77.0.3"),
        )
    }

    /// Starts the control plane (again) with its state, and waits until it listens.
    pub async fn start_control_plane(&mut self) {
        let mut command = with_clock(self.control_clock.as_deref());
        command
            .arg("control-plane")
            .arg(format!("--config={}", self.path("mesh").display()))
            .arg(format!("--listen={}", self.control_address))
            .arg(format!("--state={}", self.path("state").display()))
            .arg(format!("--join-token-dir={}", self.path("tokens").display()))
            .args(&self.control_flags);
        self.control = Some(spawn(command, &self.path("control-plane.err")));
        let socket = self.path("state/control.sock");
        let said = self.path("control-plane.err");
        until(&format!("the control plane listens ({})", said.display()), || {
            UnixStream::connect(&socket).is_ok()
        })
        .await;
    }

    /// Kills the control plane in the middle of whatever it does.
    pub fn kill_control_plane(&mut self) {
        if let Some(mut child) = self.control.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Kills it and starts it again.
    pub async fn restart_control_plane(&mut self) {
        self.kill_control_plane();
        self.start_control_plane().await;
    }

    /// Starts the sidecar of a pod (again) and waits until it is ready.
    pub async fn start_sidecar(&mut self, name: &str) {
        self.launch_sidecar(name);
        self.ready(name).await;
    }

    /// Starts the sidecar of a pod (again) and waits for nothing.
    pub fn launch_sidecar(&mut self, name: &str) {
        let sidecar = &self.sidecars[name];
        let mut command = match self.descriptors.filter(|_| name == "server") {
            None => with_clock(sidecar.clock.as_deref()),
            Some(files) => {
                let mut command = Command::new(crate::up::find("prlimit").expect("prlimit, of util-linux"));
                command.env_clear().arg(format!("--nofile={files}:{files}")).arg(program());
                command
            }
        };
        command.arg("proxy").args(&sidecar.flags);
        let child = spawn(command, &self.path(&format!("{name}.err")));
        self.sidecars.get_mut(name).unwrap().child = Some(child);
    }

    /// The process of a pod's sidecar.
    pub fn pid(&self, name: &str) -> u32 {
        self.sidecars[name].child.as_ref().expect("a running process").id()
    }

    /// Kills the sidecar of a pod.
    pub fn kill_sidecar(&mut self, name: &str) {
        if let Some(mut child) = self.sidecars.get_mut(name).unwrap().child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until the sidecar of a pod says that it is ready.
    pub async fn ready(&self, name: &str) {
        let began = Instant::now();
        while !self.is_ready(name) {
            let said = || fs::read_to_string(self.path(&format!("{name}.err"))).unwrap_or_default();
            assert!(began.elapsed() < SOON, "{name} is not ready within {SOON:?}; it said: {}", said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether the sidecar of a pod says that it is ready.
    pub fn is_ready(&self, name: &str) -> bool {
        crate::processes::probe(self.sidecars[name].probes, "ready")
    }

    /// Whether it says that it is alive.
    pub fn is_live(&self, name: &str) -> bool {
        crate::processes::probe(self.sidecars[name].probes, "live")
    }

    /// All metrics of the sidecar of a pod, as a scrape has them.
    pub async fn metrics(&self, name: &str) -> String {
        let page = crate::Request::new(self.sidecars[name].metrics, "localhost").path("/stats/prometheus");
        String::from_utf8(page.send().await.unwrap().body.to_vec()).unwrap()
    }

    /// A metric of the sidecar of a pod, by its name and labels as a scrape has them; 0 when it is not there.
    pub async fn metric(&self, name: &str, metric: &str) -> f64 {
        let page = self.metrics(name).await;
        let value = page.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// What the sidecar of a pod, or `control-plane`, has written on standard error so far.
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.err"))).unwrap_or_default()
    }

    /// Freezes `control-plane` or the sidecar of a pod: the other ends of its connections stay open.
    pub fn freeze(&self, name: &str) {
        self.signal(name, Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self, name: &str) {
        self.signal(name, Signal::SIGCONT);
    }

    fn signal(&self, name: &str, signal: Signal) {
        let child = match name {
            "control-plane" => &self.control,
            pod => &self.sidecars[pod].child,
        };
        let child = child.as_ref().expect("a running process");
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    }

    /// Sets the clock of `control-plane` or of the sidecar of a pod, as libfaketime writes it: `+60`, `-4m`.
    pub fn set_clock(&self, name: &str, offset: &str) {
        let clock = match name {
            "control-plane" => &self.control_clock,
            pod => &self.sidecars[pod].clock,
        };
        // Replaced whole: a reader never sees half of it.
        let clock = clock.as_ref().expect("a mesh with clocks");
        let draft = clock.with_extension("draft");
        fs::write(&draft, format!("{offset}\n")).unwrap();
        fs::rename(&draft, clock).unwrap();
    }

    /// Where the app of a pod calls the service `server`.
    pub fn entry(&self, name: &str) -> SocketAddr {
        self.sidecars[name].outbound
    }

    /// Where others reach a pod.
    pub fn inbound(&self, name: &str) -> SocketAddr {
        self.sidecars[name].inbound
    }

    /// The admin port of a pod's sidecar.
    pub fn admin(&self, name: &str) -> SocketAddr {
        self.sidecars[name].admin
    }

    /// Runs `postern` with these arguments against this mesh's control plane.
    pub fn postern(&self, arguments: &[&str]) -> Output {
        self.begin(arguments).wait_with_output().unwrap()
    }

    /// [`Standalone::postern`], not waited for.
    pub fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(program());
        command.args(arguments).arg(format!("--socket={}", self.path("state/control.sock").display()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Asks the control plane for a step and does not wait for the answer; the connection has to be held until then.
    pub fn post(&self, page: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("state/control.sock")).unwrap();
        let length = body.len();
        let head = format!("POST {page} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// What the control plane says of its authorities.
    pub fn authorities(&self) -> Authorities {
        let mut stream = UnixStream::connect(self.path("state/control.sock")).unwrap();
        stream.write_all(b"GET /authorities HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// The key id of the authority of a kind in a slot.
    pub fn authority(&self, kind: &str, slot: &str) -> Option<String> {
        let all = self.authorities().authorities;
        let found = |one: &&postern_control_plane::admin::pages::Authority| {
            one.kind == kind && one.slot == slot && !one.revoked
        };
        all.iter().find(found).map(|one| one.id.clone())
    }

    /// Waits until all sidecars are connected and have acknowledged the trust in force.
    pub async fn all_heard(&self) {
        until("all sidecars are connected and know what is published", || {
            let now = self.authorities();
            now.connected == self.sidecars.len() && now.behind == 0
        })
        .await;
    }

    /// [`Standalone::postern`], which has to succeed; what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let output = self.postern(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "postern {arguments:?}: {}\n{text}{errors}{}",
            output.status,
            self.told()
        );
        text
    }

    /// The serial of the certificate that the sidecar of a pod has in force, as its admin page says.
    pub async fn serial(&self, name: &str) -> String {
        let page =
            crate::Request::new(self.admin(name), "localhost").path("/certificates").send().await.unwrap();
        page.json()["current"]["serial"].as_str().unwrap_or_default().to_owned()
    }

    /// Those of both ends of the load.
    pub async fn serials(&self) -> BTreeSet<String> {
        BTreeSet::from([self.serial("client").await, self.serial("server").await])
    }

    /// What went wrong by the access logs, and the last lines that each process wrote on standard error.
    pub fn told(&self) -> String {
        let mut told = String::new();
        for name in ["server", "client"] {
            let text = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
            let failed = text.lines().filter(|line| line.contains("\"status\":50"));
            told += &format!("--- access log of {name}\n{}\n", failed.take(6).collect::<Vec<_>>().join("\n"));
        }
        for name in ["control-plane", "server", "client", "intruder"] {
            let text = fs::read_to_string(self.path(&format!("{name}.err"))).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            told += &format!("--- {name}\n{}\n", lines[lines.len().saturating_sub(12)..].join("\n"));
        }
        told
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        let children = self.sidecars.values_mut().filter_map(|s| s.child.take());
        for mut child in children.chain(self.control.take()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where small state may be kept in memory.
fn memory() -> PathBuf {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { shared.into() } else { std::env::temp_dir() }
}

fn spawn(mut command: Command, errors: &Path) -> Child {
    let errors = File::options().create(true).append(true).open(errors).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().unwrap()
}

/// The program, with a clock that a file moves when there is one. Time that passes (timers) stays honest.
fn with_clock(clock: Option<&Path>) -> Command {
    let mut command = Command::new(program());
    command.env_clear();
    if let (Some(clock), Some(library)) = (clock, faketime()) {
        command
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", clock)
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command
}

/// libfaketime, where it is installed.
pub fn faketime() -> Option<PathBuf> {
    let folders = [
        "/usr/lib/x86_64-linux-gnu/faketime",
        "/usr/lib/aarch64-linux-gnu/faketime",
        "/usr/lib64/faketime",
        "/usr/lib/faketime",
    ];
    folders.iter().map(|folder| Path::new(folder).join("libfaketimeMT.so.1")).find(|path| path.exists())
}

/// Polls until it is true; fails after [`SOON`].
pub async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_true() {
        assert!(began.elapsed() < SOON, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
