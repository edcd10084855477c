//! The process that a person started: judges the folder, takes the lock, starts the stages, passes Ctrl-C on, tidies up.
use super::{
    Options, Page,
    plan::Plan,
    runtime_dir::{self, RuntimeDir},
    stage, telemetry_relay,
};
use crate::{
    exchange::handed_on,
    failure::{ERROR, Failure},
    folder,
    tools::Tools,
};
use nix::sys::signal::Signal;
use postern_control_plane::admin::page::PagePort;
use std::{
    net::{Ipv4Addr, SocketAddr},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
    sync::Arc,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The usual port of the page.
const PAGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15013);

/// Runs a mesh until it ends or a signal stops it.
pub fn run(options: Options) -> ExitCode {
    attempt(options).unwrap_or_else(|failure| ExitCode::from(failure.report()))
}

fn attempt(mut options: Options) -> Result<ExitCode, Failure> {
    let directory = folder::locate(&options.directory)?;
    let folder = folder::examine(&options.directory)?;
    folder.print_problems();
    if folder.has_errors() {
        eprintln!("error: {} in `{}`; nothing was started.", folder.tally(), options.directory.display());
        eprintln!(
            "help:  Correct them and start again; `postern check {}` looks without starting.",
            options.directory.display()
        );
        return Ok(ExitCode::from(ERROR));
    }
    let collector = match &options.telemetry_endpoint {
        Some(endpoint) if !options.story => Some(endpoint.authority()?),
        _ => None,
    };
    let plan = Plan::make(&folder.documents, &Plan::default())?;
    let tools = Tools::from_environment();
    let executable = stage::executable()?;
    find_commands(&plan, &directory, &executable, &tools)?;
    let runtime = RuntimeDir::take(&runtime_dir::base(), &directory)?;
    if !options.loopback {
        match namespaces_allowed(&executable, runtime.path()) {
            Ok(()) => {
                tools.require_network()?;
            }
            Err(why) => {
                eprintln!(
                    "note: no network namespaces here ({}), so pods share loopback with explicit ports, still with mutual TLS and policy. {}",
                    why.trim_end_matches('.'),
                    stage::enabling()
                );
                options.loopback = true;
            }
        }
    }
    let runtime_threads =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            Failure::new(format!("no event loop: {e}."), "Check the limits of this process (ulimit -n).")
        })?;
    let page = runtime_threads.block_on(page_port(options.page))?;
    options.page = page.as_ref().map_or(Page::Off, |page| Page::At(page.address()));
    if let Some(page) = page {
        // The control plane may be in a network of its own; its admin socket is a file.
        let socket: Arc<Path> = runtime.path().join(runtime_dir::ADMIN_SOCKET).into();
        let source = move |asked: String| handed_on(Arc::clone(&socket), asked);
        runtime_threads.spawn(page.serve(source, CancellationToken::new()));
    }
    let command = stage::mesh_command(&executable, runtime.path(), &options)?;
    let relay = collector.filter(|_| !options.loopback).map(|c| (runtime.path(), c));
    let status = runtime_threads.block_on(attend(command, relay))?;
    drop(runtime);
    Ok(exit_code(status))
}

/// The port that is asked for, on this machine's own loopback.
async fn page_port(page: Page) -> Result<Option<PagePort>, Failure> {
    let cannot = |cause: String| Failure::new(cause, "Choose another port with --page, or --page off.");
    match page {
        Page::Off => Ok(None),
        Page::At(address) => {
            PagePort::bind(address).await.map(Some).map_err(|cause| cannot(format!("{cause:#}.")))
        }
        Page::Anywhere => match PagePort::bind(PAGE).await {
            Ok(port) => Ok(Some(port)),
            // Another mesh has it.
            Err(_) => {
                let any = SocketAddr::new(PAGE.ip(), 0);
                PagePort::bind(any).await.map(Some).map_err(|cause| cannot(format!("{cause:#}.")))
            }
        },
    }
}

/// Waits for the mesh. The first signal asks it to stop (its standard input ends), the second ends it at once.
/// Meanwhile it takes spans to the collector in `relay`.
async fn attend(command: Command, relay: Option<(&Path, String)>) -> Result<ExitStatus, Failure> {
    let broken = |e: std::io::Error| Failure::new(format!("the mesh cannot be started: {e}."), "Try again.");
    if let Some((runtime, collector)) = relay {
        telemetry_relay::serve_outside(runtime, collector).map_err(broken)?;
    }
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).map_err(broken)?);
    }
    let [interrupt, terminate, hangup] = signals.as_mut_slice() else {
        return Err(Failure::new("no signals.", "Try again."));
    };
    let mut child = tokio::process::Command::from(command)
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(broken)?;
    let mut asking = child.stdin.take();
    loop {
        tokio::select! {
            status = child.wait() => return status.map_err(broken),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        // Dropping our end of the pipe is the request to stop.
        if asking.take().is_none() {
            child.start_kill().map_err(broken)?;
        }
    }
}

/// The exit code of a process, 128 + signal as shells have it.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    if status.signal() == Some(Signal::SIGKILL as i32) {
        // Only the second Ctrl-C does that.
        return ExitCode::from(130);
    }
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Why namespaces cannot be made here, when they cannot.
fn namespaces_allowed(executable: &Path, runtime: &Path) -> Result<(), String> {
    let tried = stage::probe_command(executable, runtime)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("the try could not be started: {e}"))?;
    if tried.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&tried.stderr);
    Err(said.lines().next().unwrap_or("unknown reason").trim_start_matches("error: ").to_owned())
}

/// Every container's command must be there before anything starts.
fn find_commands(plan: &Plan, directory: &Path, executable: &Path, tools: &Tools) -> Result<(), Failure> {
    let own = executable.parent().map(PathBuf::from).unwrap_or_default();
    for pod in plan.pods.values() {
        for container in &pod.containers {
            let Some(program) = container.command.first().or(container.args.first()) else { continue };
            let from =
                container.working_dir.as_ref().map_or_else(|| directory.to_owned(), |w| directory.join(w));
            let found = if program.contains('/') {
                from.join(program).is_file()
            } else {
                own.join(program).is_file() || tools.find(program).is_some()
            };
            // What an environment variable names is known only in the pod.
            if !found && !program.contains("$(") {
                return Err(Failure::new(
                    format!(
                        "the command `{program}` of container `{}` in pod {} was not found.",
                        container.name, pod.key
                    ),
                    "Install the program, or write its full path (relative paths start at the folder of the YAML files).",
                ));
            }
        }
    }
    Ok(())
}
