//! One HTTP connection as a row of requests, each with a record of its own.

use super::{
    Worker, forward,
    governor::{Governor, Level},
};
use crate::{
    drain::Side,
    error::ProxyError,
    http::{
        Body,
        deadline::{GRACE, grpc_timeout},
        is_grpc,
        message::Incoming,
        reply,
        serve::{self, Close, Deadlines},
    },
    net::Prefixed,
    telemetry::{Record, Telemetry},
    tls::Stream,
};
use ::http::{Request, Response};
use futures_util::future::LocalBoxFuture;
use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a request is held while no line of the access log may be lost and too many wait; then its connection (HTTP/2: its
/// stream) is closed, since an answer would be one more line.
const HELD: Duration = Duration::from_secs(10);

/// What becomes of a request.
pub type Answer = LocalBoxFuture<'static, Result<Response<Body>, Close>>;

/// What a connection is from the moment on that it is known what to do with it, until it ends. It is apart, since connections last, and
/// what had been needed before would last with them.
pub type Carrying = LocalBoxFuture<'static, ()>;

/// What a connection is instead that is not carried: nothing but a record that says why.
pub fn not_carried(mut record: Record, error: &ProxyError) -> Option<Carrying> {
    record.set_error(error);
    None
}

/// Serves one connection: `respond` gets every request with its record. `record` is the connection's own, which is written only
/// when no request came of it.
pub fn serve<F>(
    worker: &Worker,
    stream: Prefixed<Stream>,
    http2: bool,
    deadline: Instant,
    mut record: Record,
    respond: F,
) -> Carrying
where
    F: Fn(Request<Incoming>, Record) -> Answer + 'static,
{
    record.set_protocol(if http2 { "http/2" } else { "http/1.1" });
    let watch = record.watch().clone();
    let limits = &worker.shared.settings.limits;
    let own = worker.shared.store.inbound();
    let deadlines = Deadlines {
        first: deadline,
        head: limits.head,
        idle: limits.next_request,
        body: limits.body,
        stalled: limits.stalled,
        frames: limits.frames,
        upgrades: own.map(|policy| policy.snapshot.upgrades().clone()).unwrap_or_default(),
    };
    let taking = Rc::new(Taking {
        http2,
        grace: if worker.side == Side::Inbound { GRACE } else { 2 * GRACE },
        record: RefCell::new(record),
        governor: worker.shared.governor.clone(),
        telemetry: worker.shared.telemetry.clone(),
        respond,
    });
    let held = taking.clone();
    let respond = move |request: Request<Incoming>| {
        if held.telemetry.has_room() {
            return held.take(request);
        }
        let held = held.clone();
        Box::pin(async move {
            held.room().await?;
            held.take(request).await
        })
    };
    let serving = serve::serve(stream, http2, deadlines, worker.news.clone(), watch, respond);
    Box::pin(async move {
        let Err(ended) = serving.await else { return };
        let mut record = taking.record.borrow_mut();
        if ended.is_request {
            // It never became a request of ours; it still gets its own line.
            let mut broken = record.request();
            if let Some(status) = ended.status {
                broken.set_status(status);
            }
            broken.set_error(&ended.error);
        } else {
            record.set_error(&ended.error);
        }
    })
}

/// What all requests of one connection need.
struct Taking<F> {
    http2: bool,
    grace: Duration,
    record: RefCell<Record>,
    governor: Arc<Governor>,
    telemetry: Telemetry,
    respond: F,
}

impl<F> Taking<F>
where
    F: Fn(Request<Incoming>, Record) -> Answer,
{
    /// Opens the record of a request and responds to it.
    fn take(&self, request: Request<Incoming>) -> Answer {
        let mut record = self.record.borrow_mut().request();
        let patience = match admit(&request, &self.governor) {
            Ok(patience) => patience,
            Err(error) => {
                if matches!(error, ProxyError::Overloaded(_)) {
                    self.telemetry.metrics().shed("memory");
                }
                record.set_request(request.method(), "", request.uri().path(), request.headers());
                let mut refusal = forward::refuse(&error, record, is_grpc(request.headers()));
                // The body is not read: the connection closes instead.
                forward::close_after(&mut refusal, self.http2);
                return Box::pin(std::future::ready(Ok(refusal)));
            }
        };
        if let Some(patience) = patience {
            record.set_deadline(patience);
        }
        // Only gRPC says how long it waits.
        in_time((self.respond)(request, record), patience, self.grace, true)
    }

    /// Waits until the access log takes lines again. No record is open meanwhile: who comes and goes leaves no line, or the lines of a
    /// log that is stuck would be without end. The metric counts them.
    async fn room(&self) -> Result<(), Close> {
        self.telemetry.metrics().shed("access_log");
        tokio::time::timeout(HELD, self.telemetry.room()).await.map_err(|_| Close)
    }
}

/// Whether there is room for this request, and how long its caller waits when it is gRPC and says so.
fn admit(request: &Request<Incoming>, governor: &Governor) -> Result<Option<Duration>, ProxyError> {
    if governor.level() >= Level::Shedding {
        return Err(ProxyError::Overloaded("short of memory"));
    }
    // Only gRPC gives the header a meaning.
    if is_grpc(request.headers()) { grpc_timeout(request.headers()) } else { Ok(None) }
}

/// The answer, or the news that it did not come in time, `grace` later; what has begun by then ends with that news.
pub fn in_time(answer: Answer, patience: Option<Duration>, grace: Duration, grpc: bool) -> Answer {
    // A time that the clock cannot hold is for ever.
    let Some((patience, end)) = patience
        .and_then(|patience| Some((patience, Instant::now().checked_add(patience)?.checked_add(grace)?)))
    else {
        return answer;
    };
    Box::pin(async move {
        match tokio::time::timeout_at(end, answer).await {
            Ok(answer) => answer.map(|mut response| {
                response.body_mut().end_at(end, patience, grpc);
                response
            }),
            // The record has gone with the exchange, and says the same.
            Err(_) => Ok(reply::failure(&ProxyError::DeadlineExceeded(patience), None, grpc)),
        }
    })
}
