//! A collector for the length of the demo: receives the sidecars' spans over OTLP (gRPC) and keeps the newest.

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{AnyValue, KeyValue, any_value},
};
use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch, time::timeout};
use tokio_stream::wrappers::TcpListenerStream;

/// Spans kept; older ones make room.
const CAPACITY: usize = 10_000;

/// One received span, as far as the demo tells of it.
#[derive(Clone, Debug)]
pub struct Span {
    /// `service.name` of the resource: the workload.
    pub service: String,
    /// Span name, `{method}` or `{method} {route}`.
    pub name: String,
    /// Hex, 32 characters.
    pub trace_id: String,
    /// Hex, 16 characters.
    pub span_id: String,
    /// Hex, empty for a root span.
    pub parent_id: String,
    /// OTLP's SpanKind: 2 server, 3 client.
    pub kind: i32,
    /// From start to end.
    pub duration: Duration,
    /// Start, in nanoseconds of Unix time, to order spans.
    pub start_unix_nanos: u64,
}

/// The running collector; it stops when dropped.
pub struct Collector {
    address: SocketAddr,
    spans: watch::Receiver<VecDeque<Span>>,
    server: tokio::task::JoinHandle<()>,
}

impl Collector {
    /// Listens on `address` (port 0 takes any free port).
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub async fn start(address: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (sender, spans) = watch::channel(VecDeque::new());
        let service = TraceServiceServer::new(Receiver { spans: Arc::new(sender) });
        let server = tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            if let Err(error) =
                tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
            {
                tracing::warn!(%error, "the demo's trace collector ended");
            }
        });
        Ok(Self { address, spans, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All spans of one trace, in order of their start, as soon as `enough` says so or the deadline passes.
    pub async fn trace(
        &self,
        trace_id: &str,
        enough: impl Fn(&[Span]) -> bool,
        deadline: Duration,
    ) -> Vec<Span> {
        let mut spans = self.spans.clone();
        let collect = |all: &VecDeque<Span>| {
            let mut of_trace: Vec<Span> = all.iter().filter(|s| s.trace_id == trace_id).cloned().collect();
            of_trace.sort_by_key(|s| s.start_unix_nanos);
            of_trace
        };
        let waited = timeout(deadline, spans.wait_for(|all| enough(&collect(all)))).await;
        match waited {
            Ok(Ok(all)) => collect(&all),
            _ => collect(&self.spans.borrow()),
        }
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Receiver {
    spans: Arc<watch::Sender<VecDeque<Span>>>,
}

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let received: Vec<Span> = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| {
                let attributes = resource.resource.map(|r| r.attributes).unwrap_or_default();
                let service = attribute(&attributes, "service.name");
                resource.scope_spans.into_iter().flat_map(|scope| scope.spans).map(move |span| Span {
                    service: service.clone(),
                    name: span.name,
                    trace_id: hex(&span.trace_id),
                    span_id: hex(&span.span_id),
                    parent_id: hex(&span.parent_span_id),
                    kind: span.kind,
                    duration: Duration::from_nanos(
                        span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano),
                    ),
                    start_unix_nanos: span.start_time_unix_nano,
                })
            })
            .collect();
        self.spans.send_modify(|all| {
            all.extend(received);
            while all.len() > CAPACITY {
                all.pop_front();
            }
        });
        Ok(tonic::Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

fn attribute(attributes: &[KeyValue], key: &str) -> String {
    attributes
        .iter()
        .find(|kv| kv.key == key)
        .and_then(|kv| match &kv.value {
            Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => Some(text.clone()),
            _ => None,
        })
        .unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
