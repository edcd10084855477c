//! The whole tree under a decision: every policy that applies, each rule, each condition with what it saw. For people
//! who ask for all of it; the conditions are the compiled ones, so that the tree cannot disagree with the decision.
use super::seen;
use crate::{
    authorize::{Facts, RuleRef},
    documents::authorization_policy::Action,
    snapshot::{
        Snapshot,
        rules::{Clause, Rule, Rules},
    },
};
use serde::Serialize;
use std::collections::HashMap;

/// One policy that applies to the workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyTrace {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub policy: String,
    /// What it does when a rule matches.
    pub action: Action,
    /// Only evaluated, not enforced.
    pub dry_run: bool,
    /// All rules, in order.
    pub rules: Vec<RuleTrace>,
}

/// One rule: (any `from`) and (any `to`) and (all `when`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleTrace {
    /// Which.
    pub rule: RuleRef,
    /// Whether it matches.
    pub matched: bool,
    /// On TCP: an ALLOW rule that needs a request is not there at all.
    pub dropped_on_tcp: bool,
    /// Alternatives of `from`, each a list of conditions; none = anyone.
    pub from: Vec<Vec<ConditionTrace>>,
    /// Alternatives of `to`; none = anything.
    pub to: Vec<Vec<ConditionTrace>>,
    /// Conditions of `when`.
    pub when: Vec<ConditionTrace>,
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConditionTrace {
    /// Istio's field.
    pub field: String,
    /// Whether it holds.
    pub holds: bool,
    /// On TCP a DENY rule loses its HTTP conditions; such a one does not count.
    pub counts: bool,
    /// What the facts have there.
    pub saw: String,
    /// The values of the rule, trust domain aliases expanded.
    pub wanted: Vec<String>,
    /// None of the values is wanted.
    pub negated: bool,
}

/// The tree, in policy order.
pub fn tree(snapshot: &Snapshot, facts: &Facts<'_>) -> Vec<PolicyTrace> {
    let rules = snapshot.rules();
    let (written, met) = (by_reference(&rules.http), by_reference(rules.of(facts.http.is_some())));
    let policies = &snapshot.spec().authorization_policies;
    let traces = policies.iter().map(|policy| {
        let metadata = &policy.metadata;
        let trace = |index: usize| {
            let key = (metadata.namespace.as_str(), metadata.name.as_str(), index);
            written.get(&key).map(|rule| rule_trace(rule, met.get(&key).copied(), facts))
        };
        PolicyTrace {
            namespace: metadata.namespace.clone(),
            policy: metadata.name.clone(),
            action: policy.action,
            dry_run: policy.dry_run,
            rules: (0..policy.rules.len()).filter_map(trace).collect(),
        }
    });
    traces.collect()
}

type ByReference<'s> = HashMap<(&'s str, &'s str, usize), &'s Rule>;

fn by_reference(rules: &Rules) -> ByReference<'_> {
    let kinds = [&rules.deny, &rules.dry_run_deny, &rules.allow, &rules.dry_run_allow, &rules.audit];
    let all = kinds.into_iter().flatten().map(|rule| &**rule);
    all.map(|rule| {
        let RuleRef { namespace, policy, rule: index, .. } = &*rule.reference;
        ((namespace.as_str(), policy.as_str(), *index), rule)
    })
    .collect()
}

/// `met` is the form that the call meets, which on TCP may be wider or missing.
fn rule_trace(written: &Rule, met: Option<&Rule>, facts: &Facts<'_>) -> RuleTrace {
    let condition = |clause: &Clause| ConditionTrace {
        field: clause.field.to_string(),
        holds: clause.holds(facts),
        counts: facts.http.is_some() || met.is_none() || !clause.test.needs_http(),
        saw: seen(&clause.test, facts),
        wanted: clause.wanted.to_vec(),
        negated: clause.negated,
    };
    let alternatives = |all: &[Vec<Clause>]| {
        all.iter().map(|clauses| clauses.iter().map(condition).collect()).collect::<Vec<Vec<_>>>()
    };
    RuleTrace {
        rule: RuleRef::clone(&written.reference),
        matched: met.is_some_and(|rule| rule.matches(facts)),
        dropped_on_tcp: met.is_none(),
        from: alternatives(&written.from),
        to: alternatives(&written.to),
        when: written.when.iter().map(condition).collect(),
    }
}
