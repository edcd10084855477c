//! A connection of a client: its requests one after the other, each answered before the next one is read.

use super::{
    Lost,
    body::{Coding, Left, Part, Reader},
    downstream_heads::{self as heads, Asked, Head, Written},
    line::{Failed, Line},
};
use crate::{
    error::ProxyError,
    http::{Body, canonical, framing::Strict, message::Incoming},
    net::Prefixed,
    tls::Stream,
};
use bytes::{Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io, mem,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};
use tokio::io::AsyncWriteExt as _;

/// The largest head of a request, in octets. What is a little too much is for the canonical reading to refuse, with a record.
const MAX_HEAD: usize = canonical::MAX_HEADER_BYTES + 16 * 1024;
/// Read of a body that its answer did not wait for, in octets, before the connection closes instead.
const MOST_UNREAD: usize = 64 * 1024;

/// How long a client may take to take the last octets of a connection.
const MOST_CLOSING: Duration = Duration::from_secs(1);

/// What a client's connection becomes when it does not speak HTTP any more.
pub type Downstream = Prefixed<Strict<Prefixed<Stream>>>;

/// Why a connection ended that did not end well.
#[derive(Debug)]
pub enum Fault<E> {
    /// What came is no request; the client was told so with this status.
    Refused(ProxyError, StatusCode),
    /// The connection failed, or was too slow.
    Line(io::Error),
    /// It ended inside of a head.
    Gone,
    /// An answer broke off.
    Answer,
    /// The service wants no answer.
    Service(E),
}

/// Serves one connection until it ends, or until `closing` is set and nothing is under way. The future is as small as it can be, since
/// each idle connection holds one.
///
/// # Errors
/// How it ended, when it did not end well.
pub fn serve<F, R, E>(
    stream: Strict<Prefixed<Stream>>,
    closing: &Cell<bool>,
    respond: F,
) -> impl Future<Output = Result<(), Fault<E>>>
where
    F: Fn(Request<Incoming>) -> R,
    R: Future<Output = Result<Response<Body>, E>>,
{
    let wire = Rc::new(RefCell::new(Wire::new(stream)));
    async move {
        let ended = loop {
            let (answer, mut asked) = match poll_fn(|cx| wire.borrow_mut().poll_head(cx, closing)).await {
                Ok(Some(head)) => ask(&wire, head, &respond),
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
            };
            let response = {
                let mut answer = pin!(answer);
                poll_fn(|cx| {
                    if let Poll::Ready(response) = answer.as_mut().poll(cx) {
                        return Poll::Ready(response.map_err(Fault::Service));
                    }
                    wire.borrow_mut().poll_gone(cx).map(|error| Err(Fault::Line(error)))
                })
                .await?
            };
            asked.persists &= !closing.get();
            if !send(&wire, response, asked).await? {
                break Ok(());
            }
        };
        Box::pin(close(&wire, ended)).await
    }
}

fn ask<R>(wire: &Rc<RefCell<Wire>>, head: Head, respond: &impl Fn(Request<Incoming>) -> R) -> (R, Asked) {
    let body = Incoming::Http1(wire.borrow_mut().receive(wire, head.left, head.expects));
    (respond(Request::from_parts(head.parts, body)), head.asked)
}

/// Sends an answer; whether the connection goes on.
async fn send<E>(wire: &Rc<RefCell<Wire>>, response: Response<Body>, asked: Asked) -> Result<bool, Fault<E>> {
    let (parts, mut body) = response.into_parts();
    let tunnel = body.take_tunnel();
    let Written { coding, persists } = {
        let wire = &mut *wire.borrow_mut();
        wire.expects = false;
        heads::write(parts, &body, asked, wire.line.begin())
    };
    let is_until_close = matches!(coding, Some(Coding::UntilClose));
    // A body that is not sent is dropped behind the head: it holds the record.
    let (mut sent, unsent) = match coding {
        Some(coding) => (Some((body, coding)), None),
        None => (None, Some(body)),
    };
    let ended = poll_fn(|cx| {
        let wire = &mut *wire.borrow_mut();
        match wire.line.poll_message(cx, &mut sent) {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending => wire.poll_gone(cx).map(|error| Err(Failed::Line(error))),
        }
    });
    match ended.await {
        Ok(()) => {}
        Err(Failed::Line(error)) => return Err(Fault::Line(error)),
        Err(Failed::Body(_) | Failed::Length) => {
            if is_until_close && let Some(stream) = &wire.borrow().line.stream {
                // Only so it is told from a whole one.
                stream.reset_on_close();
            }
            return Err(Fault::Answer);
        }
    }
    drop((sent, unsent));
    let wire = &mut *wire.borrow_mut();
    if let Some(start) = tunnel {
        if let Some(downstream) = wire.give_away() {
            start(downstream);
        }
        return Ok(false);
    }
    Ok(persists && is_so(|cx| wire.poll_unread(cx)))
}

/// Closes what can be closed in good order; who is refused is told so.
async fn close<E>(wire: &RefCell<Wire>, ended: Result<(), Fault<E>>) -> Result<(), Fault<E>> {
    match &ended {
        Ok(()) => {}
        Err(Fault::Refused(_, status)) => {
            heads::refuse(*status, wire.borrow_mut().line.begin());
            // Who does not take it was told, as far as that goes.
            let _ = poll_fn(|cx| wire.borrow_mut().line.poll_octets(cx)).await;
        }
        Err(_) => return ended,
    }
    let stream = wire.borrow_mut().line.stream.take();
    if let Some(mut stream) = stream {
        let _ = tokio::time::timeout(MOST_CLOSING, stream.shutdown()).await;
    }
    ended
}

/// What a poll says without waiting; `false` when it would have to.
fn is_so(poll: impl FnOnce(&mut Context<'_>) -> Poll<bool>) -> bool {
    poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(true)
}

#[derive(Debug)]
struct Wire {
    line: Line<Strict<Prefixed<Stream>>>,
    // Of the head that comes next so many octets have not been a whole one.
    seen: usize,
    // The body of the request under way.
    reader: Reader,
    // Counts the requests, so that nobody reads the body of another one.
    turn: u64,
    // The client waits for our word before it sends the body.
    expects: bool,
    // And is being told it.
    is_going_on: bool,
    // The client says no more.
    has_ended: bool,
}

impl Wire {
    fn new(stream: Strict<Prefixed<Stream>>) -> Self {
        Self {
            line: Line::new(stream, BytesMut::new()),
            seen: 0,
            reader: Reader::new(Left::Nothing),
            turn: 0,
            expects: false,
            is_going_on: false,
            has_ended: false,
        }
    }

    /// The next head; `None` at a good end.
    fn poll_head<E>(
        &mut self,
        cx: &mut Context<'_>,
        closing: &Cell<bool>,
    ) -> Poll<Result<Option<Head>, Fault<E>>> {
        loop {
            let told = |error: ProxyError| {
                let status = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_REQUEST);
                Fault::Refused(error, status)
            };
            let is_idle = self.line.incoming.is_empty();
            if !is_idle {
                if let Some(head) = heads::read(&mut self.line.incoming, self.seen).map_err(told)? {
                    self.seen = 0;
                    return Poll::Ready(Ok(Some(head)));
                }
                self.seen = self.line.incoming.len();
                if self.seen > MAX_HEAD {
                    return Poll::Ready(Err(told(ProxyError::HeadersTooLarge(
                        "the head is too large".into(),
                    ))));
                }
            } else if closing.get() || self.has_ended {
                return Poll::Ready(Ok(None));
            } else {
                self.line.rest();
            }
            match ready!(self.line.poll_fill(cx)) {
                // An empty line before a request is none (RFC 9112 section 2.2).
                Ok(0) if is_idle || *self.line.incoming == b"\r\n"[..] => return Poll::Ready(Ok(None)),
                Ok(0) => return Poll::Ready(Err(Fault::Gone)),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Fault::Line(error))),
            }
        }
    }

    fn receive(&mut self, own: &Rc<RefCell<Self>>, left: Left, expects: bool) -> Receiving {
        self.turn += 1;
        self.reader = Reader::new(left);
        self.expects = expects;
        Receiving { wire: own.clone(), turn: self.turn }
    }

    /// Ready when the client has broken the connection while it waits for its answer.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        // Whoever takes the body learns it there, and what comes behind a request waits its turn.
        if !self.reader.is_over() || self.has_ended || !self.line.incoming.is_empty() {
            return Poll::Pending;
        }
        match ready!(self.line.poll_fill(cx)) {
            Ok(0) => self.has_ended = true,
            Ok(_) => {}
            Err(error) => return Poll::Ready(error),
        }
        Poll::Pending
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Lost>> {
        if self.expects && self.line.incoming.is_empty() {
            // Nothing of an answer is under way, or we would not be waiting for the body.
            self.expects = false;
            self.line.begin().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            self.is_going_on = true;
        }
        if self.is_going_on {
            ready!(self.line.poll_octets(cx))?;
            self.is_going_on = false;
        }
        self.reader.poll(&mut self.line, cx).map_ok(Part::into_frame)
    }

    /// Whether the body is over, or what is there of it ends it.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut read = 0;
        while !self.reader.is_over() {
            match ready!(self.reader.poll(&mut self.line, cx)) {
                Ok(Part::Data(data)) if read + data.len() <= MOST_UNREAD => read += data.len(),
                Ok(Part::Trailers(_) | Part::End) => {}
                _ => return Poll::Ready(false),
            }
        }
        Poll::Ready(true)
    }

    fn give_away(&mut self) -> Option<Downstream> {
        let stream = self.line.stream.take()?;
        Some(Prefixed::with(mem::take(&mut self.line.incoming).freeze(), stream))
    }
}

/// The body of a request.
#[derive(Debug)]
pub struct Receiving {
    wire: Rc<RefCell<Wire>>,
    turn: u64,
}

impl HttpBody for Receiving {
    type Data = Bytes;
    type Error = Lost;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Lost>>> {
        let wire = &mut *self.wire.borrow_mut();
        if wire.turn != self.turn {
            return Poll::Ready(Some(Err(Lost::Incomplete)));
        }
        wire.poll_part(cx).map(Result::transpose)
    }

    fn is_end_stream(&self) -> bool {
        let wire = self.wire.borrow();
        wire.turn == self.turn && wire.reader.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.wire.borrow().reader.size_hint()
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
