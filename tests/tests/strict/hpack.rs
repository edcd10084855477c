//! S-HDR-08, S-H2-16: a reference of one byte is a whole header line once it is decoded, and is counted as such.

use crate::{
    arena::{Arena, BOTH, Before, forget_peak, peak, rss},
    frames::*,
    http2::wire,
};

/// A GET whose header list ends with one line so many times: said once, and referred to.
fn repeated(name: &[u8], value: &[u8], times: usize) -> Vec<u8> {
    let again = vec![AGAIN; times - 1];
    headers(END_STREAM, 1, &[block(&lines_of_get("/crumbs")), kept(name, value), again].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_table_multiplies_is_counted_as_decoded() {
    let arena = Arena::new("").await;
    let large = [b'v'; 3900];
    let many = 64 << 10;
    for side in BOTH {
        for (what, bytes, end) in [
            ("S-HDR-08 a bomb of 240 MiB", repeated(b"x", &large, many), End::GoAway(11)),
            ("S-HDR-08 a bomb of small lines", repeated(b"x", b"y", many), End::GoAway(11)),
            ("S-HDR-08 more than h2 decodes", repeated(b"x", &large, 40), End::Status(431)),
            ("S-HDR-08 more than 64 KiB", repeated(b"x", &large, 18), End::Status(431)),
            ("S-HDR-08 101 lines", repeated(b"x", b"y", 101), End::Status(431)),
            ("S-H2-16 a bomb of crumbs", repeated(b"cookie", &large, many), End::GoAway(11)),
            ("S-H2-16 crumbs of more than 64 KiB", repeated(b"cookie", &large, 18), End::Status(431)),
            // One line when they are joined, of 505 bytes.
            ("S-H2-16 101 crumbs", repeated(b"cookie", b"a=1", 101), End::Status(431)),
        ] {
            let what = format!("{what} {side:?}");
            let (before, memory) = (Before::of(&arena, side), rss());
            forget_peak();
            let mut wire = wire(&arena, side).await;
            let _ = wire.send(&bytes).await;
            assert_eq!(wire.end_of(1).await, end, "{what}");
            let more = peak().saturating_sub(memory);
            assert!(more < 8 << 20, "I5, {what}: {} KiB more", more >> 10);
            if end == End::GoAway(11) {
                assert!(wire.closes().await, "I7, {what}: the connection must close");
            }
            drop(wire);
            before.nothing_happened(&arena, &what).await;
        }
        for (name, value, times, arrives) in
            [(&b"x"[..], &b"y"[..], 90, 90), (b"x", &large, 16, 16), (b"cookie", b"a=1", 100, 1)]
        {
            let what = format!("{side:?}, the twin: {times} lines of {name:?}");
            let line = format!("\r\n{}: {}", String::from_utf8_lossy(name), String::from_utf8_lossy(value));
            let seen = arena.app().text().matches(&line).count();
            let mut wire = wire(&arena, side).await;
            wire.send(&repeated(name, value, times)).await.unwrap();
            assert_eq!(wire.end_of(1).await, End::Status(200), "{what}");
            assert_eq!(arena.app().text().matches(&line).count(), seen + arrives, "{what}");
        }
        assert!(arena.app().text().contains(&["a=1"; 100].join("; ")), "S-H2-16: joined once");
    }
    arena.survived().await;
}
