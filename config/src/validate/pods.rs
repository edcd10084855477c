//! Deployments and Pods.
use super::{objects, values};
use crate::{
    documents::{
        UPGRADES, Upgrades,
        kubernetes::{ATTEST_UID, attest_uid},
        parse::{Key, Node, shorten},
        pod_field,
        report::Report,
    },
    problem,
};
use std::{collections::HashMap, net::IpAddr};

/// Each replica becomes a network namespace with its own sidecar.
const MAX_REPLICAS: i64 = 1000;

/// `Deployment`.
pub fn deployment(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else { return };
    if let Some(replicas) = spec.get("replicas") {
        let count = replicas.text().and_then(|text| text.parse::<i64>().ok());
        if let Some(count) = count.filter(|count| !(0..=MAX_REPLICAS).contains(count)) {
            let reason = format!("replicas: {count} must be between 0 and {MAX_REPLICAS}");
            report.error(problem::OUT_OF_RANGE, replicas.place, reason, "choose a number in that range");
        }
    }
    objects::labels(report, spec.at("selector.matchLabels"), "selector");
    if let Some(template) = spec.get("template") {
        if let Some(meta) = template.get("metadata") {
            objects::labels(report, meta.get("labels"), "label");
            objects::inject_wish(report, meta);
            upgrades(report, meta);
            if let Some(uid) = meta.get("annotations").and_then(|map| map.get(ATTEST_UID)) {
                let reason =
                    format!("`{ATTEST_UID}` on a template: all replicas would be one user's processes");
                report.error(problem::BAD_ATTEST_UID, uid.place, reason, "write it on a Pod");
            }
        }
        selector_matches(report, spec, template);
        pod_spec(report, template.get("spec"));
    }
}

fn selector_matches(report: &mut Report<'_>, spec: &Node, template: &Node) {
    let Some((key, selector)) = spec.entry("selector") else { return };
    let labels = template.at("metadata.labels").map(Node::entries).unwrap_or_default();
    let labels: HashMap<&str, Option<&str>> =
        labels.iter().map(|(key, value)| (key.text.as_str(), value.text())).collect();
    let wanted = selector.get("matchLabels").map(Node::entries).unwrap_or_default();
    if wanted.is_empty() && selector.list("matchExpressions").next().is_none() {
        let reason = "a Deployment's selector must not be empty";
        return report.error(
            problem::SELECTOR_MISMATCH,
            key.place,
            reason,
            "add `matchLabels:` as in the template's labels",
        );
    }
    for (label, value) in wanted {
        let has = labels.get(label.text.as_str()).copied().flatten();
        if has == value.text() {
            continue;
        }
        let (name, wants) = (shorten(&label.text), shorten(value.text().unwrap_or_default()));
        let reason = format!(
            "`selector` does not match template `labels`: it wants `{name}: {wants}`, the template has {}",
            has.map_or_else(|| "no such label".to_owned(), |has| format!("`{name}: {}`", shorten(has)))
        );
        report.error(
            problem::SELECTOR_MISMATCH,
            label.place,
            reason,
            format!("write `{name}: {wants}` in spec.template.metadata.labels"),
        );
    }
    for expression in selector.list("matchExpressions") {
        let name = expression.string("key");
        let has = labels.get(name.as_str()).copied().flatten();
        let listed = expression.list("values").any(|value| value.text() == has);
        let holds = match expression.get("operator").and_then(Node::text) {
            Some("In") => has.is_some() && listed,
            Some("NotIn") => has.is_none() || !listed,
            Some("Exists") => has.is_some(),
            Some("DoesNotExist") => has.is_none(),
            _ => true,
        };
        if !holds {
            let reason = format!(
                "`selector` does not match template `labels`: the expression on `{}` is false for them",
                shorten(&name)
            );
            report.error(
                problem::SELECTOR_MISMATCH,
                expression.place,
                reason,
                "change the template's labels or the expression",
            );
        }
    }
}

fn upgrades(report: &mut Report<'_>, meta: &Node) {
    let Some(list) = meta.get("annotations").and_then(|map| map.get(UPGRADES)) else { return };
    if let Err(why) = Upgrades::parse(list.text().unwrap_or_default()) {
        let hint = "write the names as they stand in `Upgrade`, for example `spdy/3.1, tcp`";
        report.error(problem::BAD_UPGRADES, list.place, format!("`{UPGRADES}`: {}", shorten(&why)), hint);
    }
}

/// `Pod`.
pub fn pod(report: &mut Report<'_>, node: &Node) {
    if let Some(uid) = node.at("metadata.annotations").and_then(|map| map.get(ATTEST_UID)) {
        let text = uid.text().unwrap_or_default();
        if let Err(why) = attest_uid(text) {
            let reason = format!("`{ATTEST_UID}: {}`: {why}", shorten(text));
            let hint = "write the number that `id -u` prints for the sidecar's user, in quotes";
            report.error(problem::BAD_ATTEST_UID, uid.place, reason, hint);
        }
    }
    if let Some(meta) = node.get("metadata") {
        upgrades(report, meta);
    }
    pod_spec(report, node.get("spec"));
    let Some(status) = node.get("status") else { return };
    let addresses = status.list("podIPs").filter_map(|entry| entry.get("ip")).chain(status.get("podIP"));
    for address in addresses {
        let text = address.text().unwrap_or_default();
        if text.parse::<IpAddr>().is_err() {
            let reason = format!("bad IP address ({})", shorten(text));
            report.error(problem::BAD_ADDRESS, address.place, reason, "write an IPv4 or IPv6 address");
        }
    }
}

fn pod_spec(report: &mut Report<'_>, spec: Option<&Node>) {
    let Some(spec) = spec else { return };
    for name in ["serviceAccountName", "serviceAccount"].iter().filter_map(|key| spec.get(key)) {
        objects::named(report, name, "service account", values::dns_subdomain);
    }
    if let Some((key, _)) = present(spec, "initContainers") {
        not_honoured(report, key, "initContainers do not run", "do their work in the container's command");
    }
    if let Some((key, _)) = spec.entry("hostNetwork").filter(|(_, value)| value.text() == Some("true")) {
        not_honoured(
            report,
            key,
            "hostNetwork: true: the pod gets its own network all the same, and no sidecar",
            "remove it",
        );
    }
    let empty = |list: &Node| !list.is_null() && list.items().next().is_none();
    if let Some((key, _)) = spec.entry("containers").filter(|(_, list)| empty(list)) {
        let reason = "a pod needs at least one container";
        report.error(problem::MISSING_FIELD, key.place, reason, "add `- name:` and `command:`");
    }
    let (mut names, mut ports) = (HashMap::new(), HashMap::new());
    for container in spec.list("containers") {
        if let Some(name) = container.get("name") {
            objects::named(report, name, "container name", values::dns_label);
            let text = name.text().unwrap_or_default().to_owned();
            if let Some(line) = names.insert(text.clone(), name.place.line) {
                let reason = format!("container `{}` is already on line {line}", shorten(&text));
                report.error(
                    problem::DUPLICATE_OBJECT,
                    name.place,
                    reason,
                    "give each container its own name",
                );
            }
        }
        environment(report, container);
        container_ports(report, container, &mut ports);
    }
}

fn environment(report: &mut Report<'_>, container: &Node) {
    if let Some((key, _)) = present(container, "envFrom") {
        not_honoured(
            report,
            key,
            "envFrom is not read: the variables are not set",
            "write them as `env:` with `value:`",
        );
    }
    for entry in container.list("env") {
        if let Some(name) = entry.get("name") {
            let text = name.text().unwrap_or_default();
            if text.is_empty() || text.contains(['=', '\0']) {
                let reason =
                    format!("environment variable name `{}` must not be empty or hold `=`", shorten(text));
                report.error(problem::BAD_NAME, name.place, reason, "use letters, digits and `_`");
            }
        }
        let Some((key, from)) = entry.entry("valueFrom").filter(|(_, from)| !from.is_null()) else {
            continue;
        };
        if entry.get("value").is_some_and(|value| value.text() != Some("")) {
            let reason = "`value` and `valueFrom` may not both be set";
            report.error(problem::UNKNOWN_VALUE, key.place, reason, "keep one of the two");
        }
        let field = from.at("fieldRef.fieldPath").and_then(Node::text);
        if field.and_then(pod_field).is_none() {
            let name = entry.string("name");
            let reason = format!(
                "`{}` is not set: only fieldRef to metadata.name, metadata.namespace, status.podIP and spec.serviceAccountName is read",
                shorten(&name)
            );
            not_honoured(report, key, &reason, "write `value:`");
        }
    }
}

fn container_ports(report: &mut Report<'_>, container: &Node, seen: &mut HashMap<String, usize>) {
    for port in container.list("ports") {
        if let Some(number) = port.get("containerPort") {
            objects::port_number(report, number, "containerPort", 1);
        }
        if let Some(name) = port.get("name") {
            objects::named(report, name, "port name", values::port_name);
            let key = name.text().unwrap_or_default().to_owned();
            objects::twice(report, seen, key, name.place, |name| format!("port name `{}`", shorten(name)));
        }
    }
}

/// A list that is there and has something in it.
fn present<'n>(node: &'n Node, key: &str) -> Option<(&'n Key, &'n Node)> {
    node.entry(key).filter(|(_, list)| list.items().next().is_some())
}

fn not_honoured(report: &mut Report<'_>, key: &Key, reason: &str, hint: &str) {
    report.warning(problem::NOT_HONOURED, key.place, format!("postern up: {reason}"), hint);
}
