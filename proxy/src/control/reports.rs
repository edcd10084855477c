//! What the control plane is told of traffic: the sums of [`crate::telemetry`] as reports, bounded, with the closest rule of
//! each denial worked out here, off the path of requests.

use crate::{
    state::Store,
    telemetry::{
        Direction, Telemetry,
        denied::{Denied, Kind},
        request_metrics::{
            edges::{Edge, Sums},
            rules::{RuleName, Used},
        },
    },
};
use postern_api::v1;
use postern_config::{Facts, RuleRef, explain::FailedCondition, explain::explain};
use prost::Message as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// One report at most, in bytes; what does not fit goes into the next one.
const REPORT: usize = 32 * 1024;
/// Longest text about the closest rule, in bytes.
const CLOSEST: usize = 512;
/// Longest name in the facts of a denial, in bytes.
const NAME: usize = 256;

/// Takes everything that was counted since the last time. Nothing when there is nothing to tell.
pub fn collect(telemetry: &Telemetry, store: &Store) -> Vec<v1::Report> {
    let requests = telemetry.metrics().requests();
    let (edges, rules, denied) = (requests.take_edges(), requests.take_rules(), telemetry.denied().take());
    if edges.edges.is_empty() && edges.overflow == 0 {
        return Vec::new();
    }
    let mut packed = Packed::default();
    packed.open.edges_overflow = edges.overflow;
    packed.open.denials_overflow = denied.overflow;
    packed.open.rules_overflow = rules.overflow;
    for (edge, sums) in &edges.edges {
        let edge = wire_edge(edge, sums);
        packed.room(edge.encoded_len()).edges.push(edge);
    }
    for (name, used) in &rules.rules {
        let used = wire_rule(name, *used);
        packed.room(used.encoded_len()).rules.push(used);
    }
    for (kind, denied) in &denied.kinds {
        let denial = wire_denial(kind, denied, telemetry, store);
        packed.room(denial.encoded_len()).denials.push(denial);
    }
    packed.reports.push(packed.open);
    packed.reports
}

/// Reports, the last one open.
#[derive(Default)]
struct Packed {
    reports: Vec<v1::Report>,
    open: v1::Report,
    size: usize,
}

impl Packed {
    /// The report that has room for so many bytes more.
    fn room(&mut self, bytes: usize) -> &mut v1::Report {
        // A key and a length stand before each.
        let bytes = bytes + 8;
        if self.size + bytes > REPORT {
            self.reports.push(std::mem::take(&mut self.open));
            self.size = 0;
        }
        self.size += bytes;
        &mut self.open
    }
}

fn wire_direction(direction: Direction) -> i32 {
    match direction {
        Direction::Inbound => v1::Direction::Inbound,
        Direction::Outbound => v1::Direction::Outbound,
    }
    .into()
}

fn wire_edge(edge: &Edge, sums: &Sums) -> v1::Edge {
    let until_zeros = |counts: &[u64]| {
        let used = counts.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
        counts.iter().take(used).map(|count| u32::try_from(*count).unwrap_or(u32::MAX)).collect()
    };
    v1::Edge {
        direction: wire_direction(edge.direction),
        peer: edge.peer.as_deref().unwrap_or_default().to_owned(),
        service: edge.service.as_deref().unwrap_or_default().to_owned(),
        calls: sums.calls,
        mutual_tls: if edge.peer.is_some() { sums.calls } else { 0 },
        denied: sums.denied,
        errors: sums.errors,
        bytes_received: sums.received,
        bytes_sent: sums.sent,
        total: until_zeros(&sums.total),
        proxy: until_zeros(&sums.proxy),
        traced: sums.traced,
        untraced: sums.untraced,
    }
}

fn wire_rule((policy, rule): &RuleName, used: Used) -> v1::RuleUse {
    v1::RuleUse {
        policy: policy.clone(),
        rule: rule.map(number),
        matched: used.matched,
        last_unix_millis: millis(used.last),
        would_deny: used.would_deny,
        would_allow: used.would_allow,
    }
}

fn wire_denial(kind: &Kind, denied: &Denied, telemetry: &Telemetry, store: &Store) -> v1::Denial {
    let remembered = denied.decisions.back().and_then(|id| telemetry.denials().find(id));
    let closest = remembered.as_ref().and_then(|denial| closest(store, denial));
    v1::Denial {
        direction: wire_direction(kind.edge.direction),
        peer: kind.edge.peer.as_deref().unwrap_or_default().to_owned(),
        service: kind.edge.service.as_deref().unwrap_or_default().to_owned(),
        method: kind.method.clone().unwrap_or_default(),
        path: kind.path.clone(),
        port: kind.port.into(),
        status: denied.status.unwrap_or_default().into(),
        reason: kind.reason.to_owned(),
        policy: kind.rule.as_ref().map(|(policy, _)| policy.clone()).unwrap_or_default(),
        rule: kind.rule.as_ref().map(|(_, rule)| number(*rule)),
        closest: closest.unwrap_or_default(),
        policy_version: denied.policy_version.as_deref().unwrap_or_default().to_owned(),
        decisions: denied.decisions.iter().cloned().collect(),
        count: denied.count,
        first_unix_millis: millis(denied.first),
        last_unix_millis: millis(denied.last),
        facts: remembered.as_ref().map(|denial| wire_facts(&denial.facts())),
    }
}

/// What would have allowed it, by the policy that denied it; another policy in force by now says nothing about that.
fn closest(store: &Store, denial: &crate::telemetry::Denial) -> Option<String> {
    let inbound = store.inbound().filter(|inbound| inbound.version == denial.policy_version)?;
    let (rule, failed) = explain(&inbound.snapshot, &denial.facts()).closest?;
    Some(cut(&in_words(&rule, &failed), CLOSEST).to_owned())
}

/// Headers and claims stay with the sidecar, so of them only the names are told.
fn in_words(rule: &RuleRef, failed: &FailedCondition) -> String {
    let is_private = ["request.headers", "request.auth", "requestPrincipals"]
        .iter()
        .any(|private| failed.field.contains(private));
    let wanted = if failed.negated { "wanted none of" } else { "wanted one of" };
    let saw = if is_private { String::new() } else { format!(", saw {}", failed.saw) };
    format!("{rule}: {} {wanted} {}{saw}", failed.field, failed.wanted.join(", "))
}

fn wire_facts(facts: &Facts<'_>) -> v1::Facts {
    v1::Facts {
        source_ip: facts.source_ip.to_string(),
        remote_ip: facts.remote_ip.to_string(),
        destination_ip: facts.destination_ip.to_string(),
        destination_port: facts.destination_port.into(),
        sni: cut(facts.sni.unwrap_or_default(), NAME).to_owned(),
        host: cut(facts.http.map_or("", |http| http.host), NAME).to_owned(),
    }
}

fn cut(text: &str, limit: usize) -> &str {
    crate::telemetry::access_log::cut(text, limit)
}

fn number(rule: usize) -> u32 {
    u32::try_from(rule).unwrap_or(u32::MAX)
}

fn millis(at: SystemTime) -> i64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::telemetry::{Entry, denied, request_metrics::edges::EDGES};
    use postern_config::documents::authorization_policy::Action;
    use std::sync::Arc;

    #[test]
    fn what_is_told_comes_whole_in_reports_that_a_control_plane_takes_and_only_once() {
        let telemetry = Telemetry::silent();
        let (store, address) = (Store::default(), "10.0.0.1:80".parse().unwrap());
        assert!(collect(&telemetry, &store).is_empty());
        for n in 0..EDGES + 3 {
            let mut entry = Entry::new(Direction::Inbound, SystemTime::now(), address, address);
            let peer = format!("spiffe://cluster.local/ns/{}/sa/{n}", "n".repeat(300));
            entry.source_principal = Some(Arc::from(peer));
            entry.refusal = Some("peer-refused");
            telemetry.write(Box::new(entry));
        }
        let reports = collect(&telemetry, &store);
        assert!(reports.len() > 2, "{}", reports.len());
        assert!(reports.iter().all(|report| report.encoded_len() <= REPORT));
        let sum = |count: fn(&v1::Report) -> usize| reports.iter().map(count).sum::<usize>();
        assert_eq!(sum(|report| report.edges.len()), EDGES);
        assert_eq!(sum(|report| report.denials.len()), denied::KINDS);
        let overflow = |count: fn(&v1::Report) -> u64| reports.iter().map(count).sum::<u64>();
        assert_eq!(overflow(|report| report.edges_overflow), 0);
        assert_eq!(overflow(|report| report.denials_overflow), 259 - 64);
        // What had no room comes later.
        let later = collect(&telemetry, &store);
        assert_eq!(later.iter().map(|report| report.edges.len()).sum::<usize>(), 3);
        assert!(collect(&telemetry, &store).is_empty());
    }

    #[test]
    fn what_a_header_or_a_token_said_is_not_told_and_what_a_path_said_is() {
        let rule = RuleRef { namespace: "a".into(), policy: "b".into(), rule: 0, action: Action::Allow };
        for (field, is_told) in [
            ("to[0].operation.paths", true),
            ("when[0].values (request.headers[x-tenant])", false),
            ("when[0].values (request.auth.claims[team])", false),
            ("from[0].source.requestPrincipals", false),
        ] {
            let failed = FailedCondition {
                field: field.into(),
                saw: "hush".into(),
                wanted: vec!["blue".into()],
                negated: false,
            };
            let words = in_words(&rule, &failed);
            assert_eq!(words.contains("hush"), is_told, "{words}");
            assert!(words.contains("a/b rule 0") && words.contains("blue"), "{words}");
        }
    }
}
