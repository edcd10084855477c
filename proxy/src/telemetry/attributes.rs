//! What spans and records of the log have in common: who tells them, and their attributes.
//!
//! Names follow the OpenTelemetry semantic conventions 1.39; our own start with `postern.`. Queries and headers are in none.

use super::{Direction, Entry};
use arc_swap::ArcSwap;
use http::uri::Authority;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};
use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// Of the conventions that the names follow.
pub(super) const SCHEMA: &str = "https://opentelemetry.io/schemas/1.39.0";

/// Who tells.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    /// `OTEL_SERVICE_NAME`.
    pub service: Option<String>,
    /// What stands in for it.
    pub workload: Arc<ArcSwap<String>>,
    /// `service.instance.id`: without it the series of two instances of a service would be one.
    pub instance: String,
    /// `OTEL_RESOURCE_ATTRIBUTES`; it has the last word.
    pub attributes: Vec<(String, String)>,
}

impl Origin {
    pub(super) fn resource(&self) -> Resource {
        let service = self.service.clone().unwrap_or_else(|| self.workload.load().as_str().to_owned());
        let mut attributes = vec![text("service.name", &service)];
        if self.attributes.iter().all(|(name, _)| name != "service.instance.id") {
            attributes.push(text("service.instance.id", &self.instance));
        }
        attributes.extend(self.attributes.iter().map(|(name, value)| text(name, value)));
        Resource { attributes, ..Default::default() }
    }
}

/// Ours.
pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "postern".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    }
}

/// What is told of a request or connection, in a span and in a record of the log alike.
pub(super) fn attributes(entry: &Entry) -> Vec<KeyValue> {
    let mut all = vec![
        text("network.peer.address", &entry.source_address.ip().to_string()),
        number("network.peer.port", i64::from(entry.source_address.port())),
        number("postern.proxy_us", i64::try_from(entry.proxy.as_micros()).unwrap_or(i64::MAX)),
    ];
    let mut add = |name, value: Option<&str>| all.extend(value.map(|value| text(name, value)));
    let mut port = None;
    if let Some(request) = &entry.request {
        add("http.request.method", Some(known_method(&request.method)));
        // What the app speaks; mutual TLS between the sidecars is not its business.
        add("url.scheme", Some("http"));
        add("url.path", Some(&request.path));
        let authority: Option<Authority> = request.authority.parse().ok();
        add(
            "server.address",
            Some(authority.as_ref().map_or(&request.authority, |authority| authority.host())),
        );
        port = authority.and_then(|authority| authority.port_u16());
        if entry.protocol == Some("grpc") {
            add("rpc.system.name", Some("grpc"));
            add("rpc.method", Some(request.path.trim_start_matches('/')));
        }
    }
    add("network.protocol.name", entry.protocol.and_then(|protocol| protocol.split('/').next()));
    add("network.protocol.version", entry.protocol.and_then(|protocol| protocol.split('/').nth(1)));
    let client = entry.source_address.ip().to_string();
    let peer = match entry.direction {
        Direction::Inbound => {
            add("client.address", Some(&client));
            &entry.source_principal
        }
        Direction::Outbound => &entry.destination_principal,
    };
    add("postern.peer.id", peer.as_deref());
    add("postern.destination.service", entry.destination_service.as_deref());
    if let Some(decided) = &entry.decided {
        add("postern.decision", Some(if decided.is_allowed { "allow" } else { "deny" }));
        add("postern.policy", decided.rule.as_ref().map(|rule| rule.policy_name()).as_deref());
        add("postern.policy.version", Some(&decided.version));
    }
    if is_error(entry) {
        let status = entry.status.map(|status| status.to_string());
        add("error.type", if entry.flag == "-" { status.as_deref() } else { Some(entry.flag) });
    }
    all.extend(port.map(|port| number("server.port", i64::from(port))));
    all.extend(entry.status.map(|status| number("http.response.status_code", i64::from(status))));
    all.extend(entry.grpc_status.map(|status| number("rpc.response.status_code", i64::from(status))));
    all
}

/// HTTP conventions: a server's fault from 500 on, a client sees failure from 400 on.
pub(super) fn is_error(entry: &Entry) -> bool {
    let from = match entry.direction {
        Direction::Inbound => 500,
        Direction::Outbound => 400,
    };
    entry.flag != "-" || entry.status.is_some_and(|status| status >= from)
}

/// Unknown methods are one word, so that a caller cannot invent span names.
pub(super) fn known_method(method: &http::Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "CONNECT" | "TRACE") => {
            known
        }
        _ => "_OTHER",
    }
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

pub(super) fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

pub(super) fn unix_nanos(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
