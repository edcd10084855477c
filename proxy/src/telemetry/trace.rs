//! Spans of finished records: complete when their record ends, with the IDs that went out in `traceparent`, so the SDK's tracers
//! and contexts have nothing to do here.

use super::{
    Direction, Entry,
    attributes::{attributes, is_error, known_method, number, text, unix_nanos},
    entry::Decided,
};
use opentelemetry_proto::tonic::trace::v1::{
    Span, Status,
    span::{Event, SpanKind},
    status::StatusCode,
};
use postern_config::RuleRef;
use std::{sync::Arc, time::SystemTime};

/// The span of a request; `None` for connections, which belong to no trace.
pub(super) fn span(entry: &Entry) -> Option<Span> {
    let trace = entry.trace?;
    let request = entry.request.as_ref()?;
    let end = entry.began + entry.duration;
    let method = known_method(&request.method);
    let kind = match entry.direction {
        Direction::Inbound => SpanKind::Server,
        Direction::Outbound => SpanKind::Client,
    };
    Some(Span {
        trace_id: trace.trace_id.to_be_bytes().to_vec(),
        span_id: trace.span_id.to_be_bytes().to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.to_be_bytes().to_vec()).unwrap_or_default(),
        flags: u32::from(trace.flags & 1),
        name: method.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: unix_nanos(entry.began),
        end_time_unix_nano: unix_nanos(end),
        attributes: attributes(entry),
        events: entry.decided.iter().filter(|decided| !decided.is_allowed).map(|d| denial(d, end)).collect(),
        status: Some(status(entry)),
        ..Default::default()
    })
}

fn denial(decided: &Decided, at: SystemTime) -> Event {
    let mut attributes = vec![text("postern.decision.reason", decided.reason)];
    attributes.extend(decided.id.as_deref().map(|id| text("postern.decision.id", id)));
    attributes.extend(decided.rule.as_ref().map(|rule| text("postern.policy", &rule.policy_name())));
    let index = |rule: &Arc<RuleRef>| number("postern.rule", i64::try_from(rule.rule).unwrap_or(i64::MAX));
    attributes.extend(decided.rule.as_ref().map(index));
    Event {
        time_unix_nano: unix_nanos(at),
        name: "postern.denied".into(),
        attributes,
        dropped_attributes_count: 0,
    }
}

fn status(entry: &Entry) -> Status {
    let code = if is_error(entry) { StatusCode::Error } else { StatusCode::Unset };
    let message = entry.reason.clone().filter(|_| code == StatusCode::Error).unwrap_or_default();
    Status { message, code: code as i32 }
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
