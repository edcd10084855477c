//! The decision table (reference 2.3) and which rule is named (2.5).

use super::given::{Call, allow, call, deny, policy, snapshot};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::Action::{Allow, Deny};
use postern_config::{Reason, Verdict, authorize::authorize};

const INTRUDER: &str = "spiffe://cluster.local/ns/shop/sa/intruder";
const CHARGES: &str = "
- from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]
  to: [{operation: {methods: [POST], paths: [/v1/charges]}}]
";

/// `expected`: `allow` or `deny`, and what decided: `namespace/policy[rule]`, `default` or `no policy`.
fn check((policies, call): (Vec<AuthorizationPolicy>, Call), expected: &str) {
    let snapshot = snapshot(policies);
    let facts = call.facts();
    let decision = authorize(&snapshot, &facts);
    let verdict = if decision.verdict == Verdict::Allow { "allow" } else { "deny" };
    let reason = match decision.reason {
        Reason::NoPolicy => "no policy".to_string(),
        Reason::DefaultDeny => "default".to_string(),
        Reason::Rule(rule) => format!("{}/{}[{}]", rule.namespace, rule.policy, rule.rule),
    };
    assert_eq!(format!("{verdict}: {reason}"), expected, "{call:?}");
}

#[test]
fn without_policies_everything_is_allowed() {
    check((vec![], call()), "allow: no policy");
    check((vec![], call().plaintext().tcp()), "allow: no policy");
}

#[test]
fn an_allow_policy_without_rules_denies_everything() {
    check((vec![allow("[]")], call()), "deny: default");
    check((vec![allow("[]")], call().tcp()), "deny: default");
    check((vec![allow("[]"), allow("[{}]")], call()), "allow: payments/allow[0]");
}

#[test]
fn an_empty_rule_matches_everything() {
    check((vec![allow("[{}]")], call()), "allow: payments/allow[0]");
    check((vec![allow("[{}]")], call().plaintext().tcp()), "allow: payments/allow[0]");
    check((vec![deny("[{}]")], call()), "deny: payments/deny[0]");
    check((vec![deny("[{}]")], call().plaintext().tcp()), "deny: payments/deny[0]");
}

#[test]
fn deny_comes_before_allow() {
    check((vec![allow("[{}]"), deny("[{}]")], call()), "deny: payments/deny[0]");
    let other = deny("[{to: [{operation: {methods: [GET]}}]}]");
    check((vec![allow("[{}]"), other.clone()], call()), "allow: payments/allow[0]");
    check((vec![allow("[{}]"), other], call().method("GET")), "deny: payments/deny[0]");
}

#[test]
fn only_deny_policies_leave_the_rest_allowed() {
    let other = deny("[{to: [{operation: {methods: [GET]}}]}]");
    check((vec![other.clone()], call()), "allow: no policy");
    check((vec![other], call().method("GET")), "deny: payments/deny[0]");
}

#[test]
fn each_fact_of_the_payments_example_counts() {
    check((vec![allow(CHARGES)], call()), "allow: payments/allow[0]");
    check((vec![allow(CHARGES)], call().from(INTRUDER)), "deny: default");
    check((vec![allow(CHARGES)], call().plaintext()), "deny: default");
    check((vec![allow(CHARGES)], call().method("GET")), "deny: default");
    check((vec![allow(CHARGES)], call().path("/v1/refunds")), "deny: default");
    check((vec![allow(CHARGES)], call().tcp()), "deny: default");
}

#[test]
fn alternatives_are_ored_fields_are_anded() {
    let rules = "
- from: [{source: {namespaces: [shop]}}, {source: {namespaces: [checkout], ipBlocks: [10.0.0.0/24]}}]
  to: [{operation: {methods: [GET]}}, {operation: {methods: [POST], ports: ['8080']}}]
";
    check((vec![allow(rules)], call()), "allow: payments/allow[0]");
    check((vec![allow(rules)], call().from(INTRUDER)), "allow: payments/allow[0]");
    check((vec![allow(rules)], call().port(9090)), "deny: default");
    check((vec![allow(rules)], call().port(9090).method("GET")), "allow: payments/allow[0]");
    let far = call().addresses("10.9.0.1", "10.9.0.1", "10.0.0.2");
    check((vec![allow(rules)], far.clone()), "deny: default");
    check((vec![allow(rules)], far.from(INTRUDER)), "allow: payments/allow[0]");
}

#[test]
fn conditions_are_anded_also_with_the_same_key() {
    let rules = "
- when:
  - {key: 'request.headers[x-tier]', values: [gold, silver]}
  - {key: 'request.headers[x-tier]', notValues: [silver]}
";
    check((vec![allow(rules)], call().header("x-tier", "gold")), "allow: payments/allow[0]");
    check((vec![allow(rules)], call().header("x-tier", "silver")), "deny: default");
    check((vec![allow(rules)], call()), "deny: default");
    let both = "[{when: [{key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]}]}]";
    check((vec![allow(both)], call()), "deny: default");
    let near = call().addresses("10.0.0.9", "10.0.0.9", "10.0.0.2");
    check((vec![allow(both)], near), "allow: payments/allow[0]");
}

#[test]
fn a_field_and_its_not_form_both_have_to_hold() {
    let rules = "[{to: [{operation: {paths: [/v1/*], notPaths: [/v1/admin*]}}]}]";
    check((vec![allow(rules)], call()), "allow: payments/allow[0]");
    check((vec![allow(rules)], call().path("/v1/admin/x")), "deny: default");
    check((vec![allow(rules)], call().path("/v2")), "deny: default");
}

#[test]
fn the_first_matching_rule_in_policy_order_is_named() {
    let rules = "[{to: [{operation: {methods: [GET]}}]}, {}, {}]";
    check((vec![allow(rules)], call()), "allow: payments/allow[1]");
    check((vec![allow(rules)], call().method("GET")), "allow: payments/allow[0]");
    let mut older = policy("payments", "z", Allow, "[{}]");
    older.metadata.creation_timestamp = Some("2026-01-01T00:00:00Z".into());
    let mut younger = policy("payments", "a", Allow, "[{}]");
    younger.metadata.creation_timestamp = Some("2026-01-02T00:00:00Z".into());
    check((vec![younger, older], call()), "allow: payments/z[0]");
}

#[test]
fn root_and_namespace_policies_are_pooled_by_action() {
    let root = policy("istio-system", "mesh", Deny, "[{from: [{source: {namespaces: [shop]}}]}]");
    check((vec![allow("[{}]"), root.clone()], call().from(INTRUDER)), "deny: istio-system/mesh[0]");
    check((vec![allow("[{}]"), root], call()), "allow: payments/allow[0]");
}

#[test]
fn not_fields_match_callers_without_identity() {
    let admits = allow("[{from: [{source: {notNamespaces: [bad]}}]}]");
    check((vec![admits], call().plaintext()), "allow: payments/allow[0]");
    let documented = deny("[{from: [{source: {notPrincipals: ['*']}}]}]");
    check((vec![documented.clone()], call().plaintext()), "deny: payments/deny[0]");
    check((vec![documented.clone()], call().plaintext().tcp()), "deny: payments/deny[0]");
    check((vec![documented], call()), "allow: no policy");
    let all_but_one =
        deny("[{from: [{source: {notPrincipals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]");
    check((vec![all_but_one.clone()], call().plaintext()), "deny: payments/deny[0]");
    check((vec![all_but_one.clone()], call().from(INTRUDER)), "deny: payments/deny[0]");
    check((vec![all_but_one], call()), "allow: no policy");
}
