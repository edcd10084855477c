//! A line of the access log as OpenTelemetry's log data model has it. What it tells beside a span's attributes is what the lines tell,
//! and no more: no query, no credentials, and headers only when they are named.

use super::{
    Entry,
    access_log::{cut, fields::HEADER_PREFIX},
    attributes::{attributes, known_method, number, text, unix_nanos},
    entry::Decided,
    record,
};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    logs::v1::{LogRecord, SeverityNumber},
};
use std::time::{Duration, SystemTime};

/// A request.
const REQUEST: &str = "postern.request";
/// A connection that carried none.
const CONNECTION: &str = "postern.connection";
/// Longest body, in bytes.
const BODY: usize = 512;

/// The record of a request or connection that ended before `observed`.
pub(super) fn log_record(entry: &Entry, observed: SystemTime) -> LogRecord {
    let severity = severity(entry);
    let trace = entry.trace;
    LogRecord {
        time_unix_nano: unix_nanos(entry.began),
        observed_time_unix_nano: unix_nanos(observed),
        severity_number: severity as i32,
        severity_text: match severity {
            SeverityNumber::Warn => "WARN",
            SeverityNumber::Error => "ERROR",
            _ => "INFO",
        }
        .into(),
        body: Some(AnyValue { value: Some(Value::StringValue(body(entry))) }),
        attributes: all(entry),
        flags: trace.map_or(0, |trace| u32::from(trace.flags & 1)),
        trace_id: trace.map(|trace| trace.trace_id.to_be_bytes().to_vec()).unwrap_or_default(),
        span_id: trace.map(|trace| trace.span_id.to_be_bytes().to_vec()).unwrap_or_default(),
        event_name: if entry.request.is_some() { REQUEST } else { CONNECTION }.into(),
        ..Default::default()
    }
}

/// A denial is a warning, another failure an error; what an app answers to its caller's mistake (4xx) is neither.
fn severity(entry: &Entry) -> SeverityNumber {
    if entry.denial().is_some() {
        SeverityNumber::Warn
    } else if entry.flag != "-" || entry.status.is_some_and(|status| status >= 500) {
        SeverityNumber::Error
    } else {
        SeverityNumber::Info
    }
}

/// For people: `POST /v1/charges 403: DENY rule matched`.
fn body(entry: &Entry) -> String {
    let mut text = match &entry.request {
        Some(request) => format!("{} {}", known_method(&request.method), request.path),
        None => format!("connection to {}", entry.destination_address),
    };
    text.truncate(cut(&text, BODY / 2).len());
    if let Some(status) = entry.status {
        text.push_str(&format!(" {status}"));
    }
    if let Some(why) = entry.denial().or(entry.reason.as_deref()) {
        text.push_str(": ");
        text.push_str(cut(why, BODY / 2 - 8));
    }
    text
}

fn all(entry: &Entry) -> Vec<KeyValue> {
    let mut all = attributes(entry);
    let mut add = |name, value: Option<&str>| all.extend(value.map(|value| text(name, value)));
    add("postern.direction", Some(entry.direction.as_str()));
    add("postern.flags", Some(entry.flag));
    add("postern.reason", entry.reason.as_deref().map(|reason| cut(reason, record::REASON_KEPT)));
    add("postern.source.id", entry.source_principal.as_deref());
    add("postern.destination.id", entry.destination_principal.as_deref());
    add(
        "postern.upstream.address",
        entry.upstream_address.map(|address| address.ip().to_string()).as_deref(),
    );
    add("network.local.address", Some(&entry.destination_address.ip().to_string()));
    add("tls.protocol.version", entry.tls_version.map(|version| version.trim_start_matches("TLSv")));
    add("tls.client.server_name", entry.sni.as_deref());
    if let Some(request) = &entry.request {
        add("postern.request.id", request.id.as_deref());
        let named = request.headers.iter();
        all.extend(named.map(|(name, value)| text(&format!("{HEADER_PREFIX}{name}"), value)));
    }
    all.extend(entry.decided.iter().flat_map(decided));
    for (name, value) in [
        ("network.local.port", u64::from(entry.destination_address.port())),
        ("postern.bytes_received", entry.bytes_received),
        ("postern.bytes_sent", entry.bytes_sent),
        ("postern.duration_us", micros(entry.duration)),
    ] {
        all.push(number(name, i64::try_from(value).unwrap_or(i64::MAX)));
    }
    all.extend(entry.upstream_address.map(|to| number("postern.upstream.port", i64::from(to.port()))));
    all
}

/// What a decision tells beside its verdict and policy.
fn decided(decided: &Decided) -> Vec<KeyValue> {
    let index =
        |name, rule: Option<usize>| rule.and_then(|rule| Some(number(name, i64::try_from(rule).ok()?)));
    let mut all = vec![text("postern.decision.reason", decided.reason)];
    all.extend(decided.id.as_deref().map(|id| text("postern.decision.id", id)));
    all.extend(index("postern.rule", decided.rule.as_ref().map(|rule| rule.rule)));
    if let Some(would) = &decided.would {
        all.push(text("postern.would.decision", if would.is_allowed { "allow" } else { "deny" }));
        all.extend(would.policy.as_deref().map(|policy| text("postern.would.policy", policy)));
        all.extend(index("postern.would.rule", would.rule));
    }
    all.extend(decided.audit.as_ref().map(|rule| text("postern.audit.policy", &rule.policy_name())));
    all
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::telemetry::{
        Direction,
        entry::samples::{call, denied},
    };
    use http::HeaderName;

    fn check(entry: &Entry, event: &str, severity: &str, body: &str) {
        let record = log_record(entry, SystemTime::now());
        let said = match record.body.unwrap().value.unwrap() {
            Value::StringValue(said) => said,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            (record.event_name.as_str(), record.severity_text.as_str(), said.as_str()),
            (event, severity, body)
        );
    }

    #[test]
    fn how_it_ended_is_in_severity_and_body() {
        let mut entry = call(None, "/x");
        check(&entry, "postern.request", "INFO", "GET /x 200");
        entry.status = Some(404);
        check(&entry, "postern.request", "INFO", "GET /x 404");
        entry.status = Some(503);
        (entry.flag, entry.reason) = ("UF", Some("nobody listens".into()));
        check(&entry, "postern.request", "ERROR", "GET /x 503: nobody listens");
        let refused = denied("spiffe://td/ns/a/sa/b", "/x", "1");
        check(&refused, "postern.request", "WARN", "GET /x 403: default deny: no ALLOW rule matched");
        let address = "10.0.0.1:8080".parse().unwrap();
        let connection = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address, address);
        check(&connection, "postern.connection", "INFO", "connection to 10.0.0.1:8080");
    }

    #[test]
    fn what_a_caller_controls_is_bounded_and_only_named_headers_are_sent() {
        let mut entry = call(None, &format!("/{}", "é".repeat(1000)));
        let request = entry.request.as_mut().unwrap();
        request.method = http::Method::from_bytes(b"INVENTED").unwrap();
        request.headers = vec![(HeaderName::from_static("x-tenant"), "blue".into())];
        entry.reason = Some("r".repeat(5000));
        let record = log_record(&entry, SystemTime::now());
        let texts: Vec<_> = record
            .attributes
            .iter()
            .filter_map(|one| match one.value.clone()?.value? {
                Value::StringValue(value) => Some((one.key.as_str(), value)),
                _ => None,
            })
            .collect();
        let of = |key: &str| texts.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str());
        assert_eq!(of("http.request.method"), Some("_OTHER"));
        assert_eq!(of("http.request.header.x-tenant"), Some("blue"));
        assert_eq!(of("postern.reason").unwrap().len(), record::REASON_KEPT);
        assert!(
            matches!(record.body.unwrap().value.unwrap(), Value::StringValue(body) if body.len() <= BODY)
        );
    }
}
