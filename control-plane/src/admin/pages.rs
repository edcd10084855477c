//! The pages of the admin socket, as JSON. Instants are RFC 3339 in UTC; key ids are 64 hex digits.

use crate::rotation::Lagging;
use serde::{Deserialize, Serialize};

pub use crate::traffic::pages::{
    Allowed, Call, Decided, Decision, Denial, Denials, Facts, Flow, Flows, Lost, LostTraces, Matched, Node,
    RuleUse, TapBegin, TapCall, TapLine, TapMore, TapWanted, Topology,
};

/// `GET /authorities`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Authorities {
    /// Whose authorities.
    pub trust_domain: String,
    /// The clock of the control plane.
    pub now: String,
    /// Version of the trust that sidecars are sent.
    pub trust_version: String,
    /// Sidecars that are connected.
    pub connected: usize,
    /// Connected ones that have not acknowledged that version.
    pub behind: usize,
    /// Roots first, each kind in the order of its slots.
    pub authorities: Vec<Authority>,
    /// Steps that wait for somebody.
    pub pending: Vec<Pending>,
}

/// One authority.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Authority {
    /// `root`, `intermediate` or `jwt-key`.
    pub kind: String,
    /// SHA-256 of its public key.
    pub id: String,
    /// Subject of its certificate; may be empty.
    pub subject: String,
    /// `prepared`, `active` or `old`.
    pub slot: String,
    /// The root above an intermediate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<String>,
    /// Whoever holds a certificate below it renews now.
    pub tainted: bool,
    /// Nothing below it is trusted.
    pub revoked: bool,
    /// Begin of its validity.
    pub not_before: String,
    /// End of its validity.
    pub not_after: String,
    /// Since when it is in its slot.
    pub since: String,
    /// What is left of its life, 0 to 1.
    pub remaining: f64,
    /// How many connected sidecars hold a certificate below it; nobody counts tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holders: Option<usize>,
}

/// A step of a rotation that is not done yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// `activate` or `retire`.
    pub step: String,
    /// `root` or `jwt-key`.
    pub kind: String,
    /// Which authority.
    pub id: String,
    /// It goes on by itself as soon as nobody lags.
    pub automatic: bool,
    /// Who lags, and why.
    pub lagging: Vec<Lagging>,
}

/// An `authority` event of `GET /events`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityEvent {
    /// The clock of the control plane.
    pub now: String,
    /// `remaining` (once at 50, 20 and 5 % of a life, and once more after a restart), `renewed`, `renewal-failed`, `prepared`,
    /// `activated`, `replaced` (by an outside authority, before anybody could acknowledge it), `forgotten` or `state-failed`.
    pub event: String,
    /// `root`, `intermediate` or `jwt-key`; `None` when it is about none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Which authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Of `remaining`: 50, 20 or 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Of `remaining` and `renewed`: when the authority ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Somebody has to do something.
    pub warning: bool,
    /// The same in a sentence, as the log has it.
    pub told: String,
}

/// `GET /certificates`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificates {
    /// The clock of the control plane.
    pub now: String,
    /// One for each connected sidecar, by namespace and pod.
    pub certificates: Vec<Certificate>,
    /// The sidecars that should be connected and are not.
    pub missing: Vec<Lagging>,
}

/// What a connected sidecar has in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// Namespace of the pod.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// SPIFFE ID.
    pub identity: String,
    /// `None` before the sidecar has said what it holds; so are the next four.
    pub serial: Option<String>,
    /// Begin of its validity.
    pub not_before: Option<String>,
    /// End of its validity.
    pub not_after: Option<String>,
    /// Who signed it: key id of an intermediate, or of a root.
    pub issuer: Option<String>,
    /// The root above it.
    pub root: Option<String>,
    /// What is left of its life, 0 to 1.
    pub remaining: Option<f64>,
    /// Version of the trust that it acknowledged last; empty before the first.
    pub trust_acked: String,
    /// Since when it is connected.
    pub connected_since: String,
}

/// `GET /status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The clock of the control plane.
    pub now: String,
    /// Version of the control plane's program.
    pub build: String,
    /// One for each sidecar that is connected or should be, by namespace and pod.
    pub workloads: Vec<Workload>,
}

/// How a sidecar stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Namespace of the pod.
    pub namespace: String,
    /// Pod name.
    pub pod: String,
    /// How it stands.
    pub state: State,
    /// SPIFFE ID; `None` when it is not connected, as all that follows.
    pub identity: Option<String>,
    /// Version of the sidecar's program.
    pub build: Option<String>,
    /// Since when it is connected.
    pub connected_since: Option<String>,
    /// Version of the policy that it should have; empty before it was sent one.
    pub policy_wanted: Option<String>,
    /// Version of the policy that it took last; empty before the first.
    pub policy_in_force: Option<String>,
    /// Since when that policy is in force, as far as this connection knows.
    pub policy_since: Option<String>,
    /// Why it refused the policy that it should have.
    pub refusal: Option<String>,
    /// Updates that it has neither taken nor refused.
    pub unanswered: Option<usize>,
    /// End of the certificate that it holds.
    pub certificate_not_after: Option<String>,
    /// What is left of that certificate's life, 0 to 1.
    pub certificate_remaining: Option<f64>,
}

/// How a sidecar stands to what it should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It has taken everything.
    Synced,
    /// Something is on its way to it.
    Behind,
    /// It keeps its last good policy since it refused another.
    Refused,
    /// It should be connected and is not.
    NotConnected,
}

/// `GET /policies`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// The clock of the control plane.
    pub now: String,
    /// By kind, namespace and name.
    pub policies: Vec<PolicyStanding>,
}

/// How a policy stands: who enforces it, and what it has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStanding {
    /// `AuthorizationPolicy` or `PeerAuthentication`.
    pub kind: String,
    /// Namespace of the document.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its action, as `ALLOW`, or its mode, as `STRICT`.
    pub says: String,
    /// It is tried and not enforced.
    pub dry_run: bool,
    /// Sidecars that should enforce it (or try it).
    pub selected: usize,
    /// Of these, that are connected and have acknowledged all of their policy of now.
    pub enforced_by: usize,
    /// `namespace/pod` of the others, at most 8.
    pub waiting_for: Vec<String>,
    /// Calls that one of its rules decided, since the control plane began to hear of each workload; `None` when the kind has no rules.
    pub matched: Option<u64>,
    /// As a dry run: calls that it would deny.
    pub would_deny: u64,
    /// As a dry run: calls that it would allow.
    pub would_allow: u64,
    /// The last of all these calls.
    pub last: Option<String>,
}

/// `POST /authorities/rotate`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// `root`, `intermediate` or `jwt`.
    pub kind: Kind,
    /// One step alone; without it the whole rotation, which goes on by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Step>,
    /// Do the step although somebody lags.
    #[serde(default)]
    pub force: bool,
}

/// What can be rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An anchor of the bundle.
    Root,
    /// What signs workload certificates.
    Intermediate,
    /// The key of JWT-SVIDs.
    Jwt,
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Make the next one and publish it.
    Prepare,
    /// Let it sign.
    Activate,
    /// Publish the old one no more.
    Retire,
}

/// `POST /authorities/<id>/revoke`; the body of `…/taint` is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoke {
    /// Whomever it cuts off.
    #[serde(default)]
    pub force: bool,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// In a sentence.
    pub done: String,
}

/// What was not done (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status.
    pub status: u16,
    /// In a few words.
    pub title: String,
    /// Why, in a sentence.
    pub detail: String,
    /// Who lags, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lagging: Vec<Lagging>,
}
