//! The buckets in which durations are counted, everywhere in the mesh: seven in each power of ten of microseconds, so that a
//! quantile is told at most half too high. The usual bounds of others (Istio's, OpenTelemetry's, 1 - 2.5 - 5) are among their
//! ends, so what is counted here is told exactly in those too.

/// How many buckets there are; the last one has no upper bound.
pub const BUCKETS: usize = 51;

const MANTISSAS: [u64; 7] = [10, 15, 20, 25, 35, 50, 75];

/// Microseconds: the ends of all buckets but the last, from 10 µs to 100 s.
pub const BOUNDS: [u64; BUCKETS - 1] = bounds();

/// By the highest bit of a number: the first bucket that any number with that bit can be in.
const FIRST: [usize; 64] = first();

// Worked out by the compiler, which refuses a place that is not there.
#[allow(clippy::indexing_slicing)]
const fn bounds() -> [u64; BUCKETS - 1] {
    let mut bounds = [0; BUCKETS - 1];
    let (mut at, mut power) = (0, 1);
    while at < bounds.len() {
        bounds[at] = MANTISSAS[at % MANTISSAS.len()] * power;
        at += 1;
        if at % MANTISSAS.len() == 0 {
            power *= 10;
        }
    }
    bounds
}

#[allow(clippy::indexing_slicing)]
const fn first() -> [usize; 64] {
    let mut first = [0; 64];
    let (mut bit, mut at) = (0, 0);
    while bit < 64 {
        while at < BOUNDS.len() && BOUNDS[at] < 1 << bit {
            at += 1;
        }
        first[bit] = at;
        bit += 1;
    }
    first
}

/// The bucket of a duration in microseconds.
pub fn bucket(micros: u64) -> usize {
    let highest = micros.checked_ilog2().unwrap_or(0) as usize;
    let mut at = FIRST.get(highest).copied().unwrap_or(BUCKETS - 1);
    while BOUNDS.get(at).is_some_and(|bound| *bound < micros) {
        at += 1;
    }
    at
}

/// The longest duration of a bucket, in microseconds. Of the last one its beginning.
pub fn upper(bucket: usize) -> u64 {
    BOUNDS.get(bucket).copied().unwrap_or(BOUNDS[BUCKETS - 2])
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
        let edges = BOUNDS.iter().flat_map(|bound| [bound - 1, *bound, bound + 1]);
        for micros in (0..5000).chain(edges) {
            let at = bucket(micros);
            assert!(micros <= upper(at) || at == BUCKETS - 1, "{micros} in {at}");
            assert!(at == 0 || micros > BOUNDS[at - 1], "{micros} in {at}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(upper(usize::MAX), 100_000_000);
    }

    #[test]
    fn each_bucket_ends_at_most_half_above_the_one_before() {
        assert!(BOUNDS.windows(2).all(|pair| pair[1] > pair[0] && pair[1] * 2 <= pair[0] * 3), "{BOUNDS:?}");
        assert_eq!((BOUNDS[0], BOUNDS[BUCKETS - 2]), (10, 100_000_000));
    }

    #[test]
    fn a_quantile_is_the_end_of_the_bucket_that_reaches_it() {
        let mut counts = [0; BUCKETS];
        assert_eq!(quantile(&counts, 0.5), None);
        counts[bucket(100)] = 98;
        counts[bucket(5000)] = 2;
        assert_eq!(quantile(&counts, 0.5), Some(100));
        assert_eq!(quantile(&counts, 0.98), Some(100));
        assert_eq!(quantile(&counts, 0.99), Some(5000));
        assert_eq!(quantile(&counts, 1.0), Some(5000));
    }
}
