//! Sums are exact, told once, and bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{edges::Edge, *};
use crate::telemetry::entry::{
    Would,
    samples::{call, denied},
};
use postern_config::{RuleRef, documents::authorization_policy::Action};
use std::time::SystemTime;

fn edge(peer: Option<&str>) -> Edge {
    Edge { direction: Direction::Inbound, peer: peer.map(Arc::from), service: None }
}

#[test]
fn more_kinds_than_there_is_room_for_take_no_more_memory() {
    let metrics = RequestMetrics::default();
    for _ in 0..3 {
        for peer in 0..5 * SERIES {
            metrics.observe(&call(Some(&format!("spiffe://td/ns/n/sa/{peer}")), "/"));
        }
    }
    {
        let kinds = metrics.0.kinds.lock();
        let places: usize = kinds.all.values().map(Vec::len).sum();
        assert_eq!((kinds.all.len(), places), (SERIES + 1, SERIES + 1));
        let histograms: usize = kinds.groups.values().map(|group| group.places.len()).sum();
        assert_eq!((kinds.groups.len(), histograms), (SERIES + 1, SERIES + 1));
        let counted = |places: &Vec<Arc<Place>>| places.iter().map(|place| place.count.read()).sum::<u64>();
        assert_eq!(counted(&kinds.all[&None]), (3 * 4 * SERIES) as u64);
        assert_eq!(kinds.all.values().map(counted).sum::<u64>(), (3 * 5 * SERIES) as u64);
    }
    // And each is told, in turn.
    let mut told = (0, 0);
    loop {
        let taken = metrics.take_edges();
        if taken.edges.is_empty() {
            break;
        }
        assert!(taken.edges.len() <= edges::EDGES);
        told.0 += taken.edges.values().map(|sums| sums.calls).sum::<u64>();
        told.1 += taken.overflow;
    }
    assert_eq!(told, ((3 * SERIES) as u64, (3 * 4 * SERIES) as u64));
}

#[test]
fn calls_of_all_threads_are_summed_by_edge_and_told_once() {
    let metrics = RequestMetrics::default();
    let friend = Some("spiffe://td/ns/a/sa/b");
    let round = || {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        metrics.observe(&call(friend, "/"));
                        metrics.observe(&call(None, "/"));
                    }
                    let mut failed = call(None, "/");
                    failed.status = Some(503);
                    metrics.observe(&failed);
                    // A denial is no error.
                    metrics.observe(&denied("spiffe://td/ns/a/sa/c", "/", "1"));
                });
            }
        });
    };
    for _ in 0..2 {
        round();
        let all = metrics.take_edges().edges;
        assert_eq!(all.len(), 3);
        let (known, unknown) = (&all[&edge(friend)], &all[&edge(None)]);
        assert_eq!((known.calls, known.denied, known.errors, known.sent), (30, 0, 0, 150));
        assert_eq!((unknown.calls, unknown.denied, unknown.errors), (33, 0, 3));
        assert_eq!(known.total[histogram::bucket(100)], 30);
        assert_eq!(known.proxy[histogram::bucket(30)], 30);
        let denied = &all[&edge(Some("spiffe://td/ns/a/sa/c"))];
        assert_eq!((denied.calls, denied.denied, denied.errors), (3, 3, 0));
        assert!(metrics.take_edges().edges.is_empty());
    }
}

#[test]
fn a_refused_connection_is_denied_and_no_error() {
    let metrics = RequestMetrics::default();
    let mut refused = call(None, "/");
    (refused.request, refused.status, refused.refusal) = (None, None, Some("plaintext-refused"));
    refused.flag = "NR";
    metrics.observe(&refused);
    let sums = metrics.take_edges().edges.remove(&edge(None)).unwrap();
    assert_eq!((sums.calls, sums.denied, sums.errors, sums.untraced), (1, 1, 0, 0));
}

#[test]
fn rules_are_counted_by_name_whichever_snapshot_they_are_of() {
    let metrics = RequestMetrics::default();
    let decided = |policy: &str, rule| {
        let rule = RuleRef { namespace: "shop".into(), policy: policy.into(), rule, action: Action::Allow };
        let mut entry = denied("spiffe://td/ns/a/sa/b", "/x", "1");
        let decided = entry.decided.as_mut().unwrap();
        (decided.is_allowed, decided.rule) = (true, Some(Arc::new(rule)));
        entry
    };
    let name = ("shop/allow".to_owned(), Some(1));
    for _ in 0..2 {
        // More snapshots than a thread remembers.
        for _ in 0..rules::RULES + 10 {
            let entry = decided("allow", 1);
            metrics.observe(&entry);
            metrics.observe(&entry);
        }
        let taken = metrics.take_rules();
        assert_eq!(taken.rules[&name].matched, 2 * (rules::RULES as u64 + 10));
        assert_eq!((taken.rules.len(), taken.overflow), (1, 0));
        assert!(metrics.take_rules().rules.is_empty());
    }
    let mut differs = decided("allow", 1);
    differs.decided.as_mut().unwrap().would = Some(Box::new(Would {
        is_allowed: false,
        policy: Some("shop/strict".into()),
        rule: None,
        workload: "shop/web".into(),
    }));
    differs.began = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    metrics.observe(&differs);
    let taken = metrics.take_rules();
    let strict = taken.rules[&("shop/strict".to_owned(), None)];
    assert_eq!((strict.matched, strict.would_deny, strict.would_allow), (0, 1, 0));
    assert_eq!((strict.last, taken.rules[&name].last), (differs.began, differs.began));
    for n in 0..rules::RULES + 5 {
        metrics.observe(&decided("other", n));
    }
    let taken = metrics.take_rules();
    assert_eq!((taken.rules.len() as u64) + taken.overflow, rules::RULES as u64 + 5);
    assert!(taken.rules.len() <= rules::RULES && taken.overflow > 0, "{}", taken.overflow);
}
