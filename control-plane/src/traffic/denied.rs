//! Denials of one kind, and how often they came.

use super::intake::{Edge, Facts};
use std::{collections::VecDeque, time::SystemTime};

/// Ids that are kept of one kind, the newest.
const DECISIONS: usize = 16;
/// Steps of ten seconds in an hour.
pub(super) const STEPS: u64 = 360;

/// What denials that are told together have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Kind {
    pub edge: Edge,
    pub method: Option<String>,
    pub path: Option<String>,
    pub port: u16,
    pub reason: String,
    pub policy: Option<String>,
    pub rule: Option<u32>,
}

/// As one report tells them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub count: u64,
    pub first: SystemTime,
    pub last: SystemTime,
    pub status: Option<u16>,
    pub closest: Option<String>,
    pub policy_version: String,
    pub decisions: Vec<String>,
    pub facts: Option<Facts>,
}

/// As they are kept: with how many came in which step.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub latest: Denied,
    counts: VecDeque<(u64, u64)>,
}

impl Kept {
    pub(super) fn new(step: u64, denied: Denied) -> Self {
        Self { counts: VecDeque::from([(step, denied.count)]), latest: denied }
    }

    pub(super) fn absorb(&mut self, step: u64, denied: Denied) {
        match self.counts.back_mut().filter(|(known, _)| *known >= step) {
            Some((_, count)) => *count = count.saturating_add(denied.count),
            None => self.counts.push_back((step, denied.count)),
        }
        while self.counts.front().is_some_and(|(known, _)| known + STEPS < step) {
            self.counts.pop_front();
        }
        let mut decisions = std::mem::take(&mut self.latest.decisions);
        decisions.extend(denied.decisions.iter().cloned());
        decisions.drain(..decisions.len().saturating_sub(DECISIONS));
        let first = self.latest.first.min(denied.first);
        // The sidecar may have forgotten what policy saw; we have not.
        let facts = denied.facts.clone().or_else(|| self.latest.facts.take());
        self.latest = Denied { decisions, first, facts, ..denied };
    }

    /// How many came in this step or later.
    pub(super) fn since(&self, step: u64) -> u64 {
        let later = self.counts.iter().filter(|(known, _)| *known >= step);
        later.fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }
}

/// A denial that somebody asks for by its id.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub namespace: String,
    pub pod: String,
    pub identity: String,
    pub kind: Kind,
    pub denied: Denied,
}
