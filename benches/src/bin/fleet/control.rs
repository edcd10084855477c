//! The control plane as a process, which ends with the pipe from the bench.

use postern_config::documents::{self, SourceFile};
use postern_control_plane::{ControlPlane, Options};
use std::{fs, net::SocketAddr, path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, ChildStdin, Command},
};

/// Services that the sidecars are replicas of.
const SERVICES: usize = 500;
const NAMESPACE: &str = "fleet";

/// Service account and pod of one sidecar.
pub fn names(sidecar: usize) -> (String, String) {
    (format!("service-{}", sidecar % SERVICES), format!("service-{}-{sidecar}", sidecar % SERVICES))
}

/// A running control plane, seen from the bench.
pub struct Process {
    child: Child,
    input: ChildStdin,
    pub address: SocketAddr,
    pub bundle: String,
    /// One for each sidecar.
    pub tokens: Vec<String>,
}

impl Process {
    pub async fn start(sidecars: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--control-plane", "--sidecars", &sidecars.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let mut hear = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = hear.next_line().await.unwrap().expect("the control plane starts").parse().unwrap();
        let folder = PathBuf::from(hear.next_line().await.unwrap().unwrap());
        let read = |name| fs::read_to_string(folder.join(name)).unwrap();
        let tokens = read("tokens").lines().map(str::to_owned).collect();
        Self { child, input, address, bundle: read("bundle.pem"), tokens }
    }

    pub fn id(&self) -> u32 {
        self.child.id().unwrap()
    }

    pub async fn stop(mut self) {
        drop(self.input);
        let _ = self.child.wait().await;
    }
}

/// Is the control plane, until its standard input ends.
pub fn run(sidecars: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let control = start(sidecars).await;
        let folder = tempfile::tempdir().unwrap();
        let tokens: Vec<String> = (0..sidecars)
            .map(names)
            .map(|(account, pod)| control.join_token(NAMESPACE, &account, &pod))
            .collect();
        // The folder is ours alone.
        fs::write(folder.path().join("tokens"), tokens.join("\n")).unwrap();
        fs::write(folder.path().join("bundle.pem"), control.trust_bundle_pem()).unwrap();
        println!("{}\n{}", control.address(), folder.path().display());
        // Ends when nobody holds the other end any more.
        let _ = tokio::io::stdin().read(&mut [0]).await;
        // Not in order: that is not what is measured.
        std::process::exit(0);
    });
}

async fn start(sidecars: usize) -> ControlPlane {
    let control = postern_control_plane::start(Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        state: None,
        trust_domain: "cluster.local".into(),
        certificate_lifetime: Duration::from_secs(3600),
        unix_socket: None,
        kubernetes: None,
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
        federation: postern_control_plane::federation::Settings::default(),
    })
    .await
    .unwrap();
    let mut mesh = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n"
    );
    let mut files = Vec::new();
    for sidecar in 0..sidecars {
        let (account, pod) = names(sidecar);
        mesh += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {NAMESPACE}, labels: {{app: {account}}}}}\n\
             spec: {{serviceAccountName: {account}, containers: [{{name: c, command: [serve]}}]}}\n\
             status: {{podIP: 10.{}.{}.{}}}\n",
            sidecar / 65_536,
            sidecar / 256 % 256,
            sidecar % 256
        );
        // A file has a largest size.
        if sidecar % 1_000 == 999 || sidecar + 1 == sidecars {
            files.push(SourceFile { name: format!("{}.yaml", files.len()), text: std::mem::take(&mut mesh) });
        }
    }
    let (documents, _) = documents::read(&files);
    assert_eq!(documents.pods.len(), sidecars);
    control.apply(documents);
    control
}
