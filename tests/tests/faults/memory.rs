//! C25: a sidecar with little memory, more readers than it can hold answers for, and more writers than it can hold requests for.

use crate::{apps::http, signal};
use nix::sys::{
    resource::{Resource, getrlimit, setrlimit},
    signal::Signal,
};
use postern_tests::{
    calls::{Calls, Report},
    faulty::Fault,
    ground::{Ground, SERVERS},
    pods::{parent, resident, sidecar},
    up::{SOON, skipped, until},
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A group of processes with a limit, of version 1 as the kernel of the table has it.
struct Limited(PathBuf);

impl Limited {
    fn new(bytes: u64) -> Option<Self> {
        let root = PathBuf::from("/sys/fs/cgroup/memory");
        if !root.join("memory.limit_in_bytes").exists() {
            skipped("there is no memory controller of version 1 here");
            return None;
        }
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = root.join(format!("postern-fault-{}-{number}", std::process::id()));
        if let Err(why) = fs::create_dir(&folder) {
            skipped(&format!("no control group may be made here: {why}"));
            return None;
        }
        fs::write(folder.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
        Some(Self(folder))
    }

    /// Where a process is.
    fn of(pid: i32) -> PathBuf {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let group = groups.lines().find_map(|line| line.split_once(":memory:")).unwrap().1.to_owned();
        PathBuf::from("/sys/fs/cgroup/memory").join(group.trim_start_matches('/'))
    }

    fn take(folder: &Path, pid: i32) {
        fs::write(folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn number(&self, file: &str) -> u64 {
        fs::read_to_string(self.0.join(file)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        // Empty once its last process has ended; what is left is an empty folder of the machine.
        let root = PathBuf::from("/sys/fs/cgroup/memory");
        for pid in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(root.join("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// The server's sidecar, started again in a group with little memory.
struct Starved {
    limited: Limited,
    pid: i32,
}

impl Starved {
    fn start(ground: &Ground) -> Option<Self> {
        let limited = Limited::new(64 << 20)?;
        // What starts it is in the group for a moment, and so the sidecar's next life is.
        let before = sidecar(&ground.mesh, SERVERS[0]);
        let starter = parent(before);
        let home = Limited::of(starter);
        Limited::take(&limited.0, starter);
        signal(before, Signal::SIGKILL);
        let after = || Self::now(ground).filter(|now| *now != before);
        until("the sidecar has started again", SOON, || after().is_some());
        Limited::take(&home, starter);
        let pid = after().unwrap();
        assert_eq!(Limited::of(pid), limited.0);
        Some(Self { limited, pid })
    }

    fn now(ground: &Ground) -> Option<i32> {
        let all = ground.mesh.processes();
        all.iter().find(|p| p.command.contains(" proxy --instance=server-0 ")).map(|p| p.pid)
    }

    /// The load is over: within three seconds all is well, no forbidden call was answered, and who was refused was not left waiting.
    async fn assert_outlived(&self, ground: &Ground, calls: Calls) {
        let (over, within) = (Instant::now(), Duration::from_secs(3));
        calls.go_on(within).await;
        calls.pass(3).await;
        let report = calls.stop().await;
        report.assert_safe(&ground.seen());
        self.assert_alive(ground);
        assert_refused_cleanly(&report, over, within);
    }

    /// It is the same process, and had something to hold.
    fn assert_alive(&self, ground: &Ground) {
        let most = self.limited.number("memory.max_usage_in_bytes");
        assert_eq!(Self::now(ground), Some(self.pid), "the sidecar lives; most of its memory: {most}");
        assert!(most > 32 << 20, "there was something to hold: {most}");
    }
}

/// All is well `within` after the load is over, and whoever called meanwhile was refused and not left waiting.
fn assert_refused_cleanly(report: &Report, over: Instant, within: Duration) {
    report.assert_recovered(over, within);
    for call in report.lost().iter().filter(|call| call.began < over) {
        let is_clean = match &call.end {
            Ok((status, _)) => *status == 503,
            Err(why) => !why.contains("no answer in time"),
        };
        assert!(is_clean || call.took() < Duration::from_secs(5), "refused, not left waiting: {call:?}");
    }
}

/// C25.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_with_64_mib_refuses_before_it_is_killed_for_memory() {
    let Some(ground) = Ground::start(1, "").await else { return };
    let Some(starved) = Starved::start(&ground) else { return };
    let calls = Calls::with(&ground.places, &http());
    calls.go_on(Duration::from_secs(1)).await;
    calls.pass(3).await;

    ground.apps[0].set(Fault::Large(1 << 20));
    let mut load = tokio::task::JoinSet::new();
    for number in 0..500 {
        let (client, service) = (ground.places.client.clone(), ground.places.service);
        load.spawn(async move {
            let Ok(mut stream) = client.connect(service).await else { return };
            let request = format!(
                "GET /ok?id=slow-{number} HTTP/1.1\r\nhost: server.shop\r\nx-id: slow-{number}\r\n\r\n"
            );
            let mut bytes = [0; 1024];
            if stream.write_all(request.as_bytes()).await.is_err() {
                return;
            }
            while stream.read(&mut bytes).await.is_ok_and(|length| length > 0) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
    let large = "x".repeat(60 * 1024);
    for lane in 0..20 {
        let (client, service, large) = (ground.places.client.clone(), ground.places.service, large.clone());
        load.spawn(async move {
            for number in 0..50 {
                let Ok(mut stream) = client.connect(service).await else { continue };
                let head = format!("GET /ok?id=large-{lane}-{number} HTTP/1.1\r\nhost: server.shop\r\nx-large: {large}\r\n\r\n");
                let mut bytes = [0; 1024];
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.read(&mut bytes).await;
            }
        });
    }
    calls.go_on(Duration::from_secs(6)).await;
    load.shutdown().await;
    ground.apps[0].set(Fault::None);
    starved.assert_outlived(&ground, calls).await;
}

/// C25, the other way round: the app does not read what is sent to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_to_an_app_that_does_not_read_wait_where_they_come_from_while_memory_is_full() {
    const LENGTH: usize = 1 << 20;
    let Some(ground) = Ground::start(1, "").await else { return };
    let Some(starved) = Starved::start(&ground) else { return };
    let calls = Calls::with(&ground.places, &http());
    calls.go_on(Duration::from_secs(1)).await;
    calls.pass(3).await;

    ground.apps[0].set(Fault::Unread);
    let mut load = tokio::task::JoinSet::new();
    for number in 0..500 {
        let (client, service) = (ground.places.client.clone(), ground.places.service);
        load.spawn(async move {
            let Ok(mut stream) = client.connect(service).await else { return };
            let head = format!(
                "POST /ok?id=upload-{number} HTTP/1.1\r\nhost: server.shop\r\nx-id: upload-{number}\r\n\
                 content-length: {LENGTH}\r\n\r\n"
            );
            if stream.write_all(head.as_bytes()).await.is_err()
                || stream.write_all(&[b'x'; LENGTH]).await.is_err()
            {
                return;
            }
            let _ = stream.read(&mut [0; 1024]).await;
        });
    }
    calls.go_on(Duration::from_secs(5)).await;
    while load.try_join_next().is_some() {}
    assert!(!load.is_empty(), "no upload waits");
    load.shutdown().await;
    ground.apps[0].release();
    starved.assert_outlived(&ground, calls).await;
}

/// Connections that have had their answer and stay open.
async fn open_idle(ground: &Ground, count: usize, idle: &mut Vec<TcpStream>) {
    let mut opening = tokio::task::JoinSet::new();
    for lane in 0..32 {
        let (client, service) = (ground.places.client.clone(), ground.places.service);
        opening.spawn(async move {
            let mut open = Vec::new();
            for number in 0..count / 32 {
                let mut stream = client.connect(service).await.unwrap();
                let request =
                    format!("GET /ok?id=idle-{lane}-{number} HTTP/1.1\r\nhost: server.shop\r\n\r\n");
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = [0; 12];
                stream.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200");
                open.push(stream);
            }
            open
        });
    }
    while let Some(open) = opening.join_next().await {
        idle.extend(open.unwrap());
    }
}

/// S-H1-20: 10,000 idle connections in 60 MiB, of which a sidecar needs 11 for itself. As many as there are descriptors for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_costs_less_than_five_kibibytes() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = usize::try_from(hard * 3 / 10).unwrap().min(6000);
    let Some(ground) = Ground::start(1, "").await else { return };
    let pid = sidecar(&ground.mesh, "client");
    let mut idle = Vec::new();
    // What grows with the first of them is there for all.
    open_idle(&ground, count / 6, &mut idle).await;
    let (few, before) = (idle.len(), resident(pid));
    open_idle(&ground, count - count / 6, &mut idle).await;
    let each = resident(pid).saturating_sub(before) / (idle.len() - few) as u64;
    assert!(each < 5 << 10, "{each} bytes each, with {} connections", idle.len());
}
