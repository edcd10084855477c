//! Who is connected, what was sent to whom, and who refused it: the table behind `ControlPlane::status`.

use parking_lot::Mutex;
use postern_identity::KeyId;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::SystemTime,
};

/// The last refusals are kept for each session, not all.
const KEPT_NACKS: usize = 8;
/// The longest reason that is kept, in characters.
const MAX_REASON: usize = 1024;

/// One connected sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    /// Pod name, as the sidecar says.
    pub instance: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Verified SPIFFE ID.
    pub identity: String,
    /// Version of the sidecar's program.
    pub build: String,
    /// Whether it can show calls live.
    pub knows_taps: bool,
    /// Inbound policy: the version sent last. Empty before the first.
    pub version_sent: String,
    /// Inbound policy: the version that the sidecar took last, its last good one. Empty before the first.
    pub version_acked: String,
    /// Since when that version is in force, as far as this stream knows; `None` before the first.
    pub policy_since: Option<SystemTime>,
    /// Trust bundles: the version sent last. Empty before the first.
    pub trust_sent: String,
    /// Trust bundles: the version that the sidecar took last. Empty before the first.
    pub trust_acked: String,
    /// Our own roots and token keys in the trust that it took last.
    pub trust_known: Arc<BTreeSet<KeyId>>,
    /// The certificate that it has in force, as it says; `None` before it has said so.
    pub certificate: Option<Held>,
    /// How many updates it refused, of all kinds.
    pub nacks: u64,
    /// Its latest refusals, oldest first, at most 8.
    pub last_nacks: Vec<Refused>,
    /// How many destinations it is subscribed to.
    pub subscriptions: usize,
    /// The state of the documents that it was told all of, as [`crate::ControlPlane::apply`] numbers them; 0 before the first.
    pub documents: u64,
    /// How many updates it has neither taken nor refused yet.
    pub unanswered: usize,
    /// How many messages it was sent: policy, destinations and bundles.
    pub pushes: u64,
    /// Since when.
    pub connected_since: SystemTime,
}

/// A certificate that a sidecar has in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Lower-case hex.
    pub serial: String,
    /// Begin of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
    /// The keys above it, from its issuer to the root.
    pub authorities: Vec<KeyId>,
}

/// A sidecar that was connected to this process and is not now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departed {
    /// Namespace of the pod.
    pub namespace: String,
    /// Pod name.
    pub instance: String,
    /// When its last stream ended.
    pub at: SystemTime,
    /// What it held then.
    pub certificate: Option<Held>,
    /// What it knew then.
    pub trust_known: Arc<BTreeSet<KeyId>>,
}

/// An update that a sidecar did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What, in words: `inbound policy`, `trust bundles`, `destination 10.0.0.1:80`.
    pub resource: String,
    /// Version of the content.
    pub version: String,
    /// Why, as the sidecar says; control characters removed, at most 1024 characters.
    pub reason: String,
    /// When.
    pub at: SystemTime,
}

/// All sessions. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    rows: BTreeMap<u64, Row>,
    /// By namespace and pod; of a pod that came back the row counts.
    departed: BTreeMap<(String, String), Departed>,
}

struct Row {
    status: SessionStatus,
    last_nacks: VecDeque<Refused>,
}

/// The row of one running session; the row goes when this is dropped.
pub(crate) struct Entry {
    key: u64,
    sessions: Sessions,
}

impl Sessions {
    pub(crate) fn open(&self, status: SessionStatus) -> Entry {
        let mut table = self.0.lock();
        let key = table.next;
        table.next += 1;
        table.rows.insert(key, Row { status, last_nacks: VecDeque::new() });
        Entry { key, sessions: self.clone() }
    }

    /// All sessions, in the order in which they came.
    pub(crate) fn all(&self) -> Vec<SessionStatus> {
        let table = self.0.lock();
        let whole = |row: &Row| SessionStatus {
            last_nacks: row.last_nacks.iter().cloned().collect(),
            ..row.status.clone()
        };
        table.rows.values().map(whole).collect()
    }

    /// Who was here and has gone.
    pub(crate) fn departed(&self) -> Vec<Departed> {
        self.0.lock().departed.values().cloned().collect()
    }

    /// Forgets who went before `since`: nothing that it held then can be valid any more.
    pub(crate) fn forget_departed(&self, since: SystemTime) {
        self.0.lock().departed.retain(|_, departed| departed.at >= since);
    }
}

impl Entry {
    /// How many sessions there are, this one included.
    pub(crate) fn connected(&self) -> usize {
        self.sessions.0.lock().rows.len()
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut SessionStatus)) {
        if let Some(row) = self.sessions.0.lock().rows.get_mut(&self.key) {
            change(&mut row.status);
        }
    }

    /// Notes a refusal; returns the reason as it may be logged.
    pub(crate) fn refused(&self, resource: String, version: String, reason: &str, at: SystemTime) -> String {
        let reason: String =
            reason.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON).collect();
        if let Some(row) = self.sessions.0.lock().rows.get_mut(&self.key) {
            row.status.nacks += 1;
            row.last_nacks.push_back(Refused { resource, version, reason: reason.clone(), at });
            if row.last_nacks.len() > KEPT_NACKS {
                row.last_nacks.pop_front();
            }
        }
        reason
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut table = self.sessions.0.lock();
        let Some(Row { status, .. }) = table.rows.remove(&self.key) else { return };
        let departed = Departed {
            namespace: status.namespace.clone(),
            instance: status.instance.clone(),
            at: SystemTime::now(),
            certificate: status.certificate,
            trust_known: status.trust_known,
        };
        table.departed.insert((status.namespace, status.instance), departed);
    }
}
