//! `postern app`: workloads for demos and tests that need nothing but our own binary: a server that tells what it
//! received, a client that tells how it was answered, and a caller that never stops.
//!
//! Exit codes: 0 the answer was a 2xx, 1 no answer (connection refused, reset, timed out), 2 the answer was a no
//! (any other HTTP status), 64 the command line was wrong.

mod call;
mod client;
mod load;
mod serve;

use clap::{Args, Subcommand};
use std::{process::ExitCode, time::Duration};

/// The command line of `postern app`.
#[derive(Debug, Args)]
pub struct AppArgs {
    #[command(subcommand)]
    command: AppCommand,
}

#[derive(Debug, Subcommand)]
enum AppCommand {
    /// Serve: answer HTTP with JSON of what was received and gRPC with an empty message, or echo TCP
    Serve(serve::ServeArgs),
    /// Call a URL (http:// or tcp://) once, or many times with a summary
    Call(call::CallArgs),
    /// Call URLs for ever and print each result
    Loop(call::LoopArgs),
}

/// How a call ended, as an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Yes,
    NoAnswer,
    No,
    Usage,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        Self::from(match outcome {
            Outcome::Yes => 0,
            Outcome::NoAnswer => 1,
            Outcome::No => 2,
            Outcome::Usage => 64,
        })
    }
}

/// Runs one of the test workloads until it is done, or a signal ends it.
pub fn run(args: AppArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => {
            complain(
                &format!("the runtime could not be started: {cause}"),
                "check the limits of this process (ulimit -n)",
            );
            return Outcome::NoAnswer.into();
        }
    };
    let outcome = runtime.block_on(async {
        let work = async {
            match args.command {
                AppCommand::Serve(args) => serve::serve(args).await,
                AppCommand::Call(args) => call::call(args).await,
                AppCommand::Loop(args) => call::call_for_ever(args).await,
            }
        };
        tokio::select! {
            outcome = work => outcome,
            () = told_to_stop() => Outcome::Yes,
        }
    });
    // A name lookup in progress sits on a blocking thread and must not hold the exit.
    runtime.shutdown_timeout(Duration::from_millis(10));
    outcome.into()
}

/// SIGTERM or SIGINT. Asked for explicitly because the default action does not exist for the first process of a
/// process namespace.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
        }
        _ => std::future::pending().await,
    }
}

/// One sentence of cause, one of remedy, on standard error.
fn complain(cause: &str, remedy: &str) {
    use std::io::Write;
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "error: {cause}");
    if !remedy.is_empty() {
        let _ = writeln!(err, "  help: {remedy}");
    }
}

/// A line on standard output; a reader that went away is no reason to panic.
fn say(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// `250ms`, `1s`, `2m`, `1h`, or a bare number of seconds (`0.5`).
fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let (number, unit) = match text.find(|c: char| !(c.is_ascii_digit() || c == '.')) {
        Some(at) => text.split_at(at),
        None => (text, "s"),
    };
    let scale = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        other => return Err(format!("unknown unit `{other}`; write 250ms, 1s, 2m or 1h")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("`{text}` is not a duration; write 250ms, 1s, 2m or 1h"))?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| format!("`{text}` is out of range"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_are_read_with_their_units_and_refused_without_sense() {
        for (text, wanted) in
            [("250ms", 250), ("1s", 1_000), ("2", 2_000), ("0.5", 500), ("2m", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(wanted), "{text}");
        }
        for text in ["", "s", "1 year", "-1s", "1..2s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
