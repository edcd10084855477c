//! What passed between whom since the last report: the groups of [`super`] without what was reported before.

use super::{BUCKETS, Group, Kinds};
use crate::telemetry::Direction;
use std::{collections::HashMap, sync::Arc};

/// Edges of one report at most. What has no room is told in a later one.
pub const EDGES: usize = 256;

/// Between whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Which journey.
    pub direction: Direction,
    /// Verified SPIFFE ID of the other end.
    pub peer: Option<Arc<str>>,
    /// Host of the destination service.
    pub service: Option<Arc<str>>,
}

/// What passed on an edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Requests, and connections that carried none.
    pub calls: u64,
    /// Denied ones.
    pub denied: u64,
    /// Failed otherwise.
    pub errors: u64,
    /// Bytes from downstream.
    pub received: u64,
    /// Bytes to downstream.
    pub sent: u64,
    /// Requests with a trace: outbound, of which the app has sent one, inbound, with which the app was called.
    pub traced: u64,
    /// Requests without.
    pub untraced: u64,
    /// Durations, by bucket of [`postern_api::histogram`].
    pub total: [u64; BUCKETS],
    /// The proxy's own part, by bucket.
    pub proxy: [u64; BUCKETS],
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            calls: 0,
            denied: 0,
            errors: 0,
            received: 0,
            sent: 0,
            traced: 0,
            untraced: 0,
            total: [0; BUCKETS],
            proxy: [0; BUCKETS],
        }
    }
}

impl Sums {
    fn counters(&mut self) -> [&mut u64; 7] {
        let Self { calls, denied, errors, received, sent, traced, untraced, .. } = self;
        [calls, denied, errors, received, sent, traced, untraced]
    }

    /// Each number of this and the other's.
    fn with(&mut self, other: &mut Self, combine: impl Fn(u64, u64) -> u64) {
        for (ours, theirs) in self.counters().into_iter().zip(other.counters()) {
            *ours = combine(*ours, *theirs);
        }
        for (ours, theirs) in [(&mut self.total, &other.total), (&mut self.proxy, &other.proxy)] {
            for (ours, theirs) in ours.iter_mut().zip(theirs) {
                *ours = combine(*ours, *theirs);
            }
        }
    }
}

/// What a group has told already.
#[derive(Debug, Default)]
pub(super) struct Reported {
    sums: Option<Box<Sums>>,
    collection: u64,
}

/// One collection.
#[derive(Debug, Default)]
pub struct Taken {
    /// By edge.
    pub edges: HashMap<Edge, Sums>,
    /// Calls whose edge nobody knows any more, since there were too many kinds of them.
    pub overflow: u64,
}

pub(super) fn take(kinds: &mut Kinds) -> Taken {
    let mut now: HashMap<Option<Group>, Sums> = HashMap::new();
    for (key, places) in &kinds.all {
        let sums = now.entry(key.as_ref().map(Group::of)).or_default();
        for place in places {
            let (calls, denied) = (place.count.read(), place.denied.read());
            sums.calls += calls;
            sums.denied += denied;
            if key.as_ref().is_some_and(super::Key::is_failure) {
                sums.errors += calls.saturating_sub(denied);
            }
            sums.received = sums.received.wrapping_add(place.received.read());
            sums.sent = sums.sent.wrapping_add(place.sent.read());
        }
    }
    kinds.collections += 1;
    let collection = kinds.collections;
    let mut changed = Vec::new();
    for (group, places) in &mut kinds.groups {
        let Some(mut sums) = now.remove(group) else { continue };
        for place in &places.places {
            sums.traced += place.traced.read();
            sums.untraced += place.untraced.read();
            for (counts, tallies) in
                [(&mut sums.total, &place.durations), (&mut sums.proxy, &place.proxy_times)]
            {
                counts.iter_mut().zip(tallies).for_each(|(count, tally)| *count += tally.read());
            }
        }
        if places.reported.sums.as_ref().map_or(0, |reported| reported.calls) != sums.calls {
            changed.push((group, &mut places.reported, sums));
        }
    }
    // Those that have waited longest come first.
    changed.sort_by_key(|(_, reported, _)| reported.collection);
    let mut taken = Taken::default();
    for (group, reported, mut sums) in changed {
        let edge = group.as_ref().map(|group| Edge {
            direction: group.direction(),
            peer: group.peer.clone(),
            service: group.service.clone(),
        });
        if edge.as_ref().is_some_and(|edge| taken.edges.len() >= EDGES && !taken.edges.contains_key(edge)) {
            continue;
        }
        let total = sums.clone();
        if let Some(before) = &mut reported.sums {
            // Numbers are read one after the other while calls are counted, so one may be behind.
            sums.with(before, u64::saturating_sub);
        }
        *reported = Reported { sums: Some(Box::new(total)), collection };
        match edge {
            Some(edge) => taken.edges.entry(edge).or_default().with(&mut sums, u64::saturating_add),
            None => taken.overflow += sums.calls,
        }
    }
    taken
}
