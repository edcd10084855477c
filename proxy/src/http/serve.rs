//! The server's side of HTTP with limits, deadlines and drain: HTTP/1 with strict framing, HTTP/2 by hyper.

use super::{
    LocalExecutor,
    body::{Body, Progress},
    flood::{Bounds, Paced},
    framing::{Patience, Strict, ToldLate},
    http1::server::{self, Fault},
    message::Incoming,
    when_woken,
};
use crate::{
    drain,
    error::ProxyError,
    net::Prefixed,
    tls::{Stream, open::Watch},
};
use futures_util::StreamExt;
use http::{
    HeaderValue, Request, Response, StatusCode,
    header::{CONNECTION, UPGRADE},
};
use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_config::documents::Upgrades;
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

/// Bounds of one connection.
#[derive(Clone, Debug)]
pub struct Deadlines {
    /// The first request's head must be complete by then.
    pub first: Instant,
    /// A later head, from its first octet to its last.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two octets of a body.
    pub body: Duration,
    /// How long a client may take nothing.
    pub stalled: Duration,
    /// HTTP/2 frames a second that carry nothing.
    pub frames: u32,
    /// On the way down idle connections last as long as the listener.
    pub side: drain::Side,
    /// For what HTTP/1.1 may be left.
    pub upgrades: Upgrades,
}

/// How a connection ended that did not end well.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub error: ProxyError,
    /// A request of the client is the reason, one that never reached the service: it gets a record of its own.
    pub is_request: bool,
    /// What the client was told.
    pub status: Option<u16>,
}

impl From<ProxyError> for Ended {
    fn from(error: ProxyError) -> Self {
        Self { error, is_request: false, status: None }
    }
}

impl Ended {
    /// The client broke a rule, and was told so with this status.
    fn told(error: ProxyError, status: u16) -> Self {
        Self { error, is_request: true, status: Some(status) }
    }
}

/// Serves one connection until it ends, is drained, loses the trust in its peer, or breaks the protocol; `http2` was sniffed, not negotiated.
pub async fn serve<F, R>(
    stream: Prefixed<Stream>,
    is_http2: bool,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    respond: F,
) -> Result<(), Ended>
where
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Result<Response<Body>, Close>> + 'static,
{
    let seen = Rc::new(Seen::default());
    let (progress, leaving) = (Rc::new(Progress::default()), Rc::new(Cell::new(false)));
    let (mark, standing, offers, leaves) = (seen.clone(), watch.clone(), progress.clone(), leaving.clone());
    let upgrades = deadlines.upgrades.clone();
    let respond = move |mut request| {
        mark.now();
        let asks_tunnel = !is_http2 && asks_tunnel(&mut request, &upgrades);
        let (standing, progress, leaves) = (standing.clone(), offers.clone(), leaves.clone());
        let answer = respond(request);
        async move {
            let mut response = answer.await?;
            if is_http2 {
                response.body_mut().watch(&progress);
            }
            // A connection that is closed while it is idle may lose a request that is on its way.
            let goes_on = response.status() == StatusCode::SWITCHING_PROTOCOLS || is_http2;
            // Octets behind a refused upgrade were not read by the framing reader: nobody may take them for a request.
            if !goes_on && (asks_tunnel || leaves.get() || !standing.takes_more(SystemTime::now)) {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response)
        }
    };
    let result = if is_http2 {
        let service = service_fn(move |request: Request<_>| respond(request.map(Incoming::Http2)));
        // Apart, or every connection would be as large as one of HTTP/2.
        Box::pin(serve_http2(stream, deadlines, drain, watch, (&seen, &progress), service)).await
    } else {
        serve_http1(stream, deadlines, drain, watch, &leaving, respond).await
    };
    match result {
        Ok(()) => Ok(()),
        Err(End::Http1(fault)) => judge(fault, seen.any()),
        Err(End::Http2(error)) => judge_http2(&error, seen.any()),
        Err(End::Flooded) => Err(Ended { error: ProxyError::Flood, is_request: true, status: None }),
        Err(End::Refused) => {
            let error = ProxyError::BadRequest("streams that break a rule of HTTP/2 were reset");
            Err(Ended { error, is_request: true, status: None })
        }
        Err(End::TooLate) => Err(ProxyError::DownstreamTimeout.into()),
        Err(End::Drained) => Err(ProxyError::Draining.into()),
        Err(End::Distrusted(refusal)) => Err(ProxyError::PeerDistrusted(refusal).into()),
    }
}

/// Whether the framing reader stopped reading behind this head; it looks for the same. Where it has not, no tunnel can begin, even if one is
/// allowed by now.
fn asks_tunnel(request: &mut Request<Incoming>, upgrades: &Upgrades) -> bool {
    if !request.headers().contains_key(UPGRADE) {
        return false;
    }
    let mut asked = request.headers().get_all(UPGRADE).iter();
    let is_opaque = asked.any(|value| upgrades.find(value.as_bytes()).is_some());
    if !is_opaque {
        request.headers_mut().remove(UPGRADE);
    }
    is_opaque
}

/// The requests that have come.
#[derive(Default)]
struct Seen {
    count: Cell<u64>,
    first: Notify,
}

impl Seen {
    fn now(&self) {
        if self.count.replace(self.count.get() + 1) == 0 {
            self.first.notify_one();
        }
    }

    fn any(&self) -> bool {
        self.count() > 0
    }

    fn count(&self) -> u64 {
        self.count.get()
    }

    async fn first(&self) {
        if !self.any() {
            self.first.notified().await;
        }
    }
}

enum End {
    Http1(Fault<Close>),
    Http2(hyper::Error),
    Flooded,
    // Streams that h2 has reset before they became requests.
    Refused,
    TooLate,
    Drained,
    Distrusted(Refusal),
}

async fn serve_http1<F, R>(
    stream: Prefixed<Stream>,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    leaving: &Cell<bool>,
    respond: F,
) -> Result<(), End>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Result<Response<Body>, Close>>,
{
    let patience = Patience {
        first_head: deadlines.first,
        head: deadlines.head,
        idle: deadlines.idle,
        body: deadlines.body,
        stalled: deadlines.stalled,
    };
    let closing = Cell::new(false);
    let strict = Strict::new(stream, patience, deadlines.upgrades);
    let mut connection = pin!(server::serve(strict, &closing, respond));
    let mut stop = when_woken(async {
        // A connection that is closed while it is idle may lose a request that is on its way: the next answer closes it.
        let going = async {
            drain.started().await;
            leaving.set(true);
            drain.closed(deadlines.side).await;
        };
        tokio::select! { () = going => {}, () = watch.ending() => {} }
    });
    tokio::select! {
        ended = connection.as_mut() => return ended.map_err(End::Http1),
        _ = stop.next() => {}
    }
    closing.set(true);
    tokio::select! {
        ended = connection => ended.map_err(End::Http1),
        () = drain.over() => Err(End::Drained),
        refusal = watch.ended() => Err(End::Distrusted(refusal)),
    }
}

async fn serve_http2<S>(
    stream: Prefixed<Stream>,
    deadlines: Deadlines,
    drain: &drain::Watch,
    watch: &Watch,
    (seen, progress): (&Seen, &Progress),
    service: S,
) -> Result<(), End>
where
    S: hyper::service::Service<Request<hyper::body::Incoming>, Response = Response<Body>, Error = Close>
        + 'static,
    S::Future: 'static,
{
    let bounds = Bounds { frames: deadlines.frames, stalled: deadlines.stalled };
    let (stream, frames) = Paced::server(stream, bounds);
    let ended = |ended: hyper::Result<()>| match ended {
        _ if frames.flooded() => Err(End::Flooded),
        Ok(()) if frames.streams() > seen.count() => Err(End::Refused),
        ended => ended.map_err(End::Http2),
    };
    let connection = http2::Builder::new(LocalExecutor)
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        // h2 counts 32 octets more for each line, and refuses without telling us; what is only a little too much is for the
        // canonical reading to refuse, with a record.
        .max_header_list_size(HEADER_LIST)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(1 << 20)
        // What a stream may hold for a client that does not read: as much as a client may make us hold of its own.
        .max_send_buf_size(WINDOW as usize)
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
    let mut late = pin!(tokio::time::sleep_until(deadlines.first));
    let mut waiting = true;
    let mut stop = when_woken(async {
        tokio::select! {
            () = leaving => {}
            () = watch.ending() => {}
            // Before the first request hyper would close at once, and lose it.
            () = async { watch.left().await; seen.first().await } => {}
        }
    });
    let mut looks = tokio::time::interval(deadlines.stalled);
    loop {
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            _ = stop.next() => break,
            () = late.as_mut(), if waiting => {
                if !seen.any() {
                    return Err(End::TooLate);
                }
                waiting = false;
            }
            _ = looks.tick() => if progress.has_stalled() {
                return Err(End::TooLate);
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection => ended(result),
        () = drain.over() => Err(End::Drained),
        refusal = watch.ended() => Err(End::Distrusted(refusal)),
    }
}

/// The window of a stream, in octets.
const WINDOW: u32 = 256 * 1024;
/// The most that h2 decodes of a header list, in octets.
const HEADER_LIST: u32 = 128 * 1024;

/// What the end of an HTTP/1 connection means for its record.
fn judge(fault: Fault<Close>, served: bool) -> Result<(), Ended> {
    match fault {
        Fault::Refused(error, status) => Err(Ended::told(error, status.as_u16())),
        Fault::Line(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            let told = error.get_ref().is_some_and(|inner| inner.is::<ToldLate>());
            Err(if told {
                Ended::told(ProxyError::DownstreamTimeout, 408)
            } else {
                ProxyError::DownstreamTimeout.into()
            })
        }
        // A client that goes between requests, or during one: that one's record says so.
        Fault::Line(_) | Fault::Gone if !served => Err(ProxyError::DownstreamGone.into()),
        // The service has written its own record.
        Fault::Line(_) | Fault::Gone | Fault::Answer | Fault::Service(Close) => Ok(()),
    }
}

/// What hyper's error means for the record of an HTTP/2 connection: who broke the protocol gets one for it, whatever else it has
/// asked before.
fn judge_http2(error: &hyper::Error, served: bool) -> Result<(), Ended> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<h2::Error>() {
            if error.is_library() {
                let error = ProxyError::BadRequest("HTTP/2 protocol error");
                return Err(Ended { error, is_request: true, status: None });
            }
            return match error.get_io().map(std::io::Error::kind) {
                Some(std::io::ErrorKind::TimedOut) => Err(ProxyError::DownstreamTimeout.into()),
                _ if served => Ok(()),
                _ => Err(ProxyError::DownstreamGone.into()),
            };
        }
        if inner.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut)
        {
            return Err(ProxyError::DownstreamTimeout.into());
        }
        cause = inner.source();
    }
    if served { Ok(()) } else { Err(ProxyError::DownstreamGone.into()) }
}
