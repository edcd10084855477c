//! HTTP/2 by hand: frames as bytes, and as much of HPACK as is needed to write requests and to read statuses.

use crate::arena::Io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header list, each line as a literal that is not indexed.
pub fn block(lines: &[(&[u8], &[u8])]) -> Vec<u8> {
    lines.iter().flat_map(|(name, value)| literal(0, name, value)).collect()
}

/// A line that goes into the dynamic table, where [`AGAIN`] refers to it.
pub fn kept(name: &[u8], value: &[u8]) -> Vec<u8> {
    literal(0x40, name, value)
}

/// The newest line of the dynamic table once more (RFC 7541 section 6.1, index 62).
pub const AGAIN: u8 = 0x80 | 62;

fn literal(form: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = vec![form];
    for text in [name, value] {
        // An integer with a prefix of seven bits (RFC 7541 section 5.1).
        if text.len() < 127 {
            out.push(text.len() as u8);
        } else {
            out.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                out.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            out.push(rest as u8);
        }
        out.extend_from_slice(text);
    }
    out
}

/// HEADERS of a header block of any length, with CONTINUATION as needed.
pub fn headers(flags: u8, stream: u32, block: &[u8]) -> Vec<u8> {
    let mut chunks = block.chunks(16_000).peekable();
    let (mut bytes, mut kind, mut flags) = (Vec::new(), HEADERS, flags);
    while let Some(chunk) = chunks.next() {
        let last = if chunks.peek().is_none() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, flags | last, stream, chunk));
        (kind, flags) = (CONTINUATION, 0);
    }
    bytes
}

/// HEADERS of a GET that is complete.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&lines_of_get(path)))
}

pub fn lines_of_get(path: &str) -> Vec<(&[u8], &[u8])> {
    vec![(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", path.as_bytes())]
}

/// One frame that came.
#[derive(Clone, Debug)]
pub struct Came {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One end of a connection.
pub struct Wire {
    pub stream: Box<dyn Io>,
    read: Vec<u8>,
}

/// How a connection or stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// HEADERS with this status.
    Status(u16),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code.
    GoAway(u32),
    /// Closed without a word.
    Closed,
    /// Nothing within the patience.
    Silence,
}

impl Wire {
    /// As a client: preface and empty SETTINGS are sent.
    pub async fn client(mut stream: Box<dyn Io>) -> Self {
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        stream.write_all(&hello).await.unwrap();
        stream.flush().await.unwrap();
        Self { stream, read: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Came> {
        loop {
            if let [a, b, c, kind, flags, s0, s1, s2, s3, rest @ ..] = &self.read[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
                    let came = Came { kind: *kind, flags: *flags, stream, payload: rest[..length].to_vec() };
                    self.read.drain(..9 + length);
                    return Some(came);
                }
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// What becomes of a stream, or of the whole connection before that. SETTINGS and PING are acknowledged.
    pub async fn end_of(&mut self, stream: u32) -> End {
        let waiting = async {
            loop {
                let Some(came) = self.next().await else { return End::Closed };
                match came.kind {
                    HEADERS if came.stream == stream => return End::Status(status(&came.payload)),
                    RST_STREAM if came.stream == stream => return End::Reset(number(&came.payload)),
                    GOAWAY if number(&came.payload[4..]) != 0 => {
                        return End::GoAway(number(&came.payload[4..]));
                    }
                    SETTINGS if came.flags & ACK == 0 => {
                        let _ = self.send(&frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    PING if came.flags & ACK == 0 => {
                        let _ = self.send(&frame(PING, ACK, 0, &came.payload)).await;
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(8), waiting).await.unwrap_or(End::Silence)
    }
}

impl Wire {
    /// Waits until the other side has closed, whatever else it says before: true, if it does.
    pub async fn closes(&mut self) -> bool {
        let closing = async { while self.next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(8), closing).await.is_ok()
    }

    /// The code of the GOAWAY that ends the connection, if one does, and how many streams the other side has reset before.
    pub async fn resets_until_goaway(&mut self) -> (usize, Option<u32>) {
        let mut resets = 0;
        let reading = async {
            loop {
                match self.next().await? {
                    came if came.kind == GOAWAY => return Some(number(&came.payload[4..])),
                    came => resets += usize::from(came.kind == RST_STREAM),
                }
            }
        };
        let code = tokio::time::timeout(Duration::from_secs(8), reading).await.ok().flatten();
        (resets, code)
    }
}

/// How one answer went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    pub status: u16,
    pub body: Vec<u8>,
    /// Header blocks behind the first: trailers, as they came.
    pub trailers: usize,
    /// `None`: ended by END_STREAM.
    pub broken: Option<End>,
}

impl Wire {
    /// One answer to its end.
    pub async fn whole(&mut self, stream: u32) -> Whole {
        let mut whole = Whole { status: 0, body: Vec::new(), trailers: 0, broken: None };
        let reading = async {
            loop {
                let Some(came) = self.next().await else { return Some(End::Closed) };
                match came.kind {
                    HEADERS if came.stream == stream && whole.status == 0 => {
                        whole.status = status(&came.payload)
                    }
                    HEADERS if came.stream == stream => whole.trailers += 1,
                    DATA if came.stream == stream => {
                        whole.body.extend(&came.payload);
                        let opened = u32::try_from(came.payload.len()).unwrap();
                        if opened > 0 {
                            let more = frame(WINDOW_UPDATE, 0, 0, &opened.to_be_bytes());
                            let _ = self.send(&more).await;
                        }
                    }
                    RST_STREAM if came.stream == stream => return Some(End::Reset(number(&came.payload))),
                    GOAWAY if number(&came.payload[4..]) != 0 => {
                        return Some(End::GoAway(number(&came.payload[4..])));
                    }
                    SETTINGS if came.flags & ACK == 0 => {
                        let _ = self.send(&frame(SETTINGS, ACK, 0, &[])).await;
                    }
                    _ => continue,
                }
                if came.stream == stream
                    && matches!(came.kind, HEADERS | DATA)
                    && came.flags & END_STREAM != 0
                {
                    return None;
                }
            }
        };
        let broken = tokio::time::timeout(Duration::from_secs(8), reading).await;
        whole.broken = broken.unwrap_or(Some(End::Silence));
        whole
    }
}

/// The first four octets as a number.
pub fn number(payload: &[u8]) -> u32 {
    u32::from_be_bytes(payload[..4].try_into().unwrap())
}

/// The status at the beginning of a header block: indexed, or a literal with the name of the static table (RFC 7541).
pub fn status(block: &[u8]) -> u16 {
    // h2 may begin with a change of the dynamic table's size.
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    if let Some(known) = [200, 204, 206, 304, 400, 404, 500].get(usize::from(block[0]).wrapping_sub(0x88)) {
        return *known;
    }
    assert!(matches!(block[0], 0x48 | 0x08 | 0x18), "not a status: {block:02x?}");
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let (mut at, mut value) = (0, 0);
    for _ in 0..3 {
        let take = |count: usize| bits[at..at + count].iter().fold(0, |sum, bit| sum << 1 | u16::from(*bit));
        // Digits in the code of RFC 7541, appendix B: 0 to 2 in five bits, 3 to 9 in six.
        let (digit, length) = match take(5) {
            short @ 0..=2 => (short, 5),
            _ => (take(6) - 0b01_1001 + 3, 6),
        };
        value = value * 10 + digit;
        at += length;
    }
    value
}

#[test]
fn statuses_are_read_in_every_form() {
    assert_eq!(status(&[0x88]), 200);
    assert_eq!(status(&[0x20, 0x8c]), 400);
    assert_eq!(status(&[0x48, 3, b'4', b'3', b'1']), 431);
    // 4, 0, 3: 011010 00000 011001, filled with ones.
    assert_eq!(status(&[0x48, 0x83, 0b0110_1000, 0b0000_1100, 0b1111_1111]), 403);
}
