//! How long to wait after a failure: exponential, capped, with full jitter, so that a fleet does not knock in step.

use std::time::Duration;

/// Counts failures in a row and turns them into pauses.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    most: Duration,
    failures: u32,
}

impl Backoff {
    /// Pauses grow from `first` to `most`.
    pub fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0 }
    }

    /// All is well again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after one more failure. `random` is in 0.0..1.0.
    pub fn next(&mut self, random: f64) -> Duration {
        let pause = pause(self.failures, self.first, self.most, random);
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

/// Full jitter between a tenth and the whole of `first * 2^failures`, capped at `most`.
pub fn pause(failures: u32, first: Duration, most: Duration, random: f64) -> Duration {
    let whole = first.saturating_mul(1u32 << failures.min(20)).min(most);
    whole.mul_f64(0.1 + 0.9 * random.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn pauses_grow_to_the_cap_and_start_again_after_success() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(15));
        let mut backoff = Backoff::new(first, most);
        assert_eq!(backoff.next(1.0), first);
        assert_eq!(backoff.next(1.0), first * 2);
        assert_eq!(backoff.next(0.0), first * 4 / 10);
        for _ in 0..100 {
            assert!(backoff.next(1.0) <= most);
        }
        assert_eq!(backoff.next(1.0), most);
        backoff.reset();
        assert_eq!(backoff.next(1.0), first);
    }
}
