//! How often each rule decided, and what dry-run policies would have changed.

use super::Tally;
use crate::telemetry::entry::{Decided, Would};
use parking_lot::Mutex;
use postern_config::RuleRef;
use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Rules that are told apart at most.
pub const RULES: usize = 256;

/// `namespace/name` of a policy and the rule; `None`: its default.
pub type RuleName = (String, Option<usize>);

/// What a rule did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// It decided so often.
    pub matched: u64,
    /// Last; to the millisecond.
    pub last: SystemTime,
    /// As a dry run: so often it would have denied what was allowed.
    pub would_deny: u64,
    /// And allowed what was denied.
    pub would_allow: u64,
}

/// One collection.
#[derive(Debug, Default)]
pub struct Taken {
    /// By rule.
    pub rules: HashMap<RuleName, Used>,
    /// Matches of rules that had no room.
    pub overflow: u64,
}

/// What one thread has counted of one rule.
#[derive(Debug, Default)]
struct Place {
    matched: Tally,
    last_millis: Tally,
}

/// The places of one thread, by the rule's own place in memory, which is the snapshot's.
#[derive(Default)]
pub(super) struct Mine {
    places: Vec<(Arc<RuleRef>, Arc<Place>)>,
    recent: usize,
}

/// Rules by name. `None` is what came after the bound.
#[derive(Debug, Default)]
pub(super) struct Rules(Mutex<HashMap<Option<RuleName>, Known>>);

#[derive(Debug, Default)]
struct Known {
    places: Vec<Arc<Place>>,
    /// Not yet reported, of places that no thread has any more, and of dry runs.
    matched: u64,
    would_deny: u64,
    would_allow: u64,
    last_millis: u64,
    /// Of what `places` have.
    reported: u64,
}

impl Rules {
    /// Counts a decision.
    pub(super) fn count(&self, mine: &mut Mine, decided: &Decided, at: SystemTime) {
        if let Some(rule) = &decided.rule {
            let is_it = |(known, _): &(Arc<RuleRef>, Arc<Place>)| Arc::ptr_eq(known, rule);
            if !mine.places.get(mine.recent).is_some_and(is_it) {
                mine.recent = mine.places.iter().rposition(is_it).unwrap_or_else(|| {
                    // Those of policies that are gone; what they have counted is kept by name.
                    if mine.places.len() >= RULES {
                        mine.places.clear();
                    }
                    mine.places.push((rule.clone(), self.place((rule.policy_name(), Some(rule.rule)))));
                    mine.places.len() - 1
                });
            }
            if let Some((_, place)) = mine.places.get(mine.recent) {
                place.matched.add(1);
                place.last_millis.set(millis(at).max(place.last_millis.read()));
            }
        }
        if let Some(would) = &decided.would {
            self.differ(would, at);
        }
    }

    fn place(&self, name: RuleName) -> Arc<Place> {
        let place = Arc::<Place>::default();
        known(&mut self.0.lock(), name).push(place.clone());
        place
    }

    /// Such a difference is rare, and logged and counted under a lock elsewhere as well.
    fn differ(&self, would: &Would, at: SystemTime) {
        let mut rules = self.0.lock();
        let rule = known(&mut rules, (would.policy.clone().unwrap_or_default(), would.rule));
        let kind = if would.is_allowed { &mut rule.would_allow } else { &mut rule.would_deny };
        *kind += 1;
        rule.last_millis = rule.last_millis.max(millis(at));
    }

    /// Takes what was counted since the last time.
    pub(super) fn take(&self) -> Taken {
        let mut taken = Taken::default();
        self.0.lock().retain(|name, rule| {
            rule.forget();
            let matched = rule.places.iter().map(|place| place.matched.read()).sum::<u64>();
            let last = rule.places.iter().map(|place| place.last_millis.read()).max().unwrap_or(0);
            let used = Used {
                matched: rule.matched + matched.saturating_sub(rule.reported),
                last: UNIX_EPOCH + Duration::from_millis(last.max(rule.last_millis)),
                would_deny: rule.would_deny,
                would_allow: rule.would_allow,
            };
            let calls = used.matched + used.would_deny + used.would_allow;
            match name {
                Some(name) if calls > 0 => {
                    taken.rules.insert(name.clone(), used);
                }
                Some(_) => {}
                None => taken.overflow += calls,
            }
            let places = std::mem::take(&mut rule.places);
            *rule = Known { places, reported: matched, ..Known::default() };
            !rule.places.is_empty()
        });
        taken
    }
}

/// The rule of that name, or the common one when there are too many.
fn known(rules: &mut HashMap<Option<RuleName>, Known>, name: RuleName) -> &mut Known {
    let name = Some(name);
    let has_room = rules.len() < RULES || rules.contains_key(&name);
    rules.entry(name.filter(|_| has_room)).or_default()
}

impl Known {
    fn push(&mut self, place: Arc<Place>) {
        self.forget();
        self.places.push(place);
    }

    /// Lets places go that no thread has any more, and keeps what they have counted.
    fn forget(&mut self) {
        let Self { places, matched, last_millis, reported, .. } = self;
        places.retain(|place| {
            let is_used = Arc::strong_count(place) > 1;
            if !is_used {
                // Of what was reported nobody knows any more whose it was, so the place takes as much along as it has.
                let count = place.matched.read();
                let told = count.min(*reported);
                *reported -= told;
                *matched += count - told;
                *last_millis = (*last_millis).max(place.last_millis.read());
            }
            is_used
        });
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
