//! A report, read with suspicion: names that are none are dropped, texts are cut and made harmless, counts are brought into order.

use super::{
    denied::{Denied, Kind},
    sums::{Counts, Sums},
};
use postern_api::v1;
use postern_identity::SpiffeId;
use std::{
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime},
};

/// What one report may hold, as the wire says.
const EDGES: usize = 256;
const DENIALS: usize = 64;
const RULES: usize = 256;
/// Ids of one kind of denial in one report.
const DECISIONS: usize = 8;
/// A sidecar carries no more calls in ten seconds, nor bytes.
const MOST_CALLS: u64 = 100_000_000;
const MOST_BYTES: u64 = 1 << 44;
/// Longest texts, in bytes of what is sent; a path is this long, too.
pub(super) const TEXT: usize = 256;
const CLOSEST: usize = 512;
/// How far back a report may reach.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// Between whom; the workload that reports is known from its stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Edge {
    pub is_inbound: bool,
    pub peer: Option<String>,
    pub service: Option<String>,
}

/// How often a rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub matched: u64,
    pub would_deny: u64,
    pub would_allow: u64,
    pub last: SystemTime,
}

/// What is left of a report.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub edges: Vec<(Edge, Sums)>,
    pub denials: Vec<(Kind, Denied)>,
    pub rules: Vec<((String, Option<u32>), Used)>,
    /// Calls that the sidecar had no room for.
    pub overflow: u64,
    /// Parts of the report that made no sense.
    pub dropped: u64,
}

/// Reads it; total on any input.
pub(crate) fn read(report: v1::Report, now: SystemTime) -> Taken {
    let mut taken = Taken::default();
    for told in [report.edges_overflow, report.denials_overflow, report.rules_overflow] {
        taken.overflow = taken.overflow.saturating_add(told.min(MOST_CALLS));
    }
    let too_many = |len: usize, most: usize| u64::try_from(len.saturating_sub(most)).unwrap_or(u64::MAX);
    taken.dropped = too_many(report.edges.len(), EDGES)
        + too_many(report.denials.len(), DENIALS)
        + too_many(report.rules.len(), RULES);
    for wire in report.edges.iter().take(EDGES) {
        keep(&mut taken.edges, edge(wire), &mut taken.dropped);
    }
    for wire in report.denials.into_iter().take(DENIALS) {
        keep(&mut taken.denials, denial(&wire, now), &mut taken.dropped);
    }
    for wire in report.rules.iter().take(RULES) {
        keep(&mut taken.rules, rule(wire, now), &mut taken.dropped);
    }
    taken
}

fn keep<T>(all: &mut Vec<T>, one: Option<T>, dropped: &mut u64) {
    match one {
        Some(one) => all.push(one),
        None => *dropped += 1,
    }
}

pub(super) fn between(direction: i32, peer: &str, service: &str) -> Option<Edge> {
    let is_inbound = match v1::Direction::try_from(direction).ok()? {
        v1::Direction::Inbound => true,
        v1::Direction::Outbound => false,
        v1::Direction::Unknown => return None,
    };
    let peer = match peer {
        "" => None,
        peer => Some(peer.parse::<SpiffeId>().ok()?.to_string()),
    };
    let service = (!service.is_empty()).then(|| harmless(service, TEXT));
    Some(Edge { is_inbound, peer, service })
}

fn edge(wire: &v1::Edge) -> Option<(Edge, Sums)> {
    let edge = between(wire.direction, &wire.peer, &wire.service)?;
    let calls = wire.calls.min(MOST_CALLS);
    let denied = wire.denied.min(calls);
    let traced = wire.traced.min(calls);
    let sums = Sums {
        calls,
        mutual_tls: if edge.peer.is_some() { wire.mutual_tls.min(calls) } else { 0 },
        denied,
        errors: wire.errors.min(calls - denied),
        received: wire.bytes_received.min(MOST_BYTES),
        sent: wire.bytes_sent.min(MOST_BYTES),
        traced,
        untraced: wire.untraced.min(calls - traced),
        total: Counts::read(&wire.total, calls),
        proxy: Counts::read(&wire.proxy, calls),
    };
    (calls > 0).then_some((edge, sums))
}

fn denial(wire: &v1::Denial, now: SystemTime) -> Option<(Kind, Denied)> {
    let kind = Kind {
        edge: between(wire.direction, &wire.peer, &wire.service)?,
        method: (!wire.method.is_empty()).then(|| harmless(&wire.method, TEXT)),
        path: (!wire.method.is_empty()).then(|| harmless(&wire.path, TEXT)),
        port: u16::try_from(wire.port).ok()?,
        reason: harmless(&wire.reason, TEXT),
        policy: (!wire.policy.is_empty()).then(|| harmless(&wire.policy, TEXT)),
        rule: wire.rule,
    };
    let ids = wire.decisions.iter().rev().take(DECISIONS).rev();
    let is_id = |id: &&String| id.len() <= 32 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    let last = moment(wire.last_unix_millis, now);
    let denied = Denied {
        count: wire.count.min(MOST_CALLS),
        first: moment(wire.first_unix_millis, now).min(last),
        last,
        status: u16::try_from(wire.status).ok().filter(|status| (100..=599).contains(status)),
        closest: (!wire.closest.is_empty()).then(|| harmless(&wire.closest, CLOSEST)),
        policy_version: harmless(&wire.policy_version, TEXT),
        decisions: ids.filter(is_id).cloned().collect(),
        facts: wire.facts.as_ref().and_then(facts),
    };
    (denied.count > 0).then_some((kind, denied))
}

/// What policy saw, beside what the kind of the denial says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub source_ip: IpAddr,
    pub remote_ip: IpAddr,
    pub destination_ip: IpAddr,
    pub destination_port: u16,
    pub sni: Option<String>,
    pub host: String,
}

fn facts(wire: &v1::Facts) -> Option<Facts> {
    Some(Facts {
        source_ip: wire.source_ip.parse().ok()?,
        remote_ip: wire.remote_ip.parse().ok()?,
        destination_ip: wire.destination_ip.parse().ok()?,
        destination_port: u16::try_from(wire.destination_port).ok()?,
        sni: (!wire.sni.is_empty()).then(|| harmless(&wire.sni, TEXT)),
        host: harmless(&wire.host, TEXT),
    })
}

fn rule(wire: &v1::RuleUse, now: SystemTime) -> Option<((String, Option<u32>), Used)> {
    let used = Used {
        matched: wire.matched.min(MOST_CALLS),
        would_deny: wire.would_deny.min(MOST_CALLS),
        would_allow: wire.would_allow.min(MOST_CALLS),
        last: moment(wire.last_unix_millis, now),
    };
    let is_used = used.matched + used.would_deny + used.would_allow > 0;
    (is_used && !wire.policy.is_empty()).then(|| ((harmless(&wire.policy, TEXT), wire.rule), used))
}

/// Nothing is told of the future, nor of what we have forgotten.
pub(super) fn moment(millis: i64, now: SystemTime) -> SystemTime {
    let told = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
    let told = SystemTime::UNIX_EPOCH.checked_add(told).unwrap_or(now);
    told.clamp(now.checked_sub(HOUR).unwrap_or(now), now)
}

/// At most `limit` bytes of a text, in which nothing is left that a terminal or a reader of lines acts on.
pub(super) fn harmless(text: &str, limit: usize) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut safe = String::new();
    for c in text.get(..text.floor_char_boundary(limit)).unwrap_or_default().chars() {
        if acts(c) {
            let _ = write!(safe, "{}", c.escape_unicode());
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
#[path = "intake_tests.rs"]
pub(in crate::traffic) mod tests;
