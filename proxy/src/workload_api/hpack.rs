//! One walk over a header block (RFC 7541) that finds `:authority` and replaces an illegal one.
//!
//! The replacement decodes to as many bytes as the original, so that the dynamic tables of both ends stay of one size and
//! every later index means the same entry. Of the dynamic table we keep what that takes: the length of each name and value.

use super::huffman;
use std::{borrow::Cow, collections::VecDeque};

/// Lengths of the names of the static table (RFC 7541 appendix A), from index 1.
#[rustfmt::skip]
const STATIC: [u8; 61] = [
    10, 7, 7, 5, 5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 14, 15, 15, 13, 6, 27, 3, 5, 13, 13, 19, 16, 16, 14, 16, 13, 12,
    6, 4, 4, 6, 7, 4, 4, 8, 17, 13, 8, 19, 13, 4, 8, 12, 18, 19, 5, 7, 7, 11, 6, 10, 25, 17, 10, 4, 3, 16,
];
const AUTHORITY: &[u8] = b":authority";
const STATIC_AUTHORITY: usize = 1;
/// What h2 announces (RFC 9113 section 6.5.2), and what an entry costs beyond its bytes (RFC 7541 section 4.1).
const TABLE: usize = 4096;
const OVERHEAD: usize = 32;

/// What a name index means to us.
#[derive(Clone, Copy)]
struct Name {
    length: usize,
    is_authority: bool,
}

struct Entry {
    name: Name,
    size: usize,
}

/// The decoder's side of one direction of one connection.
pub(super) struct Walker {
    /// Newest first, as indices count.
    entries: VecDeque<Entry>,
    size: usize,
    limit: usize,
}

/// The block cannot be read. The real decoder will say so to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

impl Walker {
    pub(super) fn new() -> Self {
        Self { entries: VecDeque::new(), size: 0, limit: TABLE }
    }

    /// Takes one whole block into account. `Some`: the block to use instead.
    pub(super) fn walk(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        // What is rewritten so far, and up to where of the block it reaches.
        let (mut rewritten, mut copied) = (None::<Vec<u8>>, 0);
        let mut input = Input { block, at: 0 };
        while let Some(first) = input.peek() {
            if first & 0x80 != 0 {
                input.integer(7)?;
                continue;
            }
            if first & 0xe0 == 0x20 {
                self.limit = input.integer(5)?.min(TABLE);
                self.evict(0);
                continue;
            }
            let is_indexed = first & 0x40 != 0;
            let name = match input.integer(if is_indexed { 6 } else { 4 })? {
                0 => {
                    let name = input.string()?;
                    Name { length: name.len(), is_authority: *name == *AUTHORITY }
                }
                index => self.name(index)?,
            };
            let before = input.at;
            let value = input.string()?;
            if is_indexed {
                self.insert(name, value.len());
            }
            if name.is_authority && !value.is_empty() && http::uri::Authority::try_from(&*value).is_err() {
                let output = rewritten.get_or_insert_default();
                output.extend_from_slice(block.get(copied..before).ok_or(Malformed)?);
                write_plain(output, value.len());
                copied = input.at;
            }
        }
        if let Some(output) = &mut rewritten {
            output.extend_from_slice(block.get(copied..).ok_or(Malformed)?);
        }
        Ok(rewritten)
    }

    fn name(&self, index: usize) -> Result<Name, Malformed> {
        if let Some(length) = index.checked_sub(1).and_then(|at| STATIC.get(at)) {
            return Ok(Name { length: usize::from(*length), is_authority: index == STATIC_AUTHORITY });
        }
        let entry = self.entries.get(index - 1 - STATIC.len()).ok_or(Malformed)?;
        Ok(entry.name)
    }

    fn insert(&mut self, name: Name, value: usize) {
        let size = name.length + value + OVERHEAD;
        self.evict(size);
        // One that is larger than the table empties it and is not kept (RFC 7541 section 4.4).
        if size <= self.limit {
            self.size += size;
            self.entries.push_front(Entry { name, size });
        }
    }

    fn evict(&mut self, coming: usize) {
        while self.size + coming > self.limit
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// A legal authority of this length as a plain literal: `x` is as good a host as any, and nobody looks at it.
fn write_plain(output: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short) if short < 0x7f => output.push(short),
        _ => {
            output.push(0x7f);
            let mut rest = length - 0x7f;
            while rest >= 0x80 {
                output.push((rest & 0x7f) as u8 | 0x80);
                rest >>= 7;
            }
            output.push(rest as u8);
        }
    }
    output.resize(output.len() + length, b'x');
}

struct Input<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.block.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, Malformed> {
        let byte = self.peek().ok_or(Malformed)?;
        self.at += 1;
        Ok(byte)
    }

    /// RFC 7541 section 5.1. More than four continuation bytes are more than any block here is long.
    fn integer(&mut self, prefix_bits: u32) -> Result<usize, Malformed> {
        let most = (1usize << prefix_bits) - 1;
        let mut value = usize::from(self.next()?) & most;
        if value < most {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.next()?;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn string(&mut self) -> Result<Cow<'a, [u8]>, Malformed> {
        let is_huffman = self.peek().ok_or(Malformed)? & 0x80 != 0;
        let length = self.integer(7)?;
        let end = self.at.checked_add(length).ok_or(Malformed)?;
        let bytes = self.block.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        if is_huffman { huffman::decode(bytes).map(Cow::Owned).ok_or(Malformed) } else { Ok(bytes.into()) }
    }
}
