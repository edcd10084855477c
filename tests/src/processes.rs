//! Processes as the host's /proc shows them: whose child, in which network, still alive or not.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    time::Duration,
};

/// A process, by number and start, so that a number used again is somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    started: String,
    pub command: String,
    /// Its network, when we may know.
    pub network: Option<PathBuf>,
}

impl Process {
    fn read(pid: i32) -> Option<(i32, Self)> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold spaces.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        // A zombie has ended; it waits for its parent to ask.
        if fields[0] == "Z" {
            return None;
        }
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let network = std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        Some((fields[1].parse().ok()?, Self { pid, started: fields[19].to_owned(), command, network }))
    }

    pub fn all() -> Vec<(i32, Self)> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|e| Self::read(e.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// A process and all that descend from it.
    pub fn below(pid: i32) -> Vec<Self> {
        let all = Self::all();
        let mut family = vec![pid];
        let mut found = Vec::new();
        while let Some(parent) = family.pop() {
            found.extend(all.iter().filter(|(_, p)| p.pid == parent).map(|(_, p)| p.clone()));
            family.extend(all.iter().filter(|(of, _)| *of == parent).map(|(_, p)| p.pid));
        }
        found
    }

    pub fn is_alive(&self) -> bool {
        Self::read(self.pid).is_some_and(|(_, now)| now.started == self.started)
    }

    pub fn kill(&self) {
        kill(Pid::from_raw(self.pid), Signal::SIGKILL).unwrap();
    }
}

/// Whether a sidecar's probe `what`, `ready` or `live`, is answered well.
pub fn probe(probes: SocketAddr, what: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&probes, Duration::from_millis(200)) else {
        return false;
    };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let request = format!("GET /healthz/{what} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(request.as_bytes());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 200")
}
