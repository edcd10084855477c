//! (facts, &Snapshot) -> Decision. The one evaluator (reference 2.3 to 2.8).

use crate::{documents::authorization_policy::Action, snapshot::Snapshot};
use postern_identity::SpiffeId;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{net::IpAddr, sync::Arc};

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
    /// Payload of the verified token; `None` when there is no token, or none was validated. Counts on HTTP only.
    pub claims: Option<&'a Claims>,
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
    /// All headers. What is sent more than once has to pass value by value, and joined as one (see [`judge`]).
    pub headers: &'a http::HeaderMap,
}

/// The payload of a verified token. Only its verifier, or a test of policy, makes one.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// The payload, which has to be verified.
    pub fn new(payload: Map<String, Value>) -> Self {
        Self(payload)
    }

    /// All claims.
    pub fn payload(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl std::fmt::Debug for Claims {
    /// Names only: the values are about a person.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Allowed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass.
    Allow,
    /// Refuse it.
    Deny,
}

/// Names one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyRef {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub policy: String,
}

/// Names one rule of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

impl RuleRef {
    /// `namespace/name` of its policy, as logs and metrics say it.
    pub fn policy_name(&self) -> String {
        format!("{}/{}", self.namespace, self.policy)
    }
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'s> {
    /// No ALLOW policy applies to the workload, and nothing denies.
    NoPolicy,
    /// This rule decided.
    Rule(&'s Arc<RuleRef>),
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

/// What both sets of rules say, and whether an AUDIT rule matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement<'s> {
    /// What is enforced.
    pub decision: Decision<'s>,
    /// What would be, were the dry-run policies enforced as well; only when that is another verdict. Its reason is the
    /// dry-run rule that makes the difference, or [`Reason::DefaultDeny`], for which `dry_run_policy` is to blame.
    pub dry_run: Option<Decision<'s>>,
    /// The dry-run ALLOW policy whose presence alone would deny by default.
    pub dry_run_policy: Option<&'s PolicyRef>,
    /// The first AUDIT rule that matched. It marks the call and changes nothing.
    pub audit: Option<&'s Arc<RuleRef>>,
}

impl<'s> Judgement<'s> {
    /// Whom to name for the difference: namespace and name of the dry-run policy, and its rule when one matched.
    pub fn would_blame(&self) -> Option<(&'s str, &'s str, Option<usize>)> {
        match self.dry_run?.reason {
            Reason::Rule(rule) => Some((&rule.namespace, &rule.policy, Some(rule.rule))),
            _ => self.dry_run_policy.map(|policy| (&*policy.namespace, &*policy.policy, None)),
        }
    }
}

/// The first matching rule of each kind, in policy order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Matched<'s> {
    pub deny: Option<&'s Arc<RuleRef>>,
    pub dry_run_deny: Option<&'s Arc<RuleRef>>,
    pub allow: Option<&'s Arc<RuleRef>>,
    pub dry_run_allow: Option<&'s Arc<RuleRef>>,
    pub audit: Option<&'s Arc<RuleRef>>,
}

/// Decides: any DENY rule denies; then, when ALLOW policies apply, one of their rules has to match. Of several
/// matching rules the first in policy order is named. Allocates nothing.
pub fn authorize<'s>(snapshot: &'s Snapshot, facts: &Facts<'_>) -> Decision<'s> {
    judge(snapshot, facts).decision
}

/// Decides, and says in the same pass what dry-run policies would change and what is to be audited (reference 2.3,
/// 2.12). Allocates nothing, unless a header line is repeated.
///
/// Nobody knows which of two lines an app reads, or whether it joins them. So what repeats a header is allowed only when
/// both readings are: value by value, where any value makes a condition true, and joined by commas, as Envoy long did.
pub fn judge<'s>(snapshot: &'s Snapshot, facts: &Facts<'_>) -> Judgement<'s> {
    in_both_readings(facts, |facts| {
        weigh(snapshot, &snapshot.rules().of(facts.http.is_some()).first_matches(facts))
    })
}

/// The judgement on the facts as they are, or the denial that follows from the joined reading of a repeated header.
pub(crate) fn in_both_readings<'s>(
    facts: &Facts<'_>,
    judge: impl Fn(&Facts<'_>) -> Judgement<'s>,
) -> Judgement<'s> {
    let judgement = judge(facts);
    let Some(http) = facts.http.filter(|http| http.headers.len() > http.headers.keys_len()) else {
        return judgement;
    };
    if judgement.decision.verdict == Verdict::Deny {
        return judgement;
    }
    let headers = joined(http.headers);
    let joined = judge(&Facts { http: Some(HttpFacts { headers: &headers, ..http }), ..*facts });
    if joined.decision.verdict == Verdict::Deny { joined } else { judgement }
}

/// One line for each name. A value that cannot be joined cannot occur: all of them are values already.
fn joined(headers: &http::HeaderMap) -> http::HeaderMap {
    let mut all = http::HeaderMap::with_capacity(headers.keys_len());
    for name in headers.keys() {
        let values: Vec<&[u8]> = headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
        if let Ok(value) = http::HeaderValue::from_bytes(&values.join(&b","[..])) {
            all.insert(name.clone(), value);
        }
    }
    all
}

/// What follows from the rules that match; the only place that knows the order of actions.
pub(crate) fn weigh<'s>(snapshot: &'s Snapshot, matched: &Matched<'s>) -> Judgement<'s> {
    let deny = |rule| Decision { verdict: Verdict::Deny, reason: Reason::Rule(rule) };
    let allow = |rule| Decision { verdict: Verdict::Allow, reason: Reason::Rule(rule) };
    let default_deny = Decision { verdict: Verdict::Deny, reason: Reason::DefaultDeny };
    let rules = snapshot.rules();
    let decision = match (matched.deny, matched.allow) {
        (Some(rule), _) => deny(rule),
        (None, _) if !rules.allow_applies => Decision { verdict: Verdict::Allow, reason: Reason::NoPolicy },
        (None, Some(rule)) => allow(rule),
        (None, None) => default_deny,
    };
    let tried = match (decision.verdict, decision.reason) {
        (Verdict::Allow, reason) => match (matched.dry_run_deny, matched.dry_run_allow) {
            (Some(rule), _) => Some(deny(rule)),
            (None, None) if reason == Reason::NoPolicy && rules.dry_run_allow.is_some() => Some(default_deny),
            _ => None,
        },
        (Verdict::Deny, Reason::DefaultDeny) if matched.dry_run_deny.is_none() => {
            matched.dry_run_allow.map(allow)
        }
        (Verdict::Deny, _) => None,
    };
    let by_presence = tried.is_some_and(|tried| tried.reason == Reason::DefaultDeny);
    Judgement {
        decision,
        dry_run: tried,
        dry_run_policy: rules.dry_run_allow.as_ref().filter(|_| by_presence),
        audit: matched.audit,
    }
}
