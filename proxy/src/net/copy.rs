//! Bytes both ways, with half-close, counted.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How a conversation of bytes ended.
#[derive(Debug)]
pub enum Ended {
    /// Both sides closed in order.
    Cleanly,
    /// The downstream side failed.
    Downstream(io::Error),
    /// The upstream side failed.
    Upstream(io::Error),
    /// One side had closed and the other stayed silent for too long.
    HalfClosedTooLong,
    /// Both sides were silent for too long.
    Idle,
}

/// Bytes carried so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// From downstream to upstream.
    pub received: u64,
    /// From upstream to downstream.
    pub sent: u64,
}

/// Carries bytes between two streams until both have ended. The end of one side is passed on at once (half-close); from
/// then on the other may be silent for `half_closed` at most, and before that both for `idle`. `counts` is current at any time, also when this is dropped.
/// `first` is told, once, whether the first bytes came from upstream.
pub async fn both_ways<D, U>(
    downstream: &mut D,
    upstream: &mut U,
    half_closed: Duration,
    idle: Option<Duration>,
    counts: &mut Counts,
    first: impl FnOnce(bool),
) -> Ended
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let mut up = Pump::default();
    let mut down = Pump::default();
    let mut patience = pin!(tokio::time::sleep(idle.unwrap_or(half_closed)));
    let mut counting = false;
    let mut first = Some(first);
    poll_fn(|cx| {
        let before = (up.carried, down.carried);
        let one = up.poll(cx, downstream, upstream);
        let other = down.poll(cx, upstream, downstream);
        *counts = Counts { received: up.carried, sent: down.carried };
        if (up.carried, down.carried) != (0, 0)
            && let Some(first) = first.take()
        {
            first(up.carried == 0);
        }
        match (one, other) {
            (Poll::Ready(Err(Failed::Reading(error))), _) | (_, Poll::Ready(Err(Failed::Writing(error)))) => {
                return Poll::Ready(Ended::Downstream(error));
            }
            (Poll::Ready(Err(Failed::Writing(error))), _) | (_, Poll::Ready(Err(Failed::Reading(error)))) => {
                return Poll::Ready(Ended::Upstream(error));
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => return Poll::Ready(Ended::Cleanly),
            (Poll::Pending, Poll::Pending) => {
                let Some(idle) = idle else { return Poll::Pending };
                if before != (up.carried, down.carried) {
                    patience.as_mut().reset(tokio::time::Instant::now() + idle);
                }
                return patience.as_mut().poll(cx).map(|()| Ended::Idle);
            }
            (Poll::Ready(Ok(())), Poll::Pending) | (Poll::Pending, Poll::Ready(Ok(()))) => {}
        }
        if !counting || before != (up.carried, down.carried) {
            counting = true;
            patience.as_mut().reset(tokio::time::Instant::now() + half_closed);
        }
        patience.as_mut().poll(cx).map(|()| Ended::HalfClosedTooLong)
    })
    .await
}

const FIRST_BUFFER: usize = 4 * 1024;
const LARGEST_BUFFER: usize = 64 * 1024;

/// One direction.
#[derive(Default)]
struct Pump {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    carried: u64,
    ended: bool,
    needs_flush: bool,
    closed: bool,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Pump {
    fn poll<R, W>(&mut self, cx: &mut Context<'_>, reader: &mut R, writer: &mut W) -> Poll<Result<(), Failed>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        // A direction that always has bytes must not starve the other one and the rest of the worker.
        let mut budget = 32;
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.start < self.end {
                let rest = self.buffer.get(self.start..self.end).unwrap_or_default();
                let written = ready!(Pin::new(&mut *writer).poll_write(cx, rest)).map_err(Failed::Writing)?;
                if written == 0 {
                    return Poll::Ready(Err(Failed::Writing(io::ErrorKind::WriteZero.into())));
                }
                self.start += written;
                self.carried += written as u64;
                self.needs_flush = true;
                continue;
            }
            if self.ended {
                ready!(Pin::new(&mut *writer).poll_shutdown(cx)).map_err(Failed::Writing)?;
                self.closed = true;
                self.buffer = Vec::new();
                continue;
            }
            if budget == 0 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            budget -= 1;
            match self.poll_fill(cx, reader) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failed::Reading(error))),
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *writer).poll_flush(cx)).map_err(Failed::Writing)?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn poll_fill<R: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
    ) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            self.buffer.resize(FIRST_BUFFER, 0);
        } else if self.end == self.buffer.len() && self.buffer.len() < LARGEST_BUFFER {
            // The last read filled it: a bulk transfer, which earns fewer system calls.
            self.buffer.resize(self.buffer.len() * 4, 0);
        }
        let mut into = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(reader).poll_read(cx, &mut into))?;
        self.start = 0;
        self.end = into.filled().len();
        self.ended = self.end == 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn bytes_pass_both_ways_and_a_half_close_is_passed_on() {
        let (mut client, mut near) = duplex(64);
        let (mut far, mut app) = duplex(64);
        let mut counts = Counts::default();
        let talk = async {
            client.write_all(&[7; 1000]).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let echo = async {
            let mut question = Vec::new();
            app.read_to_end(&mut question).await.unwrap();
            app.write_all(&question[..500]).await.unwrap();
            drop(app);
        };
        let (ended, answer, ()) = tokio::join!(
            both_ways(&mut near, &mut far, Duration::from_secs(60), None, &mut counts, |server| assert!(
                !server
            )),
            talk,
            echo
        );
        assert!(matches!(ended, Ended::Cleanly));
        assert_eq!(answer.len(), 500);
        assert_eq!(counts, Counts { received: 1000, sent: 500 });
    }

    #[tokio::test]
    async fn whoever_speaks_first_is_told_once() {
        for server_first in [true, false] {
            let (mut client, mut near) = duplex(64);
            let (mut far, mut app) = duplex(64);
            let mut told = Vec::new();
            let mut counts = Counts::default();
            let talk = async {
                let (one, other) =
                    if server_first { (&mut app, &mut client) } else { (&mut client, &mut app) };
                for (says, hears) in [(0, 1), (1, 0)] {
                    let ends: &mut [&mut tokio::io::DuplexStream; 2] = &mut [&mut *one, &mut *other];
                    ends[says].write_all(b"x").await.unwrap();
                    ends[hears].read_exact(&mut [0]).await.unwrap();
                }
                client.shutdown().await.unwrap();
                app.shutdown().await.unwrap();
            };
            let carried =
                both_ways(&mut near, &mut far, Duration::from_secs(60), None, &mut counts, |server| {
                    told.push(server);
                });
            tokio::join!(carried, talk);
            assert_eq!(told, [server_first]);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_closed_conversation_ends_after_its_deadline() {
        let (mut client, mut near) = duplex(64);
        let (mut far, _app) = duplex(64);
        client.shutdown().await.unwrap();
        let before = tokio::time::Instant::now();
        let ended =
            both_ways(&mut near, &mut far, Duration::from_secs(60), None, &mut Counts::default(), |_| {})
                .await;
        assert!(matches!(ended, Ended::HalfClosedTooLong));
        assert_eq!(before.elapsed(), Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_conversation_ends_after_its_idle_time_and_a_byte_begins_it_anew() {
        let (mut client, mut near) = duplex(64);
        let (mut far, _app) = duplex(64);
        let before = tokio::time::Instant::now();
        let (half_closed, idle) = (Duration::from_secs(60), Some(Duration::from_secs(10)));
        let mut counts = Counts::default();
        let (ended, _client) =
            tokio::join!(both_ways(&mut near, &mut far, half_closed, idle, &mut counts, |_| {}), async {
                tokio::time::sleep(Duration::from_secs(7)).await;
                client.write_all(b"x").await.unwrap();
                client
            });
        assert!(matches!(ended, Ended::Idle), "{ended:?}");
        assert_eq!(before.elapsed(), Duration::from_secs(17));
    }
}
