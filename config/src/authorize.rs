//! (facts, &Snapshot) -> Decision. The one evaluator (reference 2.3 to 2.8).

use crate::{documents::authorization_policy::Action, snapshot::Snapshot};
use postern_identity::SpiffeId;
use std::net::IpAddr;

/// Input of a decision.
#[derive(Clone, Copy, Debug)]
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
    /// Server name of the TLS handshake, when there was one.
    pub sni: Option<&'a str>,
    /// `None` on TCP.
    pub http: Option<HttpFacts<'a>>,
}

/// What HTTP adds.
#[derive(Clone, Copy, Debug)]
pub struct HttpFacts<'a> {
    /// As sent; methods are case-sensitive.
    pub method: &'a str,
    /// Normalized (see [`crate::path::normalize`]), without query.
    pub path: &'a str,
    /// `:authority` or Host, with its port when it has one; empty when there is neither.
    pub host: &'a str,
    /// All headers; a repeated one is looked at value by value.
    pub headers: &'a http::HeaderMap,
}

/// Allowed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
}

/// Names one rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RuleRef {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub policy: String,
    /// Index of the rule, from 0.
    pub rule: usize,
    /// What the policy does when a rule matches.
    pub action: Action,
}

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
pub struct Decision<'s> {
    /// Allow or deny.
    pub verdict: Verdict,
    /// Because.
    pub reason: Reason<'s>,
}

/// Decides: any DENY rule denies; then, when ALLOW policies apply, one of their rules has to match. Of several
/// matching rules the first in policy order is named. Allocates nothing.
pub fn authorize<'s>(snapshot: &'s Snapshot, facts: &Facts<'_>) -> Decision<'s> {
    let rules = snapshot.rules().of(facts.http.is_some());
    let first = |rules: &'s [std::sync::Arc<crate::snapshot::rules::Rule>]| {
        rules.iter().find(|rule| rule.matches(facts)).map(|rule| Reason::Rule(&rule.reference))
    };
    if let Some(reason) = first(&rules.deny) {
        return Decision { verdict: Verdict::Deny, reason };
    }
    if !snapshot.rules().allow_applies {
        return Decision { verdict: Verdict::Allow, reason: Reason::NoPolicy };
    }
    match first(&rules.allow) {
        Some(reason) => Decision { verdict: Verdict::Allow, reason },
        None => Decision { verdict: Verdict::Deny, reason: Reason::DefaultDeny },
    }
}
