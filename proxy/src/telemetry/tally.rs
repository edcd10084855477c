//! Sums of what passed, for the control plane: by edge, by kind of denial, by rule. A thread counts in a lane of its own, whose lock
//! nobody else takes but the one who collects, and what a lane holds is bounded.

use super::{Direction, Entry, access_log::cut};
use parking_lot::Mutex;
use postern_api::histogram::{self, BUCKETS};
use postern_config::RuleRef;
use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Edges at most, from one collection to the next.
pub const EDGES: usize = 256;
/// Kinds of denials at most.
pub const DENIALS: usize = 64;
/// Rules at most.
pub const RULES: usize = 256;
/// Longest path of a denial, in bytes.
pub const PATH: usize = 256;
/// Longest method of a denial, in bytes.
const METHOD: usize = 32;
/// Decision ids that are kept of each kind of denial, the newest.
pub const DECISIONS: usize = 8;

/// Between whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// Which journey.
    pub direction: Direction,
    /// Verified SPIFFE ID of the other end.
    pub peer: Option<Arc<str>>,
    /// Host of the destination service.
    pub service: Option<Arc<str>>,
}

/// What passed on an edge.
#[derive(Clone, Debug)]
pub struct Sums {
    /// Requests, and connections that carried none.
    pub calls: u64,
    /// Of these, with a verified peer.
    pub mutual_tls: u64,
    /// Denied ones.
    pub denied: u64,
    /// Failed otherwise.
    pub errors: u64,
    /// Bytes from downstream.
    pub received: u64,
    /// Bytes to downstream.
    pub sent: u64,
    /// Durations, by bucket of [`histogram`].
    pub total: [u32; BUCKETS],
    /// The proxy's own part, by bucket.
    pub proxy: [u32; BUCKETS],
}

/// What denials that are told together have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Between whom.
    pub edge: Edge,
    /// Of a request.
    pub method: Option<String>,
    /// Without query; cut.
    pub path: String,
    /// Original destination.
    pub port: u16,
    /// In words, or the code of the error.
    pub reason: &'static str,
    /// `namespace/name` and index.
    pub rule: Option<(String, usize)>,
}

/// Denials of one kind.
#[derive(Clone, Debug)]
pub struct Denied {
    /// How many.
    pub count: u64,
    /// The first.
    pub first: SystemTime,
    /// The last.
    pub last: SystemTime,
    /// HTTP status of the last.
    pub status: Option<u16>,
    /// The policy that denied last.
    pub policy_version: Option<Arc<str>>,
    /// Ids of the latest, oldest first.
    pub decisions: VecDeque<String>,
}

/// What a rule did.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// It decided so often.
    pub matched: u64,
    /// Last.
    pub last: SystemTime,
    /// As a dry run: so often it would have denied what was allowed.
    pub would_deny: u64,
    /// And allowed what was denied.
    pub would_allow: u64,
}

/// `namespace/name` of a policy and the rule; `None`: its default.
pub type RuleName = (String, Option<usize>);

/// Everything since the last collection.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// By edge.
    pub edges: HashMap<Edge, Sums>,
    /// By kind.
    pub denials: HashMap<Kind, Denied>,
    /// By rule.
    pub rules: HashMap<RuleName, Used>,
    /// Calls on edges that had no room.
    pub edges_overflow: u64,
    /// Denials that had no room.
    pub denials_overflow: u64,
    /// Matches of rules that had no room.
    pub rules_overflow: u64,
}

/// One thread's part. What was used last is found without hashing.
#[derive(Debug, Default)]
struct Lane {
    edges: Vec<(Edge, Sums)>,
    places: HashMap<Edge, usize>,
    recent: usize,
    /// By the rule's own place in memory, which is the snapshot's.
    rules: Vec<(Arc<RuleRef>, Used)>,
    recent_rule: usize,
    rare: Collected,
}

type SharedLane = Arc<Mutex<Lane>>;

thread_local! {
    /// Lanes of this thread, each with the number of its [`Tally`].
    static LANES: RefCell<Vec<(u64, SharedLane)>> = const { RefCell::new(Vec::new()) };
}

/// All lanes of one sidecar.
#[derive(Debug)]
pub struct Tally {
    number: u64,
    lanes: Mutex<Vec<SharedLane>>,
}

impl Default for Tally {
    fn default() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Self { number: NUMBER.fetch_add(1, Ordering::Relaxed), lanes: Mutex::default() }
    }
}

impl Tally {
    /// Counts a finished request or connection.
    pub fn observe(&self, entry: &Entry) {
        LANES.with_borrow_mut(|lanes| {
            let at = lanes.iter().position(|(number, _)| *number == self.number).unwrap_or_else(|| {
                let lane = SharedLane::default();
                self.lanes.lock().push(lane.clone());
                // Those of a tally that is gone.
                lanes.retain(|(_, lane)| Arc::strong_count(lane) > 1);
                lanes.push((self.number, lane));
                lanes.len() - 1
            });
            if let Some((_, lane)) = lanes.get(at) {
                lane.lock().observe(entry);
            }
        });
    }

    /// Takes everything that was counted since the last time.
    pub fn collect(&self) -> Collected {
        let mut all = Collected::default();
        self.lanes.lock().retain(|lane| {
            all.absorb(std::mem::take(&mut *lane.lock()));
            // A thread that has ended counts nothing any more.
            Arc::strong_count(lane) > 1
        });
        all
    }
}

impl Lane {
    fn observe(&mut self, entry: &Entry) {
        let peer = match entry.direction {
            Direction::Inbound => &entry.source_principal,
            Direction::Outbound => &entry.destination_principal,
        };
        let denial = denial(entry);
        match self.place(entry.direction, peer, &entry.destination_service) {
            Some((_, sums)) => sums.add(entry, peer.is_some(), denial.is_some()),
            None => self.rare.edges_overflow += 1,
        }
        if let Some(decided) = &entry.decided {
            if let Some(rule) = &decided.rule {
                self.matched(rule, entry.began);
            }
            if let Some(would) = &decided.would {
                let name = (would.policy.clone().unwrap_or_default(), would.rule);
                let (deny, allow) = (u64::from(!would.is_allowed), u64::from(would.is_allowed));
                self.rare.use_rule(
                    name,
                    Used { matched: 0, last: entry.began, would_deny: deny, would_allow: allow },
                    1,
                );
            }
        }
        if let Some(reason) = denial {
            self.denied(entry, peer, reason);
        }
    }

    fn place(
        &mut self,
        direction: Direction,
        peer: &Option<Arc<str>>,
        service: &Option<Arc<str>>,
    ) -> Option<&mut (Edge, Sums)> {
        let is_recent = self.edges.get(self.recent).is_some_and(|(edge, _)| {
            edge.direction == direction && same(&edge.peer, peer) && same(&edge.service, service)
        });
        if !is_recent {
            let edge = Edge { direction, peer: peer.clone(), service: service.clone() };
            self.recent = match self.places.get(&edge) {
                Some(place) => *place,
                None if self.edges.len() >= EDGES => return None,
                None => {
                    self.edges.push((edge.clone(), Sums::default()));
                    self.places.insert(edge, self.edges.len() - 1);
                    self.edges.len() - 1
                }
            };
        }
        self.edges.get_mut(self.recent)
    }

    fn matched(&mut self, rule: &Arc<RuleRef>, now: SystemTime) {
        let is_it = |known: &(Arc<RuleRef>, Used)| Arc::ptr_eq(&known.0, rule);
        if !self.rules.get(self.recent_rule).is_some_and(is_it) {
            self.recent_rule = match self.rules.iter().position(is_it) {
                Some(place) => place,
                None if self.rules.len() >= RULES => {
                    self.rare.rules_overflow += 1;
                    return;
                }
                None => {
                    let used = Used { matched: 0, last: now, would_deny: 0, would_allow: 0 };
                    self.rules.push((rule.clone(), used));
                    self.rules.len() - 1
                }
            };
        }
        if let Some((_, used)) = self.rules.get_mut(self.recent_rule) {
            used.matched += 1;
            used.last = used.last.max(now);
        }
    }

    fn denied(&mut self, entry: &Entry, peer: &Option<Arc<str>>, reason: &'static str) {
        let request = entry.request.as_ref();
        let decided = entry.decided.as_ref();
        let kind = Kind {
            edge: Edge {
                direction: entry.direction,
                peer: peer.clone(),
                service: entry.destination_service.clone(),
            },
            method: request.map(|request| cut(request.method.as_str(), METHOD).to_owned()),
            path: request.map(|request| cut(&request.path, PATH).to_owned()).unwrap_or_default(),
            port: entry.destination_address.port(),
            reason,
            rule: decided
                .and_then(|decided| decided.rule.as_ref())
                .map(|rule| (rule.policy_name(), rule.rule)),
        };
        let denied = Denied {
            count: 1,
            first: entry.began,
            last: entry.began,
            status: entry.status,
            policy_version: decided.map(|decided| decided.version.clone()),
            decisions: decided.and_then(|decided| decided.id.clone()).into_iter().collect(),
        };
        self.rare.deny(kind, denied);
    }
}

/// Calls of one connection share their names; only for the first one they are read.
fn same(ours: &Option<Arc<str>>, theirs: &Option<Arc<str>>) -> bool {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs) || ours == theirs,
        (ours, theirs) => ours.is_none() && theirs.is_none(),
    }
}

/// Why a call counts as denied: policy's reason, or the code of the error.
pub fn denial(entry: &Entry) -> Option<&'static str> {
    match &entry.decided {
        Some(decided) if !decided.is_allowed => Some(decided.reason),
        _ => entry.refusal,
    }
}

impl Default for Sums {
    fn default() -> Self {
        Self {
            calls: 0,
            mutual_tls: 0,
            denied: 0,
            errors: 0,
            received: 0,
            sent: 0,
            total: [0; BUCKETS],
            proxy: [0; BUCKETS],
        }
    }
}

impl Sums {
    fn add(&mut self, entry: &Entry, is_mutual: bool, is_denied: bool) {
        let failed = entry.flag != "-" || entry.status.is_some_and(|status| status >= 500);
        self.calls += 1;
        self.mutual_tls += u64::from(is_mutual);
        self.denied += u64::from(is_denied);
        self.errors += u64::from(failed && !is_denied);
        self.received = self.received.saturating_add(entry.bytes_received);
        self.sent = self.sent.saturating_add(entry.bytes_sent);
        count(&mut self.total, entry.duration);
        count(&mut self.proxy, entry.proxy);
    }

    fn absorb(&mut self, other: &Self) {
        self.calls += other.calls;
        self.mutual_tls += other.mutual_tls;
        self.denied += other.denied;
        self.errors += other.errors;
        self.received = self.received.saturating_add(other.received);
        self.sent = self.sent.saturating_add(other.sent);
        for (ours, theirs) in [(&mut self.total, &other.total), (&mut self.proxy, &other.proxy)] {
            for (sum, more) in ours.iter_mut().zip(theirs) {
                *sum = sum.saturating_add(*more);
            }
        }
    }
}

fn count(counts: &mut [u32; BUCKETS], took: Duration) {
    let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    if let Some(count) = counts.get_mut(histogram::bucket(micros)) {
        *count = count.saturating_add(1);
    }
}

impl Collected {
    /// Nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty() && self.edges_overflow == 0
    }

    fn absorb(&mut self, lane: Lane) {
        for (edge, sums) in lane.edges {
            if self.edges.len() >= EDGES && !self.edges.contains_key(&edge) {
                self.edges_overflow += sums.calls;
            } else {
                self.edges.entry(edge).or_default().absorb(&sums);
            }
        }
        for (rule, used) in lane.rules {
            self.use_rule((rule.policy_name(), Some(rule.rule)), used, used.matched);
        }
        for (name, used) in lane.rare.rules {
            self.use_rule(name, used, used.would_deny + used.would_allow);
        }
        for (kind, denied) in lane.rare.denials {
            self.deny(kind, denied);
        }
        self.edges_overflow += lane.rare.edges_overflow;
        self.denials_overflow += lane.rare.denials_overflow;
        self.rules_overflow += lane.rare.rules_overflow;
    }

    fn use_rule(&mut self, name: RuleName, used: Used, calls: u64) {
        if self.rules.len() >= RULES && !self.rules.contains_key(&name) {
            self.rules_overflow += calls;
            return;
        }
        let known =
            self.rules.entry(name).or_insert(Used { matched: 0, would_deny: 0, would_allow: 0, ..used });
        known.matched += used.matched;
        known.would_deny += used.would_deny;
        known.would_allow += used.would_allow;
        known.last = known.last.max(used.last);
    }

    fn deny(&mut self, kind: Kind, denied: Denied) {
        if let Some(known) = self.denials.get_mut(&kind) {
            known.count += denied.count;
            known.first = known.first.min(denied.first);
            if denied.last >= known.last {
                known.last = denied.last;
                known.status = denied.status;
                known.policy_version = denied.policy_version;
            }
            known.decisions.extend(denied.decisions);
            while known.decisions.len() > DECISIONS {
                known.decisions.pop_front();
            }
        } else if self.denials.len() < DENIALS {
            self.denials.insert(kind, denied);
        } else {
            self.denials_overflow += denied.count;
        }
    }
}

#[cfg(test)]
#[path = "tally_tests.rs"]
mod tests;
