//! The connections that are open now, as the admin port of a sidecar shows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, Request,
    client::exchange_until,
    scenario::{mode, payments},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::net::TcpStream;

async fn page(mesh: &Mesh, pod: &str) -> Value {
    let admin = mesh.workload(pod).admin();
    Request::new(admin, admin.to_string()).path("/connections").send().await.unwrap().json()
}

/// Asks until the page is as wanted: a connection ends when both ends have noticed.
async fn page_becomes(mesh: &Mesh, pod: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..400 {
        last = page(mesh, pod).await;
        if wanted(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the page of {pod} never became as wanted: {last:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_open_connection_shows_at_both_ends_with_who_it_is_and_goes_when_it_ends() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    assert_eq!(page(&mesh, "payments-api").await, json!({"count": 0, "shown": 0, "connections": []}));
    let (address, _) = mesh.entry("checkout-api", "payments-api:9000");
    let mut stream = TcpStream::connect(address).await.unwrap();
    exchange_until(&mut stream, b"hello", b"hello").await.unwrap();

    let server = page(&mesh, "payments-api").await;
    assert_eq!((&server["count"], &server["shown"]), (&json!(1), &json!(1)), "{server:#}");
    let seen = &server["connections"][0];
    for (key, value) in [
        ("direction", json!("inbound")),
        ("peer", json!("spiffe://cluster.local/ns/checkout/sa/checkout-api")),
        ("protocol", json!("tcp")),
        ("requests", json!(0)),
        ("state", json!("open")),
    ] {
        assert_eq!(seen[key], value, "{key}: {seen:#}");
    }
    let client = page(&mesh, "checkout-api").await;
    let seen = &client["connections"][0];
    assert_eq!(seen["downstream"], json!(stream.local_addr().unwrap()), "{seen:#}");
    assert_eq!(seen["service"], "payments-api.payments.svc.cluster.local");
    assert_eq!(seen["peer"], "spiffe://cluster.local/ns/payments/sa/payments-api");
    assert!(seen["since"].is_string() && seen["age_seconds"].is_u64(), "{seen:#}");

    drop(stream);
    for pod in ["payments-api", "checkout-api"] {
        page_becomes(&mesh, pod, |page| page["count"] == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_stays_with_its_protocol_and_the_number_of_its_requests() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    for _ in 0..3 {
        assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    }
    let server = page(&mesh, "payments-api").await;
    let seen = &server["connections"][0];
    assert_eq!(server["count"], 1, "{server:#}");
    assert_eq!((&seen["protocol"], &seen["requests"]), (&json!("http/1.1"), &json!(3)), "{seen:#}");
    // Somebody who says nothing is seen, too, as somebody of whom nothing is known.
    let silent = TcpStream::connect(mesh.workload("payments-api").inbound(8080)).await.unwrap();
    let server = page_becomes(&mesh, "payments-api", |page| page["count"] == 2).await;
    let seen = &server["connections"][0];
    assert_eq!(
        (&seen["state"], &seen["peer"], &seen["protocol"]),
        (&json!("opening"), &Value::Null, &Value::Null)
    );
    assert_eq!(seen["downstream"], json!(silent.local_addr().unwrap()));
}
