//! Which lines and traces there are; that a denial always has its line, and that no line counts as lost that nobody wants.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::{
    bootstrap::{
        AccessLogSink,
        access_log::{Audit, Written},
        otel::{self, Signal},
    },
    telemetry::{
        Options, Telemetry, Writers,
        entry::{
            Noted,
            samples::{call, denied},
        },
        trace_context::{TRACEPARENT, parse},
    },
};
use http::{HeaderMap, Method};
use postern_config::{
    RuleRef,
    documents::{
        self,
        authorization_policy::Action,
        telemetry::{AccessLogging, CustomTag, Metric, MetricOverride, Mode, Tracing as Said},
    },
};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

const PEER: Option<&str> = Some("spiffe://cluster.local/ns/a/sa/b");

fn logging(mode: Mode, disabled: bool, filter: Option<&str>) -> documents::Telemetry {
    let filter = filter.map(str::to_owned);
    let access_logging = vec![AccessLogging { mode, disabled, filter }];
    documents::Telemetry { access_logging, ..Default::default() }
}

fn tracing(said: Said) -> documents::Telemetry {
    documents::Telemetry { tracing: vec![said], ..Default::default() }
}

fn sides(documents: &[documents::Telemetry]) -> Sides {
    Sides::merge(&Default::default(), documents).unwrap()
}

/// A telemetry whose lines arrive on the channel, with this said.
fn start(
    documents: &[documents::Telemetry],
    written: Written,
) -> (Telemetry, Writers, mpsc::Receiver<String>) {
    let (sender, lines) = mpsc::channel(8);
    let exporter = otel::Exporter::new(Signal::Traces, "http://127.0.0.1:1", otel::Protocol::Grpc).unwrap();
    let options = Options {
        access_log: AccessLogSink::Channel(sender),
        access_log_lines: written,
        otel: otel::Settings { exporter: Some(exporter), ..otel::Settings::default() },
        service: "shop".into(),
    };
    let (telemetry, writers) = Telemetry::start(options).unwrap();
    telemetry.told().put(&sides(documents));
    (telemetry, writers, lines)
}

fn rule() -> Arc<RuleRef> {
    Arc::new(RuleRef { namespace: "shop".into(), policy: "watch".into(), rule: 0, action: Action::Audit })
}

fn with_path(direction: Direction, mut entry: Entry) -> Box<Entry> {
    entry.direction = direction;
    Box::new(entry)
}

/// The paths of the lines that are left of a call and a denial on the way in, and a call on the way out.
async fn left(documents: &[documents::Telemetry]) -> Vec<String> {
    let (telemetry, writers, mut lines) = start(documents, Written::default());
    telemetry.write(with_path(Direction::Inbound, call(PEER, "/in")));
    telemetry.write(with_path(Direction::Inbound, denied(PEER.unwrap(), "/denied", "1")));
    telemetry.write(with_path(Direction::Outbound, call(PEER, "/out")));
    // Only a connection that asked for what it did not get, so that there is no decision.
    let mut refused = call(None, "/refused");
    refused.refusal = Some("plaintext-refused");
    telemetry.write(Box::new(refused));
    writers.finish().await;
    let mut paths = vec![];
    while let Ok(line) = lines.try_recv() {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        paths.push(line["url.path"].as_str().unwrap().to_owned());
    }
    paths
}

#[tokio::test]
async fn what_is_switched_off_or_filtered_has_no_line_and_a_denial_always_has() {
    use Mode::{Client, ClientAndServer as Both, Server};
    for (said, expected) in [
        (logging(Both, false, None), &["/in", "/denied", "/out", "/refused"][..]),
        (logging(Server, true, None), &["/denied", "/out", "/refused"]),
        (logging(Client, true, None), &["/in", "/denied", "/refused"]),
        (logging(Both, true, None), &["/denied", "/refused"]),
        (logging(Both, false, Some("response.code >= 400")), &["/denied", "/refused"]),
        (logging(Both, false, Some("false")), &["/denied", "/refused"]),
        (logging(Both, false, Some("request.path == '/out'")), &["/denied", "/out", "/refused"]),
        (logging(Server, false, Some("response.code == 200")), &["/in", "/denied", "/out", "/refused"]),
    ] {
        assert_eq!(left(std::slice::from_ref(&said)).await, expected, "{said:?}");
    }
}

#[tokio::test]
async fn a_match_of_an_audit_policy_is_kept() {
    let (telemetry, writers, mut lines) = start(&[logging(Mode::Server, true, None)], Written::default());
    for audit in [None, Some(rule())] {
        let mut entry = denied(PEER.unwrap(), "/", "1");
        entry.decided.as_mut().unwrap().is_allowed = true;
        entry.decided.as_mut().unwrap().audit = audit;
        telemetry.write(Box::new(entry));
    }
    writers.finish().await;
    assert!(lines.try_recv().is_ok());
    assert!(lines.try_recv().is_err(), "the twin without AUDIT");
}

#[tokio::test]
async fn a_line_whose_filter_looks_at_what_is_absent_is_kept_and_counted() {
    let said = [logging(Mode::Server, false, Some("response.grpc_status != 0"))];
    let (telemetry, writers, mut lines) = start(&said, Written::default());
    telemetry.write(Box::new(call(PEER, "/")));
    let mut fine = call(PEER, "/fine");
    fine.grpc_status = Some(0);
    telemetry.write(Box::new(fine));
    writers.finish().await;
    assert!(lines.try_recv().unwrap().contains("\"/\""));
    assert!(lines.try_recv().is_err());
    let page = telemetry.metrics().encode(SystemTime::now());
    assert!(page.contains("postern_access_log_filter_errors_total 1\n"), "{page}");
}

#[tokio::test]
async fn a_line_that_nobody_wants_holds_up_no_lossless_log_and_is_not_lost() {
    for filter in [None, Some("false")] {
        let said = [logging(Mode::Server, filter.is_none(), filter)];
        let (telemetry, writers, mut lines) =
            start(&said, Written { audit: Audit::Lossless, ..Written::default() });
        for _ in 0..3000 {
            telemetry.write(Box::new(call(PEER, "/")));
        }
        tokio::time::timeout(std::time::Duration::from_secs(5), telemetry.room()).await.expect("room again");
        writers.finish().await;
        assert!(lines.try_recv().is_err());
        let page = telemetry.metrics().encode(SystemTime::now());
        assert!(page.contains("postern_access_log_dropped_total 0\n"), "{page}");
    }
}

/// Of a request with these headers: what goes on, and whether there is a span of ours.
fn request(telemetry: &Telemetry, direction: Direction, sent: Option<&str>) -> (Option<String>, bool) {
    let address = "10.0.0.1:1".parse().unwrap();
    let mut record = telemetry.connection(direction, address, address).request();
    let mut headers = HeaderMap::new();
    headers.extend(sent.map(|sent| (TRACEPARENT.clone(), sent.parse().unwrap())));
    record.set_request(&Method::GET, "shop", "/", &headers);
    record.pass_trace_on(&mut headers);
    let passed = headers.get(&TRACEPARENT).map(|passed| passed.to_str().unwrap().to_owned());
    let is_sampled = passed.as_deref().and_then(parse).is_some_and(|parent| parent.flags & 1 == 1);
    (passed, is_sampled)
}

const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

#[tokio::test]
async fn the_rate_is_for_traces_that_begin_here_and_a_caller_that_has_decided_is_followed() {
    let unsampled = SAMPLED.replace("-01", "-00");
    for (percent, of_ours) in [(0.0, false), (100.0, true)] {
        let said = Said { mode: Mode::Client, random_sampling_percentage: Some(percent), ..Said::default() };
        let (telemetry, ..) = start(&[tracing(said)], Written::default());
        for _ in 0..50 {
            assert_eq!(request(&telemetry, Direction::Outbound, None).1, of_ours, "{percent}");
        }
        assert!(request(&telemetry, Direction::Outbound, Some(SAMPLED)).1);
        assert!(!request(&telemetry, Direction::Outbound, Some(&unsampled)).1);
        // Of the other side nothing is said: the sidecar's own sampler takes all.
        assert!(request(&telemetry, Direction::Inbound, None).1);
    }
    let said = Said { random_sampling_percentage: Some(50.0), ..Said::default() };
    let (telemetry, ..) = start(&[tracing(said)], Written::default());
    let taken = (0..400).filter(|_| request(&telemetry, Direction::Outbound, None).1).count();
    assert!((120..280).contains(&taken), "{taken} of 400");
}

#[tokio::test]
async fn without_span_reporting_what_the_caller_says_passes_as_it_is() {
    let said = Said { disable_span_reporting: Some(true), ..Said::default() };
    let (telemetry, writers, _) = start(&[tracing(said)], Written::default());
    // A flag that we do not know would be gone if we wrote it.
    let flagged = SAMPLED.replace("-01", "-03");
    for sent in [None, Some(SAMPLED), Some(&flagged)] {
        assert_eq!(request(&telemetry, Direction::Inbound, sent).0.as_deref(), sent);
    }
    writers.finish().await;
    // Nobody is there to take spans: one that was sent would be counted as dropped.
    let page = telemetry.metrics().encode(SystemTime::now());
    assert!(page.contains("postern_spans_dropped_total 0\n"), "{page}");
}

#[test]
fn spans_have_the_attributes_that_are_named() {
    let header = |default: Option<&str>| CustomTag::Header {
        name: "x-tenant".into(),
        default: default.map(str::to_owned),
    };
    let tags = [
        ("a".to_owned(), CustomTag::Literal("fixed".into())),
        ("b".to_owned(), header(None)),
        ("c".to_owned(), header(Some("nobody"))),
    ];
    let said = Said { mode: Mode::Server, custom_tags: Some(tags.into()), ..Said::default() };
    let told = Told::default();
    told.put(&sides(&[tracing(said)]));
    let headers = |direction| told.said().unwrap().of(direction).headers.clone();
    let names = headers(Direction::Inbound);
    assert_eq!(names, ["x-tenant"]);
    assert!(headers(Direction::Outbound).is_empty());
    let mut entry = call(PEER, "/");
    let of = |entry: &Entry| {
        let mut attributes = vec![];
        told.said().unwrap().add_tags(entry, &mut attributes);
        attributes
    };
    assert_eq!(of(&entry), [text("a", "fixed"), text("c", "nobody")]);
    entry.request.as_mut().unwrap().noted = Some(Box::new(Noted(vec![(names[0].clone(), "green".into())])));
    assert_eq!(of(&entry), [text("a", "fixed"), text("b", "green"), text("c", "green")]);
    let mut own = vec![text("b", "ours")];
    told.said().unwrap().add_tags(&entry, &mut own);
    assert_eq!(own, [text("b", "ours"), text("a", "fixed"), text("c", "green")], "ours stay");
    entry.direction = Direction::Outbound;
    assert!(of(&entry).is_empty());
}

#[tokio::test]
async fn headers_that_a_filter_looks_at_are_in_no_line() {
    let said = [logging(Mode::Server, false, Some("request.headers['x-tenant'] == 'secret'"))];
    let (telemetry, writers, mut lines) = start(&said, Written::default());
    let address = "10.0.0.1:1".parse().unwrap();
    for tenant in ["secret", "other"] {
        let mut record = telemetry.connection(Direction::Inbound, address, address).request();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-tenant"), tenant.parse().unwrap())]);
        record.set_request(&Method::GET, "shop", "/", &headers);
        record.set_status(200);
    }
    writers.finish().await;
    let line = lines.try_recv().unwrap();
    assert!(!line.contains("secret"), "{line}");
    assert!(lines.try_recv().is_err());
}

#[test]
fn every_attribute_is_what_the_call_was() {
    let mut entry = call(PEER, "/v1");
    entry.protocol = Some("http/2");
    entry.bytes_received = 7;
    entry.grpc_status = Some(5);
    entry.upstream_time = Some(Duration::from_millis(3));
    entry.upstream_address = Some("10.0.0.2:9000".parse().unwrap());
    entry.destination_principal = Some("spiffe://td/ns/a/sa/c".into());
    entry.sni = Some("shop.internal".into());
    entry.tls_version = Some("TLSv1.3");
    let request = entry.request.as_mut().unwrap();
    request.id = Some("4711".into());
    request.noted = Some(Box::new(Noted(vec![(HeaderName::from_static("user-agent"), "curl".into())])));
    let check = |entry: &Entry, expression: &str, expected: Wanted| {
        let told = Told::default();
        told.put(&sides(&[logging(Mode::ClientAndServer, false, Some(expression))]));
        assert_eq!(told.wants(entry), expected, "{expression}");
    };
    for expression in [
        "request.path == '/v1' && request.url_path == '/v1'",
        "request.host == 'shop' && request.method == 'GET' && request.id == '4711'",
        "request.protocol == 'HTTP/2' && request.useragent == 'curl'",
        "request.size == 7 && response.size == 5",
        "request.duration == duration('100us') && response.backend_latency == duration('3ms')",
        "response.code == 200 && response.grpc_status == 5 && response.flags == 0",
        "response.code_details == 'via_upstream'",
        "connection.mtls && connection.uri_san_peer_certificate == 'spiffe://cluster.local/ns/a/sa/b'",
        "connection.requested_server_name == 'shop.internal' && connection.tls_version == 'TLSv1.3'",
        "source.address == '10.0.0.1:8080' && source.port == 8080",
        "destination.address == '10.0.0.1:8080' && destination.port == 8080",
        "upstream.address == '10.0.0.2:9000' && upstream.port == 9000",
        "xds.cluster_name == 'inbound|8080||' && xds.route_name == 'default'",
        "!has(upstream.uri_san_peer_certificate) && !has(request.referer)",
    ] {
        check(&entry, expression, Wanted::Yes);
        check(&entry, &format!("!({expression})"), Wanted::No);
    }
    // On the way out the caller is the app, and who was called is known.
    entry.direction = Direction::Outbound;
    (entry.flag, entry.reason) = ("UF", Some("nobody listens".into()));
    for expression in [
        "!connection.mtls && !has(connection.uri_san_peer_certificate)",
        "upstream.uri_san_peer_certificate == 'spiffe://td/ns/a/sa/c'",
        "response.flags == 32",
        "xds.cluster_name == 'PassthroughCluster' && xds.route_name == 'allow_any'",
    ] {
        check(&entry, expression, Wanted::Yes);
    }
    // Of a connection there is no request.
    let address = "10.0.0.1:1".parse().unwrap();
    let connection = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address, address);
    check(&connection, "request.path != '/healthz'", Wanted::Untold);
    check(&connection, "!has(request.path) && !connection.mtls && response.size == 0", Wanted::Yes);
}

#[tokio::test]
async fn what_is_taken_back_holds_no_more() {
    let (telemetry, writers, mut lines) = start(&[logging(Mode::Server, true, None)], Written::default());
    telemetry.write(Box::new(call(PEER, "/before")));
    telemetry.told().put(&Sides::default());
    assert!(telemetry.told().said().is_none(), "nobody pays for what nobody uses");
    telemetry.write(Box::new(call(PEER, "/after")));
    writers.finish().await;
    assert!(lines.try_recv().unwrap().contains("/after"));
    assert!(lines.try_recv().is_err());
}

#[tokio::test]
async fn metrics_that_are_switched_off_are_left_out_on_their_side_and_go_on_counting() {
    let (telemetry, _writers, _lines) = start(&[], Written::default());
    let both = || {
        telemetry.write(with_path(Direction::Inbound, call(PEER, "/")));
        telemetry.write(with_path(Direction::Outbound, call(PEER, "/")));
    };
    let told = |metric, mode| {
        let metrics = vec![MetricOverride { mode, metric, disabled: true }];
        let documents = [documents::Telemetry { metrics, ..Default::default() }];
        telemetry.metrics().told().leave_out(&sides(&documents));
        telemetry.metrics().encode(SystemTime::now())
    };
    let has = |page: &str, family: &str, reporter: &str| {
        let label = format!("reporter=\"{reporter}\"");
        page.lines().any(|line| line.starts_with(family) && line.contains(&label))
    };
    both();
    let page = told(Some(Metric::RequestCount), Mode::Client);
    assert!(!has(&page, "istio_requests_total", "source"), "{page}");
    assert!(has(&page, "istio_requests_total", "destination"), "{page}");
    assert!(has(&page, "istio_request_bytes", "source"), "{page}");
    let page = told(None, Mode::ClientAndServer);
    assert!(!page.lines().any(|line| line.starts_with("istio_")), "{page}");
    assert!(has(&page, "postern_proxy_seconds", "source"), "what is ours stays: {page}");
    both();
    telemetry.metrics().told().leave_out(&Sides::default());
    let page = telemetry.metrics().encode(SystemTime::now());
    let line = page
        .lines()
        .find(|line| line.starts_with("istio_requests_total") && line.contains("reporter=\"source\""));
    assert!(line.unwrap().ends_with(" 2"), "{page}");
}
