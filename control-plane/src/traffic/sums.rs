//! Sums of one edge in one step of time. Histograms keep only buckets that are not empty.

/// Counts by bucket of `postern_api::histogram`, in the order of buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts(Vec<(u8, u32)>);

impl Counts {
    /// Takes buckets as reports have them, until `calls` are counted: nothing takes more than one bucket.
    pub(super) fn read(counts: &[u32], calls: u64) -> Self {
        let mut left = u32::try_from(calls).unwrap_or(u32::MAX);
        let mut kept = Vec::new();
        for (bucket, count) in (0u8..).zip(counts.iter().take(postern_api::histogram::BUCKETS)) {
            let count = (*count).min(left);
            left -= count;
            if count > 0 {
                kept.push((bucket, count));
            }
        }
        Self(kept)
    }

    fn absorb(&mut self, other: &Self) {
        for (bucket, count) in &other.0 {
            match self.0.binary_search_by_key(bucket, |(known, _)| *known) {
                Ok(at) => {
                    if let Some((_, sum)) = self.0.get_mut(at) {
                        *sum = sum.saturating_add(*count);
                    }
                }
                Err(at) => self.0.insert(at, (*bucket, *count)),
            }
        }
    }

    /// The duration in microseconds that this share of calls did not exceed.
    pub(crate) fn quantile(&self, share: f64) -> Option<u64> {
        let mut dense = [0u64; postern_api::histogram::BUCKETS];
        for (bucket, count) in &self.0 {
            if let Some(sum) = dense.get_mut(usize::from(*bucket)) {
                *sum = u64::from(*count);
            }
        }
        postern_api::histogram::quantile(&dense, share)
    }
}

/// What passed. Never more denied, failed, proven or traced than there were calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    pub calls: u64,
    pub mutual_tls: u64,
    pub denied: u64,
    pub errors: u64,
    pub received: u64,
    pub sent: u64,
    pub traced: u64,
    pub untraced: u64,
    pub total: Counts,
    pub proxy: Counts,
}

impl Sums {
    pub(crate) fn absorb(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.calls, other.calls),
            (&mut self.mutual_tls, other.mutual_tls),
            (&mut self.denied, other.denied),
            (&mut self.errors, other.errors),
            (&mut self.received, other.received),
            (&mut self.sent, other.sent),
            (&mut self.traced, other.traced),
            (&mut self.untraced, other.untraced),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.total.absorb(&other.total);
        self.proxy.absorb(&other.proxy);
    }
}
