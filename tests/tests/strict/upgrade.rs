//! S-H1-15: a tunnel begins with a 101 that was asked for, and not one byte earlier.

use crate::{
    arena::{Arena, BOTH, Io, Side, UPSTREAMS, read_answer, talk},
    goaway::mentions,
};
use postern_tests::{Step, mesh::Settings, raw::Heard, scenario::policy};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
/// What the framing reader refuses, and hyper alone would not.
const LOOSE: &str =
    "POST /loose HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";

/// Behind the head, in the same write: held until the 101 has come, then the tunnel's first bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_behind_an_upgrade_are_held_until_the_app_has_switched() {
    let arena = Arena::new("").await;
    for side in UPSTREAMS {
        tunnels(&arena, side, "websocket").await;
    }
    arena.survived().await;
}

/// A request for this upgrade, and what stands in for the app's consent.
fn asking(protocol: &str) -> String {
    ASK.replace("websocket", protocol)
}

fn switching_to(protocol: &str) -> Step {
    let head =
        format!("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: {protocol}\r\n\r\n");
    Step::Say(head.into_bytes())
}

async fn tunnels(arena: &Arena, side: Side, protocol: &str) {
    let what = format!("S-H1-15 {side:?} {protocol}");
    let app = arena.app_of(side);
    let (asked, said) = (mentions(&app.heard(), "GET /ws "), mentions(&app.heard(), "hello"));
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let gone = std::sync::Mutex::new(Some(gone));
    let switching = switching_to(protocol);
    app.answer(move |_| {
        let gone = gone.lock().unwrap().take().unwrap();
        tokio::task::block_in_place(|| gone.blocking_recv().unwrap());
        vec![switching.clone(), Step::More, Step::Say(b"world".to_vec()), Step::Close]
    });
    let mut stream = arena.open(side, 80).await;
    stream.write_all(format!("{}hello", asking(protocol)).as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    app.until("the head has come", |all| mentions(all, "GET /ws ") > asked).await;
    assert_eq!(mentions(&app.heard(), "hello"), said, "{what}: sent before the 101: {}", app.text());
    go.send(()).unwrap();
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await.unwrap();
    let read = String::from_utf8_lossy(&read).into_owned();
    assert!(read.starts_with("HTTP/1.1 101 ") && read.ends_with("world"), "{what}: {read}");
    assert!(app.text().ends_with("hello"), "{what}: {}", app.text());
    app.be_honest();
}

/// Whatever the answer, without a 101 there is no tunnel, and what lies behind is nobody's request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upgrade_closes_the_connection_with_all_that_lies_behind_it() {
    let rules = "action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]";
    let arena = Arena::new(&policy("denied", rules)).await;
    for side in BOTH {
        for behind in ["hello", SMUGGLED, LOOSE] {
            let what = format!("S-H1-15 {side:?} {behind:?}");
            for status in ["200 OK", "403 Forbidden", "426 Upgrade Required"] {
                let complete = arena.app().complete();
                let said = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                arena.app().answer(move |_| vec![Step::Hear, Step::Say(said.clone().into())]);
                let answer = arena.say(side, &[format!("{ASK}{behind}").as_bytes()]).await;
                assert_eq!(
                    answer.statuses(),
                    [status[..3].parse::<u16>().unwrap()],
                    "{what}: {}",
                    answer.text
                );
                assert!(answer.is_closed, "{what}: {}", answer.text);
                assert_eq!(arena.app().complete(), complete + 1, "{what}: {}", arena.app().text());
            }
            arena.app().be_honest();
            let denied = ASK.replace("/ws", "/denied");
            arena.refused(side, "S-H1-15", format!("{denied}{behind}").as_bytes(), 403).await;
            let bad = ASK.replace("Host: a\r\n", "Host: a\r\nHost: b\r\n");
            arena.refused(side, "S-H1-15", format!("{bad}{behind}").as_bytes(), 400).await;
        }
    }
    arena.survived().await;
}

/// A wish that is none, or that is not passed on, changes nothing about how the next request is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_wish_for_an_upgrade_does_not_open_the_way_for_loose_framing() {
    let arena = Arena::new("").await;
    for side in BOTH {
        for headers in [
            "Upgrade: websocket\r\n",
            "Connection: keep-alive\r\nUpgrade: websocket\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
            "Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
            "Connection: Upgrade\r\nUpgrade: WebSocket\r\n",
            "Upgrade: websocket\r\nConnection: x\r\nConnection: upgrade\r\n",
        ] {
            let what = format!("S-H1-15/16 {side:?} {headers:?}");
            let lines = arena.log(side).lines().len();
            let request = format!("GET /half HTTP/1.1\r\nHost: a\r\n{headers}\r\n{LOOSE}");
            let answer = arena.say(side, &[request.as_bytes()]).await;
            assert!(answer.is_closed, "{what}: {}", answer.text);
            let statuses: Vec<u16> = answer.statuses().into_iter().filter(|status| *status > 1).collect();
            assert!(statuses == [200] || statuses == [200, 400], "{what}: {}", answer.text);
            assert!(!arena.app().text().contains("/loose"), "{what}: {}", arena.app().text());
            assert!(
                !arena.app().text().to_ascii_lowercase().contains("h2c"),
                "{what}: {}",
                arena.app().text()
            );
            arena.log(side).at_least(lines + statuses.len()).await;
        }
        let with_body = ASK.replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
        arena.refused(side, "S-H1-15", with_body.as_bytes(), 400).await;
        let chunked = ASK.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n");
        arena.refused(side, "S-H1-15", chunked.as_bytes(), 400).await;
    }
    arena.survived().await;
}

/// S-H1-21: nobody asked for this one, or not for that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_101_that_nobody_asked_for_is_a_502_and_the_app_is_cut_off() {
    let arena = Arena::new("").await;
    let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for side in UPSTREAMS {
        let app = arena.app_of(side);
        for (ask, said) in [
            (
                get,
                "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
            ),
            (get, "HTTP/1.1 101 X\r\n\r\n"),
            (ASK, "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\nevil"),
            (ASK, "HTTP/1.1 101 X\r\n\r\nevil"),
        ] {
            let what = format!("S-H1-21 {side:?} {ask:?} {said:?}");
            app.answer(move |_| vec![Step::Hear, Step::Say(said.into()), Step::More]);
            let answer = talk_once(arena.open(side, 80).await, ask).await;
            assert_eq!(answer, [502], "{what}");
            let line = arena.one_line(side, &what).await;
            assert_eq!(line["http.response.status_code"], 502, "I4, {what}: {line}");
            let line = ask.lines().next().unwrap();
            let is_it = |h: &Heard| String::from_utf8_lossy(&h.bytes).contains(line);
            app.until("it was cut off", |all| all.iter().filter(|h| is_it(h)).all(|h| h.is_over)).await;
        }
        app.be_honest();
        arena.is_well().await;
    }
    arena.survived().await;
}

async fn talk_once(mut stream: Box<dyn Io>, ask: &str) -> Vec<u16> {
    stream.write_all(ask.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    read_answer(&mut stream).await.statuses()
}

/// A tunnel is cut in order, in both directions, and its bytes are counted in one line.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_half_closes_and_leaves_one_line() {
    let arena = Arena::new("").await;
    arena
        .app()
        .answer(|_| vec![switching_to("websocket"), Step::More, Step::Say(b"bye".to_vec()), Step::Close]);
    let mut stream = arena.open(Side::Peer, 80).await;
    stream.write_all(format!("{ASK}ping").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let answer = talk(stream, &[], Duration::from_secs(8)).await;
    assert!(answer.is_closed && answer.text.ends_with("bye"), "S-H2-17: {}", answer.text);
    let log = arena.log(Side::Peer);
    let line = log.next_matching("of the tunnel", |line| line["http.response.status_code"] == 101).await;
    assert_eq!(
        (line["postern.bytes_received"].as_u64(), line["postern.bytes_sent"].as_u64()),
        (Some(4), Some(3)),
        "{line}"
    );
    arena.app().be_honest();
    arena.survived().await;
}

/// S-H1-17: what is in such a tunnel no rule could see, so HTTP opens none, whatever policy says of the method. An app that is a proxy
/// itself declares its port as TCP, and policy speaks of identity and port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connect_is_refused_where_http_is_spoken_and_passes_as_bytes_where_the_port_is_tcp() {
    let rules = "action: ALLOW, rules: [{to: [{operation: {methods: [CONNECT, GET]}}]}, \
                 {to: [{operation: {ports: ['9000']}}], \
                 from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
    let arena = Arena::new(&policy("connect", rules)).await;
    let connect = b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n";
    for side in BOTH {
        arena.refused(side, "S-H1-17", connect, 405).await;
    }
    for (caller, echoes) in [("checkout-api", true), ("reports", false)] {
        let entry = arena.mesh.entry(caller, "payments-api:9000").0;
        let echoed = postern_tests::client::exchange_bytes(entry, connect).await;
        assert_eq!(echoed.is_ok_and(|echoed| echoed == connect), echoes, "{caller}");
    }
    assert_eq!(arena.mesh.app("payments-api").connections(), 1, "of the two, one reached the app");
    arena.survived().await;
}

/// What a pod's annotation says holds on both of its sides: the caller's pod and the app's have to name a protocol, and of a pod
/// without a sidecar the caller's alone.
const LISTS: [(&str, &str); 2] = [("checkout-api", "spdy/3.1, raw/1"), ("payments-api", "SPDY/3.1, tcp")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_passes_only_where_every_sidecar_on_its_way_allows_it() {
    let rules = "action: DENY, rules: [{to: [{operation: {paths: [/denied]}}]}]";
    let arena = Arena::annotated(&policy("denied", rules), Settings::default(), &LISTS).await;
    for (side, protocol, passes) in [
        (Side::App, "spdy/3.1", true),
        (Side::App, "Spdy/3.1", true),
        (Side::App, "WebSocket", true),
        (Side::App, "tcp", false),
        (Side::App, "raw/1", false),
        (Side::App, "h2c", false),
        (Side::App, "spdy/3.1, h2c", false),
        (Side::Peer, "SPDY/3.1", true),
        (Side::Peer, "tcp", true),
        (Side::Peer, "raw/1", false),
        (Side::Peer, "h2c", false),
        (Side::Bare, "raw/1", true),
        (Side::Bare, "tcp", false),
    ] {
        let (what, app) = (format!("S-H1-15/16 {side:?} {protocol}"), arena.app_of(side));
        let settings = "\r\nHTTP2-Settings: AAMAAABk\r\n\r\n";
        let ask = asking(protocol).replace("\r\n\r\n", settings);
        let heard = app.bytes().len();
        if passes {
            tunnels(&arena, side, protocol).await;
            // It consents to something else, although that is allowed as well.
            app.answer(|_| vec![Step::Hear, switching_to("websocket2"), Step::More]);
            assert_eq!(talk_once(arena.open(side, 80).await, &ask).await, [502], "{what}");
            app.be_honest();
        } else {
            // It is a request like any other, and nobody has asked for a 101.
            assert_eq!(talk_once(arena.open(side, 80).await, &ask).await, [200], "{what}");
            let got = String::from_utf8_lossy(&app.bytes()[heard..]).to_ascii_lowercase();
            assert!(got.starts_with("get /ws ") && !got.contains("upgrade"), "{what}: {got}");
            let protocol = protocol.to_owned();
            app.answer(move |_| vec![Step::Hear, switching_to(&protocol), Step::More]);
            assert_eq!(talk_once(arena.open(side, 80).await, &ask).await, [502], "{what}");
            app.be_honest();
        }
        let got = String::from_utf8_lossy(&app.bytes()[heard..]).to_ascii_lowercase();
        assert!(!got.contains("http2-settings") && !got.contains("h2c"), "{what}: {got}");
        // Two things behind one head for the first sidecar that allows it; else a body like any other.
        let with_body = ask.replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 5\r\n\r\nhello");
        let list = LISTS[usize::from(side == Side::Peer)].1.split(", ").chain(["websocket"]);
        if list.into_iter().any(|name| name.eq_ignore_ascii_case(protocol)) {
            arena.refused(side, &what, with_body.as_bytes(), 400).await;
        } else {
            assert_eq!(talk_once(arena.open(side, 80).await, &with_body).await, [200], "{what}");
        }
        if side != Side::Bare {
            let denied = asking(protocol).replace("/ws", "/denied");
            arena.denied(side, &what, denied.as_bytes()).await;
        }
    }
    arena.survived().await;
}

/// An open tunnel is judged again when policy changes, and when the annotation of either pod does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_ends_when_what_allowed_it_is_withdrawn() {
    let mut arena = Arena::annotated("", Settings::default(), &LISTS).await;
    let (yaml, rules) = (arena.yaml.clone(), "action: DENY, rules: [{to: [{operation: {paths: [/ws]}}]}]");
    let without = |list: &str| yaml.replace(&format!("'{list}'"), "'other'");
    for (withdrawn, side, reason) in [
        (format!("{yaml}{}", policy("withdrawn", rules)), Side::Peer, "RBAC: access denied"),
        (without(LISTS[1].1), Side::Peer, "upgrade to SPDY/3.1 is not allowed any more"),
        (without(LISTS[0].1), Side::App, "upgrade to spdy/3.1 is not allowed any more"),
    ] {
        arena.mesh.apply(&yaml).await;
        arena.app().answer(|_| vec![switching_to("SPDY/3.1"), Step::More, Step::More]);
        let mut stream = arena.open(Side::App, 80).await;
        stream.write_all(format!("{}hello", asking("spdy/3.1")).as_bytes()).await.unwrap();
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
        }
        assert!(read.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&read));
        arena.app().until("the tunnel is open", |all| mentions(all, "hello") > 0).await;
        arena.mesh.apply(&withdrawn).await;
        let ended = tokio::time::timeout(Duration::from_secs(8), stream.read_buf(&mut read)).await;
        assert!(matches!(ended, Ok(Ok(0) | Err(_))), "{side:?}: {ended:?}");
        let is_it = |line: &serde_json::Value| {
            line["http.response.status_code"] == 101 && line["postern.reason"] == reason
        };
        arena.log(side).next_matching("of the tunnel", is_it).await;
        let lasting = |all: &[Heard]| {
            all.iter().filter(|h| String::from_utf8_lossy(&h.bytes).contains("hello")).all(|h| h.is_over)
        };
        arena.app().until("it is over for the app", lasting).await;
        arena.app().be_honest();
    }
    arena.mesh.apply(&yaml).await;
    arena.survived().await;
}
