//! ServiceEntry: names, addresses, ports, and whether the resolution has what it needs.
use super::{objects, values};
use crate::{
    documents::{
        parse::{Node, shorten},
        report::Report,
        service_entry::EntryProtocol,
    },
    problem::{self, BAD_SERVICE_ENTRY, FIELD_NOT_ENFORCED},
};
use std::{collections::HashMap, net::IpAddr};

/// `ServiceEntry`.
pub fn service_entry(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else { return };
    refused(report, spec);
    hosts(report, spec);
    for address in spec.list("addresses") {
        let text = address.text().unwrap_or_default();
        if let Some(why) = values::ip_block(text) {
            report.error(problem::BAD_ADDRESS, address.place, why, "write an IP address or a CIDR range");
        }
    }
    ports(report, spec);
    endpoints(report, spec);
    export_to(report, spec);
}

/// What is Istio's and not ours yet.
fn refused(report: &mut Report<'_>, spec: &Node) {
    for (name, hint) in [
        ("workloadSelector", "list `endpoints:`, or write a Service with a selector"),
        ("subjectAltNames", "the application's own TLS passes through and checks names itself; remove it"),
    ] {
        if let Some((key, _)) = spec.entry(name).filter(|(_, value)| !value.is_null()) {
            let reason = format!("`{name}` of a ServiceEntry is not enforced yet");
            report.error(FIELD_NOT_ENFORCED, key.place, reason, hint);
        }
    }
    if let Some(word) = spec.get("resolution").filter(|word| word.text() == Some("DYNAMIC_DNS")) {
        let reason = "resolution DYNAMIC_DNS is not enforced yet";
        report.error(
            FIELD_NOT_ENFORCED,
            word.place,
            reason,
            "write DNS with the names, or NONE with a wildcard",
        );
    }
    for endpoint in spec.list("endpoints") {
        if let Some((key, _)) = endpoint.entry("serviceAccount") {
            let reason = "`serviceAccount` of an endpoint is not enforced yet: nothing outside the mesh proves an identity";
            report.error(
                FIELD_NOT_ENFORCED,
                key.place,
                reason,
                "remove it; a pod of the mesh is called by its Service",
            );
        }
        for name in ["weight", "locality", "network"] {
            if let Some((key, _)) = endpoint.entry(name) {
                let reason = format!("`{name}` of an endpoint has no effect: all endpoints are equal");
                report.warning(problem::NO_EFFECT, key.place, reason, "remove it");
            }
        }
    }
}

fn hosts(report: &mut Report<'_>, spec: &Node) {
    let resolution = spec.get("resolution").and_then(Node::text).unwrap_or("NONE").to_owned();
    let looks_up = resolution.starts_with("DNS") && spec.list("endpoints").next().is_none();
    let mut count = 0;
    for host in spec.list("hosts") {
        count += 1;
        let text = host.text().unwrap_or_default();
        let lower = text.to_ascii_lowercase();
        let (name, is_wildcard) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower.as_str(), false),
        };
        if let Some(why) = values::dns_subdomain(name) {
            let reason = format!("host `{}`: {why}", shorten(text));
            let hint = "write a DNS name, or `*.` and a DNS name; no port, no scheme, no `*` alone";
            report.error(BAD_SERVICE_ENTRY, host.place, reason, hint);
        } else if name.parse::<IpAddr>().is_ok() {
            let reason = format!("host `{}` is an address", shorten(text));
            report.error(
                BAD_SERVICE_ENTRY,
                host.place,
                reason,
                "write it under `addresses:`, and a name here",
            );
        } else if is_wildcard && looks_up {
            let reason = format!("host `{}` cannot be looked up: resolution is {resolution}", shorten(text));
            let hint = "write `resolution: NONE`, list the names one by one, or give `endpoints:`";
            report.error(BAD_SERVICE_ENTRY, host.place, reason, hint);
        }
    }
    if count == 0 {
        report.error(
            BAD_SERVICE_ENTRY,
            spec.place,
            "a ServiceEntry needs at least one host",
            "add `hosts: [...]`",
        );
    }
}

fn ports(report: &mut Report<'_>, spec: &Node) {
    let has_addresses = spec.list("addresses").next().is_some();
    let is_static = spec.get("resolution").and_then(Node::text) == Some("STATIC");
    let (mut numbers, mut names) = (HashMap::new(), HashMap::new());
    let mut count = 0;
    for port in spec.list("ports") {
        count += 1;
        let name = port.string("name");
        if let Some(number) = port.get("number") {
            objects::port_number(report, number, "port number", 1);
            let key = number.text().unwrap_or_default().to_owned();
            objects::twice(report, &mut numbers, key, number.place, |number| format!("port {number}"));
        }
        if let Some(node) = port.get("name") {
            objects::named(report, node, "port name", values::dns_label);
            objects::twice(report, &mut names, name.clone(), node.place, |name| {
                format!("port name `{name}`")
            });
        }
        if let Some(target) = port.get("targetPort") {
            objects::port_number(report, target, "targetPort", 1);
        }
        let protocol = port.get("protocol").and_then(Node::text);
        if protocol == Some("UDP") {
            let at = port.get("protocol").map_or(port.place, |node| node.place);
            report.error(
                FIELD_NOT_ENFORCED,
                at,
                "UDP does not pass a sidecar and cannot be enforced",
                "remove the port",
            );
        } else if !EntryProtocol::declared(protocol, &name).is_named() && !has_addresses && !is_static {
            let reason = format!(
                "port `{}` is plain TCP, which carries no name, and the entry has no addresses to find it by",
                shorten(&name)
            );
            let hint = "add `addresses:` that callers dial, or say `protocol: TLS` or `protocol: HTTP`";
            report.warning(problem::NO_EFFECT, port.place, reason, hint);
        }
    }
    if count == 0 {
        report.error(
            BAD_SERVICE_ENTRY,
            spec.place,
            "a ServiceEntry needs at least one port",
            "add `ports: [...]`",
        );
    }
}

fn endpoints(report: &mut Report<'_>, spec: &Node) {
    let resolution = spec.entry("resolution");
    let word = resolution.and_then(|(_, value)| value.text()).unwrap_or("NONE");
    let at = resolution.map_or(spec.place, |(key, _)| key.place);
    let names: Vec<String> = spec.list("ports").map(|port| port.string("name")).collect();
    let endpoints: Vec<&Node> = spec.list("endpoints").collect();
    match (word, endpoints.is_empty()) {
        ("STATIC", true) => {
            let reason = "resolution STATIC without endpoints leads nowhere";
            report.error(BAD_SERVICE_ENTRY, at, reason, "add `endpoints: [{address: ...}]`, or write DNS");
        }
        ("NONE", false) => {
            let reason =
                "resolution NONE goes to the address that the caller dialled, and the entry lists endpoints";
            report.error(
                BAD_SERVICE_ENTRY,
                at,
                reason,
                "write `resolution: STATIC`, or remove the endpoints",
            );
        }
        _ => {}
    }
    for endpoint in endpoints {
        if let Some(address) = endpoint.get("address") {
            let text = address.text().unwrap_or_default();
            let is_ip = text.parse::<IpAddr>().is_ok();
            if word == "STATIC" && !is_ip {
                let reason = format!("the address `{}` of a STATIC endpoint is no IP address", shorten(text));
                report.error(
                    problem::BAD_ADDRESS,
                    address.place,
                    reason,
                    "write an IP address, or `resolution: DNS`",
                );
            } else if !is_ip && let Some(why) = values::dns_subdomain(&text.to_ascii_lowercase()) {
                let reason = format!("the address `{}` of an endpoint: {why}", shorten(text));
                report.error(
                    problem::BAD_ADDRESS,
                    address.place,
                    reason,
                    "write an IP address or a DNS name",
                );
            }
        }
        for (key, value) in endpoint.get("ports").map(Node::entries).unwrap_or_default() {
            if !names.contains(&key.text) {
                let reason = format!("the entry has no port of the name `{}`", shorten(&key.text));
                report.error(
                    BAD_SERVICE_ENTRY,
                    key.place,
                    reason,
                    format!("its ports: {}", names.join(", ")),
                );
            }
            objects::port_number(report, value, "port of an endpoint", 1);
        }
    }
}

/// `exportTo`: `*`, `.`, or namespaces.
pub fn export_to(report: &mut Report<'_>, spec: &Node) {
    for to in spec.list("exportTo") {
        let text = to.text().unwrap_or_default();
        if text == "*" || text == "." {
            continue;
        }
        if let Some(why) = values::dns_label(text) {
            let reason = format!("exportTo `{}`: {why}", shorten(text));
            report.error(problem::BAD_NAME, to.place, reason, "write `*`, `.`, or the name of a namespace");
        }
    }
}
