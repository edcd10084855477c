//! `DestinationRule` (networking.istio.io/v1, v1beta1, v1alpha3): how a caller's sidecar treats a destination.
use super::{Metadata, kubernetes::service_host, service_entry::exported};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// The annotation of a DestinationRule that says how long a request may take from its head to the end of its answer: a duration above
/// zero. Istio has this only in a VirtualService (`http[].timeout`).
pub const REQUEST_TIMEOUT: &str = "postern.dev/request-timeout";

/// `DestinationRule`.
#[derive(Clone, Debug, Default)]
pub struct DestinationRule {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.host`, lower case; a name without dots got the rule's namespace, as in Istio.
    pub host: String,
    /// `spec.exportTo`; empty is every namespace.
    pub export_to: Vec<String>,
    /// `spec.trafficPolicy`.
    pub traffic: Traffic,
    /// `spec.trafficPolicy.tls.mode`.
    pub tls: Option<TlsMode>,
    /// `spec.trafficPolicy.portLevelSettings[]`, by service port. They replace all of the above for their port; `tls` is
    /// taken from above when they have none.
    pub ports: BTreeMap<u16, (Traffic, Option<TlsMode>)>,
}

impl DestinationRule {
    /// Whether workloads of `namespace` see it.
    pub fn is_visible_in(&self, namespace: &str) -> bool {
        exported(&self.export_to, &self.metadata.namespace, namespace)
    }

    /// What holds for one service port.
    pub fn for_port(&self, port: u16) -> (&Traffic, Option<TlsMode>) {
        match self.ports.get(&port) {
            Some((traffic, tls)) => (traffic, tls.or(self.tls)),
            None => (&self.traffic, self.tls),
        }
    }

    /// The full name that `host` of a rule in `namespace` stands for: one without dots is a service of that namespace.
    pub fn full_host(host: &str, namespace: &str) -> String {
        let host = host.to_ascii_lowercase();
        if host.contains('.') || host.contains('*') { host } else { service_host(&host, namespace) }
    }
}

/// `tls.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// `DISABLE`: plaintext, whatever the endpoint has.
    Disable,
    /// `ISTIO_MUTUAL`: mutual TLS or no call.
    IstioMutual,
}

/// What a sidecar does with calls to one destination. Travels as JSON; a field that the sidecar does not know is refused.
/// Numbers are absent where nothing is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Traffic {
    /// `loadBalancer.simple`.
    pub balance: Balance,
    /// `connectionPool.tcp.maxConnections`.
    pub max_connections: Option<u32>,
    /// `connectionPool.tcp.connectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// `connectionPool.tcp.tcpKeepalive`.
    pub keepalive: Option<Keepalive>,
    /// `connectionPool.tcp.idleTimeout`: of connections that carry bytes.
    pub tcp_idle: Option<Duration>,
    /// `connectionPool.http.http1MaxPendingRequests`: requests that wait for a connection.
    pub max_pending: Option<u32>,
    /// `connectionPool.http.http2MaxRequests`: requests under way, of any version.
    pub max_requests: Option<u32>,
    /// `connectionPool.http.maxRequestsPerConnection`.
    pub requests_per_connection: Option<u32>,
    /// `connectionPool.http.maxRetries`: retries under way.
    pub max_retries: Option<u32>,
    /// `connectionPool.http.idleTimeout`: of pooled connections.
    pub http_idle: Option<Duration>,
    /// `connectionPool.http.h2UpgradePolicy: UPGRADE`: HTTP/1.1 travels as HTTP/2.
    pub upgrades_to_http2: bool,
    /// `outlierDetection`.
    pub outliers: Option<Outliers>,
    /// [`REQUEST_TIMEOUT`]: of a request with everything that is tried for it, tunnels aside.
    pub request_timeout: Option<Duration>,
}

/// `loadBalancer.simple`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// `LEAST_REQUEST`, `LEAST_CONN`, `UNSPECIFIED`, `PASSTHROUGH`: the better of two, by latency and load.
    #[default]
    LeastRequest,
    /// `RANDOM`.
    Random,
    /// `ROUND_ROBIN`.
    RoundRobin,
}

/// `connectionPool.tcp.tcpKeepalive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keepalive {
    /// `probes`.
    pub probes: Option<u32>,
    /// `time`: silence before the first probe.
    pub time: Option<Duration>,
    /// `interval`: between probes.
    pub interval: Option<Duration>,
}

/// `outlierDetection`, with Istio's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outliers {
    /// `consecutive5xxErrors`; 0 is never.
    pub consecutive_5xx: u32,
    /// `consecutiveGatewayErrors` (502, 503, 504); 0 is never.
    pub consecutive_gateway: u32,
    /// `consecutiveLocalOriginFailures` (connect, reset, deadline), counted only with `splits_local`; 0 is never.
    pub consecutive_local: u32,
    /// `splitExternalLocalOriginErrors`: failures of our own making are not 5xx.
    pub splits_local: bool,
    /// `interval`: after so long without an ejection the next one is as short as if there had been one less.
    pub interval: Duration,
    /// `baseEjectionTime`: times the number of ejections.
    pub base_ejection: Duration,
    /// `maxEjectionPercent` of the endpoints; one may always be ejected.
    pub max_ejection_percent: u32,
    /// `minHealthPercent`: with fewer healthy endpoints all are used.
    pub min_health_percent: u32,
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 0,
            consecutive_local: 5,
            splits_local: false,
            interval: Duration::from_secs(10),
            base_ejection: Duration::from_secs(30),
            max_ejection_percent: 10,
            min_health_percent: 0,
        }
    }
}

/// A duration as Istio takes it: numbers with `h`, `m`, `s` or `ms` one after the other, `1h30m`, `1.5s`. `None` when it is
/// not one, or longer than a year.
pub fn duration(text: &str) -> Option<Duration> {
    const YEAR: f64 = 366.0 * 86_400.0;
    let (mut rest, mut total) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(digits)?;
        let (scale, tail) = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)]
            .into_iter()
            .find_map(|(unit, scale)| Some((scale, tail.strip_prefix(unit)?)))?;
        let number: f64 = number.parse().ok()?;
        total += number * scale;
        rest = tail;
    }
    (!text.is_empty() && total <= YEAR).then(|| Duration::from_secs_f64(total))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn durations_are_read_as_istio_writes_them() {
        for (text, millis) in [
            ("10s", 10_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1.5s", 1_500),
            ("0s", 0),
            ("1m1s1ms", 61_001),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1d", "1s ", "1e3s", "1..5s", "10 s", "999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn a_short_host_is_a_service_of_the_rules_own_namespace() {
        for (host, full) in [
            ("Api", "api.shop.svc.cluster.local"),
            ("api.payments.svc.cluster.local", "api.payments.svc.cluster.local"),
            ("*.local", "*.local"),
            ("*", "*"),
        ] {
            assert_eq!(DestinationRule::full_host(host, "shop"), full);
        }
    }

    #[test]
    fn settings_of_a_port_replace_all_others_but_tls() {
        let rule = DestinationRule {
            traffic: Traffic { max_connections: Some(1), ..Traffic::default() },
            tls: Some(TlsMode::IstioMutual),
            ports: BTreeMap::from([(80, (Traffic { max_requests: Some(2), ..Traffic::default() }, None))]),
            ..DestinationRule::default()
        };
        assert_eq!(rule.for_port(81).0.max_connections, Some(1));
        let (traffic, tls) = rule.for_port(80);
        assert_eq!((traffic.max_connections, traffic.max_requests), (None, Some(2)));
        assert_eq!(tls, Some(TlsMode::IstioMutual));
    }
}
