//! S-H2: floods of every kind end, and a connection has so many streams and no more.

use crate::{
    arena::{Arena, BOTH, rss},
    frames::*,
    http2::wire,
};
use postern_tests::Step;
use serde_json::Value;
use std::time::{Duration, Instant};

/// S-H2-03, 04, 05, 06: each kind of flood ends, by the code that says so, and costs little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_every_kind_are_ended() {
    let arena = Arena::new("").await;
    let list = block(&lines_of_get("/flood"));
    let open = frame(HEADERS, END_HEADERS, 1, &list);
    let kinds: [(&str, Vec<u8>, Vec<u8>, bool); 11] = [
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), true),
        ("WINDOW_UPDATE of a stream", open.clone(), frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), true),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]), true),
        ("unknown type", vec![], frame(0xbe, 0, 0, b"x"), true),
        ("unknown type, empty", vec![], frame(0xff, 0xff, 7, b""), true),
        ("PING", vec![], frame(PING, 0, 0, &[0; 8]), false),
        ("PING ACK", vec![], frame(PING, ACK, 0, &[0; 8]), true),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[]), false),
        ("empty DATA", open.clone(), frame(DATA, 0, 1, b""), true),
        ("padded DATA", open.clone(), frame(DATA, 8, 1, &[3, 0, 0, 0]), true),
        ("CONTINUATION", frame(HEADERS, 0, 1, &list), frame(CONTINUATION, 0, 1, b""), true),
    ];
    for side in BOTH {
        for (what, before, one, is_ended) in &kinds {
            let what = format!("S-H2-05/06 {what} {side:?}");
            let (lines, memory, began) = (arena.log(side).lines().len(), rss(), Instant::now());
            let mut wire = wire(&arena, side).await;
            wire.send(before).await.unwrap();
            let many = one.repeat(1000);
            let (mut read, mut write) = tokio::io::split(wire.stream);
            let flooding = async {
                use tokio::io::AsyncWriteExt;
                for _ in 0..2000 {
                    if write.write_all(&many).await.is_err() {
                        return true;
                    }
                }
                false
            };
            let mut came = Vec::new();
            let end = if *is_ended {
                use tokio::io::AsyncReadExt;
                let reading = async { while matches!(read.read_buf(&mut came).await, Ok(1..)) {} };
                let both = async { tokio::join!(flooding, reading) };
                tokio::time::timeout(Duration::from_secs(15), both).await.map(|(ended, ())| ended)
            } else {
                // Whoever does not read the answers either is held back, or ended.
                tokio::time::timeout(Duration::from_secs(3), flooding).await.or(Ok(true))
            };
            assert!(end.is_ok(), "{what}: not ended");
            assert!(rss() < memory + (8 << 20), "I5, {what}: {} KiB more", (rss() - memory) >> 10);
            if *is_ended {
                let calm = frame(GOAWAY, 0, 0, &[])[3..9].to_vec();
                let at = came.windows(6).position(|six| six == calm);
                let code = at.map(|at| number(&came[at + 10..]));
                assert_eq!(code, Some(11), "{what}: {came:02x?} after {:?}", began.elapsed());
                drop((read, write));
                // A request that was answered before the flood was noticed has a line of its own, without a reason.
                let has_reason =
                    |all: &[Value]| all.iter().skip(lines).any(|line| line["postern.reason"].is_string());
                arena.log(side).until(&format!("with a reason (I4, {what})"), has_reason).await;
            }
            arena.is_well().await;
        }
    }
    arena.survived().await;
}

/// S-H2-03 and 04: streams that are opened and reset, by either end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_start_few_requests_and_end_the_connection() {
    let arena = Arena::new("").await;
    arena.app().answer(|_| vec![Step::Hear, Step::More]);
    for side in BOTH {
        for made_by in ["the client", "the server"] {
            let what = format!("S-H2-03/04 {side:?}, resets by {made_by}");
            let memory = rss();
            let connections = arena.app().heard().len();
            let mut wire = wire(&arena, side).await;
            let mut flood = Vec::new();
            for n in 0..10_000u32 {
                let stream = 2 * n + 1;
                flood.extend(get(stream, "/rapid"));
                flood.extend(match made_by {
                    "the client" => frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()),
                    // Against the rules on a stream that has ended: the server resets it.
                    _ => frame(WINDOW_UPDATE, 0, stream, &0u32.to_be_bytes()),
                });
            }
            let _ = wire.send(&flood).await;
            let end = wire.end_of(u32::MAX).await;
            assert!(matches!(end, End::GoAway(11 | 1) | End::Closed), "{what}: {end:?}");
            let asked = arena.app().heard()[connections..].iter().map(|h| h.bytes.len()).sum::<usize>();
            let asked = arena.app().text().matches("/rapid").count().min(asked);
            assert!(asked <= 200 * 4, "{what}: the app saw {asked} requests");
            assert!(rss() < memory + (8 << 20), "I5, {what}");
        }
    }
    arena.app().be_honest();
    arena.survived().await;
}

/// S-H2-07 and 08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_streams_are_served_and_one_more_is_refused() {
    let arena = Arena::new("").await;
    arena.app().answer(|_| vec![Step::Hear, Step::More]);
    for side in BOTH {
        let mut wire = wire(&arena, side).await;
        let mut most = None;
        while let Some(came) = wire.next().await {
            if came.kind == SETTINGS && came.flags & ACK == 0 {
                most = came.payload.chunks(6).find(|one| one[..2] == [0, 3]).map(|one| number(&one[2..]));
                break;
            }
        }
        assert_eq!(most, Some(100), "SETTINGS_MAX_CONCURRENT_STREAMS");
        wire.send(&frame(SETTINGS, ACK, 0, &[])).await.unwrap();
        let all: Vec<u8> = (0..101).flat_map(|n| get(2 * n + 1, "/wait")).collect();
        wire.send(&all).await.unwrap();
        assert_eq!(wire.end_of(201).await, End::Reset(7), "S-H2-07: REFUSED_STREAM");
    }
    arena.app().be_honest();
    arena.survived().await;
}
