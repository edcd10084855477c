//! The mesh that faults are tried on: a client, an intruder with a good identity that no rule allows, a caller without any,
//! and servers behind one service. The servers' apps are of this process and listen in the networks of the pods, so that
//! they remember what they saw and fail when they are told to.

use crate::{
    calls::{Places, Seen},
    faulty::Faulty,
    pods::{PodNetwork, sidecar},
    up::{Up, User, skipped},
};
use std::{fmt::Write, net::SocketAddr};

/// A mesh that is up, with its apps.
pub struct Ground {
    pub mesh: Up,
    pub places: Places,
    /// The networks of the servers.
    pub servers: Vec<PodNetwork>,
    /// The apps in them.
    pub apps: Vec<Faulty>,
}

/// The names of the servers.
pub const SERVERS: [&str; 2] = ["server-0", "server-1"];
/// Where the apps listen.
pub const PORT: u16 = 8080;
const ECHO: u16 = 9000;

/// What runs in the servers' pods where the apps are of this process.
pub const NOTHING: &str = "[sleep, infinity]";
/// An app that is a process of its own, and tells what it sees in its lines.
pub const PROCESS: &str = r#"[postern, app, serve, --listen, "8080"], ports: [{containerPort: 8080}]"#;

/// The documents of a mesh with these servers, in whose pods `command` runs.
pub fn documents(servers: &[&str], command: &str, more: &str) -> String {
    let mut all = String::from(
        r#"apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to:
    - operation: {paths: [/ok, /shop.Echo/Say, /shop.Echo/Talk], methods: [GET, POST], ports: ["8080"]}
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]
    to: [{operation: {ports: ["9000"]}}]
---
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-echo, port: 9000, targetPort: 9000}]
"#,
    );
    let mut pod = |namespace: &str, name: &str, app: &str, command: &str| {
        let _ = write!(
            all,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
             spec: {{serviceAccountName: {app}, containers: [{{name: app, command: {command}}}]}}\n"
        );
    };
    pod("shop", "client", "client", NOTHING);
    pod("shop", "intruder", "intruder", NOTHING);
    pod("outside", "legacy", "legacy", NOTHING);
    servers.iter().for_each(|name| pod("shop", name, "server", command));
    all + more
}

impl Ground {
    /// Brings it up with one or two servers and further documents; says aloud why not, where it cannot.
    pub async fn start(servers: usize, more: &str) -> Option<Self> {
        let mut ground =
            Self::start_processes(&documents(&SERVERS[..servers], NOTHING, more), servers).await?;
        ground.apps = ground.servers.iter().map(|network| Faulty::on(network.listen(PORT))).collect();
        Some(ground)
    }

    /// The same with apps that are processes, as these documents say.
    pub async fn start_processes(documents: &str, servers: usize) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped("faults are put into networks of pods by root");
            return None;
        }
        if !User::with_namespaces().contains(&User::Root) {
            return None;
        }
        let mesh = Up::start(User::Root, documents, &[]);
        let names = &SERVERS[..servers];
        let network = |pod: &str| PodNetwork::of_process(sidecar(&mesh, pod));
        let servers: Vec<_> = names.iter().map(|name| network(name)).collect();
        let hosts = String::from_utf8(mesh.exec("client", &["cat", "/etc/hosts"]).stdout).unwrap();
        let service = hosts.lines().find(|line| line.contains("server.shop.svc ")).unwrap();
        let service = service.split_whitespace().next().unwrap();
        let at = |port: u16| format!("{service}:{port}").parse::<SocketAddr>().unwrap();
        let address = |name: &&str| {
            let (v4, _) = mesh.addresses(&format!("shop/{name}"));
            format!("{v4}:{PORT}").parse::<SocketAddr>().unwrap()
        };
        let places = Places {
            client: network("client"),
            intruder: network("intruder"),
            legacy: in_pod(&mesh, "legacy"),
            service: at(80),
            echo: at(ECHO),
            pods: names.iter().map(address).collect(),
        };
        servers.iter().for_each(echo);
        Some(Self { mesh, places, servers, apps: Vec::new() })
    }

    /// What the apps have seen.
    pub fn seen(&self) -> Seen {
        if !self.apps.is_empty() {
            return Seen::of(&self.apps);
        }
        let lines = self.mesh.run.since(0);
        Seen::told(lines.iter().map(String::as_str).filter(|line| line.contains(" app | ")))
    }
}

/// The network of a pod without a sidecar, by a program that runs in it and has this very network.
fn in_pod(mesh: &Up, pod: &str) -> PodNetwork {
    let told = mesh.exec(pod, &["readlink", "/proc/self/ns/net"]).stdout;
    let told = String::from_utf8(told).unwrap();
    let processes = mesh.processes();
    let inside = processes.iter().find(|process| {
        process.network.as_ref().is_some_and(|network| network.to_string_lossy() == told.trim())
    });
    PodNetwork::of_process(inside.expect("the pod's app runs").pid)
}

/// Gives back what it gets.
fn echo(network: &PodNetwork) {
    let listener = network.listen(ECHO);
    drop(tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            drop(tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }));
        }
    }));
}
