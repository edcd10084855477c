//! A sidecar process that runs out of what it needs: it goes on for those who are in, refuses what is new, burns nothing, and
//! comes back (reference: reliability C24).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    load::FORBIDDEN,
    standalone::{Settings, Standalone, until},
    up,
};
use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

/// Asks on a connection that stays open: the status.
fn ask(stream: &mut TcpStream) -> Option<u16> {
    ask_with(stream, "", Duration::from_secs(2))
}

/// The same with further lines of a head, and so long a wait for each byte of the answer.
fn ask_with(stream: &mut TcpStream, lines: &str, patience: Duration) -> Option<u16> {
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(format!("GET /ok HTTP/1.1\r\nhost: server\r\n{lines}\r\n").as_bytes()).ok()?;
    let mut read = Vec::new();
    while !read.windows(4).any(|four| four == b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        read.push(byte[0]);
    }
    let head = String::from_utf8(read).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    stream.read_exact(&mut vec![0; length]).ok()?;
    head.get(9..12)?.parse().ok()
}

fn once(address: SocketAddr) -> Option<u16> {
    ask(&mut TcpStream::connect(address).ok()?)
}

/// Forbidden calls, by somebody whom no rule allows and in plaintext, until it is `over`: what they were answered.
fn forbidden_calls(mesh: &Standalone, over: &AtomicBool) -> Vec<Option<u16>> {
    // Short, since most of them wait in the queue of a sidecar that is full.
    let (patience, line) = (Duration::from_millis(200), format!("{FORBIDDEN}: 1\r\n"));
    let mut answers = Vec::new();
    while !over.load(Ordering::Relaxed) {
        for address in [mesh.entry("intruder"), mesh.inbound("server")] {
            answers.push(
                TcpStream::connect(address)
                    .ok()
                    .and_then(|mut stream| ask_with(&mut stream, &line, patience)),
            );
        }
    }
    answers
}

fn is_alive(admin: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect(admin) else { return false };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    answer.starts_with("HTTP/1.1 ")
}

/// Processor time of a process so far.
fn processor(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ is 100 on every Linux that there is.
    Duration::from_millis(ticks * 10)
}

/// Says so when it goes.
struct Over<'f>(&'f AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_open_files_and_two_hundred_clients_leave_admin_and_old_connections_alive() {
    if up::find("prlimit").is_none() {
        return up::skipped("prlimit is not installed");
    }
    let mesh = Standalone::start(Settings { descriptors: Some(64), ..Settings::default() }).await;
    let mut kept = TcpStream::connect(mesh.entry("client")).unwrap();
    assert_eq!(ask(&mut kept), Some(200));
    // The intruder's sidecar keeps the connection of this one: its calls are judged however full the server is, and do not wait.
    assert_eq!(once(mesh.entry("intruder")), Some(403));

    let flood: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(mesh.inbound("server")).unwrap()).collect();
    // A second to take in what it takes, then two that are measured: nothing but waiting for time to pass can measure a load.
    let pid = mesh.pid("server");
    let (mut before, mut began) = (processor(pid), Instant::now());
    let over = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        let intruders = scope.spawn(|| forbidden_calls(&mesh, &over));
        // Ends them however this ends.
        let ending = Over(&over);
        for round in 0..30 {
            assert_eq!(ask(&mut kept), Some(200), "who is in is served, round {round}");
            assert!(is_alive(mesh.admin("server")), "admin answers, round {round}");
            std::thread::sleep(Duration::from_millis(100));
            if round == 9 {
                (before, began) = (processor(pid), Instant::now());
            }
        }
        drop(ending);
        intruders.join().unwrap()
    });
    let judged = answers.iter().filter(|answer| **answer == Some(403)).count();
    assert!(judged >= 4 && answers.iter().all(|answer| matches!(answer, None | Some(403))), "{answers:?}");
    let (used, passed) = (processor(pid) - before, began.elapsed());
    assert!(used < passed / 10, "{used:?} of processor time in {passed:?}");
    let said = fs::read_to_string(mesh.path("server.err")).unwrap();
    let complaints = said.lines().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints <= 4, "at most one line a second: {complaints}\n{said}");
    assert!(!said.contains("panicked"), "{said}");
    let received = mesh.app.received();
    assert!(received.iter().all(|received| !received.headers.contains_key(FORBIDDEN)), "{received:?}");

    drop(flood);
    let began = Instant::now();
    // The intruder's sidecar opens a connection of its own, and policy answers on it.
    until("a new connection is served", || once(mesh.entry("intruder")) == Some(403)).await;
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Nor is it answered in plaintext, now that it need not wait.
    assert_eq!(once(mesh.inbound("server")), None);
}
