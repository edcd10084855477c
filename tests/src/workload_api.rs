//! Clients of the Workload API: ours on a bare socket, and the Python that PyPI's `spiffe` runs in.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use crate::{
    Request, foreign,
    mesh::{Settings, Workload},
};
use hyper_util::rt::TokioIo;
use postern_proxy::Bootstrap;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tokio::{io::AsyncBufReadExt, net::UnixStream};
use tonic::transport::{Channel, Endpoint};

/// A mesh whose sidecars serve the Workload API in `folder`.
pub fn settings(folder: &Path) -> Settings {
    Settings { workload_api: Some(folder.to_owned()), ..Settings::default() }
}

/// The socket of a pod of such a mesh, as clients are told it.
pub fn endpoint(folder: &Path, pod: &str) -> String {
    format!("unix://{}", folder.join(format!("{pod}.sock")).display())
}

/// A channel to a socket, for generated clients.
pub async fn channel(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost").connect_with_connector(connector).await.unwrap()
}

/// A request as the specification demands it.
pub fn marked<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("workload.spiffe.io", "true".parse().unwrap());
    request
}

/// A new certificate now; its serial.
pub async fn renew(workload: &Workload) -> String {
    let answer = Request::new(workload.admin(), "localhost")
        .method("POST")
        .path("/certificates/renew")
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status, 200, "{:?}", answer.body);
    answer.json()["serial"].as_str().unwrap().to_owned()
}

/// A Python with what tests take from PyPI (`scripts/python-env.sh`).
///
/// `None` when there is none to be had, which is said on stderr; with `POSTERN_PYTHON_REQUIRED=1` that is a failure.
pub fn python() -> Option<PathBuf> {
    foreign::by_script("python-env.sh", "POSTERN_PYTHON_REQUIRED", "no peer in Python was tried")
}

/// go-spiffe's client of `tests/go`, built in `folder`.
///
/// `None` when there is no Go or its modules cannot be had, which is said on stderr; with `POSTERN_GO_REQUIRED=1` that is a
/// failure.
pub fn go(folder: &Path) -> Option<PathBuf> {
    let program = folder.join("workload-api");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    let built = Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(source).output();
    let reason = match built {
        Ok(output) if output.status.success() => return Some(program),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("go cannot be run: {error}"),
    };
    foreign::without("POSTERN_GO_REQUIRED", "go-spiffe was not tried", &reason)
}

/// A foreign client that prints one JSON document a line.
pub struct Client {
    child: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Client {
    /// `tests/clients/workload_api.py` with these arguments.
    pub fn python(python: &Path, arguments: &[&str]) -> Self {
        Self::script(python, "workload_api.py", arguments)
    }

    /// A script of `tests/clients`, or a server there, with these arguments.
    pub fn script(python: &Path, name: &str, arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name);
        let mut command = tokio::process::Command::new(python);
        command.arg(script).args(arguments);
        Self::start(command)
    }

    /// Any other program.
    pub fn start(mut command: tokio::process::Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next; the test fails with its exit code when it ends instead.
    pub async fn says(&mut self) -> serde_json::Value {
        let line = tokio::time::timeout(std::time::Duration::from_secs(60), self.lines.next_line())
            .await
            .expect("the client says something within a minute")
            .unwrap();
        match line {
            Some(line) => serde_json::from_str(&line).unwrap(),
            None => panic!("the client ended: {:?}", self.child.wait().await),
        }
    }
}

/// A sidecar whose control plane does not answer: it serves the Workload API on `socket` and has no identity.
pub async fn nobody_there(socket: PathBuf) -> postern_proxy::Sidecar {
    postern_proxy::start(Bootstrap { workload_api: Some(socket), ..bootstrap("early") }).await.unwrap()
}

/// For a sidecar of the test's own, without listeners for traffic; its control plane does not answer.
pub fn bootstrap(instance: &str) -> Bootstrap {
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let root = rcgen::generate_simple_self_signed(vec!["nobody".into()]).unwrap();

    Bootstrap {
        instance: instance.into(),
        // Bound by nobody: the port of a listener that is gone.
        control_plane: std::net::TcpListener::bind(any).unwrap().local_addr().unwrap().into(),
        service_account_token: None,
        state: None,
        trust_domain: "cluster.local".into(),
        trust_bundle_pem: root.cert.pem().into_bytes(),
        join_token: None,
        interception: postern_proxy::Interception::Explicit { inbound: vec![], outbound: vec![] },
        admin: any,
        probes: any,
        metrics: any,
        merged_metrics: any,
        app_metrics: None,
        identity_from: None,
        workload_api: None,
        workers: 1,
        mark: None,
        access_log: postern_proxy::bootstrap::AccessLogSink::Off,
        otel: Default::default(),
        access_log_lines: Default::default(),
        certificate_lifetime: None,
        drain_deadline: std::time::Duration::from_millis(100),
        report_interval: std::time::Duration::from_secs(10),
    }
}
