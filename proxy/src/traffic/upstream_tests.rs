//! Ejections: what counts, how many, how long.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;

const OK: Outcome = Outcome::Answered(200, Duration::from_millis(1));
const INTERNAL: Outcome = Outcome::Answered(500, Duration::from_millis(1));
const UNAVAILABLE: Outcome = Outcome::Answered(503, Duration::from_millis(1));
const TOO_MANY: Outcome = Outcome::Answered(429, Duration::from_millis(1));

fn address(number: u16) -> SocketAddr {
    ([10, 0, 0, 1], number).into()
}

fn traffic(outliers: Outliers) -> Traffic {
    Traffic { outliers: Some(outliers), ..Traffic::default() }
}

/// Which of the outcomes, one after the other, ejects; the number of the first.
fn ejecting(outliers: Outliers, outcomes: &[Outcome]) -> Option<usize> {
    let upstream = Upstream::new("api:80".into(), Telemetry::silent());
    let (state, traffic, now) = (upstream.endpoint(address(1)), traffic(outliers), Instant::now());
    outcomes.iter().position(|outcome| {
        upstream.learn(address(1), &state, *outcome, 3, &traffic, now);
        state.is_ejected(now)
    })
}

#[tokio::test(start_paused = true)]
async fn only_errors_in_a_row_count_and_only_those_that_are_asked_for() {
    let five = |consecutive_5xx| Outliers { consecutive_5xx, ..Outliers::default() };
    let gateway = Outliers { consecutive_5xx: 0, consecutive_gateway: 2, ..Outliers::default() };
    let split =
        Outliers { consecutive_5xx: 2, consecutive_local: 3, splits_local: true, ..Outliers::default() };
    for (outliers, outcomes, expected) in [
        (five(3), &[INTERNAL, UNAVAILABLE, INTERNAL][..], Some(2)),
        (five(3), &[INTERNAL, INTERNAL, OK, INTERNAL, INTERNAL], None),
        (five(3), &[INTERNAL, INTERNAL, TOO_MANY, INTERNAL, INTERNAL], None),
        (five(3), &[Outcome::Failed, INTERNAL, Outcome::Failed], Some(2)),
        (five(0), &[INTERNAL; 20], None),
        (Outliers::default(), &[INTERNAL; 5], Some(4)),
        (gateway, &[INTERNAL, UNAVAILABLE, INTERNAL, UNAVAILABLE, UNAVAILABLE], Some(4)),
        (gateway, &[Outcome::Failed, UNAVAILABLE], Some(1)),
        (split, &[Outcome::Failed, INTERNAL, Outcome::Failed, INTERNAL], Some(3)),
        (split, &[Outcome::Failed, Outcome::Failed, Outcome::Failed], Some(2)),
        (split, &[Outcome::Failed, Outcome::Failed, Outcome::Connected, Outcome::Failed], None),
    ] {
        assert_eq!(ejecting(outliers, outcomes), expected, "{outliers:?} {outcomes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_may_always_go_and_no_more_than_the_percentage() {
    let outliers =
        |max_ejection_percent| Outliers { consecutive_5xx: 1, max_ejection_percent, ..Outliers::default() };
    for (percent, endpoints, gone) in [(10, 3, 1), (50, 4, 2), (50, 5, 2), (100, 4, 4), (0, 4, 0), (10, 1, 1)]
    {
        let upstream = Upstream::new("api:80".into(), Telemetry::silent());
        let (traffic, now) = (traffic(outliers(percent)), Instant::now());
        for number in 0..endpoints {
            let at = address(number);
            upstream.learn(at, &upstream.endpoint(at), INTERNAL, usize::from(endpoints), &traffic, now);
        }
        assert_eq!(upstream.count_ejected(now), gone, "{percent} % of {endpoints}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_ejection_is_longer_and_quiet_intervals_forgive() {
    let outliers = Outliers { consecutive_5xx: 1, ..Outliers::default() };
    let (upstream, traffic) = (Upstream::new("api:80".into(), Telemetry::silent()), traffic(outliers));
    let state = upstream.endpoint(address(1));
    let eject_for = async || {
        let now = Instant::now();
        upstream.learn(address(1), &state, INTERNAL, 3, &traffic, now);
        let time = state.ejected_until.get().unwrap() - now;
        tokio::time::advance(time).await;
        assert!(!state.is_ejected(Instant::now()));
        time.as_secs()
    };
    assert_eq!((eject_for().await, eject_for().await, eject_for().await), (30, 60, 90));
    tokio::time::advance(Duration::from_secs(20)).await;
    assert_eq!(eject_for().await, 60);
    for _ in 0..20 {
        eject_for().await;
    }
    assert_eq!(eject_for().await, 300);
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_are_gone_are_forgotten_and_a_push_resets_nothing_else() {
    let outliers = Outliers { consecutive_5xx: 1, max_ejection_percent: 100, ..Outliers::default() };
    let (upstream, traffic) = (Upstream::new("api:80".into(), Telemetry::silent()), traffic(outliers));
    for number in [1, 2] {
        let state = upstream.endpoint(address(number));
        upstream.learn(address(number), &state, INTERNAL, 2, &traffic, Instant::now());
    }
    let listed = || upstream.telemetry.ejections().list(std::time::SystemTime::now()).len();
    assert_eq!(listed(), 2);
    upstream.retain(&[Endpoint::outside(address(2)), Endpoint::outside(address(3))]);
    assert!(!upstream.endpoint(address(1)).is_ejected(Instant::now()));
    assert!(upstream.endpoint(address(2)).is_ejected(Instant::now()));
    assert_eq!(listed(), 1);
}
