//! `postern policies`: one row for each policy: how many sidecars enforce it, what it has matched, what a dry run would deny.

use crate::{
    authority::{Where, shown::ago, socket::ControlPlane},
    failure::OK,
    policy::formats::{self, Output, Paint},
};
use clap::Args;
use postern_control_plane::admin::pages::{Policies, PolicyStanding};
use std::fmt::Write as _;

/// Flags of `postern policies`.
#[derive(Args, Debug, Clone)]
pub struct PoliciesArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// Runs the command: 0 with the list, 1 when the control plane cannot be asked.
pub fn run(args: &PoliciesArgs) -> u8 {
    match ControlPlane::find(&args.place).and_then(|control_plane| control_plane.page("/policies")) {
        Ok(page) => {
            formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn table(page: &Policies, paint: Paint) -> String {
    if page.policies.is_empty() {
        return "there are no policies: every call is allowed, with mutual TLS and without\n".into();
    }
    let head = ["POLICY", "KIND", "SAYS", "ENFORCED BY", "MATCHED", "WOULD DENY", "WOULD ALLOW", "LAST"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(page.policies.iter().map(|one| row(one, &page.now, paint)));
    let mut out = formats::columns(&rows);
    for one in page.policies.iter().filter(|one| !one.waiting_for.is_empty()) {
        let more = match one.selected - one.enforced_by - one.waiting_for.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let _ = writeln!(
            out,
            "\n{}/{} is not acknowledged by {}{more}",
            one.namespace,
            one.name,
            one.waiting_for.join(", ")
        );
    }
    out
}

fn row(one: &PolicyStanding, now: &str, paint: Paint) -> Vec<String> {
    let by = format!("{}/{}", one.enforced_by, one.selected);
    vec![
        format!("{}/{}", one.namespace, one.name),
        one.kind.clone(),
        if one.dry_run { format!("{} (dry run)", one.says) } else { one.says.clone() },
        match one.selected {
            0 => paint.odd("nobody"),
            all if one.enforced_by == all => paint.good(&by),
            _ => paint.bad(&by),
        },
        one.matched.map_or("-".to_owned(), |matched| matched.to_string()),
        match one.would_deny {
            0 => "0".to_owned(),
            some => paint.bad(&some.to_string()),
        },
        one.would_allow.to_string(),
        one.last.as_deref().map_or("-".to_owned(), |last| format!("{} ago", ago(now, last))),
    ]
}
