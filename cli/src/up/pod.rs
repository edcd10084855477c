//! The life of one pod: a home with rules, a sidecar that is ready, then the app; and the way back.
use super::{
    hosts,
    journal::Source,
    kernel::capability,
    launch::{Bounds, LaunchArgs},
    mesh::{Ground, Home, Mesh},
    network::{ADDRESS_ORDER, HOSTS, RESOLVER},
    plan::{Key, Pod},
    process::{self, Identity},
    sidecar,
};
use crate::failure::Failure;
use nix::fcntl::AT_FDCWD;
use postern_config::documents::kubernetes::{Container, PodField};
use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// How often a pod that starts is looked at.
const LOOK: Duration = Duration::from_millis(25);
/// After this a person wants to know why nothing happens.
const SLOW: Duration = Duration::from_secs(10);
/// How long an app may take until it listens; then it counts as ready all the same.
const APP_START: Duration = Duration::from_secs(5);
const APP_GRACE: Duration = Duration::from_secs(2);
/// A sidecar that is told to end lets go on what is open until its `--drain-deadline`, 5 s, and then writes what is left to write.
const SIDECAR_GRACE: Duration = Duration::from_secs(7);
/// What programs in pods may have, at most: what containers have, without changing users or the network.
const APP_CAPABILITIES: [i32; 6] = [
    capability::CHOWN,
    capability::DAC_OVERRIDE,
    capability::FOWNER,
    capability::FSETID,
    capability::KILL,
    capability::NET_BIND_SERVICE,
];

/// Where a pod is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet.
    Starting,
    /// Its sidecar is ready and its programs run.
    Ready,
    /// It has no home; the reason.
    Failed(Failure),
}

/// A pod that is alive, from outside.
pub struct Running {
    /// What it is.
    pub pod: Pod,
    home: Arc<OnceLock<Home>>,
    state: watch::Receiver<State>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts its life.
    pub fn start(mesh: Mesh, pod: Pod) -> Self {
        let home = Arc::new(OnceLock::new());
        let (tell, state) = watch::channel(State::Starting);
        let stop = CancellationToken::new();
        let task = tokio::spawn(live(mesh, pod.clone(), home.clone(), tell, stop.clone()));
        Self { pod, home, state, stop, task }
    }

    /// Its home, once it has one.
    pub fn home(&self) -> Arc<OnceLock<Home>> {
        self.home.clone()
    }

    /// Follows its state.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Ends its life in order.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

async fn live(
    mesh: Mesh,
    pod: Pod,
    home: Arc<OnceLock<Home>>,
    state: watch::Sender<State>,
    stop: CancellationToken,
) {
    let here = {
        let (mesh, pod) = (mesh.clone(), pod.clone());
        tokio::task::spawn_blocking(move || settle(&mesh, &pod)).await
    };
    match here
        .unwrap_or_else(|e| Err(Failure::new(format!("the pod could not be made: {e}."), "Report this.")))
    {
        Ok(made) => drop(home.set(made)),
        Err(failure) => {
            state.send_replace(State::Failed(failure));
            return;
        }
    }

    let stop_sidecar = CancellationToken::new();
    let sidecar = pod.injected.then(|| {
        let identity = Identity {
            pod: mesh.log_name(&pod.key),
            source: Source::Proxy,
            what: "sidecar".into(),
            grace: SIDECAR_GRACE,
        };
        let (of, pod, home) = (mesh.clone(), pod.clone(), home.clone());
        let make = move || sidecar::command(&of, &pod, home.get().ok_or_else(homeless)?);
        tokio::spawn(process::keep(identity, mesh.journal(), stop_sidecar.clone(), make))
    });
    tokio::select! {
        () = sidecar_ready(&mesh, &pod) => {}
        () = stop.cancelled() => {}
    }

    let mut apps = Vec::new();
    for container in pod.containers.iter().filter(|_| !stop.is_cancelled()) {
        let what = if pod.containers.len() == 1 { "app".to_owned() } else { container.name.clone() };
        let identity = Identity { pod: mesh.log_name(&pod.key), source: Source::App, what, grace: APP_GRACE };
        let (of, pod, home, container) = (mesh.clone(), pod.clone(), home.clone(), container.clone());
        let make = move || {
            let home = home.get().ok_or_else(homeless)?;
            let variables = variables(&of, &pod, &container);
            let argv =
                container.command.iter().chain(&container.args).map(|a| expand(a, &variables)).collect();
            Ok(app_command(&of, home, &container, variables, argv))
        };
        apps.push(tokio::spawn(process::keep(identity, mesh.journal(), stop.clone(), make)));
    }
    tokio::select! {
        () = app_listens(&mesh, &pod, &home) => {}
        () = stop.cancelled() => {}
    }
    if !stop.is_cancelled() {
        mesh.publish(|open| {
            open.insert(pod.key.clone());
        });
    }
    state.send_replace(State::Ready);

    stop.cancelled().await;
    for app in apps {
        let _ = app.await;
    }
    stop_sidecar.cancel();
    if let Some(sidecar) = sidecar {
        let _ = sidecar.await;
    }
    if let (Ground::Bridge { network, .. }, Some(Home::Wired(wired))) = (mesh.ground(), home.get()) {
        network.unplug(&wired.cable);
    }
    let _ = fs::remove_dir_all(mesh.pod_folder(&pod.key));
    if let Some(folder) = sidecar::workload_folder(&mesh, &pod) {
        let _ = fs::remove_dir_all(folder);
    }
}

fn homeless() -> io::Error {
    io::Error::other("the pod has no namespaces")
}

/// Makes the pod's folder and its home, with all rules in place.
fn settle(mesh: &Mesh, pod: &Pod) -> Result<Home, Failure> {
    let folder = mesh.pod_folder(&pod.key);
    let broken = |e: io::Error| {
        Failure::new(format!("`{}` cannot be made: {e}.", folder.display()), "Free the place and try again.")
    };
    fs::create_dir_all(&folder).map_err(broken)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).map_err(broken)?;
    let user = sidecar::own_user(mesh.ground()).map(nix::unistd::Uid::from_raw);
    nix::unistd::fchownat(AT_FDCWD, &folder, user, None, nix::fcntl::AtFlags::empty())
        .map_err(|e| broken(e.into()))?;
    let workload = sidecar::workload_folder(mesh, pod);
    if let Some(folder) = &workload {
        // Every user of the pod may use the socket; only the sidecar's may make one.
        fs::create_dir_all(folder).map_err(broken)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).map_err(broken)?;
        nix::unistd::fchownat(AT_FDCWD, folder, user, None, nix::fcntl::AtFlags::empty())
            .map_err(|e| broken(e.into()))?;
    }
    match mesh.ground() {
        Ground::Loopback(_) => Ok(Home::Loopback),
        Ground::Bridge { network, .. } => {
            let plan = mesh.plan();
            write_hosts(&folder.join(HOSTS), &hosts::hosts(&plan, pod)).map_err(broken)?;
            write_hosts(&folder.join(ADDRESS_ORDER), hosts::ADDRESS_ORDER).map_err(broken)?;
            write_hosts(&folder.join(RESOLVER), hosts::RESOLVER).map_err(broken)?;
            let services = plan.virtual_addresses(!pod.injected);
            let wired = network.wire(pod, &folder, mesh.folder(), workload.as_deref(), services)?;
            Ok(Home::Wired(wired))
        }
    }
}

/// Brings names and service addresses of a running pod up to date.
///
/// # Errors
/// A tool refuses; the old ones stay.
pub fn refresh(mesh: &Mesh, pod: &Pod, home: &Home) -> Result<(), Failure> {
    let (Ground::Bridge { network, .. }, Home::Wired(wired)) = (mesh.ground(), home) else { return Ok(()) };
    let plan = mesh.plan();
    let file = mesh.pod_folder(&pod.key).join(HOSTS);
    write_hosts(&file, &hosts::hosts(&plan, pod)).map_err(|e| {
        Failure::new(format!("the names of {} are not renewed: {e}.", pod.key), "Free the place.")
    })?;
    network.update_services(wired, plan.virtual_addresses(!pod.injected))
}

/// In place, since a pod has this very file mounted; content before length, so that a reader never sees it empty.
fn write_hosts(path: &Path, text: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all_at(text.as_bytes(), 0)?;
    file.set_len(text.len() as u64)
}

async fn sidecar_ready(mesh: &Mesh, pod: &Pod) {
    if !pod.injected {
        return;
    }
    let (began, mut told) = (std::time::Instant::now(), false);
    while !answers_ready(sidecar::probe(mesh, pod)).await {
        if !told && began.elapsed() > SLOW {
            told = true;
            let pod = mesh.log_name(&pod.key);
            mesh.journal().note(&format!(
                "{pod}: the sidecar is not ready after {} s; the app waits for it.",
                SLOW.as_secs()
            ));
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn answers_ready(probe: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(probe).await?;
        stream
            .write_all(b"GET /healthz/ready HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\n\r\n")
            .await?;
        let mut head = [0_u8; 12];
        stream.read_exact(&mut head).await?;
        Ok::<bool, io::Error>(head.ends_with(b" 200"))
    };
    matches!(tokio::time::timeout(Duration::from_secs(1), ask).await, Ok(Ok(true)))
}

/// Waits until the declared ports have a listener; seen in the kernel's table, so that the app is not disturbed.
async fn app_listens(mesh: &Mesh, pod: &Pod, home: &Arc<OnceLock<Home>>) {
    let ports = pod.ports();
    let look = async {
        loop {
            let (home, ports) = (home.clone(), ports.clone());
            let seen = tokio::task::spawn_blocking(move || match home.get() {
                Some(Home::Wired(wired)) => wired.namespaces.within(move || all_listen(&ports)),
                _ => all_listen(&ports),
            });
            if matches!(seen.await, Ok(Ok(true))) {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(APP_START, look).await.is_err() {
        let name = mesh.log_name(&pod.key);
        mesh.journal().note(&format!("{name}: nothing listens on all of the declared ports {ports:?} yet."));
    }
}

fn all_listen(ports: &[u16]) -> io::Result<bool> {
    let mut table = fs::read_to_string("/proc/thread-self/net/tcp")?;
    table.push_str(&fs::read_to_string("/proc/thread-self/net/tcp6").unwrap_or_default());
    Ok(ports.iter().all(|port| listens(&table, *port)))
}

/// Whether a table of proc(5) net/tcp shows a listener (state 0A) on this port.
fn listens(table: &str, port: u16) -> bool {
    let ending = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&ending)) && fields.nth(1) == Some("0A")
    })
}

/// The environment of a container: a small base, the pod's facts, services where there are no names, and what the document says.
pub fn variables(mesh: &Mesh, pod: &Pod, container: &Container) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    let (address, addresses) = match mesh.ground() {
        Ground::Bridge { .. } => {
            let (v4, v6) = pod.addresses();
            (v4, format!("{v4},{v6}"))
        }
        Ground::Loopback(layout) => {
            all.extend(layout.variables(pod, &mesh.plan()));
            // Who listens on all addresses would take the port from every other pod; `postern app` heeds this.
            all.insert("POSTERN_BIND_IP".to_owned(), layout.app(pod).to_string());
            (layout.app(pod), layout.app(pod).to_string())
        }
    };
    for (name, value) in [
        ("PATH", mesh.app_path()),
        ("HOME", std::env::var("HOME").unwrap_or_else(|_| "/".into())),
        ("LANG", "C.UTF-8".into()),
        ("HOSTNAME", pod.key.name.clone()),
        ("POD_NAME", pod.key.name.clone()),
        ("POD_NAMESPACE", pod.key.namespace.clone()),
        ("POD_IP", address.to_string()),
        ("POD_IPS", addresses),
    ] {
        all.insert(name.to_owned(), value);
    }
    if let Some(endpoint) = sidecar::workload_endpoint(mesh, pod) {
        all.insert("SPIFFE_ENDPOINT_SOCKET".to_owned(), endpoint);
    }
    for (name, field) in &container.field_env {
        let value = match field {
            PodField::Name => pod.key.name.clone(),
            PodField::Namespace => pod.key.namespace.clone(),
            PodField::PodIp => address.to_string(),
            PodField::ServiceAccount => pod.service_account.clone(),
        };
        all.insert(name.clone(), value);
    }
    for (name, value) in &container.env {
        let value = expand(value, &all);
        all.insert(name.clone(), value);
    }
    all
}

/// The command for a program in a pod, as the app: through its redirect rules and without rights to change them.
pub fn app_command(
    mesh: &Mesh,
    home: &Home,
    container: &Container,
    variables: BTreeMap<String, String>,
    argv: Vec<String>,
) -> Command {
    let base = mesh.directory();
    let directory = container.working_dir.as_ref().map_or_else(|| base.to_owned(), |w| base.join(w));
    let mut launch = LaunchArgs { command: argv, directory: Some(directory), ..LaunchArgs::default() };
    match home {
        Home::Wired(wired) => {
            let [network, mounts, names] = wired.namespaces.paths();
            launch.network = Some(network);
            launch.mounts = Some(mounts);
            launch.names = Some(names);
            launch.capabilities = Some(Bounds(APP_CAPABILITIES.to_vec()));
        }
        Home::Loopback => launch.die_with_parent = true,
    }
    let mut command = launch.command(mesh.executable());
    command.env_clear().envs(variables);
    command
}

/// Kubernetes' `$(NAME)`: replaced when the name is known, kept when not; `$$(NAME)` stands for `$(NAME)` itself.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        if let Some(escaped) = after.strip_prefix('$') {
            result.push('$');
            rest = escaped;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|r| r.split_once(')'));
        match reference.and_then(|(name, left)| Some((variables.get(name)?, left))) {
            Some((value, left)) => {
                result.push_str(value);
                rest = left;
            }
            None => {
                result.push('$');
                rest = after;
            }
        }
    }
    result.push_str(rest);
    result
}

/// The folder of a pod below the mesh's.
pub fn folder_name(key: &Key) -> String {
    format!("{}.{}", key.namespace, key.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn references_to_variables_are_replaced_as_kubernetes_does() {
        let variables = [("POD_IP".to_owned(), "10.244.0.2".to_owned())].into();
        for (text, expected) in [
            ("http://$(POD_IP):80", "http://10.244.0.2:80"),
            ("$(POD_IP)$(POD_IP)", "10.244.0.210.244.0.2"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(POD_IP)", "$(POD_IP)"),
            ("$POD_IP costs 5$", "$POD_IP costs 5$"),
            ("$(POD_IP", "$(POD_IP"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue\n   \
                     0: 0200F40A:1F90 00000000:0000 0A 00000000:00000000\n   \
                     1: 0200F40A:0050 0100F40A:9999 01 00000000:00000000\n";
        assert!(listens(table, 8080));
        assert!(!listens(table, 80), "connected is not listening");
        assert!(!listens(table, 8081));
    }

    #[test]
    fn hosts_are_replaced_in_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_hosts(file.path(), "a long content\n").unwrap();
        let before = file.as_file().metadata().unwrap();
        write_hosts(file.path(), "short\n").unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap(), "short\n");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(before.ino(), fs::metadata(file.path()).unwrap().ino());
    }
}
