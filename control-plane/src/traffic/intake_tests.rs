//! A report that lies is cut down to what could be true.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;

pub(in crate::traffic) fn edge_of(peer: &str, calls: u64) -> v1::Edge {
    v1::Edge {
        direction: v1::Direction::Inbound.into(),
        peer: peer.into(),
        calls,
        mutual_tls: calls,
        total: vec![0, 0, u32::try_from(calls).unwrap_or(u32::MAX)],
        ..Default::default()
    }
}

pub(in crate::traffic) fn denial_of(path: &str, id: &str) -> v1::Denial {
    v1::Denial {
        direction: v1::Direction::Inbound.into(),
        method: "GET".into(),
        path: path.into(),
        port: 8080,
        status: 403,
        reason: "default deny".into(),
        decisions: vec![id.into()],
        count: 1,
        last_unix_millis: 1_800_000_000_000,
        first_unix_millis: 1_800_000_000_000,
        ..Default::default()
    }
}

pub(in crate::traffic) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

const PEER: &str = "spiffe://cluster.local/ns/a/sa/b";

fn check(change: impl FnOnce(&mut v1::Edge), expected: Option<impl FnOnce(&Sums) -> bool>) {
    let mut told = edge_of(PEER, 10);
    change(&mut told);
    let taken = read(v1::Report { edges: vec![told.clone()], ..Default::default() }, now());
    match expected {
        Some(holds) => assert!(holds(&taken.edges[0].1), "{told:?}: {taken:?}"),
        None => assert!(taken.edges.is_empty() && taken.dropped == 1, "{told:?}: {taken:?}"),
    }
}

#[test]
fn counts_are_never_more_than_calls_and_calls_never_more_than_can_be() {
    const NOTHING: Option<fn(&Sums) -> bool> = None;
    check(|_| {}, Some(|s: &Sums| (s.calls, s.mutual_tls, s.denied, s.errors) == (10, 10, 0, 0)));
    check(|e| e.calls = u64::MAX, Some(|s: &Sums| s.calls == MOST_CALLS));
    check(|e| e.mutual_tls = 99, Some(|s: &Sums| s.mutual_tls == 10));
    check(|e| (e.denied, e.errors) = (u64::MAX, u64::MAX), Some(|s: &Sums| (s.denied, s.errors) == (10, 0)));
    check(|e| (e.traced, e.untraced) = (7, 9), Some(|s: &Sums| (s.traced, s.untraced) == (7, 3)));
    check(|e| e.peer.clear(), Some(|s: &Sums| s.mutual_tls == 0));
    check(|e| e.bytes_sent = u64::MAX, Some(|s: &Sums| s.sent == MOST_BYTES));
    check(
        |e| e.total = vec![u32::MAX; 10_000],
        Some(|s: &Sums| s.total == Counts::read(&[10], 10) && s.total.quantile(1.0) == Some(10)),
    );
    check(|e| e.calls = 0, NOTHING);
    check(|e| e.direction = 77, NOTHING);
    check(|e| e.direction = 0, NOTHING);
    check(|e| e.peer = "spiffe://\u{1b}[31m".into(), NOTHING);
    check(|e| e.peer = format!("{PEER}{}", "x".repeat(40_000)), NOTHING);
}

#[test]
fn texts_are_cut_and_what_a_terminal_acts_on_is_spelled_out() {
    let told = v1::Denial {
        path: format!("/\u{1b}[2J\u{202e}\u{9b}<b>{}", "x".repeat(5000)),
        reason: "line\nbreak".into(),
        decisions: vec!["../../x".into(), "0a".into(), "f".repeat(33)],
        last_unix_millis: i64::MAX,
        first_unix_millis: i64::MIN,
        ..denial_of("", "1")
    };
    let taken = read(v1::Report { denials: vec![told], ..Default::default() }, now());
    let (kind, denied) = &taken.denials[0];
    let path = kind.path.as_deref().unwrap();
    assert!(path.starts_with(r"/\u{1b}[2J\u{202e}\u{9b}<b>xxx"), "{path}");
    assert!(path.len() < 2 * TEXT, "{}", path.len());
    assert_eq!(kind.reason, r"line\u{a}break");
    assert_eq!(denied.decisions, ["0a"]);
    assert_eq!((denied.first, denied.last), (now() - HOUR, now()));
}

#[test]
fn no_more_parts_are_taken_than_the_wire_allows() {
    let edges = (0..300).map(|n| edge_of(&format!("{PEER}{n}"), 1)).collect();
    let denials = (0..70).map(|n| denial_of(&n.to_string(), "1")).collect();
    let rule = v1::RuleUse { policy: "a/b".into(), matched: 1, ..Default::default() };
    let taken = read(v1::Report { edges, denials, rules: vec![rule; 260], ..Default::default() }, now());
    assert_eq!((taken.edges.len(), taken.denials.len(), taken.rules.len()), (256, 64, 256));
    assert_eq!(taken.dropped, 44 + 6 + 4);
}
