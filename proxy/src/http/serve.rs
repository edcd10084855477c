//! The server's side of HTTP: hyper with strict framing, limits, deadlines and drain.

use super::{
    Body, LocalExecutor, canonical,
    framing::{Patience, Strict},
};
use crate::{
    drain,
    error::ProxyError,
    net::Prefixed,
    tls::{Stream, open::Watch},
};
use http::{HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_identity::Refusal;
use std::{
    cell::Cell,
    pin::pin,
    rc::Rc,
    time::{Duration, SystemTime},
};
use tokio::{sync::Notify, time::Instant};

/// The service wants this connection closed without (further) answer.
#[derive(Debug, thiserror::Error)]
#[error("connection closed by the proxy")]
pub struct Close;

/// Deadlines of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The first request's head must be complete by then.
    pub first: Instant,
    /// Between two requests.
    pub idle: Duration,
    /// On the way down idle connections last as long as the listener.
    pub side: drain::Side,
}

/// Serves one connection until it ends, is drained, loses the trust in its peer, or breaks the protocol; `http2` was sniffed, not negotiated.
pub async fn serve<F, R>(
    stream: Prefixed<Stream>,
    is_http2: bool,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    respond: F,
) -> Result<(), ProxyError>
where
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Result<Response<Body>, Close>> + 'static,
{
    let seen = Rc::new(Seen::default());
    let leaving = Rc::new(Cell::new(false));
    let (mark, standing, leaves) = (seen.clone(), watch.clone(), leaving.clone());
    let service = service_fn(move |request| {
        mark.now();
        let (answer, standing, leaves) = (respond(request), standing.clone(), leaves.clone());
        async move {
            let mut response = answer.await?;
            // A connection that is closed while it is idle may lose a request that is on its way.
            let goes_on = response.status() == StatusCode::SWITCHING_PROTOCOLS || is_http2;
            if !goes_on && (leaves.get() || !standing.takes_more(SystemTime::now())) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    });
    let result = if is_http2 {
        serve_http2(stream, deadlines, drain, watch, &seen, service).await
    } else {
        serve_http1(stream, deadlines, drain, watch, &leaving, service).await
    };
    match result {
        Ok(()) => Ok(()),
        Err(End::Protocol(error)) => judge(&error, seen.any()),
        Err(End::TooLate) => Err(ProxyError::DownstreamTimeout),
        Err(End::Drained) => Err(ProxyError::Draining),
        Err(End::Distrusted(refusal)) => Err(ProxyError::PeerDistrusted(refusal)),
    }
}

/// Whether a request has come.
#[derive(Default)]
struct Seen {
    any: Cell<bool>,
    first: Notify,
}

impl Seen {
    fn now(&self) {
        if !self.any.replace(true) {
            self.first.notify_one();
        }
    }

    fn any(&self) -> bool {
        self.any.get()
    }

    async fn first(&self) {
        if !self.any() {
            self.first.notified().await;
        }
    }
}

enum End {
    Protocol(hyper::Error),
    TooLate,
    Drained,
    Distrusted(Refusal),
}

async fn serve_http1<S>(
    stream: Prefixed<Stream>,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    leaving: &Cell<bool>,
    service: S,
) -> Result<(), End>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Close> + 'static,
    S::Future: 'static,
{
    let patience = Patience {
        first_head: deadlines.first,
        head: Duration::from_secs(10),
        idle: deadlines.idle,
        body: Duration::from_secs(60),
    };
    let io = TokioIo::new(Strict::new(stream, patience));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // The framing reader holds the deadlines: it knows an idle connection from a slow head.
        .header_read_timeout(None)
        .half_close(true)
        .keep_alive(true)
        .max_headers(canonical::MAX_HEADERS)
        .max_buf_size(canonical::MAX_HEADER_BYTES + 16 * 1024)
        // No pipeline_flush: with unread octets in its buffer hyper would never send the 400 for them.
        .serve_connection(io, service)
        .with_upgrades();
    let mut connection = pin!(connection);
    // A connection that is closed while it is idle may lose a request that is on its way: the next answer closes it.
    let going = async {
        drain.started().await;
        leaving.set(true);
        drain.closed(deadlines.side).await;
    };
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(End::Protocol),
        () = going => {}
        () = watch.ending() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => ended.map_err(End::Protocol),
        () = drain.over() => Err(End::Drained),
        refusal = watch.ended() => Err(End::Distrusted(refusal)),
    }
}

async fn serve_http2<S>(
    stream: Prefixed<Stream>,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    seen: &Seen,
    service: S,
) -> Result<(), End>
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<Body>, Error = Close> + 'static,
    S::Future: 'static,
{
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .max_header_list_size(64 * 1024)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(1 << 20)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    // Accepted on the way down: its first request is served all the same.
    let is_late = drain.is_draining();
    let leaving = async {
        drain.started().await;
        if is_late {
            seen.first().await;
        }
    };
    let mut leaving = pin!(leaving);
    let mut late = pin!(tokio::time::sleep_until(deadlines.first));
    let mut waiting = true;
    loop {
        tokio::select! {
            ended = connection.as_mut() => return ended.map_err(End::Protocol),
            () = leaving.as_mut() => break,
            () = watch.ending() => break,
            // Before the first request hyper would close at once, and lose it.
            () = async { watch.left().await; seen.first().await } => break,
            () = late.as_mut(), if waiting => {
                if !seen.any() {
                    return Err(End::TooLate);
                }
                waiting = false;
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => ended.map_err(End::Protocol),
        () = drain.over() => Err(End::Drained),
        refusal = watch.ended() => Err(End::Distrusted(refusal)),
    }
}

/// What hyper's error means for the connection's record.
fn judge(error: &hyper::Error, served: bool) -> Result<(), ProxyError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if inner.is::<Close>() {
            // The service has written its own record.
            return Ok(());
        }
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                std::io::ErrorKind::TimedOut => Err(ProxyError::DownstreamTimeout),
                // A client that goes between requests, or during one: that one's record says so.
                _ if served => Ok(()),
                _ => Err(ProxyError::DownstreamGone),
            };
        }
        cause = inner.source();
    }
    if error.is_parse_too_large() {
        Err(ProxyError::HeadersTooLarge("the head is too large"))
    } else if error.is_parse() {
        Err(ProxyError::BadRequest("not a well-formed HTTP/1.1 request"))
    } else if error.is_incomplete_message()
        || error.is_canceled()
        || error.is_closed()
        || error.is_body_write_aborted()
        || served
    {
        if served { Ok(()) } else { Err(ProxyError::DownstreamGone) }
    } else {
        Err(ProxyError::BadRequest("HTTP/2 protocol error"))
    }
}
