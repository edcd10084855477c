//! Dry run on real traffic: the verdict stays, the log says what would be, and the log as it is tells `postern impact`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern::policy::{flows::Flows, generate::generate, impact::measure, mesh::Mesh as Described};
use postern_tests::{
    Mesh, Request, ports,
    scenario::{payments, policy},
};
use serde_json::json;

/// As [`policy`], in dry run.
fn tried(name: &str, spec: &str) -> String {
    policy(name, spec).replace(
        &format!("metadata: {{name: {name}, "),
        &format!("metadata: {{name: {name}, annotations: {{istio.io/dry-run: \"true\"}}, "),
    )
}

fn described(policies: &str) -> Described {
    Described::parse("mesh.yaml", &ports::substitute(&payments(policies))).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_policy_denies_nothing_and_is_named_where_it_would() {
    let policies = tried("tried", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]")
        + &policy("watched", "action: AUDIT, rules: [{to: [{operation: {paths: [/audited]}}]}]");
    let mesh = Mesh::start(&payments(&policies)).await;
    let log = mesh.access_log("payments-api").clone();
    for (method, path, would, audit) in [
        ("DELETE", "/v1/charges", Some("payments/tried"), None),
        ("GET", "/v1/charges", None, None),
        ("GET", "/audited", None, Some("payments/watched")),
    ] {
        let answer = mesh.call("reports", "payments-api", method, path).await.unwrap();
        assert_eq!(answer.status, 200, "{method} {path} is not denied by a dry run");
        let line = log.next_with(&[("http.request.method", json!(method)), ("url.path", json!(path))]).await;
        assert_eq!(line["postern.decision"], "allow", "{line}");
        assert_eq!(line.get("postern.would.decision"), would.map(|_| json!("deny")).as_ref(), "{line}");
        assert_eq!(line.get("postern.would.policy"), would.map(|p| json!(p)).as_ref(), "{line}");
        assert_eq!(line.get("postern.would.rule"), would.map(|_| json!(0)).as_ref(), "{line}");
        assert_eq!(line.get("postern.audit.policy"), audit.map(|p| json!(p)).as_ref(), "{line}");
    }
    let metrics = mesh.workload("payments-api").metrics();
    let page = Request::new(metrics, metrics.to_string()).path("/metrics").send().await.unwrap();
    let text = String::from_utf8_lossy(&page.body).into_owned();
    let counted: Vec<&str> =
        text.lines().filter(|line| line.starts_with("postern_dry_run_differences_total{")).collect();
    assert_eq!(counted.len(), 1, "{text}");
    for part in ["/sa/reports\"", "payments/payments-api\"", "would_deny", "payments/tried", "} 1"] {
        assert!(counted[0].contains(part), "{part}: {}", counted[0]);
    }

    // The same policy, enforced: the allowed twin of each call is one fact away.
    let mut log_text = String::new();
    for line in log.lines() {
        log_text += &format!("{line}\n");
    }
    let flows = Flows::read(log_text.as_bytes()).unwrap();
    assert_eq!(flows.seen.count, 3, "{log_text}");
    let enforced = policy("tried", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]");
    let impact = measure(&described(&policies), &described(&enforced), &flows, 10);
    assert_eq!(impact.becomes_denied.len(), 1, "{impact:#?}");
    assert_eq!(impact.becomes_denied[0].method.as_deref(), Some("DELETE"));
    assert_eq!(impact.recorded_would.len(), 1);
    assert_eq!(impact.recorded_otherwise, 0, "{impact:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_generated_from_the_log_of_a_mesh_lets_the_same_calls_through_and_no_others() {
    let mut mesh = Mesh::start(&payments("")).await;
    for path in ["/v1/charges", "/v1/refunds"] {
        assert_eq!(mesh.call("checkout-api", "payments-api", "POST", path).await.unwrap().status, 200);
    }
    let log = mesh.access_log("payments-api").clone();
    log.at_least(2).await;
    let text: String = log.lines().iter().map(|line| format!("{line}\n")).collect();
    let flows = Flows::read(text.as_bytes()).unwrap();
    let generated = generate(&flows, Some(&described("")), 10).unwrap();
    let enforced = generated.replace("istio.io/dry-run: \"true\"", "istio.io/dry-run: \"false\"");
    mesh.apply(&payments(&format!("\n{enforced}"))).await;
    for path in ["/v1/charges", "/v1/refunds"] {
        let answer = mesh.call("checkout-api", "payments-api", "POST", path).await.unwrap();
        assert_eq!(answer.status, 200, "{path} was observed\n{enforced}");
    }
    let before = mesh.app("payments-api").received().len();
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/v1/charges").await.unwrap().status, 403);
    assert_eq!(mesh.call("reports", "payments-api", "POST", "/v1/charges").await.unwrap().status, 403);
    assert_eq!(mesh.app("payments-api").received().len(), before, "the app receives nothing that is denied");
}
