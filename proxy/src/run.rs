//! The sidecar as a program: from flags to an exit code.

use crate::{
    bootstrap::{Bootstrap, Failure, Flags},
    log, pages,
};
use anyhow::Context;
use postern_api::process::harden;
use std::process::ExitCode;

/// Keeps the kernel from giving this process memory by 2 MiB at a time, which would double what a sidecar holds while it is idle, beside
/// every pod. The allocator has such memory before `main` begins, so the program starts once more, with the wish inherited: the
/// same process, the same arguments. To be called first of all. Best effort.
pub fn avoid_huge_pages() {
    use nix::sys::prctl::{get_thp_disable, set_thp_disable};
    use std::os::unix::process::CommandExt;
    // Asked before, by us or by whoever started us; a kernel that does not know the question is not asked again and again.
    if get_thp_disable() != Ok(false) || set_thp_disable(true).is_err() {
        return;
    }
    let (Ok(program), mut arguments) = (std::env::current_exe(), std::env::args_os()) else { return };
    let mut again = std::process::Command::new(program);
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    // It returns only when it fails, and then this program goes on as it is.
    let _ = again.args(arguments).exec();
}

/// Runs a sidecar until a signal ends it: SIGTERM or SIGINT drains, a second one ends at once. Exit code 1 when it could
/// not start, with cause and remedy on standard error.
pub fn run(flags: Flags) -> ExitCode {
    log::to_stderr(&std::env::var("POSTERN_LOG").unwrap_or_default());
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
    // Apart from the data plane: no scrape and no push delays a request. One thread is plenty for what it has to do, and beside
    // every pod each further one would cost memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let sidecar = crate::app::start(bootstrap).await?;
        {
            let told = async {
                tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            };
            let mut told = std::pin::pin!(told);
            tokio::select! {
                () = told.as_mut() => {}
                () = sidecar.ready() => {
                    pages::forget_start();
                    told.await;
                }
            }
        }
        tracing::info!("draining; a second signal ends at once");
        tokio::select! {
            () = sidecar.drain() => tracing::info!("drained"),
            _ = terminate.recv() => tracing::warn!("second signal: ending at once"),
            _ = interrupt.recv() => tracing::warn!("second signal: ending at once"),
        }
        Ok(())
    })
}
