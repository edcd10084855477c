//! W3C Trace Context: `traceparent`, read strictly, and the IDs of our own spans.
//!
//! Source: W3C Recommendation "Trace Context" (level 1), section 3.2. What is not exactly right starts a new trace.

use super::propagation::{Form, SAMPLED};
use http::{HeaderName, HeaderValue};

/// Name of the header.
pub static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// `x-request-id`, which is no part of the recommendation, and which people look for all the same.
pub static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// One span of ours: its trace, its ID, its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    /// 16 bytes, not zero.
    pub trace_id: u128,
    /// ID of our span, not zero.
    pub span_id: u64,
    /// The caller's span, when it sent one.
    pub parent: Option<u64>,
    /// Bit 0: the trace is recorded.
    pub flags: u8,
    /// In which headers it came, and goes on.
    pub form: Form,
}

impl Trace {
    /// The caller's own span, where we make none: its parent is itself, since we add nothing in between.
    pub(super) fn of_caller(Parent { trace_id, span_id, flags }: Parent) -> Self {
        Self { trace_id, span_id, parent: Some(span_id), flags, form: Form::TraceContext }
    }

    /// Whether there is a span of ours in it.
    pub(super) fn is_ours(&self) -> bool {
        self.parent != Some(self.span_id)
    }

    /// Whether this trace is recorded.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The header to send on: our span is the parent of what follows.
    pub fn header(&self) -> Option<HeaderValue> {
        let mut text = Vec::with_capacity(55);
        text.extend_from_slice(b"00-");
        hex(&self.trace_id.to_be_bytes(), &mut text);
        text.push(b'-');
        hex(&self.span_id.to_be_bytes(), &mut text);
        text.push(b'-');
        // Only the flag that we understand is passed on (section 3.2.2.5.2).
        hex(&[self.flags & SAMPLED], &mut text);
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).ok()
    }
}

/// Appends lower-case hex digits, two for each byte.
pub fn hex(bytes: &[u8], text: &mut Vec<u8>) {
    // Written in place and cut, so that the length is looked at once.
    let mut pairs = [[0; 2]; 32];
    for part in bytes.chunks(pairs.len()) {
        let digit = |half: u8| half + if half < 10 { b'0' } else { b'a' - 10 };
        for (pair, byte) in pairs.iter_mut().zip(part) {
            *pair = [digit(byte >> 4), digit(byte & 0xf)];
        }
        text.extend_from_slice(pairs.as_flattened().get(..2 * part.len()).unwrap_or_default());
    }
}

/// What a valid `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Not zero.
    pub trace_id: u128,
    /// Not zero.
    pub span_id: u64,
    /// All eight bits.
    pub flags: u8,
}

/// Reads `version "-" trace-id "-" parent-id "-" flags`; `None` for anything that is not exactly that.
pub fn parse(value: &str) -> Option<Parent> {
    let bytes = value.as_bytes();
    let version = digits(bytes.get(0..2)?)?;
    // ff is forbidden; version 00 ends here; a higher version may go on after a dash.
    if version == 0xff || (version == 0 && bytes.len() != 55) {
        return None;
    }
    if bytes.len() > 55 && bytes.get(55) != Some(&b'-') {
        return None;
    }
    if bytes.get(2) != Some(&b'-') || bytes.get(35) != Some(&b'-') || bytes.get(52) != Some(&b'-') {
        return None;
    }
    let trace_id = digits(bytes.get(3..35)?)?;
    let span_id = u64::try_from(digits(bytes.get(36..52)?)?).ok()?;
    let flags = u8::try_from(digits(bytes.get(53..55)?)?).ok()?;
    (trace_id != 0 && span_id != 0).then_some(Parent { trace_id, span_id, flags })
}

/// At most 32 digits, lower-case hex only, as the specification demands.
pub(super) fn digits(bytes: &[u8]) -> Option<u128> {
    // Two words: each step on both together costs twice as much.
    let (high, low) = bytes.split_at_checked(bytes.len().saturating_sub(16))?;
    Some(u128::from(word(high)?) << 64 | u128::from(word(low)?))
}

/// At most 16 digits.
fn word(bytes: &[u8]) -> Option<u64> {
    const NO_DIGIT: u8 = 0xff;
    let (mut value, mut seen) = (0, 0);
    for byte in bytes {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => NO_DIGIT,
        };
        (value, seen) = (value << 4 | u64::from(digit & 0xf), seen | digit);
    }
    (seen != NO_DIGIT).then_some(value)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_traceparent_is_valid_only_when_it_is_exactly_right() {
        let good = Some(Parent {
            trace_id: 0x4bf92f3577b34da6a3ce929d0e0e4736,
            span_id: 0xf067aa0ba902b7,
            flags: 1,
        });
        let table: &[(&str, Option<Parent>)] = &[
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", good),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
                good.map(|p| Parent { flags: 0, ..p }),
            ),
            (
                "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff",
                good.map(|p| Parent { flags: 255, ..p }),
            ),
            ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", good),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes", good),
            ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
            ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", None),
            ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", None),
            ("00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01", None),
            (" 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("+0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
            ("00-4bf92f3577b34da6a3ce929d0e0e47é6-00f067aa0ba902b7-01", None),
            ("", None),
        ];
        for (input, expected) in table {
            assert_eq!(parse(input), *expected, "{input}");
        }
    }
}
