//! The pages about traffic, as JSON. Instants are RFC 3339 in UTC, durations are in microseconds.

use serde::{Deserialize, Serialize};

/// `GET /flows`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flows {
    /// The clock of the control plane.
    pub now: String,
    /// How far back was asked, in seconds.
    pub since_seconds: u64,
    /// Over how many seconds the counts are: less than that when the control plane has not run for so long.
    pub observed_seconds: u64,
    /// By workload, direction, peer and service.
    pub flows: Vec<Flow>,
    /// Workloads that lose the traces of those who call them.
    pub lost_traces: Vec<LostTraces>,
    /// Since the control plane began to hear of each workload; by policy and rule.
    pub rules: Vec<RuleUse>,
    /// What was counted in nothing above.
    pub lost: Lost,
}

/// A workload that was called with a trace, and made calls without one: its app does not copy `traceparent` (or the B3 headers)
/// from the request to the calls that it makes for it, or makes calls that are for no request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTraces {
    /// `namespace/pod`.
    pub workload: String,
    /// Requests with which the app was called, with a trace.
    pub received: u64,
    /// Requests that the app has sent.
    pub sent: u64,
    /// Of these, without a trace.
    pub untraced: u64,
}

/// What is not in the counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// Calls and denials that sidecars had no room for, since there were too many different ones.
    pub overflow: u64,
    /// Parts of reports that made no sense or were too many.
    pub dropped: u64,
}

/// What passed between two, as one of them saw it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Who reports: `namespace/pod`.
    pub workload: String,
    /// Its verified SPIFFE ID.
    pub identity: String,
    /// `inbound` or `outbound`, as seen by the workload.
    pub direction: String,
    /// SPIFFE ID of the other end; `None`: not verified.
    pub peer: Option<String>,
    /// Host of the destination service; outbound only.
    pub service: Option<String>,
    /// Requests, and connections that carried none.
    pub calls: u64,
    /// Of these, with mutual TLS.
    pub mutual_tls: u64,
    /// Of these, denied.
    pub denied: u64,
    /// Of these, failed otherwise.
    pub errors: u64,
    /// From downstream.
    pub bytes_received: u64,
    /// To downstream.
    pub bytes_sent: u64,
    /// Requests with a trace: outbound, that the app sent one with; inbound, that the app was called with.
    pub traced: u64,
    /// Requests without.
    pub untraced: u64,
    /// Half of the calls took no longer.
    pub p50_micros: Option<u64>,
    /// 99 of 100 took no longer.
    pub p99_micros: Option<u64>,
    /// The same of the proxy's own part.
    pub proxy_p50_micros: Option<u64>,
    /// The same of the proxy's own part.
    pub proxy_p99_micros: Option<u64>,
}

/// `GET /topology`: who calls whom, by what certificates prove: a namespace and a service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// The clock of the control plane.
    pub now: String,
    /// Whose mesh.
    pub trust_domain: String,
    /// How far back was asked, in seconds.
    pub since_seconds: u64,
    /// Over how many seconds the counts are.
    pub observed_seconds: u64,
    /// All who have a sidecar, and all who called or were called.
    pub nodes: Vec<Node>,
    /// Those with the most calls, at most 2000.
    pub edges: Vec<Call>,
    /// Edges beyond that.
    pub left_out: usize,
    /// What was counted in nothing above.
    pub lost: Lost,
}

/// Somebody who calls or is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `namespace/account`; a SPIFFE ID of another trust domain; the host of a service without sidecars; `(no identity)`; `(outside)`.
    pub id: String,
    /// `workload` when it has sidecars, else `outside`.
    pub kind: String,
    /// `namespace/service` of the services that its pods are behind.
    pub services: Vec<String>,
    /// Pods that should have a sidecar.
    pub pods: usize,
    /// Of these, with one that is connected.
    pub connected: usize,
    /// All of them take mutual TLS only, on every port, and have acknowledged that.
    pub strict: bool,
}

/// What passed from one to another. The counts are the server's where it has a sidecar that told, else the client's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Who calls: the id of a node.
    pub from: String,
    /// Who is called.
    pub to: String,
    /// `server` or `client`.
    pub seen_by: String,
    /// Requests, and connections that carried none.
    pub calls: u64,
    /// Of these, that got to the called one and were not turned away for coming without an identity.
    pub served: u64,
    /// Of those served, with mutual TLS.
    pub mutual_tls: u64,
    /// Of all, denied.
    pub denied: u64,
    /// Of all, failed otherwise.
    pub errors: u64,
    /// Half of the calls took no longer, as the caller's sidecar saw it, or else the called one's.
    pub p50_micros: Option<u64>,
    /// 99 of 100 took no longer.
    pub p99_micros: Option<u64>,
    /// The part of it that was the caller's sidecar's own.
    pub client_p50_micros: Option<u64>,
    /// The same, 99 of 100.
    pub client_p99_micros: Option<u64>,
    /// The part of it that was the called one's sidecar's own.
    pub server_p50_micros: Option<u64>,
    /// The same, 99 of 100.
    pub server_p99_micros: Option<u64>,
    /// When the last ended, to ten seconds.
    pub last: String,
}

/// One event `decided` of `GET /events`: what a sidecar has just reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decided {
    /// The clock of the control plane.
    pub now: String,
    /// Who tells: `namespace/pod`.
    pub workload: String,
    /// Its verified SPIFFE ID.
    pub identity: String,
    /// What it denied, at most 8 kinds; counts are those of this report.
    pub denials: Vec<Denial>,
    /// What it let in, by caller, at most 16.
    pub allowed: Vec<Allowed>,
    /// The rules that decided, at most 8, the busiest first.
    pub rules: Vec<Matched>,
    /// Kinds of denials and callers that are not told here.
    pub left_out: usize,
}

/// Calls that were let in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    /// SPIFFE ID of the caller; `None`: not verified.
    pub peer: Option<String>,
    /// How many.
    pub calls: u64,
}

/// A rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Matched {
    /// `namespace/name`.
    pub policy: String,
    /// From 0.
    pub rule: Option<u32>,
    /// How many calls.
    pub matched: u64,
    /// As a dry run: calls that it would deny.
    pub would_deny: u64,
}

/// How often a rule decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleUse {
    /// `namespace/name`.
    pub policy: String,
    /// From 0; `None`: what the policy denies by default.
    pub rule: Option<u32>,
    /// Workloads that say so.
    pub workloads: usize,
    /// Calls that it decided.
    pub matched: u64,
    /// The last of them.
    pub last: String,
    /// As a dry run: calls that it would deny.
    pub would_deny: u64,
    /// As a dry run: calls that it would allow.
    pub would_allow: u64,
}

/// `GET /denials`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denials {
    /// The clock of the control plane.
    pub now: String,
    /// How far back was asked, in seconds.
    pub since_seconds: u64,
    /// The latest first.
    pub denials: Vec<Denial>,
    /// What was counted in nothing above.
    pub lost: Lost,
}

/// `GET /decisions/<id>`: what was decided then, and what would be now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The clock of the control plane.
    pub now: String,
    /// The id that was asked for.
    pub id: String,
    /// All denials of this kind, this one among them.
    pub denial: Denial,
    /// What policy saw, when the sidecar still knew.
    pub facts: Option<Facts>,
    /// The policy that the workload should have now; `None`: the mesh has no such pod any more.
    pub policy_version_now: Option<String>,
    /// That it is another one than the one that denied.
    pub policy_changed: bool,
    /// The verdict of the policy now, on the same facts; `None` when that cannot be told.
    pub allowed_now: Option<bool>,
    /// Why, in a sentence or two.
    pub explanation_now: Option<String>,
    /// What to keep in mind.
    pub notes: Vec<String>,
}

/// What policy saw of a call, beside peer, method and path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Direct peer address.
    pub source_ip: String,
    /// After X-Forwarded-For.
    pub remote_ip: String,
    /// Original destination.
    pub destination_ip: String,
    /// Port of the workload.
    pub destination_port: u16,
    /// Server name of the handshake.
    pub sni: Option<String>,
    /// As the caller named it; empty: not at all.
    pub host: String,
}

/// Denials of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// Who denied: `namespace/pod`.
    pub workload: String,
    /// Its verified SPIFFE ID.
    pub identity: String,
    /// `inbound` or `outbound`, as seen by the workload.
    pub direction: String,
    /// SPIFFE ID of the other end; `None`: not verified.
    pub peer: Option<String>,
    /// Host of the destination service; outbound only.
    pub service: Option<String>,
    /// `None`: a connection.
    pub method: Option<String>,
    /// Without query.
    pub path: Option<String>,
    /// Original destination.
    pub port: u16,
    /// HTTP status of the last answer.
    pub status: Option<u16>,
    /// In words, or a code of docs/errors.md.
    pub reason: String,
    /// `namespace/name` of the policy that denied, when a rule did.
    pub policy: Option<String>,
    /// Its rule.
    pub rule: Option<u32>,
    /// Of a default deny: the ALLOW rule that came closest, and what failed.
    pub closest: Option<String>,
    /// The policy that denied last.
    pub policy_version: String,
    /// Ids of the latest, oldest first.
    pub decisions: Vec<String>,
    /// How many, in the time that was asked for.
    pub count: u64,
    /// The first that is known of.
    pub first: String,
    /// The last.
    pub last: String,
}

/// `POST /tap`: which calls are to be shown. The answer is a [`TapLine`] a line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TapWanted {
    /// The caller: `NAMESPACE/SERVICEACCOUNT` or a SPIFFE ID.
    pub from: Option<String>,
    /// The called: a service or a workload, as `NAME`, `NAMESPACE/NAME` or a host.
    pub to: Option<String>,
    /// As sent.
    pub method: Option<String>,
    /// What the path begins with.
    pub path: Option<String>,
    /// `403` or `4xx`.
    pub status: Option<String>,
    /// `allow` or `deny`.
    pub decision: Option<String>,
    /// `server` or `client`.
    pub seen_by: Option<String>,
    /// Calls in a second of one sidecar, 1 to 1000; 10 when not said.
    pub rate: Option<u32>,
    /// 1 to 600; 600 when not said.
    pub seconds: Option<u64>,
}

/// One line of a tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TapLine {
    /// The first.
    Begin(TapBegin),
    /// A call that has ended.
    Call(Box<TapCall>),
    /// Calls that are not shown.
    More(TapMore),
    /// The last, with the reason; without it the control plane is gone.
    End(String),
}

/// Who is tapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapBegin {
    /// How long it lasts.
    pub seconds: u64,
    /// Calls in a second of one sidecar.
    pub rate: u32,
    /// Sidecars that are connected and can be tapped.
    pub sidecars: usize,
    /// `namespace/pod` of connected sidecars that are too old for it.
    pub too_old: Vec<String>,
}

/// Calls that matched and are not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapMore {
    /// Since there were more than the rate, or than the reader took.
    pub matched: u64,
    /// Since what a sidecar told made no sense, or was more than it was asked for.
    pub refused: u64,
}

/// One call, as one end saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapCall {
    /// When it began.
    pub at: String,
    /// Who tells: `namespace/pod`.
    pub workload: String,
    /// Its verified SPIFFE ID.
    pub identity: String,
    /// `inbound` or `outbound`, as seen by the workload.
    pub direction: String,
    /// SPIFFE ID of the other end; `None`: not verified.
    pub peer: Option<String>,
    /// Host of the destination service; outbound only.
    pub service: Option<String>,
    /// `None`: a connection.
    pub method: Option<String>,
    /// Without query.
    pub path: Option<String>,
    /// Original destination.
    pub port: u16,
    /// HTTP status of the answer.
    pub status: Option<u16>,
    /// `http/1.1`, `http/2`, `grpc`, `tcp`.
    pub protocol: Option<String>,
    /// `allow` or `deny`; `None`: nobody decided.
    pub decision: Option<String>,
    /// Of a denial or a failure.
    pub reason: Option<String>,
    /// `namespace/name` of the policy that decided, when a rule did.
    pub policy: Option<String>,
    /// Its rule.
    pub rule: Option<u32>,
    /// Of a denial: for `postern why --id`.
    pub decision_id: Option<String>,
    /// Envoy's short code; `None`: all is well.
    pub flag: Option<String>,
    /// Direct peer address.
    pub source_ip: String,
    /// From beginning to end.
    pub micros: u64,
    /// The proxy's own part.
    pub proxy_micros: u64,
    /// From downstream.
    pub bytes_received: u64,
    /// To downstream.
    pub bytes_sent: u64,
}
