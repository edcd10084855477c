//! AUDIT, dry run, and conditions on tokens (reference 2.3, 2.7, 2.10, 2.12, Appendix B.3 and B.6).

use super::given::{Call, allow, call, deny, policy, snapshot};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::Action::{Allow, Audit, Deny};
use postern_config::{Reason, Verdict, authorize::judge, snapshot::linear};
use serde_json::json;

const POSTS: &str = "[{to: [{operation: {methods: [POST]}}]}]";
const GETS: &str = "[{to: [{operation: {methods: [GET]}}]}]";

fn dry(mut policy: AuthorizationPolicy) -> AuthorizationPolicy {
    policy.metadata.name = format!("dry-{}", policy.metadata.name);
    policy.dry_run = true;
    policy
}

fn audit(rules: &str) -> AuthorizationPolicy {
    policy("payments", "audit", Audit, rules)
}

/// `expected`: the enforced decision, then what dry-run policies would change, then the audit rule.
fn check((policies, call): (Vec<AuthorizationPolicy>, Call), expected: &str) {
    let snapshot = snapshot(policies);
    let facts = call.facts();
    let judgement = judge(&snapshot, &facts);
    assert_eq!(judgement, linear::judge(&snapshot, &facts));
    let verdict = |verdict| if verdict == Verdict::Allow { "allow" } else { "deny" };
    let mut said = verdict(judgement.decision.verdict).to_string();
    match judgement.decision.reason {
        Reason::NoPolicy => said += " by no policy",
        Reason::DefaultDeny => said += " by default",
        Reason::Rule(rule) => said += &format!(" by {}[{}]", rule.policy, rule.rule),
    }
    if let Some(would) = judgement.dry_run {
        let (_, policy, rule) = judgement.would_blame().expect("a difference has a cause");
        said += &format!(", would {} by {policy}", verdict(would.verdict));
        rule.into_iter().for_each(|rule| said += &format!("[{rule}]"));
    }
    if let Some(rule) = judgement.audit {
        said += &format!(", audit {}[{}]", rule.policy, rule.rule);
    }
    assert_eq!(said, expected);
}

#[test]
fn audit_marks_and_never_decides() {
    check((vec![audit(POSTS)], call()), "allow by no policy, audit audit[0]");
    check((vec![audit(POSTS)], call().method("GET")), "allow by no policy");
    check((vec![audit(POSTS), deny("[{}]")], call()), "deny by deny[0], audit audit[0]");
    check((vec![audit("[{}]"), allow(POSTS)], call()), "allow by allow[0], audit audit[0]");
    check((vec![audit("[{}]"), allow(GETS)], call()), "deny by default, audit audit[0]");
    check((vec![audit("[]")], call()), "allow by no policy");
}

#[test]
fn audit_gets_wider_on_tcp_as_deny_does() {
    check((vec![audit(POSTS)], call().tcp()), "allow by no policy, audit audit[0]");
}

#[test]
fn a_dry_run_deny_changes_nothing_and_is_named() {
    check((vec![dry(deny(POSTS))], call()), "allow by no policy, would deny by dry-deny[0]");
    check((vec![dry(deny(POSTS))], call().method("GET")), "allow by no policy");
    check((vec![dry(deny(POSTS)), allow("[{}]")], call()), "allow by allow[0], would deny by dry-deny[0]");
    check((vec![dry(deny(POSTS)), deny("[{}]")], call()), "deny by deny[0]");
    check((vec![dry(deny("[{}]")), allow(GETS)], call()), "deny by default");
    check((vec![dry(deny(POSTS))], call().tcp()), "allow by no policy, would deny by dry-deny[0]");
}

#[test]
fn a_dry_run_allow_makes_no_default_deny_but_would() {
    check((vec![dry(allow(GETS))], call()), "allow by no policy, would deny by dry-allow");
    check((vec![dry(allow("[]"))], call()), "allow by no policy, would deny by dry-allow");
    check((vec![dry(allow(GETS))], call().method("GET")), "allow by no policy");
    check((vec![dry(allow(GETS)), deny(POSTS)], call()), "deny by deny[0]");
    check((vec![dry(allow(POSTS))], call().tcp()), "allow by no policy, would deny by dry-allow");
}

#[test]
fn a_dry_run_allow_would_let_in_what_is_denied_by_default() {
    check((vec![allow(GETS), dry(allow(POSTS))], call()), "deny by default, would allow by dry-allow[0]");
    check((vec![allow(GETS), dry(allow(GETS))], call()), "deny by default");
    check((vec![allow(POSTS), dry(allow(GETS))], call()), "allow by allow[0]");
    let all = vec![allow(GETS), dry(allow(POSTS)), dry(deny("[{}]"))];
    check((all, call()), "deny by default");
    let both = vec![dry(allow(POSTS)), dry(deny("[{}]"))];
    check((both, call()), "allow by no policy, would deny by dry-deny[0]");
}

#[test]
fn of_several_dry_run_policies_the_oldest_is_named() {
    let mut young = dry(policy("payments", "a", Allow, "[]"));
    young.metadata.creation_timestamp = Some("2026-01-02T00:00:00Z".into());
    let mut old = dry(policy("payments", "b", Allow, "[]"));
    old.metadata.creation_timestamp = Some("2026-01-01T00:00:00Z".into());
    check((vec![young, old], call()), "allow by no policy, would deny by dry-b");
}

#[test]
fn without_claims_token_conditions_fail_closed() {
    for rule in [
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{when: [{key: request.auth.principal, values: ['*']}]}",
        "{when: [{key: 'request.auth.claims[id]', values: ['*']}]}",
        "{when: [{key: request.auth.audiences, values: ['*']}]}",
    ] {
        check((vec![allow(&format!("[{rule}]"))], call()), "deny by default");
        let token = json!({"iss": "i", "sub": "s", "id": "x", "aud": ["a"]});
        check((vec![allow(&format!("[{rule}]"))], call().claims(token)), "allow by allow[0]");
        let not = rule.replace("requestPrincipals", "notRequestPrincipals").replace("values", "notValues");
        check((vec![deny(&format!("[{not}]"))], call()), "deny by deny[0]");
    }
}

/// Appendix B.6: the integration table of Istio.
#[test]
fn the_token_table_of_istio_holds() {
    let rules = "
- {to: [{operation: {paths: [/token1]}}], from: [{source: {requestPrincipals: [test-issuer-1@istio.io/sub-1]}}]}
- {to: [{operation: {paths: [/token2]}}], when: [{key: 'request.auth.claims[groups]', values: [group-2]}]}
- {to: [{operation: {paths: [/tokenAny]}}], from: [{source: {requestPrincipals: ['*']}}]}
- {to: [{operation: {paths: [/token3]}}], from: [{source: {requestPrincipals: ['*'], notRequestPrincipals: [test-issuer-1@istio.io/sub-1]}}]}
- {to: [{operation: {paths: [/scope]}}], when: [{key: 'request.auth.claims[scope]', values: [append, write]}]}
- {to: [{operation: {paths: [/otherscope]}}], when: [{key: 'request.auth.claims[scope]', values: [admin]}]}
- {to: [{operation: {paths: [/permission]}}], when: [{key: 'request.auth.claims[permission]', values: [append, write]}]}
- {to: [{operation: {paths: [/nested-key1]}}], when: [{key: 'request.auth.claims[nested][key1]', values: [valueB]}]}
- {to: [{operation: {paths: [/nested-key2]}}], when: [{key: 'request.auth.claims[nested][key2]', values: [valueC]}]}
- {to: [{operation: {paths: [/audiences]}}], when: [{key: request.auth.audiences, values: [foo]}]}
- {to: [{operation: {paths: [/presenter]}}], when: [{key: request.auth.presenter, values: [bar]}]}
";
    let one = json!({"iss": "test-issuer-1@istio.io", "sub": "sub-1", "groups": ["group-1"]});
    let two = json!({"iss": "test-issuer-2@istio.io", "sub": "sub-2", "groups": ["group-2"]});
    let with = |extra: serde_json::Value| {
        let mut token = two.clone();
        token.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        token
    };
    let paths = [
        "/token1",
        "/token2",
        "/tokenAny",
        "/token3",
        "/scope",
        "/otherscope",
        "/permission",
        "/nested-key1",
        "/nested-key2",
        "/audiences",
        "/presenter",
    ];
    let issuer_two = ["/token2", "/tokenAny", "/token3"];
    for (token, mut allowed) in [
        (one, vec!["/token1", "/tokenAny"]),
        (two.clone(), issuer_two.to_vec()),
        (with(json!({"permission": "write x"})), [&issuer_two[..], &["/permission"]].concat()),
        (with(json!({"scope": "read write"})), [&issuer_two[..], &["/scope"]].concat()),
        (
            with(json!({"nested": {"key1": ["valueA", "valueB"]}})),
            [&issuer_two[..], &["/nested-key1"]].concat(),
        ),
        (with(json!({"nested": {"key2": "valueC"}})), [&issuer_two[..], &["/nested-key2"]].concat()),
        (
            with(json!({"aud": "foo", "azp": "bar"})),
            [&issuer_two[..], &["/audiences", "/presenter"]].concat(),
        ),
        (with(json!({"aud": ["x", "foo"]})), [&issuer_two[..], &["/audiences"]].concat()),
    ] {
        let snapshot = snapshot(vec![policy("payments", "tokens", Allow, rules)]);
        let mut passed: Vec<&str> = paths
            .into_iter()
            .filter(|path| {
                let call = call().path(path).claims(token.clone());
                judge(&snapshot, &call.facts()).decision.verdict == Verdict::Allow
            })
            .collect();
        passed.sort_unstable();
        allowed.sort_unstable();
        assert_eq!(passed, allowed, "{token}");
        for path in paths {
            let call = call().path(path);
            assert_eq!(
                judge(&snapshot, &call.facts()).decision.verdict,
                Verdict::Deny,
                "{path} without a token"
            );
        }
    }
}

#[test]
fn token_conditions_need_a_request() {
    let rules = "[{from: [{source: {requestPrincipals: ['*']}}]}]";
    let token = json!({"iss": "i", "sub": "s"});
    check(
        (vec![policy("payments", "a", Allow, rules)], call().tcp().claims(token.clone())),
        "deny by default",
    );
    check((vec![policy("payments", "d", Deny, rules)], call().tcp().claims(token)), "deny by d[0]");
    check((vec![policy("payments", "d", Deny, rules)], call().tcp()), "deny by d[0]");
    check((vec![policy("payments", "d", Deny, rules)], call()), "allow by no policy");
}
