//! `postern status`: one row for each sidecar that is connected or should be.

use crate::{
    authority::{
        Where,
        shown::{ago, left, life, short},
        socket::ControlPlane,
    },
    failure::OK,
    policy::formats::{self, Output, Paint},
};
use clap::Args;
use postern_control_plane::admin::pages::{State, Status, Workload};
use std::fmt::Write as _;

/// Flags of `postern status`.
#[derive(Args, Debug, Clone)]
pub struct StatusArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// Runs the command: 0 with the list, 1 when the control plane cannot be asked.
pub fn run(args: &StatusArgs) -> u8 {
    match ControlPlane::find(&args.place).and_then(|control_plane| control_plane.page("/status")) {
        Ok(page) => {
            formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn table(page: &Status, paint: Paint) -> String {
    if page.workloads.is_empty() {
        return "no pod has a sidecar\n".into();
    }
    let head =
        ["POD", "STATE", "POLICY", "IN FORCE FOR", "CONNECTED FOR", "CERTIFICATE LEFT", "LIFE", "BUILD"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(page.workloads.iter().map(|one| row(one, &page.now, paint)));
    let mut out = formats::columns(&rows);
    for one in &page.workloads {
        if let Some(refusal) = &one.refusal {
            let _ = writeln!(out, "\n{}/{} keeps its last good policy: {refusal}", one.namespace, one.pod);
        }
    }
    out
}

fn row(one: &Workload, now: &str, paint: Paint) -> Vec<String> {
    let state = match one.state {
        State::Synced => paint.good("synced"),
        State::Behind => paint.odd("behind"),
        State::Refused => paint.bad("refused"),
        State::NotConnected => paint.bad("not connected"),
    };
    let (wanted, has) =
        (one.policy_wanted.as_deref().unwrap_or(""), one.policy_in_force.as_deref().unwrap_or(""));
    let policy = match (has, wanted) {
        ("", "") => "-".to_owned(),
        ("", wanted) => format!("none, wants {}", short(wanted)),
        (has, wanted) if has == wanted => short(has).to_owned(),
        (has, wanted) => format!("{}, wants {}", short(has), short(wanted)),
    };
    let since = |then: &Option<String>| then.as_deref().map_or("-".to_owned(), |then| ago(now, then));
    vec![
        format!("{}/{}", one.namespace, one.pod),
        state,
        policy,
        since(&one.policy_since),
        since(&one.connected_since),
        one.certificate_not_after.as_deref().map_or("-".to_owned(), |end| left(now, end)),
        one.certificate_remaining.map_or("-".to_owned(), |remaining| life(remaining, paint)),
        one.build.clone().unwrap_or_else(|| "-".to_owned()),
    ]
}
