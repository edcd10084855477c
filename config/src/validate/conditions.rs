//! `when`: known keys and the form of their values (reference 2.10, B.8).
use super::{policies, values};
use crate::{
    documents::{
        parse::{Node, shorten},
        report::Report,
        schema::nearest,
    },
    problem,
};
use std::collections::HashMap;

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
        match form(&key) {
            Ok(form) => {
                check_values(report, condition, &key, form, "values", "value");
                check_values(report, condition, &key, form, "notValues", "notValue");
            }
            Err((reason, hint)) => report.error(problem::BAD_CONDITION, at, reason, hint),
        }
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
                policies::principal(report, value, text);
                None
            }
            Form::Text => {
                if key.starts_with("request.headers") || key == "connection.sni" {
                    policies::middle_wildcard(report, value, text);
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
