//! The sidecar as a program: from flags to an exit code.

use crate::bootstrap::{Bootstrap, Failure, Flags, harden, log_to_stderr};
use anyhow::Context;
use std::process::ExitCode;

/// Keeps the kernel from giving this process memory by 2 MiB at a time, which would double what a sidecar holds while it is idle, beside
/// every pod. To be called before much is allocated. Best effort.
pub fn avoid_huge_pages() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Runs a sidecar until a signal ends it: SIGTERM or SIGINT drains, a second one ends at once. Exit code 1 when it could
/// not start, with cause and remedy on standard error.
pub fn run(flags: Flags) -> ExitCode {
    log_to_stderr();
    match start_and_wait(flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Failure>() {
                Some(failure) => eprintln!("error: {}\nhelp: {}", failure.cause, failure.remedy),
                None => eprintln!("error: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn start_and_wait(flags: Flags) -> anyhow::Result<()> {
    let bootstrap = Bootstrap::from_flags(flags)?;
    harden();
    // Apart from the data plane: no scrape and no push delays a request.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let sidecar = crate::app::start(bootstrap).await?;
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("draining; a second signal ends at once");
        tokio::select! {
            () = sidecar.drain() => tracing::info!("drained"),
            _ = terminate.recv() => tracing::warn!("second signal: ending at once"),
            _ = interrupt.recv() => tracing::warn!("second signal: ending at once"),
        }
        Ok(())
    })
}
