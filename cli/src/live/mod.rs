//! What the running mesh does now, asked of the control plane: `postern status`, `postern top`, `postern denials`,
//! `postern policies`, `postern tap`, `postern why --id`, `postern dashboard`.
//!
//! Sidecars report sums every ten seconds and the control plane keeps an hour of them; here is only how they are shown.

pub mod dashboard;
pub mod decision;
pub mod denials;
pub mod policies;
pub mod status;
pub mod tap;
pub mod top;

use clap::builder::ValueParser;
use std::time::Duration;

/// The control plane keeps so much.
const HOUR: Duration = Duration::from_secs(3600);

/// How far back: a time from 10 seconds to an hour.
fn since() -> ValueParser {
    ValueParser::from(|text: &str| match humantime::parse_duration(text) {
        Ok(since) if (Duration::from_secs(10)..=HOUR).contains(&since) => Ok(since),
        Ok(_) => Err("the control plane knows the last hour, in steps of 10 s".to_owned()),
        Err(cause) => Err(cause.to_string()),
    })
}

/// An identity without what all have in common.
fn who(identity: &str) -> String {
    identity.trim_start_matches("spiffe://").to_owned()
}

/// The two ends of a flow: who calls, who is called.
fn ends(direction: &str, workload: &str, peer: Option<&str>, service: Option<&str>) -> (String, String) {
    match direction {
        "inbound" => (peer.map_or_else(|| "(no identity)".to_owned(), who), workload.to_owned()),
        _ => {
            let called = service.map(str::to_owned).or_else(|| peer.map(who));
            (workload.to_owned(), called.unwrap_or_else(|| "(outside)".to_owned()))
        }
    }
}

/// What is not in the counts, when there is something.
fn lost(lost: &postern_control_plane::admin::pages::Lost) -> String {
    match (lost.overflow, lost.dropped) {
        (0, 0) => String::new(),
        (overflow, dropped) => format!(
            "\nnot in these rows: {overflow} calls of which there were too many different ones, {dropped} parts of reports that were refused\n"
        ),
    }
}
