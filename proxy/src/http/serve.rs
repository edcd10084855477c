//! The server's side of HTTP with limits, deadlines and drain: HTTP/1 with strict framing, HTTP/2 by hyper.

use super::{
    LocalExecutor,
    body::{Body, Progress},
    flood::{Bounds, Paced},
    framing::{Patience, Strict, ToldLate},
    http1::server::{self, Fault},
    message::Incoming,
};
use crate::{
    error::ProxyError,
    net::Prefixed,
    news::{News, Phase},
    tls::{Stream, open::Watch},
};
use futures_util::future::LocalBoxFuture;
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
use tokio::time::Instant;

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

/// What the requests of one connection have to do with it.
struct Serving {
    is_http2: bool,
    news: Rc<News>,
    watch: Watch,
    upgrades: Upgrades,
    requests: Cell<u64>,
    progress: Rc<Progress>,
}

/// Serves one connection until it ends, is drained, loses the trust in its peer, or breaks the protocol; `is_http2` was sniffed, not
/// negotiated. Every idle connection holds the future, so nothing lies in it that is not needed then.
pub fn serve<F, R>(
    stream: Prefixed<Stream>,
    is_http2: bool,
    deadlines: Deadlines,
    news: Rc<News>,
    watch: Watch,
    respond: F,
) -> LocalBoxFuture<'static, Result<(), Ended>>
where
    F: Fn(Request<Incoming>) -> R + 'static,
    R: Future<Output = Result<Response<Body>, Close>> + 'static,
{
    let (upgrades, progress) = (deadlines.upgrades.clone(), Rc::default());
    let serving = Rc::new(Serving { is_http2, news, watch, upgrades, requests: Cell::new(0), progress });
    let held = serving.clone();
    let respond = move |mut request| {
        let asks_tunnel = held.note(&mut request);
        let (held, answer) = (held.clone(), respond(request));
        async move { answer.await.map(|response| held.mark(response, asks_tunnel)) }
    };
    if is_http2 {
        let service = service_fn(move |request: Request<_>| respond(request.map(Incoming::Http2)));
        return Box::pin(async move {
            let ended = serve_http2(stream, deadlines, &serving, service).await;
            ended.or_else(|end| serving.judge(end))
        });
    }
    let patience = Patience {
        first_head: deadlines.first,
        head: deadlines.head,
        idle: deadlines.idle,
        body: deadlines.body,
        stalled: deadlines.stalled,
    };
    let strict = Box::new(Strict::new(stream, patience, deadlines.upgrades));
    Box::pin(async move { serve_http1(strict, &serving, respond).await.or_else(|end| serving.judge(end)) })
}

impl Serving {
    /// Counts the request; whether a tunnel may begin with it.
    fn note(&self, request: &mut Request<Incoming>) -> bool {
        let is_first = self.requests.replace(self.requests.get() + 1) == 0;
        // Who leaves has waited for it.
        if is_first && self.is_http2 && (self.news.phase() >= Phase::Leaving || self.watch.is_left()) {
            self.news.tell();
        }
        !self.is_http2 && asks_tunnel(request, &self.upgrades)
    }

    /// Says whether the connection goes on behind this answer.
    fn mark(&self, mut response: Response<Body>, asks_tunnel: bool) -> Response<Body> {
        if self.is_http2 {
            response.body_mut().watch(&self.progress);
            return response;
        }
        let is_leaving = self.news.phase() >= Phase::Leaving || !self.watch.takes_more(SystemTime::now);
        // A connection that is closed while it is idle may lose a request that is on its way. Octets behind a refused upgrade were not
        // read by the framing reader: nobody may take them for a request.
        if response.status() != StatusCode::SWITCHING_PROTOCOLS && (asks_tunnel || is_leaving) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    fn any(&self) -> bool {
        self.requests.get() > 0
    }

    /// Resolves when no time is left, or no trust in the peer.
    async fn over(&self) -> End {
        self.news.until(|| self.news.phase() == Phase::Over || self.watch.refusal().is_some()).await;
        self.watch.refusal().map_or(End::Drained, End::Distrusted)
    }

    fn judge(&self, end: End) -> Result<(), Ended> {
        match end {
            End::Http1(fault) => judge(fault, self.any()),
            End::Http2(error) => judge_http2(&error, self.any()),
            End::Flooded => Err(Ended { error: ProxyError::Flood, is_request: true, status: None }),
            End::Refused => {
                let error = ProxyError::BadRequest("streams that break a rule of HTTP/2 were reset");
                Err(Ended { error, is_request: true, status: None })
            }
            End::TooLate => Err(ProxyError::DownstreamTimeout.into()),
            End::Drained => Err(ProxyError::Draining.into()),
            End::Distrusted(refusal) => Err(ProxyError::PeerDistrusted(refusal).into()),
        }
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
    stream: Box<Strict<Prefixed<Stream>>>,
    serving: &Serving,
    respond: F,
) -> Result<(), End>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Result<Response<Body>, Close>>,
{
    let (closing, news) = (Cell::new(false), &serving.news);
    let mut connection = pin!(server::serve(*stream, &closing, respond));
    tokio::select! {
        biased;
        ended = connection.as_mut() => return ended.map_err(End::Http1),
        () = news.until(|| news.phase() >= Phase::Closing || serving.watch.is_ending()) => {}
    }
    closing.set(true);
    tokio::select! {
        ended = connection => ended.map_err(End::Http1),
        end = serving.over() => Err(end),
    }
}

async fn serve_http2<S>(
    stream: Prefixed<Stream>,
    deadlines: Deadlines,
    serving: &Serving,
    service: S,
) -> Result<(), End>
where
    S: hyper::service::Service<Request<hyper::body::Incoming>, Response = Response<Body>, Error = Close>
        + 'static,
    S::Future: 'static,
{
    let (news, watch) = (&serving.news, &serving.watch);
    let bounds = Bounds { frames: deadlines.frames, stalled: deadlines.stalled };
    let (stream, frames) = Paced::server(stream, bounds);
    let ended = |ended: hyper::Result<()>| match ended {
        _ if frames.flooded() => Err(End::Flooded),
        Ok(()) if frames.streams() > serving.requests.get() => Err(End::Refused),
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
    let is_late = news.phase() >= Phase::Leaving;
    let mut late = pin!(tokio::time::sleep_until(deadlines.first));
    let mut waiting = true;
    let mut stop = pin!(news.until(|| {
        let is_leaving = news.phase() >= Phase::Leaving && (!is_late || serving.any());
        // Before the first request hyper would close at once, and lose it.
        is_leaving || watch.is_ending() || (watch.is_left() && serving.any())
    }));
    let mut looks = tokio::time::interval(deadlines.stalled);
    loop {
        tokio::select! {
            result = connection.as_mut() => return ended(result),
            () = stop.as_mut() => break,
            () = late.as_mut(), if waiting => {
                if !serving.any() {
                    return Err(End::TooLate);
                }
                waiting = false;
            }
            _ = looks.tick() => if serving.progress.has_stalled() {
                return Err(End::TooLate);
            }
        }
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        result = connection => ended(result),
        end = serving.over() => Err(end),
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
