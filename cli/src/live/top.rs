//! `postern top`: who calls whom, how often, how well, how fast; and which rules are in use.

use super::{ends, lost, since};
use crate::{
    authority::{Where, shown::ago, socket::ControlPlane},
    failure::OK,
    policy::formats::{self, Output, Paint},
};
use clap::Args;
use postern_control_plane::admin::pages::{Flow, Flows, RuleUse};
use std::{fmt::Write as _, time::Duration};

/// Flags of `postern top`.
#[derive(Args, Debug, Clone)]
pub struct TopArgs {
    /// Over how long, at most an hour
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = since())]
    since: Duration,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// Runs the command: 0 with the list, 1 when the control plane cannot be asked.
pub fn run(args: &TopArgs) -> u8 {
    let path = format!("/flows?since={}", args.since.as_secs());
    match ControlPlane::find(&args.place).and_then(|control_plane| control_plane.page(&path)) {
        Ok(page) => {
            formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn table(page: &Flows, paint: Paint) -> String {
    let mut out = match page.flows.is_empty() {
        true => format!("no calls in the last {} s\n", page.since_seconds),
        false => flows(page, paint),
    };
    if !page.rules.is_empty() {
        let head = ["POLICY", "RULE", "WORKLOADS", "MATCHED", "LAST", "WOULD DENY", "WOULD ALLOW"];
        let mut rows = vec![head.map(str::to_owned).to_vec()];
        rows.extend(page.rules.iter().map(|one| rule(one, &page.now)));
        out += "\n";
        out += &formats::columns(&rows);
    }
    for one in &page.lost_traces {
        let _ = writeln!(
            out,
            "\n{} does not forward traceparent: {} of its {} requests had none, while it was called with one; traces end there",
            one.workload, one.untraced, one.sent
        );
    }
    out + &lost(&page.lost)
}

fn flows(page: &Flows, paint: Paint) -> String {
    let head = [
        "FROM", "TO", "SEEN BY", "CALLS", "PER S", "ERRORS", "DENIED", "MTLS", "P50", "P99", "OWN P50",
        "OWN P99",
    ];
    let mut all: Vec<&Flow> = page.flows.iter().collect();
    all.sort_by_key(|flow| std::cmp::Reverse(flow.calls));
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(all.into_iter().map(|flow| row(flow, page.observed_seconds, paint)));
    formats::columns(&rows)
}

fn row(flow: &Flow, seconds: u64, paint: Paint) -> Vec<String> {
    let (from, to) = ends(&flow.direction, &flow.workload, flow.peer.as_deref(), flow.service.as_deref());
    let counted = |count: u64| match count {
        0 => "0".to_owned(),
        count => paint.bad(&count.to_string()),
    };
    // Who was turned away without an identity was not served without mutual TLS.
    let refused = if flow.peer.is_none() { flow.denied } else { 0 };
    let served = flow.calls.saturating_sub(refused);
    let mtls = format!("{}/{served}", flow.mutual_tls);
    vec![
        from,
        to,
        if flow.direction == "inbound" { "server" } else { "client" }.to_owned(),
        flow.calls.to_string(),
        format!("{:.1}", flow.calls as f64 / seconds.max(1) as f64),
        counted(flow.errors),
        counted(flow.denied),
        match served {
            0 => "-".to_owned(),
            _ if flow.mutual_tls == served => paint.good(&mtls),
            _ => paint.odd(&mtls),
        },
        took(flow.p50_micros),
        took(flow.p99_micros),
        took(flow.proxy_p50_micros),
        took(flow.proxy_p99_micros),
    ]
}

/// The end of a bucket, so: not longer than that.
fn took(micros: Option<u64>) -> String {
    match micros {
        None => "-".to_owned(),
        Some(micros) if micros < 1000 => format!("{micros} µs"),
        Some(micros) if micros < 1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        Some(micros) => format!("{:.1} s", micros as f64 / 1e6),
    }
}

fn rule(one: &RuleUse, now: &str) -> Vec<String> {
    vec![
        one.policy.clone(),
        one.rule.map_or("default".to_owned(), |rule| rule.to_string()),
        one.workloads.to_string(),
        one.matched.to_string(),
        format!("{} ago", ago(now, &one.last)),
        one.would_deny.to_string(),
        one.would_allow.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_told_in_the_unit_that_fits() {
        for (micros, wanted) in [
            (None, "-"),
            (Some(0), "0 µs"),
            (Some(999), "999 µs"),
            (Some(1535), "1.5 ms"),
            (Some(2_097_151), "2.1 s"),
        ] {
            assert_eq!(took(micros), wanted);
        }
    }
}
