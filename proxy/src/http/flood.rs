//! Floods of HTTP/2 frames that cost their sender nothing: WINDOW_UPDATE, PRIORITY, PING, SETTINGS, and types nobody knows.
//!
//! h2 bounds CONTINUATION, empty DATA, header lists, and resets of requests that nobody has taken up yet; these it answers or
//! skips for as long as they come. A reader in front of it counts them, and what a client resets besides. Beyond the budget it
//! hands h2 something that h2 answers with GOAWAY and ENHANCE_YOUR_CALM (11), at the next boundary of frames, and nothing after it
//! is read. It also holds the deadline of a peer that takes nothing.

use super::gather::Gather;
use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

/// What one peer may do on one connection.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Such frames a second, over time; as many may come at once. One more for each KiB that we send, since windows are opened
    /// by what was received. A reset by a client counts as [`RESET`] of them.
    pub frames: u32,
    /// How long a peer may take nothing of what we have for it.
    pub stalled: Duration,
}

/// The connection's preface (RFC 9113 section 3.4), which only clients send.
const PREFACE: usize = 24;

/// Counts the frames in what it reads; what is written is gathered ([`Gather`]) and passes untouched.
pub struct Paced<S> {
    stream: S,
    gather: Gather,
    frames: Frames,
    budget: Budget,
    poison: Option<&'static [u8]>,
    seen: Rc<Seen>,
    stalled: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

/// What was seen of a peer on one connection.
#[derive(Debug, Default)]
pub struct Seen {
    flooded: Cell<bool>,
    streams: Cell<u64>,
    most_streams: Cell<Option<usize>>,
}

impl Seen {
    /// The connection was ended for a flood.
    pub fn flooded(&self) -> bool {
        self.flooded.get()
    }
    /// Streams that the peer has opened.
    pub fn streams(&self) -> u64 {
        self.streams.get()
    }
    /// How many streams of ours the peer allows at once; `None` before its SETTINGS have come.
    pub fn most_streams(&self) -> Option<usize> {
        self.most_streams.get()
    }
}

impl<S> Paced<S> {
    /// In front of our server.
    pub fn server(stream: S, bounds: Bounds) -> (Self, Rc<Seen>) {
        Self::new(stream, bounds, Frames { left: PREFACE, reset: RESET, ..Frames::default() })
    }

    /// In front of our client.
    pub fn client(stream: S, bounds: Bounds) -> (Self, Rc<Seen>) {
        Self::new(stream, bounds, Frames::default())
    }

    fn new(stream: S, bounds: Bounds, frames: Frames) -> (Self, Rc<Seen>) {
        let seen = Rc::new(Seen::default());
        let paced = Self {
            stream,
            gather: Gather::default(),
            frames,
            budget: Budget::full(bounds.frames),
            poison: None,
            seen: seen.clone(),
            stalled: None,
            patience: bounds.stalled,
        };
        (paced, seen)
    }

    fn watch_write<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers")))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(Err(error)) = this.poll_send(cx) {
            return Poll::Ready(Err(error));
        }
        if let Some(poison) = this.poison {
            let (now, later) = poison.split_at(poison.len().min(buf.remaining()));
            buf.put_slice(now);
            this.poison = Some(later);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let fresh = buf.filled().get(before..).unwrap_or_default();
        let fed = this.frames.feed(fresh, &mut this.budget);
        this.seen.streams.set(this.frames.streams);
        this.seen.most_streams.set(this.frames.settings.most_streams);
        if let Err(at) = fed {
            this.seen.flooded.set(true);
            buf.set_filled(before + at);
            let (now, later) = POISON.split_at(POISON.len().min(buf.remaining()));
            buf.put_slice(now);
            this.poison = Some(later);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> Paced<S> {
    /// Sends what was gathered. A peer that does not take it has the same time as for anything else.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.gather.poll_send(&mut self.stream, cx);
        self.budget.sent(&sent);
        self.watch_write(cx, sent).map_ok(drop)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bufs.iter().map(|buf| buf.len()).sum();
        if !self.gather.takes(length) {
            ready!(self.poll_send(cx))?;
        }
        if !self.gather.takes(length) {
            let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
            self.budget.sent(&written);
            return self.watch_write(cx, written);
        }
        bufs.iter().for_each(|buf| self.gather.hold(buf));
        Poll::Ready(Ok(length))
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gather.will_send(cx) {
            return Poll::Ready(Ok(()));
        }
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch_write(cx, flushed)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A header block that is never finished, on the last stream there can be: h2 stops it as the flood of CONTINUATION that it
/// looks like.
const POISON: &[u8] = &poison();
const EMPTY: usize = 9;
const BLOCKS: usize = 64;

// In bounds by the loops; were it not, the build would fail, since this runs at compile time.
#[allow(clippy::indexing_slicing)]
const fn poison() -> [u8; EMPTY * BLOCKS] {
    let mut bytes = [0; EMPTY * BLOCKS];
    let mut block = 0;
    while block < BLOCKS {
        // Length 0, HEADERS once and then CONTINUATION, no flags, stream 2^31 - 1.
        let frame = [0, 0, 0, if block == 0 { 1 } else { 9 }, 0, 0x7f, 0xff, 0xff, 0xff];
        let mut at = 0;
        while at < EMPTY {
            bytes[block * EMPTY + at] = frame[at];
            at += 1;
        }
        block += 1;
    }
    bytes
}

/// Where we are in the frames of one connection.
#[derive(Debug, Default)]
struct Frames {
    // Octets of the preface or of a payload that are still to come.
    left: usize,
    header: [u8; EMPTY],
    known: usize,
    // Between HEADERS and the end of its block no other frame may stand.
    in_block: bool,
    tripped: bool,
    // What a RST_STREAM costs.
    reset: u32,
    last_stream: u32,
    streams: u64,
    settings: Settings,
}

/// The one setting of the peer that we have to know before h2 does.
#[derive(Debug, Default)]
struct Settings {
    // The payload that is being read is one of SETTINGS.
    is_open: bool,
    entry: [u8; 6],
    known: usize,
    most_streams: Option<usize>,
}

impl Settings {
    fn begin(&mut self) {
        (self.is_open, self.known) = (true, 0);
        // Without a word about it there is no limit (RFC 9113 section 6.5.2).
        self.most_streams.get_or_insert(usize::MAX);
    }

    fn feed(&mut self, payload: &[u8]) {
        for byte in payload {
            if let Some(place) = self.entry.get_mut(self.known) {
                *place = *byte;
            }
            self.known += 1;
            if self.known == self.entry.len() {
                self.known = 0;
                let [high, low, value @ ..] = self.entry;
                if u16::from_be_bytes([high, low]) == MAX_CONCURRENT_STREAMS {
                    self.most_streams = usize::try_from(u32::from_be_bytes(value)).ok();
                }
            }
        }
    }
}

/// What a RST_STREAM of a client costs, in frames that carry nothing: the request that it takes back may have gone on already, and
/// another one may take its place at once (CVE-2023-44487). An upstream's resets are answers to requests of ours.
const RESET: u32 = 10;

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// PRIORITY, SETTINGS, PING, WINDOW_UPDATE, and what RFC 9113 does not know.
fn is_cheap(kind: u8) -> bool {
    matches!(kind, 2 | 4 | 6 | 8 | 10..)
}

impl Frames {
    /// Follows `bytes`; `Err(at)`: nothing from there on should be read.
    fn feed(&mut self, bytes: &[u8], budget: &mut Budget) -> Result<(), usize> {
        let mut at = 0;
        while at < bytes.len() {
            if self.left > 0 {
                let count = self.left.min(bytes.len() - at);
                if self.settings.is_open {
                    self.settings.feed(bytes.get(at..at + count).unwrap_or_default());
                }
                self.left -= count;
                at += count;
                continue;
            }
            if self.tripped && self.known == 0 && !self.in_block {
                return Err(at);
            }
            let missing = EMPTY - self.known;
            let rest = bytes.get(at..).unwrap_or_default();
            let some = rest.get(..missing.min(rest.len())).unwrap_or_default();
            if let Some(place) = self.header.get_mut(self.known..self.known + some.len()) {
                place.copy_from_slice(some);
            }
            self.known += some.len();
            at += some.len();
            if self.known == EMPTY {
                self.known = 0;
                let [high, middle, low, kind, flags, stream @ ..] = self.header;
                self.left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) {
                    self.in_block = flags & END_HEADERS == 0;
                }
                // The numbers of streams only rise (RFC 9113 section 5.1.1); a second HEADERS are trailers.
                let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
                if kind == HEADERS && stream > self.last_stream {
                    self.last_stream = stream;
                    self.streams += 1;
                }
                self.settings.is_open = false;
                if kind == SETTINGS && flags & ACK == 0 {
                    self.settings.begin();
                }
                let cost = if kind == RST_STREAM { self.reset } else { u32::from(is_cheap(kind)) };
                if cost > 0 && !budget.takes(cost) {
                    self.tripped = true;
                }
            }
        }
        Ok(())
    }
}

/// A bucket of tokens, which looks at the clock only when too few are left.
#[derive(Debug)]
struct Budget {
    tokens: u32,
    a_second: u32,
    since: Option<Instant>,
    sent: usize,
}

impl Budget {
    fn full(a_second: u32) -> Self {
        Self { tokens: a_second, a_second, since: None, sent: 0 }
    }

    fn sent(&mut self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = written {
            self.sent = self.sent.saturating_add(*count);
        }
    }

    fn takes(&mut self, cost: u32) -> bool {
        if self.since.is_none() {
            self.since = Some(Instant::now());
        }
        if self.tokens < cost {
            let now = Instant::now();
            let gone = self.since.replace(now).map_or(Duration::ZERO, |since| now - since);
            let earned = gone.as_secs_f64() * f64::from(self.a_second);
            // Both are bounded before they are cut to integers.
            let earned = earned.min(f64::from(self.a_second)) as u32;
            let opened = u32::try_from(std::mem::take(&mut self.sent) / 1024).unwrap_or(u32::MAX);
            self.tokens = self.tokens.saturating_add(earned).saturating_add(opened);
        }
        self.tokens = match self.tokens.checked_sub(cost) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        [vec![0, (payload >> 8) as u8, payload as u8, kind, flags, 0, 0, 0, 1], vec![0xff; payload]].concat()
    }

    fn follow(bytes: &[u8], at: usize, tokens: u32) -> Option<usize> {
        let (mut frames, mut budget) = (Frames::default(), Budget::full(tokens));
        frames
            .feed(&bytes[..at], &mut budget)
            .err()
            .or_else(|| frames.feed(&bytes[at..], &mut budget).err().map(|end| end + at))
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_cost_nothing_are_counted_at_every_split_and_stopped_at_a_boundary() {
        for kind in [2, 4, 6, 8, 10, 0xff] {
            let flood = frame(kind, 0, 5).repeat(4);
            for at in 0..flood.len() {
                // The third is one too many; what begins behind it is not read.
                assert_eq!(follow(&flood, at, 2), Some(3 * 14), "type {kind} split at {at}");
                assert_eq!(follow(&flood, at, 4), None);
            }
        }
        for kind in [0, 1, 3, 7, 9] {
            assert_eq!(follow(&frame(kind, 4, 5).repeat(20), 3, 2), None, "type {kind} is bounded by h2");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reset_of_a_client_costs_more_and_one_of_an_upstream_nothing() {
        for (reset, end) in [(RESET, Some(3 * 13)), (0, None)] {
            let (mut frames, mut budget) = (Frames { reset, ..Frames::default() }, Budget::full(2 * RESET));
            assert_eq!(frames.feed(&frame(RST_STREAM, 0, 4).repeat(5), &mut budget).err(), end);
        }
    }

    #[test]
    fn how_many_streams_a_peer_allows_is_read_at_every_split() {
        let settings = |flags: u8, entries: &[u8]| {
            [&[0, 0, entries.len() as u8, 4, flags, 0, 0, 0, 0][..], entries].concat()
        };
        let (window, none, two) = ([0, 4, 0, 0, 255, 255], [0, 3, 0, 0, 0, 0], [0, 3, 0, 0, 0, 2]);
        for (bytes, most) in [
            (frame(0, 0, 12), None),
            (settings(1, &[]), None),
            (settings(0, &[]), Some(usize::MAX)),
            (settings(0, &window), Some(usize::MAX)),
            (settings(0, &[window, none].concat()), Some(0)),
            ([settings(0, &none), frame(0, 0, 6), settings(0, &two), settings(0, &window)].concat(), Some(2)),
        ] {
            for at in 0..bytes.len() {
                let (mut frames, mut budget) = (Frames::default(), Budget::full(10));
                frames.feed(&bytes[..at], &mut budget).unwrap();
                frames.feed(&bytes[at..], &mut budget).unwrap();
                assert_eq!(frames.settings.most_streams, most, "{bytes:?} split at {at}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_put_into_the_middle_of_a_header_block() {
        let mut flood = frame(8, 0, 4).repeat(3);
        let block = [frame(1, 0, 7), frame(9, 0, 7), frame(9, 4, 7)].concat();
        // Tripped by the third; h2 would not take a frame of ours before the block has ended.
        let (mut frames, mut budget) = (Frames::default(), Budget::full(2));
        frames.in_block = true;
        assert_eq!(frames.feed(&flood, &mut budget), Ok(()));
        flood.extend(&block);
        assert_eq!(frames.feed(&[&block[..], b"x"].concat(), &mut budget), Err(block.len()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_comes_back_with_time_and_with_what_we_send() {
        let mut budget = Budget::full(10);
        assert!((0..10).all(|_| budget.takes(1)));
        assert!(!budget.takes(1));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!((0..5).all(|_| budget.takes(1)));
        assert!(!budget.takes(1));
        budget.sent(&Poll::Ready(Ok(3 * 1024)));
        assert!((0..3).all(|_| budget.takes(1)));
        assert!(!budget.takes(1));
    }
}
