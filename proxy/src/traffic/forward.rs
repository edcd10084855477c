//! The way of one exchange: the request as it goes on, the answer as it comes back, or our own answer instead.

use super::{governor::Place, requests::Answer};
use crate::{
    error::ProxyError,
    http::{
        Body,
        body::{Download, Exchange, Telling, Upload},
        canonical::Target,
        headers::{self, Wish},
        headroom::Headroom,
        message::{Answering, Incoming},
        pool::Lease,
        reply, upgrade,
    },
    telemetry::Record,
};
use futures_util::future::LocalBoxFuture;
use http::{
    HeaderValue, Request, Response, StatusCode, Uri, Version,
    header::{CONNECTION, HOST, UPGRADE},
    request::Parts,
};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use std::{rc::Rc, time::Duration};
use tokio_util::task::TaskTracker;

/// The request as the upstream gets it: exactly the target that was judged.
pub fn upstream_request(
    mut parts: Parts,
    target: Target,
    upload: Upload,
    http2: bool,
    wish: &Wish,
) -> Result<Box<Request<Upload>>, ProxyError> {
    const BAD: ProxyError = ProxyError::BadRequest("the target cannot be sent on");
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(target.path_and_query);
    if http2 {
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(target.authority.as_bytes().try_into().map_err(|_| BAD)?);
    } else {
        parts.headers.insert(HOST, target.authority);
    }
    if let Wish::Upgrade(protocol) = wish {
        headers::ask_upgrade(&mut parts.headers, HeaderValue::clone(protocol));
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| BAD)?;
    parts.version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    // Nothing of the downstream connection travels on.
    parts.extensions.clear();
    Ok(Box::new(Request::from_parts(parts, upload)))
}

/// What the answer needs to know about its request.
pub struct Asked {
    /// What the client wished.
    pub wish: Wish,
    /// `application/grpc*`.
    pub grpc: bool,
    /// Whether the client speaks HTTP/2: only there it reads trailers for certain.
    pub http2: bool,
    /// How long a half-closed tunnel may be silent.
    pub half_closed: Duration,
    /// Who waits for tunnels on the way down.
    pub tunnels: TaskTracker,
    /// The place that a tunnel takes, when one was asked for: it outlives the connection that it began as.
    pub place: Option<Place>,
    /// Whether there is memory for its answer.
    pub headroom: Rc<Headroom>,
}

/// The upstream's answer, cleaned, with a body that carries the record to its end; the record knows when it came. `revoked` watches
/// over a tunnel, where one was asked for.
pub fn deliver(
    response: Response<Answering>,
    mut lease: Lease,
    exchange: Rc<Exchange>,
    mut record: Record,
    asked: Asked,
    revoked: Option<LocalBoxFuture<'static, ProxyError>>,
) -> Response<Body> {
    let (mut parts, incoming) = response.into_parts();
    let is_tunnel = parts.status == StatusCode::SWITCHING_PROTOCOLS;
    if is_tunnel || parts.status.as_u16() >= 600 {
        let spoken = parts.headers.get(UPGRADE).map(HeaderValue::as_bytes);
        let is_wished = match &asked.wish {
            Wish::Upgrade(protocol) => {
                spoken.is_some_and(|spoken| spoken.eq_ignore_ascii_case(protocol.as_bytes()))
            }
            Wish::Answer => false,
        };
        let (true, true, false, Answering::Http1(answer), Some(revoked)) =
            (is_tunnel, is_wished, asked.http2, incoming, revoked)
        else {
            let error = ProxyError::UpstreamProtocol(format!(
                "status {} that nobody asked for",
                parts.status.as_u16()
            ));
            return refuse(&error, record, asked.grpc);
        };
        headers::clean_response(&mut parts.headers, true);
        parts.version = Version::HTTP_11;
        record.set_status(101);
        record.answer_handed_over();
        let upstream = answer.into_tunnel();
        let held = (lease.take_counts(), asked.place);
        let start = move |downstream| {
            let tunnel = async move {
                upgrade::tunnel(downstream, upstream, asked.half_closed, record, revoked).await;
                drop(held);
            };
            drop(tokio::task::spawn_local(asked.tunnels.track_future(tunnel)));
        };
        return Response::from_parts(parts, Body::Tunnel(Some(Box::new(start))));
    }
    headers::clean_response(&mut parts.headers, false);
    parts.version = Version::HTTP_11;
    record.set_status(parts.status.as_u16());
    if asked.grpc
        && let Some(status) = reply::grpc_status_of(&parts.headers)
    {
        record.set_grpc_status(status);
    }
    record.answer_handed_over();
    let telling = if asked.grpc && asked.http2 { Telling::Status } else { Telling::Break };
    let download = Download::new(incoming, exchange, record, lease, asked.headroom, telling);
    Response::from_parts(parts, Body::Upstream(Box::new(download)))
}

/// Our own answer, noted in the record.
pub fn refuse(error: &ProxyError, mut record: Record, grpc: bool) -> Response<Body> {
    record.set_error(error);
    let response = reply::failure(error, record.decision_id(), grpc);
    record.set_status(response.status().as_u16());
    if grpc {
        record.set_grpc_status(error.grpc_status());
    }
    record.add_sent(response.body().size_hint().exact().unwrap_or(0));
    record.answer_handed_over();
    response
}

/// What becomes of an HTTP/1 connection after an answer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It carries the next request, when the body of this one could be read.
    GoesOn,
    /// It closes: two readers could see the next request begin in two places.
    Closes,
}

/// Our own answer to a request that goes nowhere. Its body is read, up to a limit, or the connection closes.
pub fn turn_away(
    error: ProxyError,
    (parts, incoming): (Parts, Incoming),
    record: Record,
    grpc: bool,
    http2: bool,
    then: Then,
) -> Answer {
    Box::pin(async move {
        let is_drained = http2 || drain(&parts, incoming).await;
        let mut response = refuse(&error, record, grpc);
        if !is_drained || then == Then::Closes {
            close_after(&mut response, http2);
        }
        Ok(response)
    })
}

/// What we read of a body that nobody wants, before we answer and close instead.
const DRAIN_BYTES: usize = 64 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// Reads the rest of a refused request, so that the client can read our answer on a connection that stays usable; `false`:
/// it was too much, the connection must close. A client that waits for `100 Continue` has not sent it, and is not asked to.
async fn drain(parts: &Parts, mut incoming: Incoming) -> bool {
    if incoming.is_end_stream() {
        return true;
    }
    if parts.headers.contains_key(http::header::EXPECT) {
        return false;
    }
    let reading = async {
        let mut read = 0;
        while let Some(frame) = incoming.frame().await {
            let Ok(frame) = frame else { return false };
            read += frame.data_ref().map_or(0, bytes::Bytes::len);
            if read > DRAIN_BYTES {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(DRAIN_TIME, reading).await.unwrap_or(false)
}

/// Asks the server to close an HTTP/1 connection after this answer.
pub fn close_after(response: &mut Response<Body>, http2: bool) {
    if !http2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
}
