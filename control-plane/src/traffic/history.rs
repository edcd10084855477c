//! The last hour of all workloads. Each has a share of the room, and when all is full the one that fills it loses its oldest.

use super::{
    denied::{Denied, Found, Kept, Kind, STEPS},
    events::Events,
    intake::{self, Edge, HOUR, Used},
    pages,
    sums::Sums,
};
use parking_lot::Mutex;
use postern_api::v1;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Length of a step, in seconds: as often sidecars report.
const STEP: u64 = 10;
/// Edges of one workload in one step.
const EDGES: usize = 256;
/// Sums that are kept of one workload: edges times steps.
const SUMS_OF_ONE: usize = 16_384;
/// Sums that are kept in all.
const SUMS: usize = 262_144;
/// Kinds of denials of one workload.
const KINDS_OF_ONE: usize = 128;
/// Kinds of denials in all.
const KINDS: usize = 1000;
/// Rules of one workload.
const RULES_OF_ONE: usize = 256;
/// Reports of one workload in one step: what has passed while we were away comes at once.
const REPORTS: u32 = 16;

/// What is kept. One per control plane.
pub(crate) struct Traffic {
    started: SystemTime,
    table: Mutex<Table>,
    /// Told of each report.
    pub(crate) events: Events,
}

/// One end of a call, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// Its certificate has proved who it is.
    Identity(String),
    /// Host of a service.
    Service(String),
    /// No certificate, no name.
    Unknown,
}

/// What passed between two ends, by both accounts.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    pub server: Sums,
    pub client: Sums,
    /// The end of the last step with a call.
    pub last: Option<SystemTime>,
}

#[derive(Default)]
struct Table {
    /// By namespace and pod.
    workloads: BTreeMap<(String, String), History>,
    lost: pages::Lost,
    /// The step in which old things were last let go.
    tidied: u64,
}

#[derive(Default)]
struct History {
    identity: String,
    steps: VecDeque<(u64, HashMap<Edge, Sums>)>,
    sums: usize,
    denials: HashMap<Kind, Kept>,
    rules: BTreeMap<(String, Option<u32>), Used>,
    /// The step of the last report, and how many came in it.
    reports: (u64, u32),
}

impl Traffic {
    pub(crate) fn new(started: SystemTime) -> Self {
        Self { started, table: Mutex::default(), events: Events::default() }
    }

    /// Takes a report of a workload that has proved who it is.
    pub(crate) fn take(
        &self,
        namespace: &str,
        pod: &str,
        identity: &str,
        report: v1::Report,
        now: SystemTime,
    ) {
        let step = step(now);
        let mut table = self.table.lock();
        let Table { workloads, lost, .. } = &mut *table;
        let history = workloads.entry((namespace.to_owned(), pod.to_owned())).or_default();
        if history.reports.0 != step {
            history.reports = (step, 0);
        }
        history.reports.1 = history.reports.1.saturating_add(1);
        if history.reports.1 > REPORTS {
            lost.dropped = lost.dropped.saturating_add(1);
            return;
        }
        let taken = intake::read(report, now);
        self.events.tell(namespace, pod, identity, &taken, now);
        lost.overflow = lost.overflow.saturating_add(taken.overflow);
        lost.dropped = lost.dropped.saturating_add(taken.dropped);
        identity.clone_into(&mut history.identity);
        for (edge, sums) in taken.edges {
            history.add(step, edge, &sums, &mut lost.overflow);
        }
        for (name, used) in taken.rules {
            history.use_rule(name, used, &mut lost.overflow);
        }
        for (kind, denied) in taken.denials {
            match history.denials.get_mut(&kind) {
                Some(known) => known.absorb(step, denied),
                None => {
                    history.denials.insert(kind, Kept::new(step, denied));
                }
            }
            while history.denials.len() > KINDS_OF_ONE {
                history.forget_denial();
            }
        }
        // Once a step: ten thousand sidecars report, and each look goes over all.
        if table.tidied != step {
            table.tidied = step;
            table.forget(now);
        }
    }

    /// What passed since then.
    pub(crate) fn flows(&self, since: Duration, now: SystemTime) -> pages::Flows {
        let from = step(now.checked_sub(since).unwrap_or(now)) + 1;
        let mut table = self.table.lock();
        table.forget(now);
        let mut flows = Vec::new();
        let mut rules: BTreeMap<&(String, Option<u32>), (usize, Used)> = BTreeMap::new();
        for ((namespace, pod), history) in &table.workloads {
            let mut edges: BTreeMap<&Edge, Sums> = BTreeMap::new();
            for (_, step) in history.steps.iter().filter(|(step, _)| *step >= from) {
                for (edge, sums) in step {
                    edges.entry(edge).or_default().absorb(sums);
                }
            }
            let workload = format!("{namespace}/{pod}");
            flows.extend(edges.iter().map(|(edge, sums)| flow(&workload, &history.identity, edge, sums)));
            for (name, used) in &history.rules {
                rules
                    .entry(name)
                    .and_modify(|(workloads, sum)| {
                        *workloads += 1;
                        sum.absorb(used);
                    })
                    .or_insert((1, *used));
            }
        }
        pages::Flows {
            now: written(now),
            since_seconds: since.as_secs(),
            observed_seconds: self.observed(since, now),
            lost_traces: lost_traces(&flows),
            flows,
            rules: rules
                .into_iter()
                .map(|((policy, rule), (workloads, used))| pages::RuleUse {
                    policy: policy.clone(),
                    rule: *rule,
                    workloads,
                    matched: used.matched,
                    last: written(used.last),
                    would_deny: used.would_deny,
                    would_allow: used.would_allow,
                })
                .collect(),
            lost: table.lost.clone(),
        }
    }

    /// Over how many seconds counts since then are.
    pub(crate) fn observed(&self, since: Duration, now: SystemTime) -> u64 {
        since.min(now.duration_since(self.started).unwrap_or_default()).as_secs().max(1)
    }

    /// What passed since then, by who called and who was called; and what is in no count.
    pub(crate) fn passed(
        &self,
        since: Duration,
        now: SystemTime,
    ) -> (BTreeMap<(End, End), Passed>, pages::Lost) {
        let from = step(now.checked_sub(since).unwrap_or(now)) + 1;
        let mut table = self.table.lock();
        table.forget(now);
        let mut all: BTreeMap<(End, End), Passed> = BTreeMap::new();
        for history in table.workloads.values() {
            let mut edges: HashMap<&Edge, (Sums, u64)> = HashMap::new();
            for (step, step_edges) in history.steps.iter().filter(|(step, _)| *step >= from) {
                for (edge, sums) in step_edges {
                    let (sum, last) = edges.entry(edge).or_default();
                    sum.absorb(sums);
                    *last = *step;
                }
            }
            for (edge, (sums, last)) in edges {
                let own = End::Identity(history.identity.clone());
                let other = match (&edge.peer, &edge.service) {
                    (Some(peer), _) => End::Identity(peer.clone()),
                    (None, Some(service)) => End::Service(service.clone()),
                    (None, None) => End::Unknown,
                };
                let ends = if edge.is_inbound { (other, own) } else { (own, other) };
                let passed = all.entry(ends).or_default();
                if edge.is_inbound { &mut passed.server } else { &mut passed.client }.absorb(&sums);
                let end = UNIX_EPOCH + Duration::from_secs((last + 1) * STEP);
                passed.last = passed.last.max(Some(end.min(now)));
            }
        }
        (all, table.lost.clone())
    }

    /// How often each policy decided, whichever rule of it, by `namespace/name`; since we began to hear of each workload.
    pub(crate) fn used(&self) -> BTreeMap<String, Used> {
        let table = self.table.lock();
        let mut all: BTreeMap<String, Used> = BTreeMap::new();
        for ((policy, _), used) in table.workloads.values().flat_map(|history| &history.rules) {
            match all.get_mut(policy) {
                Some(sum) => sum.absorb(used),
                None => {
                    all.insert(policy.clone(), *used);
                }
            }
        }
        all
    }

    /// What was denied since then, the latest first.
    pub(crate) fn denials(&self, since: Duration, now: SystemTime) -> pages::Denials {
        let from = step(now.checked_sub(since).unwrap_or(now)) + 1;
        let mut table = self.table.lock();
        table.forget(now);
        let mut found = Vec::new();
        for ((namespace, pod), history) in &table.workloads {
            for (kind, kept) in &history.denials {
                let count = kept.since(from);
                if count > 0 {
                    let workload = format!("{namespace}/{pod}");
                    found.push((
                        kept.latest.last,
                        denial(workload, &history.identity, kind, &kept.latest, count),
                    ));
                }
            }
        }
        found.sort_by(|(a, one), (b, other)| {
            b.cmp(a).then_with(|| (&one.workload, &one.path).cmp(&(&other.workload, &other.path)))
        });
        pages::Denials {
            now: written(now),
            since_seconds: since.as_secs(),
            denials: found.into_iter().map(|(_, denial)| denial).collect(),
            lost: table.lost.clone(),
        }
    }

    /// The denial with this id, when its sidecar has told of it and it is among the latest of its kind.
    pub(crate) fn find(&self, id: &str) -> Option<Found> {
        let table = self.table.lock();
        table.workloads.iter().find_map(|((namespace, pod), history)| {
            let is_it = |kept: &Kept| kept.latest.decisions.iter().any(|known| known == id);
            let (kind, kept) = history.denials.iter().find(|(_, kept)| is_it(kept))?;
            Some(Found {
                namespace: namespace.clone(),
                pod: pod.clone(),
                identity: history.identity.clone(),
                kind: kind.clone(),
                denied: Denied { count: kept.since(0), ..kept.latest.clone() },
            })
        })
    }
}

impl Table {
    /// Lets go of what is older than an hour, and of what there is no room for.
    fn forget(&mut self, now: SystemTime) {
        let oldest = step(now).saturating_sub(STEPS);
        let hour_ago = now.checked_sub(HOUR).unwrap_or(UNIX_EPOCH);
        self.workloads.retain(|_, history| {
            while history.steps.front().is_some_and(|(step, _)| *step < oldest) {
                history.forget_step();
            }
            history.denials.retain(|_, kept| kept.latest.last >= hour_ago);
            history.reports.0 >= oldest
        });
        while self.workloads.values().map(|history| history.sums).sum::<usize>() > SUMS {
            let Some(largest) = self.workloads.values_mut().max_by_key(|history| history.sums) else {
                return;
            };
            largest.forget_step();
        }
        while self.workloads.values().map(|history| history.denials.len()).sum::<usize>() > KINDS {
            let most = self.workloads.values_mut().max_by_key(|history| history.denials.len());
            let Some(largest) = most else { return };
            largest.forget_denial();
        }
    }
}

impl History {
    fn add(&mut self, step: u64, edge: Edge, sums: &Sums, overflow: &mut u64) {
        // A clock that was set back does not make a second way through the hour.
        if self.steps.back().is_none_or(|(last, _)| *last < step) {
            self.steps.push_back((step, HashMap::new()));
        }
        let Some((_, edges)) = self.steps.back_mut() else { return };
        if let Some(known) = edges.get_mut(&edge) {
            known.absorb(sums);
        } else if edges.len() < EDGES {
            edges.insert(edge, sums.clone());
            self.sums += 1;
        } else {
            *overflow = overflow.saturating_add(sums.calls);
        }
        while self.sums > SUMS_OF_ONE {
            self.forget_step();
        }
    }

    fn use_rule(&mut self, name: (String, Option<u32>), used: Used, overflow: &mut u64) {
        if let Some(known) = self.rules.get_mut(&name) {
            known.absorb(&used);
        } else if self.rules.len() < RULES_OF_ONE {
            self.rules.insert(name, used);
        } else {
            *overflow = overflow.saturating_add(used.matched);
        }
    }

    fn forget_step(&mut self) {
        if let Some((_, edges)) = self.steps.pop_front() {
            self.sums -= edges.len();
        }
    }

    fn forget_denial(&mut self) {
        let oldest = self.denials.iter().min_by_key(|(_, kept)| kept.latest.last);
        if let Some(kind) = oldest.map(|(kind, _)| kind.clone()) {
            self.denials.remove(&kind);
        }
    }
}

impl Used {
    fn absorb(&mut self, other: &Self) {
        self.matched = self.matched.saturating_add(other.matched);
        self.would_deny = self.would_deny.saturating_add(other.would_deny);
        self.would_allow = self.would_allow.saturating_add(other.would_allow);
        self.last = self.last.max(other.last);
    }
}

const INBOUND: &str = "inbound";

fn direction(edge: &Edge) -> String {
    if edge.is_inbound { INBOUND } else { "outbound" }.to_owned()
}

fn flow(workload: &str, identity: &str, edge: &Edge, sums: &Sums) -> pages::Flow {
    pages::Flow {
        workload: workload.to_owned(),
        identity: identity.to_owned(),
        direction: direction(edge),
        peer: edge.peer.clone(),
        service: edge.service.clone(),
        calls: sums.calls,
        mutual_tls: sums.mutual_tls,
        denied: sums.denied,
        errors: sums.errors,
        bytes_received: sums.received,
        bytes_sent: sums.sent,
        traced: sums.traced,
        untraced: sums.untraced,
        p50_micros: sums.total.quantile(0.5),
        p99_micros: sums.total.quantile(0.99),
        proxy_p50_micros: sums.proxy.quantile(0.5),
        proxy_p99_micros: sums.proxy.quantile(0.99),
    }
}

/// One call in ten without a trace: less than that may be calls that are for no request, like an app's own timers.
const FEW: u64 = 10;

fn lost_traces(flows: &[pages::Flow]) -> Vec<pages::LostTraces> {
    let mut all: BTreeMap<&str, pages::LostTraces> = BTreeMap::new();
    for flow in flows {
        let one = all.entry(&flow.workload).or_insert_with(|| pages::LostTraces {
            workload: flow.workload.clone(),
            received: 0,
            sent: 0,
            untraced: 0,
        });
        if flow.direction == INBOUND {
            one.received = one.received.saturating_add(flow.traced);
        } else {
            one.sent = one.sent.saturating_add(flow.traced).saturating_add(flow.untraced);
            one.untraced = one.untraced.saturating_add(flow.untraced);
        }
    }
    let is_losing = |one: &pages::LostTraces| {
        one.received > 0 && one.untraced > 0 && one.untraced.saturating_mul(FEW) >= one.sent
    };
    all.into_values().filter(is_losing).collect()
}

/// Denials of a kind as a page tells them.
pub(super) fn denial(
    workload: String,
    identity: &str,
    kind: &Kind,
    latest: &Denied,
    count: u64,
) -> pages::Denial {
    pages::Denial {
        workload,
        identity: identity.to_owned(),
        direction: direction(&kind.edge),
        peer: kind.edge.peer.clone(),
        service: kind.edge.service.clone(),
        method: kind.method.clone(),
        path: kind.path.clone(),
        port: kind.port,
        status: latest.status,
        reason: kind.reason.clone(),
        policy: kind.policy.clone(),
        rule: kind.rule,
        closest: latest.closest.clone(),
        policy_version: latest.policy_version.clone(),
        decisions: latest.decisions.clone(),
        count,
        first: written(latest.first),
        last: written(latest.last),
    }
}

fn step(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / STEP
}

pub(super) fn written(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
