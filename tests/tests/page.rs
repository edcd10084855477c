//! The page of the control plane: what it shows is what the mesh did, and it is for browsers on this machine and no other site.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Answer, Mesh, Request,
    mesh::{Settings, within},
    scenario::{payments, policy},
    standalone::program,
};
use std::{net::SocketAddr, process::Stdio, time::Duration};
use tokio::io::{AsyncBufReadExt as _, BufReader};

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
    for command in ["postern top", "postern denials", "postern status"] {
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
        (request().path("/authorities"), 404),
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
    for path in ["/authorities", "/authorities/rotate", "/decisions/0a", "/status/../authorities", "//status"]
    {
        assert_eq!(ask(shown, path).await.status, 404, "{path}");
    }
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
