//! S-H2: floods of every kind end, and a connection has so many streams and no more.

use crate::{
    arena::{Arena, BOTH, Side, forget_peak, peak, rss},
    frames::*,
    goaway::mentions,
    http2::wire,
};
use postern_tests::{Step, raw::Heard};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// S-H2-05, 06: each kind of flood ends, by the code that says so, and costs little. Whoever does not even read what we answer is
/// ended too, or held back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_every_kind_are_ended() {
    let arena = Arena::new("").await;
    let list = block(&lines_of_get("/flood"));
    let open = frame(HEADERS, END_HEADERS, 1, &list);
    let (ping, settings) = (frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]));
    let kinds: [(&str, Vec<u8>, Vec<u8>, bool); 13] = [
        ("WINDOW_UPDATE", vec![], frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()), true),
        ("WINDOW_UPDATE of a stream", open.clone(), frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), true),
        ("PRIORITY", vec![], frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]), true),
        ("unknown type", vec![], frame(0xbe, 0, 0, b"x"), true),
        ("unknown type, empty", vec![], frame(0xff, 0xff, 7, b""), true),
        ("PING", vec![], ping.clone(), true),
        ("PING, no answer read", vec![], ping, false),
        ("PING ACK", vec![], frame(PING, ACK, 0, &[0; 8]), true),
        ("SETTINGS", vec![], settings.clone(), true),
        ("SETTINGS, no answer read", vec![], settings, false),
        ("empty DATA", open.clone(), frame(DATA, 0, 1, b""), true),
        ("padded DATA", open.clone(), frame(DATA, 8, 1, &[3, 0, 0, 0]), true),
        ("CONTINUATION", frame(HEADERS, 0, 1, &list), frame(CONTINUATION, 0, 1, b""), true),
    ];
    for side in BOTH {
        for (what, before, one, reads) in &kinds {
            let what = format!("S-H2-05/06 {what} {side:?}");
            let (complete, memory, began) = (arena.app().complete(), rss(), Instant::now());
            forget_peak();
            let mut wire = wire(&arena, side).await;
            wire.send(before).await.unwrap();
            let many = one.repeat(1000);
            let (mut read, mut write) = tokio::io::split(wire.stream);
            let flooding = async {
                for _ in 0..2000 {
                    if write.write_all(&many).await.is_err() {
                        return true;
                    }
                }
                false
            };
            let mut came = Vec::new();
            let reading = async { while *reads && matches!(read.read_buf(&mut came).await, Ok(1..)) {} };
            let both = async { tokio::join!(flooding, reading).0 };
            let patience = Duration::from_secs(if *reads { 15 } else { 3 });
            match tokio::time::timeout(patience, both).await {
                Ok(is_ended) => assert!(is_ended, "{what}: two million frames were taken"),
                Err(_) => {
                    assert!(!reads, "{what}: not ended");
                    let before = cpu();
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    let used = cpu() - before;
                    assert!(used < Duration::from_millis(200), "{what}: {used:?} of a second");
                }
            }
            let more = peak().saturating_sub(memory);
            assert!(more < 8 << 20, "I5, {what}: {} KiB more", more >> 10);
            assert_eq!(arena.app().complete(), complete, "I1, {what}");
            if *reads {
                let calm = frame(GOAWAY, 0, 0, &[])[3..9].to_vec();
                let at = came.windows(6).position(|six| six == calm);
                let code = at.map(|at| number(&came[at + 10..]));
                assert_eq!(code, Some(11), "{what}: {came:02x?} after {:?}", began.elapsed());
            }
            drop((read, write));
            arena.reasoned_line(side, &format!("with a reason (I4, {what})")).await;
            arena.is_well().await;
        }
    }
    arena.survived().await;
}

/// What this process has computed so far, on all its threads.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime (proc_pid_stat(5)), in hundredths of a second.
    let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// One stream that is reset, by its client or by what makes the server do it.
fn reset(made_by: &str, stream: u32) -> Vec<u8> {
    let post = |length: &'static [u8]| {
        let lines = [lines_of_get("/rapid"), vec![(&b"content-length"[..], length)]].concat();
        frame(HEADERS, END_HEADERS, stream, &block(&lines))
    };
    let [a, b, c, d] = stream.to_be_bytes();
    match made_by {
        "the client" => [get(stream, "/rapid"), frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())].concat(),
        "WINDOW_UPDATE of 0" => [get(stream, "/rapid"), frame(WINDOW_UPDATE, 0, stream, &[0; 4])].concat(),
        "DATA behind the end" => [get(stream, "/rapid"), frame(DATA, 0, stream, b"x")].concat(),
        "DATA of another length" => [post(b"5"), frame(DATA, END_STREAM, stream, b"x")].concat(),
        "a frame that is too large" => [post(b"20000"), frame(DATA, 0, stream, &[b'x'; 16_385])].concat(),
        "PRIORITY on itself" => {
            [get(stream, "/rapid"), frame(PRIORITY, 0, stream, &[a, b, c, d, 9])].concat()
        }
        other => unreachable!("{other}"),
    }
}

/// S-H2-03 and 04: streams that are opened and reset, by either end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_start_few_requests_and_end_the_connection() {
    let arena = Arena::new("").await;
    arena.app().answer(|_| vec![Step::Hear, Step::More]);
    for side in BOTH {
        for (made_by, code) in [
            ("the client", 11),
            ("WINDOW_UPDATE of 0", 1),
            ("DATA behind the end", 1),
            ("DATA of another length", 11),
            ("a frame that is too large", 6),
            ("PRIORITY on itself", 11),
        ] {
            let what = format!("S-H2-03/04 {side:?}, resets by {made_by}");
            // Of the large ones one is enough.
            let count = if code == 6 { 100 } else { 10_000 };
            let flood: Vec<u8> = (0..count).flat_map(|n| reset(made_by, 2 * n + 1)).collect();
            let (memory, asked) = (rss(), asked(&arena));
            forget_peak();
            let mut wire = wire(&arena, side).await;
            let _ = wire.send(&flood).await;
            let (resets, end) = wire.resets_until_goaway().await;
            let asked = self::asked(&arena) - asked;
            assert_eq!(end, Some(code), "{what}: after {resets}");
            assert!(resets <= 1024, "{what}: {resets}");
            assert!(asked <= 200, "{what}: the app saw {asked} requests");
            assert!(wire.closes().await, "I7, {what}: the connection must close");
            drop(wire);
            let more = peak().saturating_sub(memory);
            assert!(more < 8 << 20, "I5, {what}: {} KiB more", more >> 10);
            arena.reasoned_line(side, &format!("with a reason (I4, {what})")).await;
        }
    }
    arena.app().be_honest();
    arena.survived().await;
}

/// How many of these requests have come to the app.
fn asked(arena: &Arena) -> usize {
    arena.app().text().matches("/rapid").count()
}

/// S-H2-03: who waits until its requests were taken up before it resets them goes past what h2 counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resets_of_requests_that_were_taken_up_end_the_connection_too() {
    let arena = Arena::new("").await;
    arena.app().answer(|_| vec![Step::Hear, Step::More]);
    let mut after_first = None;
    for side in [BOTH, BOTH].concat() {
        let what = format!("S-H2-03 {side:?}");
        let began = Instant::now();
        let mut wire = wire(&arena, side).await;
        let (mut resets, mut end) = (0, None);
        // A hundred at a time, as many as there may be. The PING is answered behind them.
        while resets < 10_000 && end.is_none() {
            let streams = || (resets..resets + 100).map(|n| 2 * n + 1);
            let opened = streams().flat_map(|stream| get(stream, "/rapid"));
            let opened: Vec<u8> = opened.chain(frame(PING, 0, 0, &[0; 8])).collect();
            let _ = wire.send(&opened).await;
            end = loop {
                match wire.next().await {
                    Some(came) if came.kind == PING && came.flags & ACK != 0 => break None,
                    Some(came) if came.kind == GOAWAY => break Some(number(&came.payload[4..])),
                    Some(_) => {}
                    None => panic!("{what}: closed without a word after {resets}"),
                }
            };
            let cancel = 8u32.to_be_bytes();
            let taken_back: Vec<u8> = streams().flat_map(|n| frame(RST_STREAM, 0, n, &cancel)).collect();
            let _ = wire.send(&taken_back).await;
            resets += 100;
        }
        assert_eq!(end, Some(11), "{what}: after {resets}");
        // A thousand at once, as many a second, and what is on its way.
        let most = 1200.0 + began.elapsed().as_secs_f64() * 1000.0;
        assert!(f64::from(resets) < most, "{what}: {resets} after {:?}", began.elapsed());
        assert!(wire.closes().await, "I7, {what}: the connection must close");
        arena.reasoned_line(side, &format!("with a reason (I4, {what})")).await;
        // What this process has freed it may keep; nothing is left when the next attacks need no more. Lines are still coming in.
        let freed = async |limit: usize| {
            loop {
                BOTH.iter().for_each(|side| arena.log(*side).forget());
                if rss() < limit {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        freed(usize::MAX).await;
        let limit = *after_first.get_or_insert_with(rss) + (8 << 20);
        if tokio::time::timeout(Duration::from_secs(5), freed(limit)).await.is_err() {
            panic!("I5, {what}: {} KiB, more than {}", rss() >> 10, limit >> 10);
        }
    }
    arena.app().be_honest();
    arena.is_well().await;
}

/// S-H2-07.
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

/// S-H2-08: what is held for a client that opens every window and reads nothing is bounded, and nobody else waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_answers_that_nobody_reads_hold_a_bounded_memory() {
    let arena = Arena::new("").await;
    // Each without end, so certainly more than a MiB.
    let chunk = format!("4000\r\n{}\r\n", "v".repeat(0x4000)).into_bytes();
    arena.app().answer(move |head| match head.contains("/unread") {
        true => {
            let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            vec![Step::Hear, Step::Say(head), Step::Repeat(chunk.clone())]
        }
        false => vec![Step::Hear, Step::Echo],
    });
    // SETTINGS_INITIAL_WINDOW_SIZE, and the connection's window to its end.
    let windows = [
        frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]),
        frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()),
    ];
    let asked = (0..100).flat_map(|n| get(2 * n + 1, "/unread"));
    let asked: Vec<u8> = windows.concat().into_iter().chain(asked).collect();
    let unread = || mentions(&arena.app().heard(), "/unread");
    for (side, sidecars) in [(Side::App, 2), (Side::Peer, 1)] {
        let (memory, mut most) = (rss(), None);
        for attack in ["first", "second", "third"] {
            let what = format!("S-H2-08 {side:?}, the {attack} time");
            let before = unread();
            forget_peak();
            let mut wire = wire(&arena, side).await;
            wire.send(&asked).await.unwrap();
            let all_came = |all: &[Heard]| mentions(all, "/unread") >= before + 100;
            arena.app().until("all hundred are asked for", all_came).await;
            full().await;
            let held = peak();
            let limit = most.unwrap_or(memory + sidecars * 100 * WINDOW) + MARGIN;
            assert!(held < limit, "{what}: {} KiB, more than {}", held >> 10, limit >> 10);
            assert!(held > memory + 100 * WINDOW / 2 || most.is_some(), "{what}: nothing was held");
            // What this process has freed it may keep; nothing is left when the next attack needs no more.
            most.get_or_insert(held);
            arena.is_well().await;
            drop(wire);
            let is_it = |heard: &&Heard| String::from_utf8_lossy(&heard.bytes).contains("/unread");
            let over = |all: &[Heard]| all.iter().filter(is_it).all(|heard| heard.is_over);
            arena.app().until("all hundred were closed towards it", over).await;
        }
    }
    arena.app().be_honest();
    arena.is_well().await;
}

/// What a stream may hold, and what else 100 of them cost.
const WINDOW: usize = 256 << 10;
const MARGIN: usize = 16 << 20;

/// Resolves when nothing more is taken from the app: memory has not grown for a second.
async fn full() {
    let (mut most, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(1) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if peak() > most + (256 << 10) {
            (most, since) = (peak(), Instant::now());
        }
    }
}
