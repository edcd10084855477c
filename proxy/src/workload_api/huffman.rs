//! The Huffman code of HPACK (RFC 7541 appendix B), decoding only.
//!
//! The code is canonical: codes of one length are consecutive in the order of their symbols, so the lengths say it all.

use std::sync::LazyLock;

const SYMBOLS: usize = 257;
/// End of string; never in a valid string (RFC 7541 section 5.2).
const EOS: u16 = 256;
const LONGEST: usize = 30;

/// Bits of the code of each symbol.
#[rustfmt::skip]
const LENGTHS: [u8; SYMBOLS] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// One length of the code: its first code, and where its symbols start.
#[derive(Clone, Copy, Default)]
struct Row {
    first: u32,
    count: u32,
    start: usize,
}

struct Code {
    rows: [Row; LONGEST + 1],
    /// Ordered by length, then by value.
    symbols: Vec<u16>,
}

static CODE: LazyLock<Code> = LazyLock::new(|| {
    let mut rows = [Row::default(); LONGEST + 1];
    let (mut symbols, mut next) = (Vec::with_capacity(SYMBOLS), 0u32);
    for (length, row) in rows.iter_mut().enumerate() {
        next <<= 1;
        let start = symbols.len();
        symbols.extend((0u16..).zip(LENGTHS).filter(|(_, l)| usize::from(*l) == length).map(|(s, _)| s));
        // At most 257.
        let count = (symbols.len() - start) as u32;
        *row = Row { first: next, count, start };
        next += count;
    }
    Code { rows, symbols }
});

/// The decoded string; `None` when it is not one: the end symbol in it, or padding that is long or not of ones.
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 8 / 5);
    let (mut code, mut length) = (0u32, 0usize);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        code = code << 1 | u32::from(bit);
        length += 1;
        let row = CODE.rows.get(length)?;
        let Some(offset) = code.checked_sub(row.first).filter(|offset| *offset < row.count) else { continue };
        let symbol = *CODE.symbols.get(row.start + offset as usize)?;
        if symbol == EOS {
            return None;
        }
        decoded.push(u8::try_from(symbol).ok()?);
        (code, length) = (0, 0);
    }
    let is_padding = length < 8 && code == (1 << length) - 1;
    is_padding.then_some(decoded)
}

/// The coded string, for tests of those who decode.
#[cfg(test)]
pub(super) fn encode(bytes: &[u8]) -> Vec<u8> {
    let mut bits = String::new();
    for byte in bytes {
        let symbol = u16::from(*byte);
        let length = usize::from(LENGTHS.get(usize::from(symbol)).copied().unwrap_or_default());
        let row = CODE.rows.get(length).copied().unwrap_or_default();
        let offset = CODE.symbols.iter().skip(row.start).position(|known| *known == symbol);
        bits += &format!("{:0length$b}", row.first as usize + offset.unwrap_or_default());
    }
    bits += &"1".repeat((8 - bits.len() % 8) % 8);
    bits.as_bytes().chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| sum << 1 | (bit - b'0'))).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    fn check(coded: &str, expected: Option<&str>) {
        assert_eq!(decode(&hex(coded)).as_deref(), expected.map(str::as_bytes), "{coded}");
        if let Some(text) = expected {
            assert_eq!(encode(text.as_bytes()), hex(coded), "{text}");
        }
    }

    #[test]
    fn rfc7541_c4_and_c6_strings_are_read_and_malformed_ones_are_not() {
        check("f1e3c2e5f23a6ba0ab90f4ff", Some("www.example.com"));
        check("a8eb10649cbf", Some("no-cache"));
        check("25a849e95ba97d7f", Some("custom-key"));
        check("25a849e95bb8e8b4bf", Some("custom-value"));
        check("d07abe941054d444a8200595040b8166e082a62d1bff", Some("Mon, 21 Oct 2013 20:13:21 GMT"));
        check("", Some(""));
        // Eight bits of padding; padding of zeros; the end symbol.
        check("a8eb10649cbfff", None);
        check("1800", None);
        check("ffffffff", None);
    }
}
