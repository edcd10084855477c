//! Which authorization policies apply to a workload, and in which order (reference 2.2).

use super::given::{allow, documents, labels, metadata, policy, spec, workload};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::Action::{Allow, Deny};
use postern_config::{Snapshot, select::inbound_spec};

/// `expected`: the names of the policies in the spec, in order.
fn check(input: Vec<AuthorizationPolicy>, expected: &[&str]) {
    let spec = inbound_spec(&documents(Vec::new(), input), workload(), Vec::new());
    let names: Vec<_> = spec
        .authorization_policies
        .iter()
        .map(|one| format!("{}/{}", one.metadata.namespace, one.metadata.name))
        .collect();
    assert_eq!(names, expected);
    assert!(Snapshot::compile(spec).is_ok());
}

fn named(namespace: &str, name: &str, created: Option<&str>) -> AuthorizationPolicy {
    let mut one = policy(namespace, name, Allow, "[{}]");
    one.metadata.creation_timestamp = created.map(Into::into);
    one
}

#[test]
fn root_and_own_namespace_are_pooled() {
    check(
        vec![named("payments", "b", None), named("istio-system", "a", None), named("other", "c", None)],
        &["istio-system/a", "payments/b"],
    );
}

#[test]
fn selectors_count_in_both_namespaces() {
    let with = |namespace: &str, name: &str, app: &str| AuthorizationPolicy {
        selector: labels(&[("app", app)]),
        ..named(namespace, name, None)
    };
    check(
        vec![
            with("istio-system", "a", "payments-api"),
            with("istio-system", "b", "other"),
            with("payments", "c", "payments-api"),
            with("payments", "d", "other"),
        ],
        &["istio-system/a", "payments/c"],
    );
}

#[test]
fn target_refs_never_apply() {
    let targeted = AuthorizationPolicy { has_target_refs: true, ..named("payments", "a", None) };
    check(vec![targeted, named("payments", "b", None)], &["payments/b"]);
}

#[test]
fn policies_are_sorted_by_age_then_name_then_namespace() {
    check(
        vec![
            named("payments", "a", Some("2026-01-02T00:00:00Z")),
            named("payments", "z", Some("2026-01-01T00:00:00Z")),
            named("payments", "same", Some("2026-01-03T00:00:00Z")),
            named("istio-system", "same", Some("2026-01-03T00:00:00Z")),
            named("payments", "undated", None),
        ],
        &["payments/undated", "payments/z", "payments/a", "istio-system/same", "payments/same"],
    );
}

#[test]
fn a_workload_in_the_root_namespace_gets_each_policy_once() {
    let mut workload = workload();
    workload.namespace = "istio-system".into();
    let all = documents(Vec::new(), vec![named("istio-system", "a", None), named("payments", "b", None)]);
    assert_eq!(inbound_spec(&all, workload, Vec::new()).authorization_policies.len(), 1);
}

#[test]
fn a_spec_with_a_policy_of_somebody_else_is_refused() {
    let mut other = allow("[{}]");
    other.selector = labels(&[("app", "other")]);
    let mut elsewhere = policy("other", "deny", Deny, "[{}]");
    elsewhere.metadata = metadata("other", "deny");
    let problems = Snapshot::compile(spec(vec![other, elsewhere])).unwrap_err();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(Snapshot::compile(spec(vec![allow("[{}]")])).is_ok());
}
