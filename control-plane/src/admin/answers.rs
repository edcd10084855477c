//! The answers: a look at what is known, or a step that is made or refused with the names of those who lag.

use super::{
    pages::{
        Authorities, Authority, Certificate, Certificates, Done, Kind, Pending, Problem, Revoke, Rotate, Step,
    },
    server::{Answer, typed},
};
use crate::{
    authority::{AuthorityKind, AuthorityStatus, BACKDATE, Slot, StepError},
    publish::status::SessionStatus,
    rotation::{self, View, written},
    upkeep::{Refused, Single, Upkeep},
};
use http::StatusCode;
use postern_identity::KeyId;
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

pub(super) const FRONT: &str = "\
GET  /authorities               roots, intermediates and token keys, and what a rotation waits for
GET  /certificates              what every connected sidecar holds
GET  /status                    every sidecar: since when connected, which policy, which certificate
GET  /policies                  every policy: how many sidecars enforce it, what it has matched, what a dry run would deny
GET  /config                    the inbound policy that each sidecar should have
GET  /flows?since=SECONDS       who calls whom: calls, errors, denials, mutual TLS, durations; and rules by use
GET  /denials?since=SECONDS     what was denied, to whom, and the closest rule
GET  /topology?since=SECONDS    who calls whom by namespace and service account, with what each sidecar adds to a call
GET  /events                    server-sent events: what each sidecar reports, and what becomes of authorities, as it comes
GET  /decisions/<id>            one denial: what was decided then and why, and what would be now
POST /tap                       {\"from\": …, \"to\": …, \"status\": \"4xx\", \"seconds\": 60}: calls as they pass, a line each
GET  /metrics                   numbers for Prometheus
POST /authorities/rotate        {\"kind\": \"root|intermediate|jwt\", \"step\": \"prepare|activate|retire\", \"force\": false}
POST /authorities/<id>/taint    whoever holds a certificate below it renews now
POST /authorities/<id>/revoke   {\"force\": false}
";

pub(super) fn authorities(upkeep: &Upkeep, now: SystemTime) -> Answer {
    let view = upkeep.view(now);
    let trust_domain = upkeep.publisher().trust_domain.to_string();
    json(StatusCode::OK, &authorities_page(&view, trust_domain, &upkeep.asked()))
}

fn authorities_page(view: &View, trust_domain: String, asked: &BTreeSet<AuthorityKind>) -> Authorities {
    let mut pending = Vec::new();
    for kind in [AuthorityKind::Root, AuthorityKind::JwtKey] {
        if let Some(next) = view.next_of(kind) {
            let step = rotation::Step::Activate(kind);
            pending.push(waiting("activate", next, view.is_wanted(kind, asked), view.lagging(step)));
        }
    }
    for old in view.old_roots() {
        let step = rotation::Step::Retire(old.id);
        pending.push(waiting("retire", old, view.is_wanted(old.kind, asked), view.lagging(step)));
    }
    Authorities {
        trust_domain,
        now: written(view.now),
        trust_version: view.trust_version.clone(),
        connected: newest(&view.sessions).len(),
        behind: view.behind(),
        authorities: view.authorities.iter().map(|one| authority(one, view)).collect(),
        pending,
    }
}

fn waiting(
    step: &str,
    authority: &AuthorityStatus,
    automatic: bool,
    lagging: Vec<rotation::Lagging>,
) -> Pending {
    Pending {
        step: step.to_owned(),
        kind: kind_name(authority.kind).to_owned(),
        id: authority.id.to_string(),
        automatic,
        lagging,
    }
}

fn authority(one: &AuthorityStatus, view: &View) -> Authority {
    Authority {
        kind: kind_name(one.kind).to_owned(),
        id: one.id.to_string(),
        subject: one.subject.clone(),
        slot: slot_name(one.slot).to_owned(),
        root: one.root.map(|root| root.to_string()),
        tainted: one.tainted,
        revoked: one.revoked,
        not_before: written(one.not_before),
        not_after: written(one.not_after),
        since: written(one.since),
        remaining: one.remaining,
        holders: (one.kind != AuthorityKind::JwtKey).then(|| view.holders(one.id)),
    }
}

pub(super) fn kind_name(kind: AuthorityKind) -> &'static str {
    match kind {
        AuthorityKind::Root => "root",
        AuthorityKind::Intermediate => "intermediate",
        AuthorityKind::JwtKey => "jwt-key",
    }
}

pub(super) fn slot_name(slot: Slot) -> &'static str {
    match slot {
        Slot::Prepared => "prepared",
        Slot::Active => "active",
        Slot::Old => "old",
    }
}

/// While a sidecar changes from one stream to the next it has two: the newer one counts, once it has reported.
pub(super) fn newest(sessions: &[SessionStatus]) -> BTreeMap<(&str, &str), &SessionStatus> {
    let mut all: BTreeMap<(&str, &str), &SessionStatus> = BTreeMap::new();
    for session in sessions {
        let pod = (session.namespace.as_str(), session.instance.as_str());
        if session.certificate.is_some() || !all.contains_key(&pod) {
            all.insert(pod, session);
        }
    }
    all
}

pub(super) fn certificates(upkeep: &Upkeep, now: SystemTime) -> Answer {
    let view = upkeep.view(now);
    let certificates =
        newest(&view.sessions).into_values().map(|session| certificate(session, &view)).collect();
    let page = Certificates { now: written(now), certificates, missing: view.missing() };
    json(StatusCode::OK, &page)
}

fn certificate(session: &SessionStatus, view: &View) -> Certificate {
    let held = session.certificate.as_ref();
    let root =
        |key: &KeyId| view.authorities.iter().any(|one| one.id == *key && one.kind == AuthorityKind::Root);
    Certificate {
        namespace: session.namespace.clone(),
        pod: session.instance.clone(),
        identity: session.identity.clone(),
        serial: held.map(|held| held.serial.clone()),
        not_before: held.map(|held| written(held.not_before)),
        not_after: held.map(|held| written(held.not_after)),
        issuer: held.and_then(|held| held.authorities.first()).map(ToString::to_string),
        root: held.and_then(|held| held.authorities.iter().find(|key| root(key))).map(ToString::to_string),
        remaining: held.map(|held| share_left(held.not_before, held.not_after, view.now)),
        trust_acked: session.trust_acked.clone(),
        connected_since: written(session.connected_since),
    }
}

/// The minutes by which a certificate was back-dated are no life.
pub(super) fn share_left(begin: SystemTime, end: SystemTime, now: SystemTime) -> f64 {
    let life = end.duration_since(begin).unwrap_or_default();
    let life = life.checked_sub(BACKDATE).unwrap_or(life).max(Duration::from_secs(1));
    let left = end.duration_since(now).unwrap_or_default();
    (left.as_secs_f64() / life.as_secs_f64()).min(1.0)
}

/// A POST.
pub(super) fn change(upkeep: &Upkeep, path: &str, body: &[u8], now: SystemTime) -> Answer {
    let outcome =
        match path.strip_prefix("/authorities/").map(|rest| rest.split_once('/').unwrap_or((rest, ""))) {
            Some(("rotate", "")) => match read::<Rotate>(body) {
                Ok(wanted) => rotate(upkeep, &wanted, now),
                Err(why) => return not_understood(&why),
            },
            Some((id, step @ ("taint" | "revoke"))) => {
                let id = match id.parse::<KeyId>() {
                    Ok(id) => id,
                    Err(why) => return problem(StatusCode::BAD_REQUEST, "this is no authority", &why),
                };
                match (step, read::<Revoke>(body)) {
                    (_, Err(why)) => return not_understood(&why),
                    ("taint", Ok(_)) => upkeep.taint(id, now),
                    (_, Ok(wanted)) => upkeep.revoke(id, wanted.force, now),
                }
            }
            _ => return no_such_page(),
        };
    match outcome {
        Ok(done) => {
            tracing::info!("by an operator: {done}");
            json(StatusCode::OK, &Done { done })
        }
        Err(refused) => refusal(refused),
    }
}

fn rotate(upkeep: &Upkeep, wanted: &Rotate, now: SystemTime) -> Result<String, Refused> {
    let kind = match wanted.kind {
        Kind::Root => AuthorityKind::Root,
        Kind::Intermediate => AuthorityKind::Intermediate,
        Kind::Jwt => AuthorityKind::JwtKey,
    };
    let single = match wanted.step {
        // Nothing is forced in a whole rotation: it goes on when nobody lags, and not before.
        None => return upkeep.rotate(kind, now),
        Some(Step::Prepare) => Single::Prepare,
        Some(Step::Activate) => Single::Activate,
        Some(Step::Retire) => Single::Retire,
    };
    upkeep.step(kind, single, wanted.force, now)
}

fn refusal(refused: Refused) -> Answer {
    match refused {
        Refused::Lagging(lagging) => {
            let count = lagging.len();
            let detail = format!(
                "{} would be cut off: wait, or repair them, or say force to do it all the same",
                if count == 1 { "one".to_owned() } else { count.to_string() }
            );
            let title = "not safe yet".to_owned();
            let status = StatusCode::CONFLICT;
            json(status, &Problem { status: status.as_u16(), title, detail, lagging })
        }
        Refused::Step(cause) => {
            let status = match cause {
                StepError::Unknown(_) => StatusCode::NOT_FOUND,
                StepError::Store(_) => StatusCode::INTERNAL_SERVER_ERROR,
                _ => StatusCode::CONFLICT,
            };
            problem(status, "the authority cannot do this", &cause.to_string())
        }
    }
}

/// An empty body says nothing, which is an empty object.
fn read<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(if body.is_empty() { b"{}" } else { body })
}

fn not_understood(why: &serde_json::Error) -> Answer {
    problem(StatusCode::BAD_REQUEST, "the body is not understood", &why.to_string())
}

pub(super) fn no_such_page() -> Answer {
    problem(StatusCode::NOT_FOUND, "no such page", "GET / lists what there is")
}

pub(super) fn problem(status: StatusCode, title: &str, detail: &str) -> Answer {
    let (title, detail) = (title.to_owned(), detail.to_owned());
    json(status, &Problem { status: status.as_u16(), title, detail, lagging: Vec::new() })
}

pub(super) fn json(status: StatusCode, page: &impl Serialize) -> Answer {
    let kind = if status.is_success() { "application/json" } else { "application/problem+json" };
    match serde_json::to_vec(page) {
        Ok(body) => typed(status, kind, body),
        Err(cause) => {
            typed(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", cause.to_string())
        }
    }
}
