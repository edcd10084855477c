//! The buckets of durations in reports: two for each power of two of microseconds, so that a quantile is told at most half too high.

/// How many buckets there are; the last one has no upper bound.
pub const BUCKETS: usize = 54;

/// The bucket of a duration in microseconds.
pub fn bucket(micros: u64) -> usize {
    let Some(power) = micros.checked_ilog2().filter(|power| *power > 0) else {
        return usize::from(micros > 0);
    };
    let half = (micros >> (power - 1)) & 1;
    (2 * power as usize + half as usize).min(BUCKETS - 1)
}

/// The longest duration of a bucket, in microseconds. Of the last one its beginning.
pub fn upper(bucket: usize) -> u64 {
    let bucket = bucket.min(BUCKETS - 1);
    if bucket < 2 {
        return bucket as u64;
    }
    let power = 1u64 << (bucket / 2);
    match bucket {
        last if last == BUCKETS - 1 => power + power / 2,
        even if even % 2 == 0 => power + power / 2 - 1,
        _ => 2 * power - 1,
    }
}

/// The duration, in microseconds, that this share (0 to 1) of the counted calls did not exceed, rounded up to its bucket's
/// end; `None` when nothing was counted.
pub fn quantile(counts: &[u64], share: f64) -> Option<u64> {
    let total: u64 = counts.iter().fold(0, |sum, count| sum.saturating_add(*count));
    if total == 0 {
        return None;
    }
    let wanted = ((total as f64 * share.clamp(0.0, 1.0)).ceil() as u64).max(1);
    let mut seen = 0u64;
    let at = counts.iter().position(|count| {
        seen = seen.saturating_add(*count);
        seen >= wanted
    });
    at.map(upper)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_within_its_bucket_and_buckets_follow_each_other() {
        for micros in (0..5000).chain([1 << 20, (1 << 20) + (1 << 19), (1 << 26) - 1]) {
            let at = bucket(micros);
            assert!(micros <= upper(at), "{micros} in {at}");
            assert!(at == 0 || micros > upper(at - 1), "{micros} in {at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(usize::MAX), upper(BUCKETS - 1));
    }

    #[test]
    fn a_quantile_is_the_end_of_the_bucket_that_reaches_it() {
        let mut counts = [0; BUCKETS];
        assert_eq!(quantile(&counts, 0.5), None);
        counts[bucket(100)] = 98;
        counts[bucket(5000)] = 2;
        assert_eq!(quantile(&counts, 0.5), Some(upper(bucket(100))));
        assert_eq!(quantile(&counts, 0.98), Some(upper(bucket(100))));
        assert_eq!(quantile(&counts, 0.99), Some(upper(bucket(5000))));
        assert_eq!(quantile(&counts, 1.0), Some(upper(bucket(5000))));
    }
}
