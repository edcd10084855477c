//! `postern check --expires-within 30d`: what ends soon and nobody renews.
//!
//! Roots end when they end. Intermediates, token keys and workload certificates live for hours and renew themselves at about
//! half of their life; one of them counts only when it is late, that is below a fifth of its life.

use super::{
    shown::{LATE, instant, left, short},
    socket::{ControlPlane, Where},
};
use crate::{
    failure::{Failure, NEGATIVE, OK},
    policy::formats::{self, Output, Paint},
};
use postern_control_plane::admin::pages::{Authorities, Authority, Certificate, Certificates};
use serde::Serialize;
use std::{fmt::Write as _, time::Duration};

/// What was found, as programs read it.
#[derive(Debug, Serialize)]
struct Findings {
    ok: bool,
    within_seconds: u64,
    now: String,
    ending: Vec<Ending>,
}

/// Something that ends in that time.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Ending {
    /// `root`, `intermediate`, `jwt-key` or `certificate`.
    kind: &'static str,
    /// Key id, or the pod.
    who: String,
    not_after: String,
    /// What to do.
    remedy: String,
}

/// Asks the control plane: 0 when nothing ends within `within` unrenewed, 2 when something does, 1 when it cannot be asked.
pub fn run(within: Duration, output: Output, place: &Where) -> u8 {
    match look(within, place) {
        Ok(findings) => {
            formats::print(&formats::answer(output, &findings, |paint| table(&findings, paint)));
            if findings.ok { OK } else { NEGATIVE }
        }
        Err(failure) => failure.report(),
    }
}

fn look(within: Duration, place: &Where) -> Result<Findings, Failure> {
    let control_plane = ControlPlane::find(place)?;
    let authorities: Authorities = control_plane.page("/authorities")?;
    let certificates: Certificates = control_plane.page("/certificates")?;
    let ending = ending(&authorities, &certificates, within);
    Ok(Findings { ok: ending.is_empty(), within_seconds: within.as_secs(), now: authorities.now, ending })
}

fn ending(authorities: &Authorities, certificates: &Certificates, within: Duration) -> Vec<Ending> {
    let soon = |end: &str| match (instant(&authorities.now), instant(end)) {
        (Some(now), Some(end)) => end <= now + within,
        // What cannot be read is not known to be good.
        _ => true,
    };
    let of_authorities = authorities.authorities.iter().filter(|one| !one.revoked && soon(&one.not_after));
    let of_sidecars =
        certificates.certificates.iter().filter(|one| one.not_after.as_deref().is_some_and(soon));
    of_authorities.filter_map(authority).chain(of_sidecars.filter_map(certificate)).collect()
}

fn authority(one: &Authority) -> Option<Ending> {
    let is_old = one.slot == "old";
    let (kind, remedy) = match one.kind.as_str() {
        "root" if is_old && one.holders == Some(0) => return None,
        "root" if is_old => {
            ("root", "Its holders renew by themselves; `postern certs` shows who does not.".to_owned())
        }
        "root" => {
            ("root", "Replace it: `postern ca rotate`, or publish the next one where it was made.".to_owned())
        }
        _ if is_old || one.remaining > LATE => return None,
        "intermediate" => {
            ("intermediate", "It should have been renewed: look at the control plane's log.".to_owned())
        }
        _ => ("jwt-key", "Replace it: `postern ca rotate --kind jwt`.".to_owned()),
    };
    Some(Ending { kind, who: one.id.clone(), not_after: one.not_after.clone(), remedy })
}

fn certificate(one: &Certificate) -> Option<Ending> {
    if one.remaining.is_some_and(|remaining| remaining > LATE) {
        return None;
    }
    Some(Ending {
        kind: "certificate",
        who: format!("{}/{}", one.namespace, one.pod),
        not_after: one.not_after.clone()?,
        remedy:
            "Its sidecar should have renewed it: its log and /certificates on its admin port say why not."
                .into(),
    })
}

fn table(findings: &Findings, paint: Paint) -> String {
    let within = humantime::format_duration(Duration::from_secs(findings.within_seconds));
    if findings.ok {
        return format!("nothing ends unrenewed within {within}\n");
    }
    let mut out = String::new();
    for one in &findings.ending {
        let who = if one.kind == "certificate" { &one.who } else { short(&one.who) };
        let left = paint.bad(&left(&findings.now, &one.not_after));
        let _ = writeln!(out, "{} {who} ends at {} ({left})\n  {}", one.kind, one.not_after, one.remedy);
    }
    out
}

#[cfg(test)]
#[path = "expiry_tests.rs"]
mod tests;
