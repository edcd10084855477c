//! The command line of a pod's sidecar, and the two files it starts from. Secrets are in files of its own user, never in arguments.
use super::{
    kernel::capability,
    launch::{Bounds, LaunchArgs},
    mesh::{Ground, Home, Mesh},
    plan::Pod,
};
use crate::interception::rules::{PROXY_MARK, PROXY_UID};
use postern_proxy::{bootstrap::InterceptionMode, workload_api::Socket};
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{OpenOptionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

/// Where a sidecar answers its owner.
pub const ADMIN_PORT: u16 = 15000;
/// Where it says whether it is ready.
pub const PROBE_PORT: u16 = 15021;
/// Where it shows its metrics.
pub const METRICS_PORT: u16 = 15090;
/// Where they are with the app's own.
pub const MERGED_METRICS_PORT: u16 = 15020;
const WORKLOAD_SOCKET: &str = "workload.sock";

/// The sidecar's address for its owner, as seen in the pod.
pub fn admin(mesh: &Mesh, pod: &Pod) -> SocketAddr {
    match mesh.ground() {
        Ground::Bridge { .. } => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), ADMIN_PORT),
        Ground::Loopback(layout) => SocketAddr::new(layout.sidecar(pod).into(), ADMIN_PORT),
    }
}

/// Where the supervisor asks whether the sidecar is ready.
pub fn probe(mesh: &Mesh, pod: &Pod) -> SocketAddr {
    let address = match mesh.ground() {
        Ground::Bridge { .. } => pod.addresses().0,
        Ground::Loopback(layout) => layout.sidecar(pod),
    };
    SocketAddr::new(address.into(), PROBE_PORT)
}

/// The folder of the socket by which a pod gets its own identity (SPIFFE Workload API); none for a pod outside the mesh, or
/// where the path would be longer than that of a socket may be. Named by number, since names of pods are long.
pub fn workload_folder(mesh: &Mesh, pod: &Pod) -> Option<PathBuf> {
    let folder = mesh.folder().join("workload").join(pod.number.to_string());
    let fits = folder.join(WORKLOAD_SOCKET).as_os_str().len() <= Socket::LONGEST_PATH;
    (pod.injected && fits).then_some(folder)
}

/// `SPIFFE_ENDPOINT_SOCKET` of the pod's programs (SPIFFE Workload Endpoint 4). Where a pod has mounts of its own, its folder
/// stands in the place of all files of the mesh.
pub fn workload_endpoint(mesh: &Mesh, pod: &Pod) -> Option<String> {
    let folder = workload_folder(mesh, pod)?;
    let seen = match mesh.ground() {
        Ground::Bridge { .. } => mesh.folder(),
        Ground::Loopback(_) => &folder,
    };
    Some(format!("unix://{}", seen.join(WORKLOAD_SOCKET).display()))
}

/// The command for one start, with a fresh token.
///
/// # Errors
/// The files cannot be written.
pub fn command(mesh: &Mesh, pod: &Pod, home: &Home) -> io::Result<Command> {
    let folder = mesh.pod_folder(&pod.key);
    let (token, bundle) = (folder.join("join-token"), folder.join("trust-bundle.pem"));
    let user = own_user(mesh.ground());
    let control_plane = mesh.control_plane();
    let secret = control_plane.join_token(&pod.key.namespace, &pod.service_account, &pod.key.name);
    write_secret(&token, secret.as_bytes(), user)?;
    write_secret(&bundle, control_plane.trust_bundle_pem().as_bytes(), user)?;

    let mut arguments: Vec<String> = vec![mesh.executable().display().to_string(), "proxy".into()];
    let mut flag = |name: &str, value: String| arguments.push(format!("--{name}={value}"));
    flag("instance", pod.key.name.clone());
    flag("control-plane", mesh.control_plane_address().to_string());
    flag("trust-domain", mesh.trust_domain().to_owned());
    flag("trust-bundle", bundle.display().to_string());
    flag("join-token-file", token.display().to_string());
    flag("admin", admin(mesh, pod).to_string());
    // Somebody is looking.
    flag("report-interval", "2".to_owned());
    if let Some(folder) = workload_folder(mesh, pod) {
        flag("workload-api", format!("unix:{}", folder.join(WORKLOAD_SOCKET).display()));
    }
    match mesh.ground() {
        // Ports of the data path, probes and metrics are the sidecar's own defaults.
        Ground::Bridge { .. } => {
            if user.is_none() {
                flag("mark", PROXY_MARK.to_string());
            }
            if pod.interception == InterceptionMode::Tproxy {
                flag("interception-mode", "tproxy".to_owned());
            }
        }
        Ground::Loopback(layout) => {
            for l in layout.inbound(pod) {
                flag("explicit-inbound", format!("{}={}", l.bind, l.destination));
            }
            for l in layout.outbound(pod, &mesh.plan()) {
                flag("explicit-outbound", format!("{}={}", l.bind, l.destination));
            }
            flag("probes", SocketAddr::new(layout.sidecar(pod).into(), PROBE_PORT).to_string());
            flag("metrics", SocketAddr::new(layout.sidecar(pod).into(), METRICS_PORT).to_string());
            let merged = SocketAddr::new(layout.sidecar(pod).into(), MERGED_METRICS_PORT);
            flag("merged-metrics", merged.to_string());
        }
    }
    if let Some(page) = &pod.app_metrics {
        let app = match mesh.ground() {
            Ground::Bridge { .. } => Ipv4Addr::LOCALHOST,
            Ground::Loopback(layout) => layout.app(pod),
        };
        flag("app-metrics", format!("http://{app}:{}{}", page.address.port(), page.path));
    }
    if let Some(lifetime) = mesh.options().certificate_lifetime {
        flag("certificate-lifetime", lifetime.as_secs().to_string());
    }

    let mut launch = LaunchArgs { command: arguments, ..LaunchArgs::default() };
    match home {
        Home::Wired(wired) => {
            // Not the pod's mounts: they hide the files above.
            let [network, _, names] = wired.namespaces.paths();
            launch.network = Some(network);
            launch.names = Some(names);
            launch.user = user;
            launch.capabilities = Some(Bounds(match (user, pod.interception) {
                (Some(_), InterceptionMode::Redirect) => vec![],
                (Some(_), InterceptionMode::Tproxy) => vec![capability::NET_ADMIN],
                (None, _) => vec![capability::NET_ADMIN, capability::NET_RAW],
            }));
        }
        Home::Loopback => launch.die_with_parent = true,
    }
    let mut command = launch.command(mesh.executable());
    // Its standard error is for what goes wrong; what it does is in the access log.
    command.env_clear().env("POSTERN_LOG", "warn");
    if let Some(endpoint) = mesh.telemetry_endpoint() {
        command.envs(endpoint.variables());
    }
    Ok(command)
}

/// The user that sidecars run as; none where only one user exists, or where we are an ordinary one.
pub fn own_user(ground: &Ground) -> Option<u32> {
    match ground {
        Ground::Bridge { user_namespace: false, .. } => Some(PROXY_UID),
        _ => None,
    }
}

fn write_secret(path: &Path, content: &[u8], user: Option<u32>) -> io::Result<()> {
    // A new file each time, so that nobody who opened the old one reads the new content.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    chown(path, user, user)
}
