//! Denials by kind, for the control plane: what they have in common, how many there were, and the ids of the latest.

use super::{Entry, access_log::cut, request_metrics::edges::Edge};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

/// Kinds at most, from one collection to the next.
pub const KINDS: usize = 64;
/// Longest path, in bytes.
pub const PATH: usize = 256;
/// Longest method, in bytes.
const METHOD: usize = 32;
/// Decision ids that are kept of each kind, the newest.
const DECISIONS: usize = 8;

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

/// One collection.
#[derive(Debug, Default)]
pub struct Taken {
    /// By kind.
    pub kinds: HashMap<Kind, Denied>,
    /// Denials that had no room.
    pub overflow: u64,
}

/// All of one sidecar since the last collection.
#[derive(Debug, Default)]
pub struct DeniedKinds(Mutex<Taken>);

impl DeniedKinds {
    /// Counts a finished request or connection if it was denied. Only then a lock is taken.
    pub fn observe(&self, entry: &Entry) {
        let Some(reason) = entry.denial() else { return };
        let request = entry.request.as_ref();
        let decided = entry.decided.as_ref();
        let kind = Kind {
            edge: Edge {
                direction: entry.direction,
                peer: entry.peer().clone(),
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
        let mut taken = self.0.lock();
        let Taken { kinds, overflow } = &mut *taken;
        if kinds.len() >= KINDS && !kinds.contains_key(&kind) {
            *overflow += 1;
            return;
        }
        let denied = kinds.entry(kind).or_insert_with(|| Denied {
            count: 0,
            first: entry.began,
            last: entry.began,
            status: None,
            policy_version: None,
            decisions: VecDeque::new(),
        });
        denied.count += 1;
        denied.first = denied.first.min(entry.began);
        if entry.began >= denied.last {
            denied.last = entry.began;
            denied.status = entry.status;
            denied.policy_version = decided.map(|decided| decided.version.clone());
        }
        denied.decisions.extend(decided.and_then(|decided| decided.id.clone()));
        if denied.decisions.len() > DECISIONS {
            denied.decisions.pop_front();
        }
    }

    /// Takes what was counted since the last time.
    pub fn take(&self) -> Taken {
        std::mem::take(&mut *self.0.lock())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::telemetry::entry::samples::{call, denied};

    #[test]
    fn denials_of_one_kind_are_one_with_their_latest_ids() {
        let kinds = DeniedKinds::default();
        for n in 0..20 {
            kinds.observe(&denied("spiffe://td/ns/a/sa/b", "/x", &format!("{n}")));
        }
        let mut refused = call(None, "/");
        (refused.request, refused.status, refused.refusal) = (None, None, Some("plaintext-refused"));
        kinds.observe(&refused);
        kinds.observe(&call(None, "/"));
        let all = kinds.take().kinds;
        assert_eq!(all.len(), 2);
        let (_, one) = all.iter().find(|(kind, _)| kind.path == "/x").unwrap();
        assert_eq!((one.count, one.status), (20, Some(403)));
        assert_eq!(one.decisions, ["12", "13", "14", "15", "16", "17", "18", "19"]);
        let (kind, _) = all.iter().find(|(kind, _)| kind.method.is_none()).unwrap();
        assert_eq!(kind.reason, "plaintext-refused");
        assert!(kinds.take().kinds.is_empty());
    }

    #[test]
    fn kinds_that_have_no_room_are_counted_and_paths_are_cut() {
        let kinds = DeniedKinds::default();
        for n in 0..KINDS + 5 {
            kinds.observe(&denied(&format!("spiffe://td/ns/a/sa/{n}"), &"p".repeat(5000), "1"));
        }
        let all = kinds.take();
        assert_eq!((all.kinds.len(), all.overflow), (KINDS, 5));
        assert!(all.kinds.keys().all(|kind| kind.path.len() == PATH), "cut");
    }
}
