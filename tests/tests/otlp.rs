//! Metrics and the access log, as a receiver of the official protocol definitions reads them: the numbers of a scrape, the facts of
//! the log's lines; and what becomes of calls when the receiver is slow, full, lying or gone. Spans are in `traces.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::bootstrap::otel::{self, Batch, Exporter, Periodic, Protocol, Signal};
use postern_tests::{
    Mesh, Request,
    mesh::{Settings, within},
    otlp::Receiver,
    scenario::{mode, payments},
    tree,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
/// Nobody may delete.
const NO_DELETE: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: no-delete, namespace: payments}\n\
    spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}\n";
const CUMULATIVE: u64 = 2;

async fn mesh(metrics: Option<Exporter>, logs: Option<Exporter>) -> Mesh {
    let resource = vec![("deployment.environment.name".to_owned(), "test".to_owned())];
    let metrics = metrics.map(|exporter| Periodic { exporter, interval: Duration::from_millis(200) });
    let log_batch = Batch { delay: Duration::from_millis(20), ..Batch::default() };
    let otel = otel::Settings { metrics, logs, log_batch, resource, ..otel::Settings::default() };
    let documents = [payments(&mode("payments", "STRICT")), NO_DELETE.to_owned()].concat();
    Mesh::start_with(&documents, Settings { otel, ..Settings::default() }).await
}

async fn scrape(metrics: SocketAddr) -> String {
    let page = Request::new(metrics, metrics.to_string()).path("/metrics").send().await.unwrap();
    String::from_utf8(page.body.to_vec()).unwrap()
}

/// A counter without labels of the caller's sidecar.
async fn counted(mesh: &Mesh, name: &str) -> u64 {
    let page = scrape(mesh.workload("checkout-api").metrics()).await;
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
}

type Series = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// What a page says of metrics that begin so.
fn of_page(page: &str, begin: &str) -> Series {
    let samples = page.lines().filter(|line| line.starts_with(begin));
    samples
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
            let labels = labels.map(|label| {
                let (name, value) = label.split_once("=\"").unwrap();
                let value = value.trim_end_matches('"');
                // Bounds are equal as numbers, not as texts.
                let value =
                    if name == "le" { value.parse::<f64>().unwrap().to_string() } else { value.to_owned() };
                (name.to_owned(), value)
            });
            ((name.to_owned(), labels.collect()), value.parse().unwrap())
        })
        .collect()
}

/// The same of an export, as Prometheus would write it.
fn of_export(export: &Value, begin: &str) -> Series {
    let mut all = Series::new();
    for metric in export["metrics"].as_array().unwrap() {
        let name = metric["name"].as_str().unwrap();
        if !name.starts_with(begin) {
            continue;
        }
        for point in metric["points"].as_array().unwrap() {
            let labels: BTreeMap<String, String> = serde_json::from_value(point["labels"].clone()).unwrap();
            let named = |end: &str| (format!("{name}{end}"), labels.clone());
            if metric["kind"] != "histogram" {
                all.insert(named(""), point["value"].as_f64().unwrap());
                continue;
            }
            all.insert(named("_sum"), point["sum"].as_f64().unwrap());
            all.insert(named("_count"), point["count"].as_f64().unwrap());
            let bounds = point["bounds"].as_array().unwrap().iter().map(|bound| bound.as_f64().unwrap());
            let mut below = 0.0;
            for (bound, count) in bounds.chain([f64::INFINITY]).zip(point["counts"].as_array().unwrap()) {
                below += count.as_f64().unwrap();
                let (name, mut labels) = named("_bucket");
                labels.insert("le".into(), bound.to_string());
                all.insert((name, labels), below);
            }
        }
    }
    all
}

fn nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

async fn metrics_over(protocol: Protocol) {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let began = nanos(SystemTime::now());
    let mesh = mesh(Some(receiver.exporter(Signal::Metrics, protocol)), None).await;
    for method in ["GET", "GET", "DELETE"] {
        let call =
            mesh.request("checkout-api", "payments-api").method(method).path("/v1/charges?card=fortyseven");
        call.header("authorization", "Bearer t0ken").send().await.unwrap();
    }
    // The lines come after the numbers.
    mesh.access_log("payments-api").at_least(3).await;
    let page = scrape(mesh.workload("payments-api").metrics()).await;
    let scraped = of_page(&page, "istio_");
    let requests: f64 =
        scraped.iter().filter(|((name, _), _)| name == "istio_requests_total").map(|(_, value)| value).sum();
    assert_eq!(requests, 3.0, "{page}");
    let exported = within("an export has all of it", async {
        loop {
            let export = receiver
                .next("metrics", |export| export["resource"]["service.instance.id"] == "payments-api")
                .await;
            if of_export(&export, "istio_requests_total").values().sum::<f64>() == requests {
                return export;
            }
        }
    })
    .await;
    assert_eq!(of_export(&exported, "istio_"), scraped);
    assert_eq!(of_export(&exported, "postern_proxy_seconds"), of_page(&page, "postern_proxy_seconds"));
    assert_eq!(exported["scope"], "postern");
    assert_eq!(exported["resource"]["service.name"], "payments-api");
    assert_eq!(exported["resource"]["deployment.environment.name"], "test");
    // All that a page has, under the names that it has there.
    let metrics = exported["metrics"].as_array().unwrap();
    let names: Vec<&str> = metrics.iter().map(|metric| metric["name"].as_str().unwrap()).collect();
    for ((name, _), _) in of_page(&page, "postern_") {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        assert!(names.contains(&base.unwrap_or(&name)), "{name}: {names:?}");
    }
    for metric in metrics {
        let is_gauge = metric["kind"] == "gauge";
        assert_eq!(metric["temporality"], if is_gauge { 0 } else { CUMULATIVE }, "{metric}");
        assert_eq!(metric["monotonic"], metric["kind"] == "sum", "{metric}");
        for point in metric["points"].as_array().unwrap() {
            let (start, time) = (point["start"].as_u64().unwrap(), point["time"].as_u64().unwrap());
            assert!(is_gauge || (began <= start && start < time), "{metric}");
        }
    }
    let whole = exported.to_string();
    assert!(!whole.contains("fortyseven") && !whole.contains("t0ken"), "{whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_gets_over_grpc_is_what_a_scrape_has() {
    metrics_over(Protocol::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_collector_gets_over_http_is_what_a_scrape_has() {
    metrics_over(Protocol::Http).await;
}

async fn access_log_over(protocol: Protocol) {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let mesh = mesh(None, Some(receiver.exporter(Signal::Logs, protocol))).await;
    for (method, status, severity, decision) in [("POST", 200, 9, "allow"), ("DELETE", 403, 13, "deny")] {
        let call =
            mesh.request("checkout-api", "payments-api").method(method).path("/v1/charges?card=fortyseven");
        let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
        let call = call.header("traceparent", &traceparent).header("authorization", "Bearer t0ken");
        assert_eq!(call.header("cookie", "s3ssion").body("12345").send().await.unwrap().status, status);
        let record = within("the record has arrived", async {
            receiver
                .next("log", |log| {
                    log["resource"]["service.name"] == "payments-api"
                        && log["attributes"]["http.response.status_code"] == status
                })
                .await
        })
        .await;
        // What the caller said of its trace, as in the line, since no spans are sent.
        assert_eq!(record["trace"], TRACE);
        assert_eq!(record["span"], "b7ad6b7169203331");
        assert_eq!(record["flags"], 1);
        assert_eq!(record["severity"], severity);
        assert_eq!(record["event"], "postern.request");
        assert_eq!(record["scope"], "postern");
        assert_eq!(record["resource"]["deployment.environment.name"], "test");
        assert!(record["time"].as_u64().unwrap() < record["observed"].as_u64().unwrap());
        let body = record["body"].as_str().unwrap();
        assert!(body.starts_with(&format!("{method} /v1/charges {status}")), "{body}");
        for (name, value) in [
            ("http.request.method", json!(method)),
            ("url.path", json!("/v1/charges")),
            ("server.address", json!("payments-api.payments.svc.cluster.local")),
            ("postern.direction", json!("inbound")),
            ("postern.decision", json!(decision)),
            ("postern.peer.id", json!("spiffe://cluster.local/ns/checkout/sa/checkout-api")),
            ("postern.source.id", json!("spiffe://cluster.local/ns/checkout/sa/checkout-api")),
            ("postern.destination.id", json!("spiffe://cluster.local/ns/payments/sa/payments-api")),
            ("tls.protocol.version", json!("1.3")),
        ] {
            assert_eq!(record["attributes"][name], value, "{name}: {record}");
        }
        let page = std::fs::read_to_string(tree::root().join("docs/observability.md")).unwrap();
        for name in record["attributes"].as_object().unwrap().keys() {
            assert!(page.contains(&format!("`{name}`")), "docs/observability.md does not have {name}");
        }
        // The line is written as well, and is of the same call.
        mesh.access_log("payments-api")
            .next_with(&[("http.response.status_code", json!(status)), ("trace_id", json!(TRACE))])
            .await;
        if status == 403 {
            assert_eq!(record["attributes"]["postern.policy"], "payments/no-delete");
            assert_eq!(record["attributes"]["postern.rule"], 0);
            assert!(record["attributes"]["postern.decision.id"].is_string(), "{record}");
        } else {
            assert_eq!(record["attributes"]["postern.bytes_received"], 5);
        }
        let whole = record.to_string();
        for secret in ["fortyseven", "t0ken", "s3ssion"] {
            assert!(!whole.contains(secret), "{whole}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_reaches_a_collector_over_grpc_beside_its_lines() {
    access_log_over(Protocol::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_access_log_reaches_a_collector_over_http_beside_its_lines() {
    access_log_over(Protocol::Http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_slow_full_lying_or_gone_is_counted_and_costs_no_call() {
    for (receiving, protocol) in [
        ("slow", Protocol::Grpc),
        ("full", Protocol::Grpc),
        ("full", Protocol::Http),
        ("garbage", Protocol::Http),
        ("gone", Protocol::Http),
        ("partial", Protocol::Grpc),
        ("partial", Protocol::Http),
    ] {
        let Some(receiver) = Receiver::start(receiving).await else { return };
        let [metrics, logs] = [Signal::Metrics, Signal::Logs].map(|signal| {
            let mut exporter = receiver.exporter(signal, protocol);
            let patience = if receiving == "slow" { 200 } else { 3000 };
            exporter.timeout = Duration::from_millis(patience);
            exporter
        });
        let mut client = receiver.client;
        // What it prints is read, or it would stop at a full pipe.
        let reading = tokio::spawn(async move {
            loop {
                client.says().await;
            }
        });
        let mesh = mesh(Some(metrics), Some(logs)).await;
        for _ in 0..20 {
            let answer = mesh.request("checkout-api", "payments-api").send().await.unwrap();
            assert_eq!(answer.status, 200);
        }
        let what = format!("{receiving} over {protocol:?}");
        within(&what, async {
            while counted(&mesh, "postern_log_records_dropped_total").await < 20
                || counted(&mesh, "postern_metric_export_failures_total").await == 0
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(counted(&mesh, "postern_log_records_dropped_total").await, 20, "{what}");
        let failures = counted(&mesh, "postern_log_export_failures_total").await;
        assert_eq!(failures > 0, receiving != "partial", "{what}: {failures}");
        // The lines are there all the same.
        mesh.access_log("checkout-api").at_least(20).await;
        assert_eq!(counted(&mesh, "postern_access_log_dropped_total").await, 0, "{what}");
        reading.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sampled_call_is_the_example_of_its_buckets_and_another_is_not() {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let mesh = mesh(Some(receiver.exporter(Signal::Metrics, Protocol::Http)), None).await;
    let metrics = mesh.workload("payments-api").metrics();
    let other = "11111111111111111111111111111111";
    for (trace, flags) in [(TRACE, "01"), (other, "00")] {
        let call = mesh.request("checkout-api", "payments-api");
        let call = call.header("traceparent", &format!("00-{trace}-b7ad6b7169203331-{flags}"));
        assert_eq!(call.send().await.unwrap().status, 200);
    }
    mesh.access_log("payments-api").at_least(2).await;
    let asked = |accept: &'static str| {
        Request::new(metrics, metrics.to_string()).path("/metrics").header("accept", accept)
    };
    let open = asked("application/openmetrics-text;version=1.0.0").send().await.unwrap();
    assert_eq!(open.headers["content-type"], "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let open = String::from_utf8(open.body.to_vec()).unwrap();
    assert!(open.ends_with("# EOF\n") && !open.contains(other), "{open}");
    for name in ["istio_request_duration_milliseconds_bucket", "postern_proxy_seconds_bucket"] {
        let examples: Vec<_> =
            open.lines().filter(|line| line.starts_with(name) && line.contains(" # ")).collect();
        assert_eq!(examples.len(), 1, "{name}: {open}");
        let (sample, example) = examples[0].split_once(" # ").unwrap();
        let example = example.strip_prefix(&format!("{{trace_id=\"{TRACE}\"}} ")).unwrap();
        let value: f64 = example.split(' ').next().unwrap().parse().unwrap();
        let bound: f64 = sample.split_once("le=\"").unwrap().1.split_once('"').unwrap().0.parse().unwrap();
        assert!(0.0 < value && value <= bound, "{}", examples[0]);
    }
    let plain = asked("text/plain").send().await.unwrap();
    assert_eq!(plain.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let plain = String::from_utf8(plain.body.to_vec()).unwrap();
    assert!(!plain.contains(TRACE) && !plain.contains("# EOF"), "{plain}");
    let export = within("the example has arrived", async {
        receiver.next("metrics", |export| export.to_string().contains(TRACE)).await
    })
    .await;
    assert!(!export.to_string().contains(other), "{export}");
}
