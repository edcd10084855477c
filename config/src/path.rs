//! Path normalization in Istio's four modes (reference 2.9), applied before any match and forwarded as matched.
//!
//! The rules are those of the URL canonicalizer that Envoy uses, pinned by the table in `tests/path_normalization.rs`
//! and not by a library: what policy sees has to be, byte for byte, what the application receives.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// `meshConfig.pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalization {
    /// The path stays as it was sent.
    None,
    /// RFC 3986: dot segments, backslashes, percent-encoded unreserved characters.
    #[default]
    Base,
    /// [`Normalization::Base`], then runs of `/` become one.
    MergeSlashes,
    /// Encoded slashes and backslashes are decoded first, then [`Normalization::MergeSlashes`].
    DecodeAndMergeSlashes,
}

/// A path that has no safe reading; answered 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub &'static str);

/// Normalizes the path of a request target.
///
/// A query, when there is one, is left untouched behind the path. `*` (of `OPTIONS *`) stays as it is. The result
/// is borrowed when nothing changes, which is the usual case and costs one pass over the bytes.
///
/// # Errors
/// A raw `#` in every mode; a NUL, raw or as `%00`, in every mode but [`Normalization::None`].
pub fn normalize(path: &str, mode: Normalization) -> Result<Cow<'_, str>, PathError> {
    if path.bytes().any(|byte| byte == b'#') {
        return Err(PathError("the path contains a raw '#'"));
    }
    if mode == Normalization::None || path == "*" {
        return Ok(Cow::Borrowed(path));
    }
    let (pure, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let merge = mode != Normalization::Base;
    if is_canonical(pure.as_bytes(), merge) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = match mode {
        Normalization::DecodeAndMergeSlashes => decode_slashes(pure.as_bytes()),
        _ => Cow::Borrowed(pure.as_bytes()),
    };
    let mut output = canonicalize(&decoded)?;
    if merge {
        output.dedup_by(|next, kept| *next == b'/' && *kept == b'/');
    }
    output.extend_from_slice(query.as_bytes());
    let output = String::from_utf8(output).map_err(|_| PathError("the path is not valid text"))?;
    Ok(if output == path { Cow::Borrowed(path) } else { Cow::Owned(output) })
}

/// Quick and conservative: true only when no step of any mode could change a byte.
fn is_canonical(path: &[u8], merge: bool) -> bool {
    let mut previous = 0;
    if path.first() != Some(&b'/') {
        return false;
    }
    for &byte in path {
        let plain = match byte {
            b'.' => previous != b'/',
            b'/' => !merge || previous != b'/',
            b'%' | b'\\' => false,
            _ => matches!(treatment(byte), Treatment::Pass | Treatment::Unescape),
        };
        if !plain {
            return false;
        }
        previous = byte;
    }
    true
}

/// `%2F` to `/` and `%5C` to `\`, in one pass, so that a doubly encoded slash stays encoded.
fn decode_slashes(path: &[u8]) -> Cow<'_, [u8]> {
    if !path.contains(&b'%') {
        return Cow::Borrowed(path);
    }
    let mut output = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&first, tail)) = rest.split_first() {
        let (byte, after) = match rest {
            [b'%', b'2', b'F' | b'f', after @ ..] => (b'/', after),
            [b'%', b'5', b'C' | b'c', after @ ..] => (b'\\', after),
            _ => (first, tail),
        };
        output.push(byte);
        rest = after;
    }
    Cow::Owned(output)
}

/// What the canonicalizer does with a byte.
enum Treatment {
    /// Kept raw; its encoded form is kept encoded.
    Pass,
    /// Unreserved: kept raw, and decoded when encoded.
    Unescape,
    /// Raw it becomes `%XX`.
    Escape,
    /// Has no place in a path.
    Invalid,
}

fn treatment(byte: u8) -> Treatment {
    match byte {
        0 => Treatment::Invalid,
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => Treatment::Unescape,
        b'!' | b'$'..=b',' | b'/' | b':' | b';' | b'=' | b'@' | b'[' | b']' => Treatment::Pass,
        _ => Treatment::Escape,
    }
}

/// The base step. The output is ASCII.
fn canonicalize(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut output = Vec::with_capacity(path.len().saturating_add(8));
    if !matches!(path.first(), Some(b'/' | b'\\')) {
        output.push(b'/');
    }
    // Where the last '%' that begins no escape sequence went: what is decoded behind it must not complete one.
    let mut stray_percent: Option<usize> = None;
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        let dot = dot_length(rest);
        if dot > 0 {
            let after = rest.get(dot..).unwrap_or_default();
            rest = if output.last() == Some(&b'/') {
                place_dot(after, &mut output)
            } else {
                output.push(b'.');
                after
            };
            continue;
        }
        rest = tail;
        match byte {
            b'\\' => output.push(b'/'),
            b'%' => match escaped_byte(tail) {
                Some((value, digits, after)) => {
                    rest = after;
                    match treatment(value) {
                        Treatment::Invalid => return Err(PathError("the path contains an encoded NUL")),
                        Treatment::Unescape => {
                            output.push(value);
                            if let Some(percent) = stray_percent {
                                guard_nested_escape(&mut output, percent, after.first().copied());
                            }
                        }
                        Treatment::Pass | Treatment::Escape => {
                            output.push(b'%');
                            output.extend_from_slice(&digits);
                        }
                    }
                }
                None => {
                    stray_percent = Some(output.len());
                    output.push(b'%');
                }
            },
            _ => match treatment(byte) {
                Treatment::Invalid => return Err(PathError("the path contains a NUL")),
                Treatment::Escape => escape(byte, &mut output),
                Treatment::Pass | Treatment::Unescape => output.push(byte),
            },
        }
    }
    Ok(output)
}

/// Length of a dot at the start of `rest`, raw or encoded; 0 when there is none.
fn dot_length(rest: &[u8]) -> usize {
    match rest {
        [b'.', ..] => 1,
        [b'%', b'2', b'E' | b'e', ..] => 3,
        _ => 0,
    }
}

/// A dot that follows a slash: the current directory, the parent, or the start of a name. Returns what is left.
fn place_dot<'a>(after: &'a [u8], output: &mut Vec<u8>) -> &'a [u8] {
    match after {
        [] => return after,
        [b'/' | b'\\', rest @ ..] => return rest,
        _ => {}
    }
    let second = dot_length(after);
    let behind = after.get(second..).unwrap_or_default();
    match behind {
        _ if second == 0 => {}
        [] => {
            leave_directory(output);
            return behind;
        }
        [b'/' | b'\\', rest @ ..] => {
            leave_directory(output);
            return rest;
        }
        _ => {}
    }
    output.push(b'.');
    after
}

/// Drops the last directory of `output`, which ends in a slash; never goes above the root.
fn leave_directory(output: &mut Vec<u8>) {
    output.pop();
    let keep = output.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at.saturating_add(1));
    output.truncate(keep);
    if output.is_empty() {
        output.push(b'/');
    }
}

/// The byte that `XX` at the start of `rest` stands for, its digits as written, and what follows.
fn escaped_byte(rest: &[u8]) -> Option<(u8, [u8; 2], &[u8])> {
    match rest {
        [high, low, after @ ..] => Some((hex(*high)? << 4 | hex(*low)?, [*high, *low], after)),
        _ => None,
    }
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn escape(byte: u8, output: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    output.push(b'%');
    output.extend([byte >> 4, byte & 0x0f].iter().filter_map(|nibble| DIGITS.get(usize::from(*nibble))));
}

/// `%%34%31` must not come out as `%41`, which a second reader would decode again: the stray percent becomes `%25`.
///
/// `output` ends in a byte that was just decoded; `next` is the raw byte that follows in the input.
fn guard_nested_escape(output: &mut Vec<u8>, percent: usize, next: Option<u8>) {
    // A parent segment may have taken the percent away; then something else stands there.
    let forms_escape = match output.get(percent..) {
        Some([b'%', high]) => hex(*high).is_some() && next.and_then(hex).is_some(),
        Some([b'%', high, low]) => hex(*high).is_some() && hex(*low).is_some(),
        _ => false,
    };
    if forms_escape {
        let at = percent.saturating_add(1);
        output.splice(at..at, *b"25");
    }
}
