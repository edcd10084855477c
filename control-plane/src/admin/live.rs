//! The live views: how every sidecar stands, who calls whom, what was denied.

use super::{
    answers::{authorities, json, newest, no_such_page, problem, share_left},
    events,
    pages::{State, Status, Workload},
    policies,
    server::{Answer, Flow, whole},
    topology,
};
use crate::{publish::status::SessionStatus, rotation::written, traffic::decision, upkeep::Upkeep};
use http::StatusCode;
use std::time::{Duration, SystemTime};

/// When a page does not say how far back.
const SINCE: u64 = 600;
/// As far back as anything is kept.
const FURTHEST: u64 = 3600;

/// What a browser is shown: `asked` is path and query.
pub(crate) fn browsed(upkeep: &Upkeep, asked: &str, now: SystemTime) -> Flow {
    let (path, query) = asked.split_once('?').map_or((asked, None), |(path, query)| (path, Some(query)));
    match path {
        "/events" => events::follow(upkeep),
        _ => whole(shown(upkeep, path, query, now)),
    }
}

/// The pages that a browser is shown, too.
pub(super) fn shown(upkeep: &Upkeep, path: &str, query: Option<&str>, now: SystemTime) -> Answer {
    match path {
        "/status" => status(upkeep, now),
        "/flows" => flows(upkeep, query, now),
        "/denials" => denials(upkeep, query, now),
        "/policies" => policies::standing(upkeep, now),
        "/authorities" => authorities(upkeep, now),
        "/topology" => match since(query) {
            Ok(since) => topology::drawn(upkeep, since, now),
            Err(why) => problem(StatusCode::BAD_REQUEST, "the question is not understood", &why),
        },
        _ => no_such_page(),
    }
}

fn status(upkeep: &Upkeep, now: SystemTime) -> Answer {
    let view = upkeep.view(now);
    let number = upkeep.publisher().index.borrow().as_ref().map_or(0, |index| index.number);
    let connected = newest(&view.sessions);
    let missing = view
        .expected
        .iter()
        .filter(|pod| !connected.contains_key(&(pod.namespace.as_str(), pod.pod.as_str())))
        .map(|pod| absent(&pod.namespace, &pod.pod));
    let mut workloads: Vec<Workload> =
        connected.values().map(|session| workload(session, number, now)).chain(missing).collect();
    workloads.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    let build = env!("CARGO_PKG_VERSION").to_owned();
    json(StatusCode::OK, &Status { now: written(now), build, workloads })
}

fn workload(session: &SessionStatus, documents: u64, now: SystemTime) -> Workload {
    let refusal = session
        .last_nacks
        .iter()
        .rev()
        .find(|nack| nack.version == session.version_sent && session.version_acked != session.version_sent)
        .map(|nack| nack.reason.clone());
    let is_synced = session.documents == documents
        && session.unanswered == 0
        && session.version_acked == session.version_sent
        && session.trust_acked == session.trust_sent;
    let held = session.certificate.as_ref();
    Workload {
        state: match (&refusal, is_synced) {
            (Some(_), _) => State::Refused,
            (None, true) => State::Synced,
            (None, false) => State::Behind,
        },
        identity: Some(session.identity.clone()),
        build: Some(harmless(&session.build)),
        connected_since: Some(written(session.connected_since)),
        policy_wanted: Some(session.version_sent.clone()),
        policy_in_force: Some(session.version_acked.clone()),
        policy_since: session.policy_since.map(written),
        refusal,
        unanswered: Some(session.unanswered),
        certificate_not_after: held.map(|held| written(held.not_after)),
        certificate_remaining: held.map(|held| share_left(held.not_before, held.not_after, now)),
        ..absent(&session.namespace, &session.instance)
    }
}

fn absent(namespace: &str, pod: &str) -> Workload {
    Workload {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        state: State::NotConnected,
        identity: None,
        build: None,
        connected_since: None,
        policy_wanted: None,
        policy_in_force: None,
        policy_since: None,
        refusal: None,
        unanswered: None,
        certificate_not_after: None,
        certificate_remaining: None,
    }
}

/// A sidecar names its own version; people read it on terminals.
fn harmless(build: &str) -> String {
    build.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn flows(upkeep: &Upkeep, query: Option<&str>, now: SystemTime) -> Answer {
    match since(query) {
        Ok(since) => json(StatusCode::OK, &upkeep.publisher().traffic.flows(since, now)),
        Err(why) => problem(StatusCode::BAD_REQUEST, "the question is not understood", &why),
    }
}

fn denials(upkeep: &Upkeep, query: Option<&str>, now: SystemTime) -> Answer {
    match since(query) {
        Ok(since) => json(StatusCode::OK, &upkeep.publisher().traffic.denials(since, now)),
        Err(why) => problem(StatusCode::BAD_REQUEST, "the question is not understood", &why),
    }
}

pub(super) fn decision(upkeep: &Upkeep, id: &str, now: SystemTime) -> Answer {
    let publisher = upkeep.publisher();
    let Some(found) = publisher.traffic.find(id) else {
        return problem(
            StatusCode::NOT_FOUND,
            "no such decision is known",
            "sidecars tell of denials every ten seconds, an hour of them is kept, and the latest 16 ids of each kind",
        );
    };
    let index = publisher.index.borrow().clone();
    let policy = found.account().and_then(|(namespace, account)| {
        // A pod of another namespace than its identity's is none of ours.
        index.as_ref().filter(|_| namespace == found.namespace)?.policy(&namespace, &account, &found.pod)
    });
    let policy = policy.map(|policy| (policy.version, policy.spec));
    json(StatusCode::OK, &decision::explained(id, found, policy, now))
}

/// `since=SECONDS`, or the usual.
fn since(query: Option<&str>) -> Result<Duration, String> {
    let seconds = match query.filter(|query| !query.is_empty()) {
        None => SINCE,
        Some(query) => query
            .strip_prefix("since=")
            .and_then(|seconds| seconds.parse().ok())
            .filter(|seconds| (1..=FURTHEST).contains(seconds))
            .ok_or_else(|| format!("ask ?since=SECONDS, from 1 to {FURTHEST}"))?,
    };
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn how_far_back_is_a_number_of_seconds_within_an_hour() {
        for (query, expected) in [
            (None, Some(600)),
            (Some(""), Some(600)),
            (Some("since=1"), Some(1)),
            (Some("since=3600"), Some(3600)),
            (Some("since=3601"), None),
            (Some("since=0"), None),
            (Some("since=-1"), None),
            (Some("until=5"), None),
        ] {
            assert_eq!(since(query).ok().map(|since| since.as_secs()), expected, "{query:?}");
        }
    }
}
