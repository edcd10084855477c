//! Why, and the closest rule that would have allowed. Computed only when someone asks.
//!
//! The decision itself is the one of [`authorize`]; this room only finds words for it, so the two cannot disagree.

mod tree;

use crate::{
    authorize::{Claims, Decision, Facts, Reason, RuleRef, Verdict, authorize},
    documents::authorization_policy::Action,
    snapshot::{
        Snapshot,
        rules::{Clause, Rule, Test},
    },
};
use http::header::{AUTHORIZATION, COOKIE, HeaderName, PROXY_AUTHORIZATION};
use serde::Serialize;
use serde_json::Value;
use std::fmt;

pub use tree::{ConditionTrace, PolicyTrace, RuleTrace, tree};

/// The first condition of a rule that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FailedCondition {
    /// Istio's field, e.g. `from[0].source.principals`, or `when[0].values (source.ip)`.
    pub field: String,
    /// What the facts have there.
    pub saw: String,
    /// The values of the rule, trust domain aliases expanded.
    pub wanted: Vec<String>,
    /// A `not` field: none of the values was wanted.
    pub negated: bool,
}

/// An explanation a person can act on; `Display` is one or two sentences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The verdict.
    pub allowed: bool,
    /// One sentence.
    pub summary: String,
    /// The rule that decided, when one did.
    pub decided_by: Option<RuleRef>,
    /// For a default deny: the ALLOW rule with the fewest failed conditions, and the first of these.
    pub closest: Option<(RuleRef, FailedCondition)>,
}

/// Explains the decision that [`authorize`] takes on the same input.
pub fn explain(snapshot: &Snapshot, facts: &Facts<'_>) -> Explanation {
    let Decision { verdict, reason } = authorize(snapshot, facts);
    let allowed = verdict == Verdict::Allow;
    let (summary, decided_by, closest) = match reason {
        Reason::NoPolicy => (
            "allowed: no ALLOW policy applies to the workload and no DENY rule matched".to_string(),
            None,
            None,
        ),
        Reason::Rule(rule) if allowed => {
            (format!("allowed: ALLOW rule matched: {rule}"), Some(RuleRef::clone(rule)), None)
        }
        Reason::Rule(rule) => (denied_by(snapshot, facts, rule), Some(RuleRef::clone(rule)), None),
        Reason::DefaultDeny => {
            let closest = closest(snapshot, facts);
            let why = if closest.is_none() { ": the ALLOW policies that apply have no rules" } else { "" };
            (format!("denied: no ALLOW rule matched{why}"), None, closest)
        }
    };
    Explanation { allowed, summary, decided_by, closest }
}

/// On TCP a DENY rule may match only since its HTTP conditions do not count there, which surprises people.
fn denied_by(snapshot: &Snapshot, facts: &Facts<'_>, reference: &RuleRef) -> String {
    let summary = format!("denied: DENY rule matched: {reference}");
    let written = snapshot.rules().http.deny.iter().find(|rule| *rule.reference == *reference);
    let dropped: Vec<&str> = match written {
        Some(rule) if facts.http.is_none() => {
            rule.clauses().filter(|clause| clause.test.needs_http()).map(|clause| &*clause.field).collect()
        }
        _ => Vec::new(),
    };
    if dropped.is_empty() {
        return summary;
    }
    format!("{summary} (on TCP it is wider: {} can not be checked and does not count)", dropped.join(", "))
}

/// The ALLOW rule with the fewest failed conditions; the first of those in policy order.
///
/// The HTTP form is looked at on TCP as well: there, a rule that needs a request fails for that reason.
fn closest(snapshot: &Snapshot, facts: &Facts<'_>) -> Option<(RuleRef, FailedCondition)> {
    let rules = snapshot.rules().http.allow.iter();
    let failures = rules.filter_map(|rule| failure(rule, facts).map(|(count, clause)| (count, rule, clause)));
    let (_, rule, clause) = failures.min_by_key(|(count, ..)| *count)?;
    Some((RuleRef::clone(&rule.reference), failed_condition(clause, facts)))
}

/// How many conditions failed, counting the best alternative of `from` and of `to`, and the first one.
fn failure<'r>(rule: &'r Rule, facts: &Facts<'_>) -> Option<(usize, &'r Clause)> {
    let from = best(&rule.from, facts);
    let to = best(&rule.to, facts);
    let failed =
        || from.iter().chain(&to).copied().chain(rule.when.iter().filter(|clause| !clause.holds(facts)));
    match failed().next() {
        Some(first) => Some((failed().count(), first)),
        // Every condition of the best alternatives holds, so it was dropped for another alternative's sake.
        None => rule.clauses().find(|clause| clause.test.needs_http()).map(|clause| (1, clause)),
    }
}

/// The failed conditions of the alternative that has the fewest.
fn best<'r>(alternatives: &'r [Vec<Clause>], facts: &Facts<'_>) -> Vec<&'r Clause> {
    let failed =
        alternatives.iter().map(|clauses| clauses.iter().filter(|clause| !clause.holds(facts)).collect());
    failed.min_by_key(|failed: &Vec<&Clause>| failed.len()).unwrap_or_default()
}

fn failed_condition(clause: &Clause, facts: &Facts<'_>) -> FailedCondition {
    FailedCondition {
        field: clause.field.to_string(),
        saw: seen(&clause.test, facts),
        wanted: clause.wanted.to_vec(),
        negated: clause.negated,
    }
}

/// What the facts have to say to a test, in short.
fn seen(test: &Test, facts: &Facts<'_>) -> String {
    let identity = || match facts.peer {
        Some(peer) => peer.as_str().trim_start_matches("spiffe://").to_string(),
        None => "no verified identity (plaintext)".to_string(),
    };
    match (test, &facts.http) {
        (Test::Principal(_) | Test::Namespace(_) | Test::ServiceAccount(_) | Test::TrustDomain(_), _) => {
            identity()
        }
        (Test::SourceIp(_), _) => facts.source_ip.to_canonical().to_string(),
        (Test::RemoteIp(_), _) => facts.remote_ip.to_canonical().to_string(),
        (Test::DestinationIp(_), _) => facts.destination_ip.to_canonical().to_string(),
        (Test::DestinationPort(_), _) => facts.destination_port.to_string(),
        (Test::Sni(_), _) => facts.sni.map_or_else(|| "no server name".to_string(), short),
        (_, None) => "a TCP connection (no HTTP request)".to_string(),
        (Test::Host(_) | Test::Authority(_), Some(http)) if http.host.is_empty() => "no host".to_string(),
        (Test::Host(_) | Test::Authority(_), Some(http)) => short(http.host),
        (Test::Method(_), Some(http)) => short(http.method),
        (Test::Path(_), Some(http)) => short(http.path),
        (Test::RequestPrincipal(_) | Test::Claim(..), Some(_)) => match facts.claims {
            None => "no verified token".to_string(),
            Some(claims) => claimed(test, claims),
        },
        (Test::Header(name, _), Some(http)) => {
            let values: Vec<String> = http
                .headers
                .get_all(name)
                .iter()
                .map(|value| short(&String::from_utf8_lossy(value.as_bytes())))
                .collect();
            match values.len() {
                0 => format!("no header {name}"),
                _ if is_secret(name) => format!("a header {name} whose value is not shown"),
                _ => short(&values.join(" | ")),
            }
        }
    }
}

/// Claims are shown as they are compared: who a token stands for, or the one claim.
fn claimed(test: &Test, claims: &Claims) -> String {
    let Test::Claim(path, _) = test else {
        let text =
            |name: &str| claims.payload().get(name).and_then(Value::as_str).map_or("(none)".into(), short);
        return format!("iss {}, sub {}", text("iss"), text("sub"));
    };
    match path.find(claims.payload()) {
        None => format!("no claim {path}"),
        Some(Value::String(text)) => short(text),
        Some(Value::Array(list)) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            short(&texts.join(" | "))
        }
        Some(_) => format!("a claim {path} that is neither text nor a list of texts"),
    }
}

/// Headers whose values have no place in an explanation.
fn is_secret(name: &HeaderName) -> bool {
    [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE].contains(name)
        || ["token", "secret", "key", "password"].iter().any(|word| name.as_str().contains(word))
}

/// What a caller sends can be long; an explanation is not.
fn short(text: &str) -> String {
    const LIMIT: usize = 200;
    let kept: String = text.chars().take(LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(LIMIT).is_some() { format!("{kept}…") } else { kept }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} rule {}", self.namespace, self.policy, self.rule)
    }
}

impl fmt::Display for FailedCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = if self.negated { "wanted none of" } else { "wanted one of" };
        write!(f, "{}: saw {}, {wanted} {}", self.field, self.saw, self.wanted.join(", "))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.summary)?;
        match &self.closest {
            Some((rule, failed)) => write!(f, ". Closest: {rule}, which failed at {failed}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
            Self::Custom => "CUSTOM",
        })
    }
}
