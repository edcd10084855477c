//! What a collector receives, from a scripted one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::{
    bootstrap::{
        AccessLogSink,
        otel::{self, Signal},
    },
    telemetry::{Options, Telemetry, trace_context},
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;

struct Collector(mpsc::Sender<ExportTraceServiceRequest>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        self.0.send(request.into_inner()).await.unwrap();
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

fn options(endpoint: &str) -> Options {
    let exporter = otel::Exporter::new(Signal::Traces, endpoint, otel::Protocol::Grpc).unwrap();
    let otel = otel::Settings { exporter: Some(exporter), ..otel::Settings::default() };
    Options {
        access_log: AccessLogSink::Off,
        access_log_lines: Default::default(),
        otel,
        service: "web".into(),
    }
}

fn request(
    telemetry: &Telemetry,
    direction: Direction,
    parent: Option<http::HeaderValue>,
) -> http::HeaderValue {
    let address = "10.0.0.1:4000".parse().unwrap();
    let mut connection = telemetry.connection(direction, address, address);
    let mut record = connection.request();
    let mut headers = http::HeaderMap::new();
    headers.extend(parent.map(|parent| (trace_context::TRACEPARENT.clone(), parent)));
    record.set_request(&http::Method::POST, "shop", "/v1", &headers);
    record.set_status(503);
    record.pass_trace_on(&mut headers);
    headers.remove(&trace_context::TRACEPARENT).unwrap()
}

#[tokio::test]
async fn a_span_reaches_the_collector_with_the_ids_that_went_out_in_traceparent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut received) = mpsc::channel(8);
    let server = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(Collector(sender)))
        .serve_with_incoming(TcpListenerStream::new(listener));
    let server = tokio::spawn(server);
    let (telemetry, writers) = Telemetry::start(options(&endpoint)).unwrap();
    telemetry.set_service("shop-web");
    let outgoing = request(&telemetry, Direction::Outbound, None);
    let first = trace_context::parse(outgoing.to_str().unwrap()).unwrap();
    let incoming = request(&telemetry, Direction::Inbound, Some(outgoing));
    let second = trace_context::parse(incoming.to_str().unwrap()).unwrap();
    writers.finish().await;

    let mut spans = Vec::new();
    while let Ok(batch) = received.try_recv() {
        for resource in batch.resource_spans {
            assert_eq!(
                resource.resource.unwrap().attributes,
                [text("service.name", "shop-web"), text("service.instance.id", "web")]
            );
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    assert_eq!(spans.len(), 2);
    let (client, server_span) = (&spans[0], &spans[1]);
    assert_eq!(client.kind, SpanKind::Client as i32);
    assert_eq!(server_span.kind, SpanKind::Server as i32);
    assert_eq!(client.trace_id, first.trace_id.to_be_bytes());
    assert_eq!(client.span_id, first.span_id.to_be_bytes());
    assert!(client.parent_span_id.is_empty());
    assert_eq!(server_span.trace_id, client.trace_id);
    assert_eq!(server_span.parent_span_id, client.span_id);
    assert_eq!(server_span.span_id, second.span_id.to_be_bytes());
    assert!(server_span.attributes.contains(&number("http.response.status_code", 503)));
    server.abort();
}

#[tokio::test]
async fn a_missing_collector_is_counted_and_never_felt() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let (telemetry, writers) = Telemetry::start(options(&endpoint)).unwrap();
    request(&telemetry, Direction::Inbound, None);
    tokio::time::timeout(Duration::from_secs(20), writers.finish()).await.unwrap();
    let text = telemetry.metrics().encode(SystemTime::now());
    assert!(text.contains("postern_spans_dropped_total 1"), "{text}");
    assert!(text.contains("postern_span_export_failures_total 1"));
}

#[tokio::test]
async fn a_caller_that_does_not_sample_gets_no_span() {
    let (telemetry, writers) = Telemetry::start(options("http://127.0.0.1:1")).unwrap();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().unwrap();
    request(&telemetry, Direction::Inbound, Some(parent));
    writers.finish().await;
    assert!(telemetry.metrics().encode(SystemTime::now()).contains("postern_spans_dropped_total 0"));
}

#[tokio::test]
async fn authorities_that_cannot_be_read_end_the_start() {
    let mut options = options("https://collector:4317");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ca.pem");
    let exporter = options.otel.exporter.as_mut().unwrap();
    exporter.authorities = Some(file.clone());
    assert!(Telemetry::start(options.clone()).is_err(), "no file");
    std::fs::write(&file, "nothing").unwrap();
    let why = Telemetry::start(options).err().unwrap();
    assert!(format!("{why:#}").contains("ca.pem"), "{why:#}");
}

#[test]
fn where_no_spans_are_sent_the_callers_trace_passes_as_it_is_and_none_is_begun() {
    let telemetry = Telemetry::silent();
    let address = "10.0.0.1:4000".parse().unwrap();
    let mut connection = telemetry.connection(Direction::Outbound, address, address);
    for sent in [None, Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00")] {
        let mut record = connection.request();
        let mut headers = http::HeaderMap::new();
        headers.extend(sent.map(|sent| (trace_context::TRACEPARENT.clone(), sent.parse().unwrap())));
        headers.insert("tracestate", "a=1".parse().unwrap());
        let before = headers.clone();
        record.set_request(&http::Method::POST, "shop", "/v1", &headers);
        record.pass_trace_on(&mut headers);
        assert_eq!(headers, before);
    }
}
