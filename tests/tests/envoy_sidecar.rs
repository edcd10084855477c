//! A Postern sidecar and an Envoy that behaves as Istio's sidecars do, at either end, over HTTP/1.1, HTTP/2 and TCP: the protocols of the
//! handshake are Istio's, and whoever receives enforces its policy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, Request, client,
    envoy::{self, Envoy},
    envoy_sidecar::{self, HTTP1, HTTP2, TCP, allows_only, cluster, tcp_proxy, tls},
    mesh::DEADLINE,
    ports,
    scenario::{mode, payments, policy},
    workload_api::settings,
};
use serde_json::{Value, json};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const PAYMENTS: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";
const APP: &str = "payments-api";

async fn program() -> Option<std::path::PathBuf> {
    tokio::task::spawn_blocking(envoy::program).await.unwrap()
}

fn free<const N: usize>() -> [SocketAddr; N] {
    let ports = envoy::free_ports(N);
    std::array::from_fn(|n| SocketAddr::from((Ipv4Addr::LOCALHOST, ports[n])))
}

fn at(address: SocketAddr) -> Value {
    json!({"socket_address": {"address": address.ip(), "port_value": address.port()}})
}

/// Asks until there is another status than this: the first secrets may be on their way.
async fn answered(request: impl Fn() -> Request, but: u16) -> client::Answer {
    let begin = Instant::now();
    loop {
        match request().send().await {
            Ok(answer) if answer.status != but => return answer,
            other => assert!(begin.elapsed() < DEADLINE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The sidecar of a caller: one listener for each protocol.
fn caller(
    program: &std::path::Path,
    mesh: &Mesh,
    folder: &std::path::Path,
    pod: &str,
) -> (Envoy, [SocketAddr; 3]) {
    let inbound = |port| at(mesh.workload(APP).inbound(port));
    let mut over_http2 = cluster("http2", &inbound(8080), Some(tls("Upstream", PAYMENTS, HTTP2)));
    envoy_sidecar::http2(&mut over_http2);
    let clusters = [
        envoy_sidecar::workload_api(&folder.join(format!("{pod}.sock"))),
        cluster("http1", &inbound(8080), Some(tls("Upstream", PAYMENTS, HTTP1))),
        over_http2,
        cluster("tcp", &inbound(9000), Some(tls("Upstream", PAYMENTS, TCP))),
    ];
    let listen = free::<3>();
    let http = |cluster: &str| {
        let route = json!({"match": {"prefix": "/"}, "route": {"cluster": cluster}});
        json!({"filters": [envoy::connection_manager(&[], &[route], &json!({}))]})
    };
    let mut config = envoy::bootstrap(&[
        envoy::listener("http1", &listen[..1], &[http("http1")]),
        envoy::listener("http2", &listen[1..2], &[http("http2")]),
        envoy::listener("tcp", &listen[2..], &[json!({"filters": [tcp_proxy("tcp")]})]),
    ]);
    config["static_resources"]["clusters"] = json!(clusters);
    (Envoy::start(program, &config, &listen).unwrap(), listen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_that_offers_what_istios_sidecars_offer_calls_us_and_our_policy_judges_it() {
    let Some(program) = program().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let callers = format!("from: [{{source: {{principals: [{}]}}}}]", &CHECKOUT["spiffe://".len()..]);
    let rules = [
        policy(
            "http",
            &format!("action: ALLOW, rules: [{{{callers}, to: [{{operation: {{paths: [/ok]}}}}]}}]"),
        ),
        policy(
            "tcp",
            &format!("action: ALLOW, rules: [{{{callers}, to: [{{operation: {{ports: ['9000']}}}}]}}]"),
        ),
    ];
    let yaml = payments(&(mode("payments", "STRICT") + &rules.concat()));
    let mesh = Mesh::start_with(&yaml, settings(folder.path())).await;
    let (_allowed, [http1, http2, tcp]) = caller(&program, &mesh, folder.path(), "checkout-api");
    let (_denied, [other1, other2, other_tcp]) = caller(&program, &mesh, folder.path(), "reports");
    for (allowed, denied) in [(http1, other1), (http2, other2)] {
        let before = mesh.app(APP).received().len();
        let ask = |address, path: &str| Request::new(address, "payments-api.payments").path(path);
        assert_eq!(answered(|| ask(allowed, "/ok"), 503).await.status, 200);
        assert_eq!(answered(|| ask(allowed, "/other"), 503).await.status, 403, "by path");
        assert_eq!(answered(|| ask(denied, "/ok"), 503).await.status, 403, "by identity");
        let received: Vec<_> = mesh.app(APP).received()[before..].iter().map(|r| r.path.clone()).collect();
        assert_eq!(received, ["/ok"]);
    }
    // Each of Envoy's clusters has secrets of its own, which may be on their way: until then it resets without a call.
    let tcp_lines = || {
        let lines = mesh.access_log(APP).lines();
        lines.into_iter().filter(|line| line["network.protocol.name"] == "tcp").collect::<Vec<_>>()
    };
    let begin = Instant::now();
    for (address, decision, lines) in [(tcp, "allow", 1), (other_tcp, "deny", 2)] {
        let mut answer = client::exchange_bytes(address, b"hello").await;
        while tcp_lines().len() < lines {
            assert!(begin.elapsed() < DEADLINE, "{answer:?}");
            if answer.is_err() {
                answer = client::exchange_bytes(address, b"hello").await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let line = tcp_lines().pop().unwrap();
        assert_eq!(line["postern.decision"], decision, "{line}");
        match decision {
            "allow" => assert_eq!(answer.unwrap(), b"hello"),
            _ => assert!(answer.as_ref().is_err() || answer.as_ref().is_ok_and(Vec::is_empty), "{answer:?}"),
        }
        // Both end with what the first has left.
        assert_eq!(mesh.app(APP).bytes(), b"hello");
    }
}

/// An inbound side as Istio's: the chain is chosen by what the caller offers, and each has its policy.
fn server(program: &std::path::Path, folder: &std::path::Path, echo: SocketAddr) -> (Envoy, SocketAddr) {
    let [listen] = free();
    let chain = |offered: &[&str], alpn: &[&str], filters: Value| {
        json!({
            "filter_chain_match": {"transport_protocol": "tls", "application_protocols": offered},
            "transport_socket": tls("Downstream", "spiffe://cluster.local/", alpn),
            "filters": filters,
        })
    };
    let only_ok = json!({"url_path": {"path": {"exact": "/ok"}}});
    let route = json!({
        "match": {"prefix": "/"},
        "direct_response": {"status": 200, "body": {"inline_string": "from envoy"}},
        "response_headers_to_add": [{"header": {"key": "x-between", "value": "%PROTOCOL%"}}],
    });
    let http = envoy::connection_manager(&[allows_only("http", CHECKOUT, &only_ok)], &[route], &json!({}));
    let bytes = json!([allows_only("network", CHECKOUT, &json!({"any": true})), tcp_proxy("echo")]);
    let chains = [
        chain(&["istio-http/1.0", "istio-http/1.1", "istio-h2"], &["h2", "http/1.1"], json!([http])),
        chain(TCP, &["istio-peer-exchange", "h2", "http/1.1"], bytes),
    ];
    let mut config = envoy::bootstrap(&[envoy::listener("virtualInbound", &[listen], &chains)]);
    let socket = folder.join(format!("{APP}.sock"));
    config["static_resources"]["clusters"] =
        json!([envoy_sidecar::workload_api(&socket), cluster("echo", &at(echo), None)]);
    (Envoy::start(program, &config, &[listen]).unwrap(), listen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_envoy_that_chooses_as_istios_sidecars_do_is_called_by_us_and_its_policy_judges_us() {
    let Some(program) = program().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let rule = |policy: &str| {
        payments(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
             metadata: {{name: payments-api, namespace: payments}}\n\
             spec: {{host: payments-api, trafficPolicy: {{connectionPool: {{http: {{h2UpgradePolicy: {policy}}}}}}}}}\n"
        ))
    };
    let mut mesh = Mesh::start_with(&rule("DO_NOT_UPGRADE"), settings(folder.path())).await;
    let echo = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = echo.local_addr().unwrap();
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = echo.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.unwrap();
                stream.write_all(&bytes).await.unwrap();
                // Envoy connects before it judges, and closes what it denies.
                if !bytes.is_empty() {
                    heard.send(bytes).unwrap();
                }
            });
        }
    });
    let (_envoy, listen) = server(&program, folder.path(), address);
    mesh.serve_elsewhere(APP, &[(ports::real(8080), listen), (ports::real(9000), listen)]);
    for (policy, between) in [("DO_NOT_UPGRADE", "HTTP/1.1"), ("UPGRADE", "HTTP/2")] {
        mesh.apply(&rule(policy)).await;
        let ask = |from, path: &str| mesh.request(from, APP).path(path);
        let answer = answered(|| ask("checkout-api", "/ok"), 503).await;
        assert_eq!((answer.status, answer.header("x-between")), (200, Some(between)));
        let refused = answered(|| ask("checkout-api", "/other"), 503).await;
        assert_eq!((refused.status, &refused.body[..]), (403, &b"RBAC: access denied"[..]), "by path");
        let refused = answered(|| ask("reports", "/ok"), 503).await;
        assert_eq!((refused.status, &refused.body[..]), (403, &b"RBAC: access denied"[..]), "by identity");
    }
    let (allowed, _) = mesh.entry("checkout-api", "payments-api:9000");
    assert_eq!(client::exchange_bytes(allowed, b"hello").await.unwrap(), b"hello");
    assert_eq!(hears.recv().await.unwrap(), b"hello");
    let (denied, _) = mesh.entry("reports", "payments-api:9000");
    let refused = client::exchange_bytes(denied, b"stolen").await;
    assert!(refused.is_err() || refused.as_ref().is_ok_and(Vec::is_empty), "{refused:?}");
    assert_eq!(client::exchange_bytes(allowed, b"again").await.unwrap(), b"again");
    assert_eq!(hears.recv().await.unwrap(), b"again", "and nothing of the other in between");
}
