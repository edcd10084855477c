//! Every supported field and `when` key by itself, with its twin one fact away (reference 2.6 to 2.8, 2.10).

use super::given::{Call, allow, call, deny, snapshot, spec};
use postern_config::{Snapshot, Verdict, authorize::authorize};

/// `input`: one rule in YAML, and the call. Whether the rule matches is asked of an ALLOW and of a DENY policy.
fn check((rule, call): (&str, &Call), expected: bool) {
    let rules = format!("[{rule}]");
    let allowed = authorize(&snapshot(vec![allow(&rules)]), &call.facts()).verdict == Verdict::Allow;
    let denied = authorize(&snapshot(vec![deny(&rules)]), &call.facts()).verdict == Verdict::Deny;
    assert_eq!((allowed, denied), (expected, expected), "{rule} on {call:?}");
}

fn check_all(call: &Call, table: &[(&str, bool)]) {
    for (rule, expected) in table {
        check((rule, call), *expected);
    }
}

#[test]
fn source_fields() {
    #[rustfmt::skip]
    let table = [
        ("{from: [{source: {principals: ['*']}}]}", true),
        ("{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}", true),
        ("{from: [{source: {principals: [cluster.local/ns/checkout/*]}}]}", true),
        ("{from: [{source: {principals: ['*/checkout-api']}}]}", true),
        ("{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout]}}]}", false),
        ("{from: [{source: {principals: [spiffe://cluster.local/ns/checkout/sa/checkout-api]}}]}", false),
        ("{from: [{source: {notPrincipals: ['*']}}]}", false),
        ("{from: [{source: {notPrincipals: [a, '*/b']}}]}", true),
        ("{from: [{source: {namespaces: [checkout]}}]}", true),
        ("{from: [{source: {namespaces: [check*]}}]}", true),
        ("{from: [{source: {namespaces: [check]}}]}", false),
        ("{from: [{source: {notNamespaces: [check]}}]}", true),
        ("{from: [{source: {serviceAccounts: [checkout/checkout-api]}}]}", true),
        ("{from: [{source: {serviceAccounts: [checkout-api]}}]}", false),
        ("{from: [{source: {notServiceAccounts: [checkout-api]}}]}", true),
        ("{from: [{source: {trustDomains: [cluster.local]}}]}", true),
        ("{from: [{source: {trustDomains: [cluster*]}}]}", true),
        ("{from: [{source: {trustDomains: [cluster]}}]}", false),
        ("{from: [{source: {notTrustDomains: ['*']}}]}", false),
        ("{from: [{source: {ipBlocks: [10.0.0.1]}}]}", true),
        ("{from: [{source: {ipBlocks: [fd00::/8, 10.0.0.0/30]}}]}", true),
        ("{from: [{source: {ipBlocks: [10.0.0.2]}}]}", false),
        ("{from: [{source: {notIpBlocks: [10.0.0.0/30]}}]}", false),
        ("{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}", true),
        ("{from: [{source: {remoteIpBlocks: [10.0.0.1]}}]}", false),
        ("{from: [{source: {notRemoteIpBlocks: [10.0.0.1]}}]}", true),
        ("{from: [{source: {principals: ['*'], namespaces: [other]}}]}", false),
    ];
    check_all(&call(), &table);
}

#[test]
fn identity_fields_without_identity() {
    #[rustfmt::skip]
    let table = [
        ("{from: [{source: {principals: ['*']}}]}", false),
        ("{from: [{source: {notPrincipals: ['*']}}]}", true),
        ("{from: [{source: {namespaces: ['*']}}]}", false),
        ("{from: [{source: {notNamespaces: ['*']}}]}", true),
        ("{from: [{source: {serviceAccounts: [checkout/checkout-api]}}]}", false),
        ("{from: [{source: {notServiceAccounts: [checkout/checkout-api]}}]}", true),
        ("{from: [{source: {trustDomains: ['*']}}]}", false),
        ("{from: [{source: {notTrustDomains: ['*']}}]}", true),
        ("{when: [{key: source.principal, values: ['*']}]}", false),
        ("{when: [{key: source.principal, notValues: ['*']}]}", true),
        ("{when: [{key: connection.sni, values: ['*']}]}", false),
        ("{when: [{key: connection.sni, notValues: ['*']}]}", true),
    ];
    check_all(&call().plaintext(), &table);
    check_all(&call().plaintext().tcp(), &table);
}

#[test]
fn ip_fields_in_ipv6_and_for_mapped_addresses() {
    let six = call().addresses("fd00::1", "fd00::99", "fd00::2");
    #[rustfmt::skip]
    check_all(&six, &[
        ("{from: [{source: {ipBlocks: ['fd00::/64']}}]}", true),
        ("{from: [{source: {ipBlocks: ['fd00::2']}}]}", false),
        ("{from: [{source: {ipBlocks: [0.0.0.0/0]}}]}", false),
        ("{from: [{source: {remoteIpBlocks: ['fd00::99']}}]}", true),
        ("{when: [{key: destination.ip, values: ['fd00::2']}]}", true),
    ]);
    let mapped = call().addresses("::ffff:10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.2");
    #[rustfmt::skip]
    check_all(&mapped, &[
        ("{from: [{source: {ipBlocks: [10.0.0.1]}}]}", true),
        ("{from: [{source: {notIpBlocks: [10.0.0.0/8]}}]}", false),
        ("{when: [{key: destination.ip, values: [10.0.0.2]}]}", true),
    ]);
}

#[test]
fn operation_fields() {
    #[rustfmt::skip]
    let table = [
        ("{to: [{operation: {methods: [POST]}}]}", true),
        ("{to: [{operation: {methods: ['*']}}]}", true),
        ("{to: [{operation: {methods: [post]}}]}", false),
        ("{to: [{operation: {methods: [P*]}}]}", true),
        ("{to: [{operation: {notMethods: [GET, HEAD]}}]}", true),
        ("{to: [{operation: {notMethods: [P*]}}]}", false),
        ("{to: [{operation: {paths: [/v1/charges]}}]}", true),
        ("{to: [{operation: {paths: [/v1/*]}}]}", true),
        ("{to: [{operation: {paths: ['*/charges']}}]}", true),
        ("{to: [{operation: {paths: ['/v1/{*}']}}]}", true),
        ("{to: [{operation: {paths: ['/{**}']}}]}", true),
        ("{to: [{operation: {paths: ['/v1/{*}/']}}]}", false),
        ("{to: [{operation: {paths: [/v1]}}]}", false),
        ("{to: [{operation: {paths: [/V1/charges]}}]}", false),
        ("{to: [{operation: {notPaths: ['/v1/{*}']}}]}", false),
        ("{to: [{operation: {hosts: [PAYMENTS-api.payments:80]}}]}", true),
        ("{to: [{operation: {hosts: [payments-api.payments]}}]}", false),
        ("{to: [{operation: {hosts: ['payments-api.payments:*']}}]}", true),
        ("{to: [{operation: {hosts: ['*.payments:*']}}]}", false),
        ("{to: [{operation: {hosts: ['*']}}]}", true),
        ("{to: [{operation: {notHosts: [Payments-API.payments:80]}}]}", false),
        ("{to: [{operation: {ports: ['8080']}}]}", true),
        ("{to: [{operation: {ports: ['80']}}]}", false),
        ("{to: [{operation: {ports: ['80', '8080'], methods: [GET]}}]}", false),
        ("{to: [{operation: {notPorts: ['80']}}]}", true),
        ("{to: [{operation: {notPorts: ['8080']}}]}", false),
    ];
    check_all(&call(), &table);
}

#[test]
fn a_query_that_was_left_on_the_path_evades_no_rule() {
    let rule = "{to: [{operation: {paths: [/v1/charges]}}]}";
    check((rule, &call().path("/v1/charges?a=/b")), true);
    check((rule, &call().path("/v1/refunds?a=/v1/charges")), false);
}

#[test]
fn when_keys() {
    #[rustfmt::skip]
    let table = [
        ("{when: [{key: source.ip, values: [10.0.0.1]}]}", true),
        ("{when: [{key: source.ip, notValues: [10.0.0.0/8]}]}", false),
        ("{when: [{key: remote.ip, values: [203.0.113.7]}]}", true),
        ("{when: [{key: remote.ip, values: [10.0.0.1]}]}", false),
        ("{when: [{key: source.namespace, values: [checkout]}]}", true),
        ("{when: [{key: source.namespace, values: [payments]}]}", false),
        ("{when: [{key: source.serviceAccount, values: [checkout/checkout-api]}]}", true),
        ("{when: [{key: source.serviceAccount, values: [checkout-api]}]}", false),
        ("{when: [{key: source.principal, values: [cluster.local/ns/checkout/sa/checkout-api]}]}", true),
        ("{when: [{key: source.principal, notValues: [cluster.local/ns/checkout/*]}]}", false),
        ("{when: [{key: source.trustDomain, values: [cluster.local]}]}", true),
        ("{when: [{key: source.trustDomain, values: ['foo*', '*bar']}]}", false),
        ("{when: [{key: destination.ip, values: [10.0.0.2]}]}", true),
        ("{when: [{key: destination.ip, values: [10.0.0.1]}]}", false),
        ("{when: [{key: destination.port, values: ['80', '8080']}]}", true),
        ("{when: [{key: destination.port, notValues: ['8080']}]}", false),
        ("{when: [{key: connection.sni, values: ['*.checkout-api.checkout.svc.cluster.local']}]}", false),
        ("{when: [{key: connection.sni, values: ['*.payments-api.payments.svc.cluster.local']}]}", true),
        ("{when: [{key: 'request.headers[:authority]', values: ['payments-api.payments:80']}]}", true),
        ("{when: [{key: 'request.headers[:authority]', values: ['PAYMENTS-api.payments:80']}]}", false),
        ("{when: [{key: 'request.headers[Host]', values: ['payments-api*']}]}", true),
        ("{when: [{key: 'request.headers[:method]', values: [POST]}]}", true),
    ];
    check_all(&call(), &table);
}

#[test]
fn headers_value_by_value() {
    let once = call().header("x-tier", "gold");
    #[rustfmt::skip]
    check_all(&once, &[
        ("{when: [{key: 'request.headers[X-Tier]', values: [gold]}]}", true),
        ("{when: [{key: 'request.headers[x-tier]', values: [Gold]}]}", false),
        ("{when: [{key: 'request.headers[x-tier]', values: ['*']}]}", true),
        ("{when: [{key: 'request.headers[x-tier]', notValues: ['*']}]}", false),
        ("{when: [{key: 'request.headers[x-other]', values: ['*']}]}", false),
        ("{when: [{key: 'request.headers[x-other]', notValues: [gold]}]}", true),
        ("{when: [{key: 'request.headers[x-other]', notValues: ['*']}]}", true),
    ]);
    // An app may read either line, or both as one: an ALLOW wants all readings, a DENY is content with one.
    let twice = once.header("x-tier", "silver");
    for (rule, allows, denies) in [
        ("{when: [{key: 'request.headers[x-tier]', values: [silver]}]}", false, true),
        ("{when: [{key: 'request.headers[x-tier]', values: [gold]}]}", false, true),
        ("{when: [{key: 'request.headers[x-tier]', values: ['gold,silver']}]}", false, true),
        ("{when: [{key: 'request.headers[x-tier]', values: ['gold*']}]}", true, true),
        ("{when: [{key: 'request.headers[x-tier]', values: ['*']}]}", true, true),
        ("{when: [{key: 'request.headers[x-tier]', notValues: [silver]}]}", false, true),
        ("{when: [{key: 'request.headers[x-tier]', notValues: [bronze]}]}", true, true),
    ] {
        let rules = format!("[{rule}]");
        let allowed = authorize(&snapshot(vec![allow(&rules)]), &twice.facts()).verdict == Verdict::Allow;
        let denied = authorize(&snapshot(vec![deny(&rules)]), &twice.facts()).verdict == Verdict::Deny;
        assert_eq!((allowed, denied), (allows, denies), "{rule}");
    }
    let empty = call().header("x-tier", "");
    check_all(&empty, &[("{when: [{key: 'request.headers[x-tier]', values: ['*']}]}", true)]);
}

#[test]
fn principals_follow_the_trust_domain_and_its_aliases() {
    let rules = "[{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
    let decide = |trust_domain: &str, aliases: &[&str], peer: &str| {
        let mut spec = spec(vec![allow(rules)]);
        spec.mesh.trust_domain = trust_domain.into();
        spec.mesh.trust_domain_aliases = aliases.iter().map(ToString::to_string).collect();
        let snapshot = Snapshot::compile(spec).unwrap();
        authorize(&snapshot, &call().from(peer).facts()).verdict == Verdict::Allow
    };
    let (old, new) =
        ("spiffe://cluster.local/ns/checkout/sa/checkout-api", "spiffe://td1/ns/checkout/sa/checkout-api");
    assert!(decide("td1", &[], new));
    assert!(!decide("td1", &[], old));
    assert!(decide("td1", &["cluster.local"], old));
    assert!(decide("cluster.local", &[], old));
    assert!(!decide("cluster.local", &[], new));
}
