//! The running mesh as its owner holds it: apply documents, look into pods, run programs in them, ask their sidecars.
use super::{
    Options,
    journal::{Journal, Source},
    loopback::Layout,
    network::{Network, Wired},
    plan::{HUB_V4, Key, Plan, Pod},
    pod::{self, Running, State},
    sidecar,
};
use crate::failure::Failure;
use http_body_util::{BodyExt, Empty, Limited};
use parking_lot::Mutex;
use postern_config::Documents;
use postern_control_plane::ControlPlane;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::net::TcpStream;

/// How long one question to a sidecar may take.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);
/// From taking a pod out of its services to ending its programs: callers learn of it meanwhile.
const FAREWELL: Duration = Duration::from_millis(300);
/// The longest answer that is read from a sidecar.
const ADMIN_BYTES: usize = 16 * 1024 * 1024;

/// What a mesh stands on.
#[derive(Debug)]
pub enum Ground {
    /// Network namespaces around a bridge.
    Bridge {
        /// The wires.
        network: Network,
        /// There is one user only, so sidecars are told apart by mark.
        user_namespace: bool,
        /// The kernel has IPv6.
        ipv6: bool,
    },
    /// Loopback addresses, explicit ports.
    Loopback(Layout),
}

/// What a pod lives in.
#[derive(Debug)]
pub enum Home {
    /// Namespaces of its own.
    Wired(Wired),
    /// The ones of everybody.
    Loopback,
}

/// What a mesh is made of.
pub struct Parts {
    /// What was asked for.
    pub options: Options,
    /// The real path of the folder of YAML.
    pub directory: PathBuf,
    /// Where run files are.
    pub folder: PathBuf,
    /// Our program, at a path that every user of the mesh may follow.
    pub executable: PathBuf,
    /// `PATH` of apps.
    pub app_path: String,
    /// Namespaces or loopback.
    pub ground: Ground,
    /// Issues and publishes.
    pub control_plane: ControlPlane,
    /// The trust domain of this run.
    pub trust_domain: String,
    /// Where sidecars send spans.
    pub telemetry_endpoint: Option<super::telemetry_relay::Endpoint>,
    /// What is said.
    pub journal: Arc<Journal>,
}

/// A running mesh. Clones are handles to the same one.
#[derive(Clone)]
pub struct Mesh(Arc<Inner>);

struct Inner {
    parts: Parts,
    plan: Mutex<Arc<Plan>>,
    pods: Mutex<BTreeMap<Key, Running>>,
    /// Pods that may be called: they are ready, and not about to go.
    open: Mutex<BTreeSet<Key>>,
    turn: tokio::sync::Mutex<()>,
}

/// A pod as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Who.
    pub key: Key,
    /// Its SPIFFE ID, when it has a sidecar.
    pub identity: Option<String>,
    /// Where its app is reached, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The name of its cable in the hub.
    pub cable: Option<String>,
}

/// A sidecar's answer to its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminAnswer {
    /// HTTP status.
    pub status: u16,
    /// The body as text.
    pub body: String,
}

impl Mesh {
    /// A mesh without pods.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(Inner {
            parts,
            plan: Mutex::default(),
            pods: Mutex::default(),
            open: Mutex::default(),
            turn: tokio::sync::Mutex::new(()),
        }))
    }

    /// Makes the mesh what `documents` say: policy first, then pods that go, pods that come, and names in those that stay.
    /// Returns whether anything that runs was touched.
    ///
    /// # Errors
    /// The documents cannot be a mesh on this machine; nothing has changed then.
    pub async fn apply(&self, documents: &Documents) -> Result<bool, Failure> {
        let _turn = self.0.turn.lock().await;
        let old = self.plan();
        let new = Arc::new(Plan::make(documents, &old)?);
        let mut difference = old.difference(&new);
        if let Ground::Loopback(layout) = self.ground() {
            layout.admit(&new)?;
            if difference.services {
                // There the doors of sidecars are the services, so all pods start anew.
                difference.changed = new.pods.keys().filter(|k| old.pods.contains_key(*k)).cloned().collect();
            }
        }
        *self.0.plan.lock() = new.clone();
        let going = || difference.removed.iter().chain(&difference.changed);
        self.publish(|open| open.retain(|key| !going().any(|gone| gone == key)));

        let leaving: Vec<Running> = going().filter_map(|key| self.0.pods.lock().remove(key)).collect();
        if !leaving.is_empty() {
            tokio::time::sleep(FAREWELL).await;
        }
        let stopping: Vec<_> = leaving.into_iter().map(|running| tokio::spawn(running.stop())).collect();
        for stopped in stopping {
            let _ = stopped.await;
        }
        if difference.services {
            self.refresh().await;
        }
        for key in difference.added.iter().chain(&difference.changed) {
            if let Some(pod) = new.pods.get(key) {
                let running = Running::start(self.clone(), pod.clone());
                self.0.pods.lock().insert(key.clone(), running);
            }
        }
        Ok(difference != super::plan::Difference::default())
    }

    /// Tells the control plane what there is, after a change of who may be called. In a network of its own a pod that may not
    /// be has no address yet, as an unready one in Kubernetes is no endpoint.
    pub(super) fn publish(&self, change: impl FnOnce(&mut BTreeSet<Key>)) {
        // Held to the end, so that the latest state is told last.
        let mut open = self.0.open.lock();
        change(&mut open);
        let is_open = |pod: &Pod| matches!(self.ground(), Ground::Loopback(_)) || open.contains(&pod.key);
        self.control_plane().apply(self.plan().published(|pod| {
            let (addresses, annotations) = self.located(pod);
            (if is_open(pod) { addresses } else { Vec::new() }, annotations)
        }));
    }

    /// Waits until every pod is ready.
    ///
    /// # Errors
    /// One cannot be made; the first of them.
    pub async fn ready(&self) -> Result<(), Failure> {
        let states: Vec<_> =
            self.0.pods.lock().iter().map(|(key, running)| (key.clone(), running.state())).collect();
        for (key, mut state) in states {
            let settled = state.wait_for(|s| *s != State::Starting).await.map(|s| s.clone());
            if let Ok(State::Failed(failure)) = settled {
                return Err(Failure { cause: format!("pod {key}: {}", failure.cause), ..failure });
            }
        }
        Ok(())
    }

    /// Why the mesh is not ready: the first pod that is not, and the last thing that it said.
    pub fn what_is_missing(&self) -> Failure {
        let waiting = self
            .0
            .pods
            .lock()
            .iter()
            .find(|(_, running)| *running.state().borrow() != State::Ready)
            .map(|(key, _)| key.clone());
        let Some(key) = waiting else {
            return Failure::new("the mesh is ready only now.", "Start it again.");
        };
        let name = self.log_name(&key);
        let said = |source| self.journal().lines(&name, source).last().map(|l| l.to_string());
        let last = said(Source::Proxy).or_else(|| said(Source::App)).unwrap_or_else(|| "nothing".into());
        Failure::new(
            format!("pod {key} is not ready; the last that it said was: {last}"),
            format!("Look at all that it says with `postern up {}`.", self.options().directory.display()),
        )
    }

    /// Stops every pod in order.
    pub async fn stop(&self) {
        let _turn = self.0.turn.lock().await;
        let pods = std::mem::take(&mut *self.0.pods.lock());
        let stopping: Vec<_> = pods.into_values().map(|running| tokio::spawn(running.stop())).collect();
        for stopped in stopping {
            let _ = stopped.await;
        }
    }

    /// The pods, sorted by namespace and name.
    pub fn pods(&self) -> Vec<PodView> {
        let plan = self.plan();
        plan.pods.values().map(|pod| self.view(pod)).collect()
    }

    /// The address of a pod's app (IPv4 with namespaces); see [`Plan::pod`] for what `pod` may be.
    pub fn address(&self, pod: &str) -> Option<IpAddr> {
        self.addresses(pod).first().copied()
    }

    /// All addresses of a pod's app, IPv4 first; traffic between pods may use either family.
    pub fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        self.plan().pod(pod).map(|pod| self.view(pod).addresses).unwrap_or_default()
    }

    /// Virtual addresses of a service, IPv4 first.
    pub fn service(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        self.plan().services.get(&Key::new(namespace, name)).map(|s| s.addresses.clone()).unwrap_or_default()
    }

    /// The address of the hub, where the control plane listens and a collector may.
    pub fn hub(&self) -> Ipv4Addr {
        hub(self.ground())
    }

    /// Whether packets between pods can be captured in this process's network (on [`super::network::BRIDGE`]).
    pub fn captures(&self) -> bool {
        matches!(self.ground(), Ground::Bridge { .. })
    }

    /// Runs a program in a pod, as its app would be, and waits for it.
    ///
    /// # Errors
    /// There is no such pod, or the program cannot be started.
    pub async fn exec(&self, pod: &str, argv: &[&str]) -> anyhow::Result<Output> {
        let argv = argv.iter().map(|a| (*a).to_owned()).collect();
        let mut command = tokio::process::Command::from(self.command_in(pod, argv, [])?);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(command.output().await?)
    }

    /// The command for a program in a pod, with `more` variables.
    ///
    /// # Errors
    /// There is no such pod, or it is not there yet.
    pub fn command_in(
        &self,
        pod: &str,
        argv: Vec<String>,
        more: impl IntoIterator<Item = (String, String)>,
    ) -> Result<std::process::Command, Failure> {
        let plan = self.plan();
        let pod = plan.pod(pod)?;
        let home = self.home(&pod.key)?;
        let home = home.get().ok_or_else(|| starting(&pod.key))?;
        let container = pod.containers.first().cloned().unwrap_or_default();
        let mut variables = pod::variables(self, pod, &container);
        variables.extend(more);
        Ok(pod::app_command(self, home, &container, variables, argv))
    }

    /// A connection that begins inside a pod (as the supervisor's user, so through the pod's redirect rules).
    ///
    /// # Errors
    /// There is no such pod, or nobody answers.
    pub async fn connect(&self, pod: &str, address: SocketAddr) -> anyhow::Result<TcpStream> {
        let plan = self.plan();
        let home = self.home(&plan.pod(pod)?.key)?;
        let connecting = tokio::task::spawn_blocking(move || match home.get() {
            Some(Home::Wired(wired)) => wired.namespaces.connect(address, ADMIN_DEADLINE),
            _ => std::net::TcpStream::connect_timeout(&address, ADMIN_DEADLINE),
        });
        let stream = connecting.await??;
        stream.set_nonblocking(true)?;
        Ok(TcpStream::from_std(stream)?)
    }

    /// Asks a pod's sidecar on its admin port.
    ///
    /// # Errors
    /// There is no such pod or sidecar, or it does not answer in time.
    pub async fn admin(&self, pod: &str, method: &str, path: &str) -> anyhow::Result<AdminAnswer> {
        let plan = self.plan();
        let found = plan.pod(pod)?;
        if !found.injected {
            anyhow::bail!("pod {} has no sidecar", found.key);
        }
        let address = sidecar::admin(self, found);
        let ask = async {
            let stream = hyper_util::rt::TokioIo::new(self.connect(&found.key.to_string(), address).await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            let connection = tokio::spawn(connection);
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .header(http::header::HOST, address.to_string())
                .body(Empty::<bytes::Bytes>::new())?;
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            let body = Limited::new(response.into_body(), ADMIN_BYTES)
                .collect()
                .await
                .map_err(|e| anyhow::anyhow!("the answer broke off: {e}"))?
                .to_bytes();
            connection.abort();
            Ok(AdminAnswer { status, body: String::from_utf8_lossy(&body).into_owned() })
        };
        tokio::time::timeout(ADMIN_DEADLINE, ask)
            .await
            .map_err(|_| anyhow::anyhow!("the sidecar of {} does not answer", found.key))?
    }

    /// Everything that a pod's app has said (as far as kept).
    pub async fn app_log(&self, pod: &str) -> String {
        let name = self.plan().pod(pod).map(|p| self.log_name(&p.key)).unwrap_or_default();
        self.journal().lines(&name, Source::App).iter().map(|l| format!("{l}\n")).collect()
    }

    /// The newest line of a sidecar's access log that `wanted` accepts; when there is none yet, the first one within `deadline`.
    pub async fn access_line(
        &self,
        pod: &str,
        wanted: impl Fn(&Value) -> bool,
        deadline: Duration,
    ) -> Option<Value> {
        let name = self.plan().pod(pod).map(|p| self.log_name(&p.key)).ok()?;
        let journal = self.journal();
        let parsed = |line: &str| serde_json::from_str::<Value>(line).ok().filter(|v| wanted(v));
        let cursor = journal.cursor(&name, Source::Proxy);
        if let Some(found) = journal.lines(&name, Source::Proxy).iter().rev().find_map(|l| parsed(l)) {
            return Some(found);
        }
        let line =
            journal.wait_for_line(&name, Source::Proxy, cursor, deadline, |l| parsed(l).is_some()).await?;
        parsed(&line)
    }

    /// What is said in this mesh.
    pub fn journal(&self) -> Arc<Journal> {
        self.0.parts.journal.clone()
    }

    /// What a pod is called in logs: its name, with the namespace when two have that name.
    pub fn log_name(&self, key: &Key) -> String {
        let plan = self.plan();
        if plan.pods.keys().filter(|k| k.name == key.name).count() > 1 {
            format!("{}.{}", key.namespace, key.name)
        } else {
            key.name.clone()
        }
    }

    pub(super) fn plan(&self) -> Arc<Plan> {
        self.0.plan.lock().clone()
    }

    pub(super) fn options(&self) -> &Options {
        &self.0.parts.options
    }

    pub(super) fn ground(&self) -> &Ground {
        &self.0.parts.ground
    }

    pub(super) fn control_plane(&self) -> &ControlPlane {
        &self.0.parts.control_plane
    }

    pub(super) fn control_plane_address(&self) -> SocketAddr {
        SocketAddr::new(self.hub().into(), self.control_plane().address().port())
    }

    pub(super) fn trust_domain(&self) -> &str {
        &self.0.parts.trust_domain
    }

    pub(super) fn telemetry_endpoint(&self) -> Option<&super::telemetry_relay::Endpoint> {
        self.0.parts.telemetry_endpoint.as_ref()
    }

    pub(super) fn executable(&self) -> &Path {
        &self.0.parts.executable
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0.parts.directory
    }

    pub(super) fn app_path(&self) -> String {
        self.0.parts.app_path.clone()
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0.parts.folder
    }

    pub(super) fn pod_folder(&self, key: &Key) -> PathBuf {
        self.folder().join("pods").join(pod::folder_name(key))
    }

    fn home(&self, key: &Key) -> Result<Arc<OnceLock<Home>>, Failure> {
        self.0.pods.lock().get(key).map(Running::home).ok_or_else(|| starting(key))
    }

    fn view(&self, pod: &Pod) -> PodView {
        let home = self.home(&pod.key).ok();
        let cable = home.as_ref().and_then(|h| h.get()).and_then(|h| match h {
            Home::Wired(wired) => Some(wired.cable.clone()),
            Home::Loopback => None,
        });
        PodView {
            identity: pod.injected.then(|| {
                format!(
                    "spiffe://{}/ns/{}/sa/{}",
                    self.trust_domain(),
                    pod.key.namespace,
                    pod.service_account
                )
            }),
            addresses: self.located(pod).0,
            cable,
            key: pod.key.clone(),
        }
    }

    fn located(&self, pod: &Pod) -> (Vec<IpAddr>, BTreeMap<String, String>) {
        match self.ground() {
            Ground::Bridge { ipv6, .. } => {
                let (v4, v6) = pod.addresses();
                let mut addresses = vec![IpAddr::V4(v4)];
                if *ipv6 {
                    addresses.push(v6.into());
                }
                (addresses, BTreeMap::new())
            }
            Ground::Loopback(layout) => (vec![layout.app(pod).into()], layout.annotations(pod)),
        }
    }

    /// Renews names and service addresses in the pods that stay.
    async fn refresh(&self) {
        let staying: Vec<_> = self.0.pods.lock().values().map(|r| (r.pod.clone(), r.home())).collect();
        for (pod, home) in staying {
            let mesh = self.clone();
            let renewed = tokio::task::spawn_blocking(move || {
                home.get().map_or(Ok(()), |home| pod::refresh(&mesh, &pod, home))
            });
            if let Ok(Err(failure)) = renewed.await {
                self.journal().note(&failure.to_string());
            }
        }
    }
}

/// The address of the hub on this ground.
pub fn hub(ground: &Ground) -> Ipv4Addr {
    match ground {
        Ground::Bridge { .. } => HUB_V4,
        Ground::Loopback(_) => Ipv4Addr::LOCALHOST,
    }
}

fn starting(key: &Key) -> Failure {
    Failure::new(
        format!("pod {key} is not there yet."),
        "Try again in a moment; its log says what it waits for.",
    )
}
