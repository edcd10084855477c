//! The pages: each a pure look at what is in force, as JSON or text.

use super::{
    Admin, merged,
    server::{text, typed},
};
use crate::{
    state::{Destination, Endpoint},
    telemetry::{AppScrape, Denial, exposition::Format},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use std::time::SystemTime;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

type Answer = Response<Full<Bytes>>;

const FRONT: &str = "\
GET  /ready               200 when certificate, policy and listeners are in force, else 503 and what is missing
GET  /live                200 while the process answers
GET  /config              the inbound policy as enforced
GET  /certificates        identity, certificate, bundles, next renewal
GET  /connections         the connections that are open now
GET  /destinations        where outbound addresses lead
GET  /ejections           endpoints that are left out for a time since they failed
GET  /decisions           the latest denials
GET  /decisions/<id>      one denial, explained against the policy in force now
GET  /log-level           how much the sidecar says of itself
POST /log-level           another filter as the body, e.g. debug, or info,postern_proxy::control=debug; until the process ends
POST /certificates/renew  a new certificate now
POST /drain               on the way down: not ready, connections are asked to end, then no new ones
";

pub(super) fn front(admin: &Admin) -> Answer {
    let missing = admin.ready.missing();
    let state =
        if missing.is_empty() { "ready".to_owned() } else { format!("waiting for {}", missing.join(", ")) };
    let build = env!("CARGO_PKG_VERSION");
    text(StatusCode::OK, format!("postern proxy {build}, {}: {state}\n\n{FRONT}", admin.instance))
}

pub(super) fn ready(admin: &Admin) -> Answer {
    let mut missing = admin.ready.missing();
    if admin.draining.is_draining() {
        missing.push("draining");
    }
    if missing.is_empty() {
        return text(StatusCode::OK, "ready\n");
    }
    text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready, missing: {}\n", missing.join(", ")))
}

pub(super) fn metrics(admin: &Admin, format: Format) -> Answer {
    typed(StatusCode::OK, format.content_type(), admin.telemetry.metrics().text(SystemTime::now(), format))
}

/// Ours, and the app's own behind them; ours are whole whatever the app does.
pub(super) async fn merged_metrics(admin: &Admin) -> Answer {
    let (metrics, now) = (admin.telemetry.metrics(), SystemTime::now());
    let app = match &admin.app_metrics {
        None => None,
        Some(app) => Some(merged::fetch(app, admin.mark, &metrics.families(now)).await),
    };
    if let Some(scraped) = &app {
        metrics.app_scrapes().count(scraped.as_ref().map_or_else(|why| *why, |_| AppScrape::Taken));
    }
    let mut page = metrics.text(now, Format::Plain);
    page.push_str(app.and_then(Result::ok).as_deref().unwrap_or_default());
    typed(StatusCode::OK, Format::Plain.content_type(), page)
}

pub(super) fn config(admin: &Admin) -> Answer {
    let Some(inbound) = admin.store.inbound() else {
        return problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "no policy received yet; everything inbound is refused",
        );
    };
    match serde_json::to_value(inbound.snapshot.spec()) {
        Ok(spec) => page(&json!({ "version": &*inbound.version, "inbound": spec })),
        Err(cause) => problem(StatusCode::INTERNAL_SERVER_ERROR, &cause.to_string()),
    }
}

pub(super) fn certificates(admin: &Admin) -> Answer {
    let status = admin.identity.status();
    let credentials = admin.store.credentials();
    let current = credentials.as_deref().map(|credentials| {
        let bundles: serde_json::Map<String, Value> = credentials
            .trust
            .iter()
            .map(|bundle| (bundle.trust_domain.to_string(), json!(bundle.to_pem())))
            .collect();
        json!({
            "id": credentials.id.as_str(),
            "serial": credentials.serial,
            "not_before": timestamp(credentials.not_before),
            "not_after": timestamp(credentials.not_after),
            "chain_length": credentials.key.cert.len(),
            "authorities": credentials.authorities.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "bundles": bundles,
        })
    });
    let unusable = admin.store.own().err().map(|error| error.to_string());
    page(&json!({
        "current": current,
        "unusable": unusable,
        "wants_renewal": admin.store.wants_renewal(),
        "obtained": status.obtained,
        "renew_at": status.renew_at.map(timestamp),
        "last_failure": status.last_failure,
        "clock_skew_seconds": status.clock_skew,
    }))
}

pub(super) async fn renew(admin: &Admin) -> Answer {
    let before = admin.store.credentials().map(|credentials| credentials.serial.clone());
    match admin.identity.renew().await {
        Ok(serial) => page(&json!({ "serial": serial, "replaced": before })),
        Err(reason) => problem(StatusCode::BAD_GATEWAY, &reason),
    }
}

pub(super) fn log_level() -> Answer {
    match crate::log::level() {
        Some(level) => page(&json!({ "log_level": level })),
        None => problem(StatusCode::CONFLICT, "the log of this process is not the sidecar's own"),
    }
}

pub(super) fn set_log_level(filter: &[u8]) -> Answer {
    match crate::log::set_level(&String::from_utf8_lossy(filter)) {
        Ok(level) => page(&json!({ "log_level": level })),
        Err(why) => problem(StatusCode::BAD_REQUEST, why),
    }
}

pub(super) fn drain(admin: &Admin) -> Answer {
    admin.drain.start(admin.drain_deadline);
    typed(
        StatusCode::ACCEPTED,
        "application/json",
        json!({ "draining": true, "deadline_seconds": admin.drain_deadline.as_secs() }).to_string(),
    )
}

pub(super) fn destinations(admin: &Admin) -> Answer {
    let all: serde_json::Map<String, Value> = admin
        .destinations
        .list()
        .into_iter()
        .map(|(address, destination)| (address.to_string(), shown(destination.as_deref())))
        .collect();
    page(&Value::Object(all))
}

pub(super) fn connections(admin: &Admin) -> Answer {
    let (now, is_draining) = (SystemTime::now(), admin.draining.is_draining());
    let (count, newest) = admin.telemetry.connections().newest();
    let shown = |seen: &std::sync::Arc<crate::telemetry::connections::Seen>| {
        json!({
            "direction": seen.direction.as_str(),
            "since": timestamp(seen.since),
            "age_seconds": now.duration_since(seen.since).unwrap_or_default().as_secs(),
            "downstream": seen.downstream,
            "destination": seen.destination,
            "service": seen.service(),
            "peer": seen.peer(),
            "protocol": seen.protocol(),
            "requests": seen.requests(),
            "state": match (seen.protocol(), is_draining) {
                (None, _) => "opening",
                (Some(_), false) => "open",
                (Some(_), true) => "draining",
            },
        })
    };
    page(&json!({
        "count": count,
        "shown": newest.len(),
        "connections": newest.iter().map(shown).collect::<Vec<_>>(),
    }))
}

pub(super) fn ejections(admin: &Admin) -> Answer {
    let all = admin.telemetry.ejections().list(SystemTime::now());
    let shown = |ejection: &crate::telemetry::Ejection| {
        json!({
            "service": &*ejection.service,
            "endpoint": ejection.address,
            "reason": ejection.reason,
            "until": timestamp(ejection.until),
        })
    };
    page(&json!({ "ejections": all.iter().map(shown).collect::<Vec<_>>() }))
}

pub(super) fn decisions(admin: &Admin) -> Answer {
    let all: Vec<Value> = admin.telemetry.denials().newest(usize::MAX).iter().map(summary).collect();
    page(&json!({ "denials": all }))
}

pub(super) fn decision(admin: &Admin, id: &str) -> Answer {
    let Some(denial) = admin.telemetry.denials().find(id) else {
        return problem(
            StatusCode::NOT_FOUND,
            "no denial of this id is remembered here; only the latest are kept, by the sidecar that denied",
        );
    };
    let inbound = admin.store.inbound();
    let explanation =
        inbound.as_ref().map(|inbound| postern_config::explain::explain(&inbound.snapshot, &denial.facts()));
    let current = inbound.as_ref().map(|inbound| &*inbound.version);
    let note = (current != Some(&*denial.policy_version)).then_some(
        "the policy has changed since: `explanation` is what the policy in force now says about the same facts",
    );
    let mut all = summary(&denial);
    if let Value::Object(all) = &mut all {
        all.insert("policy_version_now".into(), json!(current));
        all.insert("note".into(), json!(note));
        all.insert("told".into(), json!(explanation.as_ref().map(ToString::to_string)));
        all.insert("explanation".into(), json!(explanation));
    }
    page(&all)
}

fn summary(denial: &Denial) -> Value {
    let facts = denial.facts();
    json!({
        "decision": denial.id,
        "at": timestamp(denial.at),
        "policy_version": &*denial.policy_version,
        "reason": denial.reason,
        "policy": denial.rule.as_ref().map(|rule| rule.policy_name()),
        "rule": denial.rule.as_ref().map(|rule| rule.rule),
        "facts": {
            "peer": facts.peer.map(|peer| peer.as_str()),
            "source_ip": facts.source_ip,
            "remote_ip": facts.remote_ip,
            "destination_ip": facts.destination_ip,
            "destination_port": facts.destination_port,
            "sni": facts.sni,
            "method": facts.http.map(|http| http.method),
            "path": facts.http.map(|http| http.path),
            "host": facts.http.map(|http| http.host),
        },
    })
}

fn shown(destination: Option<&Destination>) -> Value {
    match destination {
        None => json!("asked for"),
        Some(Destination::Outside { blocked, by_name, .. }) => {
            json!({ "outside": { "blocked": blocked, "by_name": by_name } })
        }
        Some(Destination::Workload(endpoint)) => json!({ "workload": shown_endpoint(endpoint) }),
        Some(Destination::Service(service)) => json!({ "service": {
            "namespace": service.namespace,
            "name": service.name,
            "host": service.host,
            "port": service.port,
            "protocol": service.protocol,
            "endpoints": service.endpoints.iter().map(shown_endpoint).collect::<Vec<_>>(),
            "looked_up": service.lookups.iter().map(|lookup| &lookup.name).collect::<Vec<_>>(),
            "original_within": service.original_within.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "traffic": *service.traffic,
        } }),
    }
}

fn shown_endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "workload": endpoint.workload,
        "dial": endpoint.dial,
        "port": endpoint.port,
        "identity": endpoint.identity.as_ref().map(|id| id.as_str()),
        "protocol": endpoint.protocol,
    })
}

fn page(value: &Value) -> Answer {
    // Printing a value of texts and numbers has no way to fail.
    let body = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    typed(StatusCode::OK, "application/json", body)
}

fn problem(status: StatusCode, detail: &str) -> Answer {
    let title = status.canonical_reason();
    let body = json!({ "title": title, "status": status.as_u16(), "detail": detail }).to_string() + "\n";
    typed(status, "application/problem+json", body)
}

fn timestamp(at: SystemTime) -> String {
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}
