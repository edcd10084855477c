//! The socket through which `postern exec` comes in: takes a command and three descriptors, runs it in the pod, tells the exit code.
use super::{kernel, mesh::Mesh};
use crate::failure::Failure;
use nix::{
    sys::{
        signal::{Signal, killpg},
        socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sockopt},
    },
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, IoSliceMut, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt,
            net::{UnixListener, UnixStream},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

/// The longest request.
const REQUEST_BYTES: usize = 1024 * 1024;
/// Who has connected must say what for in this time.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Programs that may run through the socket at a time.
const MOST: usize = 64;
/// From losing the person to killing the program.
const GRACE: Duration = Duration::from_secs(2);
/// What the kernel shows for a user who is not mapped into our user namespace.
const UNMAPPED: u32 = 65534;

/// What `postern exec` asks for; its three standard descriptors come with the first bytes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// As a person names a pod.
    pub pod: String,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables for it (TERM and the like).
    pub variables: BTreeMap<String, String>,
}

/// What it says while the program runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Notice {
    /// The person sent this signal.
    Signal(i32),
}

/// How it ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Reply {
    /// The program's exit code, 128 + signal when it was killed.
    Exit(i32),
    /// It was not started.
    Refused {
        /// Why.
        cause: String,
        /// What to do.
        remedy: String,
    },
}

/// The open socket; dropping it removes the file.
pub struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens for `postern exec`, on threads of its own.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(path: &Path, mesh: Mesh, user_namespace: bool) -> Result<Socket, Failure> {
    let broken = |e: io::Error| {
        Failure::new(
            format!("the control socket `{}` cannot be made: {e}.", path.display()),
            "Free the place.",
        )
    };
    let listener = UnixListener::bind(path).map_err(broken)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(broken)?;
    let busy = Arc::new(AtomicUsize::new(0));
    let accepting = move || {
        for stream in listener.incoming().flatten() {
            let (mesh, busy) = (mesh.clone(), busy.clone());
            if busy.fetch_add(1, Ordering::AcqRel) >= MOST {
                busy.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let counted = busy.clone();
            let serving = std::thread::Builder::new().name("exec".to_owned()).spawn(move || {
                serve(stream, &mesh, user_namespace);
                counted.fetch_sub(1, Ordering::AcqRel);
            });
            if serving.is_err() {
                busy.fetch_sub(1, Ordering::AcqRel);
            }
        }
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(accepting).map_err(broken)?;
    Ok(Socket(path.to_owned()))
}

fn serve(mut stream: UnixStream, mesh: &Mesh, user_namespace: bool) {
    if !is_owner(&stream, user_namespace) {
        return;
    }
    let reply = match receive(&mut stream) {
        Ok((request, descriptors)) => run(&stream, mesh, request, descriptors)
            .unwrap_or_else(|f| Reply::Refused { cause: f.cause, remedy: f.remedy }),
        Err(e) => Reply::Refused {
            cause: format!("the request was not understood: {e}."),
            remedy: "Use `postern exec`.".into(),
        },
    };
    if let Ok(text) = serde_json::to_string(&reply) {
        let _ = writeln!(stream, "{text}");
    }
}

/// The same user, or root. The file's mode has let nobody else in; this is the second lock.
fn is_owner(stream: &UnixStream, user_namespace: bool) -> bool {
    let Ok(peer) = getsockopt(stream, sockopt::PeerCredentials) else { return false };
    let own = nix::unistd::geteuid().as_raw();
    // Root outside of our user namespace has no number in it.
    peer.uid() == 0 || peer.uid() == own || (user_namespace && peer.uid() == UNMAPPED)
}

fn receive(stream: &mut UnixStream) -> io::Result<(Request, Vec<OwnedFd>)> {
    stream.set_read_timeout(Some(REQUEST_DEADLINE))?;
    let mut length = [0_u8; 4];
    let mut descriptors = Vec::new();
    {
        let mut space = nix::cmsg_space!([std::os::fd::RawFd; 3]);
        let mut parts = [IoSliceMut::new(&mut length)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                descriptors.extend(received.into_iter().map(kernel::received_descriptor));
            }
        }
        if message.bytes != 4 {
            return Err(io::Error::other("it was cut off"));
        }
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > REQUEST_BYTES {
        return Err(io::Error::other("it is too long"));
    }
    let mut text = vec![0; length];
    stream.read_exact(&mut text)?;
    stream.set_read_timeout(None)?;
    Ok((serde_json::from_slice(&text)?, descriptors))
}

fn run(
    stream: &UnixStream,
    mesh: &Mesh,
    request: Request,
    descriptors: Vec<OwnedFd>,
) -> Result<Reply, Failure> {
    let Ok([input, output, error]) = <[OwnedFd; 3]>::try_from(descriptors) else {
        return Err(Failure::new(
            "standard input, output and error did not come along.",
            "Use `postern exec`.",
        ));
    };
    let broken = |e: io::Error| Failure::new(format!("the program cannot be run: {e}."), "Try again.");
    let mut command = mesh.command_in(&request.pod, request.argv, request.variables)?;
    command.stdin(Stdio::from(input)).stdout(Stdio::from(output)).stderr(Stdio::from(error));
    let mut child = command.spawn().map_err(broken)?;
    // The command holds the descriptors too, and with them the other end of somebody's pipe.
    drop(command);
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
    let over = Arc::new(AtomicBool::new(false));
    let listening = stream.try_clone().map_err(broken)?;
    let ended = over.clone();
    std::thread::spawn(move || pass_signals(listening, group, &ended));
    let status = child.wait().map_err(broken)?;
    over.store(true, Ordering::Release);
    Ok(Reply::Exit(status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1)))
}

/// Hands the person's signals on; ends the program when the person is gone.
fn pass_signals(stream: UnixStream, group: Pid, over: &AtomicBool) {
    for line in BufReader::new(stream.take(64 * 1024)).lines() {
        let Ok(line) = line else { break };
        if over.load(Ordering::Acquire) {
            return;
        }
        let Ok(Notice::Signal(number)) = serde_json::from_str(&line) else { continue };
        if let Ok(signal) = Signal::try_from(number) {
            let _ = killpg(group, signal);
        }
    }
    if !over.load(Ordering::Acquire) {
        let _ = killpg(group, Signal::SIGHUP);
        std::thread::sleep(GRACE);
        if !over.load(Ordering::Acquire) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}
