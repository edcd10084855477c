//! What may leave the mesh: ServiceEntry and outboundTrafficPolicy. Every refusal proves that the outside received nothing,
//! and has a twin that passes, one fact away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    App, Mesh,
    apps::Speech,
    client,
    mesh::{Settings, within},
    ports,
    scenario::{mode as strict, namespace, payments},
};
use serde_json::json;
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// An app outside the mesh, on IPv4 loopback.
async fn outsider(speech: Speech) -> (App, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = App::default();
    app.serve(listener, speech);
    (app, port)
}

fn mode(mode: &str) -> String {
    namespace("istio-system", false)
        + &format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data: {{mesh: \"outboundTrafficPolicy: {{mode: {mode}}}\"}}\n"
        )
}

/// A ServiceEntry of the callers' namespace; `spec` in YAML flow style.
fn entry(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n\
         metadata: {{name: {name}, namespace: checkout}}\nspec: {{{spec}}}\n"
    )
}

/// An address of documentation (RFC 5737), where nobody is.
fn nowhere(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, last], port))
}

async fn start(documents: &str, outside: &[(&str, SocketAddr)]) -> Mesh {
    let outside = outside.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
    Mesh::start_with(&payments(documents), Settings { outside, ..Settings::default() }).await
}

/// The first message of a TLS client.
fn client_hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_registry_only_http_passes_to_the_hosts_that_entries_name_and_to_an_address_of_our_own_lookup() {
    let (app, port) = outsider(Speech::Http).await;
    let files = entry(
        "files",
        &format!(
            "hosts: [files.example.com], resolution: DNS, endpoints: [{{address: localhost}}], \
             ports: [{{number: {port}, name: http, protocol: HTTP}}]"
        ),
    );
    // The caller dials an address where nobody is: had the sidecar believed it, no call would arrive.
    let mut mesh = start(&(mode("REGISTRY_ONLY") + &files), &[("out", nowhere(1, port))]).await;
    let call = async |mesh: &Mesh, host: &str, http2: bool| {
        let request = mesh.request("checkout-api", "out").host(host);
        let request = if http2 { request.http2() } else { request };
        request.send().await.unwrap()
    };
    for http2 in [false, true] {
        for host in ["files.example.com", "FILES.example.com:8080"] {
            let answer = call(&mesh, host, http2).await;
            assert_eq!(answer.status, 200, "{host} {http2} {answer:?}");
        }
        let before = app.received().len();
        for host in ["evil.example.com", "files.example.com.evil.example", "127.0.0.1", "example.com"] {
            let answer = call(&mesh, host, http2).await;
            assert_eq!(answer.status, 502, "{host} {http2} {answer:?}");
            assert_eq!(answer.json()["code"], "outbound-blocked");
        }
        assert_eq!(app.received().len(), before, "a blocked host must not be called");
    }
    let line = mesh.access_log("checkout-api").next_with(&[("http.response.status_code", json!(502))]).await;
    assert_eq!(
        (&line["postern.flags"], &line["server.address"]),
        (&json!("UH"), &json!("evil.example.com")),
        "{line}"
    );
    let line = mesh.access_log("checkout-api").next_with(&[("http.response.status_code", json!(200))]).await;
    assert_eq!(line["postern.destination.service"], "files.example.com", "{line}");

    // An entry that goes takes its permission with it.
    let before = app.received().len();
    mesh.apply(&payments(&mode("REGISTRY_ONLY"))).await;
    assert_eq!(call(&mesh, "files.example.com", false).await.status, 502);
    assert_eq!(app.received().len(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_the_app_passes_by_its_server_name_and_is_reset_without_a_known_one() {
    let (app, port) = outsider(Speech::Echo).await;
    let api = entry(
        "api",
        &format!(
            "hosts: [api.example.com], resolution: STATIC, endpoints: [{{address: 127.0.0.1}}], \
             ports: [{{number: {port}, name: https, protocol: TLS}}]"
        ),
    );
    let mesh = start(&(mode("REGISTRY_ONLY") + &api), &[("out", nowhere(1, port))]).await;
    let (sidecar, _) = mesh.entry("checkout-api", "out");
    for hello in [client_hello("evil.example.com"), client_hello("192.0.2.1"), b"\x00not tls".to_vec()] {
        let refused = client::exchange_bytes(sidecar, &hello).await;
        assert!(refused.as_ref().map_or(true, Vec::is_empty), "{refused:?}");
    }
    assert_eq!(app.connections(), 0, "nothing may leave without a name that an entry has");
    let line = mesh.access_log("checkout-api").next_with(&[("postern.flags", json!("UH"))]).await;
    assert_eq!(line["network.protocol.name"], "tcp", "{line}");
    let hello = client_hello("api.example.com");
    assert_eq!(client::exchange_bytes(sidecar, &hello).await.unwrap(), hello);
    assert_eq!(app.bytes(), hello);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wildcard_leads_to_the_dialled_address_and_only_within_the_addresses_of_its_entry() {
    let (app, port) = outsider(Speech::Http).await;
    let wildcard = |addresses: &str| {
        entry(
            "wild",
            &format!(
                "hosts: ['*.example.com'], {addresses} resolution: NONE, \
                 ports: [{{number: {port}, name: http, protocol: HTTP}}]"
            ),
        )
    };
    let dialled = SocketAddr::from(([127, 0, 0, 1], port));
    let documents = |addresses: &str| payments(&(mode("REGISTRY_ONLY") + &wildcard(addresses)));
    let settings = Settings { outside: vec![("out".into(), dialled)], ..Settings::default() };
    let mut mesh = Mesh::start_with(&documents(""), settings).await;
    let call = async |mesh: &Mesh, host: &str| {
        mesh.request("checkout-api", "out").host(host).send().await.unwrap().status
    };
    for (host, status) in
        [("a.example.com", 200), ("b.a.example.com", 200), ("example.com", 502), ("a.example.org", 502)]
    {
        let before = app.received().len();
        assert_eq!(call(&mesh, host).await, status, "{host}");
        assert_eq!(app.received().len() - before, usize::from(status == 200), "{host}");
    }
    for (addresses, status) in [("addresses: [192.0.2.0/24],", 502), ("addresses: [127.0.0.0/8],", 200)] {
        mesh.apply(&documents(addresses)).await;
        let before = app.received().len();
        assert_eq!(call(&mesh, "a.example.com").await, status, "{addresses}");
        assert_eq!(app.received().len() - before, usize::from(status == 200), "{addresses}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_by_the_address_that_an_entry_lists_and_are_reset_elsewhere() {
    let (app, port) = outsider(Speech::Echo).await;
    let database = entry(
        "database",
        &format!(
            "hosts: [db.example.com], addresses: [192.0.2.10, 192.0.2.128/25], resolution: STATIC, \
             endpoints: [{{address: 127.0.0.1, ports: {{tcp-db: {port}}}}}], \
             ports: [{{number: 5432, name: tcp-db, protocol: TCP}}]"
        ),
    );
    let outside = [
        ("listed", nowhere(10, 5432)),
        ("ranged", nowhere(200, 5432)),
        ("elsewhere", nowhere(11, 5432)),
        ("other-port", nowhere(10, 5433)),
    ];
    let mesh = start(&(mode("REGISTRY_ONLY") + &database), &outside).await;
    for name in ["elsewhere", "other-port"] {
        let refused = client::exchange_bytes(mesh.entry("checkout-api", name).0, b"\0select").await;
        assert!(refused.as_ref().map_or(true, Vec::is_empty), "{name}: {refused:?}");
    }
    assert_eq!(app.connections(), 0);
    for name in ["listed", "ranged"] {
        let answer = client::exchange_bytes(mesh.entry("checkout-api", name).0, b"\0select").await;
        assert_eq!(answer.unwrap(), b"\0select", "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_allow_any_everything_passes_and_entries_still_lead() {
    let (named, port) = outsider(Speech::Http).await;
    let (any, _) = outsider(Speech::Http).await;
    // Two servers on one port: the address tells which of them was dialled.
    let dialled = SocketAddr::from(([127, 0, 0, 2], port));
    any.serve(TcpListener::bind(dialled).await.unwrap(), Speech::Http);
    let files = entry(
        "files",
        &format!(
            "hosts: [files.example.com], resolution: STATIC, endpoints: [{{address: 127.0.0.1}}], \
             ports: [{{number: {port}, name: http, protocol: HTTP}}]"
        ),
    );
    let mesh = start(&(mode("ALLOW_ANY") + &files), &[("out", dialled)]).await;
    let call = async |host: &str| mesh.request("checkout-api", "out").host(host).send().await.unwrap().status;
    assert_eq!(call("files.example.com").await, 200);
    assert_eq!((named.received().len(), any.received().len()), (1, 0));
    assert_eq!(call("whatever.example.org").await, 200);
    assert_eq!((named.received().len(), any.received().len()), (1, 1));
    let (sidecar, _) = mesh.entry("checkout-api", "out");
    let _ = client::exchange_bytes(sidecar, b"\0bytes that are no http").await;
    assert_eq!(any.connections(), 2, "bytes go where they were sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_entry_is_seen_only_where_it_is_exported_to() {
    let (app, port) = outsider(Speech::Http).await;
    let files = |export: &str| {
        entry(
            "files",
            &format!(
                "hosts: [files.example.com], exportTo: [{export}], resolution: STATIC, \
                 endpoints: [{{address: 127.0.0.1}}], ports: [{{number: {port}, name: http, protocol: HTTP}}]"
            ),
        )
    };
    let documents = |export: &str| mode("REGISTRY_ONLY") + &files(export);
    let mut mesh = start(&documents("'.'"), &[("out", nowhere(1, port))]).await;
    let call = async |mesh: &Mesh, from: &str| {
        mesh.request(from, "out").host("files.example.com").send().await.unwrap().status
    };
    assert_eq!(call(&mesh, "payments-api").await, 502);
    assert_eq!(app.received().len(), 0);
    assert_eq!(call(&mesh, "checkout-api").await, 200);
    mesh.apply(&payments(&documents("payments"))).await;
    assert_eq!(call(&mesh, "payments-api").await, 200);
    assert_eq!(call(&mesh, "checkout-api").await, 502);
    assert_eq!(app.received().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_addresses_is_answered_at_once_and_leads_nowhere_else() {
    let (app, port) = outsider(Speech::Http).await;
    // RFC 6761: no resolver has addresses for `invalid`.
    let gone = entry(
        "gone",
        &format!(
            "hosts: [files.example.com], resolution: DNS, endpoints: [{{address: nobody.invalid}}], \
             ports: [{{number: {port}, name: http, protocol: HTTP}}]"
        ),
    );
    let dialled = SocketAddr::from(([127, 0, 0, 1], port));
    let mesh = start(&(mode("ALLOW_ANY") + &gone), &[("out", dialled)]).await;
    let began = std::time::Instant::now();
    let answer = mesh.request("checkout-api", "out").host("files.example.com").send().await.unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("no-endpoint")));
    assert!(began.elapsed() < std::time::Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(app.received().len(), 0, "the dialled address is no substitute");
    // The twin: another name passes, as it is.
    let answer = mesh.request("checkout-api", "out").host("other.example.com").send().await.unwrap();
    assert_eq!(answer.status, 200);
}

/// Whoever writes the zone of a name must not make a sidecar speak plaintext to a workload of the mesh.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_resolves_to_a_pod_of_the_mesh_is_called_with_mutual_tls_and_never_in_clear() {
    let port = ports::real(8080);
    let denied = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: denied, namespace: payments}\n\
                  spec: {action: DENY, rules: [{to: [{operation: {paths: [/no]}}]}]}\n";
    let named = entry(
        "named",
        "hosts: [pod.example.com], resolution: DNS, endpoints: [{address: localhost}], \
         ports: [{number: 8080, name: http, protocol: HTTP}]",
    );
    let documents = [&strict("payments", "STRICT"), denied, &named].concat();
    let mut mesh = start(&documents, &[("out", nowhere(1, port))]).await;
    // Who speaks plaintext to the address gets here; the pod's own sidecar is reached elsewhere.
    let trap = App::default();
    trap.serve(TcpListener::bind(("127.0.0.1", port)).await.unwrap(), Speech::Http);
    let call = async |mesh: &Mesh, path: &str| {
        mesh.request("checkout-api", "out").host("pod.example.com").path(path).send().await.unwrap().status
    };
    // The twin: while the address is nobody's, the name leads there as it is.
    assert_eq!(call(&mesh, "/yes").await, 200);
    assert_eq!(trap.received().len(), 1);

    mesh.workloads.get_mut("payments-api").unwrap().ips = vec!["127.0.0.1".parse().unwrap()];
    mesh.apply(&payments(&documents)).await;
    let app = mesh.app("payments-api").clone();
    within("the sidecar knows whose address it is", async {
        while app.received().is_empty() {
            assert!(matches!(call(&mesh, "/yes").await, 200 | 503));
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    let (clear, mutual) = (trap.received().len(), app.received().len());
    assert_eq!(call(&mesh, "/no").await, 403, "its own sidecar has refused");
    assert_eq!(call(&mesh, "/yes").await, 200);
    assert_eq!((trap.received().len(), app.received().len()), (clear, mutual + 1));
    let told = app.received().last().unwrap().header("x-forwarded-client-cert").join(" ");
    assert!(told.contains("ns/checkout/sa/checkout-api"), "{told}");
}
