//! S-HDR: header lines that policy judges are the ones that the app gets, and what only the mesh may say is said by it alone.

use crate::{
    arena::{Arena, BOTH, Before, Side},
    frames,
    http2::wire,
};
use postern_tests::{Step, scenario::policy};

fn with(headers: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").into_bytes()
}

/// The names of the lines of a head, in lower case.
fn names(head: &str) -> Vec<String> {
    let lines = head.lines().skip(1).take_while(|line| !line.is_empty());
    lines.filter_map(|line| Some(line.split_once(':')?.0.to_ascii_lowercase())).collect()
}

fn value<'h>(head: &'h str, name: &str) -> Vec<&'h str> {
    let lines = head.lines().skip(1).take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.split_once(": "))
        .filter(|(n, _)| n.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
        .collect()
}

/// Line 01 and line 06.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deny_rule_fires_on_any_value_of_a_header() {
    let rules = "action: DENY, rules: [{when: [{key: 'request.headers[x-role]', values: [admin]}]}]";
    let arena = Arena::new(&policy("role", rules)).await;
    for side in BOTH {
        for headers in [
            "x-role: admin\r\n",
            "X-ROLE:admin\r\n",
            "x-role: user\r\nx-role: admin\r\n",
            "x-role: admin\r\nx-role: user\r\n",
            "x-role: \t admin \t\r\n",
        ] {
            arena.denied(side, "S-HDR-01", &with(headers)).await;
        }
        // The raw text is compared, not split (docs/policy.md).
        for headers in ["x-role: user\r\n", "x-role: user,admin\r\n", "x-role: Admin\r\n"] {
            arena.passes(side, "S-HDR-01", &with(headers)).await;
        }
    }
    arena.survived().await;
}

/// Line 02: what an app would read in another line than policy did, is not allowed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allow_rule_wants_every_value_of_a_header() {
    let rules = "action: ALLOW, rules: [{when: [{key: 'request.headers[x-role]', values: [admin, root]}]}, \
                 {to: [{operation: {paths: [/good]}}]}]";
    let arena = Arena::new(&policy("role", rules)).await;
    for side in BOTH {
        for headers in
            ["", "x-role: user\r\n", "x-role: user\r\nx-role: admin\r\n", "x-role: admin\r\nx-role: user\r\n"]
        {
            arena.denied(side, "S-HDR-02", &with(headers)).await;
        }
        arena.passes(side, "S-HDR-02", &with("x-role: admin\r\n")).await;
        // Each is allowed, and `admin,root` is not: an app may read them as one.
        arena.denied(side, "S-HDR-02", &with("x-role: admin\r\nx-role: root\r\n")).await;
        let got = arena.passes(side, "S-HDR-02", &with("x-role: root\r\nx-other: 1\r\nx-other: 2\r\n")).await;
        assert!(got.contains("x-other: 1\r\nx-other: 2\r\n"), "{got}");
    }
    arena.survived().await;
}

/// Lines 03, 04, 05, 10 (requests).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_headers_that_may_travel_arrive() {
    let arena = Arena::new("").await;
    let forged = "By=spiffe://x;Hash=00;URI=spiffe://cluster.local/ns/payments/sa/forged";
    for side in BOTH {
        for (line, headers) in [
            ("S-HDR-03", "X_Forwarded_Client_Cert: {}\r\nx_forwarded-client_cert: {}\r\n"),
            ("S-HDR-03", "x_postern_peer: {}\r\nContent_Length: 5\r\ntransfer_encoding: chunked\r\n"),
            (
                "S-HDR-04",
                "X-Forwarded-Client-Cert: {}\r\nx-forwarded-client-cert: {}\r\nx-postern-peer: {}\r\n",
            ),
            ("S-HDR-04", "Connection: x-forwarded-client-cert\r\nX-Forwarded-Client-Cert: {}\r\n"),
            ("S-HDR-10", "Connection: keep-alive, x-gone\r\nX-Gone: {}\r\nKeep-Alive: timeout=5\r\n"),
            (
                "S-HDR-10",
                "Proxy-Connection: keep-alive\r\nTE: gzip\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            ),
        ] {
            let got = arena.passes(side, line, &with(&headers.replace("{}", forged))).await;
            assert!(!got.contains("forged"), "{line}: {got}");
            let client_cert = value(&got, "x-forwarded-client-cert");
            assert!(
                client_cert.len() == 1 && client_cert[0].contains("/ns/checkout/sa/checkout-api"),
                "{got}"
            );
            for name in names(&got) {
                let may = ["host", "x-request-id", "traceparent", "x-forwarded-client-cert"]
                    .contains(&name.as_str());
                assert!(may, "{line}: `{name}` arrived: {got}");
            }
        }
        let kept = "Connection: host, content-length, authorization, transfer-encoding, cookie\r\n\
                    Authorization: Bearer x\r\nCookie: a=1\r\nTE: trailers\r\nTrailer: x-sum\r\nX-Other_Name: 1\r\n";
        let got = arena.passes(side, "S-HDR-05", &with(kept)).await;
        for (name, wanted) in [
            ("host", "a"),
            ("authorization", "Bearer x"),
            ("cookie", "a=1"),
            ("te", "trailers"),
            ("trailer", "x-sum"),
            ("x-other_name", "1"),
        ] {
            assert_eq!(value(&got, name), [wanted], "S-HDR-05 {name}: {got}");
        }
    }
    arena.survived().await;
}

/// Lines 07 and 08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_and_oversized_heads_are_refused() {
    let arena = Arena::new("").await;
    for side in BOTH {
        for bytes in [
            &b"x: a\0b\r\n"[..],
            b"x: a\rb\r\n",
            b"x: a\x01b\r\n",
            b"x\0: a\r\n",
            b": a\r\n",
            b"x y: a\r\n",
            b"x : a\r\n",
            b"x\t: a\r\n",
            b" x: a\r\n",
            b"x\r\n",
            b"x(y): a\r\n",
            b"x\x80: a\r\n",
            b"x: a\r\n b\r\n",
            b"x: a\r\n\tb\r\n",
            b"x: \x7f\r\n",
        ] {
            let whole = [b"GET / HTTP/1.1\r\nHost: a\r\n", bytes, b"\r\n"].concat();
            arena.refused(side, "S-HDR-07", &whole, 400).await;
        }
        let lines = |count: usize| with(&(0..count).map(|n| format!("x-{n}: v\r\n")).collect::<String>());
        arena.refused(side, "S-HDR-08", &lines(100), 431).await;
        arena.refused(side, "S-HDR-08", &lines(1000), 431).await;
        let large = |size: usize| with(&format!("x: {}\r\n", "v".repeat(size)));
        arena.refused(side, "S-HDR-08", &large(64 * 1024), 431).await;
        arena.refused(side, "S-HDR-08", &large(200 * 1024), 431).await;
        arena.passes(side, "S-HDR-08", &large(20 * 1024)).await;
        arena.passes(side, "S-HDR-08", &large(60 * 1024)).await;
        arena.passes(side, "S-HDR-08", &lines(90)).await;
        if side == Side::Peer {
            arena.passes(side, "S-HDR-08", &lines(99)).await;
        }
    }
    arena.survived().await;
}

/// S-HDR-08 through the pair: the first sidecar adds lines of its own, for which the second has room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_callers_sidecar_admits_is_never_too_much_for_the_apps() {
    let arena = Arena::new("").await;
    let lines = |count: usize| (0..count).map(|n| format!("x-{n}: v\r\n")).collect::<String>();
    // Each with so many lines of its own that count, and the most lines that are added to such a one.
    for (what, head, own, added) in [
        ("a request", "GET /most HTTP/1.1\r\nHost: a\r\n", 1, 3),
        ("a trace of B3", "GET /most HTTP/1.1\r\nHost: a\r\nX-B3-Sampled: 1\r\n", 2, 6),
        (
            "an upgrade",
            "GET /most HTTP/1.1\r\nHost: a\r\nX-B3-Sampled: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n",
            2,
            8,
        ),
        ("HTTP/1.0", "GET /most HTTP/1.0\r\nX-B3-Sampled: 1\r\n", 1, 6),
    ] {
        let got = arena.passes(Side::App, what, format!("{head}{}\r\n", lines(92 - own)).as_bytes()).await;
        assert!(names(&got).len() > 92 && names(&got).len() <= 92 + added, "{what}: {}", names(&got).len());
        let more = format!("{head}{}\r\n", lines(93 - own));
        arena.refused(Side::App, what, more.as_bytes(), 431).await;
    }
    // A path of the most that one may have, and 63 KiB, spread over all lines and in one.
    let path = format!("/{}", "p".repeat(8 * 1024 - 1));
    for count in [91_usize, 1] {
        let head = |bytes: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("x-{n}")).collect();
            let fixed = "GET".len() + "hosta".len() + names.iter().map(String::len).sum::<usize>();
            let (each, rest) = ((bytes - fixed) / count, (bytes - fixed) % count);
            let line = |(n, name): (usize, &String)| {
                format!("{name}: {}\r\n", "v".repeat(each + if n == 0 { rest } else { 0 }))
            };
            let lines: String = names.iter().enumerate().map(line).collect();
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
        };
        arena.passes(Side::App, "63 KiB", head(63 << 10).as_bytes()).await;
        arena.refused(Side::App, "63 KiB and one", head((63 << 10) + 1).as_bytes(), 431).await;
    }
    let large = vec![b'v'; 63 << 10];
    // Beside the name of one byte, `GET`.
    let (most, more) = (&large[4..], &large[3..]);
    let sampled = (&b"x-b3-sampled"[..], &b"1"[..]);
    for (what, lines, status) in [
        ("HTTP/2: 92 lines", [vec![sampled], vec![(&b"x"[..], &b"v"[..]); 91]].concat(), 200),
        ("HTTP/2: 93 lines", [vec![sampled], vec![(&b"x"[..], &b"v"[..]); 92]].concat(), 431),
        ("HTTP/2: 63 KiB", vec![(&b"x"[..], most)], 200),
        ("HTTP/2: 63 KiB and one", vec![(&b"x"[..], more)], 431),
    ] {
        let list = [frames::lines_of_get("/most"), lines].concat();
        let (before, complete) = (Before::of(&arena, Side::App), arena.app().complete());
        let mut wire = wire(&arena, Side::App).await;
        let request = frames::headers(frames::END_STREAM, 1, &frames::block(&list));
        wire.send(&request).await.unwrap();
        assert_eq!(wire.end_of(1).await, frames::End::Status(status), "{what}");
        drop(wire);
        if status == 431 {
            before.nothing_happened(&arena, what).await;
        } else {
            assert_eq!(arena.app().complete(), complete + 1, "{what}");
        }
    }
    arena.survived().await;
}

/// Lines 10 (answers) and 11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_cannot_speak_for_the_mesh_in_its_answers() {
    let arena = Arena::new("").await;
    arena.app().answer(|_| {
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: x-gone\r\nX-Gone: 1\r\nKeep-Alive: timeout=9\r\n\
                    Proxy-Connection: close\r\nUpgrade: h2c\r\nX-Postern-Peer: forged\r\nX_Postern_Peer: forged\r\n\
                    X-Forwarded-Client-Cert: forged\r\nX-Kept: 1\r\n\r\nok";
        vec![Step::Hear, Step::Say(head.into())]
    });
    for side in BOTH {
        let answer = crate::arena::talk_until(arena.open(side, 80).await, &with("")).await;
        assert_eq!(answer.statuses(), [200], "{}", answer.text);
        assert!(!answer.text.contains("forged"), "S-HDR-11: {}", answer.text);
        for name in names(&answer.text) {
            let may = ["content-length", "x-kept", "date"].contains(&name.as_str());
            assert!(may, "S-HDR-10: `{name}` came back: {}", answer.text);
        }
    }
    arena.app().be_honest();
    arena.survived().await;
}

/// S-H1-10: a trailer is no second head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_trailers_that_may_travel_arrive() {
    let arena = Arena::new("").await;
    let names = [
        "host",
        "content-length",
        "transfer-encoding",
        "authorization",
        "cookie",
        "set-cookie",
        "content-type",
        "content-encoding",
        "content-range",
        "proxy-authorization",
        "www-authenticate",
        "proxy-authenticate",
        "location",
        "range",
        "if-match",
        "if-none-match",
        "cache-control",
        "pragma",
        "expect",
        "max-forwards",
        "te",
        "trailer",
        "upgrade",
        "connection",
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-client-cert",
        "x_forwarded_client_cert",
        "x-postern-peer",
        "via",
        "vary",
        "age",
        "date",
        "expires",
        "retry-after",
        "authentication-info",
        "x-request-id",
        "traceparent",
    ];
    let trailers: String = names.iter().map(|name| format!("{name}: forged\r\n")).collect();
    for side in BOTH {
        let request = format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: x-sum, {}\r\n\r\n\
             3\r\nabc\r\n0\r\nx-sum: 7\r\n{trailers}\r\n",
            names.join(", ")
        );
        let got = arena.passes(side, "S-H1-10", request.as_bytes()).await;
        let (_, body) = got.split_once("\r\n\r\n").unwrap();
        assert!(!body.contains("forged"), "{got}");
        assert!(body.ends_with("0\r\nx-sum: 7\r\n\r\n"), "S-H2-14: {got}");

        let answer = format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum, {}\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n{trailers}\r\n",
            names.join(", ")
        );
        arena.app().answer(move |_| vec![Step::Hear, Step::Say(answer.clone().into())]);
        let ask = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n";
        let answer = arena.say(side, &[ask]).await;
        assert!(answer.is_closed && answer.text.ends_with("0\r\nx-sum: 7\r\n\r\n"), "{}", answer.text);
        assert!(!answer.text.contains("forged"), "{}", answer.text);
        arena.app().be_honest();
    }
    arena.survived().await;
}
