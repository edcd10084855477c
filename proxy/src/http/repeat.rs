//! Which lost request may be sent again, and whose fault the loss is.
//!
//! Again goes what nobody has processed: never sent, refused (REFUSED_STREAM, RFC 9113 section 8.7), or above the last stream of a
//! GOAWAY (section 6.8). And what does nothing more when it is processed twice: an idempotent request (RFC 9110 section 9.2.2) without
//! a body, whose connection closed before any byte of an answer. A body is never kept: once read, it cannot be sent again.

use super::{
    body::{Exchange, Upload},
    causes,
    interim::TooManyInterim,
};
use crate::error::ProxyError;
use http::{Method, Request, header::UPGRADE};
use std::error::Error;

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

/// A copy in case the request is lost; `None` when it could never be used.
pub fn copy_of(request: &Request<Upload>) -> Option<Box<Request<Upload>>> {
    let is_http2 = request.version() == http::Version::HTTP_2;
    if !(is_http2 || is_idempotent(request.method())) || request.headers().contains_key(UPGRADE) {
        return None;
    }
    let mut copy = Request::new(request.body().again()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(Box::new(copy))
}

/// What may be sent again after `error`: the request that came back, or its copy.
pub fn again(
    error: &hyper::Error,
    unsent: Option<Request<Upload>>,
    spare: Option<Box<Request<Upload>>>,
) -> Option<Again> {
    if let Some(unsent) = unsent {
        return Some(Again::Unsent(Box::new(unsent)));
    }
    let spare = spare?;
    let may = refused_unprocessed(error) || (is_idempotent(spare.method()) && closed_without_answer(error));
    may.then_some(Again::Repeat(spare))
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
    error.is_incomplete_message() || error.is_canceled() || error.is_closed() || is_reset(error)
}

fn is_reset(error: &hyper::Error) -> bool {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkUnreachable, NotConnected,
        TimedOut, UnexpectedEof,
    };
    let kind = causes(error).find_map(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        io.or_else(|| cause.downcast_ref::<h2::Error>()?.get_io().map(std::io::Error::kind))
    });
    // The kernel has given the connection up as well when the other end did not acknowledge in time.
    let is_given_up = matches!(kind, Some(TimedOut | HostUnreachable | NetworkUnreachable));
    is_given_up
        || matches!(
            kind,
            Some(BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
        )
}

/// Whose fault it is that there is no answer.
pub fn blame(error: &hyper::Error, exchange: &Exchange) -> ProxyError {
    if let Some(broken) = exchange.broken() {
        broken
    } else if error.is_parse() || is_interim_flood(error) {
        ProxyError::UpstreamProtocol(describe(error))
    } else {
        ProxyError::UpstreamReset(describe(error))
    }
}

fn is_interim_flood(error: &hyper::Error) -> bool {
    let io = causes(error).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.filter_map(std::io::Error::get_ref).any(|inner| inner.is::<TooManyInterim>())
}

fn describe(error: &hyper::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
