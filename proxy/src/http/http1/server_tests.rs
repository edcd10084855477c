//! Answers byte by byte, and clients that do as they like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::http::framing::Patience;
use http_body_util::BodyExt as _;
use hyper::ext::ReasonPhrase;
use postern_config::documents::Upgrades;
use std::{convert::Infallible, time::Duration};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    task::LocalSet,
    time::Instant,
};

/// A body of these pieces, of known length or not.
struct Pieces(Vec<&'static str>, bool);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = if self.0.is_empty() { None } else { Some(self.0.remove(0)) };
        Poll::Ready(piece.map(|piece| Ok(Frame::data(Bytes::from(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.1 && self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let length = self.0.iter().map(|piece| piece.len() as u64).sum();
        if self.1 { SizeHint::with_exact(length) } else { SizeHint::default() }
    }
}

const USUAL: Asked = Asked { is_http_1_0: false, is_head: false, takes_trailers: false, persists: true };

/// The head of an answer with these lines and this body, but for its date; and whether the connection goes on.
fn check_head(asked: Asked, status: u16, lines: &[(&str, &str)], body: &Pieces, expected: (&str, bool)) {
    let mut response = Response::builder().status(status);
    for (name, value) in lines {
        response = response.header(*name, *value);
    }
    let (parts, ()) = response.body(()).unwrap().into_parts();
    let mut out = Vec::new();
    let written = heads::write(parts, body, asked, &mut out);
    let text = String::from_utf8(out).unwrap();
    let (first, last) = text.split_once("date: ").expect("a date");
    assert!(last.ends_with(" GMT\r\n\r\n") && last.len() == 33, "{last:?}");
    assert_eq!((first, written.persists), expected, "{status} {lines:?}");
}

#[test]
fn an_answer_says_its_framing_once_and_whether_the_connection_goes_on() {
    let http_1_0 = Asked { is_http_1_0: true, persists: false, ..USUAL };
    let kept_1_0 = Asked { is_http_1_0: true, ..USUAL };
    let head = Asked { is_head: true, ..USUAL };
    let last = Asked { persists: false, ..USUAL };
    let whole = || Pieces(vec!["hello"], true);
    let stream = || Pieces(vec!["hello"], false);
    let none = || Pieces(vec![], true);
    let lying: &[_] = &[("x", "y"), ("content-length", "7"), ("transfer-encoding", "gzip")];
    for (asked, status, lines, body, expected) in [
        (USUAL, 200, lying, whole(), ("HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 5\r\n", true)),
        (USUAL, 200, lying, stream(), ("HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n", true)),
        (USUAL, 200, lying, none(), ("HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 0\r\n", true)),
        (last, 200, &[], whole(), ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n", false)),
        (
            USUAL,
            200,
            &[("connection", "close")],
            whole(),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n", false),
        ),
        (
            http_1_0,
            200,
            &[],
            whole(),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n", false),
        ),
        (
            kept_1_0,
            200,
            &[],
            whole(),
            ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n", true),
        ),
        (kept_1_0, 200, &[], stream(), ("HTTP/1.0 200 OK\r\nconnection: close\r\n", false)),
        (head, 200, &[("content-length", "7")], none(), ("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n", true)),
        (head, 200, &[], none(), ("HTTP/1.1 200 OK\r\n", true)),
        (head, 403, &[], whole(), ("HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n", true)),
        (
            USUAL,
            304,
            &[("content-length", "7")],
            none(),
            ("HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n", true),
        ),
        (USUAL, 204, &[("content-length", "7")], none(), ("HTTP/1.1 204 No Content\r\n", true)),
        (
            USUAL,
            101,
            &[("upgrade", "websocket"), ("connection", "x")],
            none(),
            ("HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n", false),
        ),
        (USUAL, 599, &[("trailer", "x")], whole(), ("HTTP/1.1 599 -\r\ncontent-length: 5\r\n", true)),
        (
            USUAL,
            200,
            &[("trailer", "x")],
            stream(),
            ("HTTP/1.1 200 OK\r\ntrailer: x\r\ntransfer-encoding: chunked\r\n", true),
        ),
    ] {
        check_head(asked, status, lines, &body, expected);
    }
    let mut response = Response::new(());
    response.extensions_mut().insert(ReasonPhrase::from_static(b"Fine"));
    response.headers_mut().insert("date", "then".parse().unwrap());
    let mut out = Vec::new();
    heads::write(response.into_parts().0, &none(), USUAL, &mut out);
    assert_eq!(out, b"HTTP/1.1 200 Fine\r\ndate: then\r\ncontent-length: 0\r\n\r\n");
}

/// What a body is on the wire, cut off where it does not keep its word.
async fn written(mut body: Option<(Pieces, Coding)>) -> (String, bool) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let mut peer = listener.accept().await.unwrap().0;
    let mut line = Line::new(stream, BytesMut::new());
    let is_whole = poll_fn(|cx| line.poll_message(cx, &mut body)).await.is_ok();
    drop(line);
    let mut text = String::new();
    peer.read_to_string(&mut text).await.unwrap();
    (text, is_whole)
}

#[tokio::test]
async fn bodies_keep_their_length_and_their_order() {
    let large: &'static str = Box::leak("l".repeat(100_000).into_boxed_str());
    let chunked = || Coding::Chunked(Vec::new());
    for (pieces, coding, expected) in [
        (vec!["he", "", "llo"], Coding::Length(5), ("hello".into(), true)),
        (vec!["he", "", "llo"], chunked(), ("2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n".into(), true)),
        (vec!["he", "llo"], Coding::UntilClose, ("hello".into(), true)),
        (vec![], chunked(), ("0\r\n\r\n".into(), true)),
        (vec!["a", large, "b"], Coding::Length(100_002), (format!("a{large}b"), true)),
        (
            vec!["a", large, large, "b"],
            chunked(),
            (format!("1\r\na\r\n186a0\r\n{large}\r\n186a0\r\n{large}\r\n1\r\nb\r\n0\r\n\r\n"), true),
        ),
        (vec![large; 20], Coding::UntilClose, (large.repeat(20), true)),
        (vec!["hello"], Coding::Length(6), (String::new(), false)),
        (vec!["hello"], Coding::Length(4), (String::new(), false)),
    ] {
        let what = format!("{} pieces, {coding:?}", pieces.len());
        let (text, is_whole) = written(Some((Pieces(pieces, false), coding))).await;
        assert!((text, is_whole) == expected, "{what}");
    }
}

/// Takes all that is written, and says that it is on its way only when it is asked for the third time: as TLS does behind a full socket.
struct Slow(u32);

impl tokio::io::AsyncRead for Slow {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

impl tokio::io::AsyncWrite for Slow {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(octets.len()))
    }
    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0 += 1;
        if self.0 < 3 { Poll::Pending } else { Poll::Ready(Ok(())) }
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_message_is_under_way_until_the_last_of_it_has_left() {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut line = Line::new(Slow(0), BytesMut::new());
    assert!(!line.is_sending());
    line.begin().extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    for _ in 0..2 {
        assert!(line.poll_message(cx, &mut None::<(Pieces, Coding)>).is_pending());
        assert!(line.is_sending(), "it lies in a buffer of TLS");
    }
    assert!(line.poll_message(cx, &mut None::<(Pieces, Coding)>).is_ready());
    assert!(!line.is_sending());
}

/// A server that answers `answer` to all, and a client's end of a connection to it.
async fn connect<F, R>(closing: &'static Cell<bool>, respond: F) -> (TcpStream, tokio::task::JoinHandle<bool>)
where
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Result<Response<Body>, Infallible>> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let stream = Prefixed::new(Stream::Plain(Prefixed::new(listener.accept().await.unwrap().0)));
    let long = Duration::from_secs(60);
    let first_head = Instant::now() + long;
    let patience = Patience { first_head, head: long, idle: long, body: long, stalled: long };
    let strict = Strict::new(stream, patience, Upgrades::default());
    let serving = async move { serve(strict, closing, respond).await.is_ok() };
    (client, tokio::task::spawn_local(serving))
}

fn never() -> &'static Cell<bool> {
    Box::leak(Box::new(Cell::new(false)))
}

/// Echoes the length of the body.
async fn count(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let text = match request.into_body().collect().await {
        Ok(body) => format!("{path} {}", body.to_bytes().len()),
        Err(error) => format!("{path} {error}"),
    };
    Ok(Response::new(Body::Local(Some(Bytes::from(text)))))
}

/// Everything until the server closes.
async fn hear_all(client: &mut TcpStream) -> String {
    let mut text = String::new();
    tokio::time::timeout(Duration::from_secs(5), client.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

#[tokio::test]
async fn requests_are_answered_in_order_however_they_come() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let said = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
                POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello\
                \r\nPOST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n2\r\n!!\r\n0\r\n\r\n\
                GET /4 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\nGET /5 HTTP/1.1\r\nhost: a\r\n\r\n";
            for cut in 0..said.len() {
                let (mut client, serving) = connect(never(), count).await;
                client.write_all(&said[..cut]).await.unwrap();
                tokio::task::yield_now().await;
                client.write_all(&said[cut..]).await.unwrap();
                let text = hear_all(&mut client).await;
                let order: Vec<_> = ["/1 0", "/2 5", "/3 7", "/4 0"].iter().map(|part| text.find(part)).collect();
                assert!(order.iter().all(Option::is_some) && order.is_sorted(), "cut at {cut}: {text}");
                assert!(!text.contains("/5") && serving.await.unwrap(), "{text}");
            }
        })
        .await;
}

#[tokio::test]
async fn a_client_that_waits_for_our_word_gets_it_only_when_its_body_is_wanted() {
    let local = LocalSet::new();
    let head = b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    local
        .run_until(async {
            let (mut client, _serving) = connect(never(), count).await;
            client.write_all(head).await.unwrap();
            let mut word = [0; 25];
            client.read_exact(&mut word).await.unwrap();
            assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
            client.write_all(b"hi").await.unwrap();
            let mut answer = [0; 15];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");

            let refuse = async |_| Ok(Response::builder().status(403).body(Body::empty()).unwrap());
            let (mut client, _serving) = connect(never(), refuse).await;
            client.write_all(head).await.unwrap();
            let text = hear_all(&mut client).await;
            assert!(
                text.starts_with("HTTP/1.1 403 "),
                "the body was not sent, so the connection ends: {text}"
            );
        })
        .await;
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_passed_over_when_it_is_there_and_ends_the_connection_else() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let ignore = async |_| Ok(Response::new(Body::empty()));
            let (mut client, _serving) = connect(never(), ignore).await;
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
            assert_eq!(hear_all(&mut client).await.matches("HTTP/1.1 200").count(), 2);

            let (mut client, _serving) = connect(never(), ignore).await;
            client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhi").await.unwrap();
            assert_eq!(hear_all(&mut client).await.matches("HTTP/1.1 200").count(), 1);
        })
        .await;
}

#[tokio::test]
async fn closing_ends_an_idle_connection_and_lets_an_answer_be_the_last() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let closing = never();
            let (mut client, _serving) = connect(closing, async |_| {
                closing.set(true);
                Ok(Response::new(Body::empty()))
            })
            .await;
            client
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            let text = hear_all(&mut client).await;
            assert!(text.contains("connection: close") && text.matches("HTTP/1.1").count() == 1, "{text}");
            closing.set(true);
            let (mut client, serving) = connect(closing, count).await;
            assert_eq!(hear_all(&mut client).await, "");
            assert!(serving.await.unwrap());
        })
        .await;
}

#[tokio::test]
async fn a_client_that_says_no_more_gets_its_answer_and_one_that_breaks_off_ends_the_work() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (mut client, serving) = connect(never(), count).await;
            client.write_all(b"GET /last HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            client.shutdown().await.unwrap();
            assert!(hear_all(&mut client).await.contains("/last 0"));
            assert!(serving.await.unwrap());

            let (mut client, serving) = connect(never(), async |_| std::future::pending().await).await;
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            tokio::task::yield_now().await;
            crate::net::reset_on_close(&client);
            drop(client);
            let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
            assert!(!ended.expect("it is noticed").unwrap());
        })
        .await;
}
