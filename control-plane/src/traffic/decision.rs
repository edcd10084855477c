//! One denial, explained: what was decided then is the sidecar's word, what would be now is worked out by the same evaluator.

use super::{
    denied::Found,
    history::{denial, written},
    intake, pages,
};
use http::HeaderMap;
use postern_config::{
    Facts, HttpFacts, InboundSpec, Snapshot,
    documents::authorization_policy::{From, Rule},
    explain::explain,
};
use postern_identity::SpiffeId;
use std::time::SystemTime;

/// Keys of `when` that are answered by facts that a sidecar tells.
const TOLD: [&str; 4] = ["source.", "remote.ip", "destination.", "connection.sni"];

impl Found {
    /// Namespace and service account of the workload that denied.
    pub(crate) fn account(&self) -> Option<(String, String)> {
        let id: SpiffeId = self.identity.parse().ok()?;
        id.service_account().map(|(namespace, account)| (namespace.to_owned(), account.to_owned()))
    }
}

/// The page. `policy` is the version and the JSON of what the workload should enforce now.
pub(crate) fn explained(
    id: &str,
    found: Found,
    policy: Option<(String, Vec<u8>)>,
    now: SystemTime,
) -> pages::Decision {
    let mut notes = Vec::new();
    let is_latest = found.denied.decisions.last().is_some_and(|latest| latest == id);
    if found.denied.facts.is_some() && !is_latest {
        notes.push(
            "addresses and host are those of the latest denial of this kind, not of this one".to_owned(),
        );
    }
    let changed = policy.as_ref().is_none_or(|(version, _)| *version != found.denied.policy_version);
    let verdict = match &policy {
        None => {
            notes.push("the mesh has no such pod any more".to_owned());
            None
        }
        // The same policy decides the same; the sidecar knew more of the call than we do.
        Some(_) if !changed => Some((false, told(&found))),
        Some((_, spec)) => judged(spec, &found, &mut notes),
    };
    let (allowed_now, explanation_now) = verdict.unzip();
    pages::Decision {
        now: written(now),
        id: id.to_owned(),
        facts: found.denied.facts.as_ref().map(|facts| pages::Facts {
            source_ip: facts.source_ip.to_string(),
            remote_ip: facts.remote_ip.to_string(),
            destination_ip: facts.destination_ip.to_string(),
            destination_port: facts.destination_port,
            sni: facts.sni.clone(),
            host: facts.host.clone(),
        }),
        policy_version_now: policy.map(|(version, _)| version),
        policy_changed: changed,
        allowed_now,
        explanation_now,
        notes,
        denial: denial(
            format!("{}/{}", found.namespace, found.pod),
            &found.identity,
            &found.kind,
            &found.denied,
            found.denied.count,
        ),
    }
}

fn told(found: &Found) -> String {
    match &found.denied.closest {
        Some(closest) => format!("{}; closest: {closest}", found.kind.reason),
        None => found.kind.reason.clone(),
    }
}

/// Whether a rule is about headers or tokens, or about something that we do not know.
fn asks_for_more(rule: &Rule) -> bool {
    let of_token = |from: &From| {
        !from.source.request_principals.is_empty() || !from.source.not_request_principals.is_empty()
    };
    let is_told = |key: &str| TOLD.iter().any(|told| key.starts_with(told));
    rule.from.iter().any(of_token) || rule.when.iter().any(|condition| !is_told(&condition.key))
}

/// Neither cut nor spelled out on its way here.
fn is_whole(text: &str) -> bool {
    // A cut does not halve a character.
    text.len() + char::MAX_LEN_UTF8 <= intake::TEXT && !text.contains("\\u{")
}

/// What the policy of now says to the same facts, as far as they are known.
fn judged(spec: &[u8], found: &Found, notes: &mut Vec<String>) -> Option<(bool, String)> {
    let Some(known) = &found.denied.facts else {
        notes.push("the sidecar did not tell what policy saw".to_owned());
        return None;
    };
    let texts =
        [found.kind.method.as_deref(), found.kind.path.as_deref(), known.sni.as_deref(), Some(&*known.host)];
    if !texts.into_iter().flatten().all(is_whole) {
        notes.push("the call is not known whole, so that nothing can be said of the policy now".to_owned());
        return None;
    }
    let spec: InboundSpec = serde_json::from_slice(spec).ok()?;
    if spec.authorization_policies.iter().flat_map(|policy| &policy.rules).any(asks_for_more) {
        notes.push(
            "what the policy says now cannot be told here: it asks for headers or tokens, which stay with the sidecar (GET /decisions/<id> \
             on its admin port)"
                .to_owned(),
        );
        return None;
    }
    let Ok(snapshot) = Snapshot::compile(spec) else {
        notes.push(
            "the policy of now cannot be compiled, so that the sidecar keeps its last good one".to_owned(),
        );
        return None;
    };
    let peer = found.kind.edge.peer.as_deref().and_then(|peer| peer.parse::<SpiffeId>().ok());
    let headers = HeaderMap::new();
    let http = found.kind.method.as_deref().map(|method| HttpFacts {
        method,
        path: found.kind.path.as_deref().unwrap_or_default(),
        host: &known.host,
        headers: &headers,
    });
    let facts = Facts {
        peer: peer.as_ref(),
        source_ip: known.source_ip,
        remote_ip: known.remote_ip,
        destination_ip: known.destination_ip,
        destination_port: known.destination_port,
        sni: known.sni.as_deref(),
        http,
        claims: None,
    };
    let explanation = explain(&snapshot, &facts);
    Some((explanation.allowed, explanation.to_string()))
}
