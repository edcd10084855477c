//! Spans: both sidecars send theirs to an OTLP collector, in one trace, each under the one before it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use postern_tests::{
    Mesh,
    mesh::{Settings, within},
    scenario::{mode, payments},
};
use tokio::{net::TcpListener, sync::mpsc};

struct Collector(mpsc::UnboundedSender<Span>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: tonic::Request<ExportTraceServiceRequest>,
    ) -> Result<tonic::Response<ExportTraceServiceResponse>, tonic::Status> {
        let resources = request.into_inner().resource_spans;
        for span in resources.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans) {
            let _ = self.0.send(span);
        }
        Ok(tonic::Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_is_two_spans_of_the_callers_trace() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (sender, mut spans) = mpsc::unbounded_channel();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = TraceServiceServer::new(Collector(sender));
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));

    let settings = Settings { otlp_endpoint: Some(endpoint), ..Settings::default() };
    let mesh = Mesh::start_with(&payments(&mode("payments", "STRICT")), settings).await;
    let call = mesh.request("checkout-api", "payments-api").method("POST").path("/v1/charges");
    call.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        .send()
        .await
        .unwrap();

    let trace: Vec<u8> = (0..16)
        .map(|n| u8::from_str_radix(&"0af7651916cd43dd8448eb211c80319c"[2 * n..2 * n + 2], 16).unwrap())
        .collect();
    let mut ours: Vec<Span> = Vec::new();
    within("both spans have arrived", async {
        while ours.len() < 2 {
            let span = spans.recv().await.unwrap();
            if span.trace_id == trace {
                ours.push(span);
            }
        }
    })
    .await;
    let hex = |id: &[u8]| id.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let outbound = ours
        .iter()
        .find(|s| hex(&s.parent_span_id) == "b7ad6b7169203331")
        .expect("a child of the app's span");
    let inbound =
        ours.iter().find(|s| s.parent_span_id == outbound.span_id).expect("a child of the outbound span");
    assert_eq!((outbound.kind, inbound.kind), (3, 2), "client, then server");
    assert!(inbound.end_time_unix_nano >= inbound.start_time_unix_nano);
}
