//! From an accepted socket to a call: who it is, whether there is room, whether it knows where it is.

use super::{
    authfix::Fixed,
    callers::{Call, Callers, Limits, Seat},
    socket::Socket,
};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::net::UnixStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tower::Service;

/// From accept to the first call.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// Without a call after that.
const IDLE: Duration = Duration::from_secs(300);
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_PATIENCE: Duration = Duration::from_secs(20);
const STREAMS: u32 = 100;
const HEADER_BYTES: u32 = 16 * 1024;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);
/// SPIFFE Workload Endpoint 6.1: without it the call comes from somebody who was talked into it (SSRF).
const METADATA: &str = "workload.spiffe.io";
const WORKLOAD_API: &str = "/SpiffeWorkloadAPI/";

/// Accepts until stopped, and ends every connection then.
pub(super) async fn serve(socket: Socket, routes: Routes, stop: CancellationToken) {
    let callers = Callers::new(Limits::default());
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = socket.listener().accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: going on at once would only burn a core.
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            continue;
        };
        let Ok(peer) = stream.peer_cred() else { continue };
        match callers.connect(peer.uid(), Instant::now()) {
            Ok(seat) => {
                connections.spawn(connection(stream, seat, routes.clone(), stop.clone()));
            }
            Err(reason) => {
                tracing::debug!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    reason,
                    "Workload API: connection refused"
                );
            }
        }
    }
    connections.close();
    connections.wait().await;
}

async fn connection(stream: UnixStream, seat: Arc<Seat>, routes: Routes, stop: CancellationToken) {
    let gate = Gate { routes, seat: seat.clone() };
    let serving = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEADER_BYTES)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(256 * 1024)
        .max_send_buf_size(64 * 1024)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .serve_connection(TokioIo::new(Fixed::new(stream)), gate);
    tokio::pin!(serving);
    tokio::select! {
        // What goes wrong here is the caller's business.
        _ = &mut serving => {}
        () = stop.cancelled() => {}
        () = seat.idle(FIRST_CALL, IDLE) => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(FIRST_CALL, serving).await;
        }
    }
}

/// One connection's way to the services.
struct Gate {
    routes: Routes,
    seat: Arc<Seat>,
}

type Answer = http::Response<Body>;

impl hyper::service::Service<http::Request<Incoming>> for Gate {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let call = match self.admit(&request) {
            Ok(call) => call,
            Err(status) => return Box::pin(std::future::ready(Ok(status.into_http()))),
        };
        let mut routes = self.routes.clone();
        Box::pin(async move {
            let answer = routes.call(request.map(Body::new)).await?;
            Ok(answer.map(|body| Body::new(Held { body, _call: call })))
        })
    }
}

impl Gate {
    fn admit<B>(&self, request: &http::Request<B>) -> Result<Call, Status> {
        let call = self.seat.call(Instant::now()).map_err(|reason| {
            Status::unavailable(format!("{reason}; wait, and share one client per process"))
        })?;
        let mut values = request.headers().get_all(METADATA).iter();
        let is_marked = values.next().is_some_and(|value| value == "true") && values.next().is_none();
        if request.uri().path().starts_with(WORKLOAD_API) && !is_marked {
            return Err(Status::invalid_argument(
                "security header missing from request: send the metadata `workload.spiffe.io: true`",
            ));
        }
        Ok(call)
    }
}

/// A body that keeps its call's place until it ends.
struct Held {
    body: Body,
    _call: Call,
}

impl hyper::body::Body for Held {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
