//! What a filter can look at, of a finished request or connection.

use super::super::{Direction, Entry, access_log::istio};
use http::HeaderName;
use postern_config::cel::{Attribute, Value};
use std::{borrow::Cow, net::SocketAddr};

/// Envoy's response flags and their bits (envoy/stream_info/stream_info.h, `CoreResponseFlag`).
const FLAGS: [(&str, i64); 30] = [
    ("LH", 1 << 0),
    ("UH", 1 << 1),
    ("UT", 1 << 2),
    ("LR", 1 << 3),
    ("UR", 1 << 4),
    ("UF", 1 << 5),
    ("UC", 1 << 6),
    ("UO", 1 << 7),
    ("NR", 1 << 8),
    ("DI", 1 << 9),
    ("FI", 1 << 10),
    ("RL", 1 << 11),
    ("UAEX", 1 << 12),
    ("RLSE", 1 << 13),
    ("DC", 1 << 14),
    ("URX", 1 << 15),
    ("SI", 1 << 16),
    ("IH", 1 << 17),
    ("DPE", 1 << 18),
    ("UMSDR", 1 << 19),
    ("RFCF", 1 << 20),
    ("NFCF", 1 << 21),
    ("DT", 1 << 22),
    ("UPE", 1 << 23),
    ("NC", 1 << 24),
    ("OM", 1 << 25),
    ("DF", 1 << 26),
    ("DO", 1 << 27),
    ("DR", 1 << 28),
    ("UDO", 1 << 29),
];

/// `None` where the call does not have it.
pub(super) fn attribute(entry: &Entry, attribute: Attribute) -> Option<Value<'_>> {
    let request = entry.request.as_ref();
    let is_inbound = entry.direction == Direction::Inbound;
    let caller = entry.source_principal.as_deref().filter(|_| is_inbound);
    match attribute {
        Attribute::RequestPath | Attribute::RequestUrlPath => text(request.map(|r| r.path.as_str())),
        Attribute::RequestHost => text(request.map(|r| r.authority.as_str())),
        Attribute::RequestMethod => text(request.map(|r| r.method.as_str())),
        Attribute::RequestProtocol => text(istio::protocol(entry)),
        Attribute::RequestId => text(request.and_then(|r| r.id.as_deref())),
        Attribute::RequestSize => int(entry.bytes_received),
        Attribute::RequestDuration => Some(Value::Duration(entry.duration)),
        Attribute::ResponseCode => int(u64::from(entry.status?)),
        Attribute::ResponseCodeDetails => owned(istio::code_details(entry)),
        Attribute::ResponseFlags => {
            let bits = FLAGS.iter().find(|(flag, _)| *flag == entry.flag).map_or(0, |(_, bit)| *bit);
            Some(Value::Int(bits))
        }
        Attribute::ResponseGrpcStatus => int(u64::from(entry.grpc_status?)),
        Attribute::ResponseSize => int(entry.bytes_sent),
        Attribute::ResponseBackendLatency => entry.upstream_time.map(Value::Duration),
        Attribute::ConnectionMtls => Some(Value::Bool(caller.is_some())),
        Attribute::ConnectionRequestedServerName => text(entry.sni.as_deref().filter(|_| is_inbound)),
        Attribute::ConnectionTlsVersion => text(entry.tls_version.filter(|_| is_inbound)),
        Attribute::ConnectionUriSanPeerCertificate => text(caller),
        Attribute::SourceAddress => address(Some(entry.source_address)),
        Attribute::SourcePort => int(u64::from(entry.source_address.port())),
        Attribute::DestinationAddress => address(Some(entry.destination_address)),
        Attribute::DestinationPort => int(u64::from(entry.destination_address.port())),
        Attribute::UpstreamAddress => address(entry.upstream_address),
        Attribute::UpstreamPort => int(u64::from(entry.upstream_address?.port())),
        Attribute::UpstreamUriSanPeerCertificate => {
            text(entry.destination_principal.as_deref().filter(|_| !is_inbound))
        }
        Attribute::XdsClusterName => owned(istio::cluster(entry)),
        Attribute::XdsRouteName => text(istio::route(entry).filter(|_| request.is_some())),
    }
}

/// The value of a header that was noted.
pub(super) fn header<'e>(entry: &'e Entry, name: &HeaderName) -> Option<&'e str> {
    named(entry, name.as_str())
}

pub(super) fn named<'e>(entry: &'e Entry, name: &str) -> Option<&'e str> {
    let noted = entry.request.as_ref()?.noted.as_ref()?;
    noted.0.iter().find(|(noted, _)| noted == name).map(|(_, value)| value.as_str())
}

fn text(value: Option<&str>) -> Option<Value<'_>> {
    value.map(|value| Value::Text(Cow::Borrowed(value)))
}

fn owned(value: Option<String>) -> Option<Value<'static>> {
    value.map(|value| Value::Text(Cow::Owned(value)))
}

fn address(value: Option<SocketAddr>) -> Option<Value<'static>> {
    owned(value.map(|value| value.to_string()))
}

fn int(value: u64) -> Option<Value<'static>> {
    Some(Value::Int(i64::try_from(value).unwrap_or(i64::MAX)))
}
