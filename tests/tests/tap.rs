//! `postern tap`: calls of a running mesh as they pass, by filter, bounded, and at no cost to traffic.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use postern_tests::{
    Mesh,
    mesh::within,
    scenario::{mode, payments, policy},
    standalone::program,
};
use serde_json::{Value, json};
use std::{path::PathBuf, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    net::UnixStream,
    process::{Child, ChildStderr, ChildStdout, Command},
};

struct Watched {
    mesh: Mesh,
    folder: tempfile::TempDir,
}

/// `postern tap` at work.
struct Tap {
    child: Child,
    told: Lines<BufReader<ChildStdout>>,
    hints: Lines<BufReader<ChildStderr>>,
}

impl Watched {
    async fn start() -> Self {
        let rules = policy(
            "callers",
            "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]",
        );
        let mesh = Mesh::start(&payments(&(mode("payments", "STRICT") + &rules))).await;
        let folder = tempfile::tempdir().unwrap();
        mesh.control.open_admin_socket(folder.path().join("control.sock")).unwrap();
        Self { mesh, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Resolves when the sidecars have heard of it: the first line is there, and `status` says that nothing is on its way.
    async fn tap(&self, arguments: &[&str]) -> Tap {
        let mut command = Command::new(program());
        command.arg("tap").args(arguments).arg("--socket").arg(self.socket());
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let told = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut hints = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = within("the tap begins", hints.next_line()).await.unwrap().unwrap_or_default();
        assert!(first.starts_with("tapping 3 sidecars"), "{first}");
        Tap { child, told, hints }
    }

    async fn call(&self, from: &str, method: &str, path: &str) -> u16 {
        self.mesh.call(from, "payments-api", method, path).await.unwrap().status
    }
}

impl Tap {
    async fn line(&mut self) -> String {
        within("a line of the tap", self.told.next_line()).await.unwrap().expect("the tap goes on")
    }

    async fn call(&mut self) -> Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// Calls `call` until the tap shows the first one: sidecars hear of a tap a moment after it has begun.
    async fn first(&mut self, mut call: impl AsyncFnMut()) -> Value {
        for _ in 0..200 {
            call().await;
            if let Ok(line) = tokio::time::timeout(Duration::from_millis(50), self.told.next_line()).await {
                return serde_json::from_str(&line.unwrap().expect("the tap goes on")).unwrap();
            }
        }
        panic!("nothing was shown");
    }

    async fn interrupt(mut self) -> (i32, String) {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
        let code = within("the tap ends", self.child.wait()).await.unwrap().code().unwrap();
        let mut rest = String::new();
        while let Ok(Some(line)) = self.told.next_line().await {
            rest += &line;
            rest.push('\n');
        }
        (code, rest)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_and_denied_calls_are_seen_and_a_filter_keeps_the_rest_out() {
    let watched = Watched::start().await;
    let mut denied =
        watched.tap(&["-o", "json", "--decision", "deny", "--to", "payments/payments-api"]).await;
    let mut allowed = watched
        .tap(&["-o", "json", "--from", "checkout/checkout-api", "--seen-by", "server", "--path", "/v1/"])
        .await;
    let seen = denied
        .first(async || assert_eq!(watched.call("reports", "GET", "/v1/x?token=hush").await, 403))
        .await;
    for (key, value) in [
        ("workload", json!("payments/payments-api")),
        ("direction", json!("inbound")),
        ("peer", json!("spiffe://cluster.local/ns/checkout/sa/reports")),
        ("method", json!("GET")),
        ("path", json!("/v1/x")),
        ("status", json!(403)),
        ("decision", json!("deny")),
    ] {
        assert_eq!(seen[key], value, "{key}: {seen:#}");
    }
    assert!(!seen.to_string().contains("hush") && seen["decision_id"].is_string(), "{seen:#}");

    // What one tap is for, the other one does not show.
    let seen =
        allowed.first(async || assert_eq!(watched.call("checkout-api", "POST", "/v1/y").await, 200)).await;
    assert_eq!(
        (&seen["decision"], &seen["policy"]),
        (&json!("allow"), &json!("payments/callers")),
        "{seen:#}"
    );
    assert!(seen["micros"].as_u64().unwrap() > 0, "{seen:#}");
    assert_eq!(watched.call("checkout-api", "POST", "/v2").await, 200);
    assert_eq!(watched.call("checkout-api", "DELETE", "/v1/last").await, 200);
    while allowed.call().await["method"] != "DELETE" {}
    let (code, rest) = allowed.interrupt().await;
    assert_eq!((code, rest.as_str()), (0, ""));
    let (code, rest) = denied.interrupt().await;
    assert_eq!(code, 0);
    assert!(!rest.contains("checkout-api\"") && !rest.contains("\"allow\""), "{rest}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_a_sidecar_shows_so_many_a_second_and_counts_the_rest() {
    let watched = Watched::start().await;
    let mut tap = watched.tap(&["--rate", "3", "--seen-by", "server", "--method", "GET"]).await;
    assert!(tap.line().await.starts_with("TIME"));
    let began = tokio::time::Instant::now();
    let (mut shown, mut more, mut calls) = (0, 0u64, 0);
    while more < 50 {
        assert_eq!(watched.call("checkout-api", "GET", "/").await, 200);
        calls += 1;
        while let Ok(line) = tokio::time::timeout(Duration::from_millis(1), tap.told.next_line()).await {
            let line = line.unwrap().unwrap();
            match line.strip_prefix("… ").and_then(|line| line.strip_suffix(" more matched")) {
                Some(count) => more += count.replace(',', "").parse::<u64>().unwrap(),
                None => shown += 1,
            }
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{shown} shown, {more} more, of {calls}");
    }
    let seconds = began.elapsed().as_secs() + 2;
    assert!(shown > 0 && shown <= 3 * seconds, "{shown} in {seconds} s");
    assert_eq!(tap.interrupt().await.0, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_costs_traffic_nothing_and_one_that_goes_makes_room() {
    let watched = Watched::start().await;
    // Four readers that ask and never read.
    let mut stuck = Vec::new();
    for _ in 0..4 {
        let mut stream = UnixStream::connect(watched.socket()).await.unwrap();
        let body = "{\"rate\":1000}";
        let head = format!("POST /tap HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        within("an answer", stream.read_exact(&mut first)).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stuck.push(stream);
    }
    for _ in 0..500 {
        let answer = within("a call", watched.mesh.call("checkout-api", "payments-api", "GET", "/")).await;
        assert_eq!(answer.unwrap().status, 200);
    }
    let refused = |arguments: &'static [&'static str]| {
        let mut command = Command::new(program());
        command.arg("tap").args(arguments).arg("--socket").arg(watched.socket());
        async move { within("the command ends", command.output()).await.unwrap() }
    };
    let output = refused(&[]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && told.contains("too many taps"), "{told}");
    stuck.clear();
    let mut last = String::new();
    for _ in 0..200 {
        let output = refused(&["--for", "1s"]).await;
        last = String::from_utf8(output.stderr).unwrap();
        if output.status.code() == Some(0) {
            let output = refused(&["--status", "9xx"]).await;
            assert_eq!(output.status.code(), Some(64));
            return;
        }
    }
    panic!("no place became free: {last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_control_plane_goes_the_command_says_so_and_fails() {
    let watched = Watched::start().await;
    let mut tap = watched.tap(&[]).await;
    let Watched { mesh, folder } = watched;
    drop(mesh);
    let code = within("the tap ends", tap.child.wait()).await.unwrap().code();
    let mut told = String::new();
    while let Ok(Some(line)) = tap.hints.next_line().await {
        told += &line;
    }
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("control plane went away"), "{told}");
    drop(folder);
}
