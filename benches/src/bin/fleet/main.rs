//! Ten thousand sidecars and one control plane: what each connected one costs it in memory, how long it takes until all of
//! them hold a new certificate after a forced rotation, and how flat that load is.
//!
//! The control plane is a process of its own (this program started again, with the allocator of the program that ships).
//! The sidecars are simulated in this one: real streams over mutual TLS, each from an address and with a certificate of
//! its own, that say and answer what a sidecar does. `--sidecars N` for fewer; `--smoke` is 200 of them, in a debug build
//! too, and judges only that it works.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod control;
mod sidecar;

use clap::Parser;
use postern_benches::{
    budgets::{self, Measured},
    process::{cpu, resident_kib},
};
use sidecar::Fleet;
use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

// As in the program that ships; without it in a debug build, so that valgrind can look at what is allocated.
#[cfg(not(debug_assertions))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nothing here may take longer than all of it.
const DEADLINE: Duration = Duration::from_secs(280);
/// Load is looked at in pieces of this length.
const BUCKET: Duration = Duration::from_millis(500);
/// So long the fleet is watched while it does nothing.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Parser)]
struct Arguments {
    /// How many sidecars connect
    #[arg(long, default_value_t = 10_000)]
    sidecars: usize,
    /// A few of them only, to see that the bench works
    #[arg(long)]
    smoke: bool,
    /// Run the control plane under this program, e.g. valgrind, which may have arguments, until all are connected
    #[arg(long, value_name = "PROGRAM", value_delimiter = ' ')]
    under: Vec<String>,
    /// Be the control plane
    #[arg(long, hide = true)]
    control_plane: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let sidecars = if arguments.smoke { arguments.sidecars.min(200) } else { arguments.sidecars };
    raise_open_files();
    if arguments.control_plane {
        control::run(sidecars);
        return ExitCode::SUCCESS;
    }
    budgets::refuse_debug_build(arguments.smoke);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let outcome =
        runtime.block_on(async { tokio::time::timeout(DEADLINE, measure(sidecars, &arguments.under)).await });
    // Ten thousand connections are closed faster by the kernel than by us.
    runtime.shutdown_background();
    let Ok(measured) = outcome else {
        eprintln!("error: the bench was not over within {} s", DEADLINE.as_secs());
        return ExitCode::FAILURE;
    };
    if arguments.smoke || sidecars < 10_000 || !arguments.under.is_empty() {
        return ExitCode::SUCCESS;
    }
    budgets::judge(&["fleet"], &measured)
}

async fn measure(sidecars: usize, under: &[String]) -> Measured {
    let control = control::Process::start(sidecars, under).await;
    let fleet = Fleet::join(&control, sidecars).await;
    let idle = resident_kib(control.id());
    println!("{sidecars} sidecars have their first certificate; the control plane has {} MiB", idle / 1024);

    let (begin, spent) = (Instant::now(), cpu(control.id()));
    fleet.connect().await;
    let took = begin.elapsed();
    // What was freed meanwhile is given back after a moment.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let connected = resident_kib(control.id());
    let each = connected.saturating_sub(idle) as f64 / sidecars as f64;
    println!(
        "all are connected and quiet after {:.1} s ({:.1} s of CPU in the control plane): {} MiB, {each:.1} KiB for each",
        took.as_secs_f64(),
        (cpu(control.id()) - spent).as_secs_f64(),
        connected / 1024,
    );

    if !under.is_empty() {
        // Too slow for the rest; what it holds is seen now.
        control.stop().await;
        return Measured::new();
    }

    let spent = cpu(control.id());
    tokio::time::sleep(QUIET).await;
    let quiet = (cpu(control.id()) - spent).as_secs_f64() / QUIET.as_secs_f64();
    println!("while nothing happens the control plane needs {:.1} % of a core", quiet * 100.0);

    let (begin, spent) = (Instant::now(), cpu(control.id()));
    control.ask("POST", "/authorities/rotate", r#"{"kind": "intermediate"}"#).await;
    let (renewed, failed) = fleet.all_renewed(begin).await;
    let spent = (cpu(control.id()) - spent).as_secs_f64();
    let last = renewed.iter().max().copied().unwrap_or_default();
    let (most, mean) = flatness(&renewed, BUCKET);
    println!(
        "rotation: all {sidecars} hold a new certificate after {:.1} s, {failed} attempts failed; {spent:.1} s of CPU in the \
         control plane, {:.0} µs for each; certificates in {} ms: at most {most}, {mean:.1} in the mean ({:.2} : 1)",
        last.as_secs_f64(),
        spent * 1e6 / sidecars as f64,
        BUCKET.as_millis(),
        most as f64 / mean,
    );
    println!("certificates in each of these: {:?}", buckets(&renewed, BUCKET));
    // The last reports are on their way.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(control.holders_of_tainted().await, 0, "the control plane knows of no old certificate");
    let after = resident_kib(control.id());
    println!("after the rotation the control plane has {} MiB", after / 1024);
    fleet.end();
    control.stop().await;
    Measured::from([
        ("KiB per sidecar".to_owned(), each),
        ("microseconds of CPU per renewal".to_owned(), spent * 1e6 / sidecars as f64),
        ("most to mean".to_owned(), most as f64 / mean),
    ])
}

/// The most certificates of one bucket, and the mean from the begin to the last.
fn flatness(renewed: &[Duration], length: Duration) -> (usize, f64) {
    let buckets = buckets(renewed, length);
    (buckets.iter().max().copied().unwrap_or_default(), renewed.len() as f64 / buckets.len() as f64)
}

fn buckets(renewed: &[Duration], length: Duration) -> Vec<usize> {
    let bucket = |at: &Duration| usize::try_from(at.as_millis() / length.as_millis()).unwrap();
    let mut buckets = vec![0; renewed.iter().map(bucket).max().unwrap_or_default() + 1];
    renewed.iter().for_each(|at| buckets[bucket(at)] += 1);
    buckets
}

/// Each sidecar is a descriptor, here and there.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
