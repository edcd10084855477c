//! `postern exec POD -- COMMAND`: runs a command in a pod of a running mesh, with this terminal as its own.
use super::{
    control_socket::{Notice, Reply, Request},
    runtime_dir::{self, Running, SOCKET},
};
use crate::failure::Failure;
use clap::Args;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use std::{
    io::{self, BufRead, BufReader, IoSlice, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::ExitCode,
};

/// Flags of `postern exec`.
#[derive(Args, Debug, Clone)]
pub struct ExecArgs {
    /// The pod: its name, the unique beginning of it, its deployment, or NAMESPACE/NAME
    pod: String,
    /// The folder of the mesh, when several are up
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The command to run there
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the command; its exit code.
pub fn run(args: &ExecArgs) -> ExitCode {
    attempt(args).unwrap_or_else(|failure| ExitCode::from(failure.report()))
}

fn attempt(args: &ExecArgs) -> Result<ExitCode, Failure> {
    let mesh = choose(args.dir.as_deref())?;
    let gone = |e: io::Error| {
        Failure::new(
            format!("the mesh of `{}` does not answer: {e}.", mesh.directory.display()),
            "It may be starting or stopping; try again.",
        )
    };
    let stream = UnixStream::connect(mesh.path.join(SOCKET)).map_err(gone)?;
    let variables = ["TERM", "COLUMNS", "LINES"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    let request = Request { pod: args.pod.clone(), argv: args.command.clone(), variables };
    send(&stream, &request).map_err(gone)?;
    pass_signals(stream.try_clone().map_err(gone)?)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(gone)?;
    match serde_json::from_str(&answer) {
        Ok(Reply::Exit(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ok(Reply::Refused { cause, remedy }) => Err(Failure::new(cause, remedy)),
        Err(_) => Err(gone(io::Error::other("the connection ended"))),
    }
}

/// The mesh of `dir`, or the only one that is up.
///
/// # Errors
/// There is none, or there are several to choose from.
pub fn choose(dir: Option<&Path>) -> Result<Running, Failure> {
    let mut all = runtime_dir::running(&runtime_dir::base());
    if let Some(dir) = dir {
        let wanted = crate::folder::locate(dir)?;
        return all.into_iter().find(|r| r.directory == wanted).ok_or_else(|| {
            Failure::new(
                format!("no mesh of `{}` is up.", dir.display()),
                format!("Start it with `postern up {}`.", dir.display()),
            )
        });
    }
    match (all.pop(), all.is_empty()) {
        (Some(only), true) => Ok(only),
        (None, _) => Err(Failure::new("no mesh of yours is up.", "Start one with `postern up DIR`.")),
        (Some(last), false) => {
            all.push(last);
            let names: Vec<String> = all.iter().map(|r| r.directory.display().to_string()).collect();
            Err(Failure::new(
                format!("{} meshes are up.", names.len()),
                format!("Choose one with --dir: {}.", names.join(", ")),
            ))
        }
    }
}

fn send(stream: &UnixStream, request: &Request) -> io::Result<()> {
    let text = serde_json::to_vec(request)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?.to_be_bytes();
    let descriptors = [io::stdin().as_raw_fd(), io::stdout().as_raw_fd(), io::stderr().as_raw_fd()];
    let parts = [IoSlice::new(&length)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &parts,
        &[ControlMessage::ScmRights(&descriptors)],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    (&mut &*stream).write_all(&text)
}

/// Signals of the terminal go to the program instead of to us.
fn pass_signals(mut stream: UnixStream) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let broken = |e: io::Error| Failure::new(format!("signals cannot be passed on: {e}."), "Try again.");
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(broken)?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let mut listeners = Vec::new();
    {
        let _inside = threads.enter();
        for kind in kinds {
            listeners.push((kind, signal(kind).map_err(broken)?));
        }
    }
    std::thread::spawn(move || {
        threads.block_on(async move {
            let (tell, mut told) = tokio::sync::mpsc::channel(8);
            for (kind, mut listener) in listeners {
                let tell = tell.clone();
                tokio::spawn(async move {
                    while listener.recv().await.is_some() {
                        let _ = tell.send(kind.as_raw_value()).await;
                    }
                });
            }
            while let Some(number) = told.recv().await {
                if let Ok(text) = serde_json::to_string(&Notice::Signal(number)) {
                    let _ = writeln!(stream, "{text}");
                }
            }
        });
    });
    Ok(())
}
