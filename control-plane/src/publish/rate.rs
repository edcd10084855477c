//! A limit of events per key: token buckets in a table of bounded size. Time is given by the caller.

use parking_lot::Mutex;
use std::{collections::HashMap, hash::Hash, time::Instant};

/// More keys than this share one bucket, so that nobody can fill our memory with made-up ones.
const MAX_KEYS: usize = 10_000;

/// Token buckets by key.
pub(crate) struct Rate<K> {
    burst: f64,
    per_second: f64,
    buckets: Mutex<Buckets<K>>,
}

struct Buckets<K> {
    by_key: HashMap<K, Bucket>,
    everyone_else: Option<Bucket>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl<K: Hash + Eq> Rate<K> {
    /// At most `burst` events at once and `per_second` in the long run, for each key.
    pub(crate) fn new(burst: u32, per_second: u32) -> Self {
        let buckets = Buckets { by_key: HashMap::new(), everyone_else: None };
        Self { burst: f64::from(burst), per_second: f64::from(per_second), buckets: Mutex::new(buckets) }
    }

    /// Whether one more event of `key` is within the limit; if so it is counted.
    pub(crate) fn admit(&self, key: K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        if buckets.by_key.len() >= MAX_KEYS && !buckets.by_key.contains_key(&key) {
            // A full bucket says nothing that a new one would not say.
            buckets.by_key.retain(|_, bucket| self.level(*bucket, now) < self.burst);
        }
        let fresh = Bucket { tokens: self.burst, at: now };
        let bucket = if buckets.by_key.len() < MAX_KEYS || buckets.by_key.contains_key(&key) {
            buckets.by_key.entry(key).or_insert(fresh)
        } else {
            buckets.everyone_else.get_or_insert(fresh)
        };
        let level = self.level(*bucket, now);
        let admitted = level >= 1.0;
        *bucket = Bucket { tokens: if admitted { level - 1.0 } else { level }, at: now };
        admitted
    }

    fn level(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(bucket.at).as_secs_f64();
        (bucket.tokens + passed * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_the_rate_holds_for_each_key_alone() {
        let rate = Rate::new(2, 1);
        let start = Instant::now();
        assert!(rate.admit("a", start) && rate.admit("a", start));
        assert!(!rate.admit("a", start));
        assert!(rate.admit("b", start), "another key has its own bucket");
        assert!(rate.admit("a", start + Duration::from_secs(1)));
        assert!(!rate.admit("a", start + Duration::from_secs(1)));
    }

    #[test]
    fn made_up_keys_share_a_bucket_when_the_table_is_full() {
        let rate = Rate::new(2, 1);
        let start = Instant::now();
        for key in 0..MAX_KEYS {
            assert!(rate.admit(key, start));
        }
        let admitted = (MAX_KEYS..MAX_KEYS + 100).filter(|key| rate.admit(*key, start)).count();
        assert_eq!(admitted, 2);
        assert!(rate.admit(0, start), "who was known keeps its own bucket");
        assert!(rate.admit(usize::MAX, start + Duration::from_secs(60)), "full buckets are forgotten");
    }
}
