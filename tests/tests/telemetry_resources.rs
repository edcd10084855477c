//! Istio's Telemetry in a whole mesh: the access log off and filtered with denials kept, sampling by namespace as a collector sees
//! it, metrics left out; at run time, on open connections, and never by a document that is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_config::{
    Severity,
    documents::{self, SourceFile},
};
use postern_proxy::bootstrap::otel::{self, Protocol, Signal};
use postern_tests::{
    Mesh, Request,
    client::exchange_until,
    mesh::{Settings, within},
    otlp::Receiver,
    ports,
    scenario::{mode, payments, policy},
    standalone::{self, Standalone, until},
};
use serde_json::Value;
use std::time::Duration;
use tokio::net::TcpStream;

const ROOT: &str = "istio-system";

/// The next record of the called workload that a collector gets.
async fn record(receiver: &mut Receiver) -> Value {
    let is_it = |log: &Value| log["resource"]["service.name"] == "payments-api";
    within("a record", receiver.next("log", is_it)).await
}

/// A Telemetry for a whole namespace; `spec` in YAML flow style.
fn telemetry(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\n\
         metadata: {{name: default, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// Nobody may delete.
fn scene(telemetries: &[String]) -> String {
    let rules = policy("no-delete", "action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]");
    payments(&[mode("payments", "STRICT"), rules, telemetries.concat()].concat())
}

/// Calls, in order; afterwards one that is denied in any case.
async fn calls(mesh: &Mesh, calls: &[(&str, u16)]) {
    for (path, status) in calls {
        let answer = mesh.call("checkout-api", "payments-api", "GET", path).await.unwrap();
        assert_eq!(answer.status, *status, "{path}");
    }
    let denied = mesh.call("checkout-api", "payments-api", "DELETE", "/denied").await.unwrap();
    assert_eq!(denied.status, 403);
}

/// The paths of all lines of a workload, once one with this path is there: a line is written within 100 ms, so that what was to come
/// before has come.
async fn lines(mesh: &Mesh, workload: &str, last: &str) -> Vec<String> {
    let log = mesh.access_log(workload);
    log.next_with(&[("url.path", last.into())]).await;
    let path = |line: &Value| line["url.path"].as_str().map(str::to_owned);
    log.lines().iter().filter_map(path).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_without_a_log_has_lines_of_its_denials_alone() {
    let off = telemetry("payments", "accessLogging: [{disabled: true}]");
    let mut mesh = Mesh::start(&scene(&[off])).await;
    calls(&mesh, &[("/one", 200), ("/two", 200)]).await;
    // Refused before any decision: plaintext to a STRICT port.
    let plain = mesh.workload("payments-api").inbound(8080);
    assert!(Request::new(plain, "payments-api").send().await.is_err());
    let log = mesh.access_log("payments-api");
    log.next_matching("of the plaintext", |line| line["postern.flags"] == "NR").await;
    // And on again, without a restart.
    mesh.apply(&scene(&[])).await;
    calls(&mesh, &[("/three", 200)]).await;
    let paths = lines(&mesh, "payments-api", "/three").await;
    assert!(paths.contains(&"/denied".to_owned()), "{paths:?}");
    assert!(!paths.iter().any(|path| path == "/one" || path == "/two"), "{paths:?}");
    assert_eq!(mesh.app("payments-api").received().len(), 3);
    // The twin: the namespace of the caller has said nothing.
    let paths = lines(&mesh, "checkout-api", "/three").await;
    assert!(["/one", "/two", "/denied"].iter().all(|path| paths.iter().any(|p| p == path)), "{paths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_of_one_side_keeps_failures_and_denials() {
    let failures = "accessLogging: [{match: {mode: SERVER}, filter: {expression: 'response.code >= 400'}}]";
    let mesh = Mesh::start(&scene(&[telemetry(ROOT, failures)])).await;
    calls(&mesh, &[("/fine", 200), ("/status/404", 404), ("/fine", 200), ("/status/503", 503)]).await;
    let mut paths = lines(&mesh, "payments-api", "/denied").await;
    paths.sort();
    assert_eq!(paths, ["/denied", "/status/404", "/status/503"]);
    let paths = lines(&mesh, "checkout-api", "/denied").await;
    assert_eq!(paths.iter().filter(|path| *path == "/fine").count(), 2, "{paths:?}");
    let page = scraped(&mesh, "payments-api").await;
    assert!(page.contains("postern_access_log_dropped_total 0\n"), "{page}");
    assert!(page.contains("postern_access_log_filter_errors_total 0\n"), "{page}");
    // What is enforced can be seen.
    let admin = mesh.workload("payments-api").admin();
    let config = Request::new(admin, admin.to_string()).path("/config").send().await.unwrap();
    let config = String::from_utf8_lossy(&config.body).into_owned();
    assert!(config.contains("response.code >= 400"), "{config}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_a_declared_provider_holds_for_the_sidecars_log() {
    let mesh_config = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    \
        extensionProviders: [{name: lines, envoyFileAccessLog: {path: /dev/stdout}}]\n";
    let failures =
        "accessLogging: [{providers: [{name: lines}], filter: {expression: 'response.code >= 400'}}]";
    let mesh = Mesh::start(&scene(&[mesh_config.to_owned(), telemetry("payments", failures)])).await;
    calls(&mesh, &[("/fine", 200), ("/status/404", 404)]).await;
    let mut paths = lines(&mesh, "payments-api", "/denied").await;
    paths.sort();
    assert_eq!(paths, ["/denied", "/status/404"]);
    // The twin: the namespace of the caller has said nothing.
    let paths = lines(&mesh, "checkout-api", "/denied").await;
    assert!(paths.iter().any(|path| path == "/fine"), "{paths:?}");
}

async fn scraped(mesh: &Mesh, workload: &str) -> String {
    let metrics = mesh.workload(workload).metrics();
    let page = Request::new(metrics, metrics.to_string()).path("/metrics").send().await.unwrap();
    String::from_utf8_lossy(&page.body).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_holds_for_the_next_request_of_an_open_connection() {
    let filter = |path: &str| {
        let spec = format!("accessLogging: [{{filter: {{expression: 'request.path == \"{path}\"'}}}}]");
        telemetry("payments", &spec)
    };
    let mut mesh = Mesh::start(&scene(&[filter("/a")])).await;
    let (address, host) = mesh.entry("checkout-api", "payments-api");
    let mut stream = TcpStream::connect(address).await.unwrap();
    for path in ["/a", "/b"] {
        mesh.apply(&scene(&[filter(path)])).await;
        for asked in ["/a", "/b"] {
            let request = format!("GET {asked}?after={path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let answer = exchange_until(&mut stream, request.as_bytes(), b"\r\n\r\n").await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
        }
    }
    assert_eq!(mesh.app("payments-api").connections(), 1, "one connection, all the way");
    mesh.apply(&scene(&[])).await;
    calls(&mesh, &[("/last", 200)]).await;
    let mut paths = lines(&mesh, "payments-api", "/last").await;
    paths.retain(|path| path == "/a" || path == "/b");
    paths.sort();
    assert_eq!(paths, ["/a", "/b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_gets_the_records_that_are_wanted_and_no_header_that_a_filter_looks_at() {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let logs = Some(receiver.exporter(Signal::Logs, Protocol::Http));
    let log_batch = otel::Batch { delay: Duration::from_millis(20), ..otel::Batch::default() };
    let otel = otel::Settings { logs, log_batch, ..otel::Settings::default() };
    let blue = "accessLogging: [{filter: {expression: \"request.headers['x-tenant'] == 'blue'\"}}]";
    let documents = scene(&[telemetry("payments", blue)]);
    let mesh = Mesh::start_with(&documents, Settings { otel, ..Settings::default() }).await;
    for (method, path, tenant) in
        [("GET", "/red", "red"), ("GET", "/blue", "blue"), ("DELETE", "/denied", "red")]
    {
        let call = mesh.request("checkout-api", "payments-api").method(method).path(path);
        call.header("x-tenant", tenant).send().await.unwrap();
    }
    let mut paths = vec![];
    for _ in 0..2 {
        let record = record(&mut receiver).await;
        assert!(!record.to_string().contains("tenant"), "{record}");
        paths.push(record["attributes"]["url.path"].as_str().unwrap().to_owned());
    }
    paths.sort();
    assert_eq!(paths, ["/blue", "/denied"]);
    let line = mesh.access_log("payments-api").next_with(&[("url.path", "/blue".into())]).await;
    assert!(!line.to_string().contains("tenant"), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_are_sampled_by_the_namespace_in_which_they_begin() {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let batch = otel::Batch { delay: Duration::from_millis(20), ..otel::Batch::default() };
    let exporter = Some(receiver.exporter(Signal::Traces, Protocol::Http));
    let otel = otel::Settings { exporter, batch, ..otel::Settings::default() };
    let reports = "---\napiVersion: v1\nkind: Service\nmetadata: {name: reports, namespace: checkout}\n\
        spec: {selector: {app: reports}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
    let documents = |checkout: u32, payments: u32| {
        let rate = |percent| format!("tracing: [{{randomSamplingPercentage: {percent}}}]");
        let tagged = format!(
            "tracing: [{{randomSamplingPercentage: {payments}, customTags: {{team: {{literal: {{value: money}}}}, \
             tenant: {{header: {{name: x-tenant}}}}}}}}]"
        );
        scene(&[telemetry(ROOT, &rate(checkout)), telemetry("payments", &tagged), reports.to_owned()])
    };
    let mut mesh = Mesh::start_with(&documents(0, 100), Settings { otel, ..Settings::default() }).await;
    // Of checkout nothing, of payments all.
    for (from, to) in [("checkout-api", "payments-api"), ("payments-api", "reports")] {
        for _ in 0..5 {
            let answer = mesh.request(from, to).header("x-tenant", "blue").send().await.unwrap();
            assert_eq!(answer.status, 200);
        }
    }
    let sampled =
        |mesh: &Mesh, app: &str| mesh.app(app).last().header("traceparent").join(",").ends_with("-01");
    assert!(!sampled(&mesh, "payments-api"), "a trace that is not recorded goes on as one");
    assert!(sampled(&mesh, "reports"));
    let mut begun = 0;
    for _ in 0..10 {
        let span = within("ten spans", receiver.next("span", |_| true)).await;
        let service = span["resource"]["service.name"].as_str().unwrap();
        assert!(["payments-api", "reports"].contains(&service), "{span}");
        if span["parent"] == "" {
            begun += 1;
            assert_eq!(service, "payments-api", "{span}");
            assert_eq!(span["attributes"]["team"], "money", "{span}");
            assert_eq!(span["attributes"]["tenant"], "blue", "{span}");
        } else {
            assert!(span["attributes"].get("team").is_none(), "{span}");
        }
    }
    assert_eq!(begun, 5);
    // A caller that has decided is followed.
    let call = mesh.request("checkout-api", "payments-api");
    let call = call.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(call.send().await.unwrap().status, 200);
    for _ in 0..2 {
        let span = within("both spans", receiver.next("span", |_| true)).await;
        assert_eq!(span["trace"], "0af7651916cd43dd8448eb211c80319c", "{span}");
    }
    // At run time, the other way round.
    mesh.apply(&documents(100, 0)).await;
    for (from, to) in [("payments-api", "reports"), ("checkout-api", "payments-api")] {
        assert_eq!(mesh.request(from, to).send().await.unwrap().status, 200);
    }
    for _ in 0..2 {
        let span = within("both spans", receiver.next("span", |_| true)).await;
        let service = span["resource"]["service.name"].as_str().unwrap();
        assert!(["checkout-api", "payments-api"].contains(&service), "{span}");
    }
    assert!(!sampled(&mesh, "reports") && sampled(&mesh, "payments-api"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_telemetry_is_refused_and_the_last_good_one_stays() {
    let off = telemetry("payments", "accessLogging: [{disabled: true}]");
    let mesh = Mesh::start(&scene(std::slice::from_ref(&off))).await;
    // The control plane applies no documents with an error.
    let read = |text: &str| {
        let file = SourceFile { name: "t.yaml".into(), text: ports::substitute(text) };
        documents::read(&[file])
    };
    let wrong = telemetry("payments", "accessLogging: [{filter: {expression: 'response.cod == 1'}}]");
    let (_, problems) = read(&scene(&[wrong]));
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    assert_eq!(errors.map(|problem| problem.code).collect::<Vec<_>>(), ["PST0320"]);
    // A sidecar is the second line of defence.
    let (mut documents, _) = read(&scene(&[off]));
    let logging = &mut documents.telemetries[0].value.access_logging[0];
    (logging.disabled, logging.filter) = (false, Some("response.cod == 1".into()));
    mesh.apply_read(documents);
    within("the sidecar has refused", async {
        loop {
            let all = mesh.control.status();
            if let Some(status) = all.iter().find(|s| s.instance == "payments-api" && s.nacks > 0) {
                assert!(status.last_nacks[0].reason.contains("response.code"), "{status:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    calls(&mesh, &[("/one", 200)]).await;
    mesh.access_log("payments-api").next_with(&[("url.path", "/denied".into())]).await;
    calls(&mesh, &[]).await;
    mesh.access_log("payments-api").at_least(2).await;
    let paths = lines(&mesh, "payments-api", "/denied").await;
    assert!(paths.iter().all(|path| path == "/denied"), "{paths:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metric_that_is_switched_off_is_in_no_scrape_of_its_namespace() {
    let off = "metrics: [{overrides: [{match: {metric: REQUEST_SIZE}, disabled: true}]}]";
    let mut mesh = Mesh::start(&scene(&[telemetry("payments", off)])).await;
    calls(&mesh, &[]).await;
    for (workload, is_there) in [("payments-api", false), ("checkout-api", true)] {
        mesh.access_log(workload).next_with(&[("url.path", "/denied".into())]).await;
        let page = scraped(&mesh, workload).await;
        assert_eq!(page.contains("istio_request_bytes_count{"), is_there, "{page}");
        assert!(page.contains("istio_response_bytes_count{"), "{page}");
    }
    mesh.apply(&scene(&[])).await;
    assert!(scraped(&mesh, "payments-api").await.contains("istio_request_bytes_count{"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_restarts_while_the_control_plane_is_away_does_as_the_telemetry_says_that_it_kept() {
    let off = telemetry("shop", "accessLogging: [{disabled: true}]");
    // The twin: without the resource the call is logged.
    for (documents, logged) in [(off, ["POST"].as_slice()), (String::new(), &["GET", "POST"])] {
        let settings = standalone::Settings { documents, ..standalone::Settings::default() };
        let mut mesh = Standalone::start(settings).await;
        // The last one is denied, and a denial is logged in any case: what comes before it has come.
        let calls = async |mesh: &Standalone| {
            for (method, status) in [("GET", 200), ("POST", 403)] {
                let call = Request::new(mesh.entry("client"), "server.shop").method(method).path("/ok");
                assert_eq!(call.send().await.unwrap().status, status, "{method}");
            }
        };
        calls(&mesh).await;
        let log = mesh.path("server.log");
        let text = || std::fs::read_to_string(&log).unwrap_or_default();
        until("the denial is logged", || text().contains(r#""POST""#)).await;
        let keeps = |name: &str, file: &str| {
            std::fs::read(mesh.sidecar_state(name).join(file)).is_ok_and(|bytes| !bytes.is_empty())
        };
        until("what has to survive is written down", || {
            keeps("server", "policy.json") && keeps("client", "destinations.bin")
        })
        .await;
        mesh.kill_control_plane();
        for name in ["server", "client"] {
            mesh.kill_sidecar(name);
        }
        let before = text().len();
        for name in ["server", "client"] {
            mesh.start_sidecar(name).await;
        }
        calls(&mesh).await;
        until("the denial is logged", || text()[before..].contains(r#""POST""#)).await;
        let lines =
            text()[before..].lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>();
        let methods: Vec<&str> =
            lines.iter().filter_map(|line| line["http.request.method"].as_str()).collect();
        assert_eq!(methods, logged, "{lines:#?}");
        let received = mesh.app.received();
        let received: Vec<_> = received.iter().map(|one| one.method.as_str()).collect();
        assert_eq!(received, ["GET", "GET"], "the app has nothing of what is denied");
    }
}
