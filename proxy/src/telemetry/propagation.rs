//! Whose trace a request belongs to, whether it is recorded, and what is sent on: W3C Trace Context and B3.
//!
//! Sources: W3C "Trace Context" level 1; the B3 propagation format of OpenZipkin; OpenTelemetry specification, "Sampling". Baggage
//! and `tracestate` are the callers' own: they pass as they are, and nothing of them is written anywhere.

use super::trace_context::{Parent, TRACEPARENT, Trace, digits, hex, parse};
use crate::bootstrap::otel::{Propagators, Sampler};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

static TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
static B3: HeaderName = HeaderName::from_static("b3");
static B3_TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
static B3_SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
static B3_PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
static B3_SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
static B3_FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// The flag of `traceparent` that says: recorded.
pub(super) const SAMPLED: u8 = 1;

/// The headers in which a trace came, besides `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Only `traceparent`, or nothing.
    TraceContext,
    /// `b3`
    Single,
    /// `X-B3-*`
    Multi,
}

/// How the traces of all requests are begun and continued.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Propagation {
    /// Which are recorded.
    pub sampler: Sampler,
    /// What is read.
    pub propagators: Propagators,
}

/// What a caller says of its trace.
struct Said {
    parent: Option<Parent>,
    /// `None`: that is for us to decide.
    is_sampled: Option<bool>,
}

impl Propagation {
    /// A new span in the caller's trace, or in a new one.
    pub fn begin(&self, headers: &HeaderMap) -> Trace {
        let (said, form) = self.read(headers);
        let trace_id = said.parent.map_or_else(|| rand::random::<u128>().max(1), |parent| parent.trace_id);
        let is_sampled = match said.is_sampled {
            Some(is_sampled) if self.sampler.is_parent_based => is_sampled,
            _ => takes(self.sampler, trace_id),
        };
        Trace {
            trace_id,
            span_id: rand::random::<u64>().max(1),
            parent: said.parent.map(|parent| parent.span_id),
            flags: if is_sampled { SAMPLED } else { 0 },
            form,
        }
    }

    fn read(&self, headers: &HeaderMap) -> (Said, Form) {
        let is_b3 = |name: &HeaderName| name.as_str().starts_with("b3") || name.as_str().starts_with("x-b3-");
        // One look at each name instead of four searches: hardly anybody sends one.
        let form = if !self.propagators.b3 || !headers.keys().any(is_b3) {
            Form::TraceContext
        } else if headers.contains_key(&B3) {
            Form::Single
        } else if [&B3_TRACE, &B3_SAMPLED, &B3_FLAGS].into_iter().any(|name| headers.contains_key(name)) {
            Form::Multi
        } else {
            Form::TraceContext
        };
        let parent = if self.propagators.trace_context { traceparent(headers) } else { None };
        let said = match (parent, form) {
            (Some(parent), _) => Said { parent: Some(parent), is_sampled: Some(parent.flags & SAMPLED != 0) },
            (None, Form::TraceContext) => Said { parent: None, is_sampled: None },
            (None, Form::Single) => once(headers, &B3).map_or(NOTHING, single),
            (None, Form::Multi) => multi(headers),
        };
        (said, form)
    }
}

/// Equal for all who see one trace and have one ratio: decided by the ID, of which W3C wants the last 7 bytes to be random.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
fn takes(sampler: Sampler, trace_id: u128) -> bool {
    const BITS: u64 = 1 << 56;
    sampler.ratio >= 1.0 || ((trace_id as u64 % BITS) as f64) < sampler.ratio * BITS as f64
}

const NOTHING: Said = Said { parent: None, is_sampled: None };

/// The parent that `traceparent` names, when it is there once and exactly right (section 3.2.1).
pub(super) fn traceparent(headers: &HeaderMap) -> Option<Parent> {
    once(headers, &TRACEPARENT).and_then(parse)
}

/// Two headers are as bad as none.
fn once<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or the sampling state alone.
fn single(text: &str) -> Said {
    let mut parts = text.split('-');
    let (first, second) = (parts.next().unwrap_or_default(), parts.next());
    let Some(second) = second else { return Said { parent: None, is_sampled: state(first) } };
    let state = parts.next().map(state);
    // A state that is none, or more than four parts, is no B3.
    if state == Some(None) || parts.nth(1).is_some() {
        return NOTHING;
    }
    said(first, second, state.flatten())
}

fn multi(headers: &HeaderMap) -> Said {
    let is_debug = once(headers, &B3_FLAGS) == Some("1");
    let is_sampled = if is_debug { Some(true) } else { once(headers, &B3_SAMPLED).and_then(state) };
    match (once(headers, &B3_TRACE), once(headers, &B3_SPAN)) {
        (Some(trace), Some(span)) => said(trace, span, is_sampled),
        _ => Said { parent: None, is_sampled },
    }
}

fn state(text: &str) -> Option<bool> {
    match text {
        "1" | "d" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// Trace IDs have 16 or 32 hex digits: the short ones are the low half of the long ones.
fn said(trace: &str, span: &str, is_sampled: Option<bool>) -> Said {
    let long_enough = matches!(trace.len(), 16 | 32) && span.len() == 16;
    let number = |text: &str| digits(text.to_ascii_lowercase().as_bytes()).filter(|number| *number != 0);
    let parent = if long_enough {
        number(trace).zip(number(span).and_then(|span| u64::try_from(span).ok()))
    } else {
        None
    };
    let parent = parent.map(|(trace_id, span_id)| Parent { trace_id, span_id, flags: 0 });
    Said { parent, is_sampled }
}

impl Trace {
    /// Writes what the next one reads: our span as the parent, in `traceparent` and in the form that came.
    pub fn pass_on(&self, headers: &mut HeaderMap) {
        if self.parent.is_none() {
            // It belonged to the trace that could not be read (section 3.3.1.1).
            headers.remove(&TRACESTATE);
        }
        if let Some(value) = self.header() {
            headers.insert(&TRACEPARENT, value);
        }
        match self.form {
            Form::TraceContext => {}
            Form::Single => {
                let mut text = Vec::with_capacity(51);
                hex(&self.trace_id.to_be_bytes(), &mut text);
                text.push(b'-');
                hex(&self.span_id.to_be_bytes(), &mut text);
                text.extend_from_slice(if self.is_sampled() { b"-1" } else { b"-0" });
                put(headers, &B3, text);
            }
            Form::Multi => {
                let hex_of = |bytes: &[u8]| {
                    let mut text = Vec::with_capacity(32);
                    hex(bytes, &mut text);
                    text
                };
                put(headers, &B3_TRACE, hex_of(&self.trace_id.to_be_bytes()));
                put(headers, &B3_SPAN, hex_of(&self.span_id.to_be_bytes()));
                put(headers, &B3_SAMPLED, if self.is_sampled() { b"1".to_vec() } else { b"0".to_vec() });
                headers.remove(&B3_FLAGS);
                match self.parent {
                    Some(parent) => put(headers, &B3_PARENT, hex_of(&parent.to_be_bytes())),
                    None => {
                        headers.remove(&B3_PARENT);
                    }
                }
            }
        }
    }
}

fn put(headers: &mut HeaderMap, name: &HeaderName, text: Vec<u8>) {
    // Hex digits and dashes are always a header value.
    if let Ok(value) = HeaderValue::from_maybe_shared(Bytes::from(text)) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
#[path = "propagation_tests.rs"]
mod tests;
