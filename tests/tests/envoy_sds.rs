//! An Envoy that takes certificate and trust by SDS from a sidecar's socket, and calls, and is called by, another sidecar.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_api::open::{X509svidRequest, spiffe_workload_api_client::SpiffeWorkloadApiClient};
use postern_identity::KeyId;
use postern_tests::{
    Mesh, Request,
    envoy::{self, Envoy},
    envoy_sidecar::{self, PLAIN, assignment, tls},
    mesh::{DEADLINE, within},
    ports,
    scenario::{mode, payments, policy},
    workload_api::{channel, marked, renew, settings},
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const PAYMENTS: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";
/// One listener with one route, and the cluster of the socket beside `more`.
fn config(socket: &Path, listen: SocketAddr, route: &Value, secured: Option<Value>, more: &[Value]) -> Value {
    let manager = envoy::connection_manager(&[], std::slice::from_ref(route), &json!({}));
    let mut chain = json!({"filters": [manager]});
    if let Some(socket) = secured {
        chain["transport_socket"] = socket;
    }
    let mut config = envoy::bootstrap(&[envoy::listener("in", &[listen], &[chain])]);
    let mut clusters = vec![envoy_sidecar::workload_api(socket)];
    clusters.extend_from_slice(more);
    config["static_resources"]["clusters"] = clusters.into();
    config
}

fn free() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, envoy::free_ports(1)[0]))
}

/// Asks until it answers with this status: the first secrets may be on their way.
async fn answers(address: SocketAddr, status: u16) {
    let mut last = None;
    let begin = std::time::Instant::now();
    while begin.elapsed() < DEADLINE {
        last = Some(Request::new(address, "payments-api.payments").send().await);
        if last.as_ref().is_some_and(|answer| answer.as_ref().is_ok_and(|answer| answer.status == status)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{address} did not answer {status}: {last:?}");
}

/// SHA-256 of the certificate that the socket gives now.
async fn certificate(socket: &Path) -> String {
    let mut client = SpiffeWorkloadApiClient::new(channel(socket.to_owned()).await);
    let mut answers = client.fetch_x509svid(marked(X509svidRequest {})).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    // The chain is one certificate behind the other, each a SEQUENCE with two bytes of length.
    let chain = &answer.svids[0].x509_svid;
    assert_eq!(chain[..2], [0x30, 0x82]);
    let leaf = &chain[..4 + usize::from(u16::from_be_bytes([chain[2], chain[3]]))];
    // A key id is the SHA-256 of what it is of.
    KeyId::of_spki(leaf).to_string()
}

/// SHA-256 of the certificate of the last call that reached the app, by the sidecar's word.
fn shown(mesh: &Mesh) -> String {
    let told = mesh.app("payments-api").last().header("x-forwarded-client-cert").join(",");
    let hash = told.split(';').find_map(|part| part.strip_prefix("Hash="));
    hash.unwrap_or_else(|| panic!("{told}")).to_owned()
}

async fn program() -> Option<std::path::PathBuf> {
    tokio::task::spawn_blocking(envoy::program).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_with_a_pods_identity_calls_a_sidecar_and_is_judged_as_that_pod() {
    let Some(program) = program().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let only_checkout = policy(
        "callers",
        "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]",
    );
    let yaml = payments(&(mode("payments", "STRICT") + &only_checkout));
    let mesh = Mesh::start_with(&yaml, settings(folder.path())).await;
    let target = mesh.workload("payments-api").inbound(8080);
    let start = |pod: &str, peer: &str| {
        let listen = free();
        let address = json!({"socket_address": {"address": target.ip(), "port_value": target.port()}});
        let cluster = json!({
            "name": "payments", "type": "STATIC", "connect_timeout": "5s",
            "transport_socket": tls("Upstream", peer, PLAIN),
            // Each call shows the certificate that Envoy has by then.
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "common_http_protocol_options": {"max_requests_per_connection": 1},
                "explicit_http_config": {"http_protocol_options": {}},
            }},
            "load_assignment": assignment("payments", &address),
        });
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "payments"}});
        let config = config(&folder.path().join(format!("{pod}.sock")), listen, &route, None, &[cluster]);
        (Envoy::start(&program, &config, &[listen]).unwrap(), listen)
    };
    let (_allowed, allowed) = start("checkout-api", PAYMENTS);
    answers(allowed, 200).await;
    // Another pod's identity is refused by policy; a server of another identity is refused by Envoy.
    let (_denied, denied) = start("reports", PAYMENTS);
    answers(denied, 403).await;
    let (_misled, misled) = start("checkout-api", CHECKOUT);
    answers(misled, 503).await;
    // And with the next certificate, which Envoy shows by itself.
    let socket = folder.path().join("checkout-api.sock");
    let first = certificate(&socket).await;
    assert_eq!(shown(&mesh), first);
    renew(mesh.workload("checkout-api")).await;
    let next = certificate(&socket).await;
    assert_ne!(next, first);
    within("Envoy shows the next certificate", async {
        while shown(&mesh) != next {
            answers(allowed, 200).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_with_a_pods_identity_is_called_by_a_sidecar_and_proves_it() {
    let Some(program) = program().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let start = |pod: &str| {
        let listen = free();
        let body = json!({"status": 200, "body": {"inline_string": "from envoy"}});
        let route = json!({"match": {"prefix": "/"}, "direct_response": body});
        let socket = folder.path().join(format!("{pod}.sock"));
        let config = config(&socket, listen, &route, Some(tls("Downstream", CHECKOUT, PLAIN)), &[]);
        (Envoy::start(&program, &config, &[listen]).unwrap(), listen)
    };
    let (_right, right) = start("payments-api");
    mesh.serve_elsewhere("payments-api", &[(ports::real(8080), right)]);
    within_envoy(&mesh, "checkout-api", 200).await;
    // Envoy takes this one caller only; and the caller takes this one server only.
    within_envoy(&mesh, "reports", 503).await;
    let (_wrong, wrong) = start("reports");
    mesh.serve_elsewhere("payments-api", &[(ports::real(8080), wrong)]);
    within_envoy(&mesh, "checkout-api", 503).await;
    mesh.serve_elsewhere("payments-api", &[(ports::real(8080), right)]);
    within_envoy(&mesh, "checkout-api", 200).await;
}

/// Calls until the answer is this; one of 200 has to be Envoy's.
async fn within_envoy(mesh: &Mesh, from: &str, status: u16) {
    let mut last = None;
    let begin = std::time::Instant::now();
    while begin.elapsed() < DEADLINE {
        let answer = mesh.call(from, "payments-api", "GET", "/").await;
        if answer.as_ref().is_ok_and(|a| a.status == status && (status != 200 || a.body == "from envoy")) {
            return;
        }
        last = Some(answer);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{from} did not get {status}: {last:?}");
}
