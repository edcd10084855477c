//! (facts, &Snapshot) -> Decision. The one evaluator (reference 2.3 to 2.8).
use crate::{documents::authorization_policy::Action, snapshot::Snapshot};
use postern_identity::SpiffeId;
use std::net::IpAddr;
/// Input of a decision.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Facts<'a> {
    /// Verified peer; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// Direct peer address of the socket.
    pub source_ip: IpAddr,
    /// After X-Forwarded-For (HTTP only); equal to `source_ip` on TCP.
    pub remote_ip: IpAddr,
    /// Original destination.
    pub destination_ip: IpAddr,
    /// Original destination port = workload port.
    pub destination_port: u16,
    pub sni: Option<&'a str>,
    /// `None` on TCP.
    pub http: Option<HttpFacts<'a>>,
}
/// What HTTP adds. `path` is normalized, without query.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct HttpFacts<'a> { pub method: &'a str, pub path: &'a str, pub host: &'a str, pub headers: &'a http::HeaderMap }
/// Allowed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Verdict { Allow, Deny }
/// Names one rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct RuleRef { pub namespace: String, pub policy: String, pub rule: usize, pub action: Action }
/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'s> {
    /// No ALLOW policy applies to the workload, and nothing denies.
    NoPolicy,
    /// This rule decided.
    Rule(&'s RuleRef),
    /// ALLOW policies apply and none of their rules matched.
    DefaultDeny,
}
/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision<'s> { /** allow or deny */ pub verdict: Verdict, /** because */ pub reason: Reason<'s> }
/// Decides. Allocates nothing.
pub fn authorize<'s>(_snapshot: &'s Snapshot, _facts: &Facts<'_>) -> Decision<'s> { todo!() }
