//! S-H1: the length of a request is said once, in one way; after the first octet that breaks a rule nothing is read.

use crate::{
    arena::{Arena, BOTH, Before, talk, talk_until},
    goaway::mentions,
};
use postern_tests::raw::Heard;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Behind an attack, on the same connection: whoever reads on would serve it.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";

/// Lines 01 to 07, 16: refused on their head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_break_framing_are_refused_and_nothing_behind_them_is_read() {
    let arena = Arena::new("").await;
    let post = |headers: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n{SMUGGLED}");
    for side in BOTH {
        for (line, headers) in [
            ("S-H1-01", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            ("S-H1-01", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n"),
            ("S-H1-02", "Transfer-Encoding: gzip, chunked\r\n"),
            ("S-H1-02", "Transfer-Encoding: chunked, identity\r\n"),
            ("S-H1-02", "Transfer-Encoding: chunked, chunked\r\n"),
            ("S-H1-02", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
            ("S-H1-02", "Transfer-Encoding: identity\r\n"),
            ("S-H1-02", "Transfer-Encoding: xchunked\r\n"),
            ("S-H1-02", "Transfer-Encoding: \"chunked\"\r\n"),
            ("S-H1-02", "Transfer-Encoding: chunked;q=1\r\n"),
            ("S-H1-02", "Transfer-Encoding: \u{b}chunked\r\n"),
            ("S-H1-02", "Transfer-Encoding:\r\n chunked\r\n"),
            ("S-H1-02", "Transfer-Encoding:\r\n"),
            ("S-H1-02", "Transfer-Encoding : chunked\r\n"),
            ("S-H1-04", "Content-Length: 5, 5\r\n"),
            ("S-H1-04", "Content-Length: +5\r\n"),
            ("S-H1-04", "Content-Length: -5\r\n"),
            ("S-H1-04", "Content-Length: 0x5\r\n"),
            ("S-H1-04", "Content-Length: 5 5\r\n"),
            ("S-H1-04", "Content-Length: 5_0\r\n"),
            ("S-H1-04", "Content-Length:\r\n"),
            ("S-H1-04", "Content-Length: 0001\r\n"),
            ("S-H1-04", "Content-Length: 00\r\n"),
            ("S-H1-04", "Content-Length: 18446744073709551616\r\n"),
            ("S-H1-04", "Content-Length: 18446744073709551615\r\n"),
            ("S-H1-04", "Content-Length: 5\r\nContent-Length: 5\r\n"),
            ("S-H1-04", "Content-Length: 5\r\nContent-Length: 6\r\n"),
            ("S-H1-04", "Content-Length : 5\r\n"),
            ("S-H1-05", "x: y\nz: a\r\n"),
            ("S-H1-05", "x: y\n"),
        ] {
            arena.refused(side, line, post(headers).as_bytes(), 400).await;
        }
        for (line, bytes) in [
            ("S-H1-03", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ("S-H1-05", "GET / HTTP/1.1\nHost: a\r\n\r\n"),
            ("S-H1-05", "GET / HTTP/1.1\r\nHost: a\r\n\n"),
            ("S-H1-05", "GET / HTTP/1.1\r\nHost: a\n\n"),
            ("S-H1-06", "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-06", "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET /\r\n\r\n"),
            ("S-H1-07", "GET / HTTP/1.2\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET / HTTP/1.10\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET / http/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET / HTTP/1.1 \r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET /  HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-07", "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-08", "G(T / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-08", " GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("S-H1-16", "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"),
        ] {
            arena.refused(side, line, format!("{bytes}{SMUGGLED}").as_bytes(), 400).await;
        }
        let passing = [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "DELETE / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ];
        for request in passing {
            let got = arena.passes(side, "S-H1-11", request.as_bytes()).await;
            assert_eq!(got.contains("hello"), request.contains("hello"), "{got}");
        }
        // Extensions of chunks are dropped, and small chunks with one character of extension too.
        let extended = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;evil=\"x\"\r\nhello\r\n0;y\r\n\r\n";
        let got = arena.passes(side, "S-H1-09", extended).await;
        assert!(!got.contains("evil") && !got.contains(';') || got.contains("By="), "{got}");
        assert!(got.split_once("\r\n\r\n").unwrap().1.contains("hello") && !got.contains("evil"), "{got}");
    }
    arena.survived().await;
}

/// Line 16: behind an honest request on the same connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_request_is_read_as_strictly_as_the_first() {
    let arena = Arena::new("").await;
    let good = "GET /first HTTP/1.1\r\nHost: a\r\n\r\n";
    for side in BOTH {
        for bad in [
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
        ] {
            let (complete, lines) = (arena.app().complete(), arena.log(side).lines().len());
            let answer = arena.say(side, &[format!("{good}{bad}{SMUGGLED}").as_bytes()]).await;
            assert_eq!(answer.statuses(), [200, 400], "S-H1-13 {bad:?}: {}", answer.text);
            assert!(answer.is_closed, "I7: {bad:?}");
            assert_eq!(arena.app().complete(), complete + 1, "{bad:?}");
            assert!(!arena.app().text().contains("smuggled"), "{bad:?}");
            arena.log(side).at_least(lines + 2).await;
            assert_eq!(arena.log(side).lines().len(), lines + 2, "I4: {bad:?}");
            arena.reasoned_line(side, bad).await;
        }
    }
    arena.survived().await;
}

/// Lines 09 and 24: a body that is broken within the first read is refused before the app hears of it; where its head has gone on
/// already, the app must see a request that was never finished.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_breaks_framing_is_answered_400_and_is_none_for_the_app() {
    let arena = Arena::new("").await;
    for side in BOTH {
        for chunks in [
            "3 \r\nabc\r\n",
            " 3\r\nabc\r\n",
            "0x3\r\nabc\r\n",
            "+3\r\nabc\r\n",
            "-3\r\nabc\r\n",
            "\r\n",
            "g\r\n",
            "3\nabc\r\n",
            "3\r\nabcd\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "3\r\nabc0\r\n\r\n",
            "ffffffffffffffff\r\n",
            "10000000000000000\r\n",
            "00000000000000003\r\nabc\r\n",
            "3;a\u{1}\r\nabc\r\n",
            "3;a\nb\r\nabc\r\n",
            "3\r\nabc\r\n0\r\nx: y\n\r\n",
            "3\r\nabc\r\n0\r\n\n",
        ] {
            let head = "POST /body HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
            for first in ["", "2\r\nok\r\n"] {
                let whole = format!("{head}{first}{chunks}{SMUGGLED}");
                arena.refused(side, "S-H1-09", whole.as_bytes(), 400).await;

                let what = format!("S-H1-09/24 {side:?} {first:?} {chunks:?}");
                let before = Before::of(&arena, side);
                let begun = mentions(&arena.app().heard(), "POST /body ");
                let mut stream = arena.open(side, 80).await;
                stream.write_all(format!("{head}{first}").as_bytes()).await.unwrap();
                stream.flush().await.unwrap();
                arena.app().until(&what, |all| mentions(all, "POST /body ") > begun).await;
                let behind = format!("{chunks}{SMUGGLED}");
                let answer = talk(stream, &[behind.as_bytes()], Duration::from_secs(8)).await;
                assert!(answer.is_closed, "I7, {what}: {}", answer.text);
                assert_eq!(answer.statuses(), [400], "{what}: {}", answer.text);
                before.nothing_completed(&arena, &what).await;
                assert!(!arena.app().text().contains("smuggled"), "{what}");
                // It may still be on its way to the app, and is nothing that the next row has caused.
                let is_it = |heard: &&Heard| String::from_utf8_lossy(&heard.bytes).contains("POST /body ");
                let closed = |all: &[Heard]| all.iter().filter(is_it).all(|heard| heard.is_over);
                arena.app().until("the aborted request was closed towards it", closed).await;
            }
        }
    }
    arena.survived().await;
}

/// Line 12.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_expects_continue_gets_it_and_other_expectations_fail() {
    let arena = Arena::new("").await;
    for side in BOTH {
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close\r\nExpect: ";
        let mut stream = arena.open(side, 80).await;
        stream.write_all(format!("{head}100-Continue\r\n\r\n").as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n", "S-H1-12");
        let answer = talk(stream, &[b"hello"], Duration::from_secs(8)).await;
        assert_eq!(answer.statuses(), [200], "S-H1-12 (and the echo of the head): {}", answer.text);
        for other in ["foo", "100-continue, foo", "200-ok"] {
            arena.refused(side, "S-H1-12", format!("{head}{other}\r\n\r\nhello").as_bytes(), 417).await;
        }
    }
    arena.survived().await;
}

/// Lines 13 and 18: in order, whole or split at any position.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_the_same_at_every_split() {
    let arena = Arena::new("").await;
    let both = b"POST /one HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
                 POST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\ndef";
    for side in BOTH {
        for at in 0..both.len() {
            let heard = arena.app().bytes().len();
            let answer = arena.say(side, &[&both[..at], &both[at..]]).await;
            assert!(answer.is_closed, "split at {at}");
            assert_eq!(answer.text.matches("HTTP/1.1 200 OK").count(), 2, "split at {at}: {}", answer.text);
            let (one, two) = (answer.text.find("/one").unwrap(), answer.text.find("/two").unwrap());
            assert!(one < two, "S-H1-13, split at {at}");
            let got = String::from_utf8_lossy(&arena.app().bytes()[heard..]).into_owned();
            let (first, second) = got.split_once("POST /two").unwrap();
            let chunks = first.split_once("\r\n\r\n").unwrap().1.split("\r\n");
            let first: String = chunks.skip(1).step_by(2).collect();
            let bodies = first == "abc" && second.ends_with("\r\n\r\ndef");
            assert!(bodies, "S-H1-18, split at {at}: {got}");
        }
        let smuggling =
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        for at in (0..smuggling.len()).step_by(3) {
            let before = Before::of(&arena, side);
            let answer = arena.say(side, &[&smuggling[..at], &smuggling[at..]]).await;
            assert_eq!(answer.statuses(), [400], "split at {at}: {}", answer.text);
            before.nothing_happened(&arena, "S-H1-18").await;
        }
    }
    arena.survived().await;
}

/// Line 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_body_of_a_denied_request_is_drained_or_the_connection_closed() {
    let rules = "action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]";
    let arena = Arena::new(&postern_tests::scenario::policy("admin", rules)).await;
    for side in BOTH {
        let small = format!(
            "POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
            SMUGGLED.len()
        );
        let after = "GET /after HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let heard = arena.app().bytes().len();
        let answer = arena.say(side, &[format!("{small}{after}").as_bytes()]).await;
        assert_eq!(answer.text.matches("HTTP/1.1 403").count(), 1, "S-H1-14: {}", answer.text);
        assert_eq!(answer.text.matches("HTTP/1.1 200").count(), 1, "S-H1-14: {}", answer.text);
        let got = String::from_utf8_lossy(&arena.app().bytes()[heard..]).into_owned();
        assert!(got.starts_with("GET /after ") && !got.contains("smuggled"), "{got}");

        // Announced and never sent: we do not wait for it.
        let announced = b"POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nabc";
        arena.refused(side, "S-H1-14", announced, 403).await;
        // The app's own sidecar says 100 for the other end, which it cannot ask first; the one that denies asks for nothing.
        if side == crate::arena::Side::Peer {
            let head = "POST /admin HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n";
            let expecting = format!("{head}Expect: 100-continue\r\n\r\n");
            arena.refused(side, "S-H1-14", expecting.as_bytes(), 403).await;
        }
    }
    arena.survived().await;
}

/// Lines 08 and 17.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn methods_are_compared_as_they_are_and_connect_is_refused() {
    let rules = "action: DENY, rules: [{to: [{operation: {methods: [GET], paths: [/admin]}}]}]";
    let arena = Arena::new(&postern_tests::scenario::policy("admin", rules)).await;
    for side in BOTH {
        arena.denied(side, "S-H1-08", b"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let got = arena.passes(side, "S-H1-08", b"get /admin HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(got.starts_with("get /admin HTTP/1.1\r\n"), "{got}");
        for head in
            ["CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", "CONNECT a:80 HTTP/1.1\r\nHost: b\r\n\r\n"]
        {
            arena.refused(side, "S-H1-17", format!("{head}{SMUGGLED}").as_bytes(), 405).await;
        }
        arena.refused(side, "S-H1-17", b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n", 405).await;
    }
    let answer =
        talk_until(arena.open(crate::arena::Side::Peer, 80).await, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
    assert_eq!(answer.statuses(), [200], "{}", answer.text);
    arena.survived().await;
}
