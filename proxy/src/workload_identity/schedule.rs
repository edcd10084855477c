//! When to ask again: pure, so that it can be tested without a clock.

use crate::control::backoff;
use std::time::{Duration, SystemTime};

const EARLIEST: f64 = 0.45;
const LATEST: f64 = 0.65;
/// No sooner than this, whatever the certificate says.
const SHORTEST: Duration = Duration::from_millis(200);
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(300);
const TAINT_SPREAD: Duration = Duration::from_secs(2);
/// While there is no certificate nothing works, so the wait stays short.
const LONGEST_WITHOUT: Duration = Duration::from_secs(15);

/// The moment to renew a certificate: drawn once, uniform in 45-65 % of the life it has left when we get it (a leaf is
/// backdated against clock skew, so its nominal beginning says little). `random` is in 0.0..1.0.
pub fn renewal_moment(
    now: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
    random: f64,
) -> SystemTime {
    let begin = now.max(not_before);
    let life = not_after.duration_since(begin).unwrap_or_default();
    begin + life.mul_f64(EARLIEST + (LATEST - EARLIEST) * random.clamp(0.0, 1.0)).max(SHORTEST)
}

/// The pause before a certificate below a tainted authority is replaced: uniform in 0-2 s, or in the longer `spread` that the
/// control plane asks of a large fleet, so that it is not asked by all at once; at most a tenth of the life left, whatever it
/// asks. `random` is in 0.0..1.0.
pub fn taint_pause(spread: Duration, remaining: Duration, random: f64) -> Duration {
    TAINT_SPREAD.max(spread).min(remaining / 10).mul_f64(random.clamp(0.0, 1.0))
}

/// The pause after a failed attempt: full jitter, capped at five minutes and at a tenth of the life left.
/// `remaining` is `None` while there is no certificate; one that is over is none.
pub fn retry_pause(failures: u32, remaining: Option<Duration>, random: f64) -> Duration {
    let most = match remaining {
        Some(remaining) if !remaining.is_zero() => LONGEST_RETRY.min(remaining / 10).max(SHORTEST),
        _ => LONGEST_WITHOUT,
    };
    backoff::pause(failures, FIRST_RETRY, most, random)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn after(now: SystemTime, moment: SystemTime) -> f64 {
        moment.duration_since(now).unwrap().as_secs_f64()
    }

    #[test]
    fn renewal_lies_between_45_and_65_percent_of_the_life_left() {
        for (life, backdated) in [(3600, 300), (3600, 0), (60, 300), (10, 300), (600, 599)] {
            let now = at(100_000);
            let (not_before, not_after) = (at(100_000 - backdated), at(100_000 + life));
            for step in 0..=1000 {
                let moment = renewal_moment(now, not_before, not_after, f64::from(step) / 1000.0);
                let share = after(now, moment) / life as f64;
                assert!((0.449..=0.651).contains(&share), "{share}");
            }
        }
    }

    #[test]
    fn draws_are_spread_evenly_so_that_a_fleet_does_not_renew_at_once() {
        let now = at(100_000);
        let mut tenths = [0usize; 10];
        for _ in 0..10_000 {
            let moment = renewal_moment(now, now, at(103_600), rand::random());
            let share = (after(now, moment) / 3600.0 - EARLIEST) / (LATEST - EARLIEST);
            tenths[((share * 10.0) as usize).min(9)] += 1;
        }
        // Six standard deviations around 1000.
        assert!(tenths.iter().all(|count| (820..1180).contains(count)), "{tenths:?}");
    }

    #[test]
    fn strange_certificates_give_a_moment_and_not_a_loop() {
        let now = at(100_000);
        // Already over.
        assert_eq!(renewal_moment(now, at(1), at(2), 0.5), now + SHORTEST);
        // Not yet valid: counted from its beginning.
        let moment = renewal_moment(now, at(100_100), at(100_200), 0.0);
        assert_eq!(after(now, moment), 145.0);
        for random in [-1.0, 2.0] {
            let moment = renewal_moment(now, now, at(103_600), random);
            assert!((1619.0..2341.0).contains(&after(now, moment)));
        }
    }

    #[test]
    fn tainted_certificates_go_within_two_seconds_and_a_tenth_of_the_life_left() {
        for random in [-1.0, 0.0, 0.5, 1.0, 2.0] {
            assert!(taint_pause(Duration::ZERO, Duration::from_secs(3600), random) <= Duration::from_secs(2));
            assert!(
                taint_pause(Duration::ZERO, Duration::from_secs(5), random) <= Duration::from_millis(500)
            );
        }
        assert_eq!(taint_pause(Duration::ZERO, Duration::from_secs(3600), 0.5), Duration::from_secs(1));
    }

    #[test]
    fn a_large_fleet_spreads_as_it_is_told_but_never_past_a_tenth_of_the_life_left() {
        let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
        assert_eq!(taint_pause(Duration::from_secs(40), hour, 0.5), Duration::from_secs(20));
        assert_eq!(taint_pause(Duration::from_secs(1), hour, 1.0), Duration::from_secs(2));
        assert_eq!(taint_pause(Duration::from_secs(u32::MAX.into()), minute, 1.0), Duration::from_secs(6));
    }

    #[test]
    fn retries_never_wait_longer_than_a_tenth_of_the_life_left_or_five_minutes() {
        for failures in 0..40 {
            for random in [0.0, 0.5, 1.0] {
                for (remaining, most) in [(36_000, 300), (600, 60), (10, 1)] {
                    let pause = retry_pause(failures, Some(Duration::from_secs(remaining)), random);
                    assert!(pause <= Duration::from_secs(most) && !pause.is_zero(), "{pause:?}");
                }
                assert!(retry_pause(failures, None, random) <= LONGEST_WITHOUT);
            }
        }
        // After the end of a root a whole fleet is without: it must not knock five times a second.
        assert_eq!(retry_pause(30, Some(Duration::ZERO), 1.0), LONGEST_WITHOUT);
        assert!(retry_pause(30, Some(Duration::from_millis(1)), 0.0) >= SHORTEST / 10);
    }
}
