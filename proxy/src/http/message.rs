//! The body of a request or an answer, whichever version brings it.

use super::{
    causes,
    http1::{Lost, client::Answer, server::Receiving},
};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// What comes over HTTP/1 as `B` does, or over HTTP/2.
#[derive(Debug)]
pub enum Message<B> {
    /// Over HTTP/1.
    Http1(B),
    /// Over HTTP/2.
    Http2(hyper::body::Incoming),
}

/// What a client sends.
pub type Incoming = Message<Receiving>;
/// What an upstream answers.
pub type Answering = Message<Answer>;

impl<B> Message<B> {
    /// Whether the end that was seen is one. hyper takes a stream that is reset with NO_ERROR for one that has ended (RFC 9113 section
    /// 8.1 has it so for the rest of a request that is answered already). What is passed on must tell the two apart, or a part would
    /// look like the whole.
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }
}

impl<B: Body<Data = Bytes, Error = Lost> + Unpin> Body for Message<B> {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        match &mut *self {
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Lost::Http2)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}

/// Whether the other end has reset this one stream.
pub fn is_reset(error: &Lost) -> bool {
    let Lost::Http2(error) = error else { return false };
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| cause.is_reset() && cause.is_remote())
}
