//! Sums are exact, and bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::telemetry::entry::{Decided, Request};
use postern_config::documents::authorization_policy::Action;

fn call(peer: Option<&str>, path: &str) -> Entry {
    let address = "10.0.0.1:8080".parse().unwrap();
    let mut entry = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address, address);
    entry.source_principal = peer.map(Arc::from);
    entry.request = Some(Request {
        method: http::Method::GET,
        authority: "shop".into(),
        path: path.into(),
        id: None,
        headers: Default::default(),
    });
    entry.status = Some(200);
    entry.duration = Duration::from_micros(100);
    entry.proxy = Duration::from_micros(30);
    entry.bytes_sent = 5;
    entry
}

fn denied(peer: &str, path: &str, id: &str) -> Entry {
    let mut entry = call(Some(peer), path);
    entry.status = Some(403);
    entry.decided = Some(Decided {
        is_allowed: false,
        id: Some(id.into()),
        rule: None,
        reason: "default deny: no ALLOW rule matched",
        version: "v1".into(),
        would: None,
        audit: None,
    });
    entry
}

#[test]
fn calls_of_all_threads_are_summed_by_edge_and_told_once() {
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..10 {
                    tally.observe(&call(Some("spiffe://td/ns/a/sa/b"), "/"));
                    tally.observe(&call(None, "/"));
                }
                let mut failed = call(None, "/");
                failed.status = Some(503);
                tally.observe(&failed);
            });
        }
    });
    let all = tally.collect();
    assert_eq!(all.edges.len(), 2);
    let sums = |peer: Option<&str>| {
        let edge = Edge { direction: Direction::Inbound, peer: peer.map(Arc::from), service: None };
        all.edges[&edge].clone()
    };
    let (known, unknown) = (sums(Some("spiffe://td/ns/a/sa/b")), sums(None));
    assert_eq!((known.calls, known.mutual_tls, known.errors, known.sent), (30, 30, 0, 150));
    assert_eq!((unknown.calls, unknown.mutual_tls, unknown.errors), (33, 0, 3));
    assert_eq!(known.total[histogram::bucket(100)], 30);
    assert_eq!(known.proxy[histogram::bucket(30)], 30);
    assert!(tally.collect().is_empty());
}

#[test]
fn denials_of_one_kind_are_one_with_their_latest_ids() {
    let tally = Tally::default();
    for n in 0..20 {
        tally.observe(&denied("spiffe://td/ns/a/sa/b", "/x", &format!("{n}")));
    }
    let mut refused = call(None, "/");
    (refused.request, refused.status, refused.refusal) = (None, None, Some("plaintext-refused"));
    refused.flag = "NR";
    tally.observe(&refused);
    let all = tally.collect();
    assert_eq!(all.denials.len(), 2);
    let (_, one) = all.denials.iter().find(|(kind, _)| kind.path == "/x").unwrap();
    assert_eq!((one.count, one.status), (20, Some(403)));
    assert_eq!(one.decisions, ["12", "13", "14", "15", "16", "17", "18", "19"]);
    let (kind, _) = all.denials.iter().find(|(kind, _)| kind.method.is_none()).unwrap();
    assert_eq!(kind.reason, "plaintext-refused");
    // A denial is no error.
    assert!(all.edges.values().all(|sums| sums.errors == 0));
    assert_eq!(all.edges.values().map(|sums| sums.denied).sum::<u64>(), 21);
}

#[test]
fn rules_are_counted_by_name_whichever_snapshot_they_are_of() {
    let tally = Tally::default();
    for _ in 0..2 {
        let rule =
            RuleRef { namespace: "shop".into(), policy: "allow".into(), rule: 1, action: Action::Allow };
        let mut entry = denied("spiffe://td/ns/a/sa/b", "/x", "1");
        let decided = entry.decided.as_mut().unwrap();
        (decided.is_allowed, decided.rule) = (true, Some(Arc::new(rule)));
        tally.observe(&entry);
        tally.observe(&entry);
    }
    let all = tally.collect();
    assert_eq!(all.rules[&("shop/allow".into(), Some(1))].matched, 4);
    assert!(all.denials.is_empty());
}

#[test]
fn what_has_no_room_is_counted_as_such() {
    let tally = Tally::default();
    for n in 0..EDGES + 5 {
        tally.observe(&denied(&format!("spiffe://td/ns/a/sa/{n}"), &"p".repeat(5000), "1"));
    }
    let all = tally.collect();
    assert_eq!((all.edges.len(), all.edges_overflow), (EDGES, 5));
    assert_eq!(all.denials.len(), DENIALS);
    assert_eq!(all.denials_overflow, u64::try_from(EDGES + 5 - DENIALS).unwrap());
    assert!(all.denials.keys().all(|kind| kind.path.len() == PATH), "cut");
}
