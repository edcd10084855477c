//! What cannot be enforced exactly is refused with its place and a remedy, never ignored (reference 2.10, 2.13, B.8).

use super::given::{allow, deny, policy, snapshot, spec};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::Action::{Audit, Custom};
use postern_config::{Severity, Snapshot};

/// `expected`: words of the only problem.
fn check(input: AuthorizationPolicy, expected: &str) {
    let Err(problems) = Snapshot::compile(spec(vec![input.clone()])) else { panic!("accepted: {input:?}") };
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    assert!(problem.reason.contains(expected), "{expected:?} is not in {:?}", problem.reason);
    let name = format!("AuthorizationPolicy payments/{}", input.metadata.name);
    assert!(problem.reason.starts_with(&name), "{:?}", problem.reason);
    assert_eq!(problem.severity, Severity::Error);
    assert!(!problem.hint.is_empty());
    assert!(postern_config::problem::explain(problem.code).is_some(), "{} has no entry", problem.code);
}

#[test]
fn actions_that_are_not_enforced_yet() {
    let mut custom = policy("payments", "a", Custom, "[{}]");
    custom.provider = Some("opa".into());
    check(custom, "action CUSTOM is not enforced");
    let mut dry = policy("payments", "a", Audit, "[{}]");
    dry.dry_run = true;
    check(dry, "dry run (annotation istio.io/dry-run) does not go with action AUDIT");
    let mut stray = allow("[{}]");
    stray.provider = Some("opa".into());
    check(stray, "`provider` must not be with non CUSTOM action");
}

#[test]
fn fields_and_keys_that_are_not_enforced_yet() {
    for rule in [
        "{when: [{key: 'experimental.envoy.filters.a.b[c]', values: [d]}]}",
        "{when: [{key: 'request.headers[:path]', values: [/a]}]}",
    ] {
        check(allow(&format!("[{rule}]")), "is not enforced by this version");
        check(deny(&format!("[{rule}]")), "is not enforced by this version");
    }
}

#[test]
fn deny_without_rules_would_never_fire() {
    check(deny("[]"), "DENY action without `rules` is meaningless");
    snapshot(vec![deny("[{}]"), allow("[]")]);
}

#[test]
fn bad_values_of_fields() {
    #[rustfmt::skip]
    let table = [
        ("{from: [{source: {}}]}", "from[0].source` must not be nil/empty"),
        ("{to: [{operation: {}}]}", "to[0].operation` must not be nil/empty"),
        ("{from: [{source: {principals: ['']}}]}", "from[0].source.principals: empty value"),
        ("{from: [{source: {ipBlocks: [10.0.0.300]}}]}", "bad IP address (10.0.0.300)"),
        ("{from: [{source: {notIpBlocks: [10.0.0.0/33]}}]}", "bad CIDR range (10.0.0.0/33)"),
        ("{from: [{source: {remoteIpBlocks: [localhost]}}]}", "bad IP address (localhost)"),
        ("{from: [{source: {serviceAccounts: [a/b/c]}}]}", "expected format"),
        ("{from: [{source: {serviceAccounts: ['a*']}}]}", "wildcard not allowed"),
        ("{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}", "cannot set serviceAccounts with"),
        ("{from: [{source: {notServiceAccounts: [a], notPrincipals: [b]}}]}", "cannot set serviceAccounts with"),
        ("{from: [{source: {serviceAccounts: [a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a]}}]}", "more than 16 values"),
        ("{from: [{source: {trustDomains: [a/b]}}]}", "must not contain '/'"),
        ("{to: [{operation: {ports: ['65536']}}]}", "bad port (65536)"),
        ("{to: [{operation: {notPorts: [http]}}]}", "bad port (http)"),
        ("{to: [{operation: {paths: ['/foo/{*}.txt']}}]}", "beyond a supported path template"),
        ("{to: [{operation: {paths: ['/foo/{id}']}}]}", "beyond a supported path template"),
        ("{to: [{operation: {paths: ['foo/{*}']}}]}", "has to start with '/'"),
        ("{to: [{operation: {notPaths: ['/{**}/{*}']}}]}", "{**} is not the last operator"),
        ("{to: [{operation: {methods: ['']}}]}", "to[0].operation.methods: empty value"),
    ];
    for (rule, expected) in table {
        check(allow(&format!("[{rule}]")), expected);
        check(deny(&format!("[{rule}]")), expected);
    }
}

#[test]
fn when_keys_that_are_rejected() {
    #[rustfmt::skip]
    let table = [
        ("{key: '', values: [a]}", "`key` must not be empty"),
        ("{key: source.ip}", "at least one of `values` or `notValues` must be set for key source.ip"),
        ("{key: source.ip, values: ['']}", "empty value"),
        ("{key: source.ip, values: [a.b.c.d]}", "bad IP address (a.b.c.d)"),
        ("{key: source.user, values: [a]}", "unknown attribute: source.user"),
        ("{key: source.serviceAccount, values: [too/many/slashes]}", "expected format"),
        ("{key: source.serviceAccount, values: [/emptyns]}", "found empty namespace"),
        ("{key: source.serviceAccount, values: [emptysa/]}", "found empty serviceAccount"),
        ("{key: source.trustDomain, values: ['fo*-bar']}", "only allowed at the start or end"),
        ("{key: source.trustDomain, values: ['fo*bar*']}", "at most one wildcard"),
        ("{key: source.trustDomain, values: ['']}", "empty value"),
        ("{key: 'request.headers[]', values: [a]}", "should have format a[b]"),
        ("{key: 'request.headers[bad', values: [a]}", "should have format a[b]"),
        ("{key: 'request.headersbad]', values: [a]}", "should have format a[b]"),
        ("{key: request.headers, values: [a]}", "should have format a[b]"),
        ("{key: 'request.headers[[good]]', values: [a]}", "can not be the name of a header"),
        ("{key: 'request.auth.claims[]', values: [a]}", "should have format a[b]"),
        ("{key: request.auth.claims, values: [a]}", "should have format a[b]"),
        ("{key: request.auth.other, values: [a]}", "unknown attribute: request.auth.other"),
        ("{key: destination.ip, values: [a.b.c.d]}", "bad IP address"),
        ("{key: destination.port, values: [x]}", "bad port (x)"),
        ("{key: destination.port, notValues: ['-1']}", "bad port (-1)"),
        ("{key: 'destination.labels[app]', values: [a]}", "is replaced by the workload selector"),
        ("{key: destination.name, values: [a]}", "only supported in v1alpha1"),
        ("{key: destination.user, values: [a]}", "only supported in v1alpha1"),
        ("{key: destination.namespace, values: [a]}", "is replaced by the metadata.namespace"),
    ];
    for (condition, expected) in table {
        check(allow(&format!("[{{when: [{condition}]}}]")), expected);
        check(deny(&format!("[{{when: [{condition}]}}]")), expected);
    }
}

#[test]
fn when_keys_that_are_accepted() {
    #[rustfmt::skip]
    let table = [
        "{key: 'request.headers[:authority]', values: [a]}", "{key: source.ip, values: [1.2.3.4, 5.6.7.0/24]}",
        "{key: remote.ip, values: [1.2.3.4]}", "{key: source.namespace, values: [a]}",
        "{key: source.principal, values: [a]}", "{key: source.serviceAccount, values: [ns/sa, sa]}",
        "{key: source.trustDomain, values: [cluster.local, '*', 'foo*', '*bar']}",
        "{key: destination.ip, values: [1.2.3.4]}", "{key: destination.port, values: ['80', '90']}",
        "{key: connection.sni, values: [a]}", "{key: request.auth.principal, values: [a]}",
        "{key: request.auth.audiences, values: [a]}", "{key: request.auth.presenter, values: [a]}",
        "{key: 'request.auth.claims[id]', values: [a]}", "{key: 'request.auth.claims[a][b]', notValues: [a]}",
    ];
    for condition in table {
        snapshot(vec![allow(&format!("[{{when: [{condition}]}}]"))]);
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let first = allow("[{to: [{operation: {ports: [x, '80', y]}}]}, {when: [{key: nonsense, values: [a]}]}]");
    let mut second = deny("[]");
    second.metadata.creation_timestamp = Some("yesterday".into());
    let problems = Snapshot::compile(spec(vec![first, second])).unwrap_err();
    let reasons: Vec<_> = problems.iter().map(|problem| problem.reason.as_str()).collect();
    assert_eq!(reasons.len(), 5, "{reasons:#?}");
    assert!(reasons.iter().any(|reason| reason.contains("rule 1: when[0]")), "{reasons:#?}");
    assert!(reasons.iter().any(|reason| reason.contains("creationTimestamp")), "{reasons:#?}");
}
