//! Where a call to one address goes: a service, one workload, or outside the mesh.

use super::index::{Backed, Expected, Index, Member, declared, version};
use postern_api::v1;
use postern_config::{
    documents::{kubernetes::ServicePort, peer_authentication::MtlsMode, service_host},
    select,
    snapshot::Protocol,
};
use prost::Message;
use std::net::{IpAddr, SocketAddr};

/// An answer with the version of its content.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Hash of the content: equal content has an equal version.
    pub version: String,
    /// The answer as the wire carries it.
    pub destination: v1::Destination,
}

/// Must not be called.
const BLOCKED: v1::destination::Kind =
    v1::destination::Kind::Outside(v1::Outside { blocked: true, by_name: false, in_mesh: true });

/// What a sidecar asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The original destination of a connection.
    Address(SocketAddr),
    /// Whom a call to an address outside the mesh is for: a name in lower case (or an address, as a Host may be) and a port.
    Name(String, u16),
}

impl Asked {
    /// Reads `ip:port`, `[ip6]:port` or `//host:port`; `None` when it is none of them.
    pub fn parse(text: &str) -> Option<Self> {
        let Some(authority) = text.strip_prefix("//") else { return text.parse().ok().map(Self::Address) };
        let (name, port) = authority.rsplit_once(':')?;
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase();
        let is_name = !name.is_empty() && name.len() <= 253 && name.bytes().all(is_plain);
        is_name.then_some(Self::Name(name.to_owned(), port.parse().ok()?))
    }
}

impl Index {
    /// Where a call from `namespace` goes. `address` is the subscriber's spelling of what it asked, which the answer repeats.
    pub fn destination(&self, address: &str, asked: &Asked, namespace: &str) -> Resolved {
        let kind = match asked {
            Asked::Address(original) => {
                let (ip, port) = (original.ip().to_canonical(), original.port());
                self.service(ip, port, namespace)
                    .map(v1::destination::Kind::Service)
                    .or_else(|| {
                        let kind = self.workload(ip, port)?;
                        Some(self.of_a_headless_service(&kind, ip, port, namespace).unwrap_or(kind))
                    })
                    .or_else(|| {
                        self.entry_by_address(ip, port, namespace).map(v1::destination::Kind::Service)
                    })
                    .unwrap_or_else(|| self.outside(self.entries.are_named(port, namespace)))
            }
            Asked::Name(name, port) => self
                .entry_by_name(name, *port, namespace)
                .map_or_else(|| self.outside(false), v1::destination::Kind::Service),
        };
        let destination = v1::Destination { address: address.to_owned(), kind: Some(kind) };
        Resolved { version: version(&destination.encode_to_vec()), destination }
    }

    fn outside(&self, by_name: bool) -> v1::destination::Kind {
        let blocked = self.documents.mesh.outbound_registry_only;
        v1::destination::Kind::Outside(v1::Outside { blocked, by_name, in_mesh: false })
    }

    fn service(&self, ip: IpAddr, port: u16, namespace: &str) -> Option<v1::Service> {
        let backed = self.services.get(*self.services_by_address.get(&ip)?)?;
        let declaration =
            backed.service.ports.iter().find(|declared| declared.port == port && !declared.udp)?;
        let metadata = &backed.service.metadata;
        let mut service = v1::Service {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            host: service_host(&metadata.name, &metadata.namespace),
            port: u32::from(port),
            protocol: on_the_wire(declared(declaration)),
            endpoints: self.endpoints(backed, declaration, ip),
            ..v1::Service::default()
        };
        self.rules.apply(&mut service, namespace);
        Some(service)
    }

    /// The endpoints of a service port for callers that used the service address `ip`: pods of the same address family,
    /// or with a listener of their own.
    fn endpoints(&self, backed: &Backed, port: &ServicePort, ip: IpAddr) -> Vec<v1::Endpoint> {
        let members = backed.members.iter().filter_map(|number| self.members.get(*number));
        members
            .filter_map(|member| {
                let target = member.target(port)?;
                let same_family =
                    member.workload.addresses.iter().find(|address| address.is_ipv4() == ip.is_ipv4());
                let any = member.workload.addresses.first();
                let address = match member.listeners.contains_key(&target) {
                    true => same_family.or(any)?,
                    false => same_family?,
                };
                self.endpoint(member, *address, target, declared(port))
            })
            .collect()
    }

    /// The workload that has this address. When several share it (host addresses), the one that declares the port; when
    /// that is not exactly one, nobody: a guess could name the wrong identity, and plain could reach the right one.
    pub(super) fn workload(&self, ip: IpAddr, port: u16) -> Option<v1::destination::Kind> {
        let sharing = self.members_by_address.get(&ip)?;
        let mut members: Vec<&Member> =
            sharing.iter().filter_map(|number| self.members.get(*number)).collect();
        if members.len() > 1 {
            members.retain(|member| member.declares(port));
        }
        let [member] = members.as_slice() else {
            let in_mesh = |number: &usize| {
                self.members.get(*number).is_some_and(|member| !matches!(member.identity, Expected::Nobody))
            };
            return sharing.iter().any(in_mesh).then_some(BLOCKED);
        };
        let protocol = member.ports.iter().find(|declared| declared.port == port).map(|known| known.protocol);
        match self.endpoint(member, ip, port, protocol.unwrap_or_default()) {
            Some(endpoint) => Some(v1::destination::Kind::Workload(endpoint)),
            // It is ours but must not be called: going there as if it were outside would be open.
            None => Some(BLOCKED),
        }
    }

    /// A pod that is called by its own address, where a headless service selects it and declares the port: that is how such a service is
    /// called, so its rule holds. Each pod has limits and a name of its own, which is its DNS name in a StatefulSet.
    fn of_a_headless_service(
        &self,
        kind: &v1::destination::Kind,
        ip: IpAddr,
        port: u16,
        namespace: &str,
    ) -> Option<v1::destination::Kind> {
        let v1::destination::Kind::Workload(endpoint) = kind else { return None };
        let (pod, number, member) = self.members_by_address.get(&ip)?.iter().find_map(|number| {
            let member = self.members.get(*number)?;
            let (own, pod) = endpoint.workload.split_once('/')?;
            (member.workload.namespace == own && member.workload.name == pod).then_some((pod, number, member))
        })?;
        let headless = self.headless_by_member.get(number)?;
        let (service, declared) = headless.iter().find_map(|number| {
            let service = &self.services.get(*number)?.service;
            let leads_here = |declared: &&ServicePort| !declared.udp && member.target(declared) == Some(port);
            Some((service, service.ports.iter().find(leads_here)?))
        })?;
        let metadata = &service.metadata;
        let host = service_host(&metadata.name, &metadata.namespace);
        let mut service = v1::Service {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            host: host.clone(),
            port: u32::from(declared.port),
            protocol: endpoint.protocol,
            endpoints: vec![endpoint.clone()],
            ..v1::Service::default()
        };
        self.rules.apply(&mut service, namespace);
        service.host = format!("{pod}.{host}");
        Some(v1::destination::Kind::Service(service))
    }

    /// One endpoint. Mutual TLS exactly when a sidecar stands there and the port's effective mode is not DISABLE
    /// (reference 4.13, without its service-wide step 2).
    fn endpoint(&self, member: &Member, ip: IpAddr, port: u16, protocol: Protocol) -> Option<v1::Endpoint> {
        let identity = match &member.identity {
            Expected::Nobody => String::new(),
            Expected::Unusable => return None,
            Expected::Identity(id) => {
                match select::effective_mode(
                    &self.documents,
                    &member.workload.namespace,
                    &member.workload.labels,
                    port,
                ) {
                    MtlsMode::Disable => String::new(),
                    MtlsMode::Unset | MtlsMode::Permissive | MtlsMode::Strict => id.as_str().to_owned(),
                }
            }
        };
        let dial = member.listeners.get(&port).copied().unwrap_or_else(|| SocketAddr::new(ip, port));
        Some(v1::Endpoint {
            workload: format!("{}/{}", member.workload.namespace, member.workload.name),
            dial: dial.to_string(),
            port: u32::from(port),
            identity,
            protocol: on_the_wire(protocol),
        })
    }
}

pub(super) fn on_the_wire(protocol: Protocol) -> i32 {
    i32::from(match protocol {
        Protocol::Auto => v1::Protocol::Auto,
        Protocol::Http => v1::Protocol::Http,
        Protocol::Http2 => v1::Protocol::Http2,
        Protocol::Tcp => v1::Protocol::Tcp,
    })
}
