//! Istio's two default formats: the values that both have, in Envoy's words, and the two ways to write them.
//!
//! Format, keys and order are those of `EnvoyTextLogFormat` and `EnvoyJSONLogFormatIstio` (istio/pilot/pkg/model/telemetry_logging.go).
//! Envoy's JSON formatter sorts the keys and writes `null` for what is absent (`JsonFormatOptions.sort_properties`). Other than
//! there, paths have no query, and header values are there only when they were asked for.

use super::{
    super::{Direction, Entry, record},
    cut, escape,
};
use std::net::SocketAddr;

/// The values of one line; `None` is absent.
struct Values<'e> {
    authority: Option<&'e str>,
    bytes_received: u64,
    bytes_sent: u64,
    connection_termination_details: Option<String>,
    downstream_local_address: SocketAddr,
    downstream_remote_address: SocketAddr,
    /// Milliseconds.
    duration: u64,
    method: Option<&'e str>,
    path: Option<&'e str>,
    protocol: Option<&'static str>,
    request_id: Option<&'e str>,
    requested_server_name: Option<&'e str>,
    response_code: u64,
    response_code_details: Option<String>,
    response_flags: &'static str,
    route_name: Option<&'static str>,
    upstream_cluster: Option<String>,
    upstream_host: Option<SocketAddr>,
    /// Milliseconds.
    upstream_service_time: Option<u64>,
    upstream_transport_failure_reason: Option<&'e str>,
    user_agent: Option<&'e str>,
    x_forwarded_for: Option<&'e str>,
}

impl<'e> Values<'e> {
    fn of(entry: &'e Entry) -> Self {
        let request = entry.request.as_ref();
        let header = |wanted: &str| {
            let headers = request.map_or(&[][..], |request| &request.headers);
            headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
        };
        let is_http = request.is_some();
        let is_inbound = entry.direction == Direction::Inbound;
        let failed_to_connect = entry.reason.as_deref().filter(|_| entry.flag == "UF");
        Self {
            authority: request.map(|request| request.authority.as_str()).filter(|name| !name.is_empty()),
            bytes_received: entry.bytes_received,
            bytes_sent: entry.bytes_sent,
            connection_termination_details: denial(entry).filter(|_| !is_http),
            downstream_local_address: entry.destination_address,
            downstream_remote_address: entry.source_address,
            duration: millis(entry.duration),
            method: request.map(|request| cut(request.method.as_str(), record::TEXT_KEPT)),
            path: request.map(|request| request.path.as_str()).filter(|path| !path.is_empty()),
            protocol: protocol(entry),
            request_id: request.and_then(|request| request.id.as_deref()),
            // On the way out the one we know is the one that we asked for.
            requested_server_name: entry.sni.as_deref().filter(|_| is_inbound),
            response_code: entry.status.map_or(0, u64::from),
            response_code_details: code_details(entry),
            response_flags: entry.flag,
            route_name: route(entry).filter(|_| is_http),
            upstream_cluster: cluster(entry),
            upstream_host: entry.upstream_address,
            // A header of the answer, with Envoy: where there was none there is no time.
            upstream_service_time: entry
                .upstream_time
                .filter(|_| is_http && entry.reason.is_none())
                .map(millis),
            upstream_transport_failure_reason: failed_to_connect
                .map(|reason| cut(reason, record::REASON_KEPT)),
            user_agent: header("user-agent"),
            x_forwarded_for: header("x-forwarded-for"),
        }
    }
}

/// Envoy's `%PROTOCOL%`.
pub fn protocol(entry: &Entry) -> Option<&'static str> {
    entry.request.as_ref()?;
    match entry.protocol? {
        "http/1.1" => Some("HTTP/1.1"),
        "http/2" | "grpc" => Some("HTTP/2"),
        _ => None,
    }
}

/// Envoy's `rbac_access_denied_matched_policy[..]` with the id that Istio gives a rule; `none` when no ALLOW rule matched.
fn denial(entry: &Entry) -> Option<String> {
    let denied = entry.decided.as_ref().filter(|decided| !decided.is_allowed)?;
    let id = denied.rule.as_ref().map_or_else(
        || "none".to_owned(),
        |rule| format!("ns[{}]-policy[{}]-rule[{}]", rule.namespace, rule.policy, rule.rule),
    );
    Some(format!("rbac_access_denied_matched_policy[{}]", id.replace(char::is_whitespace, "_")))
}

/// Envoy's `%RESPONSE_CODE_DETAILS%`.
pub fn code_details(entry: &Entry) -> Option<String> {
    let denial = denial(entry).filter(|_| entry.request.is_some());
    denial.or_else(|| details(entry))
}

/// Envoy's response code details (envoy/stream_info/stream_info.h, `ResponseCodeDetailValues`), from the flag.
fn details(entry: &Entry) -> Option<String> {
    let Some(request) = &entry.request else {
        return (entry.flag == "NR").then(|| "filter_chain_not_found".to_owned());
    };
    if entry.reason.is_none() {
        let upstream = entry.upstream_address.is_some();
        return entry.status.map(|_| if upstream { "via_upstream" } else { "direct_response" }.to_owned());
    }
    let is_http2 = protocol(entry) == Some("HTTP/2") || request.method == http::Method::CONNECT;
    details_of(entry.flag, is_http2, entry.status == Some(503)).map(str::to_owned)
}

/// The same for a request that failed; `before`: the upstream's answer had not begun.
fn details_of(flag: &str, is_http2: bool, before: bool) -> Option<&'static str> {
    Some(match flag {
        "NR" => "route_not_found",
        "NC" => "cluster_not_found",
        "UH" => "no_healthy_upstream",
        "UO" => "upstream_reset_before_response_started{overflow}",
        "UF" => "upstream_reset_before_response_started{connection_failure}",
        "UC" if before => "upstream_reset_before_response_started{connection_termination}",
        "UC" => "upstream_reset_after_response_started{connection_termination}",
        "UPE" => "upstream_reset_before_response_started{protocol_error}",
        "UT" => "response_timeout",
        "DC" => "downstream_remote_disconnect",
        "DT" => "duration_timeout",
        "DPE" if is_http2 => "http2.violation.of.messaging.rule",
        "DPE" => "http1.codec_error",
        "OM" => "overload",
        "LR" | "-" => "downstream_local_disconnect",
        _ => return None,
    })
}

/// Istio's names of clusters.
pub fn cluster(entry: &Entry) -> Option<String> {
    let port = entry.destination_address.port();
    match (entry.direction, entry.destination_service.as_deref()) {
        (Direction::Inbound, _) => Some(format!("inbound|{port}||")),
        (Direction::Outbound, Some(host)) => Some(format!("outbound|{port}||{host}")),
        (Direction::Outbound, None) if entry.flag == "UH" => Some("BlackHoleCluster".to_owned()),
        (Direction::Outbound, None) => {
            entry.upstream_address.is_some().then(|| "PassthroughCluster".to_owned())
        }
    }
}

/// Istio's names of routes.
pub fn route(entry: &Entry) -> Option<&'static str> {
    match (entry.direction, &entry.destination_service) {
        (Direction::Inbound, _) | (Direction::Outbound, Some(_)) => Some("default"),
        (Direction::Outbound, None) if entry.flag == "UH" => Some("block_all"),
        (Direction::Outbound, None) => Some("allow_any"),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One entry as a line of Istio's default JSON format, without the newline.
pub fn write_json(entry: &Entry, start_time: &str, text: &mut Vec<u8>) {
    let values = Values::of(entry);
    let mut line = Object(text);
    line.text("{\"authority\":", values.authority);
    line.number(",\"bytes_received\":", values.bytes_received);
    line.number(",\"bytes_sent\":", values.bytes_sent);
    line.text(",\"connection_termination_details\":", values.connection_termination_details.as_deref());
    line.address(",\"downstream_local_address\":", Some(values.downstream_local_address));
    line.address(",\"downstream_remote_address\":", Some(values.downstream_remote_address));
    line.number(",\"duration\":", values.duration);
    line.text(",\"method\":", values.method);
    line.text(",\"path\":", values.path);
    line.text(",\"protocol\":", values.protocol);
    line.text(",\"request_id\":", values.request_id);
    line.text(",\"requested_server_name\":", values.requested_server_name);
    line.number(",\"response_code\":", values.response_code);
    line.text(",\"response_code_details\":", values.response_code_details.as_deref());
    line.text(",\"response_flags\":", Some(values.response_flags));
    line.text(",\"route_name\":", values.route_name);
    line.text(",\"start_time\":", Some(start_time));
    line.text(",\"upstream_cluster\":", values.upstream_cluster.as_deref());
    line.address(",\"upstream_host\":", values.upstream_host);
    // Nobody asks the kernel for it, once for each request.
    line.text(",\"upstream_local_address\":", None);
    // The value of a header, with Envoy: a text.
    let service_time = values.upstream_service_time.map(|millis| millis.to_string());
    line.text(",\"upstream_service_time\":", service_time.as_deref());
    let failure = values.upstream_transport_failure_reason;
    line.text(",\"upstream_transport_failure_reason\":", failure);
    line.text(",\"user_agent\":", values.user_agent);
    line.text(",\"x_forwarded_for\":", values.x_forwarded_for);
    line.0.push(b'}');
}

/// A JSON object in the making. A name comes with all that stands before its value.
struct Object<'t>(&'t mut Vec<u8>);

impl Object<'_> {
    fn text(&mut self, name: &str, value: Option<&str>) {
        self.0.extend_from_slice(name.as_bytes());
        match value {
            Some(value) => escape::json(value, self.0),
            None => self.0.extend_from_slice(b"null"),
        }
    }

    fn number(&mut self, name: &str, value: u64) {
        self.0.extend_from_slice(name.as_bytes());
        escape::decimal(value, self.0);
    }

    fn address(&mut self, name: &str, value: Option<SocketAddr>) {
        self.0.extend_from_slice(name.as_bytes());
        let Some(value) = value else { return self.0.extend_from_slice(b"null") };
        self.0.push(b'"');
        escape::address(value, self.0);
        self.0.push(b'"');
    }
}

/// One entry as a line of Istio's default text format, without the newline.
pub fn write_text(entry: &Entry, start_time: &str, text: &mut Vec<u8>) {
    let values = Values::of(entry);
    let mut line = Words(text);
    line.raw("[");
    line.raw(start_time);
    line.raw("] \"");
    line.bare(values.method);
    line.raw(" ");
    line.bare(values.path);
    line.raw(" ");
    line.bare(values.protocol);
    line.raw("\" ");
    escape::decimal(values.response_code, line.0);
    line.raw(" ");
    line.raw(values.response_flags);
    line.raw(" ");
    line.bare(values.response_code_details.as_deref());
    line.raw(" ");
    line.bare(values.connection_termination_details.as_deref());
    line.raw(" ");
    line.quoted(values.upstream_transport_failure_reason);
    for number in [
        Some(values.bytes_received),
        Some(values.bytes_sent),
        Some(values.duration),
        values.upstream_service_time,
    ] {
        line.raw(" ");
        match number {
            Some(number) => escape::decimal(number, line.0),
            None => line.raw("-"),
        }
    }
    for value in [values.x_forwarded_for, values.user_agent, values.request_id, values.authority] {
        line.raw(" ");
        line.quoted(value);
    }
    line.raw(" \"");
    line.address(values.upstream_host);
    line.raw("\" ");
    line.bare(values.upstream_cluster.as_deref());
    // The upstream local address: see above.
    line.raw(" - ");
    line.address(Some(values.downstream_local_address));
    line.raw(" ");
    line.address(Some(values.downstream_remote_address));
    line.raw(" ");
    line.bare(values.requested_server_name);
    line.raw(" ");
    line.bare(values.route_name);
}

/// A line of text in the making.
struct Words<'t>(&'t mut Vec<u8>);

impl Words<'_> {
    /// A text of ours.
    fn raw(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn bare(&mut self, value: Option<&str>) {
        match value.filter(|value| !value.is_empty()) {
            Some(value) => escape::bare(value, self.0),
            None => self.raw("-"),
        }
    }

    fn quoted(&mut self, value: Option<&str>) {
        self.raw("\"");
        match value.filter(|value| !value.is_empty()) {
            Some(value) => escape::quoted(value, self.0),
            None => self.raw("-"),
        }
        self.raw("\"");
    }

    fn address(&mut self, value: Option<SocketAddr>) {
        match value {
            Some(value) => escape::address(value, self.0),
            None => self.raw("-"),
        }
    }
}

#[cfg(test)]
#[path = "istio_tests.rs"]
mod tests;
