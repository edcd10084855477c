//! Header lines: where they end, how they are read and written.

use super::Lost;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Behind the empty line that ends a head or trailers; of `octets`, `seen` were looked at before without finding it.
pub fn end(octets: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    let fresh = octets.get(from..)?;
    memchr::memchr_iter(b'\n', fresh).find_map(|at| match fresh.get(at + 1..)? {
        [b'\n', ..] => Some(from + at + 2),
        [b'\r', b'\n', ..] => Some(from + at + 3),
        _ => None,
    })
}

/// Puts parsed lines, which lie in `octets`, into `headers`; `note` looks at each.
///
/// # Errors
/// Those of `note`, and [`Lost::Malformed`] for a line that is none.
pub fn take(
    octets: &Bytes,
    lines: &[httparse::Header<'_>],
    headers: &mut HeaderMap,
    mut note: impl FnMut(&HeaderName, &HeaderValue) -> Result<(), Lost>,
) -> Result<(), Lost> {
    const BAD: Lost = Lost::Malformed("a header line that is none");
    headers.clear();
    headers.reserve(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| BAD)?;
        // A slice of an empty value need not lie anywhere.
        let value = if line.value.is_empty() { Bytes::new() } else { octets.slice_ref(line.value) };
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| BAD)?;
        note(&name, &value)?;
        headers.append(name, value);
    }
    Ok(())
}

/// Whether the value of a `Connection` line has this token.
pub fn says(value: &HeaderValue, wanted: &[u8]) -> bool {
    let mut tokens = value.as_bytes().split(|byte| *byte == b',');
    tokens.any(|token| token.trim_ascii().eq_ignore_ascii_case(wanted))
}

/// Writes one.
pub fn write(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes `content-length`.
pub fn write_length(length: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b"content-length: ");
    out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes `transfer-encoding: chunked`.
pub fn write_chunked(out: &mut Vec<u8>) {
    out.extend_from_slice(b"transfer-encoding: chunked\r\n");
}
