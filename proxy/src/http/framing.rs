//! The framing of HTTP/1 requests, read strictly before the requests themselves are.
//!
//! A parser of heads forgives what others read differently: bare line feeds, a Content-Length beside Transfer-Encoding, equal
//! duplicates, odd chunk sizes. This reader follows the messages of one connection. When an octet breaks a rule, the server gets a NUL in
//! place of what it has not had of that request, which it answers with 400 and a close; a body whose head it has had before is
//! aborted by an error. Nothing behind that octet is ever read. It also holds the deadlines: for a head, between requests, inside a
//! body, and for a client that does not read.

use crate::{net::Prefixed, tls::Stream};
use postern_config::documents::Upgrades;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// How long each part of a conversation may take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The first head must be complete by then.
    pub first_head: Instant,
    /// A head, from its first octet to its last.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two octets of a body, counted while we wait for them.
    pub body: Duration,
    /// How long a client may take nothing of what we have for it.
    pub stalled: Duration,
}

/// A head came too late, and the client was told so (408).
#[derive(Debug, thiserror::Error)]
#[error("request not complete before its deadline")]
pub struct ToldLate;

/// Written by the reader itself, since the deadline is its own. Only in a head, where no other answer is under way.
const LATE: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Follows the requests in what it reads; writes pass untouched.
#[derive(Debug)]
pub struct Strict<S> {
    stream: S,
    parser: Parser,
    patience: Patience,
    // Set at the first wait for octets, so that octets which are there cost no look at the clock.
    deadline: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
    poison: Option<&'static [u8]>,
    // A rule was broken inside a body.
    broken: bool,
    // Runs while the client takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What the server gets instead of an octet that breaks a rule: never valid in a head, and with the end of one
/// behind it, since nobody looks at a head before its end.
const POISON: &[u8] = b"\0\r\n\r\n";

impl<S> Strict<S> {
    /// At the beginning of the first request. Behind one that asks for one of `upgrades` nothing is read.
    pub fn new(stream: S, patience: Patience, upgrades: Upgrades) -> Self {
        Self {
            stream,
            parser: Parser::new(upgrades),
            patience,
            deadline: None,
            sleep: None,
            poison: None,
            broken: false,
            stalled: None,
        }
    }
}

impl Strict<Prefixed<Stream>> {
    /// Makes the coming close a reset.
    pub fn reset_on_close(&self) {
        self.stream.inner().reset_on_close();
    }
}

impl<S: AsyncWrite + Unpin> Strict<S> {
    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Patience { first_head, head, idle, body, .. } = self.patience;
        let first = self.parser.requests == 0;
        let deadline = match (self.parser.state, self.deadline) {
            (State::Opaque, _) => return Poll::Pending,
            (_, Some(deadline)) => deadline,
            (State::Start { .. }, None) if first => first_head,
            (State::Head, None) if first => first_head.min(Instant::now() + head),
            (State::Start { .. }, None) => Instant::now() + idle,
            (State::Head, None) => Instant::now() + head,
            (_, None) => Instant::now() + body,
        };
        self.deadline = Some(deadline);
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // A deadline that only moves away is looked at when the old one is over: most requests touch no timer.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return self.too_late(cx);
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn too_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poison = Some(&[]);
        match self.parser.state {
            // Nothing is owed to a client that is merely idle.
            State::Start { requests: 1.., .. } => Poll::Ready(Ok(())),
            // An answer that waits for the client comes first, and nothing may be put into its middle.
            State::Head if self.stalled.is_none() => {
                let _ = Pin::new(&mut self.stream).poll_write(cx, LATE);
                let _ = Pin::new(&mut self.stream).poll_flush(cx);
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, ToldLate)))
            }
            _ => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "request not complete before its deadline",
            ))),
        }
    }

    /// Lets a client that reads nothing hold its answer for so long and no longer. A tunnel may be as slow as it likes.
    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        if matches!(self.parser.state, State::Opaque) {
            return Poll::Pending;
        }
        let patience = self.patience.stalled;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(poison) = this.poison {
            this.poison = Some(put(buf, poison));
            return Poll::Ready(Ok(()));
        }
        if this.broken {
            return Poll::Ready(Err(malformed()));
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.stream).poll_read(cx, buf) {
            Poll::Pending => return this.poll_deadline(cx),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => {}
        }
        let (was_head, was, requests) = (is_in_head(&this.parser), this.parser.state, this.parser.requests);
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if fresh.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if let Err(Broken { at, head }) = this.parser.feed(fresh) {
            // Of a request whose body is known to be broken nobody needs to hear.
            if let Some(head) = head {
                buf.set_filled(before + head);
                this.poison = Some(put(buf, POISON));
                return Poll::Ready(Ok(()));
            }
            buf.set_filled(before + at);
            this.broken = true;
            return if at == 0 { Poll::Ready(Err(malformed())) } else { Poll::Ready(Ok(())) };
        }
        // The clock of a head, and that of a wait for the first, runs on while it drips; every other one begins anew with each octet.
        let is_there_still = std::mem::discriminant(&was) == std::mem::discriminant(&this.parser.state);
        if !(was_head && is_there_still && requests == this.parser.requests) {
            this.deadline = None;
        }
        Poll::Ready(Ok(()))
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the framing of the body breaks a rule")
}

fn is_in_head(parser: &Parser) -> bool {
    matches!(parser.state, State::Head)
        || (matches!(parser.state, State::Start { .. }) && parser.requests == 0)
}

/// Puts what fits; returns the rest.
fn put(buf: &mut ReadBuf<'_>, bytes: &'static [u8]) -> &'static [u8] {
    let (now, later) = bytes.split_at(bytes.len().min(buf.remaining()));
    buf.put_slice(now);
    later
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch_write(cx, written)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch_write(cx, written)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_write(cx, flushed)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between requests; `blank`: one empty line was tolerated already.
    Start { requests: u64, blank: bool },
    /// Inside the lines of a head.
    Head,
    /// So many octets of a body with a length.
    Body(u64),
    /// The line with a chunk's size.
    ChunkSize,
    /// So many octets of a chunk.
    Chunk(u64),
    /// The CRLF behind a chunk; `true`: CR was read.
    ChunkEnd(bool),
    /// Lines behind the last chunk.
    Trailers,
    /// Behind the head of an upgrade request: not ours to read. The server closes when the upgrade is refused.
    Opaque,
}

/// How much of a line is kept to be looked at; a longer one of interest is refused. The server bounds the head as a whole.
const MAX_LINE: usize = 16 * 1024;

#[derive(Debug)]
struct Parser {
    upgrades: Upgrades,
    state: State,
    requests: u64,
    line: Vec<u8>,
    first_line: bool,
    http_10: bool,
    lengths: u32,
    length: u64,
    codings: u32,
    upgrade: bool,
}

/// A rule was broken.
#[derive(Debug)]
struct Broken {
    /// The octet that breaks it.
    at: usize,
    /// Where the head of that request begins or goes on, unless it was complete before.
    head: Option<usize>,
}

impl Parser {
    fn new(upgrades: Upgrades) -> Self {
        Self {
            upgrades,
            state: State::Start { requests: 0, blank: false },
            requests: 0,
            line: Vec::new(),
            first_line: true,
            http_10: false,
            lengths: 0,
            length: 0,
            codings: 0,
            upgrade: false,
        }
    }

    /// Follows `bytes`.
    fn feed(&mut self, bytes: &[u8]) -> Result<(), Broken> {
        let (mut at, mut head) = (0, matches!(self.state, State::Head).then_some(0));
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            if matches!(self.state, State::Start { .. }) {
                head = Some(at);
            }
            let skip = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            match self.state {
                State::Opaque => return Ok(()),
                State::Body(left) => {
                    let count = skip(left);
                    at += count;
                    self.state =
                        if left == count as u64 { self.next() } else { State::Body(left - count as u64) };
                }
                State::Chunk(left) => {
                    let count = skip(left);
                    at += count;
                    let left = left - count as u64;
                    self.state = if left == 0 { State::ChunkEnd(false) } else { State::Chunk(left) };
                }
                State::ChunkEnd(seen_cr) => {
                    let wanted = if seen_cr { b'\n' } else { b'\r' };
                    if rest.first() != Some(&wanted) {
                        return Err(Broken { at, head });
                    }
                    at += 1;
                    self.state = if seen_cr { State::ChunkSize } else { State::ChunkEnd(true) };
                }
                State::Start { .. } | State::Head | State::ChunkSize | State::Trailers => {
                    let end = memchr::memchr(b'\n', rest);
                    let taken = end.unwrap_or(rest.len());
                    let part = rest.get(..taken).unwrap_or_default();
                    // Most lines come in one piece, and are looked at where they are.
                    let is_whole = end.is_some() && self.line.is_empty();
                    let length = self.line.len() + part.len();
                    // The server answers with 414 or 431 when it was the target or the head that was too large.
                    if length > MAX_LINE && !matches!(self.state, State::Head | State::Start { .. }) {
                        return Err(Broken { at, head });
                    }
                    if !is_whole {
                        self.line.extend_from_slice(part);
                        if self.line.len() > MAX_LINE {
                            // What is kept ends as the line does, since its last octet says whether the line ended well.
                            let last = self.line.last().copied();
                            self.line.truncate(MAX_LINE);
                            self.line.extend(last);
                        }
                    }
                    let Some(end) = end else {
                        if let State::Start { .. } = self.state
                            && self.line != b"\r"
                        {
                            self.state = State::Head;
                        }
                        return Ok(());
                    };
                    let mut kept = std::mem::take(&mut self.line);
                    let line = if is_whole { part } else { &kept };
                    let broken = || Broken { at: at + end, head };
                    let line = line.strip_suffix(b"\r").ok_or_else(broken)?;
                    let line = line.get(..MAX_LINE).unwrap_or(line);
                    self.end_of_line(line).map_err(|()| broken())?;
                    // The buffer is worth keeping while lines follow.
                    kept.clear();
                    self.line = kept;
                    at += end + 1;
                }
            }
        }
        Ok(())
    }

    fn next(&mut self) -> State {
        self.requests += 1;
        self.line = Vec::new();
        (self.first_line, self.http_10, self.upgrade) = (true, false, false);
        (self.lengths, self.length, self.codings) = (0, 0, 0);
        State::Start { requests: self.requests, blank: false }
    }

    fn end_of_line(&mut self, line: &[u8]) -> Result<(), ()> {
        match self.state {
            State::Start { requests, blank } if line.is_empty() => {
                if blank {
                    return Err(());
                }
                self.state = State::Start { requests, blank: true };
            }
            State::Start { .. } => {
                self.state = State::Head;
                self.request_line(line)?;
            }
            State::Head if self.first_line => self.request_line(line)?,
            State::Head if line.is_empty() => self.end_of_head()?,
            State::Head => self.header_line(line)?,
            State::ChunkSize => match chunk_size(line).ok_or(())? {
                0 => self.state = State::Trailers,
                size => self.state = State::Chunk(size),
            },
            State::Trailers if line.is_empty() => self.state = self.next(),
            State::Trailers => {}
            State::Body(_) | State::Chunk(_) | State::ChunkEnd(_) | State::Opaque => {}
        }
        Ok(())
    }

    /// The server checks the line itself; only the version matters here.
    fn request_line(&mut self, line: &[u8]) -> Result<(), ()> {
        self.first_line = false;
        self.http_10 = line.ends_with(b" HTTP/1.0");
        // A target has no fragment (RFC 9112 section 3.2); `http` would cut it off, and others match what stands before or behind.
        // PRI is no method but the beginning of HTTP/2, too late here (RFC 9113 section 3.4).
        if line.contains(&b'#') || line.starts_with(b"PRI ") { Err(()) } else { Ok(()) }
    }

    fn header_line(&mut self, line: &[u8]) -> Result<(), ()> {
        // A line without a colon, or folded, is refused by the server.
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = line.split_at(colon);
        // Those of interest; most lines have another length.
        if !matches!(name.len(), 7 | 14 | 17) {
            return Ok(());
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            self.lengths += 1;
            let plain = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            if self.lengths > 1 || !plain || (value.len() > 1 && value.first() == Some(&b'0')) {
                return Err(());
            }
            self.length = value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.codings += 1;
            if self.codings > 1 || self.http_10 || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(());
            }
        } else if name.eq_ignore_ascii_case(b"upgrade") {
            self.upgrade |= self.upgrades.find(value).is_some();
        }
        Ok(())
    }

    fn end_of_head(&mut self) -> Result<(), ()> {
        // An upgrade with a body has two things behind its head, and only one can be read (RFC 6455 section 4.1: it is a GET).
        if self.codings > 0 && self.lengths > 0 || self.upgrade && (self.codings > 0 || self.length > 0) {
            return Err(());
        }
        self.state = if self.upgrade {
            State::Opaque
        } else if self.codings > 0 {
            State::ChunkSize
        } else if self.length > 0 {
            State::Body(self.length)
        } else {
            self.next()
        };
        Ok(())
    }
}

/// `chunk-size [ chunk-ext ]` (RFC 9112 section 7.1): 1 to 15 hex digits, nothing before or after them but an extension.
pub(super) fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
    if !(1..=15).contains(&digits.len()) || line.len() > 256 {
        return None;
    }
    if line.get(digits.len()..)?.iter().any(|byte| byte.is_ascii_control()) {
        return None;
    }
    digits.iter().try_fold(0, |sum, digit| Some(sum * 16 + u64::from((*digit as char).to_digit(16)?)))
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
