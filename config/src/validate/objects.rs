//! Metadata of all kinds, label selectors, and Services.
use super::{suppressions, values};
use crate::{
    documents::{
        DRY_RUN,
        destination_rule::REQUEST_TIMEOUT,
        go_bool,
        kubernetes::POD_KEYS,
        parse::{Node, Place, Plain, Value, shorten},
        report::Report,
    },
    problem,
};
use std::{collections::HashMap, net::IpAddr};

/// Name, namespace, labels, annotations.
pub fn metadata(report: &mut Report<'_>, kind: &str, node: &Node) {
    let Some(meta) = node.get("metadata") else { return };
    let check_name = match kind {
        "Namespace" => values::dns_label,
        "Service" => values::service_name,
        _ => values::dns_subdomain,
    };
    if let Some(name) = meta.get("name") {
        named(report, name, "name", check_name);
    }
    if let Some(namespace) = meta.get("namespace") {
        named(report, namespace, "namespace", values::dns_label);
    }
    labels(report, meta.get("labels"), "label");
    for (key, _) in meta.get("annotations").map(Node::entries).unwrap_or_default() {
        if let Some(why) = values::label_key(&key.text) {
            report.error(
                problem::BAD_LABEL,
                key.place,
                format!("annotation key `{}`: {why}", shorten(&key.text)),
                "write `[prefix/]name`",
            );
        }
    }
    suppressions::check(report, node);
    inject_wish(report, meta);
    let annotation = |key| meta.get("annotations").and_then(|annotations| annotations.get(key));
    if let Some(timeout) = annotation(REQUEST_TIMEOUT).filter(|_| kind != "DestinationRule") {
        report.warning(
            problem::NO_EFFECT,
            timeout.place,
            format!("{REQUEST_TIMEOUT} has no meaning on a {kind}"),
            "write it on the DestinationRule of the service that is called",
        );
    }
    let dry_run = annotation(DRY_RUN);
    if let Some(text) = dry_run.and_then(Node::text) {
        let at = dry_run.map_or(meta.place, |node| node.place);
        if kind == "PeerAuthentication" {
            let reason = format!("{DRY_RUN} on a PeerAuthentication: it would be enforced, not tried");
            report.error(
                problem::BAD_ACTION,
                at,
                reason,
                "remove the annotation; only AuthorizationPolicies can be tried out",
            );
        } else if kind != "AuthorizationPolicy" {
            report.warning(
                problem::NO_EFFECT,
                at,
                format!("{DRY_RUN} has no meaning on a {kind}"),
                "remove the annotation",
            );
        } else if go_bool(text).is_none() {
            let reason = format!("annotation {DRY_RUN} must be a boolean, found \"{}\"", shorten(text));
            report.error(problem::UNKNOWN_VALUE, at, reason, "write \"true\" or \"false\", with the quotes");
        }
    }
}

/// One scalar that must satisfy a grammar of names.
pub fn named(report: &mut Report<'_>, node: &Node, what: &str, check: impl Fn(&str) -> Option<String>) {
    let Value::Scalar(scalar) = &node.value else { return };
    if scalar.plain() != Plain::String {
        return; // the schema has said so
    }
    if let Some(why) = check(&scalar.text) {
        let fixed: String = scalar
            .text
            .to_lowercase()
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .collect();
        let hint = match check(&fixed) {
            None => format!("for example `{fixed}`"),
            Some(_) => "see RFC 1123 and the Kubernetes documentation on names".to_owned(),
        };
        report.error(
            problem::BAD_NAME,
            node.place,
            format!("{what} `{}`: {why}", shorten(&scalar.text)),
            hint,
        );
    }
}

/// Keys and values of a map of labels.
pub fn labels(report: &mut Report<'_>, node: Option<&Node>, what: &str) {
    for (key, value) in node.map(Node::entries).unwrap_or_default() {
        if let Some(why) = values::label_key(&key.text) {
            let reason = format!("{what} key `{}`: {why}", shorten(&key.text));
            report.error(problem::BAD_LABEL, key.place, reason, "write `[prefix/]name`");
        }
        let text = value.text().unwrap_or_default();
        if let Some(why) = values::label_value(text) {
            let reason = format!("{what} value `{}`: {why}", shorten(text));
            report.error(
                problem::BAD_LABEL,
                value.place,
                reason,
                "label values have at most 63 letters, digits, `-`, `_`, `.`",
            );
        }
    }
}

/// Anything but `true` and `false` is as if absent; Istio only logs it.
pub fn inject_wish(report: &mut Report<'_>, meta: &Node) {
    for map in ["labels", "annotations"] {
        for key in POD_KEYS {
            let Some(wish) = meta.get(map).and_then(|map| map.get(key)) else { continue };
            let text = wish.text().unwrap_or_default();
            let on_namespace = matches!(text, "enabled" | "disabled") && key == "postern.dev/inject";
            if !matches!(text, "true" | "false") && !on_namespace {
                let reason = format!("`{key}: {}` counts as absent", shorten(text));
                report.warning(
                    problem::UNKNOWN_VALUE,
                    wish.place,
                    reason,
                    "write exactly \"true\" or \"false\", with the quotes",
                );
            }
        }
    }
}

/// `selector` of Istio's objects.
pub fn istio_selector(report: &mut Report<'_>, spec: &Node) {
    let Some((key, selector)) = spec.entry("selector") else { return };
    if matches!(selector.value, Value::Map(_))
        && selector.at("matchLabels").is_none_or(|labels| labels.entries().is_empty())
    {
        let reason = "workload selector specified without labels: it selects every workload in its scope";
        return report.warning(
            problem::EMPTY_SELECTOR,
            key.place,
            reason,
            "remove the selector, or add `matchLabels:`",
        );
    }
    let entries = selector.at("matchLabels").map(Node::entries).unwrap_or_default();
    if entries.len() > 4096 {
        report.error(
            problem::BAD_SELECTOR,
            key.place,
            "matchLabels may have at most 4096 entries",
            "split the policy",
        );
        return;
    }
    for (key, value) in entries {
        let text = value.text().unwrap_or_default();
        let pair = format!("\"{}={}\"", shorten(&key.text), shorten(text));
        if key.text.is_empty() {
            let reason = format!("empty key is not supported in selector: {pair} (key must not be empty)");
            report.error(problem::BAD_SELECTOR, key.place, reason, "name the label");
        } else if key.text.contains('*') || text.contains('*') {
            let which = if key.text.contains('*') { "key" } else { "value" };
            let reason = format!(
                "wildcard is not supported in selector: {pair} (wildcard not allowed in label {which} match)"
            );
            let place = if which == "key" { key.place } else { value.place };
            report.error(problem::BAD_SELECTOR, place, reason, "write the label as the pods have it");
        } else if text.chars().count() > 63 {
            let reason = format!("label value in selector: {pair} has more than 63 characters");
            report.error(problem::BAD_SELECTOR, value.place, reason, "write the label as the pods have it");
        }
    }
}

/// `Service`.
pub fn service(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else {
        return report.error(
            problem::MISSING_FIELD,
            node.place,
            "a Service needs a `spec`",
            "add `spec:` with `ports:`",
        );
    };
    labels(report, spec.get("selector"), "selector");
    if let Some(kind) = spec.get("type").filter(|kind| kind.text() == Some("ExternalName")) {
        let reason = "an ExternalName service is a DNS alias; Postern does not resolve it";
        report.warning(problem::NOT_HONOURED, kind.place, reason, "name the target itself");
    }
    for address in spec.get("clusterIP").into_iter().chain(spec.list("clusterIPs")) {
        let text = address.text().unwrap_or_default();
        if !text.is_empty() && text != "None" && text.parse::<IpAddr>().is_err() {
            let reason = format!("bad IP address ({})", shorten(text));
            report.error(
                problem::BAD_ADDRESS,
                address.place,
                reason,
                "write an IPv4 or IPv6 address, or None",
            );
        }
    }
    let ports: Vec<&Node> = spec.list("ports").collect();
    if ports.is_empty()
        && spec.get("clusterIP").and_then(Node::text) != Some("None")
        && spec.get("externalName").is_none()
    {
        report.error(
            problem::MISSING_FIELD,
            spec.place,
            "a Service needs at least one port",
            "add `ports:` with `- port: 80`",
        );
    }
    let (mut numbers, mut names) = (HashMap::new(), HashMap::new());
    for port in &ports {
        let protocol = port.get("protocol").and_then(Node::text).unwrap_or("TCP").to_owned();
        if let Some(number) = port.get("port") {
            port_number(report, number, "port", 1);
            let key = (number.text().unwrap_or_default().to_owned(), protocol.clone());
            twice(report, &mut numbers, key, number.place, |(number, protocol)| {
                format!("port {number}/{protocol}")
            });
        }
        if let Some(name) = port.get("name") {
            named(report, name, "port name", values::dns_label);
            let key = name.text().unwrap_or_default().to_owned();
            twice(report, &mut names, key, name.place, |name| format!("port name `{name}`"));
        } else if ports.len() > 1 {
            report.error(
                problem::MISSING_FIELD,
                port.place,
                "a port of a Service with several ports needs a `name`",
                "add `name:`",
            );
        }
        if let Some(target) = port.get("targetPort") {
            match &target.value {
                Value::Scalar(scalar) if scalar.plain() == Plain::Number => {
                    if scalar.text.parse::<i64>().is_err() {
                        let reason = format!("targetPort {} is not a whole number", shorten(&scalar.text));
                        report.error(problem::BAD_PORT, target.place, reason, "write decimal digits");
                    }
                    port_number(report, target, "targetPort", 1);
                }
                _ => named(report, target, "targetPort", |text| {
                    let why = values::port_name(text)?;
                    let number = text.parse::<u16>().is_ok();
                    Some(if number { "a port number is written without quotes".into() } else { why })
                }),
            }
        }
        if let Some(number) = port.get("nodePort") {
            port_number(report, number, "nodePort", 0);
        }
        if let Some(sctp) = port.get("protocol").filter(|protocol| protocol.text() == Some("SCTP")) {
            report.error(problem::FIELD_NOT_ENFORCED, sctp.place, "SCTP is not enforced yet", "use TCP");
        }
    }
}

/// Reports a key that was seen before, at its second place.
pub fn twice<K: std::hash::Hash + Eq + Clone>(
    report: &mut Report<'_>,
    seen: &mut HashMap<K, usize>,
    key: K,
    at: Place,
    name: impl Fn(&K) -> String,
) {
    match seen.get(&key) {
        Some(line) => {
            let reason = format!("{} is already used on line {line}", name(&key));
            report.error(problem::DUPLICATE_PORT, at, reason, "give each port its own number and name");
        }
        None => {
            seen.insert(key, at.line);
        }
    }
}

/// A port number of at least `least`; other types are the schema's business.
pub fn port_number(report: &mut Report<'_>, node: &Node, what: &str, least: i64) {
    let Some(number) = node.text().and_then(|text| text.parse::<i64>().ok()) else { return };
    if !(least..=65535).contains(&number) {
        let reason = format!("{what} {number} must be between {least} and 65535");
        report.error(problem::BAD_PORT, node.place, reason, "choose a number in that range");
    }
}
