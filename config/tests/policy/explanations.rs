//! The words for a decision, and the rule that came closest.

use super::given::{Call, allow, call, deny, policy, snapshot};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::Action::Allow;
use postern_config::explain::explain;

const CHARGES: &str = "
- from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]
  to: [{operation: {methods: [POST], paths: [/v1/charges]}}]
";

fn charges() -> AuthorizationPolicy {
    policy("payments", "charges", Allow, CHARGES)
}

/// `expected`: what a person reads.
fn check((policies, call): (Vec<AuthorizationPolicy>, Call), expected: &str) {
    assert_eq!(explain(&snapshot(policies), &call.facts()).to_string(), expected);
}

#[test]
fn an_allowed_call_names_its_rule() {
    check((vec![charges()], call()), "allowed: ALLOW rule matched: payments/charges rule 0");
    check((vec![], call()), "allowed: no ALLOW policy applies to the workload and no DENY rule matched");
}

#[test]
fn a_default_deny_names_the_closest_rule_and_its_first_failed_condition() {
    check(
        (vec![charges()], call().from("spiffe://cluster.local/ns/shop/sa/intruder")),
        "denied: no ALLOW rule matched. Closest: payments/charges rule 0, which failed at \
         from[0].source.principals: saw cluster.local/ns/shop/sa/intruder, wanted one of \
         cluster.local/ns/checkout/sa/checkout-api",
    );
    check(
        (vec![charges()], call().method("GET")),
        "denied: no ALLOW rule matched. Closest: payments/charges rule 0, which failed at \
         to[0].operation.methods: saw GET, wanted one of POST",
    );
    check(
        (vec![charges()], call().plaintext()),
        "denied: no ALLOW rule matched. Closest: payments/charges rule 0, which failed at \
         from[0].source.principals: saw no verified identity (plaintext), wanted one of \
         cluster.local/ns/checkout/sa/checkout-api",
    );
}

#[test]
fn the_closest_rule_has_the_fewest_failed_conditions_and_ties_go_to_the_first() {
    let rules = "
- {from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}
- {from: [{source: {namespaces: [checkout]}}], to: [{operation: {methods: [GET]}}, {operation: {methods: [PUT], paths: [/x]}}]}
- {from: [{source: {namespaces: [shop]}}]}
";
    check(
        (vec![allow(rules)], call()),
        "denied: no ALLOW rule matched. Closest: payments/allow rule 1, which failed at \
         to[0].operation.methods: saw POST, wanted one of GET",
    );
}

#[test]
fn a_rule_that_needs_a_request_says_so_on_tcp() {
    check(
        (vec![charges()], call().tcp()),
        "denied: no ALLOW rule matched. Closest: payments/charges rule 0, which failed at \
         to[0].operation.methods: saw a TCP connection (no HTTP request), wanted one of POST",
    );
    let alternatives = "[{to: [{operation: {ports: ['8080']}}, {operation: {paths: [/a]}}]}]";
    check(
        (vec![allow(alternatives)], call().tcp()),
        "denied: no ALLOW rule matched. Closest: payments/allow rule 0, which failed at \
         to[1].operation.paths: saw a TCP connection (no HTTP request), wanted one of /a",
    );
}

#[test]
fn not_forms_and_conditions_have_their_own_words() {
    let not = "[{from: [{source: {notNamespaces: [checkout, shop]}}]}]";
    check(
        (vec![allow(not)], call()),
        "denied: no ALLOW rule matched. Closest: payments/allow rule 0, which failed at \
         from[0].source.notNamespaces: saw cluster.local/ns/checkout/sa/checkout-api, wanted none of checkout, shop",
    );
    let when = "[{when: [{key: 'request.headers[x-tier]', values: [gold]}]}]";
    check(
        (vec![allow(when)], call()),
        "denied: no ALLOW rule matched. Closest: payments/allow rule 0, which failed at \
         when[0].values (request.headers[x-tier]): saw no header x-tier, wanted one of gold",
    );
}

#[test]
fn secrets_stay_out_of_an_explanation() {
    let when = "[{when: [{key: 'request.headers[authorization]', values: ['Basic *']}]}]";
    let explanation =
        explain(&snapshot(vec![allow(when)]), &call().header("authorization", "Bearer s3cr3t").facts());
    assert!(!format!("{explanation:?}").contains("s3cr3t"));
}

#[test]
fn what_a_caller_sends_is_cut_and_escaped() {
    let explanation =
        explain(&snapshot(vec![charges()]), &call().path(&format!("/{}\n", "a".repeat(9000))).facts());
    let (_, failed) = explanation.closest.unwrap();
    assert!(failed.saw.len() < 300, "{}", failed.saw.len());
    let explanation = explain(&snapshot(vec![charges()]), &call().path("/a\u{1b}[31m").facts());
    assert!(!explanation.to_string().contains('\u{1b}'));
}

#[test]
fn an_allow_policy_without_rules_has_no_closest_one() {
    check(
        (vec![allow("[]")], call()),
        "denied: no ALLOW rule matched: the ALLOW policies that apply have no rules",
    );
}

#[test]
fn a_deny_rule_is_named_and_its_width_on_tcp_too() {
    let rules = "[{to: [{operation: {methods: [POST]}}]}]";
    check((vec![deny(rules), charges()], call()), "denied: DENY rule matched: payments/deny rule 0");
    check(
        (vec![deny(rules)], call().tcp()),
        "denied: DENY rule matched: payments/deny rule 0 (on TCP it is wider: to[0].operation.methods can not be \
         checked and does not count)",
    );
}
