//! Spans to an OTLP/gRPC collector, built from finished records off the request path.
//!
//! The messages are the collector's own (`opentelemetry-proto`): a span of ours is complete when its record ends, with the
//! IDs that went out in `traceparent`, so the SDK's tracers, contexts and environment variables have nothing to do here.
//! Attribute names follow the OpenTelemetry semantic conventions 1.39; our own start with `postern.`.

use super::{
    Direction, Entry, Metrics,
    entry::{Decided, Entries},
};
use anyhow::Context;
use arc_swap::ArcSwap;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, trace_service_client::TraceServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, SpanKind},
        status::StatusCode,
    },
};
use postern_config::RuleRef;
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// Spans that may wait for the exporter; more are counted and dropped.
const QUEUED: usize = 4096;
/// Spans sent in one call.
const BATCH: usize = 512;
/// The longest a finished span waits before it is sent.
const DELAY: Duration = Duration::from_millis(500);
/// The longest the collector may take, and at shutdown the longest the last call may take.
const EXPORT_DEADLINE: Duration = Duration::from_secs(5);
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.39.0";

/// The data plane's end of the queue.
#[derive(Clone, Debug)]
pub struct Queue {
    entries: mpsc::Sender<Box<Entry>>,
    metrics: Arc<Metrics>,
}

impl Queue {
    /// Hands an entry over. Never waits.
    pub fn push(&self, entry: Box<Entry>) {
        if self.entries.try_send(entry).is_err() {
            self.metrics.spans_dropped(1);
        }
    }
}

/// Spawns the exporter on the current runtime. The collector need not be there yet.
///
/// # Errors
/// When `endpoint` is not a URL, or asks for TLS.
pub fn start(
    endpoint: &str,
    service: Arc<ArcSwap<String>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<(Queue, JoinHandle<()>)> {
    let wrong = || {
        format!(
            "OTEL_EXPORTER_OTLP_ENDPOINT `{endpoint}` cannot be used; give the collector's gRPC address, e.g. `http://127.0.0.1:4317`"
        )
    };
    let url = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
    anyhow::ensure!(url.starts_with("http://"), wrong());
    let channel = Endpoint::from_shared(url)
        .with_context(wrong)?
        .connect_timeout(Duration::from_secs(2))
        .timeout(EXPORT_DEADLINE)
        .connect_lazy();
    let (sender, receiver) = mpsc::channel(QUEUED);
    let queue = Queue { entries: sender, metrics: metrics.clone() };
    let exporter = Exporter { client: TraceServiceClient::new(channel), service, metrics };
    Ok((queue, tokio::spawn(exporter.run(receiver, stop))))
}

struct Exporter {
    client: TraceServiceClient<Channel>,
    service: Arc<ArcSwap<String>>,
    metrics: Arc<Metrics>,
}

impl Exporter {
    async fn run(mut self, mut entries: mpsc::Receiver<Box<Entry>>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = entries.recv_many(&mut batch, BATCH) => if count == 0 { break },
            }
            // Gather what follows shortly, then send at once.
            let gather =
                async { while batch.len() < BATCH && entries.recv_many(&mut batch, BATCH).await > 0 {} };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(DELAY, gather) => {}
            }
            self.export(&mut batch).await;
        }
        entries.close();
        // One deadline for all that is left: a dead collector must not hold up the shutdown.
        let last = async {
            while entries.recv_many(&mut batch, BATCH).await > 0 || !batch.is_empty() {
                self.export(&mut batch).await;
            }
        };
        let _ = tokio::time::timeout(EXPORT_DEADLINE, last).await;
    }

    async fn export(&mut self, batch: &mut Entries) {
        let count = batch.len() as u64;
        let spans = batch.drain(..).filter_map(|entry| span(&entry)).collect();
        let request = request(spans, &self.service.load());
        if let Err(status) = self.client.export(request).await {
            self.metrics.spans_dropped(count);
            self.metrics.span_export_failed();
            tracing::debug!(code = ?status.code(), message = status.message(), "spans could not be exported");
        }
    }
}

fn request(spans: Vec<Span>, service: &str) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "postern".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    let resource = Resource { attributes: vec![text("service.name", service)], ..Default::default() };
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(resource),
            scope_spans: vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.into() }],
            schema_url: SCHEMA.into(),
        }],
    }
}

/// The span of a request; `None` for connections, which belong to no trace.
fn span(entry: &Entry) -> Option<Span> {
    let trace = entry.trace?;
    let request = entry.request.as_ref()?;
    let end = entry.began + entry.duration;
    let method = known_method(&request.method);
    let kind = match entry.direction {
        Direction::Inbound => SpanKind::Server,
        Direction::Outbound => SpanKind::Client,
    };
    Some(Span {
        trace_id: trace.trace_id.to_be_bytes().to_vec(),
        span_id: trace.span_id.to_be_bytes().to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(trace.flags & 1),
        name: method.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: unix_nanos(entry.began),
        end_time_unix_nano: unix_nanos(end),
        attributes: attributes(entry, method),
        events: entry.decided.iter().filter(|decided| !decided.is_allowed).map(|d| denial(d, end)).collect(),
        status: Some(status(entry)),
        ..Default::default()
    })
}

fn attributes(entry: &Entry, method: &str) -> Vec<KeyValue> {
    let mut all = vec![
        text("http.request.method", method),
        text("network.peer.address", &entry.source_address.ip().to_string()),
        number("network.peer.port", i64::from(entry.source_address.port())),
        number("postern.proxy_us", i64::try_from(entry.proxy.as_micros()).unwrap_or(i64::MAX)),
    ];
    let mut add = |name, value: Option<&str>| all.extend(value.map(|value| text(name, value)));
    if let Some(request) = &entry.request {
        add("url.path", Some(&request.path));
        add("server.address", Some(&request.authority));
    }
    add("network.protocol.name", entry.protocol.and_then(|protocol| protocol.split('/').next()));
    add("network.protocol.version", entry.protocol.and_then(|protocol| protocol.split('/').nth(1)));
    let client = entry.source_address.ip().to_string();
    let peer = match entry.direction {
        Direction::Inbound => {
            add("client.address", Some(&client));
            &entry.source_principal
        }
        Direction::Outbound => &entry.destination_principal,
    };
    add("postern.peer.id", peer.as_deref());
    add("postern.destination.service", entry.destination_service.as_deref());
    if let Some(decided) = &entry.decided {
        add("postern.decision", Some(if decided.is_allowed { "allow" } else { "deny" }));
        add("postern.policy", decided.rule.as_ref().map(|rule| rule.policy_name()).as_deref());
        add("postern.policy.version", Some(&decided.version));
    }
    if is_error(entry) {
        let status = entry.status.map(|status| status.to_string());
        add("error.type", if entry.flag == "-" { status.as_deref() } else { Some(entry.flag) });
    }
    all.extend(entry.status.map(|status| number("http.response.status_code", i64::from(status))));
    all.extend(entry.grpc_status.map(|status| number("rpc.response.status_code", i64::from(status))));
    all
}

fn denial(decided: &Decided, at: SystemTime) -> Event {
    let mut attributes = vec![text("postern.decision.reason", decided.reason)];
    attributes.extend(decided.id.as_deref().map(|id| text("postern.decision.id", id)));
    attributes.extend(decided.rule.as_ref().map(|rule| text("postern.policy", &rule.policy_name())));
    let index = |rule: &Arc<RuleRef>| number("postern.rule", i64::try_from(rule.rule).unwrap_or(i64::MAX));
    attributes.extend(decided.rule.as_ref().map(index));
    Event {
        time_unix_nano: unix_nanos(at),
        name: "postern.denied".into(),
        attributes,
        dropped_attributes_count: 0,
    }
}

fn status(entry: &Entry) -> Status {
    let code = if is_error(entry) { StatusCode::Error } else { StatusCode::Unset };
    let message = entry.reason.clone().filter(|_| code == StatusCode::Error).unwrap_or_default();
    Status { message, code: code as i32 }
}

/// HTTP conventions: a server's fault from 500 on, a client sees failure from 400 on.
fn is_error(entry: &Entry) -> bool {
    let from = match entry.direction {
        Direction::Inbound => 500,
        Direction::Outbound => 400,
    };
    entry.flag != "-" || entry.status.is_some_and(|status| status >= from)
}

/// Unknown methods are one word, so that a caller cannot invent span names.
fn known_method(method: &http::Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "CONNECT" | "TRACE") => {
            known
        }
        _ => "_OTHER",
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

fn unix_nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
