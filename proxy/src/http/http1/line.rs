//! One end of an HTTP/1.1 connection: octets that were read and not taken yet, and a message on its way out.

use super::{
    Lost,
    body::{Coding, put_data, put_end},
};
use bytes::{Buf, Bytes, BytesMut};
use hyper::body::Body;
use std::{
    cell::{Cell, RefCell},
    io::{self, IoSlice},
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Read at once, in octets, until a message turns out to be large; the most that a TLS record holds.
const SMALL_READ: usize = 16 * 1024;
/// The same where more is to be expected.
const LARGE_READ: usize = 64 * 1024;
/// Gathered for one write, in octets.
const FULL: usize = 64 * 1024;
/// A piece of a body that is as large is written from where it lies, in octets.
const LARGE_PIECE: usize = 4 * 1024;
/// Of these at most so many at once.
const MOST_PIECES: usize = 8;

thread_local! {
    // What all connections of a worker read with and write with: buffers that stay in the near caches, and that idle ones do not hold.
    static READING: RefCell<Box<[u8]>> = RefCell::new(vec![0; SMALL_READ].into());
    static WRITING: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A stream with what is on its way in and out.
#[derive(Debug)]
pub struct Line<S> {
    /// `None`: it has been given away, or has ended.
    pub stream: Option<S>,
    /// Read and not taken yet.
    pub incoming: BytesMut,
    /// Its end is our doing, and ends no message.
    pub is_cut: bool,
    is_large: bool,
    out: Out,
    // From its first octet until TLS, too, has nothing left of it.
    is_sending: bool,
}

/// A message on its way out, in order: `octets`, with large pieces of a body between them.
#[derive(Debug, Default)]
pub struct Out {
    /// Heads, the framing of bodies, and what is small of them.
    pub octets: Vec<u8>,
    written: usize,
    // Each stands before the octet of that place.
    pieces: Vec<(usize, Bytes)>,
    large: usize,
}

impl Out {
    /// Takes a piece of a body.
    pub fn put(&mut self, data: Bytes) {
        if data.len() < LARGE_PIECE {
            self.octets.extend_from_slice(&data);
        } else {
            self.large += data.len();
            self.pieces.push((self.octets.len(), data));
        }
    }

    fn is_full(&self) -> bool {
        self.octets.len() + self.large >= FULL || self.pieces.len() >= MOST_PIECES
    }

    /// What is to be written first.
    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; 2 * MOST_PIECES + 1]) -> usize {
        let (mut from, mut count) = (self.written, 0);
        let mut put = |slice: &'a [u8]| {
            if let Some(place) = slices.get_mut(count).filter(|_| !slice.is_empty()) {
                *place = IoSlice::new(slice);
                count += 1;
            }
        };
        for (place, piece) in &self.pieces {
            put(self.octets.get(from..*place).unwrap_or_default());
            put(piece);
            from = *place;
        }
        put(self.octets.get(from..).unwrap_or_default());
        count
    }

    fn advance(&mut self, mut count: usize) {
        while let Some((place, piece)) = self.pieces.first_mut() {
            let before = count.min(*place - self.written);
            self.written += before;
            count -= before;
            if self.written < *place {
                return;
            }
            let of_piece = count.min(piece.len());
            piece.advance(of_piece);
            count -= of_piece;
            if !piece.is_empty() {
                return;
            }
            self.pieces.remove(0);
        }
        self.written += count;
    }
}

impl<S> Line<S> {
    /// Over a stream, of which `incoming` was read already.
    pub fn new(stream: S, incoming: BytesMut) -> Self {
        Self {
            stream: Some(stream),
            incoming,
            is_cut: false,
            is_large: false,
            out: Out::default(),
            is_sending: false,
        }
    }

    /// Whether a message is on its way.
    pub fn is_sending(&self) -> bool {
        self.is_sending
    }

    /// Where the next message is written.
    pub fn begin(&mut self) -> &mut Vec<u8> {
        self.is_sending = true;
        if self.out.octets.capacity() == 0 {
            self.out.octets = WRITING.take();
        }
        &mut self.out.octets
    }

    /// Nothing more is expected for now, and nothing is held for it.
    pub fn rest(&mut self) {
        self.is_large = false;
        if self.incoming.is_empty() {
            self.incoming = BytesMut::new();
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Line<S> {
    /// Sends what there is of a message whose body is `body`, framed by `coding`; `None` where it has none or no more. Ready when that was
    /// all of it.
    pub fn poll_message<B>(
        &mut self,
        cx: &mut Context<'_>,
        body: &mut Option<(B, Coding)>,
    ) -> Poll<Result<(), Failed<B::Error>>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            let waits = gather(cx, &mut self.out, body)?;
            ready!(self.poll_write(cx)).map_err(Failed::Line)?;
            if waits {
                return Poll::Pending;
            }
            if body.is_none() {
                return self.poll_octets(cx).map_err(Failed::Line);
            }
        }
    }

    /// Sends what was written to [`Line::begin`], of a message without a body.
    pub fn poll_octets(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        self.is_sending = false;
        WRITING.set(mem::take(&mut self.out.octets));
        Poll::Ready(Ok(()))
    }

    /// Writes all that was gathered.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        while !self.out.pieces.is_empty() || self.out.written < self.out.octets.len() {
            let mut slices = [IoSlice::new(&[]); 2 * MOST_PIECES + 1];
            let count = match self.out.slices(&mut slices) {
                1 => ready!(Pin::new(&mut *stream).poll_write(cx, &slices[0]))?,
                filled => {
                    let slices = slices.get(..filled).unwrap_or_default();
                    ready!(Pin::new(&mut *stream).poll_write_vectored(cx, slices))?
                }
            };
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(count);
        }
        self.out.octets.clear();
        (self.out.written, self.out.large) = (0, 0);
        Pin::new(stream).poll_flush(cx)
    }

    /// Reads more; 0 at the end of the connection.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let stream = Pin::new(self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?);
        if self.is_large {
            // What a TLS record leaves of it is room for the next one.
            if self.incoming.capacity() - self.incoming.len() < SMALL_READ {
                self.incoming.reserve(LARGE_READ);
            }
            return tokio_util::io::poll_read_buf(stream, cx, &mut self.incoming);
        }
        READING.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(stream.poll_read(cx, &mut buffer))?;
            self.incoming.extend_from_slice(buffer.filled());
            self.is_large = buffer.remaining() == 0;
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }
}

/// Why a message was not sent.
#[derive(Debug)]
pub enum Failed<E> {
    /// The connection takes no more.
    Line(io::Error),
    /// The body broke off.
    Body(E),
    /// The body is not as long as its length says.
    Length,
}

/// Takes of the body what is there and fits into one write; whether the body has to be waited for.
fn gather<B>(
    cx: &mut Context<'_>,
    out: &mut Out,
    rest: &mut Option<(B, Coding)>,
) -> Result<bool, Failed<B::Error>>
where
    B: Body<Data = Bytes> + Unpin,
{
    while !out.is_full()
        && let Some((body, coding)) = rest
    {
        let frame = match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Pending => return Ok(true),
            Poll::Ready(frame) => frame.transpose().map_err(Failed::Body)?,
        };
        let mut is_over = frame.is_none() || body.is_end_stream();
        let mut trailers = None;
        match frame.map(hyper::body::Frame::into_data) {
            Some(Ok(data)) => put_data(data, coding, out).ok_or(Failed::Length)?,
            Some(Err(frame)) => (is_over, trailers) = (true, frame.into_trailers().ok()),
            None => {}
        }
        if is_over {
            put_end(trailers, coding, out).ok_or(Failed::Length)?;
            *rest = None;
        }
    }
    Ok(false)
}

impl<E: Into<Lost>> From<Failed<E>> for Lost {
    fn from(failed: Failed<E>) -> Self {
        match failed {
            Failed::Line(error) => error.into(),
            Failed::Body(error) => error.into(),
            Failed::Length => Self::Malformed("a body that is not as long as it said"),
        }
    }
}
