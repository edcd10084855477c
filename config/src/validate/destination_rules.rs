//! DestinationRule: what is enforced, what is refused, and what it does to workloads that take mutual TLS only.
use super::{objects, relations::Relations, service_entries, values};
use crate::{
    documents::{
        destination_rule::{DestinationRule, REQUEST_TIMEOUT, TlsMode, duration},
        kubernetes::{TargetPort, injected, service_host},
        parse::{Node, shorten},
        peer_authentication::MtlsMode,
        report::Report,
    },
    problem::{self, BAD_TRAFFIC_POLICY, FIELD_NOT_ENFORCED},
    select,
};
use std::collections::HashMap;

/// `DestinationRule`.
pub fn destination_rule(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else { return };
    if let Some(host) = spec.get("host") {
        let text = host.text().unwrap_or_default().to_ascii_lowercase();
        let name = text.strip_prefix("*.").unwrap_or(&text);
        if name != "*"
            && let Some(why) = values::dns_subdomain(name)
        {
            let reason = format!("host `{}`: {why}", shorten(&text));
            report.error(
                BAD_TRAFFIC_POLICY,
                host.place,
                reason,
                "write the name of a service, without a port",
            );
        }
    }
    not_enforced(report, spec, "", &["subsets", "workloadSelector"]);
    service_entries::export_to(report, spec);
    let annotations = node.get("metadata").and_then(|meta| meta.get("annotations"));
    let has_timeout = annotations.is_some_and(|annotations| {
        durations(report, annotations, &[REQUEST_TIMEOUT]);
        annotations.get(REQUEST_TIMEOUT).is_some()
    });
    let Some((key, policy)) = spec.entry("trafficPolicy").filter(|(_, policy)| !policy.is_null()) else {
        if has_timeout {
            return;
        }
        let at = spec.entry("host").map_or(spec.place, |(key, _)| key.place);
        let reason = "a DestinationRule without trafficPolicy changes nothing";
        return report.warning(
            problem::NO_EFFECT,
            at,
            reason,
            "add `trafficPolicy:`, or remove the document",
        );
    };
    if policy.entries().is_empty() && !has_timeout {
        report.warning(
            problem::NO_EFFECT,
            key.place,
            "trafficPolicy is empty",
            "add a setting, or remove it",
        );
    }
    not_enforced(report, policy, "trafficPolicy.", &["tunnel", "proxyProtocol", "retryBudget"]);
    settings(report, policy);
    let mut seen = HashMap::new();
    for level in policy.list("portLevelSettings") {
        if let Some(number) = level.at("port.number") {
            objects::port_number(report, number, "port", 1);
            let key = number.text().unwrap_or_default().to_owned();
            objects::twice(report, &mut seen, key, number.place, |number| format!("port {number}"));
        }
        settings(report, level);
    }
}

fn not_enforced(report: &mut Report<'_>, node: &Node, path: &str, names: &[&str]) {
    for name in names {
        if let Some((key, _)) = node.entry(name).filter(|(_, value)| !value.is_null()) {
            let reason = format!("`{path}{name}` of a DestinationRule is not enforced yet");
            report.error(
                FIELD_NOT_ENFORCED,
                key.place,
                reason,
                "remove it; the page docs/traffic.md lists what is enforced",
            );
        }
    }
}

/// One level of settings: of all ports, or of one.
fn settings(report: &mut Report<'_>, level: &Node) {
    if let Some(balancer) = level.get("loadBalancer") {
        let names = ["consistentHash", "localityLbSetting", "warmupDurationSecs", "warmup"];
        not_enforced(report, balancer, "loadBalancer.", &names);
        if let Some(word) = balancer.get("simple").filter(|word| word.text() == Some("PASSTHROUGH")) {
            let reason = "PASSTHROUGH counts as LEAST_REQUEST: a sidecar calls only endpoints that it knows";
            report.warning(
                problem::NO_EFFECT,
                word.place,
                reason,
                "remove it; to reach one pod, call its address",
            );
        }
    }
    if let Some(tcp) = level.at("connectionPool.tcp") {
        not_enforced(report, tcp, "connectionPool.tcp.", &["maxConnectionDuration"]);
        numbers(report, tcp, &["maxConnections"], i64::from(i32::MAX));
        durations(report, tcp, &["connectTimeout", "idleTimeout"]);
        if let Some(keepalive) = tcp.get("tcpKeepalive") {
            numbers(report, keepalive, &["probes"], 127);
            durations(report, keepalive, &["time", "interval"]);
        }
    }
    if let Some(http) = level.at("connectionPool.http") {
        not_enforced(report, http, "connectionPool.http.", &["useClientProtocol", "maxConcurrentStreams"]);
        let counted =
            ["http1MaxPendingRequests", "http2MaxRequests", "maxRequestsPerConnection", "maxRetries"];
        numbers(report, http, &counted, i64::from(i32::MAX));
        durations(report, http, &["idleTimeout"]);
    }
    if let Some(outliers) = level.get("outlierDetection") {
        not_enforced(report, outliers, "outlierDetection.", &["consecutiveErrors"]);
        let counted = ["consecutiveLocalOriginFailures", "consecutiveGatewayErrors", "consecutive5xxErrors"];
        numbers(report, outliers, &counted, i64::from(i32::MAX));
        numbers(report, outliers, &["maxEjectionPercent", "minHealthPercent"], 100);
        durations(report, outliers, &["interval", "baseEjectionTime"]);
        let splits = outliers.get("splitExternalLocalOriginErrors").and_then(Node::text) == Some("true");
        if let Some((key, _)) = outliers.entry("consecutiveLocalOriginFailures").filter(|_| !splits) {
            let reason =
                "consecutiveLocalOriginFailures counts only with splitExternalLocalOriginErrors: true";
            report.warning(problem::NO_EFFECT, key.place, reason, "add it, or remove this");
        }
    }
    tls(report, level);
}

fn tls(report: &mut Report<'_>, level: &Node) {
    let Some((key, tls)) = level.entry("tls").filter(|(_, tls)| !tls.is_null()) else { return };
    match tls.get("mode") {
        None => {
            let reason = "`tls` without `mode` would be DISABLE in Istio: plaintext";
            report.error(
                BAD_TRAFFIC_POLICY,
                key.place,
                reason,
                "write `mode: ISTIO_MUTUAL` or `mode: DISABLE`, or remove `tls`",
            );
        }
        Some(mode) if matches!(mode.text(), Some("SIMPLE" | "MUTUAL")) => {
            let reason = format!(
                "tls mode {} is not enforced yet: a sidecar does not speak TLS in the place of its application",
                mode.text().unwrap_or_default()
            );
            report.error(
                FIELD_NOT_ENFORCED,
                mode.place,
                reason,
                "let the application speak TLS itself, which passes through",
            );
        }
        Some(_) => {}
    }
    let names = [
        "clientCertificate",
        "privateKey",
        "caCertificates",
        "caCrl",
        "credentialName",
        "subjectAltNames",
        "sni",
        "insecureSkipVerify",
    ];
    not_enforced(report, tls, "tls.", &names);
}

fn numbers(report: &mut Report<'_>, node: &Node, names: &[&str], most: i64) {
    for name in names {
        let Some(value) = node.get(name) else { continue };
        let Some(number) = value.text().and_then(|text| text.parse::<i64>().ok()) else { continue };
        if !(0..=most).contains(&number) {
            let reason = format!("{name} {number} must be between 0 and {most}");
            report.error(BAD_TRAFFIC_POLICY, value.place, reason, "choose a number in that range");
        }
    }
}

fn durations(report: &mut Report<'_>, node: &Node, names: &[&str]) {
    for name in names {
        let Some(value) = node.get(name) else { continue };
        let text = value.text().unwrap_or_default();
        if duration(text).is_none_or(|duration| duration.as_millis() == 0) {
            let reason = format!("{name} `{}` is no duration of 1 ms or more", shorten(text));
            report.error(
                BAD_TRAFFIC_POLICY,
                value.place,
                reason,
                "write for example `10s`, `1m30s` or `250ms`",
            );
        }
    }
}

/// What needs other documents: whether plaintext meets workloads that refuse it.
pub fn relations(found: &mut Relations<'_>) {
    let documents = found.documents;
    same_host(found);
    for rule in &documents.destination_rules {
        let plain_ports: Vec<u16> = rule
            .value
            .ports
            .iter()
            .filter(|(_, level)| level.1 == Some(TlsMode::Disable))
            .map(|(port, _)| *port)
            .collect();
        if rule.value.tls != Some(TlsMode::Disable) && plain_ports.is_empty() {
            continue;
        }
        if let Some((service, port)) = strict_behind(found, &rule.value) {
            let reason = format!(
                "tls mode DISABLE towards {service}, whose port {port} is STRICT: every call is refused"
            );
            let hint = "remove `tls`: sidecars use mutual TLS wherever the other end has it";
            found.warning(problem::PLAIN_TO_STRICT, (&rule.origin, "spec.trafficPolicy"), reason, hint);
        }
    }
}

/// Of several rules for one host in one namespace the oldest counts.
fn same_host(found: &mut Relations<'_>) {
    let mut rules: Vec<_> = found.documents.destination_rules.iter().collect();
    rules.sort_by(|a, b| select::by_age(&a.value.metadata, &b.value.metadata));
    let mut seen = HashMap::new();
    for rule in rules {
        let metadata = &rule.value.metadata;
        match seen.get(&(&metadata.namespace, &rule.value.host)) {
            None => {
                seen.insert((&metadata.namespace, &rule.value.host), metadata);
            }
            // A rule that others do not see leaves them the next one.
            Some(_) if !rule.value.export_to.is_empty() => {}
            Some(first) => {
                let reason = format!(
                    "the rule has no effect: `{}` has the same host `{}` and comes first, by age and then by name",
                    first.name, rule.value.host
                );
                let hint = "put all settings of a host into one rule";
                found.warning(problem::NO_EFFECT, (&rule.origin, "metadata.name"), reason, hint);
            }
        }
    }
}

/// The first service that a rule with plaintext leads to and whose workloads refuse it.
fn strict_behind(found: &mut Relations<'_>, rule: &DestinationRule) -> Option<(String, u16)> {
    let documents = found.documents;
    for service in documents.services.iter().map(|service| &service.value) {
        let metadata = &service.metadata;
        let host = service_host(&metadata.name, &metadata.namespace);
        if !covers(&rule.host, &host) || service.selector.is_empty() {
            continue;
        }
        let pods = found.pods.selected(Some(&metadata.namespace), &service.selector)?;
        for port in service.ports.iter().filter(|port| rule.for_port(port.port).1 == Some(TlsMode::Disable)) {
            for pod in pods.iter() {
                let namespace = documents.namespaces.iter().map(|n| &n.value);
                let namespace = namespace.clone().find(|n| n.metadata.name == pod.metadata.namespace);
                let target = match &port.target {
                    TargetPort::Number(0) => port.port,
                    TargetPort::Number(number) => *number,
                    TargetPort::Name(name) => {
                        let mut all = pod.spec.containers.iter().flat_map(|container| &container.ports);
                        all.find(|container| container.name == *name)?.port
                    }
                };
                let labels = &pod.metadata.labels;
                if injected(namespace, pod)
                    && select::effective_mode(documents, &pod.metadata.namespace, labels, target)
                        == MtlsMode::Strict
                {
                    return Some((host, target));
                }
            }
        }
    }
    None
}

/// Whether the host of a rule covers a full name.
fn covers(rule: &str, host: &str) -> bool {
    match rule.strip_prefix('*') {
        Some(suffix) => host.ends_with(suffix),
        None => rule == host,
    }
}
