//! Small writes of HTTP/2 on their way to one larger one.
//!
//! h2 flushes behind each DATA frame, so that each message of a stream would become a TLS record and a system call of its own. What it
//! writes is held back until its connection is polled again, which the flush asks for; by then whoever had something to say has
//! said it. h2 reads whenever its connection is polled, so that reading is where held octets are sent.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::AsyncWrite;

/// Held at most, in octets: a TLS record.
const MOST: usize = 16 * 1024;

/// What is held of one connection.
#[derive(Debug, Default)]
pub struct Gather {
    octets: Vec<u8>,
    sent: usize,
    // The connection's task comes back: it was asked to, or the stream wakes it.
    is_called: bool,
}

impl Gather {
    /// Whether it takes so many more octets; if not, what is held has to be sent first, and what is too much is written past it.
    pub fn takes(&self, more: usize) -> bool {
        self.octets.len() + more <= MOST
    }

    /// Holds them.
    pub fn hold(&mut self, octets: &[u8]) {
        self.octets.extend_from_slice(octets);
    }

    /// Whether something is held and will be sent soon; the task of `cx` is called back for it.
    pub fn will_send(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.octets.is_empty() && !std::mem::replace(&mut self.is_called, true) {
            cx.waker().wake_by_ref();
        }
        !self.octets.is_empty()
    }

    /// Sends what is held, all of it.
    ///
    /// # Errors
    /// Those of the stream.
    pub fn poll_send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.is_called = true;
        while let Some(rest) = self.octets.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut *stream).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent += count,
            }
        }
        if self.sent > 0 {
            ready!(Pin::new(stream).poll_flush(cx))?;
        }
        // An idle connection holds no memory for it.
        Poll::Ready(Ok(std::mem::take(self).sent))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use crate::http::flood::{Bounds, Paced};
    use std::{
        io::{self, IoSlice},
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Context, Poll, Wake, Waker},
        time::Duration,
    };
    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    /// Takes so many octets and then none; nothing comes of it.
    #[derive(Default)]
    struct Sink {
        room: usize,
        taken: Vec<u8>,
        writes: usize,
    }

    impl AsyncRead for Sink {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Sink {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let count = buf.len().min(self.room);
            if count == 0 {
                return Poll::Pending;
            }
            self.room -= count;
            self.writes += 1;
            self.taken.extend_from_slice(&buf[..count]);
            Poll::Ready(Ok(count))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes and flushes each of `parts`, as h2 does, then reads as often as the task is called back, at most `rounds` times.
    /// What has arrived, in how many writes, and how often the task was called.
    fn run(sink: &mut Sink, parts: &[&[u8]], rounds: usize, ends: bool) -> usize {
        let calls = Arc::new(Calls::default());
        let waker = Waker::from(calls.clone());
        let mut cx = Context::from_waker(&waker);
        let (mut paced, _) =
            Paced::server(&mut *sink, Bounds { frames: 10, stalled: Duration::from_secs(1) });
        for part in parts {
            let written = Pin::new(&mut paced).poll_write_vectored(&mut cx, &[IoSlice::new(part)]);
            assert!(matches!(written, Poll::Ready(Ok(count)) if count == part.len()), "{written:?}");
            assert!(Pin::new(&mut paced).poll_flush(&mut cx).is_ready());
        }
        let mut seen = 0;
        for _ in 0..rounds {
            if calls.0.load(Ordering::Relaxed) == seen {
                break;
            }
            seen = calls.0.load(Ordering::Relaxed);
            assert!(Pin::new(&mut paced).poll_read(&mut cx, &mut ReadBuf::new(&mut [0; 8])).is_pending());
            // As h2 does behind each read.
            let _ = Pin::new(&mut paced).poll_flush(&mut cx);
        }
        if ends {
            assert!(Pin::new(&mut paced).poll_shutdown(&mut cx).is_ready());
        }
        calls.0.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn what_is_flushed_in_one_turn_is_written_at_once_in_order_and_whole() {
        let message = [7; 1029];
        for (parts, writes) in [
            (vec![&message[..]; 10], 1),
            // Fifteen fill what is held.
            (vec![&message[..]; 100], 7),
            (vec![&[1; 9][..], &[2; 40_000], &[3; 9]], 3),
            (vec![], 0),
        ] {
            let mut sink = Sink { room: usize::MAX, ..Sink::default() };
            let calls = run(&mut sink, &parts, 5, false);
            assert_eq!((sink.taken, sink.writes), (parts.concat(), writes));
            assert!(calls <= writes.max(1), "{calls} calls");
        }
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_does_not_keep_the_task_busy() {
        let mut sink = Sink { room: 100, ..Sink::default() };
        assert_eq!(run(&mut sink, &[&[7; 1029]], 1000, false), 1);
        assert_eq!(sink.taken.len(), 100);
    }

    #[tokio::test]
    async fn the_end_of_a_connection_sends_what_is_held() {
        let mut sink = Sink { room: usize::MAX, ..Sink::default() };
        run(&mut sink, &[b"GOAWAY"], 0, true);
        assert_eq!(sink.taken, b"GOAWAY");
    }
}
