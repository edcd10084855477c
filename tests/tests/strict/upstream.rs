//! S-H1-21 to 23: a hostile upstream. What it breaks stays broken for the client, and never spills into another exchange.

use crate::arena::{Arena, Side, UPSTREAMS, talk, talk_until};
use postern_tests::Step;
use serde_json::json;
use std::time::{Duration, Instant};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const CLOSING: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn say(text: &str) -> Step {
    Step::Say(text.as_bytes().to_vec())
}

/// Heads that are no answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_the_protocol_is_a_502_and_its_connection_is_closed() {
    let arena = Arena::new("").await;
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        for (row, said) in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\nhello",
            "HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 999 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 2000 No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 abc No\r\nContent-Length: 0\r\n\r\n",
            "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\0b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx: a\r\n b\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nx : a\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "220 mail ready\r\n\r\n",
        ]
        .into_iter()
        .enumerate()
        {
            let what = format!("S-H1-21 {side:?} {said:?}");
            app.answer(move |_| vec![Step::Hear, say(said), Step::More]);
            let path = format!("/{side:?}/{row}");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let answer = talk_until(arena.open(side, 80).await, request.as_bytes()).await;
            assert_eq!(answer.statuses(), [502], "{what}: {}", answer.text);
            assert!(!answer.text.contains("hello"), "{what}: {}", answer.text);
            let line = arena.one_line(side, &what).await;
            assert_eq!(line["http.response.status_code"], 502, "I4, {what}: {line}");
            // Of the sidecar that speaks with the app; to the one before it this is an answer like another.
            let finder = if side == Side::App { Side::Peer } else { side };
            let line = arena.log(finder).next_with(&[("url.path", json!(path))]).await;
            let is_found = line["http.response.status_code"] == 502 && line["postern.flags"] == "UPE";
            assert!(is_found && line["postern.reason"].is_string(), "I4, {what}: {line}");
            app.until(&what, |all| all.iter().filter(|h| !h.is_over).count() <= 1).await;
        }
        for (lines, status) in [(100, 200), (101, 502)] {
            // No Date: a sidecar that passes them on adds its own.
            let header = "x: y\r\n".repeat(lines - 1);
            let many = format!("HTTP/1.1 200 OK\r\n{header}Content-Length: 0\r\n\r\n");
            app.answer(move |_| vec![Step::Hear, say(&many)]);
            let answer = talk_until(arena.open(side, 80).await, GET).await;
            assert_eq!(answer.statuses(), [status], "{side:?}, {lines} lines");
        }
        for (kib, status) in [(60, 200), (200, 502), (1024, 502)] {
            let value = "v".repeat(kib << 10);
            let huge = format!("HTTP/1.1 200 OK\r\nx: {value}\r\nContent-Length: 0\r\n\r\n");
            app.answer(move |_| vec![Step::Hear, say(&huge)]);
            let answer = talk_until(arena.open(side, 80).await, GET).await;
            assert_eq!(answer.statuses(), [status], "{kib} KiB of head");
        }
        app.be_honest();
    }
    arena.survived().await;
}

/// Interim answers: a few are skipped, a flood is a 502, however it is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_end() {
    let arena = Arena::new("").await;
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        let some = "HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n".repeat(15);
        app.answer(move |_| {
            vec![Step::Hear, say(&some), say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")]
        });
        let answer = talk_until(arena.open(side, 80).await, GET).await;
        assert!(answer.statuses() == [200] && answer.text.ends_with("ok"), "{}", answer.text);
        for flood in [
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n",
            "HTTP/1.1 199 X\r\n\r\n",
        ] {
            app.answer(move |_| vec![Step::Hear, Step::Repeat(flood.into())]);
            let began = Instant::now();
            let answer = talk_until(arena.open(side, 80).await, GET).await;
            assert_eq!(answer.statuses(), [502], "S-H1-21 {flood:?}: {}", answer.text);
            assert!(began.elapsed() < Duration::from_secs(2), "{flood:?}: {:?}", began.elapsed());
            let line = arena.one_line(side, flood).await;
            assert_eq!(line["http.response.status_code"], 502, "I4, {flood:?}: {line}");
        }
        let long = format!("HTTP/1.1 103 Early Hints\r\nx: {}", "y".repeat(1000));
        app.answer(move |_| vec![Step::Hear, Step::Repeat(long.clone().into())]);
        let answer = talk_until(arena.open(side, 80).await, GET).await;
        assert_eq!(answer.statuses(), [502], "an interim head without end");
        app.be_honest();
    }
    arena.survived().await;
}

/// A truncated answer stays incomplete on the way down, whatever frames it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_answer_never_ends_well() {
    let arena = Arena::new("").await;
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        for (case, (said, end)) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", Step::Close),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", Step::Reset),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Step::Close),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Step::Reset),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Step::Close),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx: y\r\n", Step::Close),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n", Step::More),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Step::Reset),
        ]
        .into_iter()
        .enumerate()
        {
            let what = format!("S-H1-21/22 {side:?} {said:?} {end:?}");
            app.answer(move |_| vec![Step::Hear, say(said), end.clone()]);
            let path = format!("/cut/{side:?}/{case}");
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer =
                talk(arena.open(side, 80).await, &[request.as_bytes()], Duration::from_secs(8)).await;
            assert!(answer.is_closed, "{what}: {}", answer.text);
            let head = answer.text.to_ascii_lowercase();
            if answer.statuses() == [200] {
                let is_whole = match head.find("content-length: ") {
                    Some(_) => answer.text.split_once("\r\n\r\n").unwrap().1.len() >= 10,
                    None => {
                        answer.text.ends_with("0\r\n\r\n") || !head.contains("chunked") && !answer.is_abrupt
                    }
                };
                assert!(!is_whole, "{what}: {}", answer.text);
            } else {
                assert!(matches!(answer.statuses()[..], [] | [502 | 503]), "{what}: {}", answer.text);
            }
            let line = arena.log(side).next_with(&[("url.path", json!(path))]).await;
            assert!(line["postern.reason"].is_string(), "I4, {what}: {line}");
        }
        // A client of HTTP/1.0 knows an answer without a length by the end of its connection: only a reset tells a part from the whole.
        for (said, end) in [
            ("HTTP/1.1 200 OK\r\n\r\nhello", Step::Reset),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Step::Close),
        ] {
            let what = format!("S-H1-22 HTTP/1.0 {side:?} {said:?}");
            app.answer(move |_| vec![Step::Hear, say(said), end.clone()]);
            let request = b"GET /old HTTP/1.0\r\nHost: a\r\n\r\n";
            let answer = talk(arena.open(side, 80).await, &[request], Duration::from_secs(8)).await;
            assert!(
                answer.is_closed && (answer.is_abrupt || answer.statuses() != [200]),
                "{what}: {}",
                answer.text
            );
        }
        // The twins: a clean end of a close-delimited answer is an end.
        app.answer(|_| vec![Step::Hear, say("HTTP/1.1 200 OK\r\n\r\nhello"), Step::Close]);
        let request = b"GET /old HTTP/1.0\r\nHost: a\r\n\r\n";
        let answer = talk(arena.open(side, 80).await, &[request], Duration::from_secs(8)).await;
        assert!(answer.text.ends_with("hello") && !answer.is_abrupt, "{}", answer.text);
        app.answer(|_| vec![Step::Hear, say("HTTP/1.1 200 OK\r\n\r\nhello"), Step::Close]);
        let answer = talk(arena.open(side, 80).await, &[CLOSING], Duration::from_secs(8)).await;
        assert!(
            answer.is_closed && answer.statuses() == [200] && answer.text.contains("hello"),
            "{}",
            answer.text
        );
        assert!(answer.text.ends_with("0\r\n\r\n"), "S-H1-22: {}", answer.text);
        app.be_honest();
    }
    arena.survived().await;
}

/// What an answer must not have is dropped, and what lies behind it reaches nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_behind_an_answer_reaches_the_next_client() {
    let arena = Arena::new("").await;
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        for (ask, said, status) in [
            ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{evil}"), 200),
            ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{evil}"), 204),
            ("GET", format!("HTTP/1.1 204 No Content\r\nContent-Length: 3\r\n\r\nabc{evil}"), 204),
            ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 3\r\n\r\nabc{evil}"), 304),
            ("HEAD", format!("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc{evil}"), 200),
            (
                "GET",
                format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok{evil}"),
                200,
            ),
            (
                "GET",
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}"),
                200,
            ),
            (
                "GET",
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{evil}"
                ),
                200,
            ),
        ] {
            let what = format!("S-H1-21 {side:?} {ask} {said:?}");
            app.answer(move |_| vec![Step::Hear, say(&said)]);
            let request = format!("{ask} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let answer =
                talk(arena.open(side, 80).await, &[request.as_bytes()], Duration::from_secs(8)).await;
            assert_eq!(answer.statuses(), [status], "{what}: {}", answer.text);
            assert!(answer.is_closed && !answer.text.contains("evil"), "{what}: {}", answer.text);
            let head = answer.text.to_ascii_lowercase();
            let framings =
                head.matches("content-length:").count() + head.matches("transfer-encoding:").count();
            assert!(framings <= 1, "{what}: {}", answer.text);
            if status == 204 {
                assert_eq!(framings, 0, "{what}: {}", answer.text);
            }
            if status != 200 || ask == "HEAD" {
                assert!(!answer.text.contains("abc"), "{what}: {}", answer.text);
            }
            app.be_honest();
            for _ in 0..2 {
                let next =
                    talk_until(arena.open(side, 80).await, b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n").await;
                assert!(
                    next.statuses().first() == Some(&200) && next.text.contains("/next"),
                    "{what}: {}",
                    next.text
                );
            }
        }
    }
    arena.survived().await;
}

/// Line 23: closed in the very moment of its reuse.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_app_closes_between_requests_loses_no_get_and_repeats_no_post() {
    let arena = Arena::new("").await;
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        // Says 200 once, then closes at the next request without a word.
        let served = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = served.clone();
        app.answer(move |head| match count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 {
            1 if !head.contains("/even") => vec![Step::Reset],
            _ => vec![Step::Hear, Step::Echo],
        });
        // An even number of requests so far, so that the first is answered and the second, on its connection, is not.
        served.store(0, std::sync::atomic::Ordering::SeqCst);
        let warm = talk_until(arena.open(side, 80).await, GET).await;
        assert_eq!(warm.statuses(), [200], "{}", warm.text);
        let retried = talk_until(arena.open(side, 80).await, GET).await;
        assert_eq!(retried.statuses().first(), Some(&200), "S-H1-23 GET: {}", retried.text);
        served.store(1, std::sync::atomic::Ordering::SeqCst);
        let complete = app.text().matches("POST /once").count();
        let post = b"POST /once HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
        let lost = talk_until(arena.open(side, 80).await, post).await;
        assert_eq!(lost.statuses(), [503], "S-H1-23 POST: {}", lost.text);
        assert_eq!(app.text().matches("POST /once").count(), complete + 1, "sent once");
        app.be_honest();
    }
    arena.survived().await;
}
