//! Identity headers: what a caller claims never reaches the app, in any spelling; what was verified always does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, client,
    scenario::{mode, payments},
};

const FORGED: &str = "By=spiffe://x;Hash=00;URI=spiffe://cluster.local/ns/payments/sa/forged";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_client_certificate_header_never_reaches_the_app() {
    let mesh = Mesh::start(&payments(&mode("payments", "PERMISSIVE"))).await;
    let spellings = [
        "x-forwarded-client-cert: {}",
        "X-Forwarded-Client-Cert: {}",
        "X-FORWARDED-CLIENT-CERT: {}",
        "x-forwarded-client-cert:{}",
        "x-forwarded-client-cert: {}\r\nX-Forwarded-Client-Cert: {}",
        "x_forwarded_client_cert: {}",
        "X_Forwarded-Client_Cert: {}",
        "connection: x-forwarded-client-cert\r\nx-forwarded-client-cert: {}",
        "x-forwarded-client-cert : {}",
        " x-forwarded-client-cert: {}",
        "x-a: b\r\n x-forwarded-client-cert: {}",
    ];
    for from in ["checkout-api", "legacy"] {
        let (entry, host) = mesh.entry(from, "payments-api");
        for spelling in spellings {
            let header = spelling.replace("{}", FORGED);
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n{header}\r\nconnection: close\r\n\r\n");
            // A malformed head may be refused; what counts is what the app gets.
            let _ = client::exchange_bytes(entry, request.as_bytes()).await;
        }
        let upper =
            mesh.request(from, "payments-api").http2().header("x-forwarded-client-cert", FORGED).send().await;
        assert_eq!(upper.unwrap().status, 200);
    }
    let received = mesh.app("payments-api").received();
    assert!(received.len() >= 2 * 6, "most of these heads are well-formed: {}", received.len());
    for request in received {
        for (name, value) in &request.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            assert!(!value.contains("forged"), "the app received {name}: {value}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_carry_no_identity_either() {
    let mesh = Mesh::start(&payments(&mode("payments", "PERMISSIVE"))).await;
    let (entry, host) = mesh.entry("legacy", "payments-api");
    let request = format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\ntransfer-encoding: chunked\r\ntrailer: x-forwarded-client-cert\r\n\
         connection: close\r\n\r\n1\r\na\r\n0\r\nx-forwarded-client-cert: {FORGED}\r\n\r\n"
    );
    let _ = client::exchange_bytes(entry, request.as_bytes()).await;
    for request in mesh.app("payments-api").received() {
        assert!(request.header("x-forwarded-client-cert").is_empty(), "{:?}", request.headers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_verified_caller_is_told_once_with_the_hash_of_its_certificate() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    mesh.request("checkout-api", "payments-api")
        .header("x-forwarded-client-cert", FORGED)
        .send()
        .await
        .unwrap();
    let seen = mesh.app("payments-api").last();
    let values = seen.header("x-forwarded-client-cert");
    assert_eq!(values.len(), 1, "{values:?}");
    let value = values[0];
    assert!(value.contains("URI=spiffe://cluster.local/ns/checkout/sa/checkout-api"), "{value}");
    assert!(value.contains("By=spiffe://cluster.local/ns/payments/sa/payments-api"), "{value}");
    let hash = value.split(';').find_map(|part| part.strip_prefix("Hash=")).unwrap();
    assert!(hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{value}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_requests_are_refused() {
    let mesh = Mesh::start(&payments(&mode("payments", "PERMISSIVE"))).await;
    let (entry, host) = mesh.entry("legacy", "payments-api");
    let both = format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 44\r\ntransfer-encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    );
    let twice = format!(
        "POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 4\r\ncontent-length: 40\r\n\r\nabcdGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
    );
    for attack in [both, twice] {
        let _ = client::exchange_bytes(entry, attack.as_bytes()).await;
    }
    let smuggled = mesh.app("payments-api").received().iter().filter(|r| r.path == "/smuggled").count();
    assert_eq!(smuggled, 0);
}
