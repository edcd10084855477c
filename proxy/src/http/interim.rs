//! Interim answers (1xx) of an upstream, bounded: hyper skips them without end, and a request would wait as long.
//!
//! A reader in front of hyper's client looks at the beginning of each answer, and at nothing else: the first head that is not
//! interim ends its interest until the next request is sent.

use super::{bell::Bell, body::Upload};
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1::SendRequest},
};
use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Interim answers to one request at most.
pub const MOST_INTERIM: u32 = 16;
/// Their bytes together at most.
pub const MOST_INTERIM_BYTES: usize = 64 * 1024;

/// The upstream sends interim answers and no other.
#[derive(Debug, thiserror::Error)]
#[error("more interim answers than any request needs")]
pub struct TooManyInterim;

/// Sends requests on one HTTP/1 connection, and tells its reader when an answer is to begin.
pub struct Sender {
    requests: SendRequest<Upload>,
    // Shared with the reader. Both live on one thread; hyper demands streams that could move.
    turn: Arc<AtomicBool>,
    bell: Arc<Bell>,
}

impl Sender {
    /// Over the connection whose reader shares `turn`, and which `bell` calls.
    pub fn new(requests: SendRequest<Upload>, turn: Arc<AtomicBool>, bell: Arc<Bell>) -> Self {
        Self { requests, turn, bell }
    }

    /// What calls the connection.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Sends; see [`SendRequest::try_send_request`].
    pub fn try_send_request(
        &mut self,
        request: Request<Upload>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Upload>>>> + use<> {
        self.turn.store(true, Ordering::Relaxed);
        self.requests.try_send_request(request)
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.requests.is_closed()
    }
}

/// A connection to an upstream whose interim answers are counted. More than [`MOST_INTERIM`] of them, or more than
/// [`MOST_INTERIM_BYTES`], end it with [`TooManyInterim`].
pub struct Bounded<S> {
    stream: S,
    turn: Arc<AtomicBool>,
    count: Option<Count>,
}

impl<S> Bounded<S> {
    /// The connection, and what its [`Sender`] needs.
    pub fn new(stream: S) -> (Self, Arc<AtomicBool>) {
        let turn = Arc::new(AtomicBool::new(false));
        (Self { stream, turn: turn.clone(), count: None }, turn)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        if this.turn.load(Ordering::Relaxed) {
            this.turn.store(false, Ordering::Relaxed);
            this.count = Some(Count::default());
        }
        if let Some(count) = &mut this.count {
            match count.feed(buf.filled().get(before..).unwrap_or_default()) {
                Seen::Interim => {}
                Seen::Final => this.count = None,
                Seen::TooMuch => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, TooManyInterim)));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing but interim answers so far, or the beginning of a head.
    Interim,
    /// The head that counts has begun.
    Final,
    TooMuch,
}

/// `HTTP/1.1 ddd`.
const STATUS: usize = 12;

/// Where one answer is.
#[derive(Debug, Default)]
struct Count {
    interim: u32,
    bytes: usize,
    // The beginning of the status line, or, when it is interim, `STATUS` octets of it.
    status: [u8; STATUS],
    known: usize,
    // Octets of the current line, without CR.
    line: usize,
}

impl Count {
    fn feed(&mut self, bytes: &[u8]) -> Seen {
        for byte in bytes {
            self.bytes += 1;
            if self.bytes > MOST_INTERIM_BYTES {
                return Seen::TooMuch;
            }
            if let Some(place) = self.status.get_mut(self.known) {
                *place = *byte;
                self.known += 1;
                self.line = self.known;
                if self.known == STATUS && !is_interim(&self.status) {
                    return Seen::Final;
                }
                continue;
            }
            match byte {
                b'\n' if self.line == 0 => {
                    self.interim += 1;
                    if self.interim > MOST_INTERIM {
                        return Seen::TooMuch;
                    }
                    self.known = 0;
                }
                b'\n' => self.line = 0,
                b'\r' => {}
                _ => self.line += 1,
            }
        }
        Seen::Interim
    }
}

/// 101 is no interim answer: what follows it is not HTTP/1.
fn is_interim(status: &[u8; STATUS]) -> bool {
    matches!(status, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', _, b' ', b'1', tens, ones] if (*tens, *ones) != (b'0', b'1'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(bytes: &[u8], expected: Seen) {
        for at in 0..bytes.len() {
            let mut count = Count::default();
            let first = count.feed(&bytes[..at]);
            let seen = if first == Seen::Interim { count.feed(&bytes[at..]) } else { first };
            assert_eq!(seen, expected, "split at {at}: {}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn the_head_that_counts_ends_the_counting_wherever_it_is_split() {
        check(b"HTTP/1.1 200 OK\r\n\r\n", Seen::Final);
        check(b"HTTP/1.1 101 X\r\n\r\n", Seen::Final);
        check(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\na: b\r\n\r\nHTTP/1.1 200 OK\r\n",
            Seen::Final,
        );
        check(b"HTTP/1.1 100 Continue\r\n\r\n", Seen::Interim);
        check(b"HTTP/1.1 100 Continue\n\nHTTP/1.1 404", Seen::Final);
        check(b"SSH-2.0-OpenSSH_9.2", Seen::Final);
    }

    #[test]
    fn sixteen_interim_answers_pass_and_one_more_does_not() {
        let interim = |count| b"HTTP/1.1 100 Continue\r\n\r\n".repeat(count);
        let with = |count| [interim(count), b"HTTP/1.1 200 OK\r\n".to_vec()].concat();
        check(&with(16), Seen::Final);
        check(&interim(17), Seen::TooMuch);
        assert_eq!(Count::default().feed(&b"HTTP/1.1 102 ".repeat(6000)), Seen::TooMuch);
    }
}
