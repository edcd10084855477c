//! System calls that fail, and a log that nobody reads.

use crate::signal;
use nix::sys::signal::Signal;
use postern_tests::{
    calls::{Calls, LANES, Lane, ask},
    ground::{Ground, SERVERS},
    pods::{PodNetwork, parent, sidecar},
    up::{Run, SOON, find, skipped, until},
};
use std::{
    process::Command,
    time::{Duration, Instant},
};

/// C28. Who reads the logs of `postern up` is its own process, in which the control plane is too; both stand still. Times in which
/// nobody reads take turns with such in which somebody does: a machine that runs other tests lengthens the p99 of some of either; a log
/// that holds calls back lengthens that of all in which nobody reads, by more than the table's tenth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_access_log_that_nobody_reads_costs_no_call_and_no_line() {
    let Some(ground) = Ground::start(1, "").await else { return };
    let calls = Calls::with(&ground.places, &LANES.repeat(2));
    calls.pass(10).await;
    let reader = parent(sidecar(&ground.mesh, SERVERS[0]));
    let mut windows = Vec::new();
    for _ in 0..5 {
        let calm = Instant::now();
        calls.go_on(Duration::from_millis(800)).await;
        let from = ground.mesh.run.here();
        signal(reader, Signal::SIGSTOP);
        let stopped = Instant::now();
        calls.go_on(Duration::from_secs(1)).await;
        let went_on = Instant::now();
        signal(reader, Signal::SIGCONT);
        // The reader has caught up, which is work too, before the next calm time.
        calls.pass(2).await;
        windows.push((calm, stopped, went_on, from));
    }
    let report = calls.stop().await;
    report.assert_whole(&ground.seen());
    let of = |per_mille: u16| {
        let quantile = |from: Instant, to: Instant| report.quantile(per_mille.into(), from, to);
        let calm: Vec<_> = windows.iter().map(|w| quantile(w.0, w.1)).collect();
        let unread: Vec<_> = windows.iter().map(|w| quantile(w.1, w.2)).collect();
        (calm, unread)
    };
    let (calm, unread) = of(990);
    let (worst, best) = (*calm.iter().max().unwrap(), *unread.iter().min().unwrap());
    assert!(best <= worst * 11 / 10, "p99 of times in which nobody reads: {unread:?}, and before: {calm:?}");
    let (calm, unread) = of(500);
    let (calm, unread) = (calm.iter().sum::<Duration>() / 5, unread.iter().sum::<Duration>() / 5);
    assert!(
        unread < calm * 2 + Duration::from_millis(10),
        "median {calm:?} before, {unread:?} while nobody reads"
    );
    let requests = report.calls.iter().filter(|call| call.lane != Lane::Bytes).count();
    let lines = |from: usize| {
        let lines = ground.mesh.run.since(from).into_iter();
        let of_app = |line: &String| {
            line.starts_with("server-0 proxy | {")
                && line.contains(r#""http.response.status_code":200"#)
                && [r#""url.path":"/ok""#, r#""url.path":"/shop.Echo/Say""#].iter().any(|p| line.contains(p))
        };
        lines.filter(of_app).collect::<Vec<_>>()
    };
    until("each call has its line", SOON, || lines(0).len() >= requests);
    assert_eq!(lines(0).len(), requests, "exactly one");
    let held: Vec<usize> =
        windows.iter().map(|(.., from)| lines(*from).iter().map(String::len).sum()).collect();
    assert!(held[4] > 64 * 1024, "the pipe was full: {held:?} bytes");
}

/// Makes system calls of a process fail for a while.
fn inject(pid: i32, fault: &str) -> Run {
    let mut command = Command::new(find("strace").unwrap());
    let call = fault.split(':').next().unwrap();
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        &format!("trace={call}"),
        "-e",
        &format!("inject={fault}"),
    ]);
    command.args(["-p", &pid.to_string()]);
    Run::start(command)
}

/// C35.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_calls_that_fail_end_calls_and_neither_the_sidecar_nor_its_admin_page() {
    if find("strace").is_none() {
        return skipped("strace is not installed (make setup)");
    }
    let Some(ground) = Ground::start(1, "").await else { return };
    let calls = Calls::start(&ground.places);
    calls.pass(5).await;
    let pid = sidecar(&ground.mesh, SERVERS[0]);
    let began = Instant::now();
    for fault in [
        "accept4:error=EMFILE:when=1+2",
        "accept4:error=ENFILE:when=1+2",
        "accept4:error=ENOBUFS:when=1+2",
        "accept4:error=ENOMEM:when=1+2",
        "accept4:error=ECONNABORTED:when=1+2",
        "accept4:error=EINTR:when=1+2",
        "connect:error=EADDRNOTAVAIL:when=1+3",
        "recvfrom:error=ENOMEM:when=1+7",
        "recvfrom:error=EINTR:when=1+7",
        "sendto:error=ENOBUFS:when=1+7",
        "writev:error=ENOBUFS:when=1+7",
        "openat:error=EMFILE:when=1+2",
        "getsockopt:error=ENOPROTOOPT:when=1+3",
    ] {
        let mut strace = inject(pid, fault);
        calls.go_on(Duration::from_millis(500)).await;
        assert!(is_alive(&ground.servers[0]), "the admin page answers: {fault}");
        strace.signal(Signal::SIGINT);
        strace.end(SOON);
        assert_eq!(sidecar(&ground.mesh, SERVERS[0]), pid, "{fault}: {:?}", ground.mesh.run.since(0).last());
    }
    let over = Instant::now();
    calls.pass_from(over + Duration::from_secs(1), 5).await;
    let report = calls.stop().await;
    report.assert_safe(&ground.seen());
    report.assert_recovered(over, Duration::from_secs(1));
    report.assert_no_hang(Duration::from_secs(5));
    assert!(report.lost().iter().any(|call| call.began > began), "something was injected");
    let said = ground.mesh.run.since(0);
    assert!(!said.iter().any(|line| line.contains("panicked")), "{said:?}");
    let complaints = said.iter().filter(|line| line.contains("cannot accept")).count();
    assert!(complaints <= 8, "at most a line in ten seconds for each listener: {complaints}");
    let (status, _) = ask(&ground.places.client, ground.places.service, "GET", "/ok", "after").await.unwrap();
    assert_eq!(status, 200);
}

/// Whether the admin page answers within two seconds; one connection may be what the fault hits, not three in a row.
fn is_alive(pod: &PodNetwork) -> bool {
    let curl = find("curl").unwrap();
    (0..3).any(|_| {
        let asked = pod.within(|| {
            Command::new(&curl).args(["-sS", "--max-time", "2", "http://127.0.0.1:15000/"]).output().unwrap()
        });
        asked.status.success()
    })
}
