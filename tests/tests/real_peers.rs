//! Clients and servers that are not ours at both ends of a mesh: client, sidecar, mutual TLS, sidecar, server. gRPC's own
//! implementation for Python, PyPI's `websockets`, Redis, a mail server,
//! nghttp2's h2load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, foreign, ports,
    scenario::{mode, payments, policy},
    workload_api::{Client, python},
};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A mesh, and where the app of payments-api listened on one port sits a server of others.
struct Stage {
    python: PathBuf,
    mesh: Mesh,
    server: Client,
    script: &'static str,
    service: &'static str,
}

impl Stage {
    /// With `tests/clients/<script> serve ADDRESS` behind the service on a container port; `None` without Python.
    async fn start(script: &'static str, service: &'static str, port: u16, rules: &str) -> Option<Self> {
        let python = tokio::task::spawn_blocking(python).await.unwrap()?;
        let mesh = Mesh::start(&payments(&(mode("payments", "STRICT") + rules))).await;
        let workload = mesh.workload("payments-api");
        workload.app.stop_listening().await;
        let address = format!("{}:{}", workload.ips[0], ports::real(port));
        let mut server = Client::script(&python, script, &["serve", &address]);
        let said = server.says().await;
        if let Some(reason) = said["missing"].as_str() {
            return foreign::without("POSTERN_REDIS_REQUIRED", "Redis was not tried", reason);
        }
        assert_eq!(said, json!({ "ready": address }));
        Some(Self { python, mesh, server, script, service })
    }

    /// The script as the app of a workload, in one of its cases.
    fn client(&self, from: &str, case: &str) -> Client {
        let (entry, host) = self.mesh.entry(from, self.service);
        Client::script(&self.python, self.script, &["call", &entry.to_string(), &host, case])
    }
}

/// checkout-api may do everything, nobody else anything.
fn only_checkout() -> String {
    policy(
        "callers",
        "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]",
    )
}

async fn grpc(rules: &str) -> Option<Stage> {
    Stage::start("grpc_peer.py", "payments-api:80", 8080, rules).await
}

fn every_byte() -> Value {
    (0..=255_u8).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_of_all_four_kinds_keep_messages_order_and_metadata() {
    let Some(mut stage) = grpc("").await else { return };
    let said = stage.client("checkout-api", "unary").says().await;
    assert_eq!((&said["answer"], &said["code"]), (&json!("hello"), &json!("OK")));
    assert_eq!((&said["first"]["x-first"], &said["first"]["x-first-bin"]), (&json!("one"), &every_byte()));
    assert_eq!((&said["last"]["x-last"], &said["last"]["x-last-bin"]), (&json!("two"), &every_byte()));
    let seen = stage.server.says().await;
    assert_eq!(seen["call"], "Unary");
    assert_eq!((&seen["metadata"]["x-ask"], &seen["metadata"]["x-ask-bin"]), (&json!("zero"), &every_byte()));
    assert!(
        seen["seconds_left"].as_f64().is_some_and(|left| left < 100.0),
        "the deadline goes along: {seen}"
    );

    let said = stage.client("checkout-api", "down").says().await;
    let expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    assert_eq!(said["answers"], json!(expected));
    assert_eq!(stage.client("checkout-api", "up").says().await["answer"], "a,b,c");
    assert_eq!(stage.client("checkout-api", "both").says().await["answers"], json!(["eno", "owt", "eerht"]));
    for kind in ["Down", "Up", "Both"] {
        assert_eq!(stage.server.says().await["call"], kind);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_server_sees_that_its_client_has_cancelled() {
    let Some(mut stage) = grpc("").await else { return };
    let mut client = stage.client("checkout-api", "cancel");
    assert_eq!(client.says().await, json!({ "first": "first", "code": "CANCELLED" }));
    let begun = stage.server.says().await;
    // Without a deadline on the call, nothing but the client's reset can end it.
    assert_eq!((&begun["call"], &begun["seconds_left"]), (&json!("Endless"), &Value::Null));
    assert_eq!(stage.server.says().await, json!({ "over": "Endless" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_deadline_ends_the_call_at_both_ends() {
    let Some(mut stage) = grpc("").await else { return };
    let mut client = stage.client("checkout-api", "deadline");
    assert_eq!(client.says().await, json!({ "answers": ["first"], "code": "DEADLINE_EXCEEDED" }));
    // The server knows the deadline, so that it ends the call by itself; that the client's reset reaches it is shown above.
    let left = stage.server.says().await["seconds_left"].as_f64().unwrap();
    assert!(left <= 1.0, "{left} s of 1 s");
    assert_eq!(stage.server.says().await, json!({ "over": "Endless" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_message_of_4_mib_goes_there_and_comes_back() {
    let Some(stage) = grpc("").await else { return };
    let said = stage.client("checkout-api", "large").says().await;
    assert_eq!(said, json!({ "bytes": 4 << 20, "same": true }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_status_comes_with_its_message_and_details_with_and_without_messages_before() {
    let Some(stage) = grpc("").await else { return };
    let mut client = stage.client("checkout-api", "fails");
    for answers in [json!([]), json!(["0", "1"])] {
        let said = client.says().await;
        assert_eq!((&said["answers"], &said["code"]), (&answers, &json!("FAILED_PRECONDITION")));
        assert_eq!(said["details"], "nicht genügend, 100 % sicher");
        assert_eq!(said["last"]["grpc-status-details-bin"], "080900ff");
    }
    stage.mesh.access_log("payments-api").next_with(&[("rpc.response.status_code", json!(9))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_call_that_policy_denies_ends_with_permission_denied_before_the_server() {
    let Some(mut stage) = grpc(&only_checkout()).await else { return };
    let refused = stage.client("reports", "one").says().await;
    assert_eq!(refused["number"], 7, "{refused}");
    assert_eq!(stage.client("checkout-api", "one").says().await, json!({ "answer": "hello", "number": 0 }));
    // The first call that the server has seen is the allowed one, and there is no other.
    let forwarded = &stage.server.says().await["metadata"]["x-forwarded-client-cert"];
    assert!(forwarded.as_str().is_some_and(|cert| cert.contains("sa/checkout-api")), "{forwarded}");
    let log = stage.mesh.access_log("payments-api");
    log.at_least(2).await;
    let statuses: Vec<Value> =
        log.lines().iter().map(|line| line["rpc.response.status_code"].clone()).collect();
    assert_eq!(statuses, [7, 0]);
}

async fn websocket(rules: &str) -> Option<Stage> {
    Stage::start("websocket_peer.py", "payments-api:80", 8080, rules).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_messages_of_1_mib_and_pings_both_ways() {
    let Some(stage) = websocket("").await else { return };
    let said = stage.client("checkout-api", "echo").says().await;
    assert_eq!(said, json!({ "text": true, "bytes": true, "fragments": true }));
    let said = stage.client("checkout-api", "ping").says().await;
    assert_eq!(said, json!({ "answered": true, "answers": "True" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_close_code_of_a_websocket_reaches_the_other_end() {
    let Some(mut stage) = websocket("").await else { return };
    assert_eq!(stage.client("checkout-api", "close").says().await, json!({ "closed": true }));
    assert_eq!(stage.server.says().await["path"], "/chat");
    assert_eq!(stage.server.says().await, json!({ "closed": 4002, "reason": "enough" }));
    let said = stage.client("checkout-api", "closed").says().await;
    assert_eq!(said, json!({ "code": 4001, "reason": "as you wish" }));
    let log = stage.mesh.access_log("payments-api");
    log.at_least(2).await;
    let statuses: Vec<Value> =
        log.lines().iter().map(|line| line["http.response.status_code"].clone()).collect();
    assert_eq!(statuses, [101, 101], "one record for each");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_policy_denies_is_answered_403_before_the_server() {
    let rules = policy("chat", "action: ALLOW, rules: [{to: [{operation: {paths: [/chat]}}]}]");
    let Some(mut stage) = websocket(&rules).await else { return };
    assert_eq!(stage.client("checkout-api", "/admin").says().await, json!({ "status": 403 }));
    assert_eq!(stage.client("checkout-api", "/chat").says().await, json!({ "status": 101 }));
    // The first handshake that the server has seen is the allowed one.
    let seen = stage.server.says().await;
    assert_eq!(seen["path"], "/chat");
    assert!(seen["certificate"].as_str().is_some_and(|c| c.contains("sa/checkout-api")), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_does_its_work_behind_the_mesh() {
    let Some(stage) = Stage::start("redis_peer.py", "payments-api:9000", 9000, "").await else { return };
    let said = stage.client("checkout-api", "work").says().await;
    assert_eq!(said, json!({ "large": true, "list": 1000, "script": 1 }));
    let said = stage.client("checkout-api", "pushed").says().await;
    assert_eq!(said, json!({ "subscribed": "subscribe", "message": "first", "popped": "second" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_sees_no_connection_of_a_client_that_policy_denies() {
    let rules = only_checkout();
    let Some(stage) = Stage::start("redis_peer.py", "payments-api:9000", 9000, &rules).await else { return };
    let before = stage.client("checkout-api", "count").says().await["connections"].as_u64().unwrap();
    let refused = stage.client("reports", "count").says().await;
    assert_eq!(refused, json!({ "error": "ConnectionError" }));
    let after = stage.client("checkout-api", "count").says().await;
    assert_eq!(after, json!({ "connections": before + 1 }), "the last one is the second of checkout-api");
}

async fn mail(rules: &str) -> Option<Stage> {
    // Port 81 is named `web`: its protocol is not declared, and has to be found out.
    Stage::start("smtp_peer.py", "payments-api:81", 8081, rules).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_greeting_of_a_mail_server_on_an_undeclared_port_is_waited_for_once() {
    let Some(mut stage) = mail("").await else { return };
    let said = stage.client("checkout-api", "one line").says().await;
    assert_eq!((&said["code"], &said["refused"]), (&json!(220), &json!({})), "{said}");
    assert!(said["greeting"].as_str().is_some_and(|g| g.starts_with("mail.test")), "{said}");
    assert!(said["after"].as_f64().is_some_and(|seconds| seconds < 1.0), "{said}");
    assert_eq!(stage.server.says().await, json!({ "connected": true }));
    let kept = stage.server.says().await;
    let expected =
        json!({ "sender": "a@client.test", "recipients": ["b@mail.test"], "text": "one line\r\n" });
    assert_eq!(kept, expected);
    let log = stage.mesh.access_log("payments-api");
    log.at_least(1).await;
    assert_eq!(
        log.lines().iter().map(|line| line["network.protocol.name"].clone()).collect::<Vec<_>>(),
        ["tcp"]
    );
    // By then it is known that this server speaks first. Of some calls one at least is not held up by the machine.
    let mut waits = Vec::new();
    for _ in 0..5 {
        waits.push(stage.client("checkout-api", "again").says().await["after"].as_f64().unwrap());
    }
    let found_out = said["after"].as_f64().unwrap();
    assert!(found_out >= 0.2 && waits.iter().any(|wait| *wait < 0.2), "{found_out} and then {waits:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mail_server_sees_no_connection_of_a_client_that_policy_denies() {
    let Some(mut stage) = mail(&only_checkout()).await else { return };
    let refused = stage.client("reports", "refused").says().await;
    assert!(refused["error"].is_string(), "{refused}");
    assert_eq!(stage.client("checkout-api", "allowed").says().await["code"], 220);
    // One connection, and the mail that came over it.
    assert_eq!(stage.server.says().await, json!({ "connected": true }));
    assert_eq!(stage.server.says().await["text"], "allowed\r\n");
}

/// `h2load` by prior knowledge of HTTP/2, 2000 requests, from a workload; the line of its report that counts statuses.
async fn h2load(mesh: &Mesh, from: &str) -> String {
    let (entry, host) = mesh.entry(from, "payments-api:80");
    let mut command = tokio::process::Command::new("h2load");
    command.args(["-n", "2000", "-c", "4", "-m", "20", "--connect-to", &entry.to_string()]);
    command.arg(format!("http://{host}/v1/charges")).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), command.output());
    let report =
        String::from_utf8(output.await.expect("h2load ends within a minute").unwrap().stdout).unwrap();
    assert!(report.contains("Application protocol: h2c"), "{report}");
    report.lines().find(|line| line.starts_with("status codes:")).expect("a line of statuses").to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_gets_2000_answers_over_four_connections_and_who_is_denied_gets_none_of_the_apps() {
    if tokio::process::Command::new("h2load").arg("--version").output().await.is_err() {
        eprintln!("SKIPPED: h2load is missing on this machine (make setup)");
        return;
    }
    let mesh = Mesh::start(&payments(&(mode("payments", "STRICT") + &only_checkout()))).await;
    assert_eq!(h2load(&mesh, "reports").await, "status codes: 0 2xx, 0 3xx, 2000 4xx, 0 5xx");
    assert_eq!(mesh.app("payments-api").connections(), 0);
    assert_eq!(h2load(&mesh, "checkout-api").await, "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx");
    assert_eq!(mesh.app("payments-api").received().len(), 2000);
}

/// `nghttp` by prior knowledge of HTTP/2, which shows each frame; what it has sent and received.
async fn nghttp(mesh: &Mesh, from: &str) -> String {
    let (entry, host) = mesh.entry(from, "payments-api:80");
    let mut command = tokio::process::Command::new("nghttp");
    command.args(["-v", "-H", &format!(":authority: {host}"), "-H", "x-caller: nghttp"]);
    command.arg(format!("http://{entry}/v1/charges?n=1")).kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), command.output());
    String::from_utf8(output.await.expect("nghttp ends within a minute").unwrap().stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_sees_whole_streams_and_nothing_of_the_app_where_policy_denies() {
    if tokio::process::Command::new("nghttp").arg("--version").output().await.is_err() {
        eprintln!("SKIPPED: nghttp is missing on this machine (make setup)");
        return;
    }
    let mesh = Mesh::start(&payments(&(mode("payments", "STRICT") + &only_checkout()))).await;
    let refused = nghttp(&mesh, "reports").await;
    assert!(refused.contains(":status: 403") && refused.contains("RBAC: access denied"), "{refused}");
    assert_eq!(mesh.app("payments-api").connections(), 0);
    let allowed = nghttp(&mesh, "checkout-api").await;
    assert!(allowed.contains(":status: 200") && allowed.contains("END_STREAM"), "{allowed}");
    assert!(!allowed.contains("RST_STREAM"), "{allowed}");
    let received = mesh.app("payments-api").last();
    assert_eq!(
        (received.path.as_str(), &received.header("x-caller")[..]),
        ("/v1/charges?n=1", &["nghttp"][..])
    );
}
