//! Who is at the other end of a unix socket: the user by SO_PEERCRED, and a hold on the process, so that a later one with
//! its number is not taken for it.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};
use std::{
    fmt, fs,
    os::fd::{AsFd, OwnedFd},
};

/// The process that opened a connection on our unix socket.
pub struct UnixPeer {
    uid: u32,
    pid: i32,
    process: Process,
}

/// What tells a process from a later one with the same number.
enum Process {
    /// Linux 6.5 and later: the kernel held it from the moment of the connect.
    PidFd(OwnedFd),
    /// Before: when it started, in clock ticks since boot, from `/proc/<pid>/stat`.
    Started(u64),
}

/// Why the process at the other end is not known. `Display` may be told to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnixPeerError {
    /// The kernel says nothing about the user.
    #[error("the kernel does not say who connected to the unix socket ({0}): use a join token instead")]
    NoCredentials(String),
    /// The process cannot be held: an old kernel, and no `/proc`, or one in which it is not seen.
    #[error(
        "process {pid} cannot be told from a later one with its number ({cause}): the control plane needs Linux 6.5, or a \
         /proc that shows the process; or use a join token"
    )]
    NoHold {
        /// As the kernel numbers it for us; 0 when it lives in a PID namespace that we do not see.
        pid: i32,
        /// What was tried.
        cause: String,
    },
    /// It has ended; whoever holds the connection now is somebody else.
    #[error("process {0} that opened the connection has ended: connect again from the process that asks")]
    Ended(i32),
}

impl UnixPeer {
    /// The process that connected `stream`, which must be the accepted end of a unix socket.
    ///
    /// # Errors
    /// When the process is not known for certain, or has ended already.
    pub fn of(stream: &impl AsFd) -> Result<Self, UnixPeerError> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)
            .map_err(|error| UnixPeerError::NoCredentials(error.to_string()))?;
        let (uid, pid) = (credentials.uid(), credentials.pid());
        let process = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(pidfd) => Process::PidFd(pidfd),
            // The option is not known to this kernel.
            Err(Errno::ENOPROTOOPT) => Process::Started(started_as(pid, uid)?),
            Err(Errno::ESRCH | Errno::EINVAL) => return Err(UnixPeerError::Ended(pid)),
            Err(error) => return Err(UnixPeerError::NoHold { pid, cause: format!("SO_PEERPIDFD: {error}") }),
        };
        let peer = Self { uid, pid, process };
        peer.still_runs()?;
        Ok(peer)
    }

    /// The effective user of the process when it connected, as this machine numbers users.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// Whether the process that connected still runs: only then is what comes through the connection its own.
    ///
    /// # Errors
    /// [`UnixPeerError::Ended`].
    pub fn still_runs(&self) -> Result<(), UnixPeerError> {
        let runs = match &self.process {
            Process::PidFd(pidfd) => {
                // A pidfd becomes readable when its process ends.
                let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
                poll(&mut ended, PollTimeout::ZERO) == Ok(0)
            }
            Process::Started(then) => started(self.pid).is_ok_and(|now| now == *then),
        };
        if runs { Ok(()) } else { Err(UnixPeerError::Ended(self.pid)) }
    }
}

/// For logs: user and process.
impl fmt::Display for UnixPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix socket, uid {}, pid {}", self.uid, self.pid)
    }
}

impl fmt::Debug for UnixPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnixPeer({self})")
    }
}

/// When `pid` started, if it is a process of `uid` before and after that was read: between the connect and this moment
/// another process may have got the number.
fn started_as(pid: i32, uid: u32) -> Result<u64, UnixPeerError> {
    let no_hold = |cause: String| UnixPeerError::NoHold { pid, cause };
    let first = started(pid).map_err(no_hold)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .map_err(|error| no_hold(format!("/proc/{pid}/status: {error}")))?;
    let again = started(pid).map_err(no_hold)?;
    if first == again && effective_uid(&status) == Some(uid) {
        Ok(first)
    } else {
        Err(UnixPeerError::Ended(pid))
    }
}

fn started(pid: i32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    start_time(&stat).ok_or_else(|| format!("{path} says that it has ended, or cannot be read"))
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)); `None` when the process has ended. The name in field 2 may hold
/// spaces and parentheses, so that fields are counted from the last one.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // The state was field 3.
    fields.nth(22 - 4)?.parse().ok()
}

/// The second number of the line `Uid:` (proc_pid_status(5)).
fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::{
        os::unix::net::{UnixListener, UnixStream},
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    /// A process that connects and lives until it is killed, and the accepted end.
    fn connected_child() -> Option<(Child, UnixStream, tempfile::TempDir)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let program = "import socket,sys,time; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); time.sleep(600)";
        let child = Command::new("python3").args(["-c", program]).arg(&path).stdin(Stdio::null()).spawn();
        let Ok(child) = child else {
            eprintln!("SKIPPED: python3, the other process of this test, is missing on this machine");
            return None;
        };
        let (stream, _) = listener.accept().unwrap();
        Some((child, stream, folder))
    }

    fn ends(peer: &UnixPeer) -> bool {
        let deadline = Instant::now() + Duration::from_secs(10);
        while peer.still_runs().is_ok() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        peer.still_runs().is_err()
    }

    #[test]
    fn a_process_is_known_while_it_runs_and_not_after_it_ended() {
        let Some((mut child, stream, _folder)) = connected_child() else { return };
        let peer = UnixPeer::of(&stream).unwrap();
        assert_eq!(peer.uid(), nix::unistd::geteuid().as_raw());
        assert_eq!(peer.pid, i32::try_from(child.id()).unwrap());
        peer.still_runs().unwrap();
        child.kill().unwrap();
        // Even before anybody waits for it: a zombie asks for nothing.
        assert!(ends(&peer));
        child.wait().unwrap();
        assert_eq!(peer.still_runs(), Err(UnixPeerError::Ended(peer.pid)));
        assert!(UnixPeer::of(&stream).is_err(), "a connection that it left behind is nobody's");
    }

    #[test]
    fn without_a_pidfd_the_start_time_tells_a_process_from_a_later_one() {
        let Some((mut child, _stream, _folder)) = connected_child() else { return };
        let (pid, uid) = (i32::try_from(child.id()).unwrap(), nix::unistd::geteuid().as_raw());
        let then = started_as(pid, uid).unwrap();
        let same = UnixPeer { uid, pid, process: Process::Started(then) };
        let later = UnixPeer { uid, pid, process: Process::Started(then - 1) };
        same.still_runs().unwrap();
        assert_eq!(later.still_runs(), Err(UnixPeerError::Ended(pid)));
        assert_eq!(
            started_as(pid, uid + 1),
            Err(UnixPeerError::Ended(pid)),
            "another user has the number now"
        );
        child.kill().unwrap();
        assert!(ends(&same));
        child.wait().unwrap();
        let gone = started_as(pid, uid).unwrap_err();
        assert!(gone.to_string().contains("needs Linux 6.5"), "{gone}");
    }

    #[test]
    fn the_fields_of_proc_are_read_whatever_the_program_is_called() {
        let stat = |name: &str, state: &str| {
            format!(
                "7 ({name}) {state} 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1 18446744073709551615"
            )
        };
        for name in ["sh", "a b", "x) R 1 2 (y", ""] {
            assert_eq!(start_time(&stat(name, "S")), Some(4711), "{name}");
            assert_eq!(start_time(&stat(name, "Z")), None, "{name}");
        }
        for broken in ["", "7 (sh)", "7 (sh) S 1", "no parenthesis"] {
            assert_eq!(start_time(broken), None, "{broken}");
        }
        assert_eq!(effective_uid("Name:\tsh\nUid:\t1000\t1001\t1002\t1003\n"), Some(1001));
        assert_eq!(effective_uid("Name:\tsh\n"), None);
    }
}
