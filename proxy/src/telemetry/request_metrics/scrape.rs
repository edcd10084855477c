//! What a scrape says of requests: Istio's standard metrics with their labels, and the time that is ours.
//!
//! Source: Istio, "Standard Metrics". A certificate proves a namespace and a service account and no more, so that is what names a
//! workload here, on both sides.

use super::{BUCKETS, BYTES, Group, HISTOGRAMS, Histograms, Key, Place, RequestMetrics, SERIES, Tally};
use crate::telemetry::{
    Direction,
    metrics::{OTHER, UNKNOWN},
};
use postern_api::histogram::BOUNDS;
use postern_config::snapshot::Workload;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::{MetricType, exemplar::Exemplar},
};
use std::{collections::BTreeMap, fmt, sync::Arc};

/// The histograms that have examples.
pub(super) const DURATIONS: &str = "istio_request_duration_milliseconds";
pub(super) const PROXY_TIMES: &str = "postern_proxy_seconds";
/// Milliseconds, upper bounds of `istio_request_duration_milliseconds`; what is above the last is counted in `+Inf`.
const MILLISECONDS: [f64; 14] =
    [0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0];
/// Seconds, upper bounds of `postern_proxy_seconds`; a hop adds far less than a millisecond.
const PROXY_SECONDS: [f64; 11] =
    [25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3];

/// What we are ourselves.
#[derive(Debug, Default)]
pub(super) struct Own {
    namespace: String,
    service_account: String,
    canonical_service: String,
    revision: String,
    app: String,
    version: String,
}

impl Own {
    pub(super) fn of(workload: &Workload) -> Self {
        let label = |names: &[&str]| names.iter().find_map(|name| workload.labels.get(*name)).cloned();
        let unknown = || UNKNOWN.to_owned();
        Self {
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
            canonical_service: workload.canonical_service().to_owned(),
            revision: label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
                .unwrap_or_else(|| "latest".to_owned()),
            app: label(&["app"]).unwrap_or_else(unknown),
            version: label(&["version"]).unwrap_or_else(unknown),
        }
    }
}

/// The places of one kind added up.
#[derive(Default)]
struct Count {
    count: u64,
    received: u64,
    sent: u64,
}

impl Count {
    fn of(places: &[Arc<Place>]) -> Self {
        let mut sum = Self::default();
        for place in places {
            sum.count += place.count.read();
            sum.received = sum.received.wrapping_add(place.received.read());
            sum.sent = sum.sent.wrapping_add(place.sent.read());
        }
        sum
    }
}

/// The places of some groups added up.
struct Sum {
    micros: u64,
    proxy_nanos: u64,
    received: u64,
    sent: u64,
    durations: [u64; BUCKETS],
    proxy_times: [u64; BUCKETS],
    request_sizes: [u64; BYTES.len() + 1],
    response_sizes: [u64; BYTES.len() + 1],
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            micros: 0,
            proxy_nanos: 0,
            received: 0,
            sent: 0,
            durations: [0; BUCKETS],
            proxy_times: [0; BUCKETS],
            request_sizes: Default::default(),
            response_sizes: Default::default(),
        }
    }
}

impl Sum {
    fn add(&mut self, place: &Histograms) {
        self.micros += place.micros.read();
        self.proxy_nanos += place.proxy_nanos.read();
        let each = |sums: &mut [u64], tallies: &[Tally]| {
            sums.iter_mut().zip(tallies).for_each(|(sum, tally)| *sum += tally.read());
        };
        each(&mut self.durations, &place.durations);
        each(&mut self.proxy_times, &place.proxy_times);
        each(&mut self.request_sizes, &place.request_sizes);
        each(&mut self.response_sizes, &place.response_sizes);
    }
}

pub(super) type Labels<'l> = Vec<(&'static str, &'l str)>;

/// One end of a call, as labels name it.
struct End<'e> {
    workload: &'e str,
    namespace: &'e str,
    principal: &'e str,
    canonical_service: &'e str,
    revision: &'e str,
    app: &'e str,
    version: &'e str,
}

impl<'e> End<'e> {
    fn own(own: &'e Own, principal: Option<&'e str>) -> Self {
        Self {
            workload: known(&own.service_account),
            namespace: known(&own.namespace),
            principal: principal.unwrap_or(UNKNOWN),
            canonical_service: known(&own.canonical_service),
            revision: known(&own.revision),
            app: known(&own.app),
            version: known(&own.version),
        }
    }

    /// `spiffe://{trust domain}/ns/{namespace}/sa/{service account}`
    fn peer(principal: Option<&'e str>) -> Self {
        let named = principal.and_then(|principal| {
            let mut parts = principal.split('/').skip(3);
            match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
                (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
                _ => None,
            }
        });
        let (namespace, workload) = named.unwrap_or((UNKNOWN, UNKNOWN));
        Self {
            workload,
            namespace,
            principal: principal.unwrap_or(UNKNOWN),
            canonical_service: workload,
            revision: UNKNOWN,
            app: workload,
            version: UNKNOWN,
        }
    }

    fn other() -> Self {
        Self {
            workload: OTHER,
            namespace: OTHER,
            principal: OTHER,
            canonical_service: OTHER,
            revision: OTHER,
            app: OTHER,
            version: OTHER,
        }
    }
}

fn known(text: &str) -> &str {
    if text.is_empty() { UNKNOWN } else { text }
}

/// Both ends: source, destination.
fn ends<'e>(key: &'e Key, own: &'e Own) -> (End<'e>, End<'e>) {
    let (source, destination) = (key.source_principal.as_deref(), key.destination_principal.as_deref());
    match key.direction {
        Direction::Inbound => (End::peer(source), End::own(own, destination)),
        Direction::Outbound => (End::own(own, source), End::peer(destination)),
    }
}

/// Host, name and namespace of a service. Hosts outside of the cluster have only the first.
fn service(host: Option<&str>) -> [&str; 3] {
    let Some(host) = host else { return [UNKNOWN; 3] };
    let mut parts = host.split('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => [host, name, namespace],
        _ => [host, host, UNKNOWN],
    }
}

fn security(key: &Key) -> &'static str {
    // Istio's sources do not know, since it is the destination that enforces; ours do.
    if key.peer().is_some() { "mutual_tls" } else { "none" }
}

/// Istio's labels of a request, and `decision`, which is ours.
fn labels<'l>(key: Option<&'l Key>, own: &'l Own, code: &'l str, grpc: &'l str) -> Labels<'l> {
    let Some(key) = key else {
        return all(["other"; 2], &End::other(), &End::other(), [OTHER; 3], ["0", "", OTHER, OTHER, OTHER]);
    };
    let (source, destination) = ends(key, own);
    let service = service(key.destination_service.as_deref());
    let rest = [code, grpc, key.flags, security(key), key.decision];
    all([key.direction.reporter(), key.protocol], &source, &destination, service, rest)
}

fn all<'l>(
    [reporter, protocol]: [&'l str; 2],
    source: &End<'l>,
    destination: &End<'l>,
    [host, name, namespace]: [&'l str; 3],
    [code, grpc, flags, security, decision]: [&'l str; 5],
) -> Labels<'l> {
    let mut labels = vec![
        ("reporter", reporter),
        ("source_workload", source.workload),
        ("source_workload_namespace", source.namespace),
        ("source_principal", source.principal),
        ("source_app", source.app),
        ("source_version", source.version),
        ("source_canonical_service", source.canonical_service),
        ("source_canonical_revision", source.revision),
        ("destination_workload", destination.workload),
        ("destination_workload_namespace", destination.namespace),
        ("destination_principal", destination.principal),
        ("destination_app", destination.app),
        ("destination_version", destination.version),
        ("destination_canonical_service", destination.canonical_service),
        ("destination_canonical_revision", destination.revision),
        ("destination_service", host),
        ("destination_service_name", name),
        ("destination_service_namespace", namespace),
        ("request_protocol", protocol),
        ("response_code", code),
        ("response_flags", flags),
        ("connection_security_policy", security),
        ("decision", decision),
    ];
    if !grpc.is_empty() {
        labels.push(("grpc_response_status", grpc));
    }
    labels
}

/// Of the time that is ours.
pub(super) fn own_labels([reporter, protocol]: [&'static str; 2]) -> Labels<'static> {
    vec![("reporter", reporter), ("request_protocol", protocol)]
}

pub(super) fn group_labels<'l>(group: Option<&'l Group>, own: &'l Own) -> Labels<'l> {
    let Some(group) = group else {
        return short(OTHER, OTHER, &End::other(), &End::other(), [OTHER; 3], OTHER);
    };
    let peer = End::peer(group.peer.as_deref());
    let own = End::own(own, None);
    let (source, destination) = if group.is_inbound { (&peer, &own) } else { (&own, &peer) };
    let security = if group.peer.is_some() { "mutual_tls" } else { "none" };
    let service = service(group.service.as_deref());
    short(group.direction().reporter(), group.protocol, source, destination, service, security)
}

fn short<'l>(
    reporter: &'l str,
    protocol: &'l str,
    source: &End<'l>,
    destination: &End<'l>,
    [host, name, namespace]: [&'l str; 3],
    security: &'l str,
) -> Labels<'l> {
    vec![
        ("reporter", reporter),
        ("source_workload", source.workload),
        ("source_workload_namespace", source.namespace),
        ("destination_workload", destination.workload),
        ("destination_workload_namespace", destination.namespace),
        ("destination_service", host),
        ("destination_service_name", name),
        ("destination_service_namespace", namespace),
        ("request_protocol", protocol),
        ("connection_security_policy", security),
    ]
}

/// Upper bounds and how many are in each bucket.
type Buckets = Vec<(f64, u64)>;

#[allow(clippy::cast_precision_loss)]
fn sizes(counts: &[u64]) -> Buckets {
    BYTES.iter().map(|bound| *bound as f64).chain([f64::INFINITY]).zip(counts.iter().copied()).collect()
}

/// The fine buckets of durations in these coarser ones, each of which ends where a fine one ends. `unit`: in seconds.
#[allow(clippy::cast_precision_loss)]
fn durations(bounds: &[f64], unit: f64, counts: &[u64; BUCKETS]) -> Buckets {
    let mut buckets: Buckets =
        bounds.iter().copied().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
    let mut at = 0;
    let ends = BOUNDS.iter().map(|micros| *micros as f64 / 1e6 / unit).chain([f64::INFINITY]);
    for (end, count) in ends.zip(counts) {
        // Half of the way from one fine bound to the next is more than rounding errors are.
        while bounds.get(at).is_some_and(|bound| end > bound * 1.1) {
            at += 1;
        }
        if let Some((_, sum)) = buckets.get_mut(at) {
            *sum += count;
        }
    }
    buckets
}

impl Collector for RequestMetrics {
    #[allow(clippy::cast_precision_loss)]
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let own = self.0.own.load();
        let (mut kinds, groups, own_times, merged) = {
            let held = self.0.kinds.lock();
            let kinds: Vec<(Option<Key>, Count)> =
                held.all.iter().map(|(key, places)| (key.clone(), Count::of(places))).collect();
            let mut groups: BTreeMap<Option<Group>, Sum> = BTreeMap::new();
            let mut own_times: BTreeMap<[&'static str; 2], Sum> = BTreeMap::new();
            for (group, all) in &held.groups {
                let names =
                    group.as_ref().map_or([OTHER; 2], |group| [group.direction().reporter(), group.protocol]);
                let own = own_times.entry(names).or_default();
                all.places.iter().for_each(|place| own.add(place));
                if group.as_ref().is_none_or(|group| group.is_request) {
                    let told = groups.entry(group.clone().filter(|_| all.is_told_apart)).or_default();
                    all.places.iter().for_each(|place| told.add(place));
                }
            }
            let mut merged = 0;
            for (key, sum) in &kinds {
                let group = key.as_ref().map(Group::of);
                let is_told_apart = held.groups.get(&group).is_some_and(|all| all.is_told_apart);
                if group.as_ref().is_none_or(|group| group.is_request) {
                    let told = groups.entry(group.filter(|_| is_told_apart)).or_default();
                    told.received = told.received.wrapping_add(sum.received);
                    told.sent = told.sent.wrapping_add(sum.sent);
                    merged += if is_told_apart { 0 } else { sum.count };
                }
            }
            (kinds, groups, own_times, merged)
        };
        // In one order at each scrape, the overflow last.
        kinds.sort_by_cached_key(|(key, ..)| (key.is_none(), key.as_ref().map(|key| format!("{key:?}"))));
        let codes: Vec<[String; 2]> = kinds
            .iter()
            .map(|(key, ..)| {
                let grpc = key.as_ref().and_then(|key| key.grpc).map(|grpc| grpc.to_string());
                [key.as_ref().map_or(0, |key| key.code).to_string(), grpc.unwrap_or_default()]
            })
            .collect();
        let labelled = || {
            kinds.iter().zip(&codes).map(|((key, sum), [code, grpc])| {
                let is_request = key.as_ref().is_none_or(|key| key.is_request);
                (is_request, labels(key.as_ref(), &own, code, grpc), sum)
            })
        };

        let counter = MetricType::Counter;
        let mut requests = encoder.encode_descriptor("istio_requests", "Requests", None, counter)?;
        for (_, labels, sum) in labelled().filter(|(is_request, ..)| *is_request) {
            count(&mut requests, &labels, sum.count)?;
        }
        for (name, help, value) in [
            (
                "istio_tcp_connections_closed",
                "Connections without requests",
                (|sum| sum.count) as fn(&Count) -> u64,
            ),
            ("istio_tcp_received_bytes", "Bytes from downstream on connections without requests", |sum| {
                sum.received
            }),
            ("istio_tcp_sent_bytes", "Bytes to downstream on connections without requests", |sum| sum.sent),
        ] {
            let mut tcp = encoder.encode_descriptor(name, help, None, counter)?;
            for (_, labels, sum) in labelled().filter(|(is_request, ..)| !*is_request) {
                count(&mut tcp, &labels, value(sum))?;
            }
        }

        let overflow = kinds.last().filter(|(key, _)| key.is_none()).map_or(0, |(_, sum)| sum.count);
        let histogram = MetricType::Histogram;
        type Part = fn(&Sum) -> (f64, Buckets);
        let parts: [(&str, &str, Part); 3] = [
            (DURATIONS, "From the request's head to its end", |sum| {
                (sum.micros as f64 / 1e3, durations(&MILLISECONDS, 1e-3, &sum.durations))
            }),
            ("istio_request_bytes", "Bytes of request bodies", |sum| {
                (sum.received as f64, sizes(&sum.request_sizes))
            }),
            ("istio_response_bytes", "Bytes of response bodies", |sum| {
                (sum.sent as f64, sizes(&sum.response_sizes))
            }),
        ];
        for (name, help, part) in parts {
            let mut metric = encoder.encode_descriptor(name, help, None, histogram)?;
            for (group, sum) in &groups {
                let (total, buckets) = part(sum);
                histogram_of(&mut metric, &group_labels(group.as_ref(), &own), total, &buckets)?;
            }
        }
        let help = "The part of a request or connection spent in the proxy itself";
        let mut metric = encoder.encode_descriptor(PROXY_TIMES, help, None, histogram)?;
        for (names, sum) in &own_times {
            let labels = own_labels(*names);
            let buckets = durations(&PROXY_SECONDS, 1.0, &sum.proxy_times);
            let total = sum.proxy_nanos as f64 / 1e9;
            histogram_of(&mut metric, &labels, total, &buckets)?;
        }
        let help = format!(
            "Requests and connections counted under `other`, since there are {SERIES} series, or {HISTOGRAMS} sets of histograms"
        );
        let mut metric = encoder.encode_descriptor("postern_metric_overflow", &help, None, counter)?;
        for (what, value) in [("series", overflow), ("histograms", merged)] {
            count(&mut metric, &vec![("bound", what)], value)?;
        }
        Ok(())
    }
}

fn histogram_of(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels<'_>,
    total: f64,
    buckets: &Buckets,
) -> fmt::Result {
    let count = buckets.iter().map(|(_, count)| count).sum();
    metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(total, count, buckets, None)
}

fn count(metric: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: u64) -> fmt::Result {
    let none: Option<&Exemplar<NoLabelSet, u64>> = None;
    metric.encode_family(labels)?.encode_counter(&value, none)
}
