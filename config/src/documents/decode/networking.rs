//! Trees to ServiceEntry and DestinationRule.
use super::{flag, kubernetes::metadata, number, optional, strings};
use crate::{
    documents::{
        destination_rule::{
            Balance, DestinationRule, Keepalive, Outliers, REQUEST_TIMEOUT, TlsMode, Traffic, duration,
        },
        parse::Node,
        service_entry::{EntryEndpoint, EntryPort, EntryProtocol, Resolution, ServiceEntry},
    },
    matchers::AddressBlock,
};
use std::time::Duration;

pub fn service_entry(node: &Node) -> ServiceEntry {
    let own = metadata(node);
    let Some(spec) = node.get("spec") else {
        return ServiceEntry { metadata: own, ..ServiceEntry::default() };
    };
    let text = |key: &str| spec.get(key).and_then(Node::text);
    ServiceEntry {
        metadata: own,
        hosts: strings(spec.get("hosts")).iter().map(|host| host.to_ascii_lowercase()).collect(),
        addresses: strings(spec.get("addresses"))
            .iter()
            .filter_map(|text| AddressBlock::parse(text).ok())
            .collect(),
        ports: spec.list("ports").filter_map(entry_port).collect(),
        is_internal: text("location") == Some("MESH_INTERNAL"),
        resolution: match text("resolution") {
            Some("STATIC") => Resolution::Static,
            Some("DNS" | "DNS_ROUND_ROBIN") => Resolution::Dns,
            _ => Resolution::None,
        },
        endpoints: spec.list("endpoints").map(entry_endpoint).collect(),
        export_to: strings(spec.get("exportTo")),
    }
}

fn entry_port(node: &Node) -> Option<EntryPort> {
    let (port, name) = (number(node, "number")?, node.string("name"));
    let protocol = EntryProtocol::declared(node.get("protocol").and_then(Node::text), &name);
    let target = number(node, "targetPort").filter(|target| *target > 0).unwrap_or(port);
    Some(EntryPort { number: port, protocol, target, name })
}

fn entry_endpoint(node: &Node) -> EntryEndpoint {
    let ports = node.get("ports").map(Node::entries).unwrap_or_default();
    EntryEndpoint {
        address: node.string("address").to_ascii_lowercase(),
        ports: ports
            .iter()
            .filter_map(|(key, value)| Some((key.text.clone(), value.text()?.parse().ok()?)))
            .collect(),
    }
}

pub fn destination_rule(node: &Node) -> DestinationRule {
    let own = metadata(node);
    let Some(spec) = node.get("spec") else {
        return DestinationRule { metadata: own, ..DestinationRule::default() };
    };
    let policy = spec.get("trafficPolicy");
    let request_timeout = own.annotations.get(REQUEST_TIMEOUT).and_then(|text| duration(text));
    let request_timeout = request_timeout.filter(|timeout| !timeout.is_zero());
    let traffic = |level| Traffic { request_timeout, ..traffic(level) };
    let ports = policy.into_iter().flat_map(|policy| policy.list("portLevelSettings")).filter_map(|level| {
        Some((number(level.get("port")?, "number")?, (traffic(Some(level)), tls_mode(Some(level)))))
    });
    DestinationRule {
        host: DestinationRule::full_host(&spec.string("host"), &own.namespace),
        export_to: strings(spec.get("exportTo")),
        traffic: traffic(policy),
        tls: tls_mode(policy),
        ports: ports.collect(),
        metadata: own,
    }
}

fn tls_mode(policy: Option<&Node>) -> Option<TlsMode> {
    match policy?.at("tls.mode").and_then(Node::text) {
        Some("DISABLE") => Some(TlsMode::Disable),
        Some("ISTIO_MUTUAL") => Some(TlsMode::IstioMutual),
        // What has no mode is DISABLE in Istio; validation refuses it, so that nothing becomes plain by an omission.
        _ => None,
    }
}

fn traffic(policy: Option<&Node>) -> Traffic {
    let Some(policy) = policy else { return Traffic::default() };
    let (tcp, http) = (policy.at("connectionPool.tcp"), policy.at("connectionPool.http"));
    // Zero is Istio's "not set" for all of these.
    let limit =
        |node: Option<&Node>, key: &str| node.and_then(|node| number(node, key)).filter(|n: &u32| *n > 0);
    Traffic {
        balance: match policy.at("loadBalancer.simple").and_then(Node::text) {
            Some("RANDOM") => Balance::Random,
            Some("ROUND_ROBIN") => Balance::RoundRobin,
            _ => Balance::LeastRequest,
        },
        max_connections: limit(tcp, "maxConnections"),
        connect_timeout: time(tcp, "connectTimeout"),
        keepalive: tcp.and_then(|tcp| tcp.get("tcpKeepalive")).map(|keepalive| Keepalive {
            probes: limit(Some(keepalive), "probes"),
            time: time(Some(keepalive), "time"),
            interval: time(Some(keepalive), "interval"),
        }),
        tcp_idle: time(tcp, "idleTimeout"),
        max_pending: limit(http, "http1MaxPendingRequests"),
        max_requests: limit(http, "http2MaxRequests"),
        requests_per_connection: limit(http, "maxRequestsPerConnection"),
        max_retries: limit(http, "maxRetries"),
        http_idle: time(http, "idleTimeout"),
        upgrades_to_http2: http.and_then(|http| http.get("h2UpgradePolicy")).and_then(Node::text)
            == Some("UPGRADE"),
        outliers: policy.get("outlierDetection").map(outliers),
        request_timeout: None,
    }
}

fn outliers(node: &Node) -> Outliers {
    let default = Outliers::default();
    Outliers {
        consecutive_5xx: number(node, "consecutive5xxErrors").unwrap_or(default.consecutive_5xx),
        consecutive_gateway: number(node, "consecutiveGatewayErrors").unwrap_or(default.consecutive_gateway),
        consecutive_local: number(node, "consecutiveLocalOriginFailures")
            .unwrap_or(default.consecutive_local),
        splits_local: flag(node, "splitExternalLocalOriginErrors"),
        interval: time(Some(node), "interval").unwrap_or(default.interval),
        base_ejection: time(Some(node), "baseEjectionTime").unwrap_or(default.base_ejection),
        max_ejection_percent: number(node, "maxEjectionPercent").unwrap_or(default.max_ejection_percent),
        min_health_percent: number(node, "minHealthPercent").unwrap_or(default.min_health_percent),
    }
}

fn time(node: Option<&Node>, key: &str) -> Option<Duration> {
    duration(&optional(node?, key)?)
}
