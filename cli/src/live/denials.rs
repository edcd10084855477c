//! `postern denials`: what was denied lately, how often, and what would have allowed it.

use super::{ends, lost, since};
use crate::{
    authority::{Where, socket::ControlPlane},
    failure::OK,
    policy::formats::{self, Output, Paint},
};
use clap::Args;
use postern_control_plane::admin::pages::{Denial, Denials};
use std::time::Duration;

/// Flags of `postern denials`.
#[derive(Args, Debug, Clone)]
pub struct DenialsArgs {
    /// How far back, at most an hour
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = since())]
    since: Duration,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// Runs the command: 0 with the list, 1 when the control plane cannot be asked.
pub fn run(args: &DenialsArgs) -> u8 {
    let path = format!("/denials?since={}", args.since.as_secs());
    match ControlPlane::find(&args.place).and_then(|control_plane| control_plane.page(&path)) {
        Ok(page) => {
            formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn table(page: &Denials, paint: Paint) -> String {
    if page.denials.is_empty() {
        return format!("nothing was denied in the last {} s\n{}", page.since_seconds, lost(&page.lost));
    }
    let head = ["TIME", "FROM", "TO", "REQUEST", "CODE", "COUNT", "HINT"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(page.denials.iter().map(|one| row(one, paint)));
    formats::columns(&rows) + &lost(&page.lost)
}

fn row(one: &Denial, paint: Paint) -> Vec<String> {
    let (from, to) = ends(&one.direction, &one.workload, one.peer.as_deref(), one.service.as_deref());
    let request = match (&one.method, &one.path) {
        (Some(method), path) => format!("{method} {}", path.as_deref().unwrap_or_default()),
        (None, _) => "a connection".to_owned(),
    };
    let hint = match (&one.closest, &one.policy, one.rule) {
        (Some(closest), ..) => format!("closest: {closest}"),
        (None, Some(policy), Some(rule)) => format!("{}: {policy} rule {rule}", one.reason),
        (None, Some(policy), None) => format!("{}: {policy}", one.reason),
        (None, None, _) => one.reason.clone(),
    };
    vec![
        one.last.clone(),
        from,
        format!("{to}:{}", one.port),
        request,
        paint.bad(&one.status.map_or("reset".to_owned(), |status| status.to_string())),
        one.count.to_string(),
        hint,
    ]
}
