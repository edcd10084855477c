//! Lets gRPC's C-core in: on a unix socket it sends the socket's percent-encoded path as `:authority`, and Java's the plain
//! path; both are illegal, and h2 answers with RST_STREAM (grpc/grpc#38142, grpc/grpc-java#12664, hyperium/h2#487).
//!
//! The client's bytes pass unchanged except for a header block with such an `:authority`, which gets a legal one of the same
//! decoded length (see [`super::hpack`]). Whatever cannot be understood here passes unchanged too: h2 is the one to judge it.

use super::hpack::Walker;
use bytes::{Buf, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
/// The largest frame that h2 lets a client send (its SETTINGS_MAX_FRAME_SIZE stays at the default).
const FRAME: usize = 16 * 1024;
/// A header block with its frames is held until it is whole; a longer one passes unseen, and h2 refuses it.
const HELD: usize = 64 * 1024;
/// Four full frames hold the longest block; more pieces are somebody playing.
const FRAMES: usize = 32;
/// Read from the socket at a time.
const CHUNK: usize = 8 * 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const PRIORITY_FIELDS: usize = 5;

/// The bytes of one client, in and out; no socket in it.
pub(super) struct Rewriter {
    state: State,
    /// Not yet passed on: a frame's head, or the frames of one header block.
    held: BytesMut,
    walker: Walker,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Preface,
    /// At the beginning of a frame.
    Frame,
    /// Inside a frame that does not concern us: so many bytes are left.
    Passing(usize),
    /// Understood no more: everything passes.
    Transparent,
}

impl Rewriter {
    pub(super) fn new() -> Self {
        Self { state: State::Preface, held: BytesMut::new(), walker: Walker::new() }
    }

    /// Takes what the client sent and appends what the server shall see. Holds back 64 KiB at most.
    pub(super) fn feed(&mut self, mut input: &[u8], output: &mut BytesMut) {
        while !input.is_empty() {
            match self.state {
                State::Transparent => {
                    output.extend_from_slice(input);
                    return;
                }
                State::Passing(left) => {
                    let (now, later) = input.split_at(left.min(input.len()));
                    output.extend_from_slice(now);
                    input = later;
                    self.state = match left - now.len() {
                        0 => State::Frame,
                        left => State::Passing(left),
                    };
                }
                State::Preface | State::Frame => {
                    let wanted = self.wanted() - self.held.len();
                    let (now, later) = input.split_at(wanted.min(input.len()));
                    self.held.extend_from_slice(now);
                    input = later;
                    if now.len() == wanted {
                        self.advance(output);
                    }
                }
            }
        }
    }

    /// What is held when the client ends.
    pub(super) fn finish(&mut self, output: &mut BytesMut) {
        self.state = State::Transparent;
        output.unsplit(self.held.split());
    }

    /// How many bytes have to be held before anything can be decided.
    fn wanted(&self) -> usize {
        if self.state == State::Preface {
            return PREFACE.len();
        }
        let mut wanted = 0;
        while let Some(head) = head(&self.held, wanted) {
            wanted += FRAME_HEAD + head.length;
            if wanted > self.held.len() {
                return wanted;
            }
        }
        wanted + FRAME_HEAD
    }

    /// All that was wanted is there.
    fn advance(&mut self, output: &mut BytesMut) {
        if self.state == State::Preface {
            self.state = if *self.held == *PREFACE { State::Frame } else { State::Transparent };
            output.unsplit(self.held.split());
            return;
        }
        let (mut at, mut last, mut frames) = (0, None, 0);
        while let Some(head) = head(&self.held, at) {
            frames += 1;
            let is_first = last.is_none();
            let is_expected = if is_first { head.kind == HEADERS } else { head.kind == CONTINUATION };
            if is_first && !is_expected {
                output.unsplit(self.held.split());
                self.state = if head.length == 0 { State::Frame } else { State::Passing(head.length) };
                return;
            }
            if !is_expected || head.length > FRAME || frames > FRAMES || at + FRAME_HEAD + head.length > HELD
            {
                return self.finish(output);
            }
            at += FRAME_HEAD + head.length;
            last = Some(head);
        }
        // Whole frames only, and the last of the block among them: else more is wanted.
        if at == self.held.len() && last.is_some_and(|head| head.flags & END_HEADERS != 0) {
            self.block(output);
        }
    }

    /// One whole header block is held.
    fn block(&mut self, output: &mut BytesMut) {
        let Some((before, block)) = unframe(&self.held) else { return self.finish(output) };
        match self.walker.walk(&block) {
            Ok(None) => output.unsplit(self.held.split()),
            Ok(Some(rewritten)) => {
                frame(&before, &rewritten, output);
                self.held.clear();
            }
            Err(_) => self.finish(output),
        }
    }
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

/// The head of the frame that starts at `at`.
fn head(bytes: &[u8], at: usize) -> Option<Head> {
    match *bytes.get(at..at + FRAME_HEAD)? {
        [a, b, c, kind, flags, d, e, f, g] => Some(Head {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: [d, e, f, g],
        }),
        _ => None,
    }
}

/// What stands before the block of a HEADERS frame: flags, stream and priority.
struct Before {
    flags: u8,
    stream: [u8; 4],
    priority: Vec<u8>,
}

/// The block out of its frames, without padding; `None` when padding or priority are longer than the frame.
fn unframe(frames: &[u8]) -> Option<(Before, Vec<u8>)> {
    let first = head(frames, 0)?;
    let mut payload = frames.get(FRAME_HEAD..FRAME_HEAD + first.length)?;
    if first.flags & PADDED != 0 {
        let (padding, rest) = payload.split_first()?;
        payload = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
    }
    let priority = if first.flags & PRIORITY == 0 { 0 } else { PRIORITY_FIELDS };
    let (priority, fragment) = payload.split_at_checked(priority)?;
    let before = Before { flags: first.flags, stream: first.stream, priority: priority.to_vec() };
    let mut block = fragment.to_vec();
    let mut at = FRAME_HEAD + first.length;
    while let Some(next) = head(frames, at) {
        // RFC 9113 section 6.10: of the same stream.
        if next.stream != first.stream {
            return None;
        }
        block.extend_from_slice(frames.get(at + FRAME_HEAD..at + FRAME_HEAD + next.length)?);
        at += FRAME_HEAD + next.length;
    }
    Some((before, block))
}

/// The block in frames again, as few as hold it.
fn frame(before: &Before, block: &[u8], output: &mut BytesMut) {
    let (first, rest) = block.split_at(block.len().min(FRAME - before.priority.len()));
    let mut chunks = rest.chunks(FRAME).peekable();
    let ending = |is_last: bool| if is_last { END_HEADERS } else { 0 };
    let flags = before.flags & !(PADDED | END_HEADERS) | ending(chunks.peek().is_none());
    write_head(before.priority.len() + first.len(), HEADERS, flags, before.stream, output);
    output.extend_from_slice(&before.priority);
    output.extend_from_slice(first);
    while let Some(chunk) = chunks.next() {
        write_head(chunk.len(), CONTINUATION, ending(chunks.peek().is_none()), before.stream, output);
        output.extend_from_slice(chunk);
    }
}

fn write_head(length: usize, kind: u8, flags: u8, stream: [u8; 4], output: &mut BytesMut) {
    // At most 16 KiB, which three bytes hold.
    let [_, high, middle, low] = (length as u32).to_be_bytes();
    output.extend_from_slice(&[high, middle, low, kind, flags]);
    output.extend_from_slice(&stream);
}

/// A client's socket, read through a [`Rewriter`].
pub(super) struct Fixed<S> {
    socket: S,
    rewriter: Rewriter,
    ready: BytesMut,
}

impl<S> Fixed<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, rewriter: Rewriter::new(), ready: BytesMut::new() }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.ready.is_empty() {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            match Pin::new(&mut this.socket).poll_read(context, &mut chunk) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
            if chunk.filled().is_empty() {
                this.rewriter.finish(&mut this.ready);
                if this.ready.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            }
            this.rewriter.feed(chunk.filled(), &mut this.ready);
        }
        let now = this.ready.len().min(buffer.remaining());
        buffer.put_slice(this.ready.get(..now).unwrap_or_default());
        this.ready.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Fixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "authfix_tests.rs"]
mod tests;
