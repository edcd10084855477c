//! Our own format: one flat JSON object, absent fields left out, the fields in the order in which people read them.

use super::{
    super::{Entry, record, trace_context::hex},
    cut, escape,
    fields::HEADER_PREFIX,
};
use postern_config::RuleRef;
use std::{net::SocketAddr, time::Duration};

/// The name of a field with all that stands before its value, in one piece: a line has thirty of them.
macro_rules! name {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// Appends an entry that began at `timestamp`, without the newline.
pub fn write(entry: &Entry, timestamp: &str, text: &mut Vec<u8>) {
    let request = entry.request.as_ref();
    let decided = entry.decided.as_ref();
    let would = decided.and_then(|decided| decided.would.as_deref());
    let verdict = |is_allowed| if is_allowed { "allow" } else { "deny" };
    let mut line = Line(text);
    line.0.extend_from_slice(b"{\"timestamp\":\"");
    line.0.extend_from_slice(timestamp.as_bytes());
    line.0.push(b'"');
    line.word(name!("direction"), Some(entry.direction.as_str()));
    line.word(name!("protocol"), entry.protocol);
    line.text(name!("method"), request.map(|request| cut(request.method.as_str(), record::TEXT_KEPT)));
    line.text(name!("authority"), request.map(|request| request.authority.as_str()));
    line.text(name!("path"), request.map(|request| request.path.as_str()));
    line.number(name!("status"), entry.status.map(u64::from));
    line.number(name!("grpc_status"), entry.grpc_status.map(u64::from));
    line.word(name!("flags"), Some(entry.flag));
    line.text(name!("reason"), entry.reason.as_deref().map(|reason| cut(reason, record::REASON_KEPT)));
    line.word(name!("source_principal"), entry.source_principal.as_deref());
    line.word(name!("destination_principal"), entry.destination_principal.as_deref());
    line.address(name!("source_address"), Some(entry.source_address));
    line.address(name!("destination_address"), Some(entry.destination_address));
    line.text(name!("destination_service"), entry.destination_service.as_deref());
    line.address(name!("upstream_address"), entry.upstream_address);
    line.word(name!("decision"), decided.map(|decided| verdict(decided.is_allowed)));
    line.text(name!("decision_id"), decided.and_then(|decided| decided.id.as_deref()));
    line.policy(name!("policy"), decided.and_then(|decided| decided.rule.as_deref()));
    line.number(
        name!("rule"),
        decided.and_then(|decided| decided.rule.as_ref()).map(|rule| rule.rule as u64),
    );
    line.word(name!("decision_reason"), decided.map(|decided| decided.reason));
    line.word(name!("would_decision"), would.map(|would| verdict(would.is_allowed)));
    line.text(name!("would_policy"), would.and_then(|would| would.policy.as_deref()));
    line.number(name!("would_rule"), would.and_then(|would| would.rule).map(|rule| rule as u64));
    line.policy(name!("audit_policy"), decided.and_then(|decided| decided.audit.as_deref()));
    line.text(name!("policy_version"), decided.map(|decided| &*decided.version));
    line.number(name!("bytes_received"), Some(entry.bytes_received));
    line.number(name!("bytes_sent"), Some(entry.bytes_sent));
    line.number(name!("duration_us"), Some(micros(entry.duration)));
    line.number(name!("proxy_us"), Some(micros(entry.proxy)));
    if let Some(trace) = entry.trace {
        line.hex(name!("trace_id"), &trace.trace_id.to_be_bytes());
        line.hex(name!("span_id"), &trace.span_id.to_be_bytes());
    }
    line.word(name!("tls_version"), entry.tls_version);
    line.text(name!("sni"), entry.sni.as_deref());
    line.text(name!("request_id"), request.and_then(|request| request.id.as_deref()));
    for (name, value) in request.map_or(&[][..], |request| &request.headers) {
        line.name(",");
        escape::json(&format!("{HEADER_PREFIX}{name}"), line.0);
        line.0.push(b':');
        escape::json(value, line.0);
    }
    line.0.push(b'}');
}

/// A JSON object in the making, field after field.
struct Line<'t>(&'t mut Vec<u8>);

impl Line<'_> {
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(name.as_bytes());
    }

    /// A text of ours, or a SPIFFE ID: neither has anything to escape.
    fn word(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    /// `namespace/name`; no text is made of the two when there is nothing to escape.
    fn policy(&mut self, name: &str, rule: Option<&RuleRef>) {
        let Some(rule) = rule else { return };
        if escape::is_plain(&rule.namespace) && escape::is_plain(&rule.policy) {
            self.name(name);
            self.0.push(b'"');
            self.0.extend_from_slice(rule.namespace.as_bytes());
            self.0.push(b'/');
            self.0.extend_from_slice(rule.policy.as_bytes());
            self.0.push(b'"');
        } else {
            self.text(name, Some(&format!("{}/{}", rule.namespace, rule.policy)));
        }
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.name(name);
        escape::json(value, self.0);
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        self.name(name);
        escape::decimal(value, self.0);
    }

    fn address(&mut self, name: &str, value: Option<SocketAddr>) {
        let Some(value) = value else { return };
        self.name(name);
        self.0.push(b'"');
        escape::address(value, self.0);
        self.0.push(b'"');
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        hex(bytes, self.0);
        self.0.push(b'"');
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
