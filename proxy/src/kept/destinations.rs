//! Where outbound addresses lead, in the words of the wire, so that they are read again like any update.

use super::Folder;
use crate::{
    control::{Destinations, destinations::Asked, translate},
    state::{Destination, Endpoint, ServiceTarget},
};
use postern_api::v1::{self, destination::Kind};
use postern_config::snapshot::Protocol;
use prost::Message as _;

pub(super) const FILE: &str = "destinations.bin";

/// All that is known, one after the other.
pub(super) fn encode(destinations: &Destinations) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (address, destination) in destinations.list() {
        if let Some(destination) = destination {
            // Encoding into a vector has no way to fail.
            let _ = wire(&address, &destination).encode_length_delimited(&mut bytes);
        }
    }
    bytes
}

/// The destinations of before a restart, up to the first that cannot be read.
pub(super) fn recall(folder: &Folder) -> Vec<(Asked, Destination)> {
    let Some(bytes) = folder.read(FILE) else { return Vec::new() };
    let mut rest = bytes.as_slice();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let read = v1::Destination::decode_length_delimited(&mut rest).map_err(|cause| cause.to_string());
        match read.and_then(translate::destination) {
            Ok(known) => all.push(known),
            Err(reason) => {
                folder.ignored(FILE, &reason);
                break;
            }
        }
    }
    all
}

fn wire(address: &Asked, destination: &Destination) -> v1::Destination {
    let kind = match destination {
        Destination::Service(service) => Kind::Service(v1::Service {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            host: service.host.clone(),
            port: service.port.into(),
            protocol: protocol(service.protocol),
            // What was looked up is looked up again.
            endpoints: documented(service).map(endpoint).collect(),
            lookups: service
                .lookups
                .iter()
                .map(|lookup| v1::Lookup { name: lookup.name.clone(), port: lookup.port.into() })
                .collect(),
            original_within: service.original_within.iter().map(ToString::to_string).collect(),
            // Numbers and words have no way to fail.
            traffic: serde_json::to_vec(&*service.traffic).unwrap_or_default(),
        }),
        Destination::Workload(workload) => Kind::Workload(endpoint(workload)),
        Destination::Outside { blocked, by_name, in_mesh } => {
            Kind::Outside(v1::Outside { blocked: *blocked, by_name: *by_name, in_mesh: *in_mesh })
        }
    };
    v1::Destination { address: address.to_string(), kind: Some(kind) }
}

fn documented(service: &ServiceTarget) -> impl Iterator<Item = &Endpoint> {
    service.endpoints.iter().take(service.endpoints.len().saturating_sub(service.looked_up))
}

fn endpoint(endpoint: &Endpoint) -> v1::Endpoint {
    v1::Endpoint {
        workload: endpoint.workload.clone(),
        dial: endpoint.dial.to_string(),
        port: endpoint.port.into(),
        identity: endpoint.identity.as_ref().map(ToString::to_string).unwrap_or_default(),
        protocol: protocol(endpoint.protocol),
    }
}

fn protocol(protocol: Protocol) -> i32 {
    let wire = match protocol {
        Protocol::Auto => v1::Protocol::Auto,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Http2 => v1::Protocol::Http2,
        Protocol::Tcp => v1::Protocol::Tcp,
    };
    wire.into()
}
