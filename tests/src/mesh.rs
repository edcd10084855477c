//! A mesh from YAML: `Mesh::start(yaml)` brings up a control plane, an app for each pod and container port, and a sidecar
//! beside each pod that is marked for injection.
//!
//! Each pod has a loopback address of its own (127.x.y.z, or ::1 with the annotation `tests.postern.dev/family: ipv6`),
//! so that its app listens on the port that the YAML says (see [`crate::ports`]). The name of a container port says what the app speaks:
//! `tcp…` echoes, `first…` greets and echoes, `…raw` is bytes by a script ([`crate::raw`]), anything else is HTTP.

use crate::{
    apps::{App, Speech},
    client::{Answer, Broken, Request},
    log::AccessLog,
    ports,
    raw::Raw,
};
use postern_config::{
    Documents, Severity,
    documents::{Located, Pod, SourceFile, kubernetes::injected, service_host},
};
use postern_control_plane::{ControlPlane, Options, SessionStatus};
use postern_proxy::{
    Bootstrap, Interception, Sidecar,
    bootstrap::{AccessLogSink, JoinToken, JoinTokens, app_metrics::AppMetrics, otel},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::net::TcpListener;

/// Nothing that a test waits for takes longer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A running mesh. Dropping it stops everything.
pub struct Mesh {
    pub control: ControlPlane,
    pub workloads: BTreeMap<String, Workload>,
    pub documents: Documents,
    mesh_trust_domain: String,
}

/// One pod: its app, and its sidecar if it has one.
pub struct Workload {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub ips: Vec<IpAddr>,
    pub app: App,
    /// The app on ports with `raw` in their name.
    pub raw: Raw,
    pub log: AccessLog,
    pub sidecar: Option<Sidecar>,
    /// Workload port to where the outside reaches it: the sidecar's listener, or the app itself.
    pub inbound: BTreeMap<u16, SocketAddr>,
    /// Service host and port to the sidecar's listener for it.
    pub outbound: BTreeMap<(String, u16), SocketAddr>,
    annotation: Option<String>,
}

/// What differs from the usual.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the authority keeps its root, for tests that sign certificates of their own.
    pub state: Option<PathBuf>,
    pub certificate_lifetime: Duration,
    pub otel: otel::Settings,
    /// Where each pod's app has its own metrics.
    pub app_metrics: Option<AppMetrics>,
    /// Other original destinations that every sidecar gets an outbound listener for, by name.
    pub outside: Vec<(String, SocketAddr)>,
    /// Do not send any policy yet.
    pub without_policy: bool,
    /// The folder where each sidecar serves the Workload API, as `<pod>.sock`.
    pub workload_api: Option<PathBuf>,
    pub drain_deadline: Duration,
    pub report_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            state: None,
            certificate_lifetime: Duration::from_secs(600),
            otel: otel::Settings::default(),
            app_metrics: None,
            outside: vec![],
            without_policy: false,
            workload_api: None,
            drain_deadline: Duration::from_secs(1),
            report_interval: Duration::from_secs(10),
        }
    }
}

impl Mesh {
    /// Starts it and waits until every sidecar is ready.
    pub async fn start(yaml: &str) -> Self {
        Self::start_with(yaml, Settings::default()).await
    }

    /// Starts it differently.
    pub async fn start_with(yaml: &str, settings: Settings) -> Self {
        let documents = read(yaml);
        let trust_domain = documents.mesh.trust_domain.clone();
        let control = postern_control_plane::start(Options {
            listen: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            state: settings.state.clone(),
            trust_domain: trust_domain.clone(),
            certificate_lifetime: settings.certificate_lifetime,
            unix_socket: None,
            kubernetes: None,
            federation: postern_control_plane::federation::Settings::default(),
            upstream: postern_control_plane::Upstream::Own,
            allow_ending_authority: false,
        })
        .await
        .expect("the control plane starts");
        let mut mesh =
            Self { control, workloads: BTreeMap::new(), documents, mesh_trust_domain: trust_domain };
        for pod in pods(&mesh.documents) {
            let workload = mesh.start_workload(pod, &settings).await;
            let twin = mesh.workloads.insert(workload.name.clone(), workload);
            assert!(twin.is_none(), "tests call pods by name, so names must be unique over namespaces");
        }
        if !settings.without_policy {
            mesh.apply_read(mesh.documents.clone());
            mesh.ready().await;
        }
        mesh
    }

    /// Resolves when every sidecar has its certificate and policy.
    pub async fn ready(&self) {
        for workload in self.workloads.values() {
            if let Some(sidecar) = &workload.sidecar {
                within(&format!("{} is ready", workload.name), sidecar.ready()).await;
            }
        }
    }

    /// Replaces all documents; pods stay as they are. Resolves when every sidecar has taken, or refused, what concerns
    /// it.
    pub async fn apply(&mut self, yaml: &str) {
        self.documents = read(yaml);
        let number = self.apply_read(self.documents.clone());
        within("every sidecar has answered", async {
            let has_answered = |s: &SessionStatus| s.documents >= number && s.unanswered == 0;
            while !self.control.status().iter().all(has_answered) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    /// Says that these ports of a pod are served there from now on, by something that is not its sidecar.
    pub fn serve_elsewhere(&mut self, pod: &str, listeners: &[(u16, SocketAddr)]) {
        let listeners: Vec<String> = listeners.iter().map(|(port, at)| format!("{port}={at}")).collect();
        self.workloads.get_mut(pod).expect("a pod of this mesh").annotation = Some(listeners.join(","));
        self.apply_read(self.documents.clone());
    }

    /// From now on a pod without a sidecar is somewhere else. Takes effect with the next documents.
    pub fn move_pod(&mut self, pod: &str, ip: IpAddr) {
        self.workloads.get_mut(pod).expect("a pod of this mesh").ips = vec![ip];
    }

    /// Sends documents to the control plane, with the pods' addresses filled in. The number that it gives them.
    pub fn apply_read(&self, mut documents: Documents) -> u64 {
        let mut all = pods(&documents);
        for pod in &mut all {
            if let Some(workload) = self.workloads.get(&pod.value.metadata.name) {
                pod.value.pod_ips = workload.ips.clone();
                if let Some(listeners) = &workload.annotation {
                    pod.value.metadata.annotations.insert("postern.dev/inbound".into(), listeners.clone());
                }
            }
        }
        documents.pods = all;
        documents.deployments.clear();
        for (n, service) in documents.services.iter_mut().enumerate() {
            service.value.cluster_ips = cluster_ips(n);
        }
        self.control.apply(documents)
    }

    /// From now on the mesh believes that a port of a workload is reached at `address`: whoever sits there is an impostor.
    pub fn impersonate(&mut self, name: &str, port: u16, address: SocketAddr) {
        let workload = self.workloads.get_mut(name).expect("a workload of this mesh");
        workload.annotation = Some(format!("{}={address}", ports::real(port)));
        self.apply_read(self.documents.clone());
    }

    /// One workload.
    pub fn workload(&self, name: &str) -> &Workload {
        self.workloads
            .get(name)
            .unwrap_or_else(|| panic!("no workload {name} in {:?}", self.workloads.keys()))
    }

    /// What the app of a workload has seen.
    pub fn app(&self, name: &str) -> &App {
        &self.workload(name).app
    }

    /// What the sidecar of a workload has logged.
    pub fn access_log(&self, name: &str) -> &AccessLog {
        &self.workload(name).log
    }

    /// Where a call from one workload to a service (`name` or `name:port`) enters the mesh: the caller's own sidecar,
    /// or, without one, the first endpoint itself.
    pub fn entry(&self, from: &str, to: &str) -> (SocketAddr, String) {
        let (name, port) =
            to.split_once(':').map_or((to, None), |(n, p)| (n, Some(ports::real(p.parse().unwrap()))));
        let caller = self.workload(from);
        if let Some((key, address)) = caller.outbound.iter().find(|((host, p), _)| {
            (host == name || host.split('.').next() == Some(name)) && port.is_none_or(|port| port == *p)
        }) {
            return (*address, key.0.clone());
        }
        assert!(caller.sidecar.is_none(), "{from} has no listener for {to}: {:?}", caller.outbound);
        let target = self.workload(name);
        let inbound = match port {
            Some(port) => target.inbound[&port],
            None => *target.inbound.values().next().unwrap(),
        };
        (inbound, service_host(name, &target.namespace))
    }

    /// A request from the app of one workload to a service.
    pub fn request(&self, from: &str, to: &str) -> Request {
        let (address, host) = self.entry(from, to);
        Request::new(address, host)
    }

    /// Calls, and reads the answer.
    pub async fn call(&self, from: &str, to: &str, method: &str, path: &str) -> Result<Answer, Broken> {
        self.request(from, to).method(method).path(path).send().await
    }

    /// Calls until the answer has this status; fails after [`DEADLINE`] with the last answer.
    pub async fn call_until(&self, from: &str, to: &str, method: &str, path: &str, status: u16) {
        let mut last = None;
        let waiting = async {
            loop {
                let answer = self.call(from, to, method, path).await;
                if answer.as_ref().is_ok_and(|a| a.status == status) {
                    return;
                }
                last = Some(answer);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            panic!("{from} -> {method} {to}{path} did not become {status}; last: {last:?}");
        }
    }

    async fn start_workload(&self, mut pod: Located<Pod>, settings: &Settings) -> Workload {
        let pod = &mut pod.value;
        let ipv6 = pod.metadata.annotations.get("tests.postern.dev/family").is_some_and(|f| f == "ipv6");
        let namespace =
            self.documents.namespaces.iter().find(|n| n.value.metadata.name == pod.metadata.namespace);
        let is_injected = injected(namespace.map(|n| &n.value), pod);
        let (app, raw) = (App::default(), Raw::default());
        let (ip, ports) = listen_all(pod, ipv6).await;
        let mut inbound = Vec::new();
        for (port, name, listener) in ports {
            match speech(&name) {
                Some(speech) => app.serve(listener, speech),
                None => raw.serve(listener),
            }
            inbound.push((port, SocketAddr::new(ip, port)));
        }
        let any =
            SocketAddr::new(if ipv6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() }, 0);
        let (log_sink, log_lines) = tokio::sync::mpsc::channel(4096);
        let mut workload = Workload {
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            service_account: match pod.spec.service_account.as_str() {
                "" => "default".into(),
                other => other.into(),
            },
            ips: vec![ip],
            app,
            raw,
            log: AccessLog::collect(log_lines),
            sidecar: None,
            inbound: inbound.iter().copied().collect(),
            outbound: BTreeMap::new(),
            annotation: None,
        };
        if !is_injected {
            return workload;
        }
        let mut outbound = Vec::new();
        let mut names = Vec::new();
        for (n, service) in self.documents.services.iter().enumerate() {
            let metadata = &service.value.metadata;
            let vip = *cluster_ips(n).iter().find(|ip| ip.is_ipv6() == ipv6).unwrap();
            for port in &service.value.ports {
                outbound.push((any, SocketAddr::new(vip, port.port)));
                names.push((service_host(&metadata.name, &metadata.namespace), port.port));
            }
        }
        for (name, address) in &settings.outside {
            outbound.push((any, *address));
            names.push((name.clone(), address.port()));
        }
        let token = self.control.join_token(&workload.namespace, &workload.service_account, &workload.name);
        let sidecar = postern_proxy::start(Bootstrap {
            instance: workload.name.clone(),
            control_plane: self.control.address().into(),
            service_account_token: None,
            state: None,
            trust_domain: self.mesh_trust_domain.clone(),
            trust_bundle_pem: self.control.trust_bundle_pem().into_bytes(),
            join_token: Some(JoinTokens::Given(JoinToken(token))),
            interception: Interception::Explicit {
                inbound: inbound.iter().map(|(_, address)| (any, *address)).collect(),
                outbound,
            },
            admin: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            probes: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            metrics: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            merged_metrics: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
            app_metrics: settings.app_metrics.clone(),
            identity_from: None,
            workload_api: settings
                .workload_api
                .as_ref()
                .map(|folder| folder.join(format!("{}.sock", workload.name))),
            workers: 1,
            mark: None,
            access_log: AccessLogSink::Channel(log_sink),
            otel: settings.otel.clone(),
            access_log_lines: Default::default(),
            certificate_lifetime: None,
            drain_deadline: settings.drain_deadline,
            report_interval: settings.report_interval,
        })
        .await
        .expect("the sidecar starts");
        let addresses = sidecar.addresses().clone();
        workload.inbound =
            inbound.iter().zip(&addresses.inbound).map(|((port, _), bound)| (*port, *bound)).collect();
        let listeners: Vec<String> =
            workload.inbound.iter().map(|(port, address)| format!("{port}={address}")).collect();
        workload.annotation = Some(listeners.join(","));
        workload.outbound = names.into_iter().zip(addresses.outbound).collect();
        workload.sidecar = Some(sidecar);
        workload
    }
}

impl Workload {
    /// Where the sidecar's admin page is.
    pub fn admin(&self) -> SocketAddr {
        self.sidecar.as_ref().and_then(|s| s.addresses().admin).expect("a sidecar with an admin port")
    }
    /// Where the sidecar's metrics are.
    pub fn metrics(&self) -> SocketAddr {
        self.sidecar.as_ref().and_then(|s| s.addresses().metrics).expect("a sidecar with a metrics port")
    }
    /// Where they are with the app's own.
    pub fn merged_metrics(&self) -> SocketAddr {
        self.sidecar.as_ref().and_then(|s| s.addresses().merged_metrics).expect("a sidecar with that port")
    }
    /// The way in from outside for one of its ports.
    pub fn inbound(&self, port: u16) -> SocketAddr {
        self.inbound[&ports::real(port)]
    }
}

fn read(yaml: &str) -> Documents {
    let file = SourceFile { name: "mesh.yaml".into(), text: ports::substitute(yaml) };
    let (documents, problems) = postern_config::documents::read(&[file]);
    let errors: Vec<String> =
        problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "the test's own YAML is wrong:\n{}", errors.join("\n"));
    documents
}

/// Every pod of the documents: the ones written as such, and one for each deployment, under the deployment's name.
fn pods(documents: &Documents) -> Vec<Located<Pod>> {
    let written = documents.pods.iter().cloned();
    let deployed = documents.deployments.iter().map(|deployment| {
        let mut pod = deployment.value.template.clone();
        pod.metadata.name = deployment.value.metadata.name.clone();
        pod.metadata.namespace = deployment.value.metadata.namespace.clone();
        Located { origin: deployment.origin.clone(), value: pod }
    });
    written.chain(deployed).collect()
}

fn cluster_ips(number: usize) -> Vec<IpAddr> {
    let n = u16::try_from(number + 1).unwrap();
    let [high, low] = n.to_be_bytes();
    vec![Ipv4Addr::new(10, 96, high, low).into(), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n).into()]
}

/// `None`: bytes by a script.
fn speech(port_name: &str) -> Option<Speech> {
    match port_name {
        name if name.starts_with("tcp") => Some(Speech::Echo),
        name if name.starts_with("first") => Some(Speech::GreetAndEcho),
        name if name.ends_with("raw") => None,
        _ => Some(Speech::Http),
    }
}

/// Binds every container port on one loopback address that nobody else uses: processes differ by their id, pods by a
/// counter, and what is taken all the same is skipped.
async fn listen_all(pod: &Pod, ipv6: bool) -> (IpAddr, Vec<(u16, String, TcpListener)>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let ports: Vec<_> = pod.spec.containers.iter().flat_map(|c| &c.ports).collect();
    for _ in 0..64 {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let ip: IpAddr = if ipv6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            let block = 64 + u8::try_from(process % 128).unwrap();
            let [.., high, low] = (n + 1).to_be_bytes();
            Ipv4Addr::new(127, block, high, low).into()
        };
        let mut bound = Vec::new();
        for port in &ports {
            match TcpListener::bind(SocketAddr::new(ip, port.port)).await {
                Ok(listener) => bound.push((port.port, port.name.clone(), listener)),
                Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && !ipv6 => break,
                Err(e) => panic!("cannot listen on {ip}:{}: {e}", port.port),
            }
        }
        if bound.len() == ports.len() {
            return (ip, bound);
        }
    }
    panic!("64 loopback addresses in a row are taken");
}

/// Waits for an event, at most [`DEADLINE`].
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .unwrap_or_else(|_| panic!("waited {DEADLINE:?} in vain until {what}"))
}
