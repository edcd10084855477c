//! `ServiceEntry` (networking.istio.io/v1, v1beta1, v1alpha3): what stands outside the mesh, and by which names it is called.
use super::Metadata;
use crate::matchers::AddressBlock;
use std::{collections::BTreeMap, net::IpAddr};

/// `ServiceEntry`.
#[derive(Clone, Debug, Default)]
pub struct ServiceEntry {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.hosts`, lower case: names, or `*.` and a name.
    pub hosts: Vec<String>,
    /// `spec.addresses`: addresses and CIDR ranges that callers dial.
    pub addresses: Vec<AddressBlock>,
    /// `spec.ports`.
    pub ports: Vec<EntryPort>,
    /// `spec.location` is `MESH_INTERNAL`.
    pub is_internal: bool,
    /// `spec.resolution`.
    pub resolution: Resolution,
    /// `spec.endpoints`; the hosts themselves when empty and the resolution is DNS.
    pub endpoints: Vec<EntryEndpoint>,
    /// `spec.exportTo`; empty is every namespace.
    pub export_to: Vec<String>,
}

/// `spec.ports[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryPort {
    /// `number`: what callers dial.
    pub number: u16,
    /// `name`.
    pub name: String,
    /// `protocol`, or what the name says.
    pub protocol: EntryProtocol,
    /// `targetPort`; the number when unset.
    pub target: u16,
}

/// `spec.ports[].protocol`: by what a call is recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryProtocol {
    /// `HTTP`: by its Host.
    Http,
    /// `HTTP2`, `GRPC`, `GRPC-WEB`: by its authority.
    Http2,
    /// `HTTPS`, `TLS`: by the server name of the handshake, which is passed through.
    Tls,
    /// `TCP`, `MONGO`, `REDIS`, `MYSQL`: by the address alone.
    #[default]
    Tcp,
}

impl EntryProtocol {
    /// From `protocol`, else from the first word of the port's name (reference 1.4); `TCP` when neither says.
    pub fn declared(protocol: Option<&str>, name: &str) -> Self {
        let name = name.to_ascii_uppercase();
        let word = match protocol.filter(|word| !word.is_empty()) {
            Some(word) => word,
            None if name.starts_with("GRPC-WEB") => "GRPC-WEB",
            None => name.split('-').next().unwrap_or_default(),
        };
        match word {
            "HTTP" | "HTTP_PROXY" | "GRPC-WEB" => Self::Http,
            "HTTP2" | "GRPC" => Self::Http2,
            "HTTPS" | "TLS" => Self::Tls,
            _ => Self::Tcp,
        }
    }

    /// Whether a call carries a name that tells which entry it is for.
    pub fn is_named(self) -> bool {
        self != Self::Tcp
    }
}

/// `spec.resolution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resolution {
    /// `NONE`: to the address that the caller dialled.
    #[default]
    None,
    /// `STATIC`: to the endpoints.
    Static,
    /// `DNS`, `DNS_ROUND_ROBIN`: to what the names of the endpoints, or the hosts, resolve to.
    Dns,
}

/// `spec.endpoints[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryEndpoint {
    /// `address`: an IP address, or with DNS a name.
    pub address: String,
    /// `ports`: by the name of the entry's port.
    pub ports: BTreeMap<String, u16>,
}

impl EntryEndpoint {
    /// The port to dial for a port of the entry.
    pub fn port(&self, port: &EntryPort) -> u16 {
        self.ports.get(&port.name).copied().unwrap_or(port.target)
    }
}

impl ServiceEntry {
    /// Whether workloads of `namespace` see it.
    pub fn is_visible_in(&self, namespace: &str) -> bool {
        exported(&self.export_to, &self.metadata.namespace, namespace)
    }

    /// Whether callers may dial `address` for it: one of its addresses, or without any the address of a static endpoint.
    pub fn has_address(&self, address: IpAddr) -> bool {
        if self.addresses.is_empty() {
            return self.resolution == Resolution::Static
                && self.endpoints.iter().any(|endpoint| endpoint.address.parse() == Ok(address));
        }
        self.addresses.iter().any(|block| block.contains(address))
    }
}

/// Whether `exportTo` of a document in `own` lets `namespace` see it: everybody when it is empty.
pub fn exported(export_to: &[String], own: &str, namespace: &str) -> bool {
    export_to.is_empty()
        || export_to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => own == namespace,
            other => other == namespace,
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn a_protocol_is_said_by_its_field_or_by_the_name_of_the_port() {
        for (protocol, name, expected) in [
            (Some("HTTP"), "tcp", EntryProtocol::Http),
            (Some("GRPC"), "x", EntryProtocol::Http2),
            (Some("HTTPS"), "http", EntryProtocol::Tls),
            (Some("MONGO"), "http", EntryProtocol::Tcp),
            (None, "https-api", EntryProtocol::Tls),
            (Some(""), "grpc-web-x", EntryProtocol::Http),
            (None, "http2", EntryProtocol::Http2),
            (None, "database", EntryProtocol::Tcp),
        ] {
            assert_eq!(EntryProtocol::declared(protocol, name), expected, "{protocol:?} {name}");
        }
    }

    #[test]
    fn exporting_to_nobody_in_particular_is_exporting_to_all() {
        let to = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect::<Vec<_>>();
        for (export, shop, bank) in [
            (to(&[]), true, true),
            (to(&["*"]), true, true),
            (to(&["."]), true, false),
            (to(&["bank"]), false, true),
        ] {
            assert_eq!(exported(&export, "shop", "shop"), shop, "{export:?}");
            assert_eq!(exported(&export, "shop", "bank"), bank, "{export:?}");
        }
    }
}
