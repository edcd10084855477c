//! `postern why --id DECISION`: what was decided then and why, and what the policy of now says.

use super::ends;
use crate::{
    authority::{Where, socket::ControlPlane},
    failure::{Failure, OK},
    policy::formats::{self, Output, Paint},
};
use postern_control_plane::admin::pages::Decision;
use std::fmt::Write as _;

/// Asks the control plane: 0 with the answer, 1 when it cannot be asked or does not know the id.
pub fn run(id: &str, output: Output, place: &Where) -> u8 {
    match ask(id, place) {
        Ok(page) => {
            formats::print(&formats::answer(output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn ask(id: &str, place: &Where) -> Result<Decision, Failure> {
    if id.is_empty() || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        let cause = format!("`{}` is no id of a decision.", id.escape_debug());
        return Err(Failure::usage(
            cause,
            "It has 16 hex digits, as `postern.decision.id` in the access log.",
        ));
    }
    ControlPlane::find(place)?.page(&format!("/decisions/{id}")).map_err(|failure| {
        match failure.cause.starts_with("no such decision") {
            true => Failure {
                remedy: "Look at `postern denials`, and at GET /decisions/<id> on the admin port of the sidecar that denied.".into(),
                ..failure
            },
            false => failure,
        }
    })
}

fn table(page: &Decision, paint: Paint) -> String {
    let denial = &page.denial;
    let (from, to) =
        ends(&denial.direction, &denial.workload, denial.peer.as_deref(), denial.service.as_deref());
    let request = match (&denial.method, &denial.path) {
        (Some(method), path) => format!("{method} {}", path.as_deref().unwrap_or_default()),
        (None, _) => "a connection".to_owned(),
    };
    let mut out = format!("{}: {request} from {from} to {to}\n\n", paint.verdict(false));
    let mut rows = vec![("because", denial.reason.clone())];
    if let Some(policy) = &denial.policy {
        let rule = denial.rule.map(|rule| format!(" rule {rule}")).unwrap_or_default();
        rows.push(("by", format!("{policy}{rule}")));
    }
    rows.extend(denial.closest.clone().map(|closest| ("closest", closest)));
    if let Some(facts) = &page.facts {
        rows.push(("caller at", facts.source_ip.clone()));
        rows.push(("port", facts.destination_port.to_string()));
        if !facts.host.is_empty() {
            rows.push(("host", facts.host.clone()));
        }
    }
    rows.push(("times", format!("{}, last {}", denial.count, denial.last)));
    let now = match (page.policy_changed, page.allowed_now) {
        (false, _) => "the same policy is in force".to_owned(),
        (true, Some(allowed)) => {
            format!("the policy has changed since: the same call would be {}", paint.verdict(allowed))
        }
        (true, None) => "the policy has changed since".to_owned(),
    };
    rows.push(("now", now));
    rows.extend(page.explanation_now.clone().filter(|_| page.policy_changed).map(|why| ("", why)));
    rows.extend(page.notes.iter().map(|note| ("note", note.clone())));
    for (name, value) in rows {
        let _ = writeln!(out, "  {name:9}  {value}");
    }
    out
}
