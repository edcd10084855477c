//! Answers as bytes, cut everywhere, and connections that upstreams break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::http::http1::{body::Part, lines};
use http::{HeaderValue, Version};
use http_body_util::BodyExt as _;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

fn head_of(octets: &[u8], is_head: bool) -> Result<Option<(Head, usize)>, Lost> {
    let mut octets = BytesMut::from(octets);
    let head = heads::read(&mut octets, 0, Answerer::App, is_head, &mut HeaderMap::new())?;
    Ok(head.map(|head| (head, octets.len())))
}

/// What frames the body behind a head, and whether the connection goes on; the head stays incomplete wherever it is cut.
fn check_head(octets: &str, is_head: bool, expected: Result<(Left, bool), &str>) {
    let read = head_of(octets.as_bytes(), is_head);
    match expected {
        Ok(expected) => {
            let (head, rest) = read.unwrap().expect("whole");
            assert_eq!(((head.left, head.persists), rest), (expected, 0), "{octets:?}");
            for at in 0..octets.len() {
                assert!(
                    head_of(&octets.as_bytes()[..at], is_head).unwrap().is_none(),
                    "{octets:?} cut at {at}"
                );
                assert!(lines::end(&octets.as_bytes()[..at], 0).is_none(), "{octets:?} cut at {at}");
                assert!(lines::end(octets.as_bytes(), at) == Some(octets.len()), "{octets:?} from {at}");
            }
        }
        Err(rule) => assert_eq!(read.unwrap_err().to_string(), rule, "{octets:?}"),
    }
}

#[test]
fn a_head_frames_its_body_in_one_way_or_is_refused() {
    for (lines, expected) in [
        ("200 OK\r\nContent-Length: 5\r\n", Ok((Left::Length(5), true))),
        ("200 OK\r\nContent-Length: 0\r\n", Ok((Left::Nothing, true))),
        ("200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n", Ok((Left::Length(5), true))),
        ("200 OK\r\nTransfer-Encoding: Chunked\r\n", Ok((Left::chunks(), true))),
        ("200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n", Ok((Left::chunks(), true))),
        ("200 OK\r\n", Ok((Left::UntilClose, false))),
        ("200 OK\r\nContent-Length: 5\r\nConnection: close\r\n", Ok((Left::Length(5), false))),
        (
            "200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\nConnection: keep-alive\r\n",
            Ok((Left::Length(5), false)),
        ),
        ("204 No Content\r\nContent-Length: 5\r\n", Ok((Left::Nothing, true))),
        ("304 Not Modified\r\nTransfer-Encoding: chunked\r\n", Ok((Left::Nothing, true))),
        ("200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n", Err("two lengths")),
        ("200 OK\r\nContent-Length: 5, 5\r\n", Err("a length that is no number")),
        ("200 OK\r\nContent-Length: +5\r\n", Err("a length that is no number")),
        ("200 OK\r\nContent-Length:\r\n", Err("a length that is no number")),
        ("200 OK\r\nContent-Length: 9999999999999999999\r\n", Err("a length that is no number")),
        ("200 OK\r\nTransfer-Encoding: gzip\r\n", Err("a transfer coding other than chunked")),
        ("200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", Err("a transfer coding other than chunked")),
        (
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            Err("a transfer coding other than chunked"),
        ),
        ("200 OK\r\nx : y\r\n", Err("no head of HTTP/1.1")),
        ("200 OK\r\nx: y\r\n z\r\n", Err("no head of HTTP/1.1")),
        ("200 OK\r\nx: a\0b\r\n", Err("no head of HTTP/1.1")),
        ("099 No\r\n", Err("a status that is none")),
        ("2000 No\r\n", Err("no head of HTTP/1.1")),
    ] {
        check_head(&format!("HTTP/1.1 {lines}\r\n"), false, expected);
    }
    check_head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, Ok((Left::Nothing, true)));
    check_head("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, Ok((Left::Length(5), false)));
    let kept = "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n";
    check_head(kept, false, Ok((Left::Length(5), true)));
    let coded = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    check_head(coded, false, Err("a transfer coding in HTTP/1.0"));
    check_head("HTTP/2.0 200 OK\r\n\r\n", false, Err("no head of HTTP/1.1"));
    check_head("SSH-2.0-OpenSSH_9.2\r\n\r\n", false, Err("no head of HTTP/1.1"));
    let lines = |count| format!("HTTP/1.1 204 No\r\n{}\r\n", "x: y\r\n".repeat(count));
    check_head(&lines(100), false, Ok((Left::Nothing, true)));
    check_head(&lines(101), false, Err("a head of too many lines"));
    let of_sidecar = |count| {
        let mut octets = BytesMut::from(lines(count).as_bytes());
        heads::read(&mut octets, 0, Answerer::Sidecar, false, &mut HeaderMap::new()).is_ok()
    };
    assert!(of_sidecar(108) && !of_sidecar(109));
}

#[test]
fn a_head_keeps_its_lines_and_a_reason_of_its_own() {
    let (head, _) = head_of(b"HTTP/1.1 200 Fine\r\nX-A: 1\r\nx-a: 2\r\n\r\nbody", false).unwrap().unwrap();
    let values: Vec<_> = head.parts.headers.get_all("x-a").iter().map(HeaderValue::as_bytes).collect();
    assert_eq!((values, head.parts.version), (vec![&b"1"[..], b"2"], Version::HTTP_11));
    let phrase = head.parts.extensions.get::<hyper::ext::ReasonPhrase>().unwrap();
    assert_eq!(phrase.as_bytes(), b"Fine");
}

/// The octets and the trailers of a body, whatever pieces it comes in; and how many octets behind its end are left alone.
fn check_body(body: &str, expected: Result<(&str, usize, usize), &str>) {
    for cut in 0..=body.len() {
        let (mut left, mut octets) = (Left::chunks(), BytesMut::new());
        let (mut data, mut trailers, mut result) = (Vec::new(), 0, None);
        for piece in [&body[..cut], &body[cut..]] {
            octets.extend_from_slice(piece.as_bytes());
            while result.is_none() {
                match left.take(&mut octets) {
                    Ok(Part::More) => break,
                    Ok(Part::Data(part)) => data.extend_from_slice(&part),
                    Ok(Part::Trailers(lines)) => trailers = lines.len(),
                    Ok(Part::End) => result = Some(Ok(())),
                    Err(error) => result = Some(Err(error.to_string())),
                }
            }
        }
        let data = String::from_utf8(data).unwrap();
        let result = result.map(|result| result.map(|()| (data.as_str(), trailers, octets.len())));
        let result = result.unwrap_or(Err("incomplete".into()));
        assert_eq!(result, expected.map_err(str::to_owned), "{body:?} cut at {cut}");
    }
}

#[test]
fn chunks_are_read_strictly_wherever_they_are_cut() {
    check_body("5\r\nhello\r\n0\r\n\r\n", Ok(("hello", 0, 0)));
    check_body("5;a=b\r\nhello\r\n1\r\n!\r\n0\r\n\r\nevil", Ok(("hello!", 0, 4)));
    check_body("5  \r\nhello\r\n000\r\n\r\n", Ok(("hello", 0, 0)));
    check_body("0\r\nx: y\r\nz: y\r\n\r\n", Ok(("", 2, 0)));
    let size = "a chunk without a size";
    for body in [
        "\r\n",
        "5\nhello\r\n",
        "-5\r\nhello",
        "0x5\r\nhello",
        " 5\r\nhello",
        "5,5\r\nhello",
        "5 5\r\nhello",
        "5\rx\r\n",
    ] {
        check_body(body, Err(size));
    }
    check_body(&format!("{}\r\n", "0".repeat(16)), Err(size));
    check_body(&format!("5;{}\r\nhello", "x".repeat(300)), Err(size));
    for body in ["5\r\nhelloo\r\n", "5\r\nhello\n", "5\r\nhello\rx"] {
        check_body(body, Err("a chunk longer than its size"));
    }
    for trailers in ["x y\r\n\r\n", "x: a\0\r\n\r\n"] {
        check_body(&format!("0\r\n{trailers}"), Err("trailers that are none"));
    }
    let lines = |count| format!("0\r\n{}\r\n", "x: y\r\n".repeat(count));
    check_body(&lines(100), Ok(("", 100, 0)));
    check_body(&lines(101), Err("trailers that are none"));
    for part in ["5", "5\r", "5\r\nhell", "5\r\nhello", "5\r\nhello\r\n0\r\n", "0\r\nx: y\r\n"] {
        check_body(part, Err("incomplete"));
    }
}

#[test]
fn a_head_of_a_request_says_its_framing_once() {
    let mut request = Request::get("/a?b").header("host", "x").body(Upload::empty()).unwrap();
    let mut out = Vec::new();
    assert!(heads::write(&request, &mut out).is_none());
    assert_eq!(out, b"GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n");
    // What another has said of a body that is not there.
    request.headers_mut().insert("content-length", "7".parse().unwrap());
    request.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
    out.clear();
    assert!(heads::write(&request, &mut out).is_none());
    assert_eq!(out, b"GET /a?b HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
}

/// A connection to an upstream, and the upstream's end of it.
async fn pair() -> (Connection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let upstream = listener.accept().await.unwrap().0;
    (Connection::new(Stream::Plain(Prefixed::new(stream)), &Watch::default()), upstream)
}

async fn hear(upstream: &mut TcpStream) -> String {
    let mut heard = vec![0; 4096];
    let count = upstream.read(&mut heard).await.unwrap();
    String::from_utf8_lossy(&heard[..count]).into_owned()
}

fn get() -> Request<Upload> {
    Request::get("/").header("host", "x").body(Upload::empty()).unwrap()
}

/// What one request brings, when the upstream says each of `pieces` for itself.
async fn ask(
    connection: &Connection,
    upstream: &mut TcpStream,
    pieces: &[&[u8]],
) -> Result<(u16, Vec<u8>), Lost> {
    let speaking = async {
        hear(upstream).await;
        for piece in pieces {
            upstream.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let mut request = get();
    let asking = async {
        let response = connection.send(&mut request).await?;
        let status = response.status().as_u16();
        Ok((status, response.into_body().collect().await?.to_bytes().to_vec()))
    };
    tokio::join!(asking, speaking).0
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_exchange_leaves_the_connection_ready_for_the_next_one() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (connection, mut upstream) = pair().await;
            let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
            for answer in [OK, chunked] {
                for cut in [0, 1, 10, answer.len() - 1] {
                    let (first, second) = answer.split_at(cut);
                    let pieces: Vec<_> =
                        [first, second].into_iter().filter(|piece| !piece.is_empty()).collect();
                    let answer = ask(&connection, &mut upstream, &pieces).await.unwrap();
                    assert_eq!(answer, (200, b"ok".to_vec()));
                    assert!(connection.persists() && !connection.is_closed());
                    assert_eq!(
                        connection.0.borrow().line.incoming.capacity(),
                        0,
                        "an idle one holds no buffer"
                    );
                }
            }
            let large =
                [&b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"[..], &[7; 1_000_000]].concat();
            assert_eq!(ask(&connection, &mut upstream, &[&large]).await.unwrap(), (200, vec![7; 1_000_000]));
            assert!(!connection.is_closed());
            assert_eq!(connection.0.borrow().line.incoming.capacity(), 0);
        })
        .await;
}

#[tokio::test]
async fn an_upstream_that_closes_or_speaks_out_of_turn_gets_no_other_request() {
    let local = LocalSet::new();
    local
        .run_until(async {
            for said in [&b""[..], b"HTTP/1.1 200 OK\r\n\r\n", b"x"] {
                let (connection, mut upstream) = pair().await;
                ask(&connection, &mut upstream, &[OK]).await.unwrap();
                assert!(!connection.is_closed());
                if said.is_empty() {
                    drop(upstream);
                } else {
                    upstream.write_all(said).await.unwrap();
                }
                let until = async {
                    while !connection.is_closed() {
                        tokio::task::yield_now().await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(5), until).await.expect("it is noticed");
            }
            let (connection, mut upstream) = pair().await;
            ask(&connection, &mut upstream, &[&[OK, b"evil"].concat()]).await.unwrap();
            assert!(!connection.persists(), "octets behind an answer");
        })
        .await;
}

#[tokio::test]
async fn what_is_lost_before_an_answer_begins_is_told_from_what_is_lost_later() {
    let local = LocalSet::new();
    local
        .run_until(async {
            for (said, is_closed) in
                [(&b""[..], true), (b"H", false), (b"HTTP/1.1 100 Continue\r\n\r\n", false)]
            {
                let (connection, mut upstream) = pair().await;
                let speaking = async move {
                    hear(&mut upstream).await;
                    upstream.write_all(said).await.unwrap();
                };
                let mut request = get();
                let lost = tokio::join!(connection.send(&mut request), speaking).0.err().unwrap();
                assert_eq!(matches!(lost, Lost::Closed), is_closed, "{said:?}: {lost:?}");
                // It is whole, and could be sent again.
                assert_eq!(request.headers().len(), usize::from(is_closed || said.len() == 1));
            }
        })
        .await;
}

#[tokio::test]
async fn interim_answers_are_passed_over_up_to_a_number() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let interim = |count| b"HTTP/1.1 103 Early Hints\r\na: b\r\n\r\n".repeat(count);
            for (count, cut, expected) in
                [(16, 1, Ok(200)), (16, 50, Ok(200)), (17, 1, Err(())), (17, 50, Err(()))]
            {
                let (connection, mut upstream) = pair().await;
                let said = [&interim(count)[..], OK].concat();
                let (first, second) = said.split_at(cut);
                let answer = ask(&connection, &mut upstream, &[first, second]).await;
                match (answer, expected) {
                    (Ok((status, body)), Ok(expected)) => {
                        assert_eq!((status, &body[..]), (expected, &b"ok"[..]))
                    }
                    (Err(lost), Err(())) => assert_eq!(lost.to_string(), TOO_MANY_INTERIM.to_string()),
                    (answer, _) => panic!("{count} cut at {cut}: {answer:?}"),
                }
            }
            let (connection, mut upstream) = pair().await;
            let endless =
                [&b"HTTP/1.1 103 Early Hints\r\na: b\r\n\r\nHTTP/1.1 102 "[..], &[b'x'; 70_000]].concat();
            let lost = ask(&connection, &mut upstream, &[&endless]).await.unwrap_err();
            assert_eq!(lost.to_string(), TOO_MANY_INTERIM.to_string());
        })
        .await;
}

#[tokio::test]
async fn a_connection_says_goodbye_unless_it_breaks_off() {
    let local = LocalSet::new();
    local
        .run_until(async {
            let (connection, mut upstream) = pair().await;
            ask(&connection, &mut upstream, &[OK]).await.unwrap();
            drop(connection);
            assert_eq!(hear(&mut upstream).await, "");
            // A tunnel takes what was read behind the head.
            let (connection, mut upstream) = pair().await;
            let mut request = get();
            let speaking = async {
                hear(&mut upstream).await;
                upstream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\nfirst").await.unwrap();
            };
            let response = tokio::join!(connection.send(&mut request), speaking).0.unwrap();
            assert!(!connection.persists());
            let mut tunnel = response.into_body().into_tunnel().unwrap();
            let mut heard = [0; 5];
            tunnel.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"first");
            tunnel.write_all(b"back").await.unwrap();
            assert_eq!(hear(&mut upstream).await, "back");
        })
        .await;
}
