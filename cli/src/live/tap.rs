//! `postern tap`: calls of the whole mesh as they pass, filtered and sampled by the sidecars themselves.

use super::ends;
use crate::{
    authority::{Where, socket::ControlPlane},
    failure::{Failure, OK},
    policy::formats::{Output, Paint},
};
use clap::{Args, ValueEnum};
use postern_control_plane::admin::pages::{TapBegin, TapCall, TapLine, TapMore, TapWanted};
use serde::Serialize;
use std::{
    cell::Cell,
    io::{ErrorKind, Write as _},
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// The longest that a tap lasts.
const LONGEST: Duration = Duration::from_secs(600);

/// Flags of `postern tap`. Without one every call is meant.
#[derive(Args, Debug, Clone)]
pub struct TapArgs {
    /// The caller: NAMESPACE/SERVICEACCOUNT, or a SPIFFE ID
    #[arg(long, value_name = "CALLER")]
    from: Option<String>,
    /// The called: a service or a workload, as NAME, NAMESPACE/NAME or a host
    #[arg(long, value_name = "CALLED")]
    to: Option<String>,
    /// Requests with this method
    #[arg(long)]
    method: Option<String>,
    /// Requests whose path begins with this
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Requests with this status, like 403 or 4xx
    #[arg(long)]
    status: Option<String>,
    /// What policy said
    #[arg(long, value_enum)]
    decision: Option<DecisionWanted>,
    /// Only as one of the two ends saw it
    #[arg(long, value_enum)]
    seen_by: Option<SeenBy>,
    /// Calls in a second that one sidecar shows at most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// How long, at most 10 minutes
    #[arg(long = "for", id = "for", value_name = "TIME", default_value = "10m", value_parser = lasts)]
    lasts: Duration,
    /// Form of the answer: a row, an object a line, or a document for each call
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// What policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DecisionWanted {
    /// Yes
    Allow,
    /// No; also what was refused without a policy
    Deny,
}

/// Which end tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeenBy {
    /// The called one
    Server,
    /// The caller
    Client,
}

fn lasts(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (Duration::from_secs(1)..=LONGEST).contains(&time) => Ok(time),
        Ok(_) => Err("a tap lasts from 1 s to 10 minutes".to_owned()),
        Err(cause) => Err(cause.to_string()),
    }
}

/// Runs the command: 0 when it ends by time or is interrupted, 1 when the control plane cannot be asked or goes away, 64 when this cannot be asked.
pub fn run(args: &TapArgs) -> u8 {
    match ControlPlane::find(&args.place).and_then(|control_plane| watch(args, &control_plane)) {
        Ok(()) => OK,
        Err(failure) => failure.report(),
    }
}

fn watch(args: &TapArgs, control_plane: &ControlPlane) -> Result<(), Failure> {
    let wanted = TapWanted {
        from: args.from.clone(),
        to: args.to.clone(),
        method: args.method.clone(),
        path: args.path.clone(),
        status: args.status.clone(),
        decision: args
            .decision
            .map(|one| if one == DecisionWanted::Allow { "allow" } else { "deny" }.to_owned()),
        seen_by: args.seen_by.map(|one| if one == SeenBy::Server { "server" } else { "client" }.to_owned()),
        rate: Some(args.rate),
        seconds: Some(args.lasts.as_secs()),
    };
    let (paint, end) = (Paint::of_stdout(), Cell::new(None));
    control_plane.run(async {
        let mut terminated = signal(SignalKind::terminate()).map_err(|cause| {
            Failure::new(format!("{cause}."), "Check the limits of this process (ulimit -n).")
        })?;
        let lines = control_plane.lines("/tap", &wanted, |line: TapLine| match line {
            TapLine::End(why) => {
                end.set(Some(why));
                false
            }
            line => {
                let goes_on = show(args.output, &line, paint);
                if !goes_on {
                    end.set(Some(String::new()));
                }
                goes_on
            }
        });
        tokio::select! {
            ended = lines => ended,
            _ = tokio::signal::ctrl_c() => { end.set(Some(String::new())); Ok(()) }
            _ = terminated.recv() => { end.set(Some(String::new())); Ok(()) }
        }
    })?;
    match end.take().as_deref() {
        Some("the control plane stops") | None => Err(Failure::new(
            "the control plane went away while it was tapped.",
            "Look whether it runs again (`postern status`), and tap once more.",
        )),
        Some(_) => Ok(()),
    }
}

/// Writes a line; false when nobody reads any more.
fn show(output: Output, line: &TapLine, paint: Paint) -> bool {
    let text = match (output, line) {
        (_, TapLine::End(_)) => return false,
        (Output::Table, TapLine::Begin(begin)) => {
            hint(begin);
            format!("{}\n", row(&HEAD.map(str::to_owned)))
        }
        (Output::Table, TapLine::Call(call)) => table(call, paint),
        (Output::Table, TapLine::More(more)) => format!("{}\n", not_shown(more)),
        (_, TapLine::Begin(begin)) => {
            hint(begin);
            return true;
        }
        (_, TapLine::More(more)) => {
            eprintln!("{}", not_shown(more));
            return true;
        }
        (Output::Json, TapLine::Call(call)) => json(call) + "\n",
        (Output::Yaml, TapLine::Call(call)) => {
            format!("---\n{}", serde_yaml::to_string(&call).unwrap_or_default())
        }
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(cause) => cause.kind() == ErrorKind::Interrupted,
    }
}

fn json(call: &impl Serialize) -> String {
    // Texts and numbers have no way to fail.
    serde_json::to_string(call).unwrap_or_default()
}

fn hint(begin: &TapBegin) {
    let (count, rate) = (begin.sidecars, begin.rate);
    eprintln!(
        "tapping {count} sidecars, at most {rate} calls a second of each, for {} s; Ctrl-C ends it",
        begin.seconds
    );
    if !begin.too_old.is_empty() {
        eprintln!("not tapped, since their sidecars are too old: {}", begin.too_old.join(", "));
    }
}

fn not_shown(more: &TapMore) -> String {
    let mut text = format!("… {} more matched", grouped(more.matched));
    if more.refused > 0 {
        text += &format!(
            "; {} were refused: a sidecar told more than it was asked for, or nonsense",
            grouped(more.refused)
        );
    }
    text
}

/// 1,240.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

const HEAD: [&str; 7] = ["TIME", "SEEN BY", "CODE", "DURATION", "FROM", "TO", "REQUEST"];

/// Rows come one after the other, so that no column can know its widest cell.
fn row(cells: &[String; 7]) -> String {
    let [time, seen, code, duration, from, to, request] = cells;
    format!("{time:12}  {seen:7}  {code:6}  {duration:>9}  {from:40}  {to:36}  {request}")
}

fn table(call: &TapCall, paint: Paint) -> String {
    let (from, to) = ends(&call.direction, &call.workload, call.peer.as_deref(), call.service.as_deref());
    let request = match (&call.method, &call.path) {
        (Some(method), path) => format!("{method} {}", path.as_deref().unwrap_or_default()),
        (None, _) => format!("a connection ({})", call.protocol.as_deref().unwrap_or("?")),
    };
    let is_bad = call.decision.as_deref() == Some("deny") || call.flag.is_some();
    // Padded before it is painted: colours have no width.
    let code = format!(
        "{:6}",
        call.status.map_or(if is_bad { "reset" } else { "-" }.to_owned(), |status| status.to_string())
    );
    let seen = if call.direction == "inbound" { "server" } else { "client" };
    let mut line = row(&[
        call.at
            .split('T')
            .nth(1)
            .unwrap_or_default()
            .chars()
            .take(12)
            .collect::<String>()
            .trim_end_matches('Z')
            .to_owned(),
        seen.to_owned(),
        if is_bad { paint.bad(&code) } else { code },
        format!("{} µs", call.micros),
        from,
        format!("{to}:{}", call.port),
        request,
    ]);
    if is_bad {
        let rule = match (&call.policy, call.rule) {
            (Some(policy), Some(rule)) => format!(" ({policy} rule {rule})"),
            (Some(policy), None) => format!(" ({policy})"),
            (None, _) => String::new(),
        };
        line += &format!("  {}{rule}", call.reason.as_deref().or(call.flag.as_deref()).unwrap_or("denied"));
        if let Some(id) = &call.decision_id {
            line += &format!("  postern why --id {id}");
        }
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn what_is_not_shown_is_said_in_numbers_that_people_can_read() {
        for (number, expected) in [(0, "0"), (999, "999"), (1240, "1,240"), (1_000_000, "1,000,000")] {
            assert_eq!(grouped(number), expected);
        }
        assert_eq!(not_shown(&TapMore { matched: 1240, refused: 0 }), "… 1,240 more matched");
        assert!(not_shown(&TapMore { matched: 0, refused: 3 }).contains("3 were refused"));
    }

    #[test]
    fn a_tap_lasts_from_a_second_to_ten_minutes() {
        for (text, is_fine) in [("1s", true), ("10m", true), ("601s", false), ("0s", false), ("x", false)] {
            assert_eq!(lasts(text).is_ok(), is_fine, "{text}");
        }
    }
}
