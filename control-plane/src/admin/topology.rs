//! `GET /topology`: who calls whom. Both ends of a call tell of it; here their accounts are put together, by what certificates prove.

use super::{
    answers::{json, newest},
    pages::{Call, Node, Topology},
    policies::has_taken,
    server::Answer,
};
use crate::{
    registry::Index,
    rotation::written,
    traffic::{End, sums::Sums},
    upkeep::Upkeep,
};
use http::StatusCode;
use postern_config::documents::service_host;
use postern_identity::{SpiffeId, TrustDomain};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

/// Callers and called of whom nothing is known.
const NO_IDENTITY: &str = "(no identity)";
const OUTSIDE: &str = "(outside)";
/// Edges that are told.
const EDGES: usize = 2000;

/// What passed between two nodes.
#[derive(Default)]
struct Sum {
    server: Sums,
    client: Sums,
    /// Calls of the client that never got to somebody who proved to be the one behind the service.
    unreached: Sums,
    last: Option<SystemTime>,
}

/// The page.
pub(super) fn drawn(upkeep: &Upkeep, since: Duration, now: SystemTime) -> Answer {
    let publisher = upkeep.publisher();
    let index = publisher.index.borrow().clone();
    let sessions = publisher.sessions.all();
    let connected: BTreeMap<(&str, &str), bool> = newest(&sessions)
        .into_iter()
        .map(|(pod, one)| (pod, index.as_ref().is_some_and(|index| has_taken(one, index.number))))
        .collect();
    let mut nodes = index.as_ref().map(|index| members(index, &connected)).unwrap_or_default();
    let hosts = index.as_ref().map(|index| hosts(index)).unwrap_or_default();
    let (passed, lost) = publisher.traffic.passed(since, now);
    let mut calls: BTreeMap<(String, String), Sum> = BTreeMap::new();
    for ((from, to), one) in passed {
        let host = if let End::Service(host) = &to { Some(host.clone()) } else { None };
        let named = |end, unknown| named(end, unknown, &publisher.trust_domain, &hosts);
        let ends = (named(from, NO_IDENTITY), named(to, OUTSIDE));
        let is_lost = host.is_some_and(|host| host != ends.1);
        let sum = calls.entry(ends).or_default();
        sum.server.absorb(&one.server);
        if is_lost { &mut sum.unreached } else { &mut sum.client }.absorb(&one.client);
        sum.last = sum.last.max(one.last);
    }
    let mut edges: Vec<Call> = calls.into_iter().map(|((from, to), one)| call(from, to, &one, now)).collect();
    edges.sort_by_key(|edge| Reverse(edge.calls));
    let left_out = edges.len().saturating_sub(EDGES);
    edges.truncate(EDGES);
    for id in edges.iter().flat_map(|edge| [&edge.from, &edge.to]) {
        nodes.entry(id.clone()).or_insert_with(|| node(id.clone(), "outside"));
    }
    let page = Topology {
        now: written(now),
        trust_domain: publisher.trust_domain.to_string(),
        since_seconds: since.as_secs(),
        observed_seconds: publisher.traffic.observed(since, now),
        nodes: nodes.into_values().collect(),
        edges,
        left_out,
        lost,
    };
    json(StatusCode::OK, &page)
}

fn node(id: String, kind: &str) -> Node {
    Node { id, kind: kind.to_owned(), services: Vec::new(), pods: 0, connected: 0, strict: false }
}

/// All who have a sidecar. `connected` says of each that is, whether it has taken its policy of now.
fn members(index: &Index, connected: &BTreeMap<(&str, &str), bool>) -> BTreeMap<String, Node> {
    let strict = &index.selected().strict;
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    for (namespace, account, pod) in index.sidecars() {
        let id = format!("{namespace}/{account}");
        let node = nodes.entry(id.clone()).or_insert_with(|| Node { strict: true, ..node(id, "workload") });
        let standing = connected.get(&(namespace, pod));
        node.pods += 1;
        node.connected += usize::from(standing.is_some());
        node.strict &= standing == Some(&true) && strict.contains(&(namespace.to_owned(), pod.to_owned()));
    }
    let backing: BTreeSet<_> = index.backing().collect();
    for (namespace, service, account) in backing {
        // A service selects pods of its own namespace.
        if let Some(node) = nodes.get_mut(&format!("{namespace}/{account}")) {
            node.services.push(format!("{namespace}/{service}"));
        }
    }
    nodes
}

/// The one who is behind a host, where all its pods have one account: a call that never got there is told by its caller alone.
fn hosts(index: &Index) -> BTreeMap<String, String> {
    let mut hosts: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (namespace, service, account) in index.backing() {
        let id = format!("{namespace}/{account}");
        hosts
            .entry(service_host(service, namespace))
            .and_modify(|known| *known = known.take().filter(|known| *known == id))
            .or_insert(Some(id));
    }
    hosts.into_iter().filter_map(|(host, id)| Some((host, id?))).collect()
}

fn named(end: End, unknown: &str, own: &TrustDomain, hosts: &BTreeMap<String, String>) -> String {
    match end {
        End::Identity(identity) => {
            let id = identity.parse::<SpiffeId>().ok().filter(|id| id.trust_domain() == own.as_str());
            let account = id.as_ref().and_then(SpiffeId::service_account);
            account.map(|(namespace, account)| format!("{namespace}/{account}")).unwrap_or(identity)
        }
        End::Service(host) => hosts.get(&host).cloned().unwrap_or(host),
        End::Unknown => unknown.to_owned(),
    }
}

fn call(from: String, to: String, one: &Sum, now: SystemTime) -> Call {
    let is_servers = one.server.calls > 0;
    let seen = if is_servers { &one.server } else { &one.client };
    // Whoever was turned away without an identity was not served without mutual TLS.
    let refused = if from == NO_IDENTITY { seen.denied } else { 0 };
    let total = if one.client.calls > 0 { &one.client.total } else { &seen.total };
    Call {
        seen_by: if is_servers { "server" } else { "client" }.to_owned(),
        calls: seen.calls.saturating_add(one.unreached.calls),
        served: seen.calls - refused,
        mutual_tls: seen.mutual_tls.min(seen.calls - refused),
        denied: seen.denied.saturating_add(one.unreached.denied),
        errors: seen.errors.saturating_add(one.unreached.errors),
        p50_micros: total.quantile(0.5),
        p99_micros: total.quantile(0.99),
        client_p50_micros: one.client.proxy.quantile(0.5),
        client_p99_micros: one.client.proxy.quantile(0.99),
        server_p50_micros: one.server.proxy.quantile(0.5),
        server_p99_micros: one.server.proxy.quantile(0.99),
        last: written(one.last.unwrap_or(now)),
        from,
        to,
    }
}
