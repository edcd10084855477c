//! A sidecar on its way down: not ready at once, inbound for a while, outbound as long as the app may need it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use postern_proxy::Sidecar;
use postern_tests::{
    App, Mesh, Request,
    apps::Speech,
    client,
    mesh::{Settings, within},
    processes::Process,
    scenario::{mode, namespace, payments},
    standalone::{self, Standalone},
};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinHandle};

/// The mesh, with something outside that every sidecar can call.
async fn start(drain_deadline: Duration) -> (Mesh, App) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let outside = vec![("outside".into(), listener.local_addr().unwrap())];
    let app = App::default();
    app.serve(listener, Speech::Http);
    let settings = Settings { outside, drain_deadline, ..Settings::default() };
    (Mesh::start_with(&payments(&mode("payments", "STRICT")), settings).await, app)
}

fn drain(mesh: &mut Mesh, pod: &str) -> JoinHandle<()> {
    let sidecar: Sidecar = mesh.workloads.get_mut(pod).unwrap().sidecar.take().unwrap();
    tokio::spawn(sidecar.drain())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inbound_goes_on_for_a_while_and_outbound_until_the_deadline() {
    let deadline = Duration::from_secs(4);
    let (mut mesh, outside) = start(deadline).await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    let probes = mesh.workload("payments-api").sidecar.as_ref().unwrap().addresses().probes.unwrap();
    let ready = || Request::new(probes, "x").path("/healthz/ready").send();
    assert_eq!(ready().await.unwrap().status, 200);
    let outbound = mesh.request("payments-api", "outside");

    let (began, draining) = (Instant::now(), drain(&mut mesh, "payments-api"));
    within("it is not ready", async {
        while ready().await.unwrap().status != 503 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    // Callers do not know yet: nothing of theirs is lost, on new connections either.
    for http2 in [false, true, false, true] {
        let request = mesh.request("checkout-api", "payments-api").method("POST");
        let answer = if http2 { request.http2() } else { request }.send().await.unwrap();
        assert_eq!(answer.status, 200, "http2 {http2}");
    }
    assert!(began.elapsed() < deadline / 2, "too slow to tell");
    within("inbound is closed", async {
        while mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status != 503 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(began.elapsed() >= deadline / 2, "inbound closed after {:?}", began.elapsed());
    assert_eq!(outbound.clone().send().await.unwrap().status, 200, "the app may still call");
    assert_eq!(outside.received().len(), 1);
    within("the drain ends", draining).await.unwrap();
    let took = began.elapsed();
    assert!(took >= deadline && took < deadline + Duration::from_secs(3), "{took:?}");
    assert!(outbound.send().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_app_has_ended_nobody_waits_for_the_deadline() {
    let (mut mesh, _) = start(Duration::from_secs(60)).await;
    let app = mesh.app("payments-api").clone();
    let draining = drain(&mut mesh, "payments-api");
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    assert!(!draining.is_finished());
    app.stop_listening().await;
    within("the drain ends", draining).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_request_under_way_is_finished_and_its_answer_closes_the_connection() {
    let (mesh, _) = start(Duration::from_secs(4)).await;
    let (entry, host) = mesh.entry("checkout-api", "payments-api");
    let request = format!("POST / HTTP/1.1\r\nhost: {host}\r\ncontent-length: 4\r\n\r\n");
    let mut stream = tokio::net::TcpStream::connect(entry).await.unwrap();
    // The twin: before the drain the connection stays.
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = client::exchange_until(&mut stream, b"body", b"body").await.unwrap();
    assert!(!String::from_utf8_lossy(&answer).to_lowercase().contains("connection: close"));
    // Half of a request: the connection is busy when the drain begins.
    stream.write_all(request.as_bytes()).await.unwrap();
    let received = || mesh.app("payments-api").received().len();
    assert_eq!(received(), 1);
    let admin = mesh.workload("checkout-api").admin();
    let drained = Request::new(admin, admin.to_string()).method("POST").path("/drain").send().await.unwrap();
    assert_eq!(drained.status, 202);
    let answer = client::exchange_until(&mut stream, b"body", b"body").await.unwrap();
    let answer = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(answer.starts_with("http/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert_eq!(received(), 2);
    assert!(client::exchange_until(&mut stream, b"", b"more").await.unwrap().is_empty(), "closed");
}

/// Both drain, and wait for apps that go on; the one that is told twice does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_sigterm_ends_a_sidecar_that_waits_for_its_app_at_once() {
    let sidecars = vec!["--drain-deadline=60".into()];
    let mesh = Standalone::start(standalone::Settings { sidecars, ..standalone::Settings::default() }).await;
    let call = |mesh: &Standalone| Request::new(mesh.entry("client"), "server.shop").path("/ok").send();
    let [server, client] = ["server", "client"].map(|name| {
        let pid = mesh.pid(name).cast_signed();
        Process::all().into_iter().map(|(_, process)| process).find(|process| process.pid == pid).unwrap()
    });
    let terminate = |process: &Process| kill(Pid::from_raw(process.pid), Signal::SIGTERM).unwrap();
    let began = Instant::now();
    for (name, process) in [("server", &server), ("client", &client)] {
        terminate(process);
        standalone::until("it drains", || !mesh.is_ready(name)).await;
    }
    assert_eq!(call(&mesh).await.unwrap().status, 200, "both serve while they wait: {}", mesh.told());
    assert!(server.is_alive() && client.is_alive(), "{}", mesh.told());
    let served = mesh.app.received().len();

    terminate(&server);
    standalone::until("it ends", || !server.is_alive()).await;
    assert!(began.elapsed() < Duration::from_secs(30), "not at once: {:?}", began.elapsed());
    assert!(mesh.said("server").contains("second signal"), "{}", mesh.said("server"));
    assert!(client.is_alive(), "it was told once, and waits: {}", mesh.said("client"));
    assert_eq!(call(&mesh).await.unwrap().status, 503, "nobody is there any more");
    assert_eq!(mesh.app.received().len(), served);
}

/// `front` calls `back`, which has two replicas; the second may be taken out of the service.
fn replicas(selects_second: bool) -> String {
    let pod = |name: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {app}}}}}\n\
             spec: {{serviceAccountName: {name}, containers: [{{name: app, command: [none], \
             ports: [{{name: http, containerPort: 8080}}]}}]}}\n"
        )
    };
    [
        namespace("shop", true),
        pod("front", "front"),
        pod("back-0", "back"),
        pod("back-1", if selects_second { "back" } else { "gone" }),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: back, namespace: shop}\n\
         spec: {selector: {app: back}, ports: [{name: http, port: 80, targetPort: 8080}]}\n"
            .into(),
        mode("shop", "STRICT"),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_goes_under_load_loses_no_request_not_even_a_post() {
    let settings = Settings { drain_deadline: Duration::from_secs(3), ..Settings::default() };
    let mut mesh = Mesh::start_with(&replicas(true), settings).await;
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<JoinHandle<usize>> = (0..6)
        .map(|number| {
            let (request, done) = (mesh.request("front", "back").method("POST").body("x"), done.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !done.load(Ordering::Relaxed) {
                    let request = request.clone().header("x-id", &format!("{number}-{calls}"));
                    let answer =
                        if number % 2 == 0 { request.http2() } else { request }.send().await.unwrap();
                    assert_eq!(answer.status, 200, "{answer:?}");
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    within("both replicas are called", async {
        while ["back-0", "back-1"].iter().any(|pod| mesh.app(pod).received().len() < 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // As Kubernetes does it: the signal first, the endpoint goes a moment later, then the app ends.
    let app = mesh.app("back-1").clone();
    let draining = drain(&mut mesh, "back-1");
    mesh.apply(&replicas(false)).await;
    let until = mesh.app("back-0").received().len() + 100;
    within("the other replica carries on", async {
        while mesh.app("back-0").received().len() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    app.stop_listening().await;
    within("the drain ends", draining).await.unwrap();
    done.store(true, Ordering::Relaxed);
    let mut calls = 0;
    for caller in callers {
        calls += caller.await.expect("no request may be lost");
    }
    let apps = ["back-0", "back-1"].map(|pod| mesh.app(pod).received());
    let ids: HashSet<String> = apps.iter().flatten().map(|seen| seen.header("x-id")[0].to_owned()).collect();
    assert_eq!((ids.len(), apps.iter().flatten().count()), (calls, calls), "each POST exactly once");
}
