//! What a person sees: the body of a refusal, the access log, and the explanation behind a decision id.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::bootstrap::otel::{self, Exporter, Protocol, Signal};
use postern_tests::{
    Mesh, Request,
    mesh::Settings,
    scenario::{mode, payments, policy},
};
use serde_json::json;

async fn strict() -> Mesh {
    strict_with(Settings::default()).await
}

async fn strict_with(settings: Settings) -> Mesh {
    let rules = "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}], \
                 to: [{operation: {methods: [POST], paths: [/v1/charges]}}]}]";
    Mesh::start_with(&payments(&(mode("payments", "STRICT") + &policy("charges", rules))), settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_problem_json_with_a_decision_that_can_be_looked_up() {
    let mesh = strict().await;
    let answer = mesh.call("reports", "payments-api", "POST", "/v1/charges").await.unwrap();
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    let body = answer.json();
    assert_eq!(body["title"], "RBAC: access denied");
    assert_eq!((&body["code"], &body["status"]), (&json!("policy-denied"), &json!(403)));
    let id = body["decision"].as_str().unwrap();
    assert!(
        !String::from_utf8_lossy(&answer.body).contains("charges"),
        "the caller is not told what policy there is"
    );

    let line = mesh.access_log("payments-api").next_with(&[("postern.decision.id", json!(id))]).await;
    assert_eq!(
        (&line["postern.decision"], &line["http.response.status_code"]),
        (&json!("deny"), &json!(403)),
        "{line}"
    );
    assert!(line["postern.decision.reason"].as_str().unwrap().contains("default deny"), "{line}");

    let admin = mesh.workload("payments-api").admin();
    let page = Request::new(admin, admin.to_string()).path(&format!("/decisions/{id}")).send().await.unwrap();
    assert_eq!(page.status, 200, "{page:?}");
    let text = String::from_utf8_lossy(&page.body).into_owned();
    assert!(text.contains("charges") && text.contains("reports") && text.contains("principals"), "{text}");
    let unknown =
        Request::new(admin, admin.to_string()).path("/decisions/no-such-thing").send().await.unwrap();
    assert_eq!(unknown.status, 404);
    assert_eq!(mesh.app("payments-api").connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_grpc_call_gets_a_grpc_status() {
    let mesh = strict().await;
    let call = mesh.request("reports", "payments-api").method("POST").path("/pay.Charges/Create").http2();
    let answer =
        call.header("content-type", "application/grpc").header("te", "trailers").send().await.unwrap();
    assert_eq!(answer.status, 200);
    let said =
        |name: &str| answer.headers.get(name).or(answer.trailers.get(name)).and_then(|v| v.to_str().ok());
    assert_eq!(said("grpc-status"), Some("7"), "{answer:?}");
    assert!(said("grpc-message").unwrap().contains("RBAC"), "{answer:?}");
    assert_eq!(mesh.app("payments-api").connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_line_for_each_request_names_both_ends_the_decision_and_the_times() {
    // Nobody is there to take the spans, which costs nothing but them.
    let exporter = Some(Exporter::new(Signal::Traces, "http://127.0.0.1:1", Protocol::Http).unwrap());
    let otel = otel::Settings { exporter, ..otel::Settings::default() };
    let mesh = strict_with(Settings { otel, ..Settings::default() }).await;
    let call = mesh.request("checkout-api", "payments-api").method("POST").path("/v1/charges?secret=1");
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    call.header("traceparent", traceparent).header("x-request-id", "r-1").body("12345").send().await.unwrap();
    let inbound = mesh.access_log("payments-api").next_with(&[("postern.direction", json!("inbound"))]).await;
    let outbound =
        mesh.access_log("checkout-api").next_with(&[("postern.direction", json!("outbound"))]).await;
    for line in [&inbound, &outbound] {
        for (field, value) in [
            ("severity_text", json!("INFO")),
            ("network.protocol.name", json!("http")),
            ("network.protocol.version", json!("1.1")),
            ("http.request.method", json!("POST")),
            ("url.path", json!("/v1/charges")),
            ("http.response.status_code", json!(200)),
            ("postern.flags", json!("-")),
            ("postern.destination.id", json!("spiffe://cluster.local/ns/payments/sa/payments-api")),
            ("postern.source.id", json!("spiffe://cluster.local/ns/checkout/sa/checkout-api")),
            ("postern.bytes_received", json!(5)),
            ("postern.bytes_sent", json!(5)),
            ("trace_id", json!("0af7651916cd43dd8448eb211c80319c")),
            ("postern.request.id", json!("r-1")),
        ] {
            assert_eq!(line[field], value, "{field}: {line}");
        }
        assert!(
            line["postern.duration_us"].as_u64().unwrap() >= line["postern.proxy_us"].as_u64().unwrap(),
            "{line}"
        );
        assert!(line["timestamp"].as_str().unwrap().ends_with('Z'), "{line}");
        assert!(!line.to_string().contains("secret"), "queries may hold secrets: {line}");
    }
    assert_eq!(
        (&inbound["postern.decision"], &inbound["postern.policy"], &inbound["postern.rule"]),
        (&json!("allow"), &json!("payments/charges"), &json!(0))
    );
    assert_eq!(outbound["postern.destination.service"], "payments-api.payments.svc.cluster.local");
    assert_ne!(inbound["span_id"], outbound["span_id"]);
    // The app is told of the sidecar's span, in the same trace.
    let seen = mesh.app("payments-api").last().header("traceparent").join(",");
    assert!(seen.contains("0af7651916cd43dd8448eb211c80319c") && seen != traceparent, "{seen}");
    assert!(seen.contains(inbound["span_id"].as_str().unwrap()), "{seen} {inbound}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_spans_are_sent_a_callers_trace_passes_as_it_is_and_stands_in_the_log() {
    let mesh = strict().await;
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let call = || mesh.request("checkout-api", "payments-api").method("POST").path("/v1/charges");
    assert_eq!(call().header("traceparent", traceparent).send().await.unwrap().status, 200);
    assert_eq!(mesh.app("payments-api").last().header("traceparent"), [traceparent]);
    let line = mesh.access_log("payments-api").next_with(&[("postern.direction", json!("inbound"))]).await;
    assert_eq!(
        (&line["trace_id"], &line["span_id"]),
        (&json!(&traceparent[3..35]), &json!(&traceparent[36..52]))
    );
    assert_eq!(call().send().await.unwrap().status, 200);
    let seen = mesh.app("payments-api").last();
    assert!(seen.header("traceparent").is_empty());
    // The lines of both sidecars are found by what the first of them made.
    let id = json!(seen.header("x-request-id").join(","));
    for pod in ["checkout-api", "payments-api"] {
        let line = mesh.access_log(pod).next_with(&[("postern.request.id", id.clone())]).await;
        assert_eq!(line["http.response.status_code"], 200, "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_of_ending_writes_exactly_one_line() {
    let mesh = strict().await;
    let plain = mesh.call("legacy", "payments-api", "GET", "/").await;
    assert!(plain.is_err());
    for (from, path) in
        [("checkout-api", "/v1/charges"), ("reports", "/v1/charges"), ("checkout-api", "/other")]
    {
        mesh.call(from, "payments-api", "POST", path).await.unwrap();
    }
    let log = mesh.access_log("payments-api");
    log.at_least(4).await;
    // A fifth would follow the fourth at once; the next call's line shows that none did.
    mesh.request("checkout-api", "payments-api")
        .method("POST")
        .path("/v1/charges")
        .header("x-request-id", "last")
        .send()
        .await
        .unwrap();
    log.next_with(&[("postern.request.id", json!("last"))]).await;
    assert_eq!(log.lines().len(), 5, "{:#?}", log.lines());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_are_in_the_encoding_of_istio_once_the_mesh_configuration_names_one() {
    let rules = "action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]";
    let documents = |mesh: &str| {
        payments(&(mode("payments", "STRICT") + &policy("none-of-these", rules)))
            + "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    "
            + mesh
            + "\n"
    };
    let mut mesh = Mesh::start(&documents("enableTracing: true")).await;
    mesh.call("checkout-api", "payments-api", "GET", "/a").await.unwrap();
    mesh.access_log("payments-api")
        .next_with(&[("url.path", json!("/a")), ("postern.direction", json!("inbound"))])
        .await;
    mesh.apply(&documents("accessLogEncoding: JSON")).await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/no?q=1").await.unwrap().status, 403);
    let line = mesh.access_log("payments-api").next_with(&[("path", json!("/no"))]).await;
    let port = |line: &serde_json::Value| {
        line["downstream_local_address"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    };
    assert_eq!(line["upstream_cluster"], format!("inbound|{}||", port(&line)), "{line}");
    let details = "rbac_access_denied_matched_policy[ns[payments]-policy[none-of-these]-rule[0]]";
    assert_eq!(line["response_code_details"], details, "{line}");
    assert_eq!((&line["response_code"], &line["protocol"]), (&json!(403), &json!("HTTP/1.1")), "{line}");
    let line = mesh.access_log("checkout-api").next_with(&[("path", json!("/no"))]).await;
    assert_eq!(line["response_code_details"], "via_upstream", "{line}");
    let cluster = format!("outbound|{}||payments-api.payments.svc.cluster.local", port(&line));
    assert_eq!(line["upstream_cluster"], cluster, "{line}");
    assert!(line["upstream_service_time"].as_str().unwrap().parse::<u64>().is_ok(), "{line}");
    assert_eq!(line["user_agent"], json!(null), "{line}");
}
