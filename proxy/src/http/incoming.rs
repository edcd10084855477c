//! The body of a request, whichever version brings it.

use super::http1::{Lost, server::Receiving};
use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};

/// What the client sends.
#[derive(Debug)]
pub enum Incoming {
    /// Over HTTP/1.
    Http1(Receiving),
    /// Over HTTP/2.
    Http2(hyper::body::Incoming),
}

impl Incoming {
    /// Whether the end that was seen is one, see [`Answering::has_ended`](super::answer::Answering::has_ended).
    pub fn has_ended(&self) -> bool {
        match self {
            Self::Http1(_) => true,
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        match &mut *self {
            Self::Http1(receiving) => Pin::new(receiving).poll_frame(cx),
            Self::Http2(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Lost::Http2)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(receiving) => receiving.is_end_stream(),
            Self::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(receiving) => receiving.size_hint(),
            Self::Http2(incoming) => incoming.size_hint(),
        }
    }
}
