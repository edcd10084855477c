//! S-H2-10 and 11: a sidecar that goes says so in two steps, so that no request is lost between them.

use crate::{
    arena::{Arena, BOTH, Side},
    frames::*,
};
use postern_tests::{Step, mesh::Settings, raw::Heard};
use std::time::Duration;

/// Of the last stream there can be (RFC 9113 section 6.8).
const ANY: u32 = 0x7fff_ffff;

/// Begins the way down of the sidecar that is spoken to.
async fn drain(arena: &Arena, side: Side) {
    let name = if side == Side::App { "checkout-api" } else { "payments-api" };
    let admin = arena.mesh.workload(name).admin();
    let request = postern_tests::Request::new(admin, admin.to_string()).method("POST").path("/drain");
    assert_eq!(request.send().await.unwrap().status, 202);
}

async fn arena(drain_deadline: Duration) -> Arena {
    Arena::with("", Settings { drain_deadline, ..Settings::default() }).await
}

/// The next GOAWAY, with what else came before it.
async fn until(wire: &mut Wire, wanted: u8) -> Came {
    let waiting = async {
        loop {
            let came = wire.next().await.expect("the connection stays");
            if came.kind == wanted && came.flags & ACK == 0 {
                return came;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(8), waiting).await.expect("the frame comes")
}

/// How often the app has heard something.
pub fn mentions(all: &[Heard], text: &str) -> usize {
    all.iter().map(|heard| String::from_utf8_lossy(&heard.bytes).matches(text).count()).sum()
}

fn post(stream: u32, path: &str) -> Vec<u8> {
    let mut lines = lines_of_get(path);
    lines[0].1 = b"POST";
    frame(HEADERS, END_HEADERS, stream, &block(&lines))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goaway_comes_twice_and_requests_between_the_two_are_served() {
    for side in BOTH {
        let arena = arena(Duration::from_secs(20)).await;
        let mut wire = Wire::client(arena.open_h2(side).await).await;
        wire.send(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
        wire.send(&post(1, "/under-way")).await.unwrap();
        arena.app().until("the first has begun", |all| mentions(all, "/under-way") == 1).await;

        drain(&arena, side).await;
        let first = until(&mut wire, GOAWAY).await;
        assert_eq!((number(&first.payload), number(&first.payload[4..])), (ANY, 0), "S-H2-11 {side:?}");
        let ping = until(&mut wire, PING).await;
        // The client does not know yet that there is nothing more to ask.
        wire.send(&get(3, "/between")).await.unwrap();
        assert_eq!(wire.whole(3).await.status, 200, "{side:?}");

        wire.send(&frame(PING, ACK, 0, &ping.payload)).await.unwrap();
        let last = until(&mut wire, GOAWAY).await;
        assert_eq!((number(&last.payload), number(&last.payload[4..])), (3, 0), "S-H2-11 {side:?}");
        wire.send(&[get(5, "/late"), frame(DATA, END_STREAM, 1, b"rest")].concat()).await.unwrap();
        let whole = wire.whole(1).await;
        assert_eq!((whole.status, &whole.broken), (200, &None), "what is under way is finished, {side:?}");
        let after = tokio::time::timeout(Duration::from_secs(8), async {
            let mut answered = false;
            while let Some(came) = wire.next().await {
                answered |= came.stream == 5 && came.kind != RST_STREAM;
            }
            answered
        });
        assert_eq!(after.await, Ok(false), "S-H2-10 {side:?}: closed, and nothing about the late one");
        let seen = arena.app().text();
        assert!(seen.contains("/between") && !seen.contains("/late"), "S-H2-10 {side:?}: {seen}");
    }
}

/// What is left at the deadline is cut off: never an END_STREAM, and UNAVAILABLE where it is ours to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_outlasts_the_drain_is_cut_off_and_grpc_is_told_unavailable() {
    for side in BOTH {
        let arena = arena(Duration::from_secs(2)).await;
        // gRPC comes as HTTP/2, of which the app understands nothing but where it begins.
        arena.app().answer(|head| match head.contains("/held") || head.starts_with("PRI") {
            true => vec![Step::More; 100],
            false => vec![Step::Hear, Step::Echo],
        });
        let mut wire = Wire::client(arena.open_h2(side).await).await;
        wire.send(&get(1, "/held")).await.unwrap();
        let entry = arena.mesh.entry("checkout-api", "payments-api").0;
        let call = postern_tests::Request::new(entry, "a").http2().method("POST").path("/held/Grpc");
        let call = call.header("content-type", "application/grpc").header("te", "trailers");
        let call = tokio::spawn(call.send());
        let both = |all: &[Heard]| mentions(all, "/held") == 1 && mentions(all, "PRI ") == 1;
        arena.app().until("both are there", both).await;

        drain(&arena, side).await;
        let whole = wire.whole(1).await;
        assert!(matches!(whole.broken, Some(End::Closed | End::Reset(_))), "{side:?}: {whole:?}");
        let answer = tokio::time::timeout(Duration::from_secs(8), call).await.unwrap().unwrap();
        if side == Side::App {
            // The caller's own sidecar goes, and its connection with it.
            assert!(answer.is_err(), "{answer:?}");
        } else {
            assert_eq!(answer.unwrap().header("grpc-status"), Some("14"), "UNAVAILABLE");
        }
        let is_drained = |all: &[serde_json::Value]| {
            all.iter().any(|line| {
                line["postern.reason"].as_str().is_some_and(|reason| reason.contains("shutting down"))
            })
        };
        arena.log(side).until("the drain is the reason", is_drained).await;
    }
}
