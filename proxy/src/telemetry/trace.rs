//! Spans to an OTLP collector, built from finished records off the request path.
//!
//! The messages are the collector's own (`opentelemetry-proto`): a span of ours is complete when its record ends, with the
//! IDs that went out in `traceparent`, so the SDK's tracers and contexts have nothing to do here.
//! Attribute names follow the OpenTelemetry semantic conventions 1.39; our own start with `postern.`.

use super::{
    Direction, Entry, Metrics,
    entry::{Decided, Entries},
    export::Collector,
};
use crate::bootstrap::otel;
use arc_swap::ArcSwap;
use http::uri::Authority;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
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

/// At shutdown, the longest that all that is left may take.
const LAST_DEADLINE: Duration = Duration::from_secs(5);
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

/// Spawns the exporter on the current runtime; `None` when there is none. The collector need not be there yet.
///
/// # Errors
/// When the files for the collector's TLS cannot be used.
pub fn start(
    settings: otel::Settings,
    workload: Arc<ArcSwap<String>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<Option<(Queue, JoinHandle<()>)>> {
    let Some(exporter) = settings.exporter else { return Ok(None) };
    let (sender, receiver) = mpsc::channel(settings.batch.queue);
    let queue = Queue { entries: sender, metrics: metrics.clone() };
    let exporter = Exporter {
        collector: Collector::open(exporter)?,
        service: settings.service,
        workload,
        resource: settings.resource,
        batch: settings.batch,
        metrics,
    };
    Ok(Some((queue, tokio::spawn(exporter.run(receiver, stop)))))
}

struct Exporter {
    collector: Collector,
    service: Option<String>,
    workload: Arc<ArcSwap<String>>,
    resource: Vec<(String, String)>,
    batch: otel::Batch,
    metrics: Arc<Metrics>,
}

impl Exporter {
    async fn run(mut self, mut entries: mpsc::Receiver<Box<Entry>>, stop: CancellationToken) {
        let otel::Batch { most, delay, .. } = self.batch;
        let mut batch = Vec::with_capacity(most);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = entries.recv_many(&mut batch, most) => if count == 0 { break },
            }
            // Gather what follows shortly, then send at once.
            let gather =
                async { while batch.len() < most && entries.recv_many(&mut batch, most).await > 0 {} };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(delay, gather) => {}
            }
            self.export(&mut batch).await;
        }
        entries.close();
        // One deadline for all that is left: a dead collector must not hold up the shutdown.
        let last = async {
            while entries.recv_many(&mut batch, most).await > 0 || !batch.is_empty() {
                self.export(&mut batch).await;
            }
        };
        let _ = tokio::time::timeout(LAST_DEADLINE, last).await;
    }

    async fn export(&mut self, batch: &mut Entries) {
        let count = batch.len() as u64;
        let made = batch.drain(..).filter_map(|entry| {
            let span = span(&entry)?;
            self.metrics.span_made(entry.direction, !span.parent_span_id.is_empty());
            Some(span)
        });
        let spans = made.collect();
        match self.collector.send(self.request(spans)).await {
            Ok(0) => {}
            Ok(rejected) => self.metrics.spans_dropped(rejected.min(count)),
            Err(why) => {
                self.metrics.spans_dropped(count);
                self.metrics.span_export_failed();
                tracing::debug!(why, "spans could not be exported");
            }
        }
    }

    fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let service = self.service.clone().unwrap_or_else(|| self.workload.load().as_str().to_owned());
        let mut attributes = vec![text("service.name", &service)];
        attributes.extend(self.resource.iter().map(|(name, value)| text(name, value)));
        request(spans, attributes)
    }
}

fn request(spans: Vec<Span>, attributes: Vec<KeyValue>) -> ExportTraceServiceRequest {
    let scope = InstrumentationScope {
        name: "postern".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    };
    let resource = Resource { attributes, ..Default::default() };
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
    // What the app speaks; mutual TLS between the sidecars is not its business.
    add("url.scheme", Some("http"));
    let mut port = None;
    if let Some(request) = &entry.request {
        add("url.path", Some(&request.path));
        let authority: Option<Authority> = request.authority.parse().ok();
        add(
            "server.address",
            Some(authority.as_ref().map_or(&request.authority, |authority| authority.host())),
        );
        port = authority.and_then(|authority| authority.port_u16());
        if entry.protocol == Some("grpc") {
            add("rpc.system.name", Some("grpc"));
            add("rpc.method", Some(request.path.trim_start_matches('/')));
        }
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
    all.extend(port.map(|port| number("server.port", i64::from(port))));
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
