//! The page of the control plane: what it shows is what the mesh did, and it is for browsers on this machine and no other site.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Answer, Mesh, Request,
    mesh::{Settings, within},
    scenario::{mode, payments, policy},
    standalone::program,
};
use serde_json::Value;
use std::{net::SocketAddr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

async fn start() -> (Mesh, SocketAddr) {
    let rules = policy("nobody", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]");
    let settings = Settings { report_interval: Duration::from_millis(50), ..Settings::default() };
    let mesh = Mesh::start_with(&payments(&rules), settings).await;
    let page = mesh.control.serve_page("127.0.0.1:0".parse().unwrap()).await.unwrap();
    (mesh, page)
}

async fn ask(page: SocketAddr, path: &str) -> Answer {
    Request::new(page, page.to_string()).path(path).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_one_file_whose_policy_allows_nothing_else_and_its_data_is_that_of_the_mesh() {
    let (mesh, page) = start().await;
    let html = ask(page, "/").await;
    assert_eq!((html.status, html.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = html.header("content-security-policy").unwrap();
    for part in [
        "default-src 'none'",
        "script-src 'sha256-",
        "style-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(html.header("x-content-type-options"), Some("nosniff"));
    let text = String::from_utf8(html.body.to_vec()).unwrap();
    for command in [
        "postern top",
        "postern denials",
        "postern tap",
        "postern status",
        "postern certs",
        "postern ca status",
        "postern policies",
    ] {
        assert!(text.contains(command), "each panel names the command that prints the same: {command}");
    }

    let markup = "/%3Cimg%20src=x%20onerror=alert(1)%3E";
    assert_eq!(mesh.call("reports", "payments-api", "DELETE", markup).await.unwrap().status, 403);
    let denial = within("the denial is told", async {
        loop {
            let told = ask(page, "/denials?since=600").await;
            assert_eq!(
                told.header("content-type"),
                Some("application/json"),
                "never anything that is shown as a page"
            );
            if let Some(denial) = told.json()["denials"].get(0) {
                return denial.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let denial = denial.await;
    assert_eq!(
        (denial["method"].as_str(), denial["policy"].as_str()),
        (Some("DELETE"), Some("payments/nobody"))
    );
    assert_eq!(ask(page, "/status").await.json()["workloads"].as_array().unwrap().len(), 3);
    let flows = ask(page, "/flows?since=600").await.json();
    let denied: u64 =
        flows["flows"].as_array().unwrap().iter().map(|flow| flow["denied"].as_u64().unwrap()).sum();
    assert_eq!(denied, 1, "{flows:#}");
}

/// The stream of events, as a browser reads it.
struct Events(BufReader<TcpStream>);

impl Events {
    async fn follow(page: SocketAddr) -> Self {
        let (status, events) = Self::ask(page).await;
        assert!(status.contains(" 200 "), "{status}");
        events
    }

    async fn ask(page: SocketAddr) -> (String, Self) {
        let mut stream = BufReader::new(TcpStream::connect(page).await.unwrap());
        stream.write_all(format!("GET /events HTTP/1.1\r\nhost: {page}\r\n\r\n").as_bytes()).await.unwrap();
        let mut status = String::new();
        within("a status", stream.read_line(&mut status)).await.unwrap();
        (status, Self(stream))
    }

    /// The data of the next event of this name.
    async fn next(&mut self, name: &str) -> Value {
        let reading = async {
            let mut is_it = false;
            loop {
                let mut line = String::new();
                assert_ne!(self.0.read_line(&mut line).await.unwrap(), 0, "the stream ended");
                match line.trim_end().split_once(": ") {
                    Some(("event", named)) => is_it = named == name,
                    Some(("data", data)) if is_it => return serde_json::from_str(data).unwrap(),
                    _ => {}
                }
            }
        };
        within("an event", reading).await
    }

    /// The next denial that is told.
    async fn denial(&mut self) -> Value {
        loop {
            if let Some(denial) = self.next("decided").await["denials"].get(0) {
                return denial.clone();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_told_as_they_come_to_eight_at_once() {
    let (mesh, page) = start().await;
    let mut events = Events::follow(page).await;
    assert!(events.next("now").await.is_string(), "it says at once that it is there");
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/v1").await.unwrap().status, 200);
    let told = events.next("decided").await;
    assert_eq!(told["workload"], "payments/payments-api", "{told:#}");
    let peer = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
    assert_eq!(told["allowed"], serde_json::json!([{"peer": peer, "calls": 1}]), "{told:#}");
    assert_eq!(mesh.call("reports", "payments-api", "DELETE", "/x").await.unwrap().status, 403);
    let denial = events.denial().await;
    assert_eq!(
        (denial["path"].as_str(), denial["policy"].as_str(), denial["count"].as_u64()),
        (Some("/x"), Some("payments/nobody"), Some(1))
    );
    let mut others = Vec::new();
    for _ in 1..8 {
        others.push(Events::follow(page).await);
    }
    let (refused, _) = Events::ask(page).await;
    assert!(refused.contains(" 429 "), "{refused}");
    // Whoever goes makes room.
    drop(others);
    within("there is room again", async {
        while !Events::ask(page).await.0.contains(" 200 ") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_map_has_exact_counts_for_each_pair_and_a_lock_only_where_nothing_else_is_taken() {
    let rules = policy("nobody", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]");
    let settings = Settings { report_interval: Duration::from_millis(50), ..Settings::default() };
    let permissive = payments(&(rules.clone() + &mode("payments", "PERMISSIVE")));
    let mut mesh = Mesh::start_with(&permissive, settings).await;
    let page = mesh.control.serve_page("127.0.0.1:0".parse().unwrap()).await.unwrap();
    for (method, status) in [("GET", 200), ("GET", 200), ("DELETE", 403)] {
        assert_eq!(mesh.call("reports", "payments-api", method, "/v1").await.unwrap().status, status);
    }
    let plain = mesh.workload("payments-api").inbound(8080);
    for (method, status) in [("GET", 200), ("DELETE", 403)] {
        let request = Request::new(plain, "payments-api".to_owned()).method(method).path("/v1");
        assert_eq!(request.send().await.unwrap().status, status);
    }
    let map = within("all is told", async {
        loop {
            let map = ask(page, "/topology?since=600").await.json();
            let calls: u64 =
                map["edges"].as_array().unwrap().iter().map(|edge| edge["calls"].as_u64().unwrap()).sum();
            let by_both =
                map["edges"].as_array().unwrap().iter().any(|edge| edge["client_p50_micros"].is_u64());
            if calls == 5 && by_both {
                return map;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let edge = |from: &str| {
        let all = map["edges"].as_array().unwrap();
        let one = all.iter().find(|edge| edge["from"] == from).unwrap_or_else(|| panic!("{map:#}"));
        assert_eq!(
            (one["to"].as_str(), one["seen_by"].as_str()),
            (Some("payments/payments-api"), Some("server"))
        );
        ["calls", "served", "mutual_tls", "denied"].map(|key| one[key].as_u64().unwrap())
    };
    // One call is one call, although both ends tell of it.
    assert_eq!(edge("checkout/reports"), [3, 3, 3, 1]);
    assert_eq!(edge("(no identity)"), [2, 1, 0, 1], "who was turned away was not served");
    let known =
        map["edges"].as_array().unwrap().iter().find(|edge| edge["from"] == "checkout/reports").unwrap();
    for part in ["p50_micros", "client_p50_micros", "server_p50_micros"] {
        assert!(known[part].as_u64().is_some_and(|micros| micros > 0), "{part}: {known}");
    }
    let node = |map: &Value, id: &str| {
        map["nodes"].as_array().unwrap().iter().find(|node| node["id"] == id).cloned().unwrap()
    };
    let called = node(&map, "payments/payments-api");
    assert_eq!(
        (called["kind"].as_str(), called["pods"].as_u64(), called["connected"].as_u64()),
        (Some("workload"), Some(1), Some(1))
    );
    assert_eq!(called["services"], serde_json::json!(["payments/payments-api"]));
    assert_eq!(
        (called["strict"].as_bool(), node(&map, "(no identity)")["kind"].as_str()),
        (Some(false), Some("outside"))
    );
    assert_eq!(
        map["nodes"].as_array().unwrap().len(),
        4,
        "whoever has a sidecar is there without a call: {map:#}"
    );

    mesh.apply(&payments(&(rules + &mode("payments", "STRICT")))).await;
    let map = ask(page, "/topology?since=600").await.json();
    assert_eq!(node(&map, "payments/payments-api")["strict"], true);
    assert_eq!(node(&map, "checkout/reports")["strict"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_site_gets_nothing_and_nobody_can_change_anything() {
    let (mesh, page) = start().await;
    let port = page.port();
    let request = || Request::new(page, page.to_string()).path("/status");
    let foreign = Request::new(page, format!("rebound.example:{port}")).path("/status");
    for (request, status) in [
        (request(), 200),
        (Request::new(page, format!("localhost:{port}")).path("/status"), 200),
        (request().header("origin", &format!("http://{page}")), 200),
        (foreign, 403),
        (request().header("origin", "http://evil.example"), 403),
        (request().header("origin", "null"), 403),
        (request().header("sec-fetch-site", "cross-site"), 403),
        (request().method("POST"), 405),
        (request().path("/authorities"), 200),
        (request().path("/authorities/rotate"), 404),
        (request().path("/certificates"), 404),
        (request().path("/config"), 404),
        (request().path("/events").header("sec-fetch-site", "cross-site"), 403),
        (request().path("/topology?since=never"), 400),
        (request().path("/decisions/0a"), 404),
        (request().path("/flows?since=never"), 400),
    ] {
        let told = format!("{request:?}");
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status, status, "{told}");
        assert!(answer.header("content-security-policy").is_some(), "{told}");
        assert!(answer.header("access-control-allow-origin").is_none(), "{told}");
    }
    let refused = mesh.control.serve_page("0.0.0.0:0".parse().unwrap()).await.unwrap_err().to_string();
    assert!(refused.contains("others can reach"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_command_shows_the_same_for_as_long_as_it_runs() {
    let (mesh, page) = start().await;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("control.sock");
    mesh.control.open_admin_socket(socket.clone()).unwrap();
    let mut dashboard = tokio::process::Command::new(program())
        .args(["dashboard", "--listen", "127.0.0.1:0", "--socket"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(dashboard.stdout.take().unwrap()).lines();
    let line = within("it says where it is", lines.next_line()).await.unwrap().unwrap();
    let told = line.split_once("http://").unwrap().1.split_once('/').unwrap().0;
    let shown: SocketAddr = told.parse().unwrap();
    assert_eq!(ask(shown, "/").await.body, ask(page, "/").await.body);
    let status = ask(shown, "/status").await;
    assert_eq!(status.header("content-type"), Some("application/json"));
    assert_eq!(status.json()["workloads"].as_array().unwrap().len(), 3);
    assert_eq!(ask(shown, "/flows?since=never").await.status, 400);
    // It may ask more of the socket than a browser may ask of it.
    for path in ["/config", "/authorities/rotate", "/decisions/0a", "/status/../authorities", "//status"] {
        assert_eq!(ask(shown, path).await.status, 404, "{path}");
    }
    let mut events = Events::follow(shown).await;
    assert_eq!(mesh.call("reports", "payments-api", "DELETE", "/handed-on").await.unwrap().status, 403);
    assert_eq!(events.denial().await["path"], "/handed-on");
    drop(events);
    let foreign = Request::new(shown, format!("rebound.example:{}", shown.port())).path("/status");
    assert_eq!(foreign.send().await.unwrap().status, 403);
    mesh.control.shutdown().await;
    let gone = ask(shown, "/status").await;
    assert_eq!(gone.status, 502, "{gone:?}");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(dashboard.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let ended = within("it ends", dashboard.wait()).await.unwrap();
    assert_eq!(ended.code(), Some(0));
}
