//! Bodies that count, and that hold what must not end before them: the record, and the lease of the connection.

use super::{
    headers,
    headroom::{Gate, Headroom},
    http1::{Lost, server::Downstream},
    message::{Answering, Incoming, is_reset},
    pool::Lease,
};
use crate::{error::ProxyError, telemetry::Record};
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::time::{Instant, Sleep};

/// Any error of a body.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What both directions of one exchange know of each other. One thread, so cells are enough.
#[derive(Debug, Default)]
pub struct Exchange {
    received: Cell<u64>,
    uploaded: Cell<bool>,
    begun: Cell<bool>,
    broken: Cell<Option<Broken>>,
    repeats: Cell<u32>,
}

/// How the client's half of an exchange failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    /// It closed, or reset.
    Gone,
    /// It sent nothing for too long.
    Late,
    /// Its framing broke a rule.
    Malformed,
}

impl Broken {
    /// Of an error that a body ended with.
    fn of(error: &Lost) -> Self {
        use std::io::ErrorKind::{InvalidData, InvalidInput, TimedOut};
        let kind = match error {
            Lost::Malformed(_) => return Self::Malformed,
            Lost::Io(error) => Some(error.kind()),
            Lost::Http2(error) => super::io_kind(error),
            _ => None,
        };
        match kind {
            Some(TimedOut) => Self::Late,
            Some(InvalidData | InvalidInput) => Self::Malformed,
            _ => Self::Gone,
        }
    }
}

impl Exchange {
    /// Whether the request was read to its end.
    pub fn is_uploaded(&self) -> bool {
        self.uploaded.get()
    }
    /// Whether the request has been taken to be sent, since the last call of [`Exchange::handed_over`].
    pub fn is_begun(&self) -> bool {
        self.begun.get()
    }
    /// A request is handed to a connection, which takes its body when it can send it, and drops it when there is none.
    pub fn handed_over(&self) {
        self.begun.set(false);
    }
    /// What the client did when its half of the exchange failed: then the failure is not the upstream's fault.
    pub fn broken(&self) -> Option<ProxyError> {
        Some(match self.broken.get()? {
            Broken::Gone => ProxyError::DownstreamGone,
            Broken::Late => ProxyError::DownstreamTimeout,
            Broken::Malformed => ProxyError::BadRequest("the body is not well framed"),
        })
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
    gate: Gate,
}

#[derive(Debug, thiserror::Error)]
#[error("the stream was reset before its end")]
struct CutOff;

impl Upload {
    /// The body of a request, and the exchange it reports to.
    pub fn new(incoming: Incoming, headroom: Rc<Headroom>) -> (Self, Rc<Exchange>) {
        let exchange = Rc::new(Exchange::default());
        exchange.uploaded.set(incoming.is_end_stream());
        let incoming = if incoming.is_end_stream() { None } else { Some(incoming) };
        (Self { incoming, exchange: exchange.clone(), gate: Gate::new(headroom) }, exchange)
    }

    /// No body.
    #[cfg(test)]
    pub fn empty() -> Self {
        Self { incoming: None, exchange: Rc::default(), gate: Gate::default() }
    }

    /// Another empty body for the same exchange; `None` when this one is not empty.
    pub fn again(&self) -> Option<Self> {
        self.incoming.is_none().then(|| self.spent())
    }

    /// What is left of it when it is taken.
    pub fn spent(&self) -> Self {
        Self { incoming: None, exchange: self.exchange.clone(), gate: Gate::default() }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.exchange.begun.set(true);
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.exchange.begun.set(true);
        if self.incoming.is_some() {
            ready!(self.gate.poll(cx));
        }
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        let ended = incoming.is_end_stream();
        let is_cut = frame.is_none() && !incoming.has_ended();
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
                self.exchange.broken.set(Some(Broken::of(&error)));
                Poll::Ready(Some(Err(error.into())))
            }
            None if is_cut => {
                self.exchange.broken.set(Some(Broken::Gone));
                Poll::Ready(Some(Err(CutOff.into())))
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
    /// None, and no HTTP behind it.
    Tunnel(Option<Tunnel>),
}

/// Begins a tunnel, once its client was told of it.
pub type Tunnel = Box<dyn FnOnce(Downstream)>;

impl Body {
    /// No body.
    pub fn empty() -> Self {
        Self::Local(None)
    }

    /// What begins behind the head, where that is a tunnel.
    pub fn take_tunnel(&mut self) -> Option<Tunnel> {
        if let Self::Tunnel(start) = self { start.take() } else { None }
    }

    /// Notes in `progress` whether the client takes this answer.
    pub fn watch(&mut self, progress: &Rc<Progress>) {
        if let Self::Upstream(download) = self {
            download.progress = Some(progress.clone());
            download.offer(true);
        }
    }

    /// An answer that is not complete at `end` ends there, one of gRPC with the status that says so; `patience` is how long that was.
    /// Of several such times the first counts.
    pub fn end_at(&mut self, end: Instant, patience: Duration, grpc: bool) {
        if let Self::Upstream(download) = self
            && download.deadline.as_ref().is_none_or(|deadline| end < deadline.sleep.deadline())
        {
            let sleep = Box::pin(tokio::time::sleep_until(end));
            download.deadline = Some(Deadline { patience, grpc, sleep });
        }
    }
}

/// An upstream's answer on its way down. The record is written when this is dropped, so it tells the whole story.
pub struct Download {
    incoming: Answering,
    exchange: Rc<Exchange>,
    record: Record,
    sent: u64,
    ended: bool,
    failed: bool,
    lease: Option<Lease>,
    // The caller's deadline, or that of the destination.
    deadline: Option<Deadline>,
    // Where it is noted whether the client takes what it is offered, and whether it is the client's turn.
    progress: Option<Rc<Progress>>,
    offered: bool,
    gate: Gate,
    // How its client can be told that it ends too early.
    telling: Telling,
    // Ended by us, with a status.
    cut: bool,
}

/// How a client is told that an answer which has begun ends too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Telling {
    /// By the broken end itself: the connection, or the stream.
    Break,
    /// By a gRPC status in the trailers.
    Status,
}

/// Whether the client of one HTTP/2 connection takes what it is offered. Without a window hyper asks no body for more, so
/// somebody beside the bodies has to look.
#[derive(Debug, Default)]
pub struct Progress {
    offered: Cell<usize>,
    moved: Cell<bool>,
}

impl Progress {
    /// Answers wait for the client, and none has moved since this was asked last.
    pub fn has_stalled(&self) -> bool {
        !self.moved.replace(false) && self.offered.get() > 0
    }
}

struct Deadline {
    patience: Duration,
    grpc: bool,
    sleep: Pin<Box<Sleep>>,
}

impl Download {
    /// Wraps the upstream's body, which came by HTTP/2 or not. The lease returns to the pool when the exchange is complete.
    pub fn new(
        incoming: Answering,
        exchange: Rc<Exchange>,
        record: Record,
        lease: Lease,
        headroom: Rc<Headroom>,
        telling: Telling,
    ) -> Self {
        Self {
            incoming,
            exchange,
            record,
            sent: 0,
            ended: false,
            failed: false,
            lease: Some(lease),
            deadline: None,
            progress: None,
            offered: false,
            gate: Gate::new(headroom),
            telling,
            cut: false,
        }
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
            Self::Tunnel(_) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Local(text) => text.is_none(),
            Self::Upstream(download) => download.cut || download.incoming.is_end_stream(),
            Self::Tunnel(_) => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Local(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Upstream(download) => download.incoming.size_hint(),
            Self::Tunnel(_) => SizeHint::with_exact(0),
        }
    }
}

impl Download {
    /// Whether it is the client's turn.
    fn offer(&mut self, offered: bool) {
        if let Some(progress) = &self.progress
            && std::mem::replace(&mut self.offered, offered) != offered
        {
            let count = progress.offered.get();
            progress.offered.set(if offered { count + 1 } else { count.saturating_sub(1) });
            progress.moved.set(true);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.offer(false);
        let polled = self.poll_upstream(cx);
        if polled.is_ready() {
            self.offer(true);
        }
        polled
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.cut {
            return Poll::Ready(None);
        }
        if self.gate.poll(cx).is_pending() {
            return self.poll_deadline(cx);
        }
        let frame = match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => return self.poll_deadline(cx),
        };
        match frame {
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
            // A reset of the stream has a code, which means something to the client.
            Some(Err(error)) if self.telling == Telling::Break || is_reset(&error) => {
                self.failed = true;
                self.record.set_error(&self.blame(error.to_string()));
                // Passed on as an error: the client sees an incomplete message, never a clean end.
                Poll::Ready(Some(Err(error.into())))
            }
            // Of a lost connection gRPC clients would make INTERNAL, and not try again.
            Some(Err(error)) => self.end_with(&self.blame(error.to_string())),
            None if !self.incoming.has_ended() => {
                self.failed = true;
                self.record.set_error(&self.blame(CutOff.to_string()));
                Poll::Ready(Some(Err(CutOff.into())))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Download {
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Some(deadline) = &mut self.deadline else { return Poll::Pending };
        ready!(deadline.sleep.as_mut().poll(cx));
        let error = ProxyError::DeadlineExceeded(deadline.patience);
        if deadline.grpc {
            return self.end_with(&error);
        }
        self.failed = true;
        self.record.set_error(&error);
        Poll::Ready(Some(Err(CutOff.into())))
    }

    /// Whose fault it is that the upstream's answer broke off.
    fn blame(&self, cause: String) -> ProxyError {
        self.exchange.broken().unwrap_or(ProxyError::UpstreamReset(cause))
    }

    /// Ends a gRPC answer with the status of this error.
    fn end_with(&mut self, error: &ProxyError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        (self.failed, self.cut) = (true, true);
        self.record.set_error(error);
        self.record.set_grpc_status(error.grpc_status());
        Poll::Ready(Some(Ok(Frame::trailers(super::reply::grpc_trailers(error)))))
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.offer(false);
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
