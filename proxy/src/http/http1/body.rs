//! Bodies, as their heads frame them: read strictly, and written.

use super::{
    Lost,
    line::{Line, Out},
    lines,
};
use crate::http::framing::chunk_size;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header::TRAILER};
use hyper::body::{Frame, SizeHint};
use std::{
    io::Write as _,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite};

/// The longest line of a chunk's size, with its extensions and its end, in octets.
const MAX_SIZE_LINE: usize = 258;
/// Trailers together at most, in octets.
const MAX_TRAILERS: usize = 16 * 1024;
/// Lines of trailers at most.
const MAX_TRAILER_LINES: usize = 100;

/// What is still to come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// So many octets.
    Length(u64),
    /// Chunks, from here.
    Chunks(Chunk),
    /// All until the connection ends.
    UntilClose,
}

/// Where in a chunked body (RFC 9112 section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Before a size.
    Size,
    /// So many octets of data.
    Data(u64),
    /// Before the line end behind the data.
    End,
    /// Before the trailers.
    Trailers,
}

/// A part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Some of its octets.
    Data(Bytes),
    /// Its trailers; nothing is behind them.
    Trailers(HeaderMap),
    /// Its end.
    End,
    /// Nothing before more octets have come.
    More,
}

impl Part {
    /// As a frame; `None` at the end.
    pub fn into_frame(self) -> Option<Frame<Bytes>> {
        match self {
            Self::Data(data) => Some(Frame::data(data)),
            Self::Trailers(trailers) => Some(Frame::trailers(trailers)),
            Self::End | Self::More => None,
        }
    }
}

impl Left {
    /// A chunked body from its beginning.
    pub fn chunks() -> Self {
        Self::Chunks(Chunk::Size)
    }

    /// Takes the next part from the beginning of `octets`.
    ///
    /// # Errors
    /// [`Lost::Malformed`], for chunks that break a rule.
    pub fn take(&mut self, octets: &mut BytesMut) -> Result<Part, Lost> {
        loop {
            let chunk = match self {
                Self::Nothing => return Ok(Part::End),
                _ if octets.is_empty() => return Ok(Part::More),
                Self::UntilClose => return Ok(Part::Data(octets.split().freeze())),
                Self::Length(left) => {
                    let data = cut(octets, left);
                    if *left == 0 {
                        *self = Self::Nothing;
                    }
                    return Ok(Part::Data(data));
                }
                Self::Chunks(chunk) => chunk,
            };
            *chunk = match chunk {
                Chunk::Size => match size(octets)? {
                    None => return Ok(Part::More),
                    Some(0) => Chunk::Trailers,
                    Some(size) => Chunk::Data(size),
                },
                Chunk::Data(left) => {
                    let data = cut(octets, left);
                    if *left == 0 {
                        *chunk = Chunk::End;
                    }
                    return Ok(Part::Data(data));
                }
                Chunk::End => match (octets.first(), octets.get(1)) {
                    (Some(b'\r'), None) => return Ok(Part::More),
                    (Some(b'\r'), Some(b'\n')) => {
                        drop(octets.split_to(2));
                        Chunk::Size
                    }
                    _ => return Err(Lost::Malformed("a chunk longer than its size")),
                },
                Chunk::Trailers => {
                    let Some(trailers) = trailers(octets)? else { return Ok(Part::More) };
                    *self = Self::Nothing;
                    return Ok(if trailers.is_empty() { Part::End } else { Part::Trailers(trailers) });
                }
            };
        }
    }

    /// Whether the next part is there or not without more octets: it begins with something that is no data.
    fn is_between(&self) -> bool {
        matches!(self, Self::Chunks(Chunk::Size | Chunk::End | Chunk::Trailers))
    }
}

/// At most `left` octets, which are counted off.
fn cut(octets: &mut BytesMut, left: &mut u64) -> Bytes {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(octets.len());
    *left -= count as u64;
    octets.split_to(count).freeze()
}

fn size(octets: &mut BytesMut) -> Result<Option<u64>, Lost> {
    const BAD: Lost = Lost::Malformed("a chunk without a size");
    let Some(end) = memchr::memchr(b'\n', octets.get(..octets.len().min(MAX_SIZE_LINE)).unwrap_or_default())
    else {
        return if octets.len() >= MAX_SIZE_LINE { Err(BAD) } else { Ok(None) };
    };
    let line = octets.get(..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(BAD)?;
    // Some servers fill a size up with blanks, and all readers pass over them.
    let padding = line.iter().rev().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let size = line.get(..line.len() - padding).and_then(chunk_size).ok_or(BAD)?;
    drop(octets.split_to(end + 1));
    Ok(Some(size))
}

fn trailers(octets: &mut BytesMut) -> Result<Option<HeaderMap>, Lost> {
    const BAD: Lost = Lost::Malformed("trailers that are none");
    let mut lines = [httparse::EMPTY_HEADER; MAX_TRAILER_LINES];
    let mut trailers = HeaderMap::new();
    // Nearly always there are none.
    let length = if octets.starts_with(b"\r\n") {
        2
    } else {
        match httparse::parse_headers(octets, &mut lines) {
            Ok(httparse::Status::Complete((length, lines))) if length <= MAX_TRAILERS => {
                for line in lines {
                    let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BAD)?;
                    trailers.append(name, HeaderValue::from_bytes(line.value).map_err(|_| BAD)?);
                }
                length
            }
            Ok(httparse::Status::Partial) if octets.len() <= MAX_TRAILERS => return Ok(None),
            _ => return Err(BAD),
        }
    };
    drop(octets.split_to(length));
    Ok(Some(trailers))
}

/// Reads a body from a connection, part by part.
#[derive(Debug)]
pub struct Reader {
    left: Left,
    // What was found behind the last part without waiting for it.
    next: Option<Result<Part, Lost>>,
    // Trailers that drip are read anew only when their end may have come; so many octets of them are no news.
    seen: usize,
}

impl Reader {
    /// Of a body that is framed like this.
    pub fn new(left: Left) -> Self {
        Self { left, next: None, seen: 0 }
    }

    /// Whether all has been taken.
    pub fn is_over(&self) -> bool {
        self.left == Left::Nothing && self.next.is_none()
    }

    /// How much is to come, as far as that is known.
    pub fn size_hint(&self) -> SizeHint {
        match self.left {
            Left::Nothing if self.next.is_none() => SizeHint::with_exact(0),
            Left::Length(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// The next part.
    ///
    /// # Errors
    /// [`Lost`], when the connection ends before the body, or its framing breaks a rule.
    pub fn poll<S>(&mut self, line: &mut Line<S>, cx: &mut Context<'_>) -> Poll<Result<Part, Lost>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if let Some(next) = self.next.take() {
            return Poll::Ready(next);
        }
        loop {
            if !self.waits(&line.incoming) {
                match self.left.take(&mut line.incoming)? {
                    Part::More => {}
                    part => {
                        if self.left.is_between() && !line.incoming.is_empty() {
                            let next = self.left.take(&mut line.incoming);
                            self.next = Some(next).filter(|next| !matches!(next, Ok(Part::More | Part::End)));
                        }
                        return Poll::Ready(Ok(part));
                    }
                }
            }
            self.seen = line.incoming.len();
            if self.seen > MAX_TRAILERS {
                return Poll::Ready(Err(Lost::Malformed("trailers that are none")));
            }
            match ready!(line.poll_fill(cx))? {
                0 if self.left == Left::UntilClose && !line.is_cut => {
                    self.left = Left::Nothing;
                    return Poll::Ready(Ok(Part::End));
                }
                0 => return Poll::Ready(Err(Lost::Incomplete)),
                _ => {}
            }
        }
    }

    /// Whether what is there cannot be the end of the trailers.
    fn waits(&self, octets: &[u8]) -> bool {
        self.left == Left::Chunks(Chunk::Trailers)
            && self.seen > 0
            && !octets.starts_with(b"\r\n")
            && lines::end(octets, self.seen).is_none()
    }
}

/// What frames the body of a message that is sent.
#[derive(Debug)]
pub enum Coding {
    /// So many octets are still to come.
    Length(u64),
    /// Chunks, and behind them of all trailers those that are allowed.
    Chunked(Vec<HeaderName>),
    /// The end of the connection.
    UntilClose,
}

/// The trailers that a head announces (RFC 9110 section 6.6.2).
pub fn announced(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    let names = lines.flat_map(|line| line.split(','));
    names.filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok()).collect()
}

/// Frames a piece of a body; `None` when it is more than the length said.
pub fn put_data(data: Bytes, coding: &mut Coding, out: &mut Out) -> Option<()> {
    // A chunk of no octets would end the body.
    if data.is_empty() {
        return Some(());
    }
    match coding {
        Coding::Length(left) => {
            *left = left.checked_sub(data.len() as u64)?;
            out.put(data);
        }
        Coding::Chunked(_) => {
            // Writing to memory does not fail.
            let _ = write!(out.octets, "{:x}\r\n", data.len());
            out.put(data);
            out.octets.extend_from_slice(b"\r\n");
        }
        Coding::UntilClose => out.put(data),
    }
    Some(())
}

/// Frames the end of a body; `None` when the length said that more would come.
pub fn put_end(trailers: Option<HeaderMap>, coding: &Coding, out: &mut Out) -> Option<()> {
    match coding {
        Coding::Length(0) | Coding::UntilClose => {}
        Coding::Length(_) => return None,
        Coding::Chunked(allowed) => {
            out.octets.extend_from_slice(b"0\r\n");
            let trailers = trailers.unwrap_or_default();
            for (name, value) in trailers.iter().filter(|(name, _)| allowed.contains(name)) {
                lines::write(name, value, &mut out.octets);
            }
            out.octets.extend_from_slice(b"\r\n");
        }
    }
    Some(())
}
