//! Who is let in before any policy is asked: the three modes of PeerAuthentication, with and without mutual TLS.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, client,
    scenario::{mode, payments},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_takes_mutual_tls_and_resets_plaintext_before_the_app_sees_a_byte() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;

    let broken = mesh.call("legacy", "payments-api", "POST", "/v1/charges").await.unwrap_err();
    assert!(broken.is_reset(), "{broken:?}");
    assert_eq!(mesh.app("payments-api").connections(), 0, "the app must not even be connected to");
    let line = mesh.access_log("payments-api").next_with(&[("postern.direction", json!("inbound"))]).await;
    assert!(line["postern.reason"].as_str().unwrap().contains("STRICT"), "{line}");
    assert!(line.get("postern.source.id").is_none_or(serde_json::Value::is_null), "{line}");

    let answer = mesh.call("checkout-api", "payments-api", "POST", "/v1/charges").await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(mesh.app("payments-api").received().len(), 1);
    let line = mesh.access_log("payments-api").next_with(&[("http.response.status_code", json!(200))]).await;
    assert_eq!(line["postern.source.id"], "spiffe://cluster.local/ns/checkout/sa/checkout-api", "{line}");
    assert_eq!(line["tls.protocol.version"], "1.3", "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissive_takes_both_and_tells_them_apart() {
    let mesh = Mesh::start(&payments(&mode("payments", "PERMISSIVE"))).await;

    assert_eq!(mesh.call("legacy", "payments-api", "GET", "/plain").await.unwrap().status, 200);
    assert!(mesh.app("payments-api").last().header("x-forwarded-client-cert").is_empty());

    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/mutual").await.unwrap().status, 200);
    let forwarded = mesh.app("payments-api").last().header("x-forwarded-client-cert").join(",");
    assert!(forwarded.contains("URI=spiffe://cluster.local/ns/checkout/sa/checkout-api"), "{forwarded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_document_the_mode_is_permissive() {
    let mesh = Mesh::start(&payments("")).await;
    assert_eq!(mesh.call("legacy", "payments-api", "GET", "/").await.unwrap().status, 200);
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disable_means_plaintext_from_the_callers_sidecar_too() {
    let mesh = Mesh::start(&payments(&mode("payments", "DISABLE"))).await;
    assert_eq!(mesh.call("legacy", "payments-api", "GET", "/").await.unwrap().status, 200);
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    assert!(mesh.app("payments-api").last().header("x-forwarded-client-cert").is_empty());
    let line = mesh
        .access_log("checkout-api")
        .next_with(&[("postern.direction", json!("outbound")), ("http.response.status_code", json!(200))])
        .await;
    assert!(line.get("tls.protocol.version").is_none_or(serde_json::Value::is_null), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_can_be_stricter_than_the_rest() {
    let ports = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {name: ports, namespace: payments}\n\
                 spec: {selector: {matchLabels: {app: payments-api}}, mtls: {mode: PERMISSIVE}, \
                 portLevelMtls: {9000: {mode: STRICT}}}\n";
    let mesh = Mesh::start(&payments(ports)).await;
    let strict = mesh.workload("payments-api").inbound(9000);
    client::exchange_bytes(strict, b"plain").await.unwrap_err();
    assert_eq!(mesh.app("payments-api").connections(), 0);
    assert_eq!(mesh.call("legacy", "payments-api", "GET", "/").await.unwrap().status, 200);
    let (entry, _) = mesh.entry("checkout-api", "payments-api:9000");
    assert_eq!(client::exchange_bytes(entry, b"mutual").await.unwrap(), b"mutual");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wider_mode_gives_way_to_a_narrower_one() {
    let mesh = Mesh::start(&payments(&format!(
        "{}{}{}",
        postern_tests::scenario::namespace("istio-system", false),
        mode("istio-system", "STRICT"),
        mode("payments", "PERMISSIVE")
    )))
    .await;
    assert_eq!(mesh.call("legacy", "payments-api", "GET", "/").await.unwrap().status, 200);
    // The mesh-wide mode holds where no other was written.
    assert!(mesh.call("legacy", "checkout-api", "GET", "/").await.unwrap_err().is_reset());
    assert_eq!(mesh.app("checkout-api").connections(), 0);
}
