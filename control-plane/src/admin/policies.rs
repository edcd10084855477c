//! Policies as they stand: what each sidecar should enforce, who has taken it, and what each policy has done.

use super::{
    answers::{json, newest},
    pages::{Policies, PolicyStanding},
    server::Answer,
};
use crate::{publish::status::SessionStatus, rotation::written, upkeep::Upkeep};
use http::StatusCode;
use std::{collections::BTreeSet, time::SystemTime};

/// Sidecars that are named as waited for.
const NAMED: usize = 8;

/// `GET /policies`.
pub(super) fn standing(upkeep: &Upkeep, now: SystemTime) -> Answer {
    let publisher = upkeep.publisher();
    let Some(index) = publisher.index.borrow().clone() else {
        return json(StatusCode::OK, &Policies { now: written(now), policies: Vec::new() });
    };
    let sessions = publisher.sessions.all();
    let done: BTreeSet<(&str, &str)> = newest(&sessions)
        .into_iter()
        .filter(|(_, one)| has_taken(one, index.number))
        .map(|(pod, _)| pod)
        .collect();
    let used = publisher.traffic.used();
    let policies = index.selected().policies.iter().map(|policy| {
        let waiting: Vec<_> = policy
            .sidecars
            .iter()
            .filter(|(namespace, pod)| !done.contains(&(namespace.as_str(), pod.as_str())))
            .collect();
        let has_rules = policy.kind == "AuthorizationPolicy";
        let used = used.get(&format!("{}/{}", policy.namespace, policy.name)).filter(|_| has_rules);
        PolicyStanding {
            kind: policy.kind.to_owned(),
            namespace: policy.namespace.clone(),
            name: policy.name.clone(),
            says: policy.says.to_owned(),
            dry_run: policy.is_dry_run,
            selected: policy.sidecars.len(),
            enforced_by: policy.sidecars.len() - waiting.len(),
            waiting_for: waiting
                .iter()
                .take(NAMED)
                .map(|(namespace, pod)| format!("{namespace}/{pod}"))
                .collect(),
            matched: has_rules.then(|| used.map_or(0, |used| used.matched)),
            would_deny: used.map_or(0, |used| used.would_deny),
            would_allow: used.map_or(0, |used| used.would_allow),
            last: used.map(|used| written(used.last)),
        }
    });
    json(StatusCode::OK, &Policies { now: written(now), policies: policies.collect() })
}

/// Whether a sidecar has acknowledged the policy of this state of the documents.
pub(super) fn has_taken(session: &SessionStatus, documents: u64) -> bool {
    session.documents == documents
        && session.version_acked == session.version_sent
        && !session.version_acked.is_empty()
}

/// `GET /config`: what each sidecar should enforce, as it is sent; whether it does, `/status` says.
pub(super) fn wanted(upkeep: &Upkeep) -> Answer {
    let index = upkeep.publisher().index.borrow().clone();
    let all = index.iter().flat_map(|index| {
        index.sidecars().filter_map(|(namespace, account, pod)| {
            let policy = index.policy(namespace, account, pod)?;
            let inbound: serde_json::Value = serde_json::from_slice(&policy.spec).ok()?;
            Some(serde_json::json!({
                "namespace": namespace, "pod": pod, "version": policy.version, "inbound": inbound,
            }))
        })
    });
    json(StatusCode::OK, &serde_json::json!({ "policies": all.collect::<Vec<_>>() }))
}
