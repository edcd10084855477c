//! Sniffing on real sockets, with the bytes split at every position.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
};

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    client.set_nodelay(true).unwrap();
    (client, listener.accept().await.unwrap().0)
}

fn hello(alpn: &[&[u8]]) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = "outbound_.80_._.a.b.svc.cluster.local".try_into().unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

async fn read_all<S: AsyncRead + Unpin>(mut stream: Prefixed<S>) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

#[tokio::test]
async fn a_client_hello_split_anywhere_is_recognised_and_given_back_whole() {
    let bytes = hello(&[b"istio-http/1.1", b"istio", b"http/1.1"]);
    assert!(bytes.len() > 1300, "a post-quantum share makes it large: {}", bytes.len());
    for at in (1..bytes.len()).step_by(7).chain(1..12) {
        let (mut client, server) = pair().await;
        let (sniffed, ()) = tokio::join!(transport(server, None), async {
            client.write_all(&bytes[..at]).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(&bytes[at..]).await.unwrap();
            client.shutdown().await.unwrap();
        });
        let (kind, stream) = sniffed.unwrap();
        let Transport::Tls(hello) = kind else { panic!("split at {at}: {kind:?}") };
        assert_eq!(hello.sni.as_deref(), Some("outbound_.80_._.a.b.svc.cluster.local"));
        assert!(hello.is_mesh_http() && hello.is_mesh() && !hello.is_mesh_tcp());
        assert_eq!(read_all(stream).await, bytes);
    }
}

#[tokio::test]
async fn a_client_hello_byte_by_byte_is_recognised() {
    let bytes = hello(&[b"h2"]);
    let (mut client, server) = pair().await;
    let (sniffed, ()) = tokio::join!(transport(server, None), async {
        for byte in &bytes {
            client.write_all(&[*byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    });
    let Transport::Tls(hello) = sniffed.unwrap().0 else { panic!() };
    assert!(!hello.is_mesh());
}

#[tokio::test]
async fn what_is_not_tls_is_told_at_its_first_wrong_byte() {
    let cases: [(&[u8], Transport); 6] = [
        (b"GET / HTTP/1.1\r\n", Transport::Raw),
        (b"\x16\x02", Transport::Raw),
        (b"\x16\x03\x01\x00\x05\x02", Transport::Raw),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\xff", Transport::BrokenTls),
        (b"", Transport::Closed(true)),
        (b"\x16\x03", Transport::Closed(false)),
    ];
    for (bytes, expected) in cases {
        let (mut client, server) = pair().await;
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let (kind, stream) = transport(server, None).await.unwrap();
        assert_eq!(kind, expected, "{bytes:?}");
        assert_eq!(read_all(stream).await, bytes);
    }
}

#[tokio::test]
async fn silence_is_told_only_when_not_a_single_byte_came() {
    let (_client, server) = pair().await;
    assert_eq!(transport(server, Some(Duration::from_millis(5))).await.unwrap().0, Transport::Silent);
    let (_client, server) = pair().await;
    assert_eq!(application(server, Some(Duration::from_millis(5))).await.unwrap().0, Application::Silent);
}

#[test]
fn the_first_line_decides_what_the_application_speaks() {
    use Application::{Http1, Http2, Other};
    let cases: [(&[u8], Option<Application>); 15] = [
        (b"GET / HTTP/1.1\r\n", Some(Http1)),
        (b"GET / HTTP/1.1\n", Some(Http1)),
        (b"\r\nGET / HTTP/1.0\r\n", Some(Http1)),
        (b"my-method /x HTTP/1.1\r\n", Some(Http1)),
        (b"GET / HTTP/1.1", None),
        (b"GET", None),
        (b"P", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM", None),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Http2)),
        (b"GET key\r\n", Some(Other)),
        (b"HELO example.com\r\n", Some(Other)),
        (b"*1\r\n$4\r\nPING\r\n", Some(Other)),
        (b"\x00\x01", Some(Other)),
        (b" GET / HTTP/1.1\r\n", Some(Other)),
        (b"\x16\x03\x01", Some(Other)),
    ];
    for (bytes, expected) in cases {
        assert_eq!(judge(bytes), expected, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn the_decision_does_not_depend_on_how_the_bytes_arrive() {
    for whole in
        [&b"GET /a?b HTTP/1.1\r\nhost: x\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"EHLO you\r\n"]
    {
        let decided = judge(whole);
        for end in 1..whole.len() {
            if let Some(early) = judge(&whole[..end]) {
                assert_eq!(Some(early), decided, "after {end} bytes of {}", String::from_utf8_lossy(whole));
            }
        }
    }
}
