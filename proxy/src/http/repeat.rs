//! Which lost request may be sent again, and whose fault the loss is.
//!
//! Again goes what nobody has processed: never sent, refused (REFUSED_STREAM, RFC 9113 section 8.7), or above the last stream of a
//! GOAWAY (section 6.8). And what does nothing more when it is processed twice: an idempotent request (RFC 9110 section 9.2.2) without
//! a body, whose connection closed before any byte of an answer. A body is never kept: once read, it cannot be sent again.

use super::{
    body::{Exchange, Upload},
    causes, describe,
    http1::Lost,
};
use crate::error::ProxyError;
use http::{Method, Request, header::UPGRADE};
use hyper::{body::Body as _, client::conn::TrySendError};

/// A request that may be sent again.
pub enum Again {
    /// Nobody has processed it.
    Unsent(Box<Request<Upload>>),
    /// It may have been processed, and is idempotent; or it was refused unprocessed after it was sent.
    Repeat(Box<Request<Upload>>),
}

impl Again {
    /// The request.
    pub fn request(self) -> Box<Request<Upload>> {
        match self {
            Self::Unsent(request) | Self::Repeat(request) => request,
        }
    }
}

/// A copy of an HTTP/2 request in case it is lost; `None` when it could never be used.
pub fn copy_of(request: &Request<Upload>) -> Option<Box<Request<Upload>>> {
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(Box::new(copy))
}

/// Whether a request, which has not been sent yet, could be sent again over HTTP/1.1 if it were lost.
pub fn may_repeat(request: &Request<Upload>) -> bool {
    is_idempotent(request.method())
        && request.body().is_end_stream()
        && !request.headers().contains_key(UPGRADE)
}

/// Whether `error` leaves an idempotent request as if it had never been sent.
pub fn is_as_unsent(error: &Lost) -> bool {
    match error {
        Lost::Closed => true,
        Lost::Io(error) => is_reset(error.kind()),
        Lost::Http2(error) => closed_without_answer(error),
        Lost::Incomplete | Lost::Malformed(_) | Lost::Distrusted | Lost::Upload(_) => false,
    }
}

/// Why an HTTP/2 request got no answer, and what may be sent again: the request that came back, or its copy.
pub fn again(
    mut error: TrySendError<Request<Upload>>,
    spare: Option<Box<Request<Upload>>>,
) -> (Lost, Option<Again>) {
    let unsent = error.take_message();
    let error = error.into_error();
    let again = unsent.map(|unsent| Again::Unsent(Box::new(unsent))).or_else(|| {
        let may = |spare: &Request<Upload>| {
            refused_unprocessed(&error) || (is_idempotent(spare.method()) && closed_without_answer(&error))
        };
        spare.filter(|spare| may(spare)).map(Again::Repeat)
    });
    (error.into(), again)
}

/// A copy that may be sent although the first may be sent, too, some time.
pub fn harmless(spare: Option<Box<Request<Upload>>>) -> Option<Box<Request<Upload>>> {
    spare.filter(|spare| is_idempotent(spare.method()))
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE)
}

/// The other end says that it has not processed the request. A stream that a GOAWAY covers ends otherwise: as h2 reports it,
/// only streams above the last one end with that error.
fn refused_unprocessed(error: &hyper::Error) -> bool {
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_remote()
            && (cause.is_go_away()
                || (cause.is_reset() && cause.reason() == Some(h2::Reason::REFUSED_STREAM)))
    })
}

fn closed_without_answer(error: &hyper::Error) -> bool {
    let kind = causes(error).find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        io.or_else(|| cause.downcast_ref::<h2::Error>()?.get_io().map(std::io::Error::kind))
    });
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || kind.is_some_and(is_reset)
}

fn is_reset(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable, NotConnected,
        TimedOut, UnexpectedEof,
    };
    // The kernel has given the connection up as well when the other end did not acknowledge in time.
    let is_given_up = matches!(kind, TimedOut | HostUnreachable | NetworkUnreachable);
    is_given_up
        || matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

/// Whose fault it is that there is no answer.
pub fn blame(error: &Lost, exchange: &Exchange) -> ProxyError {
    match (exchange.broken(), error) {
        (Some(broken), _) => broken,
        (None, Lost::Malformed(rule)) => ProxyError::UpstreamProtocol((*rule).into()),
        (None, Lost::Http2(error)) if error.is_parse() => ProxyError::UpstreamProtocol(describe(error)),
        (None, error) => ProxyError::UpstreamReset(error.to_string()),
    }
}
