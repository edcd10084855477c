//! Spans, as a receiver of the official protocol definitions reads them: whole traces, the right parents, the right attributes; and
//! what becomes of calls when the receiver is slow, full, lying or gone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::bootstrap::otel::{self, Exporter, Headers, Protocol, Signal};
use postern_tests::{
    Mesh, Request,
    mesh::{Settings, within},
    otlp::Receiver,
    scenario::{mode, payments},
    up::{Place, User},
};
use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const ROOT: &str = "b7ad6b7169203331";

/// A third workload to call.
const REPORTS: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: reports, namespace: checkout}\n\
    spec: {selector: {app: reports}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
/// Nobody may delete.
const NO_DELETE: &str = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: no-delete, namespace: payments}\n\
    spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}\n";

/// The next `count` spans of this trace, by kind and service.
async fn spans(receiver: &mut Receiver, trace: &str, count: usize) -> BTreeMap<(u64, String), Value> {
    let mut all = BTreeMap::new();
    within("the spans have arrived", async {
        while all.len() < count {
            let span = receiver.next("span", |span| span["trace"] == trace).await;
            let service = span["resource"]["service.name"].as_str().unwrap().to_owned();
            all.insert((span["kind"].as_u64().unwrap(), service), span);
        }
    })
    .await;
    all
}

async fn mesh(exporter: Exporter) -> Mesh {
    let batch = otel::Batch { delay: Duration::from_millis(20), ..otel::Batch::default() };
    let resource = vec![("deployment.environment.name".to_owned(), "test".to_owned())];
    let otel = otel::Settings { exporter: Some(exporter), batch, resource, ..otel::Settings::default() };
    let documents =
        [payments(&mode("payments", "STRICT")), REPORTS.to_owned(), NO_DELETE.to_owned()].concat();
    Mesh::start_with(&documents, Settings { otel, ..Settings::default() }).await
}

const SERVER: u64 = 2;
const CLIENT: u64 = 3;

async fn one_trace_over(protocol: Protocol) {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let mut exporter = receiver.exporter(Signal::Traces, protocol);
    exporter.is_compressed = true;
    let mut secret = http::HeaderValue::from_static("Bearer t0ken");
    secret.set_sensitive(true);
    exporter.headers = Headers(vec![(http::header::AUTHORIZATION, secret)]);
    let mesh = mesh(exporter).await;

    let call =
        mesh.request("checkout-api", "payments-api").method("POST").path("/v1/charges?card=fortyseven");
    let answer = call.header("traceparent", &format!("00-{TRACE}-{ROOT}-01")).send().await.unwrap();
    assert_eq!(answer.status, 200);
    // What an app has to do, and all of it: what came with the request goes on with the calls that it makes.
    let came = mesh.app("payments-api").last().header("traceparent").join(",");
    let call = mesh.request("payments-api", "reports").path("/daily");
    assert_eq!(call.header("traceparent", &came).send().await.unwrap().status, 200);

    let spans = spans(&mut receiver, TRACE, 4).await;
    let of = |kind: u64, service: &str| {
        spans
            .iter()
            .find(|((k, s), _)| *k == kind && s.starts_with(service))
            .map(|(_, span)| span)
            .unwrap_or_else(|| panic!("{kind} {service}: {:?}", spans.keys()))
    };
    let hops = [
        of(CLIENT, "checkout-api"),
        of(SERVER, "payments-api"),
        of(CLIENT, "payments-api"),
        of(SERVER, "reports"),
    ];
    let mut parent = ROOT;
    for hop in hops {
        assert_eq!(hop["parent"], parent, "{hop}");
        parent = hop["span"].as_str().unwrap();
        assert_eq!(hop["scope"], "postern");
        assert_eq!(hop["resource"]["deployment.environment.name"], "test");
        assert_eq!(hop["came_with"]["authorization"], "Bearer t0ken");
        let encoding = if protocol == Protocol::Grpc { "grpc-encoding" } else { "content-encoding" };
        assert!(hop["came_with"][encoding] == "gzip" || protocol == Protocol::Grpc, "{hop}");
        assert_eq!(hop["status"], 0);
        assert!(!hop.to_string().contains("fortyseven"), "queries may hold secrets: {hop}");
        assert!(
            hop["attributes"]["postern.proxy_us"].as_u64().unwrap() * 1000 <= hop["nanos"].as_u64().unwrap()
        );
    }
    let attributes = &hops[1]["attributes"];
    for (name, value) in [
        ("http.request.method", "POST"),
        ("url.path", "/v1/charges"),
        ("url.scheme", "http"),
        ("server.address", "payments-api.payments.svc.cluster.local"),
        ("network.protocol.name", "http"),
        ("network.protocol.version", "1.1"),
        ("client.address", "127.0.0.1"),
        ("postern.peer.id", "spiffe://cluster.local/ns/checkout/sa/checkout-api"),
        ("postern.decision", "allow"),
    ] {
        assert_eq!(attributes[name], value, "{name}: {attributes}");
    }
    assert_eq!(attributes["http.response.status_code"], 200);
    let joined = "postern_spans_total{reporter=\"source\",parent=\"yes\"}";
    assert_eq!(counted(&mesh, joined).await, 1);
    assert_eq!(
        hops[0]["attributes"]["postern.peer.id"],
        "spiffe://cluster.local/ns/payments/sa/payments-api"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_across_three_workloads_is_whole_over_grpc() {
    one_trace_over(Protocol::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_across_three_workloads_is_whole_over_http() {
    one_trace_over(Protocol::Http).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_an_event_of_the_servers_span_and_its_allowed_twin_has_none() {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    let mesh = mesh(receiver.exporter(Signal::Traces, Protocol::Http)).await;
    for (method, status) in [("DELETE", 403), ("GET", 200)] {
        let call = mesh.request("checkout-api", "payments-api").method(method).path("/v1/charges");
        let trace = format!("{status:032x}");
        let answer = call.header("b3", &format!("{trace}-{ROOT}-1")).send().await.unwrap();
        assert_eq!(answer.status, status);
        let spans = spans(&mut receiver, &trace, 2).await;
        let span = spans.iter().find(|((kind, _), _)| *kind == SERVER).unwrap().1;
        let is_denied = status == 403;
        assert_eq!(span["attributes"]["postern.decision"], if is_denied { "deny" } else { "allow" });
        let events = span["events"].as_array().unwrap();
        assert_eq!(events.len(), usize::from(is_denied), "{span}");
        if is_denied {
            assert_eq!(events[0]["name"], "postern.denied");
            assert_eq!(events[0]["attributes"]["postern.policy"], "payments/no-delete");
            assert!(events[0]["attributes"]["postern.decision.id"].is_string(), "{span}");
        }
    }
    assert_eq!(mesh.app("payments-api").received().len(), 1);
    // Who came with B3 goes on with it.
    let b3 = mesh.app("payments-api").last().header("b3").join(",");
    assert!(b3.starts_with(&format!("{:032x}-", 200)) && b3.ends_with("-1"), "{b3}");
}

/// A counter of the caller's sidecar.
async fn counted(mesh: &Mesh, name: &str) -> u64 {
    let metrics = mesh.workload("checkout-api").metrics();
    let page = Request::new(metrics, metrics.to_string()).path("/metrics").send().await.unwrap();
    let page = String::from_utf8_lossy(&page.body).into_owned();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {page}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_is_slow_full_lying_or_gone_is_counted_and_costs_no_call() {
    for (receiving, protocol) in [
        ("slow", Protocol::Grpc),
        ("slow", Protocol::Http),
        ("full", Protocol::Grpc),
        ("full", Protocol::Http),
        ("garbage", Protocol::Http),
        ("gone", Protocol::Http),
        ("partial", Protocol::Grpc),
        ("partial", Protocol::Http),
    ] {
        let Some(receiver) = Receiver::start(receiving).await else { return };
        let mut exporter = receiver.exporter(Signal::Traces, protocol);
        exporter.timeout = Duration::from_millis(200);
        let mesh = mesh(exporter).await;
        for _ in 0..20 {
            let answer = mesh.request("checkout-api", "payments-api").send().await.unwrap();
            assert_eq!(answer.status, 200);
        }
        let what = format!("{receiving} over {protocol:?}");
        within(&what, async {
            while counted(&mesh, "postern_spans_dropped_total").await < 20 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(counted(&mesh, "postern_spans_dropped_total").await, 20, "{what}");
        let failures = counted(&mesh, "postern_span_export_failures_total").await;
        assert_eq!(failures > 0, receiving != "partial", "{what}: {failures}");
    }
}

/// An authority, and a certificate of it for a receiver on loopback and one for its client, as PEM files.
fn certificates(folder: &std::path::Path) {
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    write("ca.pem", params.self_signed(&key).unwrap().pem());
    let issuer = rcgen::Issuer::new(params, key);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        leaf.distinguished_name.push(rcgen::DnType::CommonName, name);
        write(&format!("{name}.pem"), leaf.signed_by(&key, &issuer).unwrap().pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_both_ends_prove_themselves_or_nothing_is_sent() {
    let (folder, strange) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(folder.path());
    certificates(strange.path());
    let Some(mut receiver) = Receiver::start_with(&["ok", folder.path().to_str().unwrap()]).await else {
        return;
    };
    for (number, protocol) in [Protocol::Grpc, Protocol::Http].into_iter().enumerate() {
        let port = &receiver.ports[if protocol == Protocol::Grpc { "grpc" } else { "http" }];
        let mut good = Exporter::new(Signal::Traces, &format!("https://127.0.0.1:{port}"), protocol).unwrap();
        good.timeout = Duration::from_secs(2);
        let at = |folder: &std::path::Path, name: &str| folder.join(name);
        good.authorities = Some(at(folder.path(), "ca.pem"));
        good.certificate = Some((at(folder.path(), "client.pem"), at(folder.path(), "client-key.pem")));
        let mut unproven = good.clone();
        unproven.certificate = None;
        let mut deceived = good.clone();
        deceived.authorities = Some(at(strange.path(), "ca.pem"));
        for (case, (exporter, arrives)) in
            [(unproven, false), (deceived, false), (good, true)].into_iter().enumerate()
        {
            let mesh = mesh(exporter).await;
            let trace = format!("{:032x}", 0xabc0 + 10 * number + case);
            let call = mesh.request("checkout-api", "payments-api");
            let call = call.header("traceparent", &format!("00-{trace}-{ROOT}-01"));
            assert_eq!(call.send().await.unwrap().status, 200);
            let what = format!("{protocol:?} {case}");
            if arrives {
                // The next that arrive at all: of the others nothing did.
                for _ in 0..2 {
                    let span = within(&what, receiver.client.says()).await;
                    assert_eq!(span["trace"], trace, "{what}: {span}");
                }
            } else {
                within(&what, async {
                    while counted(&mesh, "postern_spans_dropped_total").await == 0 {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                })
                .await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_on_this_machine_sends_spans_metrics_and_log_where_the_environment_says() {
    let Some(mut receiver) = Receiver::start("ok").await else { return };
    for (number, user) in User::all().into_iter().enumerate() {
        let place = Place::new(user);
        place.copy("manifests/examples/payments");
        let mut command = place.postern();
        let endpoint = format!("http://127.0.0.1:{}/otlp", receiver.ports["http"]);
        command.args(["up", "yaml"]).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        command.env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip").env("OTEL_SERVICE_NAME", "not-all-of-them");
        command.env("OTEL_METRIC_EXPORT_INTERVAL", "1000").env("OTEL_BLRP_SCHEDULE_DELAY", "100");
        command.env("OTEL_RESOURCE_ATTRIBUTES", format!("test.user={user:?}"));
        let up = tokio::task::spawn_blocking(move || place.up_by(command)).await.unwrap();
        let trace = format!("{:032x}", 4711 + number);
        let mut call = up.place.postern();
        call.args(["exec", "--dir", "yaml", "checkout-api", "--", "postern", "app", "call", "-X", "POST"]);
        call.args(["-H", &format!("traceparent: 00-{trace}-{ROOT}-01")]);
        call.arg("http://payments-api.payments/v1/charges");
        let called = tokio::task::spawn_blocking(move || call.output().unwrap()).await.unwrap();
        assert!(called.status.success(), "{user:?} {called:?}");
        // Two spans, two records and the counts of both sidecars, in whichever order.
        let mut came = BTreeMap::new();
        let wanted: Vec<_> = [("span", "traces"), ("log", "logs"), ("metrics", "metrics")]
            .into_iter()
            .flat_map(|(signal, path)| {
                ["checkout-api", "payments-api"].map(|service| (signal, path, service))
            })
            .collect();
        within("all of it has arrived", async {
            while !wanted.iter().all(|(signal, _, service)| came.contains_key(&format!("{signal} {service}")))
            {
                let said = receiver.client.says().await;
                let is_counted = said.to_string().contains("istio_requests_total");
                if said["trace"] == trace || (said["signal"] == "metrics" && is_counted) {
                    let named = |of: &Value| of.as_str().unwrap().to_owned();
                    let service = named(&said["resource"]["service.name"]);
                    came.insert(format!("{} {service}", named(&said["signal"])), said);
                }
            }
        })
        .await;
        for (signal, path, service) in wanted {
            let said = &came[&format!("{signal} {service}")];
            assert_eq!(said["came_with"]["path"], format!("/otlp/v1/{path}"));
            assert_eq!(said["came_with"]["content-encoding"], "gzip");
            assert_eq!(said["resource"]["test.user"], format!("{user:?}"));
        }
        let kind = |service| came[&format!("span {service}")]["kind"].as_u64().unwrap();
        assert_eq!((kind("checkout-api"), kind("payments-api")), (CLIENT, SERVER));
        drop(up);
    }
}
