//! How connections to other sidecars end: those that nobody needs any more with TLS's closing alert, a part of a message without.
use super::{
    limits::{GET, LONG, SHORT, answer, open},
    *,
};
use postern_identity::{
    Accept,
    tls::{ClientCertificate, server_config},
};
use tokio_rustls::TlsAcceptor;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const PART: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbegun";

/// What such a sidecar ends TLS with.
pub fn acceptor(credentials: &Credentials) -> TlsAcceptor {
    let (key, trust) = (credentials.key.clone(), credentials.trust.clone());
    let accept = Accept::trust_domain("cluster.local".parse().unwrap());
    let config = server_config(key, trust, accept, ClientCertificate::Required, &[b"http/1.1"]).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Where it is found.
pub fn payments_at(dial: SocketAddr) -> Endpoint {
    Endpoint {
        workload: "payments/payments-api-0".into(),
        dial,
        port: dial.port(),
        identity: Some(PAYMENTS.parse().unwrap()),
        protocol: Protocol::Http,
    }
}

/// A sidecar of another make, that says the same on its one connection to every request; how that one ends.
fn peer(
    credentials: &Credentials,
    says: &'static [u8],
) -> (SocketAddr, tokio::task::JoinHandle<std::io::Result<()>>) {
    let acceptor = acceptor(credentials);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let serving = spawn_local(async move {
        let stream = TcpListener::from_std(listener).unwrap().accept().await.unwrap().0;
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut read = Vec::new();
        loop {
            // Without the alert this is an error.
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
            if read.ends_with(b"\r\n\r\n") {
                read.clear();
                stream.write_all(says).await.unwrap();
            }
        }
    });
    (address, serving)
}

/// Asks once, and does `then` with the client's connection; how the connection to the peer ends.
async fn end_after<F>(
    traffic: Traffic,
    says: &'static [u8],
    then: impl FnOnce(TcpStream) -> F,
) -> Result<(), std::io::ErrorKind>
where
    F: Future,
{
    let authority = Authority::new();
    let [caller, called] = [CHECKOUT, PAYMENTS].map(|id| authority.credentials(id));
    let (dial, ended) = peer(&called, says);
    let (outbound, _client, _trigger) = caller_to(payments_at(dial), traffic, caller);
    let _held = then(open(outbound, GET).await).await;
    let ended = tokio::time::timeout(LONG, ended).await.expect("an end in time").unwrap();
    ended.map_err(|error| error.kind())
}

#[tokio::test]
async fn a_connection_that_nobody_needs_ends_with_the_closing_alert_and_one_that_breaks_off_without() {
    let whole = async |mut client: TcpStream| {
        assert!(answer(&mut client).await.ends_with("ok"));
        client
    };
    let run = async {
        let idle = Traffic { http_idle: Some(SHORT), ..Traffic::default() };
        assert_eq!(end_after(idle, OK, whole).await, Ok(()), "idle for too long");
        let once = Traffic { requests_per_connection: Some(1), ..Traffic::default() };
        assert_eq!(end_after(once, OK, whole).await, Ok(()), "has carried its last request");
        let part = async |mut client: TcpStream| {
            let mut read = Vec::new();
            while !read.ends_with(b"begun") {
                assert!(client.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
            }
            socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        };
        let broken = end_after(Traffic::default(), PART, part).await;
        assert_eq!(
            broken,
            Err(std::io::ErrorKind::UnexpectedEof),
            "its client was lost in the middle of an answer"
        );
    };
    LocalSet::new().run_until(run).await;
}
