//! The control plane as a process, which ends with the pipe from the bench.

use postern_benches::beside;
use postern_config::documents::{self, SourceFile};
use postern_control_plane::{ControlPlane, admin::pages, run::ADMIN_SOCKET};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Stdio,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    process::{Child, ChildStdin, Command},
};

/// Services that the sidecars are replicas of.
const SERVICES: usize = 500;
const NAMESPACE: &str = "fleet";

/// Service account and pod of one sidecar.
pub fn names(sidecar: usize) -> (String, String) {
    (format!("service-{}", sidecar % SERVICES), format!("service-{}-{sidecar}", sidecar % SERVICES))
}

/// Where the pod of one sidecar is.
pub fn pod_ip(sidecar: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(sidecar).unwrap())
}

/// A running control plane, seen from the bench.
pub struct Process {
    child: Child,
    input: ChildStdin,
    pub address: SocketAddr,
    pub bundle: String,
    /// One for each sidecar.
    pub tokens: Vec<String>,
    /// Where operators come in.
    admin: PathBuf,
}

impl Process {
    pub async fn start(sidecars: usize, under: &[String]) -> Self {
        let mut words =
            under.iter().map(Into::into).chain([std::env::current_exe().unwrap().into_os_string()]);
        let mut child = Command::new(words.next().unwrap())
            .args(words)
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
        Self { child, input, address, bundle: read("bundle.pem"), tokens, admin: folder.join(ADMIN_SOCKET) }
    }

    /// Asks as an operator does; an answer that is not of the 200s ends the bench.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        let mut stream = UnixStream::connect(&self.admin).await.unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        answer.split_off(head + 4)
    }

    /// How many sidecars hold a certificate below a tainted intermediate, as the control plane knows it.
    pub async fn holders_of_tainted(&self) -> usize {
        let page: pages::Authorities =
            serde_json::from_slice(&self.ask("GET", "/authorities", "").await).unwrap();
        let tainted = page.authorities.iter().filter(|one| one.tainted);
        tainted.map(|one| one.holders.unwrap_or_default()).sum()
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
    // As the program does.
    postern_control_plane::run::avoid_huge_pages();
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
        control.open_admin_socket(folder.path().join(ADMIN_SOCKET)).unwrap();
        println!("{}\n{}", control.address(), folder.path().display());
        // Ends when nobody holds the other end any more.
        let _ = tokio::io::stdin().read(&mut [0]).await;
        drop(folder);
        // Connections are not closed in order: that is not what is measured.
        std::process::exit(0);
    });
}

async fn start(sidecars: usize) -> ControlPlane {
    let mut mesh = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n"
    );
    let mut files = Vec::new();
    for sidecar in 0..sidecars {
        let (account, pod) = names(sidecar);
        mesh += &format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {NAMESPACE}, labels: {{app: {account}}}}}\n\
             spec: {{serviceAccountName: {account}, containers: [{{name: c, command: [serve]}}]}}\n\
             status: {{podIP: {}}}\n",
            pod_ip(sidecar)
        );
        // A file has a largest size.
        if sidecar % 1_000 == 999 || sidecar + 1 == sidecars {
            files.push(SourceFile { name: format!("{}.yaml", files.len()), text: std::mem::take(&mut mesh) });
        }
    }
    let (documents, _) = documents::read(&files);
    assert_eq!(documents.pods.len(), sidecars);
    beside::control_plane(documents).await
}
