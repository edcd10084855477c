//! One HTTP connection as a row of requests, each with a record of its own.

use super::Worker;
use crate::{
    error::ProxyError,
    http::{
        Body,
        serve::{self, Close, Deadlines},
    },
    net::Prefixed,
    telemetry::Record,
    tls::Stream,
};
use ::http::{Request, Response};
use hyper::body::Incoming;
use std::{cell::RefCell, rc::Rc};
use tokio::time::Instant;

/// Serves one connection: `respond` gets every request with its record. `record` is the connection's own, which is written only
/// when no request came of it.
pub async fn serve<F, R>(
    worker: &Worker,
    stream: Prefixed<Stream>,
    http2: bool,
    deadline: Instant,
    mut record: Record,
    respond: F,
) where
    F: Fn(Request<Incoming>, Record) -> R + 'static,
    R: Future<Output = Result<Response<Body>, Close>> + 'static,
{
    record.set_protocol(if http2 { "http/2" } else { "http/1.1" });
    let watch = record.watch().clone();
    let deadlines =
        Deadlines { first: deadline, idle: worker.shared.settings.limits.next_request, side: worker.side };
    let record = Rc::new(RefCell::new(record));
    let requests = record.clone();
    let respond = move |request| respond(request, requests.borrow_mut().request());
    if let Err(error) = serve::serve(stream, http2, deadlines, &worker.shared.drain, &watch, respond).await {
        let mut record = record.borrow_mut();
        if matches!(error, ProxyError::BadRequest(_) | ProxyError::HeadersTooLarge(_)) {
            // A malformed head never became a request of ours; it still gets its own line.
            let mut malformed = record.request();
            malformed.set_status(error.http_status());
            malformed.set_error(&error);
        } else {
            record.set_error(&error);
        }
    }
}
