//! What has to hold for any policy and any call.

use super::given::{Call, call, policy, snapshot};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::{Action, Condition, From, Operation, Rule, Source, To};
use postern_config::{Reason, Snapshot, Verdict, authorize::authorize, explain::explain};
use proptest::prelude::*;

const PEERS: &[&str] = &[
    "spiffe://cluster.local/ns/checkout/sa/checkout-api",
    "spiffe://cluster.local/ns/shop/sa/intruder",
    "spiffe://other/ns/shop/sa/a",
];

/// A small world of values, so that rules and calls meet often.
fn some(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let values: Vec<String> = values.iter().map(ToString::to_string).collect();
    prop_oneof![3 => Just(Vec::new()), 2 => proptest::sample::subsequence(values, 1..=2)]
}

prop_compose! {
    fn source()(
        principals in some(&["*", "cluster.local/ns/checkout/*", "*/intruder", "other/ns/shop/sa/a"]),
        not_principals in some(&["cluster.local/ns/shop/sa/intruder", "*/a"]),
        namespaces in some(&["shop", "check*", "payments"]),
        not_namespaces in some(&["shop", "checkout"]),
        ip_blocks in some(&["10.0.0.1", "10.0.0.0/8", "fd00::/8"]),
        not_remote_ip_blocks in some(&["203.0.113.0/24", "10.0.0.0/8"]),
    ) -> Source {
        Source { principals, not_principals, namespaces, not_namespaces, ip_blocks, not_remote_ip_blocks, ..Source::default() }
    }
}

prop_compose! {
    fn operation()(
        hosts in some(&["a", "b", "*"]),
        ports in some(&["8080", "9090"]),
        not_ports in some(&["8080", "443"]),
        methods in some(&["GET", "P*"]),
        not_methods in some(&["POST", "GET"]),
        paths in some(&["/v1/{*}", "/v1/*", "/a"]),
        not_paths in some(&["/a", "*s"]),
    ) -> Operation {
        Operation { hosts, ports, not_ports, methods, not_methods, paths, not_paths, ..Operation::default() }
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let key = prop_oneof![Just("request.headers[x-a]"), Just("source.namespace"), Just("connection.sni")];
    (key, some(&["shop", "a"]), some(&["checkout", "b"]))
        .prop_map(|(key, values, not_values)| Condition { key: key.into(), values, not_values })
        .prop_filter("says something", |one| !one.values.is_empty() || !one.not_values.is_empty())
}

fn rule() -> impl Strategy<Value = Rule> {
    let source = source().prop_filter("says something", |one| *one != Source::default());
    let operation = operation().prop_filter("says something", |one| *one != Operation::default());
    (
        proptest::collection::vec(source.prop_map(|source| From { source }), 0..3),
        proptest::collection::vec(operation.prop_map(|operation| To { operation }), 0..3),
        proptest::collection::vec(condition(), 0..2),
    )
        .prop_map(|(from, to, when)| Rule { from, to, when })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let one = (any::<bool>(), proptest::collection::vec(rule(), 1..4)).prop_map(|(allow, rules)| {
        let action = if allow { Action::Allow } else { Action::Deny };
        AuthorizationPolicy { rules, ..policy("payments", "any", action, "[]") }
    });
    proptest::collection::vec(one, 0..4).prop_map(|mut policies| {
        for (index, policy) in policies.iter_mut().enumerate() {
            policy.metadata.name = format!("policy-{index}");
        }
        policies
    })
}

prop_compose! {
    fn any_call()(
        peer in proptest::option::of(proptest::sample::select(PEERS)),
        method in prop_oneof![Just("GET"), Just("POST")],
        path in prop_oneof![Just("/v1/charges"), Just("/a"), Just("/")],
        host in prop_oneof![Just("A"), Just("b"), Just("")],
        header in proptest::option::of(prop_oneof![Just("a"), Just("b")]),
        near in any::<bool>(),
        port in prop_oneof![Just(8080), Just(443)],
    ) -> Call {
        let mut one = call().method(method).path(path).host(host).port(port);
        if let Some(value) = header {
            one = one.header("x-a", value);
        }
        if !near {
            one = one.addresses("fd00::1", "fd00::1", "fd00::2");
        }
        match peer {
            Some(peer) => one.from(peer),
            None => one.plaintext(),
        }
    }
}

fn agree(snapshot: &Snapshot, call: &Call) {
    let facts = call.facts();
    let decision = authorize(snapshot, &facts);
    let explanation = explain(snapshot, &facts);
    assert_eq!(explanation.allowed, decision.verdict == Verdict::Allow);
    assert!(explanation.summary.starts_with(if explanation.allowed { "allowed: " } else { "denied: " }));
    match decision.reason {
        Reason::Rule(rule) => assert_eq!(explanation.decided_by.as_ref(), Some(&**rule)),
        Reason::NoPolicy | Reason::DefaultDeny => assert_eq!(explanation.decided_by, None),
    }
    // Every generated ALLOW policy has rules, so one of them is closest.
    assert_eq!(explanation.closest.is_some(), decision.reason == Reason::DefaultDeny);
}

proptest! {
    #[test]
    fn the_explanation_agrees_with_the_decision(policies in policies(), call in any_call()) {
        let snapshot = snapshot(policies);
        agree(&snapshot, &call);
        agree(&snapshot, &call.tcp());
    }

    #[test]
    fn a_deny_rule_that_fires_on_http_fires_on_tcp(rule in rule(), call in any_call()) {
        let denies = AuthorizationPolicy { rules: vec![rule], ..policy("payments", "any", Action::Deny, "[]") };
        let snapshot = snapshot(vec![denies]);
        let mut tcp = call.clone();
        tcp.http = false;
        if authorize(&snapshot, &call.facts()).verdict == Verdict::Deny {
            prop_assert_eq!(authorize(&snapshot, &tcp.facts()).verdict, Verdict::Deny);
        }
    }

    #[test]
    fn a_deny_rule_for_an_identity_always_fires_on_http_and_on_tcp(call in any_call(), peer in proptest::sample::select(PEERS)) {
        let principal = peer.trim_start_matches("spiffe://");
        let rules = format!("[{{from: [{{source: {{principals: ['{principal}']}}}}]}}]");
        let snapshot = snapshot(vec![policy("payments", "any", Action::Deny, &rules), policy("payments", "all", Action::Allow, "[{}]")]);
        let expected = if call.peer.as_ref().is_some_and(|id| id.as_str() == peer) { Verdict::Deny } else { Verdict::Allow };
        prop_assert_eq!(authorize(&snapshot, &call.facts()).verdict, expected);
        prop_assert_eq!(authorize(&snapshot, &call.tcp().facts()).verdict, expected);
    }

    #[test]
    fn an_allow_rule_that_fires_on_tcp_fires_on_http(rule in rule(), call in any_call()) {
        let allows = AuthorizationPolicy { rules: vec![rule], ..policy("payments", "any", Action::Allow, "[]") };
        let snapshot = snapshot(vec![allows]);
        let mut tcp = call.clone();
        tcp.http = false;
        if authorize(&snapshot, &tcp.facts()).verdict == Verdict::Allow {
            prop_assert_eq!(authorize(&snapshot, &call.facts()).verdict, Verdict::Allow);
        }
    }

    #[test]
    fn a_spec_survives_its_way_over_the_wire(policies in policies(), call in any_call()) {
        let spec = super::given::spec(policies);
        let text = serde_json::to_string(&spec).unwrap();
        let back: postern_config::InboundSpec = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&back, &spec);
        let (before, after) = (Snapshot::compile(spec).unwrap(), Snapshot::compile(back).unwrap());
        prop_assert_eq!(authorize(&before, &call.facts()), authorize(&after, &call.facts()));
    }
}

#[test]
fn a_field_of_the_future_is_refused_wherever_a_restriction_could_hide() {
    let spec = super::given::spec(vec![policy(
        "payments",
        "any",
        Action::Allow,
        "[{to: [{operation: {methods: [GET]}}]}]",
    )]);
    let known = serde_json::to_value(&spec).unwrap();
    serde_json::from_value::<postern_config::InboundSpec>(known.clone()).unwrap();
    for place in [
        "",
        "/workload",
        "/mesh",
        "/authorization_policies/0",
        "/authorization_policies/0/rules/0",
        "/authorization_policies/0/rules/0/to/0",
        "/authorization_policies/0/rules/0/to/0/operation",
    ] {
        let mut future = known.clone();
        future.pointer_mut(place).unwrap()["restriction"] = "strong".into();
        assert!(serde_json::from_value::<postern_config::InboundSpec>(future).is_err(), "{place}");
    }
}
