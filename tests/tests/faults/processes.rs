//! Processes that are killed.

use crate::signal;
use nix::sys::signal::Signal;
use postern_tests::{
    calls::{Calls, Report},
    ground::{Ground, SERVERS},
    pods::sidecar,
};
use std::time::{Duration, Instant};

/// What comes to the app's ports from the network has passed the sidecar by: redirect rules change the port of all that does not.
const PASSED_BY: &str =
    r#"chain direct { type filter hook input priority 0; iifname "eth0" tcp dport { 8080, 9000 } counter; }"#;
/// The pass mark of a sidecar's restart.
const RESTART: Duration = Duration::from_secs(1);

/// Kills the sidecar of a pod under load: what became of the calls once it is back.
async fn killed(ground: &Ground, pod: &str) -> Report {
    let calls = Calls::start(&ground.places);
    calls.pass(5).await;
    let (from, killed) = (ground.mesh.run.here(), Instant::now());
    signal(sidecar(&ground.mesh, pod), Signal::SIGKILL);
    ground.mesh.run.line(from, |line| line.starts_with(&format!("{pod}: sidecar ended (signal: 9")));
    calls.pass_from(killed + RESTART, 5).await;
    let report = calls.stop().await;
    report.assert_safe(&ground.seen());
    report.assert_recovered(killed, RESTART);
    report.assert_no_hang(RESTART);
    report
}

/// C07.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_servers_sidecar_that_is_killed_is_back_within_a_second_and_nothing_passes_it_by() {
    let Some(ground) = Ground::start(1, "").await else { return };
    ground.servers[0].rules(PASSED_BY);
    killed(&ground, SERVERS[0]).await;
    assert_eq!(ground.servers[0].counted(), 0, "packets that passed the sidecar by");
}

/// C08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_sidecar_that_is_killed_resets_its_calls_and_is_back_within_a_second() {
    let Some(ground) = Ground::start(1, "").await else { return };
    let report = killed(&ground, "client").await;
    let broken = |end: &str| {
        ["reset", "refused", "eof", "ConnectionReset", "IncompleteMessage", "Closed"]
            .iter()
            .any(|w| end.contains(w))
    };
    for call in report.lost() {
        assert!(
            call.end.as_ref().is_err_and(|end| broken(end)),
            "a lost call ends with its connection: {call:?}"
        );
    }
}
