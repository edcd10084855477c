//! An hour and no more, and nobody takes the room of others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::traffic::intake::tests::{denial_of, edge_of, now};

const MINUTE: Duration = Duration::from_secs(60);
const PEER: &str = "spiffe://cluster.local/ns/a/sa/b";

fn calls(count: u64) -> v1::Report {
    v1::Report { edges: vec![edge_of(PEER, count)], ..Default::default() }
}

fn take(traffic: &Traffic, pod: &str, report: v1::Report, at: SystemTime) {
    traffic.take("shop", pod, &format!("spiffe://cluster.local/ns/shop/sa/{pod}"), report, at);
}

#[test]
fn counts_are_those_of_the_time_that_is_asked_for_and_an_hour_is_kept() {
    let traffic = Traffic::new(now() - MINUTE);
    for minutes in [0, 5, 30] {
        take(&traffic, "cart", calls(1 + u64::from(minutes)), now() + MINUTE * minutes);
    }
    take(&traffic, "cart", calls(100), now() + MINUTE * 30);
    let sum = |since: u32, at: u32| {
        let page = traffic.flows(MINUTE * since, now() + MINUTE * at);
        page.flows.iter().map(|flow| flow.calls).sum::<u64>()
    };
    assert_eq!(sum(1, 30), 131);
    assert_eq!(sum(26, 30), 137);
    assert_eq!(sum(60, 30), 138);
    assert_eq!(sum(60, 62), 137, "the first is an hour old");
    assert_eq!(traffic.flows(MINUTE * 10, now()).observed_seconds, 60, "it has run for a minute");
    assert_eq!(sum(60, 200), 0);
    assert!(traffic.table.lock().workloads.is_empty());
}

#[test]
fn a_workload_that_is_called_with_traces_and_calls_without_is_named() {
    let traffic = Traffic::new(now());
    let report = |received: u64, traced: u64, untraced: u64| {
        let inbound = v1::Edge { traced: received, ..edge_of(PEER, 100) };
        let outbound = v1::Edge {
            direction: v1::Direction::Outbound.into(),
            traced,
            untraced,
            ..edge_of("spiffe://cluster.local/ns/a/sa/c", 200)
        };
        v1::Report { edges: vec![inbound, outbound], ..Default::default() }
    };
    for (pod, received, traced, untraced) in [
        ("forwards", 100, 99, 0),
        ("loses", 100, 0, 99),
        ("loses-some", 100, 90, 10),
        ("has-a-timer", 100, 91, 9),
        ("begins-traces-itself", 0, 0, 99),
    ] {
        take(&traffic, pod, report(received, traced, untraced), now());
    }
    let page = traffic.flows(HOUR, now());
    let named: Vec<_> =
        page.lost_traces.iter().map(|one| (one.workload.as_str(), one.sent, one.untraced)).collect();
    assert_eq!(named, [("shop/loses", 99, 99), ("shop/loses-some", 100, 10)]);
}

#[test]
fn a_workload_that_reports_without_end_fills_its_own_room_only() {
    let traffic = Traffic::new(now());
    take(&traffic, "honest", calls(7), now());
    for step in 0..80 {
        let at = now() + Duration::from_secs(STEP * step);
        for n in 0..20 {
            let edges = (0..256).map(|m| edge_of(&format!("{PEER}{step}-{n}-{m}"), 1)).collect();
            let denials = (0..64).map(|m| denial_of(&format!("/{step}/{n}/{m}"), "1")).collect();
            let rule = v1::RuleUse { policy: format!("a/{step}-{n}"), matched: 1, ..Default::default() };
            take(
                &traffic,
                "liar",
                v1::Report { edges, denials, rules: vec![rule], ..Default::default() },
                at,
            );
        }
    }
    let end = now() + Duration::from_secs(STEP * 80);
    {
        let table = traffic.table.lock();
        let liar = &table.workloads[&("shop".to_owned(), "liar".to_owned())];
        let held: usize = liar.steps.iter().map(|(_, edges)| edges.len()).sum();
        assert_eq!(liar.sums, held);
        assert!(held <= SUMS_OF_ONE && held > SUMS_OF_ONE - EDGES, "{held}");
        assert_eq!((liar.denials.len(), liar.rules.len()), (KINDS_OF_ONE, RULES_OF_ONE));
        assert_eq!(table.lost.dropped, 80 * 4, "16 reports are taken in a step");
        assert!(table.lost.overflow >= 80 * 15 * 256);
    }
    let page = traffic.flows(HOUR, end);
    let honest: Vec<_> = page.flows.iter().filter(|flow| flow.workload == "shop/honest").collect();
    assert_eq!((honest.len(), honest[0].calls, honest[0].mutual_tls), (1, 7, 7));
}

#[test]
fn when_all_is_full_those_who_have_most_lose_their_oldest_denials() {
    let traffic = Traffic::new(now());
    let one = v1::Report { denials: vec![denial_of("/honest", "ab")], ..Default::default() };
    take(&traffic, "honest", one, now());
    for liar in 0..20 {
        for half in 0..2 {
            let denials = (0..64).map(|n| denial_of(&format!("/{half}/{n}"), "cd")).collect();
            take(&traffic, &format!("liar{liar}"), v1::Report { denials, ..Default::default() }, now());
        }
    }
    let page = traffic.denials(HOUR, now());
    assert_eq!(page.denials.len(), KINDS);
    assert!(page.denials.iter().any(|denial| denial.workload == "shop/honest"));
    assert_eq!(traffic.find("ab").unwrap().pod, "honest");
    assert!(traffic.find("ef").is_none());
}

#[test]
fn denials_of_one_kind_are_one_row_with_the_count_of_the_time_that_is_asked_for() {
    let traffic = Traffic::new(now());
    for minutes in [0, 20] {
        let at = now() + MINUTE * minutes;
        let denial =
            v1::Denial { count: 3, last_unix_millis: i64::MAX, ..denial_of("/x", &format!("{minutes:02}")) };
        take(&traffic, "cart", v1::Report { denials: vec![denial], ..Default::default() }, at);
    }
    let at = now() + MINUTE * 20;
    let count = |since: Duration| traffic.denials(since, at).denials[0].count;
    assert_eq!((count(MINUTE), count(HOUR)), (3, 6));
    assert_eq!(traffic.denials(HOUR, at).denials[0].decisions, ["00", "20"]);
}
