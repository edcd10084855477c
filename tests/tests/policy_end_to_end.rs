//! Policy through a pair of real sidecars: what is denied never reaches the app, what is allowed reaches it as it was
//! judged. Rules on HTTP and on TCP ports (reference 2.4), paths (2.9, Appendix A), hosts, ports, headers, addresses and
//! trust domains (2.7 to 2.11).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, Request, client,
    scenario::{mode, payments, policy},
};
use serde_json::json;
use std::net::SocketAddr;

const APP: &str = "payments-api";

/// Bytes over a TCP port of the app; whether they came back. A refusal leaves nothing at the app, not even a connection.
async fn echoes(mesh: &Mesh, from: &str) -> bool {
    let (entry, _) = mesh.entry(from, "payments-api:9000");
    let before = (mesh.app(APP).connections(), mesh.app(APP).bytes().len());
    let answer = client::exchange_bytes(entry, b"hello").await;
    let after = (mesh.app(APP).connections(), mesh.app(APP).bytes().len());
    match answer {
        Ok(bytes) if bytes == b"hello" => {
            assert_eq!(after, (before.0 + 1, before.1 + 5));
            true
        }
        refused => {
            assert_eq!(after, before, "{refused:?}, and the app got something");
            false
        }
    }
}

/// A request; whether it was allowed. A refusal is a 403 and leaves nothing at the app.
async fn passes(mesh: &Mesh, request: Request) -> bool {
    let before = mesh.app(APP).received().len();
    let described = format!("{request:?}");
    let status = request.send().await.unwrap_or_else(|e| panic!("{described}: {e:?}")).status;
    let after = mesh.app(APP).received().len();
    match status {
        200 => assert_eq!(after, before + 1, "{described}"),
        403 => assert_eq!(after, before, "{described} is denied, and the app got it"),
        other => panic!("{described}: {other}"),
    }
    status == 200
}

/// Sends a request line with this target, byte for byte; its status, and the path and query that the app saw.
async fn raw(mesh: &Mesh, entry: SocketAddr, host: &str, target: &str) -> (u16, Option<String>) {
    let before = mesh.app(APP).received().len();
    let head = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    let answer = client::exchange_bytes(entry, head.as_bytes()).await.unwrap_or_default();
    let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let received = mesh.app(APP).received();
    (status, received.get(before).map(|request| request.path.clone()))
}

fn mesh_config(yaml: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {yaml}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_conditions_drop_allow_rules_and_widen_deny_rules_on_a_tcp_port() {
    // Rule, then: does a TCP connection to 9000 pass, from checkout-api and from reports?
    let checkout = "from: [{source: {principals: ['*/checkout-api']}}]";
    let table = [
        ("ALLOW", "{}".to_owned(), (true, true)),
        ("ALLOW", format!("{{{checkout}}}"), (true, false)),
        ("ALLOW", "{to: [{operation: {ports: ['9000']}}]}".into(), (true, true)),
        ("ALLOW", "{to: [{operation: {ports: ['9001']}}]}".into(), (false, false)),
        ("ALLOW", "{to: [{operation: {methods: [GET]}}]}".into(), (false, false)),
        ("ALLOW", "{to: [{operation: {notMethods: [GET]}}]}".into(), (false, false)),
        ("ALLOW", "{to: [{operation: {paths: ['*']}}]}".into(), (false, false)),
        ("ALLOW", "{to: [{operation: {hosts: ['*']}}]}".into(), (false, false)),
        (
            "ALLOW",
            format!("{{{checkout}, to: [{{operation: {{ports: ['9000'], methods: [GET]}}}}]}}"),
            (false, false),
        ),
        (
            "ALLOW",
            "{to: [{operation: {ports: ['9000']}}, {operation: {methods: [GET]}}]}".into(),
            (false, false),
        ),
        (
            "ALLOW",
            format!("{{{checkout}, when: [{{key: 'request.headers[a]', notValues: [b]}}]}}"),
            (false, false),
        ),
        (
            "ALLOW",
            "{to: [{operation: {methods: [GET]}}]}, {to: [{operation: {ports: ['9000']}}]}".into(),
            (true, true),
        ),
        ("DENY", format!("{{{checkout}}}"), (false, true)),
        ("DENY", "{to: [{operation: {methods: [GET]}}]}".into(), (false, false)),
        ("DENY", "{to: [{operation: {paths: [/nowhere]}}]}".into(), (false, false)),
        ("DENY", "{to: [{operation: {hosts: [nobody]}}]}".into(), (false, false)),
        ("DENY", "{when: [{key: 'request.headers[a]', values: [b]}]}".into(), (false, false)),
        ("DENY", format!("{{{checkout}, to: [{{operation: {{methods: [GET]}}}}]}}"), (false, true)),
        ("DENY", "{to: [{operation: {ports: ['9000'], methods: [GET]}}]}".into(), (false, false)),
        ("DENY", "{to: [{operation: {ports: ['9001'], methods: [GET]}}]}".into(), (true, true)),
        ("DENY", "{to: [{operation: {ports: ['9001']}}]}".into(), (true, true)),
    ];
    let strict = mode("payments", "STRICT");
    let mut mesh = Mesh::start(&payments(&strict)).await;
    for (action, rule, expected) in table {
        let one = policy("under-test", &format!("action: {action}, rules: [{rule}]"));
        mesh.apply(&payments(&(strict.clone() + &one))).await;
        let passed = (echoes(&mesh, "checkout-api").await, echoes(&mesh, "reports").await);
        assert_eq!(passed, expected, "checkout-api and reports, {action} {rule}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_http_conditions_on_an_http_port_mean_what_they_say() {
    let mut mesh = Mesh::start(&payments("")).await;
    for (action, of_get) in [("ALLOW", true), ("DENY", false)] {
        let rule = "{to: [{operation: {ports: ['8080'], methods: [GET]}}]}";
        mesh.apply(&payments(&policy("under-test", &format!("action: {action}, rules: [{rule}]")))).await;
        let ask = |method| mesh.request("checkout-api", APP).method(method);
        assert_eq!(passes(&mesh, ask("GET")).await, of_get, "{action}");
        assert_eq!(passes(&mesh, ask("POST")).await, !of_get, "{action}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_sees_the_path_that_policy_saw_in_every_mode() {
    // Target on the wire; then what NONE, BASE, MERGE_SLASHES and DECODE_AND_MERGE_SLASHES make of it.
    let table: [(&str, [&str; 4]); 22] = [
        ("/", ["/"; 4]),
        ("/app/../admin", ["/app/../admin", "/admin", "/admin", "/admin"]),
        ("/app//", ["/app//", "/app//", "/app/", "/app/"]),
        ("/app/%2f", ["/app/%2f", "/app/%2f", "/app/%2f", "/app/"]),
        ("/app%2f/", ["/app%2f/", "/app%2f/", "/app%2f/", "/app/"]),
        ("/xyz%30..//abc", ["/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"]),
        ("/app/%2E./admin", ["/app/%2E./admin", "/admin", "/admin", "/admin"]),
        ("/app//../admin", ["/app//../admin", "/app/admin", "/app/admin", "/app/admin"]),
        ("/app//../../admin", ["/app//../../admin", "/admin", "/admin", "/admin"]),
        ("//admin", ["//admin", "//admin", "/admin", "/admin"]),
        ("/%61dmin", ["/%61dmin", "/admin", "/admin", "/admin"]),
        ("/%2561dmin", ["/%2561dmin"; 4]),
        ("/%2e%2e/admin", ["/%2e%2e/admin", "/admin", "/admin", "/admin"]),
        ("/x%2f..%2fadmin", ["/x%2f..%2fadmin", "/x%2f..%2fadmin", "/x%2f..%2fadmin", "/admin"]),
        ("/x%5c..%5cadmin", ["/x%5c..%5cadmin", "/x%5c..%5cadmin", "/x%5c..%5cadmin", "/admin"]),
        ("/..;/admin", ["/..;/admin"; 4]),
        ("/Admin", ["/Admin"; 4]),
        ("/admin;a=b", ["/admin;a=b"; 4]),
        ("/admin%20", ["/admin%20"; 4]),
        ("/admin/?q=/../x", ["/admin/?q=/../x"; 4]),
        ("/admin?x=%2f", ["/admin?x=%2f"; 4]),
        ("/x/../admin?p=//", ["/x/../admin?p=//", "/admin?p=//", "/admin?p=//", "/admin?p=//"]),
    ];
    let modes = ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"];
    for (column, name) in modes.into_iter().enumerate() {
        let config = mesh_config(&format!("pathNormalization: {{normalization: {name}}}"));
        let mut mesh = Mesh::start(&payments(&config)).await;
        // Straight to the app's sidecar, so that no sidecar of the caller normalizes first.
        let entry = mesh.workload(APP).inbound(8080);
        for (target, seen) in &table {
            let (status, path) = raw(&mesh, entry, APP, target).await;
            assert_eq!((status, path.as_deref()), (200, Some(seen[column])), "{name} {target}");
        }
        // Istio lets it through in NONE; no app should have to read it.
        assert_eq!(raw(&mesh, entry, APP, "/admin%00").await, (400, None), "{name}: an encoded NUL");
        assert_eq!(raw(&mesh, entry, APP, "/a#/../b").await, (400, None), "{name}: a fragment");
        // The same requests under a DENY on one path: refused exactly when that is the path the app saw before.
        let deny = policy("no-admin", "action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]");
        mesh.apply(&payments(&(config + &deny))).await;
        for (target, seen) in &table {
            let (status, path) = raw(&mesh, entry, APP, target).await;
            let is_admin = seen[column].split('?').next() == Some("/admin");
            let expected = if is_admin { (403, None) } else { (200, Some(seen[column])) };
            assert_eq!((status, path.as_deref()), expected, "{name} {target} with a DENY on /admin");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_matches_in_any_case_and_with_its_port() {
    let rule = "action: ALLOW, rules: [{to: [{operation: {hosts: [Shop.Example, '*.shop.example']}}]}]";
    let mesh = Mesh::start(&payments(&policy("hosts", rule))).await;
    for (host, expected) in [
        ("shop.example", true),
        ("SHOP.EXAMPLE", true),
        ("sHop.eXample", true),
        ("A.Shop.Example", true),
        ("shop.example:80", false),
        ("shop.example.evil", false),
        ("evil-shop.example", false),
    ] {
        // Straight to the app's sidecar: a caller's sidecar has no route for these hosts.
        let request = Request::new(mesh.workload(APP).inbound(8080), host);
        assert_eq!(passes(&mesh, request).await, expected, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_is_the_workloads_and_not_the_services() {
    let mut mesh = Mesh::start(&payments("")).await;
    for (port, of_80, of_81) in [("8080", true, false), ("8081", false, true), ("80", false, false)] {
        let rule = format!("action: ALLOW, rules: [{{to: [{{operation: {{ports: ['{port}']}}}}]}}]");
        mesh.apply(&payments(&policy("ports", &rule))).await;
        let passed = (
            passes(&mesh, mesh.request("checkout-api", "payments-api:80")).await,
            passes(&mesh, mesh.request("checkout-api", "payments-api:81")).await,
        );
        assert_eq!(passed, (of_80, of_81), "ports: ['{port}']");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_header_is_allowed_only_value_by_value_and_joined() {
    let mut mesh = Mesh::start(&payments("")).await;
    // What is wanted, what is sent, whether an ALLOW lets it pass, whether a DENY refuses it.
    let rows: [(&str, &[&str], bool, bool); 9] = [
        ("blue", &["blue"], true, true),
        ("blue", &["red"], false, false),
        ("blue", &["red", "blue"], false, true),
        ("blue", &["blue", "red"], false, true),
        // An app may join them.
        ("'blue,red'", &["blue", "red"], false, true),
        ("'blue,red'", &["blue,red"], true, true),
        ("'*red'", &["red", "blue"], false, true),
        ("'*'", &[""], true, true),
        ("'*'", &[], false, false),
    ];
    for action in ["ALLOW", "DENY"] {
        for (wanted, sent, allows, denies) in rows {
            let rule = format!("{{when: [{{key: 'request.headers[x-tag]', values: [{wanted}]}}]}}");
            mesh.apply(&payments(&policy("header", &format!("action: {action}, rules: [{rule}]")))).await;
            let request = sent.iter().fold(mesh.request("checkout-api", APP), |r, v| r.header("X-Tag", v));
            let expected = if action == "ALLOW" { allows } else { !denies };
            assert_eq!(passes(&mesh, request).await, expected, "{action} {wanted}, sent {sent:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_remote_address_is_the_last_that_was_forwarded_and_else_the_sockets() {
    let rule =
        "action: ALLOW, rules: [{from: [{source: {remoteIpBlocks: [203.0.113.0/24, '2001:db8::/32']}}]}]";
    let mut mesh = Mesh::start(&payments(&policy("remote", rule))).await;
    let rows: [(&[&str], bool); 8] = [
        (&["203.0.113.7"], true),
        (&["198.51.100.1"], false),
        (&["198.51.100.1, 203.0.113.7"], true),
        (&["203.0.113.7, 198.51.100.1"], false),
        (&["203.0.113.7", "198.51.100.1"], false),
        (&["2001:db8::9"], true),
        (&["garbage"], false),
        (&[], false),
    ];
    for (sent, expected) in rows {
        let to = mesh.workload(APP).inbound(8080);
        let request = sent.iter().fold(Request::new(to, APP), |r, v| r.header("x-forwarded-for", v));
        assert_eq!(passes(&mesh, request).await, expected, "{sent:?}");
    }
    // ipBlocks look at the socket, whatever the header says.
    let rule = "action: ALLOW, rules: [{from: [{source: {ipBlocks: [127.77.0.0/16]}}]}]";
    mesh.apply(&payments(&policy("remote", rule))).await;
    for (from, expected) in [("127.77.0.1", true), ("127.78.0.1", false)] {
        let request =
            Request::new(mesh.workload(APP).inbound(8080), APP).header("x-forwarded-for", "127.77.0.1");
        assert_eq!(passes(&mesh, request.from_address(from)).await, expected, "{from}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_of_an_alias_means_the_same_workload_in_the_meshs_own_domain() {
    let rows = [
        ("old.example/ns/checkout/sa/checkout-api", "[old.example]", true),
        ("old.example/ns/checkout/sa/checkout-api", "[]", false),
        ("cluster.local/ns/checkout/sa/checkout-api", "[]", true),
        ("new.example/ns/checkout/sa/checkout-api", "[]", true),
        ("old.example/ns/checkout/sa/reports", "[old.example]", false),
        ("old.example/ns/checkout/*", "[old.example]", false),
    ];
    let config =
        |aliases: &str| mesh_config(&format!("{{trustDomain: new.example, trustDomainAliases: {aliases}}}"));
    let mut mesh = Mesh::start(&payments(&config("[]"))).await;
    for (principal, aliases, expected) in rows {
        let rule = format!("action: ALLOW, rules: [{{from: [{{source: {{principals: ['{principal}']}}}}]}}]");
        mesh.apply(&payments(&(config(aliases) + &policy("alias", &rule)))).await;
        let request = mesh.request("checkout-api", APP);
        assert_eq!(passes(&mesh, request).await, expected, "{principal}, aliases {aliases}");
    }
    let line = mesh.access_log(APP).next_with(&[("postern.decision", json!("allow"))]).await;
    assert_eq!(line["postern.source.id"], "spiffe://new.example/ns/checkout/sa/checkout-api", "{line}");
}
