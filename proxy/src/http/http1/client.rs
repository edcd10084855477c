//! A connection to an upstream, which carries one request after the other.
//!
//! Only the rest of a request whose answer comes before its end is sent by a task of its own. What an upstream may not do ends the
//! connection: an answer that breaks a rule, octets behind its end, more interim answers than anybody needs.

use super::{
    Lost,
    body::{Coding, Left, Reader},
    line::{Failed, Line},
    upstream_heads::{self as heads, Answerer, Head},
};
use crate::{
    http::{body::Upload, canonical},
    net::Prefixed,
    tls::{Stream, open::Watch},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::{Body, Frame, SizeHint};
use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
};
use tokio::{io::AsyncWrite as _, task::AbortHandle};

/// Interim answers to one request at most.
const MOST_INTERIM: u32 = 16;
/// Their octets together at most.
const MOST_INTERIM_BYTES: usize = 64 * 1024;
/// The largest head of an app's answer, in octets: as of requests. A sidecar's has what that one adds beside it.
const MAX_HEAD: usize = canonical::MAX_HEADER_BYTES + 16 * 1024;
const TOO_MANY_INTERIM: Lost = Lost::Malformed("more interim answers than any request needs");

/// A connection to an upstream.
pub struct Connection(Rc<RefCell<Wire>>);

impl Connection {
    /// Over a stream that was just made. It ends with the trust in its peer.
    pub fn new(stream: Stream, watch: &Watch) -> Self {
        let answerer = if watch.is_of_a_peer() { Answerer::Sidecar } else { Answerer::App };
        let wire = Rc::new(RefCell::new(Wire::new(stream, answerer)));
        if answerer == Answerer::Sidecar {
            let (held, watch) = (Rc::downgrade(&wire), watch.clone());
            let guard = tokio::task::spawn_local(async move {
                watch.ended().await;
                if let Some(wire) = held.upgrade() {
                    wire.borrow_mut().end(Ending::Distrusted);
                }
            });
            wire.borrow_mut().guard = Some(guard.abort_handle());
        }
        Self(wire)
    }

    /// Sends a request, and waits for the head of its answer. The request's headers and its body are gone then.
    ///
    /// # Errors
    /// The connection is of no more use. After [`Lost::Closed`] a request without a body is as it was.
    pub async fn send(&self, request: &mut Request<Upload>) -> Result<Response<Answer>, Lost> {
        self.0.borrow_mut().begin(request);
        let is_head = *request.method() == Method::HEAD;
        let mut reading = Reading::default();
        let mut failed = None;
        let head = poll_fn(|cx| {
            let wire = &mut *self.0.borrow_mut();
            if failed.is_none()
                && let Poll::Ready(Err(error)) = wire.poll_request(cx)
            {
                // The client's half broke, and the upstream must not take what it has for the whole.
                if wire.ending.is_some() {
                    return Poll::Ready(Err(error));
                }
                // An upstream that reads no more may have said why. Nothing else is waited for: it may wait for the rest of the request.
                failed = Some(error);
            }
            let head = wire.poll_head(cx, is_head, request.headers_mut(), &mut reading);
            match failed.take_if(|_| head.is_pending()) {
                Some(error) => Poll::Ready(Err(error)),
                None => head,
            }
        });
        let Head { parts, left, persists } = match head.await {
            Err(Lost::Closed) => return Err(failed.unwrap_or(Lost::Closed)),
            head => head?,
        };
        let is_sending = {
            let wire = &mut *self.0.borrow_mut();
            wire.persists = persists && failed.is_none() && parts.status != StatusCode::SWITCHING_PROTOCOLS;
            wire.is_sending() && failed.is_none()
        };
        let rest = is_sending.then(|| self.send_rest());
        Ok(Response::from_parts(parts, Answer::new(self.0.clone(), left, rest)))
    }

    /// The answer came before the request was complete; its client may still wait for the one to be taken before it reads the other.
    fn send_rest(&self) -> AbortHandle {
        let wire = self.0.clone();
        let sending = tokio::task::spawn_local(async move {
            if poll_fn(|cx| wire.borrow_mut().poll_request(cx)).await.is_err() {
                wire.borrow_mut().end(Ending::Unsent);
            }
        });
        sending.abort_handle()
    }

    /// Whether another request may go over it, as far as is known without a look at the socket.
    pub fn persists(&self) -> bool {
        let wire = self.0.borrow();
        wire.is_idle() && wire.persists && wire.line.incoming.is_empty()
    }

    /// Whether it has ended, or the upstream has said something that nobody asked for.
    pub fn is_closed(&self) -> bool {
        !self.persists()
            || self.0.borrow_mut().line.poll_fill(&mut Context::from_waker(Waker::noop())).is_ready()
    }
}

/// How a connection ends that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Distrusted,
    Aborted,
    /// It takes no more of the request: what it has said is read, and nothing is waited for.
    Unsent,
}

/// What has been read of an answer before the head that counts.
#[derive(Debug, Default)]
struct Reading {
    interim: u32,
    octets: usize,
    // So many octets have not been a whole head.
    seen: usize,
    is_begun: bool,
}

struct Wire {
    // Without a stream it has become a tunnel, or ended while nobody used it.
    line: Line<Stream>,
    answerer: Answerer,
    upload: Option<(Upload, Coding)>,
    // From the first octet of a request to the last of its answer.
    is_under_way: bool,
    persists: bool,
    ending: Option<Ending>,
    guard: Option<AbortHandle>,
}

impl Wire {
    fn new(stream: Stream, answerer: Answerer) -> Self {
        Self {
            line: Line::new(stream, BytesMut::new()),
            answerer,
            upload: None,
            is_under_way: false,
            persists: true,
            ending: None,
            guard: None,
        }
    }

    fn begin(&mut self, request: &mut Request<Upload>) {
        self.is_under_way = true;
        if let Some(coding) = heads::write(request, self.line.begin()) {
            let spent = request.body().spent();
            self.upload = Some((mem::replace(request.body_mut(), spent), coding));
        }
    }

    fn is_sending(&self) -> bool {
        self.upload.is_some() || self.line.is_sending()
    }

    fn is_idle(&self) -> bool {
        self.line.stream.is_some() && self.ending.is_none() && !self.is_under_way && !self.is_sending()
    }

    /// The answer is complete.
    fn answered(&mut self) {
        self.is_under_way = false;
        self.line.rest();
    }

    fn end(&mut self, ending: Ending) {
        let is_idle = self.is_idle();
        self.ending.get_or_insert(ending);
        self.line.is_cut = true;
        let Some(stream) = &self.line.stream else { return };
        if is_idle {
            self.line.stream = None;
        } else {
            if ending == Ending::Aborted {
                stream.reset_on_close();
            }
            stream.stop_reading();
        }
    }

    fn give_away(&mut self) -> Option<Prefixed<Stream>> {
        if self.is_sending() || self.ending.is_some() {
            return None;
        }
        let stream = self.line.stream.take()?;
        Some(Prefixed::with(mem::take(&mut self.line.incoming).freeze(), stream))
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        if !self.is_sending() {
            return Poll::Ready(Ok(()));
        }
        let sent = ready!(self.line.poll_message(cx, &mut self.upload));
        if matches!(sent, Err(Failed::Body(_) | Failed::Length)) {
            self.end(Ending::Aborted);
        }
        Poll::Ready(sent.map_err(Lost::from))
    }

    /// The head of the answer that counts.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        is_head: bool,
        room: &mut HeaderMap,
        reading: &mut Reading,
    ) -> Poll<Result<Head, Lost>> {
        loop {
            while let Some(head) = self.read_head(is_head, room, reading)? {
                let status = head.parts.status;
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(head));
                }
                *room = head.parts.headers;
                reading.interim += 1;
                if reading.interim > MOST_INTERIM {
                    return Poll::Ready(Err(TOO_MANY_INTERIM));
                }
            }
            if reading.interim > 0 && reading.octets + reading.seen > MOST_INTERIM_BYTES {
                return Poll::Ready(Err(TOO_MANY_INTERIM));
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if reading.is_begun => return Poll::Ready(Err(Lost::Incomplete)),
                Ok(0) => return Poll::Ready(Err(Lost::Closed)),
                Ok(_) => reading.is_begun = true,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn read_head(
        &mut self,
        is_head: bool,
        room: &mut HeaderMap,
        reading: &mut Reading,
    ) -> Result<Option<Head>, Lost> {
        let before = self.line.incoming.len();
        let head = heads::read(&mut self.line.incoming, reading.seen, self.answerer, is_head, room)?;
        let length = before - self.line.incoming.len();
        reading.octets += length;
        reading.seen = if head.is_some() { 0 } else { before };
        let more = if self.answerer == Answerer::Sidecar { canonical::OWN_HEADER_BYTES } else { 0 };
        if length.max(reading.seen) > MAX_HEAD + more {
            return Err(Lost::Malformed("the head is too large"));
        }
        Ok(head)
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Lost>> {
        self.check()?;
        self.line.poll_fill(cx).map_err(Lost::from)
    }

    fn check(&self) -> Result<(), Lost> {
        match self.ending {
            Some(Ending::Distrusted) => Err(Lost::Distrusted),
            Some(Ending::Aborted) => Err(Lost::Incomplete),
            Some(Ending::Unsent) | None => Ok(()),
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(guard) = &self.guard {
            guard.abort();
        }
        let is_sending = self.is_sending();
        let Some(stream) = &mut self.line.stream else { return };
        if is_sending {
            // A part must not look like the whole.
            stream.reset_on_close();
        } else if !self.is_under_way {
            // The peer hears that this is a good end, as far as the socket takes it at once.
            let _ = Pin::new(stream).poll_shutdown(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// The body of an answer. While it lives it holds its connection; one that is dropped before its end takes the connection with it.
pub struct Answer {
    wire: Rc<RefCell<Wire>>,
    reader: Reader,
    // Who sends the rest of the request.
    rest: Option<AbortHandle>,
}

impl Answer {
    fn new(wire: Rc<RefCell<Wire>>, left: Left, rest: Option<AbortHandle>) -> Self {
        let answer = Self { wire, reader: Reader::new(left), rest };
        if answer.is_end_stream() {
            answer.wire.borrow_mut().answered();
        }
        answer
    }

    /// The connection itself, with what was read of it behind the head: it does not speak HTTP any more.
    pub fn into_tunnel(self) -> Option<Prefixed<Stream>> {
        self.wire.borrow_mut().give_away()
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let this = &mut *self;
        let wire = &mut *this.wire.borrow_mut();
        wire.check()?;
        let part = ready!(this.reader.poll(&mut wire.line, cx))?;
        if this.reader.is_over() {
            wire.answered();
        }
        Poll::Ready(part.into_frame().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.reader.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.reader.size_hint()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(rest) = &self.rest {
            rest.abort();
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
