//! Our own format: one flat JSON object, absent fields left out, the fields in the order in which people read them.
//!
//! Source: OpenTelemetry, "Logs Data Model" for what a record has beside its attributes, "Semantic Conventions" for the names of
//! these. What has no name there begins with `postern.`; spans ([`crate::telemetry::trace`]) use the same names.

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
    line.word(name!("severity_text"), Some(severity(entry)));
    if let Some(trace) = entry.trace {
        line.hex(name!("trace_id"), &trace.trace_id.to_be_bytes());
        line.hex(name!("span_id"), &trace.span_id.to_be_bytes());
    }
    line.word(name!("postern.direction"), Some(entry.direction.as_str()));
    let (protocol, version) = protocol(entry);
    line.word(name!("network.protocol.name"), protocol);
    line.word(name!("network.protocol.version"), version);
    if let Some(request) = request {
        line.text(name!("http.request.method"), Some(cut(request.method.as_str(), record::TEXT_KEPT)));
        let (host, port) = host_and_port(&request.authority);
        line.text(name!("server.address"), Some(host));
        line.number(name!("server.port"), port.map(u64::from));
        line.text(name!("url.path"), Some(&request.path));
    }
    line.number(name!("http.response.status_code"), entry.status.map(u64::from));
    line.number(name!("rpc.response.status_code"), entry.grpc_status.map(u64::from));
    line.word(name!("postern.flags"), Some(entry.flag));
    line.text(
        name!("postern.reason"),
        entry.reason.as_deref().map(|reason| cut(reason, record::REASON_KEPT)),
    );
    line.word(name!("postern.source.id"), entry.source_principal.as_deref());
    line.word(name!("postern.destination.id"), entry.destination_principal.as_deref());
    line.address(name!("network.peer.address"), entry.source_address);
    line.number(name!("network.peer.port"), Some(entry.source_address.port().into()));
    line.address(name!("network.local.address"), entry.destination_address);
    line.number(name!("network.local.port"), Some(entry.destination_address.port().into()));
    line.text(name!("postern.destination.service"), entry.destination_service.as_deref());
    if let Some(upstream) = entry.upstream_address {
        line.address(name!("postern.upstream.address"), upstream);
        line.number(name!("postern.upstream.port"), Some(upstream.port().into()));
    }
    line.word(name!("postern.decision"), decided.map(|decided| verdict(decided.is_allowed)));
    line.text(name!("postern.decision.id"), decided.and_then(|decided| decided.id.as_deref()));
    line.policy(name!("postern.policy"), decided.and_then(|decided| decided.rule.as_deref()));
    line.number(
        name!("postern.rule"),
        decided.and_then(|decided| decided.rule.as_ref()).map(|rule| rule.rule as u64),
    );
    line.word(name!("postern.decision.reason"), decided.map(|decided| decided.reason));
    line.word(name!("postern.would.decision"), would.map(|would| verdict(would.is_allowed)));
    line.text(name!("postern.would.policy"), would.and_then(|would| would.policy.as_deref()));
    line.number(name!("postern.would.rule"), would.and_then(|would| would.rule).map(|rule| rule as u64));
    line.policy(name!("postern.audit.policy"), decided.and_then(|decided| decided.audit.as_deref()));
    line.text(name!("postern.policy.version"), decided.map(|decided| &*decided.version));
    line.number(name!("postern.bytes_received"), Some(entry.bytes_received));
    line.number(name!("postern.bytes_sent"), Some(entry.bytes_sent));
    line.number(name!("postern.duration_us"), Some(micros(entry.duration)));
    line.number(name!("postern.proxy_us"), Some(micros(entry.proxy)));
    line.word(
        name!("tls.protocol.version"),
        entry.tls_version.map(|version| version.trim_start_matches("TLSv")),
    );
    line.text(name!("tls.client.server_name"), entry.sni.as_deref());
    line.text(name!("postern.request.id"), request.and_then(|request| request.id.as_deref()));
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

    /// Without the port.
    fn address(&mut self, name: &str, value: SocketAddr) {
        self.name(name);
        self.0.push(b'"');
        escape::ip(value.ip(), self.0);
        self.0.push(b'"');
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        hex(bytes, self.0);
        self.0.push(b'"');
    }
}

/// Denials are warnings, other failures errors.
fn severity(entry: &Entry) -> &'static str {
    if entry.denial().is_some() {
        "WARN"
    } else if entry.flag != "-" || entry.status.is_some_and(|status| status >= 500) {
        "ERROR"
    } else {
        "INFO"
    }
}

/// Name and version of what the app speaks.
fn protocol(entry: &Entry) -> (Option<&'static str>, Option<&'static str>) {
    match entry.protocol {
        Some("http/1.1") => (Some("http"), Some("1.1")),
        Some(other) => match other.split_once('/') {
            Some((name, version)) => (Some(name), Some(version)),
            None => (Some(other), None),
        },
        None => (None, None),
    }
}

/// The host as it was named, in brackets if it was, and the port if one was.
fn host_and_port(authority: &str) -> (&str, Option<u16>) {
    let colon = memchr::memrchr(b':', authority.as_bytes());
    match colon.and_then(|at| Some((authority.get(..at)?, authority.get(at + 1..)?.parse().ok()?))) {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
