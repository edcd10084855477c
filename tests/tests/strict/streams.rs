//! S-H2-18: an upstream that lets nobody open a stream, or never frees one, costs its callers a bounded time and nobody else anything.

use crate::{
    arena::{Arena, Side},
    frames::*,
};
use postern_tests::{Step, client::Answer};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// `SETTINGS_MAX_CONCURRENT_STREAMS` (RFC 9113 section 6.5.2).
fn most_streams(number: u32) -> Step {
    Step::Say(frame(SETTINGS, 0, 0, &[&[0, 3][..], &number.to_be_bytes()].concat()))
}

/// Where such an upstream stands: behind the inbound sidecar, and without one.
const BEHIND: [(Side, &str); 2] = [(Side::Peer, "payments-api"), (Side::Bare, "bare")];

/// A gRPC call, which goes to the app as HTTP/2.
async fn call(arena: &Arena, to: &str) -> Answer {
    let entry = arena.mesh.entry("checkout-api", to).0;
    let request = postern_tests::Request::new(entry, "a").http2().method("POST").path("/pay.Charges/Create");
    let request = request.header("content-type", "application/grpc").header("te", "trailers");
    let answer = tokio::time::timeout(Duration::from_secs(9), request.send()).await;
    answer.expect("S-H2-18: an answer within nine seconds").expect("an answer")
}

/// The preface looks like two requests to the app, of which the first is where it begins.
fn is_first(head: &str) -> bool {
    head.starts_with("PRI")
}

/// Answers the first stream, then nobody.
fn answering() -> Vec<Step> {
    let answer = Step::Say(frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x88]));
    vec![Step::More, answer, Step::More, Step::More]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_stream_may_be_opened_for_is_unavailable_after_the_time_for_connecting() {
    let arena = Arena::new("").await;
    for (side, to) in BEHIND {
        let app = arena.app_of(side);
        for most in [0, 1] {
            app.answer(move |head| match (is_first(head), most) {
                (true, _) => vec![most_streams(most)],
                (false, 0) => vec![Step::More; 100],
                // The one is answered when it comes.
                (false, _) => answering(),
            });
            let (connections, began) = (app.heard().len(), Instant::now());
            let answer = call(&arena, to).await;
            let took = began.elapsed();
            if most == 0 {
                assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("14")), "{answer:?}");
                assert!((4..8).contains(&took.as_secs()), "{took:?}");
            } else {
                assert_eq!(
                    (answer.status, answer.header("grpc-status")),
                    (200, None),
                    "the twin: {answer:?}"
                );
            }
            // Nothing spins: a POST is tried once, and its connection is left.
            assert_eq!(app.heard().len(), connections + 1);
        }
        let is_unavailable = |line: &serde_json::Value| {
            line["postern.reason"]
                .as_str()
                .is_some_and(|reason| reason.contains("no HTTP/2 stream could be opened"))
        };
        arena.log(side).until("the reason", |all| all.iter().any(is_unavailable)).await;
        app.be_honest();
    }
    arena.survived().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_only_stream_is_never_freed_others_get_a_connection_of_their_own() {
    let arena = Arena::new("").await;
    for (side, to) in BEHIND {
        let app = arena.app_of(side);
        let begun = Arc::new(AtomicUsize::new(0));
        app.answer(move |head| {
            if is_first(head) {
                return vec![most_streams(1)];
            }
            match begun.fetch_add(1, Ordering::Relaxed) {
                // The first connection answers nobody.
                0 => vec![Step::More; 100],
                _ => answering(),
            }
        });
        let entry = arena.mesh.entry("checkout-api", to).0;
        let held = postern_tests::Request::new(entry, "a").http2().method("POST").path("/held/Call");
        let held =
            tokio::spawn(held.header("content-type", "application/grpc").header("te", "trailers").send());
        // Its head has come, by HPACK with the path as a literal or in Huffman's code: more than preface and SETTINGS.
        app.until("the first is there", |all| all.iter().any(|heard| has_headers(&heard.bytes))).await;
        let began = Instant::now();
        let answer = call(&arena, to).await;
        assert_eq!((answer.status, answer.header("grpc-status")), (200, None), "{answer:?}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        assert!(!held.is_finished());
        held.abort();
        app.be_honest();
    }
    arena.survived().await;
}

/// Whether what a client of HTTP/2 has said has a HEADERS frame in it.
fn has_headers(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.strip_prefix(PREFACE) else { return false };
    while let [a, b, c, kind, ..] = rest {
        if *kind == HEADERS {
            return true;
        }
        let length = 9 + u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some(next) = rest.get(length..) else { return false };
        rest = next;
    }
    false
}
