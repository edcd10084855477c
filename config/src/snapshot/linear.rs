//! One rule after the other: slow, and too simple to be wrong. The index is compared with it in tests and benches.

use super::{
    Snapshot,
    rules::{Rule, Rules},
};
use crate::authorize::{Facts, Judgement, Matched, RuleRef, in_both_readings, weigh};
use std::sync::Arc;

/// What [`crate::authorize::judge`] has to answer.
pub fn judge<'s>(snapshot: &'s Snapshot, facts: &Facts<'_>) -> Judgement<'s> {
    in_both_readings(facts, |facts| {
        weigh(snapshot, &first_matches(snapshot.rules().of(facts.http.is_some()), facts))
    })
}

/// The first matching rule of each kind.
pub(crate) fn first_matches<'s>(rules: &'s Rules, facts: &Facts<'_>) -> Matched<'s> {
    Matched {
        deny: first(&rules.deny, facts),
        dry_run_deny: first(&rules.dry_run_deny, facts),
        allow: first(&rules.allow, facts),
        dry_run_allow: first(&rules.dry_run_allow, facts),
        audit: first(&rules.audit, facts),
    }
}

fn first<'s>(rules: &'s [Arc<Rule>], facts: &Facts<'_>) -> Option<&'s Arc<RuleRef>> {
    rules.iter().find(|rule| rule.matches(facts)).map(|rule| &rule.reference)
}
