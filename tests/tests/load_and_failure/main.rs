//! What happens when a service fails: apps that fail on command and count what they saw. The oracle of duplicates is an id in
//! every request, which no app may see twice where the method is not idempotent.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod limits;

use postern_tests::{
    Mesh, Request, client,
    faulty::{Fault, Faulty},
    ports,
    scenario::{mode, namespace},
};
use serde_json::json;
use std::{collections::HashSet, time::Duration};
use tokio::net::TcpStream;

/// A caller `front`, and a service `back` of so many endpoints outside of injection, whose places faulty apps take.
fn documents(endpoints: usize, rule: &str) -> String {
    let pod = |namespace: &str, name: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {app}}}}}\n\
             spec: {{containers: [{{name: app, command: [none], ports: [{{name: http, containerPort: 8080}}]}}]}}\n"
        )
    };
    let mut all = namespace("shop", true) + &namespace("legacy", false) + &pod("shop", "front", "front");
    for number in 0..endpoints {
        all += &pod("legacy", &format!("back-{number}"), "back");
    }
    all += "---\napiVersion: v1\nkind: Service\nmetadata: {name: back, namespace: legacy}\n\
            spec: {selector: {app: back}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    if !rule.is_empty() {
        all += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: back, namespace: legacy}}\n\
             spec: {{host: back, trafficPolicy: {{{rule}}}}}\n"
        );
    }
    all
}

/// The mesh with a faulty app behind each endpoint.
async fn start(endpoints: usize, rule: &str) -> (Mesh, Vec<Faulty>) {
    start_with(endpoints, &documents(endpoints, rule)).await
}

async fn start_with(endpoints: usize, documents: &str) -> (Mesh, Vec<Faulty>) {
    let mut mesh = Mesh::start(documents).await;
    let mut apps = Vec::new();
    for number in 0..endpoints {
        let app = Faulty::start(ports::real(8080)).await;
        mesh.move_pod(&format!("back-{number}"), app.address.ip());
        apps.push(app);
    }
    mesh.apply(documents).await;
    (mesh, apps)
}

fn call(mesh: &Mesh, method: &str, id: usize) -> Request {
    mesh.request("front", "back").method(method).header("x-id", &id.to_string())
}

/// No id may have been seen twice, by all apps together.
fn assert_no_duplicates(apps: &[Faulty]) {
    let ids: Vec<String> = apps.iter().flat_map(Faulty::ids).collect();
    let distinct: HashSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), ids.len(), "a request was processed twice: {ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_cannot_be_reached_costs_no_request_of_any_method() {
    let (mesh, apps) = start(2, "").await;
    apps[0].set(Fault::Refuse);
    for id in 0..60 {
        let method = ["GET", "POST", "PUT"][id % 3];
        let answer = call(&mesh, method, id).body("x").send().await.unwrap();
        assert_eq!(answer.status, 200, "{method} {id} {answer:?} {:?}", mesh.access_log("front").lines());
    }
    assert_eq!(apps[0].ids().len(), 0);
    assert_eq!(apps[1].ids().len(), 60);
    assert_no_duplicates(&apps);
    // Where nobody else is, the answer is our own.
    apps[1].set(Fault::Refuse);
    let answer = call(&mesh, "GET", 99).send().await.unwrap();
    assert_eq!((answer.status, answer.json()["code"].as_str()), (503, Some("connect-failure")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_connection_is_tried_again_for_get_and_never_for_post() {
    // By chance, since what failed is left alone for a while otherwise.
    let (mesh, apps) = start(2, "loadBalancer: {simple: RANDOM}").await;
    apps[0].set(Fault::ResetAfterRequest);
    let (mut posts_lost, mut gets) = (0, 0);
    for id in 0..80 {
        let method = if id % 2 == 0 { "POST" } else { "GET" };
        let answer = call(&mesh, method, id).send().await.unwrap();
        match (method, answer.status) {
            ("GET", status) => {
                assert_eq!(status, 200, "GET {id}");
                gets += 1;
            }
            (_, 200) => {}
            (_, status) => {
                assert_eq!(
                    (status, answer.json()["code"].as_str()),
                    (503, Some("upstream-reset")),
                    "POST {id}"
                );
                posts_lost += 1;
            }
        }
    }
    assert_eq!(gets, 40);
    assert!(posts_lost > 0, "the faulty endpoint must have had some POST");
    let posts: Vec<String> = apps.iter().flat_map(Faulty::posts).collect();
    assert_eq!(posts.len(), posts.iter().collect::<HashSet<_>>().len(), "a POST was sent twice: {posts:?}");
    assert_eq!(posts.len(), 40, "every POST was sent once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_http2_says_was_not_processed_goes_elsewhere_and_what_it_may_have_processed_does_not() {
    // By chance, since what failed is left alone for a while otherwise.
    let (mesh, apps) = start(2, "loadBalancer: {simple: RANDOM}").await;
    for fault in [Fault::RefuseStream, Fault::GoAwayUnprocessed] {
        apps[0].set(fault);
        for id in 0..20 {
            let answer = call(&mesh, "POST", id).http2().send().await.unwrap();
            assert_eq!(answer.status, 200, "{fault:?} {id}");
        }
        assert!(apps[0].refused() > 0, "{fault:?}: the faulty endpoint must have been asked");
        assert_no_duplicates(&apps);
        apps.iter().for_each(Faulty::forget);
    }
    // The twin: the same stream, but the GOAWAY covers it.
    apps[0].set(Fault::GoAwayProcessed);
    let mut lost = 0;
    for id in 0..20 {
        let answer = call(&mesh, "POST", id).http2().send().await.unwrap();
        lost += usize::from(answer.status == 503);
    }
    assert!(lost > 0, "the faulty endpoint must have had some POST");
    assert_no_duplicates(&apps);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_end_with_their_budget_and_are_counted() {
    let (mesh, apps) = start(2, "").await;
    apps.iter().for_each(|app| app.set(Fault::ResetAfterRequest));
    let requests = 300;
    for id in 0..requests {
        assert_eq!(call(&mesh, "GET", id).send().await.unwrap().status, 503);
    }
    let attempts: usize = apps.iter().map(|app| app.ids().len()).sum();
    // 100 in reserve, and one in five.
    assert!(attempts > requests && attempts <= requests + 100 + requests / 5, "{attempts} of {requests}");
    let metrics = metrics(&mesh).await;
    assert!(metrics.contains("result=\"over_budget\"") && metrics.contains("result=\"sent\""), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_answers_errors_in_a_row_is_left_out_and_comes_back() {
    let rule = "outlierDetection: {consecutive5xxErrors: 3, baseEjectionTime: 1500ms, maxEjectionPercent: 50}, \
                loadBalancer: {simple: ROUND_ROBIN}";
    let (mut mesh, apps) = start(2, rule).await;
    apps[0].set(Fault::Status(500));
    let mut failed = 0;
    for id in 0..40 {
        failed += usize::from(call(&mesh, "GET", id).send().await.unwrap().status == 500);
    }
    assert_eq!(failed, 3, "three in a row, and then no more");
    assert_eq!(apps[0].ids().len(), 3);
    let page = admin(&mesh, "/ejections").await;
    assert_eq!(page["ejections"][0]["reason"], "5xx-errors", "{page}");
    assert_eq!(page["ejections"][0]["endpoint"], apps[0].address.to_string(), "{page}");
    assert!(metrics(&mesh).await.contains("postern_endpoint_ejections_total"));
    // A push of documents forgets nothing.
    mesh.apply(&(documents(2, rule) + &namespace("other", false))).await;
    assert_eq!(admin(&mesh, "/ejections").await["ejections"].as_array().unwrap().len(), 1);
    apps[0].set(Fault::None);
    postern_tests::mesh::within("the endpoint is back", async {
        while apps[0].ids().len() == 3 {
            call(&mesh, "GET", 0).send().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;

    // The twin: without the rule nobody is left out.
    let (mesh, apps) = start(2, "loadBalancer: {simple: ROUND_ROBIN}").await;
    apps[0].set(Fault::Status(500));
    for id in 0..40 {
        call(&mesh, "GET", id).send().await.unwrap();
    }
    assert_eq!(apps[0].ids().len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_under_way_is_refused_at_once_and_says_so() {
    for (rule, http2, limit, at_once) in [
        ("connectionPool: {http: {http2MaxRequests: 2}}", false, "http2MaxRequests", 2),
        ("connectionPool: {http: {http2MaxRequests: 2}}", true, "http2MaxRequests", 2),
        (
            "connectionPool: {tcp: {maxConnections: 1}, http: {http1MaxPendingRequests: 1}}",
            false,
            "http1MaxPendingRequests",
            1,
        ),
    ] {
        let (mesh, apps) = start(1, rule).await;
        apps[0].set(Fault::Hold);
        let one = |id| {
            let request = call(&mesh, "GET", id);
            tokio::spawn(if http2 { request.http2() } else { request }.send())
        };
        // Of three at once two may be held (or one, and one waits): the first that ends is the refused one.
        let (refused, _, held) = futures_util::future::select_all([one(0), one(1), one(2)]).await;
        let refused = refused.unwrap().unwrap();
        assert_eq!(refused.status, 503, "{rule}");
        assert_eq!(refused.header("x-envoy-overloaded"), Some("true"), "{rule}");
        assert_eq!(refused.json()["code"], "circuit-open");
        let line = mesh.access_log("front").next_with(&[("postern.flags", json!("UO"))]).await;
        assert!(line["postern.reason"].as_str().unwrap().contains(limit), "{line}");
        assert!(metrics(&mesh).await.contains(&format!("limit=\"{limit}\"")));
        postern_tests::mesh::within("the app holds what it may", async {
            while apps[0].ids().len() < at_once {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(apps[0].ids().len(), at_once, "{rule}");
        apps[0].release();
        for held in held {
            assert_eq!(held.await.unwrap().unwrap().status, 200, "{rule}");
        }
        assert_eq!(apps[0].ids().len(), 2, "{rule}: what was refused must not arrive");
        assert_eq!(
            call(&mesh, "GET", 3).send().await.unwrap().status,
            200,
            "{rule}: the circuit closes again"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_carries_no_more_requests_than_its_rule_says() {
    for (rule, connections) in
        [("connectionPool: {http: {maxRequestsPerConnection: 2}}", 5), ("loadBalancer: {simple: RANDOM}", 1)]
    {
        let (mesh, apps) = start(1, rule).await;
        for id in 0..10 {
            assert_eq!(call(&mesh, "GET", id).send().await.unwrap().status, 200);
        }
        assert_eq!(apps[0].connections(), connections, "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_first_byte_of_an_answer_nothing_is_tried_again() {
    let (mesh, apps) = start(2, "").await;
    apps.iter().for_each(|app| app.set(Fault::ResetInAnswer));
    for id in 0..10 {
        let broken = call(&mesh, "GET", id).send().await;
        assert!(broken.is_err(), "half an answer is no answer: {broken:?}");
    }
    assert_no_duplicates(&apps);
    assert_eq!(apps.iter().map(|app| app.ids().len()).sum::<usize>(), 10);
    mesh.access_log("front").next_with(&[("postern.flags", json!("UC"))]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_was_closed_meanwhile_costs_no_post() {
    let (mesh, apps) = start(1, "").await;
    apps[0].set(Fault::CloseAfterAnswer);
    for id in 0..200 {
        assert_eq!(call(&mesh, "POST", id).body("x").send().await.unwrap().status, 200, "POST {id}");
        // From here on the end of the connection is in the sidecar's socket, whether or not it has looked.
        postern_tests::mesh::within("the app has closed", async {
            while apps[0].closed() <= id {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_no_duplicates(&apps);
    assert_eq!(apps[0].ids().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_go_elsewhere_when_nobody_is_there_and_are_limited_and_ended_like_requests() {
    let tcp = |rule: &str| documents(2, rule).replace("name: http, port: 80", "name: tcp, port: 80");
    let rule = "connectionPool: {tcp: {maxConnections: 1, idleTimeout: 400ms}}";
    let (mut mesh, apps) = start(2, rule).await;
    mesh.apply(&tcp(rule)).await;
    apps[0].set(Fault::Refuse);
    let (entry, host) = mesh.entry("front", "back");
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\nx-id: 1\r\n\r\n");
    let ask = async |stream: &mut TcpStream| {
        client::exchange_until(stream, request.as_bytes(), b"ok").await.map(|answer| answer.len())
    };
    for _ in 0..20 {
        let mut stream = TcpStream::connect(entry).await.unwrap();
        assert!(ask(&mut stream).await.unwrap() > 0);
        drop(stream);
        // The next one has its place only when this one is gone.
        postern_tests::mesh::within("it has ended", async {
            while open_connections(&mesh).await > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
    let mut first = TcpStream::connect(entry).await.unwrap();
    assert!(ask(&mut first).await.unwrap() > 0);
    let seen = apps[1].ids().len();
    // Refused so soon that not even the connecting may be over.
    if let Ok(mut second) = TcpStream::connect(entry).await {
        assert!(ask(&mut second).await.map_or(true, |length| length == 0), "one connection at a time");
    }
    let line = mesh.access_log("front").next_with(&[("postern.flags", json!("UO"))]).await;
    assert!(line["postern.reason"].as_str().unwrap().contains("maxConnections"), "{line}");
    assert_eq!(apps[1].ids().len(), seen, "what was refused must not arrive");
    // Silence ends the first one, and not before its time.
    let began = std::time::Instant::now();
    assert!(client::exchange_until(&mut first, b"", b"more").await.map_or(true, |bytes| bytes.is_empty()));
    assert!(began.elapsed() > Duration::from_millis(200), "{:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_travels_as_http2_where_the_rule_says_upgrade() {
    for (rule, version) in [
        ("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}", "HTTP/2.0"),
        ("loadBalancer: {simple: RANDOM}", "HTTP/1.1"),
    ] {
        let (mesh, apps) = start(1, rule).await;
        assert_eq!(call(&mesh, "POST", 1).body("x").send().await.unwrap().status, 200);
        assert_eq!(apps[0].versions(), [version], "{rule}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_gets_less_than_a_fast_one() {
    let (mesh, apps) = start(2, "").await;
    apps[0].set(Fault::Slow(Duration::from_millis(80)));
    for id in 0..60 {
        assert_eq!(call(&mesh, "GET", id).send().await.unwrap().status, 200);
    }
    let (slow, fast) = (apps[0].ids().len(), apps[1].ids().len());
    assert!(slow * 5 < fast, "slow {slow}, fast {fast}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_disable_speaks_plaintext_and_istio_mutual_calls_nobody_without_a_sidecar() {
    let strict = |rule: &str| {
        postern_tests::scenario::payments(
            &(mode("payments", "STRICT")
                + &format!(
                    "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
                     metadata: {{name: api, namespace: checkout}}\n\
                     spec: {{host: payments-api.payments.svc.cluster.local, trafficPolicy: {{tls: {{mode: {rule}}}}}}}\n"
                )),
        )
    };
    let mut mesh = Mesh::start(&strict("DISABLE")).await;
    let refused = mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap();
    assert_eq!(refused.status, 503, "a STRICT workload takes no plaintext");
    assert_eq!(mesh.app("payments-api").connections(), 0);
    mesh.apply(&strict("ISTIO_MUTUAL")).await;
    mesh.call_until("checkout-api", "payments-api", "GET", "/", 200).await;

    let (mesh, apps) = start(1, "tls: {mode: ISTIO_MUTUAL}").await;
    let refused = call(&mesh, "GET", 0).send().await.unwrap();
    assert_eq!((refused.status, refused.json()["code"].as_str()), (503, Some("no-endpoint")));
    assert_eq!(apps[0].connections(), 0);
}

async fn admin(mesh: &Mesh, path: &str) -> serde_json::Value {
    let admin = mesh.workload("front").admin();
    Request::new(admin, admin.to_string()).path(path).send().await.unwrap().json()
}

async fn open_connections(mesh: &Mesh) -> u64 {
    let metrics = metrics(mesh).await;
    let line = metrics.lines().find(|line| line.starts_with("postern_connections_open{reporter=\"source\"}"));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

async fn metrics(mesh: &Mesh) -> String {
    let metrics = mesh.workload("front").metrics();
    let page = Request::new(metrics, metrics.to_string()).path("/metrics").send().await.unwrap();
    String::from_utf8(page.body.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_timeout_ends_what_takes_longer_and_nothing_else() {
    let with = |timeout: &str| {
        documents(1, "connectionPool: {http: {maxRetries: 3}}").replace(
            "metadata: {name: back, namespace: legacy}\nspec: {host",
            &format!(
                "metadata: {{name: back, namespace: legacy, annotations: {{postern.dev/request-timeout: {timeout}}}}}\nspec: {{host"
            ),
        )
    };
    let (mut mesh, apps) = start_with(1, &with("300ms")).await;
    apps[0].set(Fault::Slow(Duration::from_millis(1)));
    assert_eq!(call(&mesh, "GET", 0).send().await.unwrap().status, 200, "who is in time");
    // Nobody answers, and nothing is tried twice.
    apps[0].set(Fault::Hold);
    let began = std::time::Instant::now();
    for (id, method) in [(1, "GET"), (2, "POST")] {
        let answer = call(&mesh, method, id).body("x").send().await.unwrap();
        assert_eq!((answer.status, answer.json()["code"].as_str()), (504, Some("deadline-exceeded")));
    }
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
    let request = call(&mesh, "POST", 3).header("content-type", "application/grpc").header("te", "trailers");
    let answer = request.http2().send().await.unwrap();
    assert_eq!((answer.status, answer.header("grpc-status")), (200, Some("4")));
    assert_no_duplicates(&apps);
    let log = mesh.access_log("front");
    log.at_least(4).await;
    let told: Vec<_> = log
        .lines()
        .iter()
        .map(|line| (line["http.response.status_code"].clone(), line["postern.flags"].clone()))
        .collect();
    let late = |status: u16| (json!(status), json!("UT"));
    assert_eq!(told[1..], [late(504), late(504), late(200)], "{told:?}");
    // The twin: the same app with more time.
    mesh.apply(&with("20s")).await;
    apps[0].set(Fault::Slow(Duration::from_millis(600)));
    assert_eq!(call(&mesh, "GET", 4).send().await.unwrap().status, 200);
}
