//! AuthorizationPolicy on real traffic. Each case is one policy and two calls that differ in one fact; the denied one
//! never reaches the app.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, Request, client,
    scenario::{mode, payments, policy},
};
use serde_json::json;

/// One HTTP call.
#[derive(Clone, Copy, Debug)]
struct Call {
    from: &'static str,
    method: &'static str,
    path: &'static str,
    host: &'static str,
    port: &'static str,
    address: &'static str,
}

const USUAL: Call = Call {
    from: "checkout-api",
    method: "POST",
    path: "/v1/charges",
    host: "payments-api.payments.svc.cluster.local",
    port: "80",
    address: "127.0.0.1",
};

impl Call {
    fn request(&self, mesh: &Mesh) -> Request {
        let request = mesh.request(
            self.from,
            &format!("payments-api:{}", if self.from == "legacy" { "8080" } else { self.port }),
        );
        request.method(self.method).path(self.path).host(self.host).from_address(self.address)
    }
}

/// Checks that the policy allows one call and denies the other, and that the app sees only the first.
async fn check(mesh: &mut Mesh, name: &str, spec: &str, allowed: Call, denied: Call) {
    mesh.apply(&payments(&policy("under-test", spec))).await;
    let app = mesh.app("payments-api").clone();
    let before = app.received().len();
    let answer = denied.request(mesh).send().await.unwrap_or_else(|e| panic!("{name}: {denied:?}: {e:?}"));
    assert_eq!(answer.status, 403, "{name}: {denied:?} should be denied by {spec}");
    assert_eq!(app.received().len(), before, "{name}: the app received a denied request");
    let answer = allowed.request(mesh).send().await.unwrap_or_else(|e| panic!("{name}: {allowed:?}: {e:?}"));
    assert_eq!(answer.status, 200, "{name}: {allowed:?} should be allowed by {spec}");
    assert_eq!(app.received().len(), before + 1, "{name}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_condition_decides_and_its_not_form_decides_the_other_way() {
    let reports = Call { from: "reports", ..USUAL };
    let plain = Call { from: "legacy", ..USUAL };
    let get = Call { method: "GET", ..USUAL };
    let refunds = Call { path: "/v1/refunds", ..USUAL };
    let other_host = Call { host: "other.example", ..USUAL };
    let web = Call { port: "81", ..USUAL };
    let far = Call { from: "legacy", address: "127.77.0.1", ..USUAL };
    let cases: &[(&str, &str, Call, Call)] = &[
        (
            "principals",
            "{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}",
            USUAL,
            reports,
        ),
        (
            "principals, prefix",
            "{from: [{source: {principals: [cluster.local/ns/checkout/*]}}]}",
            USUAL,
            plain,
        ),
        ("principals, suffix", "{from: [{source: {principals: ['*/sa/checkout-api']}}]}", USUAL, reports),
        ("principals, any", "{from: [{source: {principals: ['*']}}]}", USUAL, plain),
        (
            "notPrincipals",
            "{from: [{source: {notPrincipals: [cluster.local/ns/checkout/sa/reports]}}]}",
            USUAL,
            reports,
        ),
        ("namespaces", "{from: [{source: {namespaces: [checkout]}}]}", USUAL, plain),
        ("notNamespaces", "{from: [{source: {notNamespaces: [checkout]}}]}", plain, USUAL),
        ("ipBlocks", "{from: [{source: {ipBlocks: [127.77.0.0/16]}}]}", far, plain),
        ("notIpBlocks", "{from: [{source: {notIpBlocks: [127.77.0.0/16]}}]}", plain, far),
        ("methods", "{to: [{operation: {methods: [POST]}}]}", USUAL, get),
        ("notMethods", "{to: [{operation: {notMethods: [POST]}}]}", get, USUAL),
        ("paths", "{to: [{operation: {paths: [/v1/charges]}}]}", USUAL, refunds),
        ("paths, prefix", "{to: [{operation: {paths: ['/v1/c*']}}]}", USUAL, refunds),
        ("paths, suffix", "{to: [{operation: {paths: ['*/charges']}}]}", USUAL, refunds),
        ("notPaths", "{to: [{operation: {notPaths: [/v1/charges]}}]}", refunds, USUAL),
        (
            "hosts",
            "{to: [{operation: {hosts: [payments-api.payments.svc.cluster.local]}}]}",
            USUAL,
            other_host,
        ),
        (
            "hosts, any case",
            "{to: [{operation: {hosts: [Payments-API.payments.svc.cluster.local]}}]}",
            USUAL,
            other_host,
        ),
        ("notHosts", "{to: [{operation: {notHosts: [other.example]}}]}", USUAL, other_host),
        ("ports", "{to: [{operation: {ports: ['8080']}}]}", USUAL, web),
        ("notPorts", "{to: [{operation: {notPorts: ['8081']}}]}", USUAL, web),
        (
            "from and to together",
            "{from: [{source: {namespaces: [checkout]}}], to: [{operation: {methods: [POST], paths: [/v1/charges]}}]}",
            USUAL,
            get,
        ),
        (
            "one of two sources",
            "{from: [{source: {namespaces: [nobody]}}, {source: {principals: ['*/reports']}}]}",
            reports,
            USUAL,
        ),
    ];
    let mut mesh = Mesh::start(&payments("")).await;
    for (name, rule, matching, other) in cases {
        check(&mut mesh, name, &format!("action: ALLOW, rules: [{rule}]"), *matching, *other).await;
    }
    // The same words with DENY: what matched is refused, what did not is let through, unless the rule speaks of things
    // that a plaintext caller has not got.
    for (name, rule, matching, other) in cases {
        check(
            &mut mesh,
            &format!("DENY {name}"),
            &format!("action: DENY, rules: [{rule}]"),
            *other,
            *matching,
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deny_wins_over_allow_and_an_empty_allow_denies_all() {
    let mut mesh = Mesh::start(&payments(&policy("nothing", "action: ALLOW"))).await;
    assert_eq!(USUAL.request(&mesh).send().await.unwrap().status, 403);
    mesh.apply(&payments(&policy("all", "action: ALLOW, rules: [{}]"))).await;
    assert_eq!(USUAL.request(&mesh).send().await.unwrap().status, 200);
    let both = policy("all", "action: ALLOW, rules: [{}]")
        + &policy("not-posts", "action: DENY, rules: [{to: [{operation: {methods: [POST]}}]}]");
    mesh.apply(&payments(&both)).await;
    assert_eq!(USUAL.request(&mesh).send().await.unwrap().status, 403);
    assert_eq!(Call { method: "GET", ..USUAL }.request(&mesh).send().await.unwrap().status, 200);
    assert_eq!(mesh.app("payments-api").received().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_spelled_differently_is_decided_as_the_app_reads_it() {
    let deny = policy("no-admin", "action: DENY, rules: [{to: [{operation: {paths: ['/admin*']}}]}]");
    let mesh = Mesh::start(&payments(&deny)).await;
    for path in
        ["/admin", "/x/../admin", "/./admin", "/x/%2e%2e/admin", "/admin?x=1", "/admin/../admin/users"]
    {
        let answer = mesh.request("checkout-api", "payments-api").path(path).send().await.unwrap();
        assert!([403, 400].contains(&answer.status), "{path}: {}", answer.status);
    }
    assert_eq!(mesh.app("payments-api").received().len(), 0);
    // What is allowed reaches the app as it was decided on.
    mesh.request("checkout-api", "payments-api").path("/a/../b?q=/../admin").send().await.unwrap();
    assert_eq!(mesh.app("payments-api").last().path, "/b?q=/../admin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_tcp_connection_is_reset_and_an_allowed_one_echoes() {
    let rule = "action: ALLOW, rules: [{from: [{source: {principals: ['*/checkout-api']}}], to: [{operation: {ports: ['9000']}}]}]";
    let mesh = Mesh::start(&payments(&(mode("payments", "STRICT") + &policy("tcp", rule)))).await;
    let (denied, _) = mesh.entry("reports", "payments-api:9000");
    let broken = client::exchange_bytes(denied, b"hello").await;
    assert!(broken.is_err() || broken.as_ref().is_ok_and(Vec::is_empty), "{broken:?}");
    let line = mesh.access_log("payments-api").next_with(&[("postern.decision", json!("deny"))]).await;
    assert_eq!(line["postern.source.id"], "spiffe://cluster.local/ns/checkout/sa/reports", "{line}");
    assert_eq!(mesh.app("payments-api").connections(), 0);

    let (allowed, _) = mesh.entry("checkout-api", "payments-api:9000");
    assert_eq!(client::exchange_bytes(allowed, b"hello").await.unwrap(), b"hello");
    assert_eq!(mesh.app("payments-api").bytes(), b"hello");
}
