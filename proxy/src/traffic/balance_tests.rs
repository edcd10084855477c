//! Which endpoint is picked, with draws instead of chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{super::upstream::Outcome, *};
use crate::telemetry::Telemetry;
use postern_config::documents::destination_rule::Outliers;
use std::time::Duration;

fn endpoints(count: u16) -> Vec<Endpoint> {
    (1..=count).map(|port| Endpoint::outside(([10, 0, 0, 1], port).into())).collect()
}

fn upstream() -> Upstream {
    Upstream::new("api:80".into(), Telemetry::silent())
}

/// The port of the endpoint that is picked when chance draws these numbers.
fn picked(
    upstream: &Upstream,
    all: &[Endpoint],
    tried: &[SocketAddr],
    traffic: &Traffic,
    draws: &[usize],
) -> Option<u16> {
    let mut draws = draws.iter().copied().cycle();
    let random = |n: usize| draws.next().unwrap() % n;
    pick(upstream, all, tried, traffic, Instant::now(), random).map(|(endpoint, _)| endpoint.port)
}

#[tokio::test(start_paused = true)]
async fn the_less_loaded_of_two_different_ones_wins() {
    let (upstream, all, traffic) = (upstream(), endpoints(4), Traffic::default());
    // Port n has n requests under way.
    let _load: Vec<_> = all
        .iter()
        .flat_map(|endpoint| (0..endpoint.port).map(|_| upstream.endpoint(endpoint.dial).enter()))
        .collect();
    for first in 0..4 {
        for second in 0..3 {
            let other = (first + 1 + second) % 4;
            assert_ne!(first, other);
            let port = picked(&upstream, &all, &[], &traffic, &[first, second]).unwrap();
            assert_eq!(usize::from(port), first.min(other) + 1);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn latency_counts_and_fades_and_a_failure_counts_as_slow() {
    let (upstream, all, traffic) = (upstream(), endpoints(2), Traffic::default());
    let learn = |number: usize, outcome| {
        let address = all[number].dial;
        upstream.learn(address, &upstream.endpoint(address), outcome, 2, &traffic, Instant::now());
    };
    let answered = |millis| Outcome::Answered(200, Duration::from_millis(millis));
    let pick = || picked(&upstream, &all, &[], &traffic, &[0, 0]).unwrap();
    learn(0, answered(100));
    learn(1, answered(10));
    assert_eq!(pick(), 2);
    // Ten times as slow is worth ten times as much under way.
    let _load: Vec<_> = (0..10).map(|_| upstream.endpoint(all[1].dial).enter()).collect();
    assert_eq!(pick(), 1);
    drop(_load);
    learn(1, Outcome::Failed);
    assert_eq!(pick(), 1);
    tokio::time::advance(Duration::from_secs(60)).await;
    learn(0, answered(100));
    assert_eq!(pick(), 2, "what failed a minute ago is tried again");
}

#[tokio::test(start_paused = true)]
async fn what_was_tried_is_not_tried_again_and_all_are_looked_at_before_giving_up() {
    let (upstream, all, traffic) = (upstream(), endpoints(5), Traffic::default());
    let tried: Vec<SocketAddr> = all[..4].iter().map(|endpoint| endpoint.dial).collect();
    assert_eq!(picked(&upstream, &all, &tried, &traffic, &[0, 0, 0]), Some(5));
    let tried: Vec<SocketAddr> = all.iter().map(|endpoint| endpoint.dial).collect();
    assert_eq!(picked(&upstream, &all, &tried, &traffic, &[0, 0, 0]), None);
    assert_eq!(picked(&upstream, &[], &[], &traffic, &[0]), None);
}

#[tokio::test(start_paused = true)]
async fn whoever_is_ejected_is_left_out_until_its_time_is_over() {
    let (upstream, all) = (upstream(), endpoints(3));
    let outliers = Outliers { consecutive_5xx: 2, max_ejection_percent: 100, ..Outliers::default() };
    let mut traffic = Traffic { outliers: Some(outliers), ..Traffic::default() };
    let fail = |number: usize, traffic: &Traffic| {
        let address = all[number].dial;
        let outcome = Outcome::Answered(500, Duration::from_millis(1));
        for _ in 0..2 {
            upstream.learn(address, &upstream.endpoint(address), outcome, 3, traffic, Instant::now());
        }
    };
    let ports = |traffic: &Traffic| {
        let mut ports: Vec<u16> = (0..9)
            .filter_map(|draw| picked(&upstream, &all, &[], traffic, &[draw % 3, draw / 3, draw]))
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    };
    fail(0, &traffic);
    assert_eq!(ports(&traffic), [2, 3]);
    fail(1, &traffic);
    assert_eq!(ports(&traffic), [3]);
    // Less than half is healthy: better a bad endpoint than an overload of the good one.
    traffic.outliers = Some(Outliers { min_health_percent: 50, ..outliers });
    assert!(ports(&traffic).len() > 1);
    traffic.outliers = Some(outliers);
    fail(2, &traffic);
    assert!(ports(&traffic).is_empty());
    tokio::time::advance(Duration::from_secs(30)).await;
    assert_eq!(ports(&traffic), [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn an_idle_mesh_is_used_evenly_whatever_the_balance() {
    let all = endpoints(3);
    for balance in [Balance::LeastRequest, Balance::Random, Balance::RoundRobin] {
        let (upstream, traffic) = (upstream(), Traffic { balance, ..Traffic::default() });
        let mut seen = [0_usize; 3];
        for _ in 0..3000 {
            let (endpoint, _) = pick(&upstream, &all, &[], &traffic, Instant::now(), random).unwrap();
            seen[usize::from(endpoint.port) - 1] += 1;
        }
        assert!(seen.iter().all(|count| *count > 700), "{balance:?} {seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_cost_of_a_pick_does_not_grow_with_the_endpoints() {
    for count in [10, 100, 1000, 10_000] {
        let (upstream, all, traffic) = (upstream(), endpoints(count), Traffic::default());
        let mut draws = 0;
        let random = |n: usize| {
            draws += 1;
            n / 2
        };
        pick(&upstream, &all, &[], &traffic, Instant::now(), random).unwrap();
        // Whoever is looked at is remembered.
        assert_eq!((draws, upstream.known()), (2, 2), "{count} endpoints");
    }
}
