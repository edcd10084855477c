//! Bodies whose last octets meet a socket that is full: whoever reads slowly gets all of them, and the other side its answer.
use super::{
    endings::{acceptor, payments_at},
    limits::{LONG, answer, open},
    *,
};
use postern_identity::{Accept, tls::client_config};
use socket2::{Domain, Socket, Type};
use tokio::{io::AsyncRead, net::TcpSocket, sync::oneshot};
use tokio_rustls::TlsConnector;

/// In octets: from less than the sockets between two ends hold, in steps of half of what TLS holds beside them, to more than both.
fn lengths() -> impl Iterator<Item = usize> {
    (48 << 10..400 << 10).step_by(32 << 10)
}
/// What a slow reader takes at once, in octets: far less than anybody writes at once.
const SIP: usize = 1024;

/// A socket with small buffers at both ends of its connections: by the size of segments the other end's kernel measures its own.
fn narrow() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// An octet of a body, by its place.
fn octet(place: usize) -> u8 {
    (place % 251) as u8
}

fn body(length: usize) -> Vec<u8> {
    (0..length).map(octet).collect()
}

/// Reads a message to the end of its head, and once it may go on the body, in sips.
async fn read(stream: &mut (impl AsyncRead + Unpin), length: usize, go: oneshot::Receiver<()>) {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|octets| octets == b"\r\n\r\n") {
            break end + 4;
        }
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
    };
    go.await.unwrap();
    let mut sip = [0; SIP];
    while read.len() < end + length {
        let count = tokio::time::timeout(LONG, stream.read(&mut sip)).await;
        let count = count.unwrap_or_else(|_| panic!("{} of {length} octets came", read.len() - end)).unwrap();
        assert!(count > 0, "it ends after {} octets", read.len() - end);
        read.extend_from_slice(&sip[..count]);
        tokio::task::yield_now().await;
    }
    assert!(read[end..] == body(length), "the same octets, of {length}");
}

#[tokio::test]
async fn an_upload_whose_last_octets_meet_a_full_socket_arrives_whole_and_is_answered() {
    let run = async {
        let authority = Authority::new();
        let [caller, called] = [CHECKOUT, PAYMENTS].map(|id| authority.credentials(id));
        let socket = narrow();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(16).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let dial = listener.local_addr().unwrap();
        let acceptor = acceptor(&called);
        let traffic = Traffic { requests_per_connection: Some(1), ..Traffic::default() };
        let (outbound, _client, _trigger) = caller_to(payments_at(dial), traffic, caller);
        for length in lengths() {
            let (full, go) = oneshot::channel();
            let upstream = async {
                let mut stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                read(&mut stream, length, go).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nwhole").await.unwrap();
                stream
            };
            let client = async {
                let head = format!("PUT /up HTTP/1.1\r\nHost: a\r\ncontent-length: {length}\r\n\r\n");
                let mut client = open(outbound, head.as_bytes()).await;
                client.write_all(&body(length)).await.unwrap();
                full.send(()).unwrap();
                let told = answer(&mut client).await;
                assert!(told.starts_with("HTTP/1.1 200 ") && told.ends_with("whole"), "{length}: {told}");
            };
            tokio::join!(upstream, client);
        }
    };
    LocalSet::new().run_until(run).await;
}

/// An app that answers each request with as many octets as its path says.
async fn large_app() -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            spawn_local(async move {
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.unwrap() > 0 {
                    if !read.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    let head = String::from_utf8(std::mem::take(&mut read)).unwrap();
                    let path = head.split([' ', '/']).nth(2).unwrap();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {path}\r\n\r\n");
                    stream.write_all(head.as_bytes()).await.unwrap();
                    stream.write_all(&body(path.parse().unwrap())).await.unwrap();
                }
            });
        }
    });
    App { address, seen: Rc::default() }
}

#[tokio::test]
async fn an_answer_whose_last_octets_meet_a_full_socket_arrives_whole() {
    let run = async {
        let authority = Authority::new();
        let [caller, called] = [CHECKOUT, PAYMENTS].map(|id| authority.credentials(id));
        let app = large_app().await;
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Arrival::Fixed(app.address)).unwrap();
        let inbound = listener.local_addr().unwrap();
        let spec = spec(app.address.port(), MtlsMode::Strict, Protocol::Http, vec![]);
        let (server, _trigger) = shared(called, spec, None);
        spawn_local(inbound::serve(listener, server));
        let accept = Accept::trust_domain("cluster.local".parse().unwrap());
        let alpn: &[&[u8]] = &[b"istio-http/1.1"];
        let config = client_config(Some(caller.key.clone()), caller.trust.clone(), accept, alpn).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        for length in lengths() {
            let stream = TcpSocket::from_std_stream(narrow().into()).connect(inbound).await.unwrap();
            let mut stream = connector.connect(inbound.ip().into(), stream).await.unwrap();
            let request = format!("GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let (go, at_once) = oneshot::channel();
            go.send(()).unwrap();
            read(&mut stream, length, at_once).await;
        }
    };
    LocalSet::new().run_until(run).await;
}
