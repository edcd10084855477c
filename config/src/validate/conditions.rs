//! `when`: known keys and the form of their values (reference 2.10, B.8).
use super::{advice, policies, values};
use crate::{
    documents::{
        parse::{Node, Place, shorten},
        report::Report,
        schema::nearest,
    },
    problem,
};
use std::collections::{HashMap, HashSet};

/// What a key's values are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Principal,
    Address,
    Port,
    ServiceAccount,
    TrustDomain,
}

/// Keys without brackets.
const KEYS: &[(&str, Form)] = &[
    ("source.ip", Form::Address),
    ("remote.ip", Form::Address),
    ("source.namespace", Form::Text),
    ("source.serviceAccount", Form::ServiceAccount),
    ("source.principal", Form::Principal),
    ("source.trustDomain", Form::TrustDomain),
    ("request.auth.principal", Form::Text),
    ("request.auth.audiences", Form::Text),
    ("request.auth.presenter", Form::Text),
    ("destination.ip", Form::Address),
    ("destination.port", Form::Port),
    ("connection.sni", Form::Text),
];
/// Keys that take a name in brackets.
const BRACKETED: &[&str] = &["request.headers", "request.auth.claims"];
/// Keys that CUSTOM may not use.
const NOT_WITH_CUSTOM: &[&str] =
    &["source.namespace", "source.serviceAccount", "source.trustDomain", "source.principal"];

/// All conditions of a rule.
pub fn check(report: &mut Report<'_>, rule: &Node, custom: bool) {
    let mut seen = HashMap::new();
    for condition in rule.list("when") {
        if condition.is_null() {
            report.error(
                problem::BAD_CONDITION,
                condition.place,
                "when field cannot be nil",
                "remove it, or write `- key:`",
            );
            continue;
        }
        let key = condition.string("key");
        let at = condition.get("key").map_or(condition.place, |key| key.place);
        if key.is_empty() {
            report.error(
                problem::BAD_CONDITION,
                at,
                "`key` must not be empty",
                "for example `key: source.ip`",
            );
            continue;
        }
        if condition.list("values").next().is_none() && condition.list("notValues").next().is_none() {
            let reason =
                format!("at least one of `values` or `notValues` must be set for key {}", shorten(&key));
            report.error(problem::BAD_CONDITION, at, reason, "add `values: [...]`");
        }
        if let Some(line) = seen.insert(key.clone(), at.line) {
            let reason = format!("condition `{}` is already on line {line}; both must hold", shorten(&key));
            report.warning(
                problem::DUPLICATE_CONDITION,
                at,
                reason,
                "put all values into one condition to match any of them",
            );
        }
        if custom && (NOT_WITH_CUSTOM.contains(&key.as_str()) || key.starts_with("request.auth.")) {
            let reason = format!("{} is currently not supported with CUSTOM action", shorten(&key));
            report.error(problem::BAD_ACTION, at, reason, "remove the condition");
        }
        if key.starts_with("experimental.envoy.") {
            let reason = format!(
                "a condition on experimental.envoy.* (Envoy's filter metadata) is not enforced yet ({})",
                shorten(&key)
            );
            report.error(problem::FIELD_NOT_ENFORCED, at, reason, policies::NOT_ENFORCED_HINT);
        }
        if key.starts_with("request.auth.") && !custom && form(&key).is_ok() {
            let negated = condition.list("values").next().is_none();
            advice::needs_token(report, at, &key, negated);
        }
        if let Some(pseudo) = pseudo_header(&key) {
            report.error(problem::FIELD_NOT_ENFORCED, at, pseudo.0, pseudo.1);
        }
        for field in ["values", "notValues"] {
            if let Some((written, list)) = condition.entry(field) {
                policies::empty_list(report, written, list);
            }
        }
        advice::contradiction(report, condition, "values", "notValues");
        if key == "destination.port" {
            other_ports(report, rule, condition, at);
        }
        match form(&key) {
            Ok(form) => {
                check_values(report, condition, &key, form, "values", "value");
                check_values(report, condition, &key, form, "notValues", "notValue");
            }
            Err((reason, hint)) => report.error(problem::BAD_CONDITION, at, reason, hint),
        }
    }
}

/// Pseudo headers other than `:authority` and `:method` are not headers to the evaluator.
fn pseudo_header(key: &str) -> Option<(String, &'static str)> {
    let name = key.strip_prefix("request.headers[")?.strip_suffix(']')?;
    if !name.starts_with(':') || [":authority", ":method"].iter().any(|n| name.eq_ignore_ascii_case(n)) {
        return None;
    }
    Some((
        format!("a condition on the pseudo header `{}` is not enforced", shorten(name)),
        "use `to.operation.methods` or `to.operation.paths`",
    ))
}

/// Ports that `to` demands beside those that the condition demands.
fn other_ports(report: &mut Report<'_>, rule: &Node, condition: &Node, at: Place) {
    let wanted: HashSet<&str> = condition.list("values").filter_map(Node::text).collect();
    let mut operations = rule.list("to").filter_map(|to| to.get("operation")).peekable();
    let excludes = |operation: &Node| {
        let mut ports = operation.list("ports").filter_map(Node::text).peekable();
        ports.peek().is_some() && !ports.any(|port| wanted.contains(port))
    };
    if !wanted.is_empty() && operations.peek().is_some() && operations.all(excludes) {
        let reason = "`ports` of this rule's operations and `destination.port` have no port in common, so that the rule never matches";
        report.warning(problem::TCP_PORT_RULE, at, reason, "say the port in one place");
    }
}

/// The form of a key's values, or why there is no such key and what to write.
fn form(key: &str) -> Result<Form, (String, String)> {
    let shown = shorten(key);
    if let Some((_, form)) = KEYS.iter().find(|(known, _)| *known == key) {
        return Ok(*form);
    }
    let (name, rest) = key.split_at(key.find('[').unwrap_or(key.len()));
    if BRACKETED.contains(&name) || key.starts_with("experimental.envoy.filters.") {
        let inner = rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        return match inner {
            Some(inner) if !inner.is_empty() => Ok(Form::Text),
            _ => Err((
                format!("bad key ({shown}): should have format a[b]"),
                format!("for example `{name}[x]`"),
            )),
        };
    }
    Err(match name {
        "destination.namespace" => (
            format!("attribute {shown} is replaced by the metadata.namespace"),
            "put the policy into the namespace that it protects".into(),
        ),
        "destination.labels" => {
            (format!("attribute {shown} is replaced by the workload selector"), "use `spec.selector`".into())
        }
        "destination.name" | "destination.user" => (
            format!("deprecated attribute {shown}: only supported in v1alpha1"),
            "use `spec.selector`".into(),
        ),
        _ => {
            let known = KEYS.iter().map(|(key, _)| *key).chain(BRACKETED.iter().copied());
            let hint = match nearest(name, known.clone()) {
                Some(known) => format!(
                    "did you mean `{known}{}`?",
                    if BRACKETED.contains(&known) { "[...]" } else { "" }
                ),
                None => format!("known keys: {}", known.collect::<Vec<_>>().join(", ")),
            };
            (format!("unknown attribute: {shown}"), hint)
        }
    })
}

fn check_values(report: &mut Report<'_>, condition: &Node, key: &str, form: Form, field: &str, word: &str) {
    for value in condition.list(field) {
        let Some(text) = value.text().filter(|_| !value.is_null()) else { continue };
        if text.is_empty() {
            let reason = format!("empty value not allowed, found in {}", shorten(key));
            report.error(
                problem::EMPTY_VALUE,
                value.place,
                reason,
                "remove it; `\"*\"` matches any non-empty value",
            );
            continue;
        }
        let why = match form {
            Form::Address => values::ip_block(text).map(|why| (problem::BAD_ADDRESS, why)),
            Form::Port => values::policy_port(text).map(|why| (problem::BAD_PORT, why)),
            Form::ServiceAccount => values::service_account(text, "ServiceAccounts")
                .map(|why| (problem::BAD_SERVICE_ACCOUNT, why)),
            Form::TrustDomain => {
                values::trust_domain_pattern(text, "TrustDomains").map(|why| (problem::BAD_TRUST_DOMAIN, why))
            }
            Form::Principal => {
                advice::principal(report, value, text);
                None
            }
            Form::Text => {
                if key.starts_with("request.headers") || key == "connection.sni" {
                    advice::middle_wildcard(report, value, text);
                }
                None
            }
        };
        if let Some((code, why)) = why {
            let why = format!("invalid `{word}` for `key` {}: {why}", shorten(key));
            policies::refuse(report, value, code, Some(why));
        }
    }
}
