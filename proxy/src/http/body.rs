//! Bodies that count, and that hold what must not end before them: the record, and the lease of the connection.

use super::{headers, pool::Lease};
use crate::{error::ProxyError, telemetry::Record};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What both directions of one exchange know of each other. One thread, so cells are enough.
#[derive(Debug, Default)]
pub struct Exchange {
    received: Cell<u64>,
    uploaded: Cell<bool>,
    broken: Cell<bool>,
    repeats: Cell<u32>,
}

impl Exchange {
    /// Whether the request was read to its end.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.get()
    }
    /// Whether the client's half of the exchange failed: then the failure is not the upstream's fault.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }
    /// Counts that the request was sent again after it was lost.
    pub fn repeated(&self) {
        self.repeats.set(self.repeats.get().saturating_add(1));
    }
    /// How often it was sent again.
    pub fn repeats(&self) -> u32 {
        self.repeats.get()
    }
    /// Body bytes from downstream so far.
    pub fn received(&self) -> u64 {
        self.received.get()
    }
}

/// A request's body on its way upstream.
#[derive(Debug)]
pub struct Upload {
    incoming: Option<Incoming>,
    exchange: Rc<Exchange>,
}

impl Upload {
    /// The body of a request, and the exchange it reports to.
    pub fn new(incoming: Incoming) -> (Self, Rc<Exchange>) {
        let exchange = Rc::new(Exchange::default());
        exchange.uploaded.set(incoming.is_end_stream());
        let incoming = if incoming.is_end_stream() { None } else { Some(incoming) };
        (Self { incoming, exchange: exchange.clone() }, exchange)
    }

    /// No body.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self { incoming: None, exchange: Rc::default() }
    }

    /// Another empty body for the same exchange; `None` when this one is not empty.
    pub fn again(&self) -> Option<Self> {
        if self.incoming.is_some() {
            None
        } else {
            Some(Self { incoming: None, exchange: self.exchange.clone() })
        }
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let ended = incoming.is_end_stream();
        match frame {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.exchange.received.set(self.exchange.received.get() + data.len() as u64);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                if ended {
                    self.exchange.uploaded.set(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // The upstream must see an aborted request, never a complete one.
            Some(Err(error)) => {
                self.exchange.broken.set(true);
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.exchange.uploaded.set(true);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

/// The body of an answer: ours, or the upstream's.
pub enum Body {
    /// A short text of our own.
    Local(Option<Bytes>),
    /// What the upstream says, streamed.
    Upstream(Box<Download>),
}

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::Local(None)
    }
}

/// An upstream's answer on its way down. The record is written when this is dropped, so it tells the whole story.
pub struct Download {
    incoming: Incoming,
    exchange: Rc<Exchange>,
    record: Record,
    sent: u64,
    ended: bool,
    failed: bool,
    lease: Option<Lease>,
}

impl Download {
    /// Wraps the upstream's body. The lease returns to the pool when the exchange is complete.
    pub fn new(incoming: Incoming, exchange: Rc<Exchange>, record: Record, lease: Lease) -> Self {
        Self { incoming, exchange, record, sent: 0, ended: false, failed: false, lease: Some(lease) }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Self::Local(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Upstream(download) => download.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(text) => text.is_none(),
            Self::Upstream(download) => download.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Upstream(download) => download.incoming.size_hint(),
        }
    }
}

impl Download {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match ready!(Pin::new(&mut self.incoming).poll_frame(cx)) {
            Some(Ok(mut frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.sent += data.len() as u64;
                }
                if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                    if let Some(status) = super::reply::grpc_status_of(trailers) {
                        self.record.set_grpc_status(status);
                    }
                }
                Poll::Ready(Some(Ok(frame)))
            }
            // Passed on as an error: the client sees an incomplete message, never a clean end.
            Some(Err(error)) => {
                self.failed = true;
                if self.exchange.is_broken() {
                    self.record.set_error(&ProxyError::DownstreamGone);
                } else {
                    self.record.set_error(&ProxyError::UpstreamReset(error.to_string()));
                }
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        let ended = self.ended || self.incoming.is_end_stream();
        if !ended && !self.failed {
            self.record.set_error(&ProxyError::DownstreamGone);
        }
        self.record.add_received(self.exchange.received());
        self.record.add_sent(self.sent);
        if let Some(lease) = self.lease.take()
            && ended
            && self.exchange.is_uploaded()
        {
            lease.give_back();
        }
    }
}
