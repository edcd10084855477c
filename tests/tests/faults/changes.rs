//! Changes of policy, and pods that go, while everybody calls.

use crate::{apps::http, signal};
use nix::sys::signal::Signal;
use postern_tests::{
    calls::{Calls, Held, Kind},
    ground::{Ground, NOTHING, PORT, PROCESS, SERVERS, documents},
    pods::{resident, sidecar},
    up::{Process, SOON, until},
};
use std::time::{Duration, Instant};

/// C11. The control plane gathers what is written within 50 ms, so that not each of the hundred edits a second is a push.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_that_changes_all_the_time_costs_no_call_and_lets_none_through() {
    let Some(ground) = Ground::start(1, "").await else { return };
    // The first allows two paths, the second one of them and another: what both allow is always allowed, and what neither does never.
    let policy = |path: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: more, namespace: shop}}\n\
             spec: {{action: ALLOW, rules: [{{to: [{{operation: {{paths: [{path}]}}}}]}}]}}\n"
        )
    };
    let calls = Calls::start(&ground.places);
    calls.pass(5).await;
    let pid = sidecar(&ground.mesh, SERVERS[0]);
    let version = || {
        let told = ground.mesh.curl(SERVERS[0], &["http://127.0.0.1:15000/config"]);
        told.body
    };
    let (first, mut memory) = (version(), Vec::new());
    let from = ground.mesh.run.here();
    let began = Instant::now();
    for edit in 0..500 {
        ground.mesh.place.write("more.yaml", &policy(if edit % 2 == 0 { "/a" } else { "/b" }));
        if edit % 50 == 0 {
            memory.push(resident(pid));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = began.elapsed();
    let applied =
        ground.mesh.run.since(from).iter().filter(|line| line.contains("the change is in force")).count();
    assert!(applied >= 5, "only {applied} changes were in force");
    calls.pass(5).await;
    assert_ne!(version(), first);
    let report = calls.stop().await;
    report.assert_whole(&ground.seen());
    // The first half warms allocators up; from then on it is flat.
    let (middle, end) = (memory[memory.len() / 2], resident(pid));
    assert!(end < middle + (4 << 20), "memory grows with the number of changes: {memory:?} {end}");
    assert!(took < Duration::from_secs(12), "{took:?}");
}

/// C10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_told_to_end_before_its_app_serves_the_apps_calls_until_it_has_ended() {
    // The app has a port that is known, so that its end can be seen.
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: client, namespace: shop}\n\
                   spec: {selector: {app: client}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    let Some(ground) = Ground::start(1, service).await else { return };
    let app = ground.places.client.listen(PORT);
    let calls = Calls::start(&ground.places);
    calls.pass(5).await;
    let pid = sidecar(&ground.mesh, "client");
    let process = Process::all().into_iter().map(|(_, p)| p).find(|p| p.pid == pid).unwrap();
    signal(pid, Signal::SIGTERM);
    calls.go_on(Duration::from_secs(3)).await;
    assert!(process.is_alive(), "as long as the app is there");
    let report = calls.stop().await;
    report.assert_whole(&ground.seen());
    drop(app);
    until("the sidecar has ended", Duration::from_secs(2), || !process.is_alive());
}

/// C09, as a Deployment does it: a new pod comes, then an old one goes. HTTP/1.1, HTTP/2 and unary gRPC lose nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_replaced_one_after_the_other_lose_no_request() {
    let Some(ground) = Ground::start_processes(&documents(&SERVERS, PROCESS, ""), 2).await else { return };
    let calls = Calls::with(&ground.places, &http().repeat(5));
    calls.pass(5).await;
    let change = |servers: &[&str]| {
        let from = ground.mesh.run.here();
        ground.mesh.place.write("mesh.yaml", &documents(servers, PROCESS, ""));
        ground.mesh.run.line(from, |line| line.contains("the change is in force"));
    };
    for servers in [
        &["server-0", "server-1", "server-2"][..],
        &["server-1", "server-2"],
        &["server-1", "server-2", "server-3"],
        &["server-2", "server-3"],
    ] {
        tokio::task::block_in_place(|| change(servers));
        calls.go_on(Duration::from_millis(500)).await;
    }
    let report = calls.stop().await;
    let lost = report.lost();
    assert!(lost.is_empty(), "{} of {}: {lost:#?}", lost.len(), report.calls.len());
    // Whoever calls a pod that is not there yet waits a second for its connection, and then calls another.
    report.assert_no_hang(Duration::from_millis(800));
    report.assert_safe(&ground.seen());
}

/// C09: what lasts. The app goes on, so that it is the sidecar's deadline, 5 s, that ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lasts_goes_on_until_the_deadline_of_the_sidecar_that_goes_and_a_stream_is_told_so() {
    const DEADLINE: Duration = Duration::from_secs(5);
    const KINDS: [Kind; 3] = [Kind::WebSocket, Kind::Stream, Kind::Bytes];
    let Some(ground) = Ground::start(2, "").await else { return };
    let calls = Calls::with(&ground.places, &http());
    calls.pass(2).await;
    let held = Held::open(&ground.places, 4).await;
    ground.mesh.place.write("mesh.yaml", &documents(&SERVERS[..1], NOTHING, ""));
    let is_ready = || {
        let ask = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:15021/healthz/ready"];
        ground.servers[1].run("curl", &ask, "") == "200"
    };
    tokio::task::block_in_place(|| until("the sidecar is told to end", SOON, || !is_ready()));
    let going = Instant::now();
    calls.go_on(DEADLINE - Duration::from_millis(500)).await;
    assert!(held.ended().is_empty(), "before the deadline: {:?}", held.ended());
    let all_kinds = || KINDS.iter().all(|kind| held.ended().iter().any(|end| end.kind == *kind));
    tokio::task::block_in_place(|| until("what it carried has ended", Duration::from_secs(2), all_kinds));
    calls.pass(3).await;
    let left = held.left();
    calls.pass(3).await;
    assert!(left > 0 && held.left() == left, "the other server's go on: {left} {:?}", held.ended());
    for end in held.ended() {
        assert!(end.last >= going + DEADLINE - Duration::from_millis(500), "{:?}", going.elapsed());
        match end.kind {
            Kind::Stream => {
                assert_eq!(end.how, Ok((503, "upstream connection terminated".into())), "UNAVAILABLE");
            }
            Kind::WebSocket | Kind::Bytes => assert!(end.how.is_err(), "{end:?}"),
        }
    }
    held.stop().await;
    calls.stop().await.assert_whole(&ground.seen());
}
