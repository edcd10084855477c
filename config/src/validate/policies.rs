//! AuthorizationPolicy: Istio's webhook rules with its messages (reference 2.13), what is not enforced yet, and advice
//! on mistakes that Istio lets pass.
use super::{advice, conditions, coverage, hyphens, objects, place_of, values};
use crate::{
    documents::{
        AuthorizationPolicy,
        parse::{Key, Node, Value, shorten},
        report::Report,
    },
    problem,
};

/// Most rules of a policy, and sources of a rule.
const MAX_ENTRIES: usize = 512;
/// `targetRefs[]` at most.
const MAX_TARGETS: usize = 16;
/// `serviceAccounts[]` at most.
const MAX_ACCOUNTS: usize = 16;
/// What a targetRef may name, as (group, kind).
const TARGETS: &[(&str, &str)] = &[
    ("", "Service"),
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
];
/// Fields that the webhook refuses with CUSTOM: the provider is asked before any identity is known.
const NOT_WITH_CUSTOM: &[&str] = &[
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "trustDomains",
    "notTrustDomains",
    "principals",
    "notPrincipals",
    "requestPrincipals",
    "notRequestPrincipals",
];
/// Source fields that also hold on TCP, as Istio's warning counts them.
const TCP_SOURCES: &[&str] = &[
    "principals",
    "notPrincipals",
    "namespaces",
    "notNamespaces",
    "serviceAccounts",
    "notServiceAccounts",
    "ipBlocks",
    "notIpBlocks",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

/// What to do about a part that is not enforced.
pub const NOT_ENFORCED_HINT: &str =
    "take it out, or wait for the release that enforces it; Postern refuses what it would otherwise ignore";

/// `AuthorizationPolicy`.
pub fn authorization_policy(report: &mut Report<'_>, node: &Node) {
    let policy = crate::documents::decode_policy(node);
    let Some(spec) = node.get("spec") else { return };
    objects::istio_selector(report, spec);
    targets(report, spec);
    action(report, spec, &policy);
    if spec.list("rules").count() > MAX_ENTRIES {
        let reason = format!("rules must have at most {MAX_ENTRIES} items");
        report.error(problem::OUT_OF_RANGE, place_of(spec, "rules"), reason, "split the policy");
    }
    let word = spec.get("action").and_then(Node::text).unwrap_or("ALLOW");
    for (index, rule) in spec.list("rules").enumerate() {
        if rule.is_null() {
            let reason = format!("`rule` must not be nil, found at rule {index}");
            report.error(
                problem::EMPTY_RULE,
                rule.place,
                reason,
                "write `{}` for a rule that matches everything, or remove it",
            );
            continue;
        }
        sides(report, rule, index, word);
        conditions::check(report, rule, word == "CUSTOM");
        if word == "DENY" {
            tcp_widening(report, rule);
        }
    }
    hyphens::check(report, spec);
    coverage::check(report, spec, &policy);
}

fn targets(report: &mut Report<'_>, spec: &Node) {
    let many = spec.list("targetRefs").count();
    let written = [spec.get("selector").is_some(), spec.get("targetRef").is_some(), many > 0];
    if written.iter().filter(|set| **set).count() > 1 {
        let reason = "only one of targetRefs or workloadSelector can be set (only one of targetRefs or selector can be set)";
        let at =
            spec.entry("targetRefs").or(spec.entry("targetRef")).map_or(spec.place, |(key, _)| key.place);
        report.error(
            problem::BAD_TARGET_REF,
            at,
            reason,
            "keep `selector`; targetRefs are for gateways and waypoints",
        );
    }
    if many > MAX_TARGETS {
        let reason = format!("targetRefs must have at most {MAX_TARGETS} items");
        report.error(problem::OUT_OF_RANGE, place_of(spec, "targetRefs"), reason, "split the policy");
    }
    for target in spec.get("targetRef").into_iter().chain(spec.list("targetRefs")) {
        if target.string("name").is_empty() {
            report.error(problem::BAD_TARGET_REF, target.place, "targetRef name must be set", "add `name:`");
        }
        if let Some(namespace) = target.get("namespace").filter(|ns| ns.text() != Some("")) {
            let reason = "targetRef namespace must not be set; cross namespace referencing is not supported (cross namespace referencing is not currently supported)";
            report.error(problem::BAD_TARGET_REF, namespace.place, reason, "remove `namespace`");
        }
        let (group, kind) = (target.string("group"), target.string("kind"));
        if !TARGETS.contains(&(group.as_str(), kind.as_str())) {
            let known = "core/Service, networking.istio.io/ServiceEntry, gateway.networking.k8s.io/Gateway, gateway.networking.k8s.io/GatewayClass";
            let reason = format!(
                "targetRef must be to one of [{known}] but was {}/{}",
                shorten(&group),
                shorten(&kind)
            );
            report.error(
                problem::BAD_TARGET_REF,
                target.place,
                reason,
                "name one of these, or use `selector`",
            );
        }
    }
    if let Some((key, _)) =
        spec.entry("targetRef").or(spec.entry("targetRefs")).filter(|(_, refs)| !refs.is_null())
    {
        let reason = "a policy with targetRefs is not applicable to sidecars: it enforces nothing here";
        report.warning(problem::NOT_APPLICABLE, key.place, reason, "use `selector` to protect workloads");
    }
}

fn action(report: &mut Report<'_>, spec: &Node, policy: &AuthorizationPolicy) {
    let word = spec.get("action").and_then(Node::text).unwrap_or("ALLOW");
    let at = spec.entry("action").map_or(spec.place, |(key, _)| key.place);
    if word == "CUSTOM" {
        report.error(
            problem::FIELD_NOT_ENFORCED,
            at,
            "action CUSTOM is not enforced yet (spec.action)",
            NOT_ENFORCED_HINT,
        );
        if policy.provider.as_deref().is_none_or(str::is_empty) {
            report.error(
                problem::BAD_ACTION,
                at,
                "`provider.name` must not be empty",
                "add `provider: {name: ...}`",
            );
        }
    } else if let Some((key, provider)) = spec.entry("provider").filter(|(_, provider)| !provider.is_null()) {
        let name = shorten(&provider.string("name"));
        let reason =
            format!("`provider` must not be with non CUSTOM action, found {word} (provider `{name}`)");
        report.error(problem::BAD_ACTION, key.place, reason, "remove `provider`");
    }
    if policy.dry_run && matches!(word, "AUDIT" | "CUSTOM") {
        let reason = format!("dry run (annotation istio.io/dry-run) does not go with action {word}");
        report.error(
            problem::BAD_ACTION,
            at,
            reason,
            "remove the annotation; only ALLOW and DENY can be tried out",
        );
    }
    let has_rules = spec.list("rules").next().is_some();
    if !has_rules && matches!(word, "DENY" | "CUSTOM") {
        let reason = format!(
            "{word} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you want it be triggered for every request"
        );
        report.error(problem::BAD_ACTION, at, reason, "add `rules:`, or remove the policy");
    }
}

/// `from` and `to` of a rule.
fn sides(report: &mut Report<'_>, rule: &Node, index: usize, action: &str) {
    let custom = action == "CUSTOM";
    for (side, part) in [("from", "source"), ("to", "operation")] {
        let Some((key, list)) = rule.entry(side) else { continue };
        empty_list(report, key, list);
        if side == "from" && list.items().count() > MAX_ENTRIES {
            let reason = format!("{side} must have at most {MAX_ENTRIES} items");
            report.error(problem::OUT_OF_RANGE, key.place, reason, "split the rule");
        }
        for entry in list.items() {
            let hint = format!("write `- {part}:` with at least one field, or remove `{side}` to match any");
            let Some(fields) = entry.get(part) else {
                let what = if entry.is_null() { side.to_owned() } else { format!("{side}.{part}") };
                let reason = format!("`{what}` must not be nil, found at rule {index}");
                report.error(problem::EMPTY_RULE, entry.place, reason, hint);
                continue;
            };
            if fields.entries().iter().all(|(_, list)| list.items().next().is_none()) {
                if matches!(fields.value, Value::Map(_)) {
                    let reason = format!("`{side}.{part}` must not be empty, found at rule {index}");
                    report.error(problem::EMPTY_RULE, fields.place, reason, hint);
                }
                continue;
            }
            for (key, list) in fields.entries() {
                empty_list(report, key, list);
                field(report, key, list, custom);
                match key.text.as_str() {
                    "hosts" | "notHosts" => advice::hosts(report, key, list, action),
                    "requestPrincipals" if !custom => {
                        advice::needs_token(report, key.place, &key.text, false)
                    }
                    "notRequestPrincipals" if !custom => {
                        advice::needs_token(report, key.place, &key.text, true)
                    }
                    _ => {}
                }
                advice::contradiction(report, fields, &key.text, &format!("not{}", capitalized(&key.text)));
            }
            if side == "from" {
                accounts(report, fields, index);
            }
        }
    }
}

/// YAML's `[]` is the same as nothing, which is rarely what was meant.
pub fn empty_list(report: &mut Report<'_>, key: &Key, list: &Node) {
    if matches!(&list.value, Value::List(items) if items.is_empty()) {
        let reason =
            format!("`{}: []` is the same as leaving it out: it matches anything", shorten(&key.text));
        report.warning(problem::EMPTY_LIST, key.place, reason, "name at least one value, or remove it");
    }
}

/// All values of one field of a source or an operation.
fn field(report: &mut Report<'_>, key: &Key, list: &Node, custom: bool) {
    let name = capitalized(&key.text);
    if custom && NOT_WITH_CUSTOM.contains(&key.text.as_str()) {
        let reason = format!("From.{name} is currently not supported with CUSTOM action");
        report.error(problem::BAD_ACTION, key.place, reason, "remove it");
    }
    let bare = key.text.strip_prefix("not").map_or_else(|| key.text.clone(), lower_first);
    for value in list.items() {
        let Some(text) = value.text().filter(|_| !value.is_null()) else { continue };
        if text.is_empty() {
            let reason = format!("empty value not allowed, found in {name}");
            report.error(
                problem::EMPTY_VALUE,
                value.place,
                reason,
                "remove it; `\"*\"` matches any non-empty value",
            );
            continue;
        }
        match bare.as_str() {
            "principals" => advice::principal(report, value, text),
            "trustDomains" => {
                refuse(report, value, problem::BAD_TRUST_DOMAIN, values::trust_domain_pattern(text, &name))
            }
            "serviceAccounts" => {
                refuse(report, value, problem::BAD_SERVICE_ACCOUNT, values::service_account(text, &name))
            }
            "ipBlocks" | "remoteIpBlocks" => {
                refuse(report, value, problem::BAD_ADDRESS, values::ip_block(text))
            }
            "ports" => refuse(report, value, problem::BAD_PORT, values::policy_port(text)),
            "paths" => path(report, value, text, &name),
            "methods" => advice::method(report, value, text),
            _ => {}
        }
    }
}

/// Reports what a grammar found.
pub fn refuse(report: &mut Report<'_>, value: &Node, code: &'static str, why: Option<String>) {
    let Some(why) = why else { return };
    let hint = match code {
        problem::BAD_ADDRESS => "for example \"10.0.0.0/8\", \"192.168.1.7\" or \"fd00::/8\"",
        problem::BAD_PORT => "write the workload's port in quotes, for example \"8080\"",
        problem::BAD_SERVICE_ACCOUNT => "for example \"checkout/checkout-api\"",
        problem::BAD_TEMPLATE => "`{*}` stands for one whole segment, `{**}` for the rest of the path",
        _ => "for example \"cluster.local\"",
    };
    report.error(code, value.place, shorten_long(why), hint);
}

fn path(report: &mut Report<'_>, value: &Node, text: &str, name: &str) {
    if let Some(why) = values::path_template(text, name) {
        return refuse(report, value, problem::BAD_TEMPLATE, Some(why));
    }
    let template = values::is_template(text);
    if template && !text.starts_with('/') {
        // Envoy refuses the whole configuration for such a template.
        let reason = format!("path `{}` does not begin with `/`, so that it never matches", shorten(text));
        let hint = format!("write \"/{}\"", shorten(text));
        return report.error(problem::BAD_TEMPLATE, value.place, reason, hint);
    }
    advice::path(report, value, text, template);
}

/// How many, and not beside the fields that say the same.
fn accounts(report: &mut Report<'_>, source: &Node, index: usize) {
    let set = |key: &str| source.list(key).next().is_some();
    for key in ["serviceAccounts", "notServiceAccounts"] {
        let Some((at, list)) = source.entry(key).filter(|(_, list)| list.items().next().is_some()) else {
            continue;
        };
        if set("principals") || set("notPrincipals") || set("namespaces") || set("notNamespaces") {
            let reason =
                format!("cannot set serviceAccounts with namespaces or principals, found at rule {index}");
            report.error(
                problem::BAD_SERVICE_ACCOUNT,
                at.place,
                reason,
                "write \"namespace/serviceAccount\" values alone",
            );
        }
        if list.items().count() > MAX_ACCOUNTS {
            let reason = format!("{} may not have more than {MAX_ACCOUNTS} values", capitalized(key));
            report.error(problem::BAD_SERVICE_ACCOUNT, at.place, reason, "split the source");
        }
    }
}

/// Istio's warning, at the rule (reference 2.4).
fn tcp_widening(report: &mut Report<'_>, rule: &Node) {
    let uses = |side: &str, part: &str, fields: &[&str]| {
        rule.list(side)
            .filter_map(|entry| entry.get(part))
            .any(|part| fields.iter().any(|key| part.list(key).next().is_some()))
    };
    let (from, to) = (rule.list("from").next().is_some(), rule.list("to").next().is_some());
    let source_only = from && !to && !uses("from", "source", TCP_SOURCES);
    let portless = to && !uses("to", "operation", &["ports", "notPorts"]);
    if source_only || portless {
        let reason = "configured AuthorizationPolicy will deny all traffic to TCP ports under its scope due to the use of only HTTP attributes in a DENY rule; it is recommended to explicitly specify the port";
        report.warning(problem::DENIES_TCP, rule.place, reason, "add `ports:` to the operation");
    }
}

/// Istio names fields in its messages as its Go code does.
fn capitalized(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|c| c.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map(|c| c.to_ascii_lowercase()).into_iter().chain(chars).collect()
}

/// Reasons quote values, which may be long.
fn shorten_long(why: String) -> String {
    if why.chars().count() > 300 { why.chars().take(297).chain("...".chars()).collect() } else { why }
}
