//! Rules on connections without a request (reference 2.4, Appendix B.5).

use super::given::{Call, allow, call, deny, snapshot};
use postern_config::{Reason, Verdict, authorize::authorize};

const NS1: &str = "spiffe://cluster.local/ns/ns-1/sa/a";
const NS2: &str = "spiffe://cluster.local/ns/ns-2/sa/a";

/// `input`: action, one rule in YAML, and a TCP call; `expected`: whether the rule matches.
fn check((action, rule, call): (&str, &str, Call), expected: bool) {
    let call = call.tcp();
    let rules = format!("[{rule}]");
    let snapshot = snapshot(vec![if action == "ALLOW" { allow(&rules) } else { deny(&rules) }]);
    let facts = call.facts();
    let decision = authorize(&snapshot, &facts);
    let matched = matches!(decision.reason, Reason::Rule(_));
    assert_eq!(matched, expected, "{action} {rule} on {call:?}");
    let verdict = if matched == (action == "ALLOW") { Verdict::Allow } else { Verdict::Deny };
    assert_eq!(decision.verdict, verdict, "{action} {rule} on {call:?}");
}

#[test]
fn an_allow_rule_with_anything_of_http_is_dropped_whole() {
    #[rustfmt::skip]
    let table = [
        "{to: [{operation: {methods: [POST]}}]}",
        "{to: [{operation: {notMethods: [GET]}}]}",
        "{to: [{operation: {paths: ['*']}}]}",
        "{to: [{operation: {notPaths: [/a]}}]}",
        "{to: [{operation: {hosts: ['*']}}]}",
        "{to: [{operation: {notHosts: [a]}}]}",
        "{from: [{source: {namespaces: [ns-1]}}], to: [{operation: {ports: ['8080'], methods: [POST]}}]}",
        "{to: [{operation: {ports: ['8080']}}, {operation: {methods: [POST]}}]}",
        "{to: [{operation: {ports: ['8080']}}], when: [{key: 'request.headers[a]', notValues: [b]}]}",
        "{when: [{key: 'request.headers[:method]', values: [POST]}]}",
    ];
    for rule in table {
        check(("ALLOW", rule, call().from(NS1)), false);
    }
}

#[test]
fn an_allow_rule_without_http_is_kept() {
    let rule = "{from: [{source: {namespaces: [ns-1]}}], to: [{operation: {ports: ['80']}}]}";
    check(("ALLOW", rule, call().from(NS1).port(80)), true);
    check(("ALLOW", rule, call().from(NS2).port(80)), false);
    check(("ALLOW", rule, call().from(NS1).port(81)), false);
}

#[test]
fn a_dropped_allow_rule_takes_no_other_rule_with_it() {
    let rules = "[{to: [{operation: {methods: [POST]}}]}, {from: [{source: {namespaces: [ns-1]}}]}]";
    let snapshot = snapshot(vec![allow(rules)]);
    let call = call().from(NS1).tcp();
    let facts = call.facts();
    let decision = authorize(&snapshot, &facts);
    let Reason::Rule(rule) = decision.reason else { panic!("{decision:?}") };
    assert_eq!((decision.verdict, rule.rule), (Verdict::Allow, 1));
}

#[test]
fn a_deny_rule_loses_its_http_conditions_and_gets_wider() {
    for any in [
        "{to: [{operation: {methods: [GET]}}]}",
        "{to: [{operation: {notMethods: [GET], hosts: [x], paths: [/y]}}]}",
        "{when: [{key: 'request.headers[:method]', values: [GET]}]}",
        "{when: [{key: 'request.headers[a]', values: [b]}]}",
        "{to: [{operation: {ports: ['9']}}, {operation: {methods: [GET]}}]}",
    ] {
        check(("DENY", any, call().from(NS1)), true);
        check(("DENY", any, call().plaintext()), true);
    }
    let from = "{from: [{source: {namespaces: [ns-1]}}], to: [{operation: {methods: [GET]}}]}";
    check(("DENY", from, call().from(NS1)), true);
    check(("DENY", from, call().from(NS2)), false);
    let paths = "{from: [{source: {namespaces: [ns-1]}}], to: [{operation: {paths: [/a]}}]}";
    check(("DENY", paths, call().from(NS1)), true);
    check(("DENY", paths, call().from(NS2)), false);
    let port = "{to: [{operation: {ports: ['8080'], methods: [GET]}}]}";
    check(("DENY", port, call()), true);
    check(("DENY", port, call().port(80)), false);
    let both =
        "{from: [{source: {namespaces: [ns-2]}}], to: [{operation: {ports: ['8080'], methods: [GET]}}]}";
    check(("DENY", both, call().from(NS2)), true);
    check(("DENY", both, call().from(NS1)), false);
    check(("DENY", both, call().from(NS2).port(80)), false);
    let when = "{when: [{key: destination.port, values: ['80']}, {key: 'request.headers[a]', values: [b]}]}";
    check(("DENY", when, call().port(80)), true);
    check(("DENY", when, call().port(81)), false);
}

#[test]
fn the_same_deny_rules_stay_narrow_on_http() {
    for rule in
        ["{to: [{operation: {methods: [GET]}}]}", "{when: [{key: 'request.headers[a]', values: [b]}]}"]
    {
        let snapshot = snapshot(vec![deny(&format!("[{rule}]"))]);
        assert_eq!(authorize(&snapshot, &call().facts()).verdict, Verdict::Allow, "{rule}");
        assert_eq!(authorize(&snapshot, &call().tcp().facts()).verdict, Verdict::Deny, "{rule}");
    }
}

#[test]
fn everything_else_works_without_a_request() {
    #[rustfmt::skip]
    let table = [
        ("{from: [{source: {principals: ['cluster.local/ns/ns-1/sa/a']}}]}", true),
        ("{from: [{source: {serviceAccounts: [ns-1/a]}}]}", true),
        ("{from: [{source: {trustDomains: [cluster.local]}}]}", true),
        ("{from: [{source: {ipBlocks: [10.0.0.1]}}]}", true),
        ("{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}", true),
        ("{from: [{source: {ipBlocks: [10.0.0.9]}}]}", false),
        ("{when: [{key: destination.ip, values: [10.0.0.2]}]}", true),
        ("{when: [{key: connection.sni, values: ['outbound_.80_*']}]}", true),
        ("{when: [{key: source.namespace, values: [ns-2]}]}", false),
    ];
    for (rule, expected) in table {
        check(("ALLOW", rule, call().from(NS1)), expected);
        check(("DENY", rule, call().from(NS1)), expected);
    }
}
