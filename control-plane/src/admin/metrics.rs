//! Numbers in the text format of Prometheus. Ends are absolute, so that an alarm needs no clock of ours.

use super::answers::{kind_name, newest, slot_name};
use crate::{authority::AuthorityStatus, rotation::View, upkeep::Upkeep};
use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

pub(super) fn written(upkeep: &Upkeep, now: SystemTime) -> String {
    let counters = &upkeep.publisher().counters;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut out = of(&upkeep.view(now));
    for (name, help, issued, refused) in [
        (
            "postern_certificate_requests_total",
            "Requests for workload certificates, by outcome.",
            &counters.certificates_issued,
            &counters.certificates_refused,
        ),
        (
            "postern_jwt_svid_requests_total",
            "Requests for JWT-SVIDs, by outcome.",
            &counters.tokens_issued,
            &counters.tokens_refused,
        ),
    ] {
        head(&mut out, name, "counter", help);
        let _ = writeln!(out, "{name}{{outcome=\"issued\"}} {}", count(issued));
        let _ = writeln!(out, "{name}{{outcome=\"refused\"}} {}", count(refused));
    }
    out
}

fn of(view: &View) -> String {
    let mut out = String::new();
    type Instant = fn(&AuthorityStatus) -> SystemTime;
    let instants: [(&str, &str, Instant); 2] = [
        ("postern_authority_expiry_timestamp_seconds", "End", |one| one.not_after),
        ("postern_authority_not_before_timestamp_seconds", "Begin", |one| one.not_before),
    ];
    for (name, which, instant) in instants {
        let help = format!("{which} of validity of each authority, in seconds since 1970.");
        head(&mut out, name, "gauge", &help);
        for one in view.authorities.iter().filter(|one| !one.revoked) {
            let at = instant(one).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let (kind, slot) = (kind_name(one.kind), slot_name(one.slot));
            let _ = writeln!(out, "{name}{{kind=\"{kind}\",id=\"{}\",slot=\"{slot}\"}} {at}", one.id);
        }
    }
    let earliest = view
        .sessions
        .iter()
        .filter_map(|session| session.certificate.as_ref())
        .map(|held| held.not_after)
        .min();
    let name = "postern_workload_certificate_expiry_timestamp_seconds";
    head(&mut out, name, "gauge", "The earliest end of the certificates that connected sidecars hold.");
    if let Some(earliest) = earliest {
        let _ = writeln!(out, "{name} {}", earliest.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
    }
    for (name, help, value) in [
        ("postern_sidecars_connected", "Sidecars that are connected.", newest(&view.sessions).len()),
        (
            "postern_sidecars_missing",
            "Sidecars that the documents name and that are not.",
            view.missing().len(),
        ),
        (
            "postern_sidecars_lagging",
            "Connected sidecars that have not taken the trust in force.",
            view.behind(),
        ),
    ] {
        head(&mut out, name, "gauge", help);
        let _ = writeln!(out, "{name} {value}");
    }
    out
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}
