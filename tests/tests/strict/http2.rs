//! S-H2: what HTTP/2 lets a client say is read as strictly as HTTP/1, and floods end.

use crate::{
    arena::{Arena, BOTH, Before, Side, UPSTREAMS},
    frames::*,
};
use postern_tests::{Step, raw::Heard, scenario::policy};
use std::time::Duration;

/// Header lines, pseudo ones among them.
type Lines<'a> = Vec<(&'a [u8], &'a [u8])>;

pub async fn wire(arena: &Arena, side: Side) -> Wire {
    Wire::client(arena.open_h2(side).await).await
}

/// One request of these header lines, complete or with more to come; what becomes of it.
async fn ask(arena: &Arena, side: Side, lines: &[(&[u8], &[u8])]) -> End {
    let mut wire = wire(arena, side).await;
    let _ = wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(lines))).await;
    wire.end_of(1).await
}

fn with<'a>(more: &[(&'a [u8], &'a [u8])]) -> Lines<'a> {
    [lines_of_get("/"), more.to_vec()].concat()
}

/// S-HOST-05, S-PATH-04/09/10, S-HDR-06/07, S-H2-02, 12, 15: nothing of it reaches the HTTP/1 app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_lists_that_have_no_one_reading_are_refused() {
    let arena = Arena::new("").await;
    let replaced = |name: &'static [u8], value: &'static [u8]| {
        let mut lines = lines_of_get("/");
        lines.iter_mut().filter(|(n, _)| *n == name).for_each(|line| line.1 = value);
        lines
    };
    let without = |name: &'static [u8]| {
        let mut lines = lines_of_get("/");
        lines.retain(|(n, _)| *n != name);
        lines
    };
    let first = |name: &'static [u8], value: &'static [u8]| {
        let mut lines = lines_of_get("/");
        lines.insert(0, (name, value));
        lines
    };
    let table: Vec<(&str, Lines<'_>)> = vec![
        ("S-HOST-05 authority and host differ", with(&[(b"host", b"b")])),
        ("S-HOST-05 two hosts", with(&[(b"host", b"a"), (b"host", b"a")])),
        ("S-HOST-05 neither", without(b":authority")),
        ("S-HOST-05 userinfo", replaced(b":authority", b"u:p@a")),
        ("S-HOST-05 empty", replaced(b":authority", b"")),
        ("S-HOST-03 list", replaced(b":authority", b"a,b")),
        ("S-HOST-03 path", replaced(b":authority", b"a/b")),
        ("S-HOST-09 raw", replaced(b":authority", b"b\xc3\xbccher.de")),
        ("S-PATH-09 no slash", replaced(b":path", b"admin")),
        ("S-PATH-09 empty", replaced(b":path", b"")),
        ("S-PATH-09 absolute", replaced(b":path", b"http://b/admin")),
        ("S-PATH-08 asterisk", replaced(b":path", b"*")),
        ("S-PATH-04 NUL", replaced(b":path", b"/a%00")),
        ("S-PATH-04 raw NUL", replaced(b":path", b"/a\0")),
        ("S-PATH-04 percent", replaced(b":path", b"/a%zz")),
        ("S-PATH-04 raw", replaced(b":path", b"/\x80\xff")),
        ("S-PATH-04 blank", replaced(b":path", b"/a HTTP/1.1\r\nx: y")),
        ("S-PATH-10", replaced(b":path", b"svc/method")),
        ("1.3-12 scheme", replaced(b":scheme", b"HTTPS")),
        ("1.3-12 scheme", replaced(b":scheme", b"ftp")),
        ("S-H2-15 method", replaced(b":method", b"GET / HTTP/1.1\r\nHost: b\r\n\r\nGET")),
        ("S-H2-15 method", replaced(b":method", b"")),
        ("S-H2-15 method", replaced(b":method", b"G(T")),
        ("S-HDR-06 leading blank", with(&[(b"x", b" a")])),
        ("S-HDR-06 trailing blank", with(&[(b"x", b"a\t")])),
        ("S-HDR-07 CR LF", with(&[(b"x", b"a\r\ny: z")])),
        ("S-HDR-07 LF", with(&[(b"x", b"a\ny: z")])),
        ("S-HDR-07 NUL", with(&[(b"x", b"a\0b")])),
        ("S-HDR-07 name", with(&[(b"x\r\ny", b"a")])),
        ("S-HDR-07 name", with(&[(b"x y", b"a")])),
        ("S-HDR-07 name", with(&[(b"x:y", b"a")])),
        ("S-HDR-07 name", with(&[(b"X", b"a")])),
        ("S-HDR-07 no name", with(&[(b"", b"a")])),
        ("S-H2-15", with(&[(b"transfer-encoding", b"chunked")])),
        ("S-H2-15", with(&[(b"connection", b"close")])),
        ("S-H2-15", with(&[(b"upgrade", b"websocket")])),
        ("S-H2-15", with(&[(b"keep-alive", b"timeout=5")])),
        ("S-H2-15", with(&[(b"proxy-connection", b"close")])),
        ("S-H2-15", with(&[(b"te", b"gzip")])),
        ("S-H2-15", with(&[(b"content-length", b"5")])),
        ("S-H2-15", with(&[(b"content-length", b"0"), (b"content-length", b"0")])),
        ("S-H2-15", with(&[(b"content-length", b"+0")])),
        ("pseudo twice", with(&[(b":path", b"/admin")])),
        ("pseudo after others", with(&[(b"x", b"y"), (b":path", b"/admin")])),
        ("pseudo twice", first(b":path", b"/admin")),
        ("pseudo of answers", first(b":status", b"200")),
        ("unknown pseudo", first(b":evil", b"1")),
        ("S-H2-12 protocol", first(b":protocol", b"websocket")),
        (
            "S-H2-12",
            vec![
                (b":method", b"CONNECT"),
                (b":protocol", b"websocket"),
                (b":scheme", b"http"),
                (b":path", b"/"),
                (b":authority", b"a"),
            ],
        ),
        ("S-H1-17 CONNECT", vec![(b":method", b"CONNECT"), (b":authority", b"a:80")]),
        ("S-H1-12", with(&[(b"expect", b"foo")])),
    ];
    for side in BOTH {
        for (what, lines) in &table {
            let what = format!("{what} {side:?}");
            let before = Before::of(&arena, side);
            let mut wire = wire(&arena, side).await;
            let _ = wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(lines))).await;
            let end = wire.end_of(1).await;
            let refused = matches!(end, End::Status(400 | 405 | 417) | End::Reset(1) | End::GoAway(1));
            assert!(refused, "{what}: {end:?}");
            if end == End::GoAway(1) {
                let _ = wire.send(&get(3, "/behind")).await;
                assert!(wire.closes().await, "I7, {what}: the connection must close");
            }
            drop(wire);
            before.nothing_happened(&arena, &what).await;
        }
        let good: [&[(&[u8], &[u8])]; 3] = [
            &lines_of_get("/good"),
            &with(&[(b"host", b"a")]),
            &with(&[(b"te", b"trailers"), (b"x_y", b"1")]),
        ];
        for lines in good {
            assert_eq!(ask(&arena, side, lines).await, End::Status(200));
        }
    }
    arena.survived().await;
}

/// Every refused request leaves its line (I4), in whatever way it was refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_broken_connection_leaves_exactly_one_line_with_its_reason() {
    let arena = Arena::new("").await;
    let large = vec![b'v'; 65 * 1024];
    for side in BOTH {
        for (what, lines, end) in [
            ("reset", with(&[(b"connection", b"close")]), End::Reset(1)),
            ("goaway", with(&[(b"X", b"a")]), End::GoAway(1)),
            ("answered", with(&[(b"x", b" a")]), End::Status(400)),
        ] {
            let before = Before::of(&arena, side);
            assert_eq!(ask(&arena, side, &lines).await, end, "{what}");
            before.nothing_happened(&arena, what).await;
        }
        // S-HDR-08: large lists in CONTINUATION frames, and many lines.
        let before = Before::of(&arena, side);
        let mut wire = wire(&arena, side).await;
        wire.send(&headers(END_STREAM, 1, &block(&with(&[(b"x", &large)])))).await.unwrap();
        assert_eq!(wire.end_of(1).await, End::Status(431), "S-HDR-08");
        drop(wire);
        before.nothing_happened(&arena, "S-HDR-08").await;
        let before = Before::of(&arena, side);
        let names: Vec<String> = (0..101).map(|n| format!("x-{n}")).collect();
        let many: Vec<(&[u8], &[u8])> = names.iter().map(|name| (name.as_bytes(), &b"v"[..])).collect();
        assert_eq!(ask(&arena, side, &with(&many)).await, End::Status(431), "S-HDR-08");
        before.nothing_happened(&arena, "S-HDR-08").await;
    }
    arena.survived().await;
}

/// S-H2-16: crumbs of a cookie are one line for policy and app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crumbs_of_a_cookie_are_joined_once_before_policy() {
    let rules = "action: DENY, rules: [{when: [{key: 'request.headers[cookie]', values: ['a=1; b=2']}]}]";
    let arena = Arena::new(&policy("cookie", rules)).await;
    for side in BOTH {
        let before = Before::of(&arena, side);
        let denied = ask(&arena, side, &with(&[(b"cookie", b"a=1"), (b"cookie", b"b=2")])).await;
        assert_eq!(denied, End::Status(403));
        before.nothing_happened(&arena, "S-H2-16").await;
        let passes = ask(&arena, side, &with(&[(b"cookie", b"a=1"), (b"cookie", b"b=3")])).await;
        assert_eq!(passes, End::Status(200));
        assert!(arena.app().text().contains("\r\ncookie: a=1; b=3\r\n"), "{}", arena.app().text());
    }
    arena.survived().await;
}

/// S-H2-13 and 14.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_refused_in_its_own_words() {
    let rules = "action: DENY, rules: [{to: [{operation: {paths: ['/svc/*']}}]}]";
    let arena = Arena::new(&policy("svc", rules)).await;
    let call = async |side, path: &str, more: &[(&str, &str)]| {
        let request = postern_tests::Request::new(([127, 0, 0, 1], 80).into(), "a").http2().method("POST");
        let request = request.header("content-type", "application/grpc").header("te", "trailers").path(path);
        let request = more.iter().fold(request, |request, (name, value)| request.header(name, value));
        request.send_over(arena.open_h2(side).await).await.unwrap()
    };
    for side in BOTH {
        for path in ["/svc/method", "/svc/x/../method", "/x/../svc/method"] {
            let what = format!("S-H2-13 {side:?} {path}");
            let before = Before::of(&arena, side);
            let denied = call(side, path, &[]).await;
            assert_eq!((denied.status, denied.header("grpc-status")), (200, Some("7")), "{what}");
            assert!(denied.body.is_empty() && denied.trailers.is_empty(), "{what}: trailers only");
            before.nothing_happened(&arena, &what).await;
        }
        for bad in ["123456789S", "1x", "S", "", "1.5S", "-1S"] {
            let what = format!("S-H2-13 {side:?} grpc-timeout {bad:?}");
            let before = Before::of(&arena, side);
            let refused = call(side, "/pay/x", &[("grpc-timeout", bad)]).await;
            assert_eq!((refused.status, refused.header("grpc-status")), (200, Some("3")), "{what}");
            before.nothing_happened(&arena, &what).await;
        }
        // The twin: what nobody refuses arrives, as HTTP/2, which this app answers with what is none.
        let heard = arena.app().bytes().len();
        let passed = call(side, "/pay/x", &[("grpc-timeout", "5S")]).await;
        assert!(!matches!(passed.header("grpc-status"), Some("3" | "7")), "{side:?}: {passed:?}");
        assert!(arena.app().bytes().len() > heard, "{side:?}: the twin must arrive");
    }
    arena.survived().await;
}

fn say(text: &str) -> Step {
    Step::Say(text.as_bytes().to_vec())
}

/// S-H1-21 and 22 for a client of HTTP/2: END_STREAM only where the app has ended its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_was_cut_off_is_reset_and_a_complete_one_ends() {
    let arena = Arena::new("").await;
    for side in BOTH {
        for (said, end, is_whole) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Step::More, true),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
                Step::More,
                true,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Step::Close, true),
            ("HTTP/1.1 200 OK\r\n\r\nhello", Step::Reset, false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Step::Close, false),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", Step::Reset, false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Step::Close, false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", Step::Close, false),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nx\r\n", Step::More, false),
        ] {
            let what = format!("S-H1-21/22 {side:?} {said:?} {end:?}");
            arena.app().answer(move |_| vec![Step::Hear, say(said), end.clone()]);
            let mut wire = wire(&arena, side).await;
            wire.send(&get(1, "/")).await.unwrap();
            let whole = wire.whole(1).await;
            if is_whole {
                assert_eq!(
                    (whole.status, &whole.body[..], &whole.broken),
                    (200, &b"hello"[..], &None),
                    "{what}"
                );
            } else {
                // 503 when the break came before the head was sent on; otherwise a reset, never a clean end.
                let is_refused = matches!(whole.status, 502 | 503);
                assert!(is_refused || matches!(whole.broken, Some(End::Reset(_))), "{what}: {whole:?}");
                drop(wire);
                let line = arena.one_line(side, &what).await;
                // To the caller's sidecar the other one's refusal is an answer like another.
                let is_reasoned = line["postern.reason"].is_string();
                assert!(is_reasoned || is_refused && side == Side::App, "I4, {what}: {line}");
            }
        }
        arena.app().be_honest();
    }
    arena.survived().await;
}

/// S-H1-24 for HTTP/2: a request that its client breaks off is one that never ends for the app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_reset_never_ends_for_the_app() {
    let arena = Arena::new("").await;
    let post = [lines_of("POST"), vec![(&b"content-length"[..], &b"10"[..])]].concat();
    for side in BOTH {
        for length in [true, false] {
            let reset = |code: u32| frame(RST_STREAM, 0, 1, &code.to_be_bytes());
            // NO_ERROR too: it must not pass for an end.
            for cut in [reset(8), reset(0), frame(DATA, END_STREAM, 1, b"x"), vec![]] {
                if !length && cut.get(3) == Some(&DATA) {
                    continue;
                }
                let what = format!("S-H1-24 {side:?} with length: {length}, then {cut:02x?}");
                let complete = arena.app().complete();
                let lines = if length { post.clone() } else { lines_of("POST") };
                let mut wire = wire(&arena, side).await;
                let head =
                    [frame(HEADERS, END_HEADERS, 1, &block(&lines)), frame(DATA, 0, 1, b"abc")].concat();
                wire.send(&head).await.unwrap();
                // Maybe on a connection that the pool had kept.
                let is_begun = |h: &Heard| h.bytes.ends_with(b"abc") || h.bytes.ends_with(b"abc\r\n");
                arena.app().until(&what, |all| all.iter().any(|h| is_begun(h) && !h.is_over)).await;
                wire.send(&cut).await.unwrap();
                drop(wire);
                arena.app().until(&what, |all| all.iter().filter(|h| is_begun(h)).all(|h| h.is_over)).await;
                assert_eq!(arena.app().complete(), complete, "{what}");
                let line = arena.one_line(side, &what).await;
                assert!(line["postern.reason"].is_string(), "I4, {what}: {line}");
            }
        }
    }
    arena.survived().await;
}

fn lines_of(method: &str) -> Lines<'_> {
    let mut lines = lines_of_get("/");
    lines[0].1 = method.as_bytes();
    lines
}

/// S-H2-14: trailers cross from HTTP/2 to HTTP/1 and back, and are as clean as any; so does the body before them, of a GET too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_cross_between_the_versions() {
    let arena = Arena::new("").await;
    let said = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n";
    arena.app().answer(move |_| vec![Step::Hear, say(said)]);
    for (side, method) in BOTH.into_iter().flat_map(|side| [(side, "POST"), (side, "GET")]) {
        let mut lines = lines_of(method);
        lines.extend([(&b"te"[..], &b"trailers"[..]), (b"trailer", b"x-sum, authorization")]);
        let trailers = block(&[(b"x-sum", b"7"), (b"authorization", b"forged"), (b"content-length", b"3")]);
        let mut wire = wire(&arena, side).await;
        let heard = arena.app().bytes().len();
        let request = [
            frame(HEADERS, END_HEADERS, 1, &block(&lines)),
            frame(DATA, 0, 1, b"abc"),
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers),
        ];
        wire.send(&request.concat()).await.unwrap();
        let whole = wire.whole(1).await;
        assert_eq!((whole.status, whole.trailers, &whole.broken), (200, 1, &None), "{whole:?}");
        let got = String::from_utf8_lossy(&arena.app().bytes()[heard..]).into_owned();
        let is_whole = got.ends_with("3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n");
        assert!(is_whole && !got.contains("forged"), "S-H2-14 {side:?} {method}: {got}");
    }
    arena.app().be_honest();
    arena.survived().await;
}

/// S-H2-18 and the rest of a hostile upstream of HTTP/2: each is a 14 or a reset, and nothing spins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_upstream_of_http2_costs_its_own_callers_only() {
    let arena = Arena::new("").await;
    let settings = frame(SETTINGS, 0, 0, &[]);
    let ok = frame(HEADERS, END_HEADERS, 1, &[0x88]);
    let flood = |one: Vec<u8>| vec![Step::Say(settings.clone()), Step::More, Step::Repeat(one.repeat(200))];
    // Closed afterwards, so that the next row gets a connection of its own.
    let once = |bytes| vec![Step::Say(settings.clone()), Step::More, Step::Say(bytes), Step::Close];
    let scripts: Vec<(&str, Vec<Step>)> = vec![
        ("no HTTP/2", vec![say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Step::Close]),
        ("GOAWAY at once", once(frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0]))),
        ("GOAWAY with an error", once(frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]))),
        ("reset", once(frame(RST_STREAM, 0, 1, &2u32.to_be_bytes()))),
        (
            "reset with NO_ERROR in the middle",
            once([&ok[..], &frame(DATA, 0, 1, b"half"), &frame(RST_STREAM, 0, 1, &[0; 4])].concat()),
        ),
        (
            "closed in the middle",
            vec![Step::Say(settings.clone()), Step::More, Step::Say(ok.clone()), Step::Reset],
        ),
        ("a status that is none", once(frame(HEADERS, END_HEADERS, 1, &[0x48, 3, b'9', b'9', b'9']))),
        ("no status", once(frame(HEADERS, END_HEADERS, 1, &block(&[(b"x", b"y")])))),
        (
            "a line feed in a value",
            once(frame(HEADERS, END_HEADERS, 1, &[&[0x88][..], &block(&[(b"x", b"a\nb")])].concat())),
        ),
        ("a stream that nobody opened", once(frame(HEADERS, END_HEADERS, 99, &[0x88]))),
        (
            "a bomb of HPACK",
            once(headers(0, 1, &[&[0x88][..], &kept(b"x", &[b'v'; 3900]), &[AGAIN; 64 << 10]].concat())),
        ),
        ("a push", once(frame(5, END_HEADERS, 1, &[0, 0, 0, 2, 0x82]))),
        ("a window of too much", once(frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()))),
        ("a flood of WINDOW_UPDATE", flood(frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()))),
        ("a flood of PRIORITY", flood(frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]))),
        ("a flood of unknown frames", flood(frame(0xbe, 0, 0, b""))),
        ("a flood of PING", flood(frame(PING, 0, 0, &[0; 8]))),
        ("a flood of SETTINGS", flood(settings.clone())),
    ];
    let rows = UPSTREAMS.into_iter().flat_map(|side| scripts.iter().cloned().map(move |row| (side, row)));
    for (side, (what, script)) in rows {
        let what = format!("{what} {side:?}");
        let app = arena.app_of(side);
        app.answer(move |_| script.clone());
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 80));
        let request =
            postern_tests::Request::new(address, "a").http2().method("POST").path("/pay.Charges/Create");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        let call = request.send_over(arena.open_h2(side).await);
        let answer = tokio::time::timeout(Duration::from_secs(6), call).await;
        let answer = answer.unwrap_or_else(|_| panic!("S-H2-18 {what}: no answer within six seconds"));
        // In the trailers where the upstream's head had been passed on before.
        let status = answer.as_ref().ok().and_then(|answer| {
            let trailer = || answer.trailers.get("grpc-status").and_then(|status| status.to_str().ok());
            answer.header("grpc-status").or_else(trailer)
        });
        let is_refused = answer.is_err() || matches!(status, Some("13" | "14" | "2"));
        assert!(is_refused, "S-H2-18 {what}: {answer:?}");
        arena.one_line(side, &what).await;
        app.be_honest();
        arena.is_well().await;
    }
    arena.survived().await;
}
