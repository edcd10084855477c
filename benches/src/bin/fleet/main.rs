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

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Nothing here may take longer than all of it.
const DEADLINE: Duration = Duration::from_secs(170);
/// Load is looked at in pieces of this length.
const BUCKET: Duration = Duration::from_millis(100);

#[derive(Parser)]
struct Arguments {
    /// How many sidecars connect
    #[arg(long, default_value_t = 10_000)]
    sidecars: usize,
    /// A few of them only, to see that the bench works
    #[arg(long)]
    smoke: bool,
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
    let outcome = runtime.block_on(async { tokio::time::timeout(DEADLINE, measure(sidecars)).await });
    // Ten thousand connections are closed faster by the kernel than by us.
    runtime.shutdown_background();
    let Ok(measured) = outcome else {
        eprintln!("error: the bench was not over within {} s", DEADLINE.as_secs());
        return ExitCode::FAILURE;
    };
    if arguments.smoke || sidecars < 10_000 {
        return ExitCode::SUCCESS;
    }
    budgets::judge(&["fleet"], &measured)
}

async fn measure(sidecars: usize) -> Measured {
    let control = control::Process::start(sidecars).await;
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

    let (begin, spent) = (Instant::now(), cpu(control.id()));
    fleet.renew();
    let renewed = fleet.all_renewed(begin).await;
    let last = renewed.iter().max().copied().unwrap_or_default();
    let (most, mean) = flatness(&renewed);
    println!(
        "rotation: all {sidecars} hold a new certificate after {:.1} s; {:.1} s of CPU in the control plane; certificates in \
         {} ms: at most {most}, {mean:.1} in the mean ({:.2} : 1)",
        last.as_secs_f64(),
        (cpu(control.id()) - spent).as_secs_f64(),
        BUCKET.as_millis(),
        most as f64 / mean,
    );
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = resident_kib(control.id());
    println!("after the rotation the control plane has {} MiB", after / 1024);
    control.stop().await;
    Measured::from([("KiB per sidecar".to_owned(), each)])
}

/// The most certificates of one bucket, and the mean from the first to the last.
fn flatness(renewed: &[Duration]) -> (usize, f64) {
    let bucket = |at: &Duration| usize::try_from(at.as_millis() / BUCKET.as_millis()).unwrap();
    let (first, last) = renewed.iter().map(bucket).fold((usize::MAX, 0), |(a, b), n| (a.min(n), b.max(n)));
    let mut buckets = vec![0_usize; last - first + 1];
    renewed.iter().for_each(|at| buckets[bucket(at) - first] += 1);
    (buckets.iter().max().copied().unwrap_or_default(), renewed.len() as f64 / buckets.len() as f64)
}

/// Each sidecar is a descriptor, here and there.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
