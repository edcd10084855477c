//! What ServiceEntry says of the world outside: found by the address that was dialled, or by the name that a call carries.

use super::{destination::on_the_wire, index::Index};
use postern_api::v1;
use postern_config::{
    Documents,
    documents::{
        ServiceEntry,
        service_entry::{EntryEndpoint, EntryPort, EntryProtocol, Resolution},
    },
    matchers::AddressBlock,
    select::by_age,
    snapshot::Protocol,
};
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

/// All entries, oldest first, so that each question is one look-up.
#[derive(Debug, Default)]
pub(super) struct Entries {
    entries: Vec<ServiceEntry>,
    /// By host as written (`*.example.com` is one) and port; only ports whose calls carry a name.
    by_name: HashMap<(String, u16), Vec<usize>>,
    /// By single address that callers may dial.
    by_address: HashMap<IpAddr, Vec<usize>>,
    /// Ranges that callers may dial.
    ranges: Vec<(AddressBlock, usize)>,
    /// By port that some entry is found by name on.
    named_ports: HashMap<u16, Vec<usize>>,
}

impl Entries {
    pub(super) fn of(documents: &Documents) -> Self {
        let mut entries: Vec<ServiceEntry> =
            documents.service_entries.iter().map(|located| located.value.clone()).collect();
        entries.sort_by(|a, b| by_age(&a.metadata, &b.metadata));
        let mut all = Self::default();
        for (number, entry) in entries.iter().enumerate() {
            for port in entry.ports.iter().filter(|port| port.protocol.is_named()) {
                all.named_ports.entry(port.number).or_default().push(number);
                for host in &entry.hosts {
                    all.by_name.entry((host.clone(), port.number)).or_default().push(number);
                }
            }
            for block in &entry.addresses {
                match block.single() {
                    Some(address) => all.by_address.entry(address).or_default().push(number),
                    None => all.ranges.push((*block, number)),
                }
            }
            if entry.addresses.is_empty() && entry.resolution == Resolution::Static {
                for address in entry.endpoints.iter().filter_map(|endpoint| endpoint.address.parse().ok()) {
                    all.by_address.entry(address).or_default().push(number);
                }
            }
        }
        all.entries = entries;
        all
    }

    /// Whether anything that `namespace` sees is found by name on this port.
    pub(super) fn are_named(&self, port: u16, namespace: &str) -> bool {
        let numbers = self.named_ports.get(&port).map_or(&[][..], Vec::as_slice);
        self.visible(numbers, namespace).next().is_some()
    }

    /// The entry with this name: written out, or with the longest wildcard; an address as a Host is one that the entry has.
    /// The caller's own namespace comes first.
    fn named(&self, name: &str, port: u16, namespace: &str) -> Option<(&ServiceEntry, &EntryPort, &str)> {
        if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            let is_named = |port: &EntryPort| port.protocol.is_named();
            let (entry, port) = self.dialled(address.to_canonical(), port, namespace, is_named)?;
            return Some((entry, port, entry.hosts.first()?));
        }
        if let Some(found) = self.by_host(name.to_owned(), port, namespace) {
            return Some(found);
        }
        let dots = name.match_indices('.').filter_map(|(at, _)| name.get(at..));
        dots.take(MOST_LABELS).find_map(|suffix| self.by_host(format!("*{suffix}"), port, namespace))
    }

    fn by_host(&self, host: String, port: u16, namespace: &str) -> Option<(&ServiceEntry, &EntryPort, &str)> {
        let numbers = self.by_name.get(&(host.clone(), port))?;
        let entry = self.nearest(numbers, namespace)?;
        let port = entry.ports.iter().find(|candidate| candidate.number == port)?;
        Some((entry, port, entry.hosts.iter().find(|candidate| **candidate == host)?))
    }

    /// The entry whose address was dialled: a single address before a range.
    fn dialled(
        &self,
        address: IpAddr,
        port: u16,
        namespace: &str,
        wanted: impl Fn(&EntryPort) -> bool,
    ) -> Option<(&ServiceEntry, &EntryPort)> {
        let of = |entry: &&ServiceEntry| {
            entry.ports.iter().any(|candidate| candidate.number == port && wanted(candidate))
        };
        let single = self.by_address.get(&address).map_or(&[][..], Vec::as_slice);
        let within: Vec<usize> = self
            .ranges
            .iter()
            .filter(|(block, _)| block.contains(address))
            .map(|(_, number)| *number)
            .collect();
        let entry = [single, &within].into_iter().find_map(|numbers| {
            let own = self.visible(numbers, namespace).filter(of).find(|e| e.metadata.namespace == namespace);
            own.or_else(|| self.visible(numbers, namespace).find(of))
        })?;
        Some((entry, entry.ports.iter().find(|candidate| candidate.number == port)?))
    }

    fn nearest(&self, numbers: &[usize], namespace: &str) -> Option<&ServiceEntry> {
        let own = self.visible(numbers, namespace).find(|entry| entry.metadata.namespace == namespace);
        own.or_else(|| self.visible(numbers, namespace).next())
    }

    fn visible<'s, 'n>(
        &'s self,
        numbers: &'n [usize],
        namespace: &'n str,
    ) -> impl Iterator<Item = &'s ServiceEntry> + use<'s, 'n> {
        let entries = numbers.iter().filter_map(|number| self.entries.get(*number));
        entries.filter(move |entry| entry.is_visible_in(namespace))
    }
}

/// A name has at most as many labels (RFC 1035 section 2.3.4: 255 octets).
const MOST_LABELS: usize = 127;

impl Index {
    /// Where a call to an address leads that an entry lists for bytes without a name.
    pub(super) fn entry_by_address(&self, ip: IpAddr, port: u16, namespace: &str) -> Option<v1::Service> {
        let is_nameless = |port: &EntryPort| !port.protocol.is_named();
        let (entry, port) = self.entries.dialled(ip, port, namespace, is_nameless)?;
        Some(self.entry(entry, port, entry.hosts.first()?, namespace))
    }

    /// Where a call leads that carries a name.
    pub(super) fn entry_by_name(&self, name: &str, port: u16, namespace: &str) -> Option<v1::Service> {
        let (entry, port, host) = self.entries.named(name, port, namespace)?;
        Some(self.entry(entry, port, host, namespace))
    }

    fn entry(&self, entry: &ServiceEntry, port: &EntryPort, host: &str, namespace: &str) -> v1::Service {
        let mut service = v1::Service {
            namespace: entry.metadata.namespace.clone(),
            name: entry.metadata.name.clone(),
            host: host.to_owned(),
            port: u32::from(port.number),
            protocol: on_the_wire(match port.protocol {
                EntryProtocol::Http => Protocol::Http,
                EntryProtocol::Http2 => Protocol::Http2,
                EntryProtocol::Tls | EntryProtocol::Tcp => Protocol::Tcp,
            }),
            ..v1::Service::default()
        };
        let mut look_up = |name: &str, port: u16| {
            service.lookups.push(v1::Lookup { name: name.to_owned(), port: u32::from(port) });
        };
        match entry.resolution {
            Resolution::None if entry.addresses.is_empty() => {
                service.original_within = vec!["0.0.0.0/0".into(), "::/0".into()];
            }
            Resolution::None => {
                service.original_within = entry.addresses.iter().map(ToString::to_string).collect();
            }
            Resolution::Dns if entry.endpoints.is_empty() => look_up(host, port.target),
            Resolution::Dns | Resolution::Static => {
                for endpoint in &entry.endpoints {
                    match endpoint.address.parse() {
                        Ok(ip) => service.endpoints.extend(self.entry_endpoint(ip, endpoint, port)),
                        Err(_) => look_up(&endpoint.address, endpoint.port(port)),
                    }
                }
            }
        }
        self.rules.apply(&mut service, namespace);
        service
    }

    /// An address that a pod of the mesh has is called as that pod is, with its identity: never plain because an entry lists it.
    fn entry_endpoint(&self, ip: IpAddr, endpoint: &EntryEndpoint, port: &EntryPort) -> Option<v1::Endpoint> {
        let dial = endpoint.port(port);
        match self.workload(ip.to_canonical(), dial) {
            Some(v1::destination::Kind::Workload(workload)) => Some(workload),
            Some(_) => None,
            None => Some(v1::Endpoint {
                workload: String::new(),
                dial: SocketAddr::new(ip, dial).to_string(),
                port: u32::from(dial),
                identity: String::new(),
                protocol: on_the_wire(Protocol::Auto),
            }),
        }
    }
}
