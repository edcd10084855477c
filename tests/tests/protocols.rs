//! What can be carried: HTTP/1.1, HTTP/2, gRPC, upgrades, bytes, bytes where the server speaks first; IPv4 and IPv6.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use bytes::Bytes;
use postern_tests::{
    Mesh,
    certificates::{Leaf, self_issued},
    client,
    mesh::{Settings, within},
    scenario::{mode, namespace, payments, policy},
};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::{CertifiedKey, SingleCertAndKey},
};
use serde_json::json;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_of_http_carry_method_path_headers_and_body_unchanged() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    let body = Bytes::from(vec![7_u8; 300_000]);
    for (service, http2) in [
        ("payments-api:80", false),
        ("payments-api:80", true),
        ("payments-api:81", false),
        ("payments-api:81", true),
    ] {
        let mut request = mesh.request("checkout-api", service).method("PUT").path("/a%20b/c?x=1&x=2");
        request = request.header("x-one", "1").header("x-one", "2").body(body.clone());
        let answer = if http2 { request.http2() } else { request }.send().await.unwrap();
        assert_eq!((answer.status, &answer.body), (200, &body), "{service} {http2}");
        let seen = mesh.app("payments-api").last();
        assert_eq!(
            (seen.method.as_str(), seen.path.as_str()),
            ("PUT", "/a%20b/c?x=1&x=2"),
            "{service} {http2}"
        );
        assert_eq!(seen.header("x-one"), ["1", "2"]);
        assert_eq!(seen.body, body);
        assert!(seen.authority.starts_with("payments-api"), "{}", seen.authority);
    }
    // The app's own answers come back as they are.
    for status in [204, 302, 404, 500, 503] {
        let answer =
            mesh.call("checkout-api", "payments-api", "GET", &format!("/status/{status}")).await.unwrap();
        assert_eq!(answer.status, status);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_keeps_its_trailers() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    let answer = mesh
        .request("checkout-api", "payments-api")
        .method("POST")
        .path("/pay.Charges/Create")
        .http2()
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Bytes::from_static(&[0, 0, 0, 0, 0]))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.trailers.get("grpc-status").unwrap(), "0");
    mesh.access_log("payments-api").next_with(&[("rpc.response.status_code", json!(0))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgraded_connection_carries_bytes_both_ways() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    let (entry, host) = mesh.entry("checkout-api", "payments-api");
    let mut stream = TcpStream::connect(entry).await.unwrap();
    let head = format!(
        "GET /socket HTTP/1.1\r\nhost: {host}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    let answer = client::exchange_until(&mut stream, head.as_bytes(), b"\r\n\r\n").await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    for word in [&b"one"[..], b"two and three"] {
        assert_eq!(client::exchange_until(&mut stream, word, word).await.unwrap(), word);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_through_whoever_speaks_first() {
    let mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    let (echo, _) = mesh.entry("checkout-api", "payments-api:9000");
    let long: Vec<u8> = (0..500_000_u32).map(|n| n as u8).collect();
    let answer = client::exchange_bytes(echo, &long).await.unwrap();
    assert!(answer == long, "{} of {} bytes came back", answer.len(), long.len());

    let (greets, _) = mesh.entry("checkout-api", "payments-api:9001");
    let mut stream = TcpStream::connect(greets).await.unwrap();
    assert_eq!(client::exchange_until(&mut stream, b"", b"\r\n").await.unwrap(), b"220 ready\r\n");
    assert_eq!(client::exchange_until(&mut stream, b"QUIT", b"QUIT").await.unwrap(), b"QUIT");
    let line = mesh.access_log("payments-api").next_with(&[("network.protocol.name", json!("tcp"))]).await;
    assert_eq!(line["postern.source.id"], "spiffe://cluster.local/ns/checkout/sa/checkout-api", "{line}");
}

/// A server with TLS of its own, in place of the app's listener; it answers each line in upper case, and tells the server name that was asked for.
async fn tls_server(address: SocketAddr, key: Arc<CertifiedKey>) -> Arc<Mutex<Vec<String>>> {
    let mut config = rustls::ServerConfig::builder_with_provider(postern_identity::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    let (listener, acceptor) =
        (TcpListener::bind(address).await.unwrap(), TlsAcceptor::from(Arc::new(config)));
    let heard = Arc::<Mutex<Vec<String>>>::default();
    let hears = heard.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            hears.lock().unwrap().push("a connection".into());
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            hears.lock().unwrap().push(stream.get_ref().1.server_name().unwrap_or_default().to_owned());
            let mut line = vec![0; 64];
            let length = stream.read(&mut line).await.unwrap();
            hears.lock().unwrap().push(String::from_utf8_lossy(&line[..length]).into_owned());
            let _ = stream.write_all(line[..length].to_ascii_uppercase().as_slice()).await;
            let _ = stream.shutdown().await;
        }
    });
    heard
}

/// The app's own TLS is bytes for the mesh, inside its mutual TLS: end to end between the two apps, and policy by identity all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_of_the_app_passes_inside_mutual_tls_and_policy_knows_who_calls() {
    let rules = "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
    let documents = mode("payments", "STRICT") + &policy("callers", rules);
    let mesh =
        Mesh::start(&payments(&documents).replace("name: tcp-echo, port: 9000", "name: tls-db, port: 9000"))
            .await;
    let workload = mesh.workload("payments-api");
    workload.app.stop_listening().await;
    let key = self_issued(&Leaf::good("spiffe://elsewhere/the-apps-own"));
    let (certificate, ip) = (key.cert[0].clone(), workload.ips[0]);
    // Declared, and found out by its first bytes.
    for (service, port) in [(9000, 9000), (81, 8081)] {
        let heard = tls_server(SocketAddr::new(ip, postern_tests::ports::real(port)), key.clone()).await;
        let ask = async |caller: &str| -> std::io::Result<(Vec<u8>, Vec<u8>)> {
            let (entry, _) = mesh.entry(caller, &format!("payments-api:{service}"));
            let mut config = rustls::ClientConfig::builder_with_provider(postern_identity::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Pinned(certificate.clone())))
                .with_no_client_auth();
            config.alpn_protocols = vec![b"postgresql".to_vec()];
            let stream = TcpStream::connect(entry).await?;
            let name = "db.internal".try_into().unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
            stream.write_all(b"hello").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok((answer, stream.get_ref().1.alpn_protocol().unwrap_or_default().to_vec()))
        };
        let answer = within("an answer", ask("checkout-api")).await.unwrap();
        assert_eq!(answer, (b"HELLO".to_vec(), b"postgresql".to_vec()), "port {service}");
        let said = ["a connection", "db.internal", "hello"];
        assert_eq!(*heard.lock().unwrap(), said, "port {service}");
        let line_of = async |account: &str| {
            let id = json!(format!("spiffe://cluster.local/ns/checkout/sa/{account}"));
            let at = json!(postern_tests::ports::real(port));
            let log = mesh.access_log("payments-api");
            log.next_with(&[("network.local.port", at), ("postern.source.id", id)]).await
        };
        let line = line_of("checkout-api").await;
        assert_eq!(
            (&line["postern.decision"], &line["network.protocol.name"]),
            (&json!("allow"), &json!("tcp"))
        );

        // The twin: it would speak the same TLS, and who it is was proved outside of that.
        let refused = within("an end", ask("reports")).await;
        assert!(refused.is_err(), "port {service}: {refused:?}");
        assert_eq!(line_of("reports").await["postern.decision"], "deny");
        assert_eq!(*heard.lock().unwrap(), said, "port {service}: the app heard of a denied caller");
    }
}

/// Trusts this certificate and no other: whoever stood in between would show his own.
#[derive(Debug)]
struct Pinned(CertificateDer<'static>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *certificate == self.0 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("another certificate".into()))
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = postern_identity::tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &known)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        postern_identity::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipv6_is_a_first_class_citizen() {
    let pod = |ns: &str, name: &str, port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {ns}, labels: {{app: {name}}}, \
             annotations: {{tests.postern.dev/family: ipv6}}}}\nspec:\n  serviceAccountName: {name}\n  containers:\n  \
             - name: app\n    command: [none]\n    ports: [{{name: http, containerPort: {port}}}]\n"
        )
    };
    // All pods share ::1, so their ports must be free ones.
    let free = || std::net::TcpListener::bind("[::1]:0").unwrap().local_addr().unwrap().port();
    let (one, two, three) = (free(), free(), free());
    let yaml = [
        namespace("payments", true),
        namespace("checkout", true),
        pod("payments", "payments-api", one),
        pod("checkout", "checkout-api", two),
        pod("checkout", "reports", three),
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: payments-api, namespace: payments}}\n\
             spec: {{selector: {{app: payments-api}}, ports: [{{name: http, port: 80, targetPort: {one}}}]}}\n"
        ),
        mode("payments", "STRICT"),
        postern_tests::scenario::policy(
            "v6",
            "action: ALLOW, rules: [{from: [{source: {ipBlocks: ['::1/128'], principals: ['*/checkout-api']}}]}]",
        ),
    ]
    .concat();
    let mesh = Mesh::start(&yaml).await;
    assert_eq!(mesh.call("reports", "payments-api", "GET", "/").await.unwrap().status, 403);
    assert_eq!(mesh.app("payments-api").connections(), 0);
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    let line = mesh.access_log("payments-api").next_with(&[("http.response.status_code", json!(200))]).await;
    assert_eq!(line["network.peer.address"], "::1", "{line}");
    let plain = client::exchange_bytes(
        mesh.workload("payments-api").inbound(one),
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    )
    .await;
    assert!(plain.is_err() || plain.as_ref().is_ok_and(Vec::is_empty), "{plain:?}");
    assert_eq!(mesh.app("payments-api").received().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_mesh_does_not_know_is_called_plain_unless_it_is_blocked() {
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = outside.local_addr().unwrap();
    let app = postern_tests::App::default();
    app.serve(outside, postern_tests::apps::Speech::Http);
    let settings = Settings { outside: vec![("outside".into(), address)], ..Settings::default() };
    let registry_only = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\n\
                         data: {mesh: \"outboundTrafficPolicy: {mode: REGISTRY_ONLY}\"}\n";
    let mesh = Mesh::start_with(&payments(""), settings.clone()).await;
    assert_eq!(mesh.call("checkout-api", "outside", "GET", "/").await.unwrap().status, 200);
    assert_eq!(app.received().len(), 1);

    let yaml = payments(&(namespace("istio-system", false) + registry_only));
    let mesh = Mesh::start_with(&yaml, settings).await;
    let refused = mesh.call("checkout-api", "outside", "GET", "/").await;
    assert!(refused.as_ref().map_or(true, |answer| answer.status >= 500), "{refused:?}");
    assert_eq!(app.received().len(), 1, "a blocked destination must not be called");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_endpoints_answers_503_and_says_so() {
    let yaml = payments(
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: empty, namespace: payments}\nspec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}\n",
    );
    let mesh = Mesh::start(&yaml).await;
    let answer = mesh.call("checkout-api", "empty", "GET", "/").await.unwrap();
    assert_eq!(answer.status, 503);
    let line = mesh.access_log("checkout-api").next_with(&[("http.response.status_code", json!(503))]).await;
    assert_eq!(line["postern.flags"], "UH", "{line}");
}
