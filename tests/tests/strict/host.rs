//! S-HOST: one authority, in one spelling, for policy, log and app. Line 11 is in `random_hosts.rs`.

use crate::arena::{Arena, BOTH, Before, Side, talk_until};
use postern_tests::scenario::policy;

fn with(target: &str, headers: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\n{headers}\r\n").into_bytes()
}

/// Lines 01 to 04, 06 (zone), 09, 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_exactly_one_host_is_refused() {
    let arena = Arena::new("").await;
    let long = format!("Host: {}\r\n", "a".repeat(256));
    for side in BOTH {
        for (line, target, headers) in [
            ("S-HOST-01", "/", ""),
            ("S-HOST-02", "/", "Host: a\r\nHost: a\r\n"),
            ("S-HOST-02", "/", "Host: a\r\nhost: b\r\n"),
            ("S-HOST-03", "/", "Host: a, b\r\n"),
            ("S-HOST-03", "/", "Host: user@a\r\n"),
            ("S-HOST-03", "/", "Host: a/b\r\n"),
            ("S-HOST-03", "/", "Host: a b\r\n"),
            ("S-HOST-03", "/", "Host:\r\n"),
            ("S-HOST-03", "/", "Host: \r\n"),
            ("S-HOST-03", "/", "Host: a?b\r\n"),
            ("S-HOST-03", "/", "Host: a#b\r\n"),
            ("S-HOST-03", "/", "Host: a\\b\r\n"),
            ("S-HOST-03", "/", "Host: a:\r\n"),
            ("S-HOST-03", "/", "Host: a:80:80\r\n"),
            ("S-HOST-03", "/", "Host: a:0x50\r\n"),
            ("S-HOST-04", "http://a/", "Host: b\r\n"),
            ("S-HOST-04", "http://a/", ""),
            ("S-HOST-04", "http://u@a/", "Host: a\r\n"),
            ("S-HOST-04", "ftp://a/", "Host: a\r\n"),
            ("S-HOST-06", "/", "Host: [fe80::1%25eth0]\r\n"),
            ("S-HOST-06", "/", "Host: [fe80::1%eth0]:80\r\n"),
            ("S-HOST-09", "/", "Host: b\u{fc}cher.de\r\n"),
            ("S-HOST-10", "/", &long),
        ] {
            arena.refused(side, line, &with(target, headers), 400).await;
        }
        let got = arena.passes(side, "S-HOST-04", &with("http://A/x", "Host: a\r\n")).await;
        assert!(got.starts_with("GET /x HTTP/1.1\r\n") && got.contains("\r\nhost: a\r\n"), "{got}");
        arena.passes(side, "S-HOST-09", &with("/", "Host: xn--bcher-kva.de\r\n")).await;
        arena.passes(side, "S-HOST-10", &with("/", &format!("Host: {}\r\n", "a".repeat(255)))).await;
        let got = arena.passes(side, "S-HOST-01", b"GET /old HTTP/1.0\r\nConnection: close\r\n\r\n").await;
        assert_eq!(got.matches("\r\nhost: ").count(), 1, "one is put in for HTTP/1.0: {got}");
    }
    arena.survived().await;
}

/// Line 06.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_denied_host_gets_by() {
    let rules = "action: DENY, rules: [{to: [{operation: {hosts: [secret.com, 'secret.com:*', '[::1]']}}]}]";
    let arena = Arena::new(&policy("secret", rules)).await;
    for side in BOTH {
        for host in [
            "secret.com",
            "Secret.COM",
            "secret.com.",
            "SECRET.com.",
            "secret.com:8080",
            "SECRET.com:443",
            "secret.com.:443",
            "[::1]",
            "[0:0:0::1]",
        ] {
            arena.denied(side, "S-HOST-06", &with("/", &format!("Host: {host}\r\n"))).await;
            arena
                .denied(side, "S-HOST-06", &with(&format!("http://{host}/"), &format!("Host: {host}\r\n")))
                .await;
        }
        let got = arena.passes(side, "S-HOST-06", &with("/", "Host: Public.COM.:80\r\n")).await;
        assert!(
            got.contains("\r\nhost: public.com:80\r\n"),
            "the app gets the spelling that was judged: {got}"
        );
    }
    arena.survived().await;
}

/// Lines 07 and 08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_name_of_a_host_is_no_way_to_another_host() {
    let arena = Arena::new("").await;
    let alpn: &[&[u8]] = &[b"http/1.1"];
    for (sni, host, status) in [
        (Some("a.example"), "b.example", 421),
        (Some("a.example"), "b.example:80", 421),
        (Some("a.example"), "a.example", 200),
        (Some("a.example"), "A.example.:8080", 200),
        // Between sidecars the name is a label of the destination, and says nothing about hosts.
        (Some("outbound_.80_._.payments-api.payments.svc.cluster.local"), "b.example", 200),
        (None, "b.example", 200),
    ] {
        let what = format!("S-HOST-07 {sni:?} {host}");
        let before = Before::of(&arena, Side::Peer);
        let stream = arena.open_as(Side::Peer, 80, alpn, sni).await;
        let answer = talk_until(stream, &with("/", &format!("Host: {host}\r\n"))).await;
        assert_eq!(answer.statuses(), [status], "{what}: {}", answer.text);
        if status == 421 {
            before.nothing_happened(&arena, &what).await;
        } else {
            arena.log(Side::Peer).next_matching(&what, |line| line["http.response.status_code"] == 200).await;
        }
    }
    arena.survived().await;
}
