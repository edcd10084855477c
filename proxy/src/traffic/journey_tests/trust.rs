//! Open connections of every kind end when their peer is not trusted any more, on the side that learns of it.
use super::*;
use crate::state::Tainted;
use http_body_util::BodyExt;
use postern_identity::KeyId;
use std::collections::BTreeSet;

/// Answers every connection with the head of an endless message, or of a WebSocket, and says no more.
async fn endless_app() -> App {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            spawn_local(async move {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") {
                    if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let answer: &[u8] = if String::from_utf8_lossy(&read).contains("upgrade: websocket") {
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello"
                } else {
                    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"
                };
                stream.write_all(answer).await.unwrap();
                let _ = stream.read_buf(&mut read).await;
            });
        }
    });
    App { address, seen: Rc::default() }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Tcp,
    WebSocket,
    Http1,
    Http2,
}

/// What a client sees of one connection: `None` while it stands, else whether its end looked orderly.
async fn end_of(kind: Kind, address: SocketAddr, change: impl FnOnce(), patience: Duration) -> Option<bool> {
    if kind == Kind::Http2 {
        let mut sender = http2_client(address).await;
        let request = http::Request::get("http://payments-api/");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
        let mut body = sender.send_request(request).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        change();
        let ended = tokio::time::timeout(patience, body.frame()).await.ok()?;
        return Some(ended.is_none());
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    let ask: &[u8] = match kind {
        Kind::WebSocket => {
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        }
        _ => b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    };
    stream.write_all(ask).await.unwrap();
    let mut read = Vec::new();
    while !String::from_utf8_lossy(&read).contains("hello") {
        assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
    }
    change();
    tokio::time::timeout(patience, stream.read_to_end(&mut read)).await.ok().map(drop)?;
    // Neither a tunnel nor a TCP connection has an end of its own to mistake this for.
    Some(read.ends_with(b"0\r\n\r\n"))
}

#[tokio::test]
async fn an_open_connection_ends_at_once_when_its_authority_is_revoked_and_its_twin_below_another_stays() {
    LocalSet::new()
        .run_until(async {
            for kind in [Kind::Tcp, Kind::WebSocket, Kind::Http1, Kind::Http2] {
                for server_learns in [true, false] {
                    for revoked in [true, false] {
                        check(kind, server_learns, revoked).await;
                    }
                }
            }
        })
        .await;
}

async fn check(kind: Kind, server_learns: bool, revoked: bool) {
    let (mut callers, mut called) = (Authority::new(), Authority::new());
    let anchors = |authority: &Authority| authority.trust.get("cluster.local").unwrap().anchors.clone();
    let (first, second) = (anchors(&callers), anchors(&called));
    let bundle = |anchors: Vec<_>| Bundle::new("cluster.local".parse().unwrap(), anchors);
    let both: Arc<TrustBundles> =
        Arc::new([bundle([first.clone(), second.clone()].concat())].into_iter().collect());
    callers.trust = both.clone();
    called.trust = both;
    let protocol = if kind == Kind::Tcp { Protocol::Tcp } else { Protocol::Http };
    let credentials = [callers.credentials(CHECKOUT), called.credentials(PAYMENTS)];
    let pair =
        pair_with(endless_app().await, protocol, MtlsMode::Strict, vec![], PAYMENTS, credentials).await;
    let (learns, stays, goes) =
        if server_learns { (&pair.server, second, first) } else { (&pair.client, first, second) };
    let next = if revoked {
        let mut next = bundle(stays);
        next.revoked = BTreeSet::from([KeyId::of_certificate(&goes[0]).unwrap()]);
        next
    } else {
        // Trust changes as well, but not for this peer.
        bundle([stays, goes, anchors(&Authority::new())].concat())
    };
    let change = || learns.store.publish_trust([next].into_iter().collect(), Tainted::default()).unwrap();
    let patience = if revoked { Duration::from_secs(5) } else { Duration::from_millis(200) };
    let ended = end_of(kind, pair.outbound, change, patience).await;
    let expected = if revoked { Some(false) } else { None };
    assert_eq!(ended, expected, "{kind:?}, server learns: {server_learns}, revoked: {revoked}");
    let metrics = learns.telemetry.metrics().encode(std::time::SystemTime::now());
    let reporter = if server_learns { "destination" } else { "source" };
    let counted = metrics.contains(&format!("postern_peer_refusals_total{{reporter=\"{reporter}\""));
    assert_eq!(counted, revoked, "{metrics}");
    // What is refused on an open connection is refused on a new one.
    if revoked {
        let again = talk(pair.outbound, &request("GET", "/", "")).await.unwrap_or_default();
        assert!(!again.contains("hello"), "{again}");
    }
}
