//! What the documents mean on this machine: pods, services, addresses; and what changed between two plans. Pure.
use crate::{failure::Failure, interception::services::VirtualAddress};
use ipnet::IpNet;
use postern_config::documents::{
    Documents, Located, Metadata,
    kubernetes::{self, Container, TargetPort},
};
use postern_proxy::bootstrap::{InterceptionMode, app_metrics::AppMetrics};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// The hub's own addresses: bridge, control plane, collector.
pub const HUB_V4: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// The hub's IPv6 address.
pub const HUB_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, 1);
/// Pods and services that one machine may have.
const MOST: u16 = 60_000;

/// A namespaced name; sorts by namespace, then name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name in it.
    pub name: String,
}

impl Key {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One pod to run. Two equal pods need no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Who.
    pub key: Key,
    /// The deployment it is a replica of.
    pub deployment: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// Whether it gets a sidecar.
    pub injected: bool,
    /// Its number, stable while it exists; addresses come from it.
    pub number: u16,
    /// What runs in it.
    pub containers: Vec<Container>,
    /// How its inbound connections are taken: `sidecar.istio.io/interceptionMode`.
    pub interception: InterceptionMode,
    /// What its redirect rules leave alone.
    pub exclusions: Exclusions,
    /// Its app's own page for Prometheus, on an address of the app: `prometheus.io/…`.
    pub app_metrics: Option<AppMetrics>,
}

impl Pod {
    /// Its addresses with namespaces.
    pub fn addresses(&self) -> (Ipv4Addr, Ipv6Addr) {
        let [high, low] = self.number.to_be_bytes();
        (Ipv4Addr::new(10, 244, high, low), Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, self.number))
    }

    /// Ports that its containers declare.
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> =
            self.containers.iter().flat_map(|c| c.ports.iter().map(|p| p.port)).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

/// `traffic.sidecar.istio.io/…` annotations of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exclusions {
    /// `excludeInboundPorts`
    pub inbound_ports: Vec<u16>,
    /// `excludeOutboundPorts`
    pub outbound_ports: Vec<u16>,
    /// `excludeOutboundIPRanges`
    pub outbound_ranges: Vec<IpNet>,
}

/// One service with its addresses and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which.
    pub key: Key,
    /// Virtual addresses; empty when headless.
    pub addresses: Vec<IpAddr>,
    /// Its number, stable while it exists.
    pub number: u16,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// What callers dial.
    pub port: u16,
    /// UDP instead of TCP.
    pub udp: bool,
    /// Pods behind it, with the port that they listen on.
    pub endpoints: Vec<(Key, u16)>,
}

/// A whole mesh, before any address family or mode is chosen.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods by name.
    pub pods: BTreeMap<Key, Pod>,
    /// Services by name.
    pub services: BTreeMap<Key, Service>,
    /// The documents with one `Pod` for each replica.
    pub documents: Documents,
}

/// What must happen to get from one plan to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pods that go.
    pub removed: Vec<Key>,
    /// Pods that come.
    pub added: Vec<Key>,
    /// Pods that must be started anew.
    pub changed: Vec<Key>,
    /// Names or addresses of services, or their endpoints, differ.
    pub services: bool,
}

impl Plan {
    /// Makes the plan. Pods and services that `previous` knows keep their addresses.
    ///
    /// # Errors
    /// An annotation is no interception mode, or no list of ports or ranges, two services claim one address, or there are too many of them.
    pub fn make(documents: &Documents, previous: &Plan) -> Result<Self, Failure> {
        let replicas = replicas(documents);
        let keys: BTreeSet<Key> = replicas.iter().map(|(pod, _)| key_of(&pod.value.metadata)).collect();
        // 0 is the network and 1 is the hub.
        let numbers = assign(&keys, |k| previous.pods.get(k).map(|p| p.number), 2, |n| n & 0xff == 0xff)?;
        let mut pods = BTreeMap::new();
        for (located, deployment) in &replicas {
            let pod = &located.value;
            let key = key_of(&pod.metadata);
            let namespace =
                documents.namespaces.iter().map(|n| &n.value).find(|n| n.metadata.name == key.namespace);
            let Some(number) = numbers.get(&key).copied() else { continue };
            let service_account = match pod.spec.service_account.as_str() {
                "" => "default".to_owned(),
                named => named.to_owned(),
            };
            pods.insert(
                key.clone(),
                Pod {
                    deployment: deployment.clone(),
                    service_account,
                    injected: kubernetes::injected(namespace, pod),
                    number,
                    containers: pod.spec.containers.clone(),
                    interception: interception(&pod.metadata)?,
                    exclusions: exclusions(&pod.metadata)?,
                    app_metrics: app_metrics(&pod.metadata)?,
                    key,
                },
            );
        }
        let services = services(documents, &replicas, previous)?;
        let mut documents = documents.clone();
        documents.pods = replicas.into_iter().map(|(pod, _)| pod).collect();
        documents.deployments.clear();
        Ok(Self { pods, services, documents })
    }

    /// What differs in `next`.
    pub fn difference(&self, next: &Plan) -> Difference {
        let gone = |k: &&Key| !next.pods.contains_key(*k);
        Difference {
            removed: self.pods.keys().filter(gone).cloned().collect(),
            added: next.pods.keys().filter(|k| !self.pods.contains_key(*k)).cloned().collect(),
            changed: next
                .pods
                .iter()
                .filter(|(k, pod)| self.pods.get(*k).is_some_and(|old| old != *pod))
                .map(|(k, _)| k.clone())
                .collect(),
            services: self.services != next.services || !self.pods.keys().eq(next.pods.keys()),
        }
    }

    /// The documents as the control plane wants them: each pod with the addresses that `locate` gives it, each service
    /// with its virtual ones.
    pub fn published(&self, locate: impl Fn(&Pod) -> (Vec<IpAddr>, BTreeMap<String, String>)) -> Documents {
        let mut documents = self.documents.clone();
        for located in &mut documents.pods {
            if let Some(pod) = self.pods.get(&key_of(&located.value.metadata)) {
                let (addresses, annotations) = locate(pod);
                located.value.pod_ips = addresses;
                located.value.metadata.annotations.extend(annotations);
            }
        }
        for located in &mut documents.services {
            if let Some(service) = self.services.get(&key_of(&located.value.metadata)) {
                located.value.cluster_ips.clone_from(&service.addresses);
            }
        }
        documents
    }

    /// Every service address and port with the pods behind it. `tcp` tells whether TCP is wanted too, or only UDP
    /// (where a sidecar answers for TCP).
    pub fn virtual_addresses(&self, tcp: bool) -> Vec<VirtualAddress> {
        let mut all = Vec::new();
        for service in self.services.values() {
            for port in service.ports.iter().filter(|p| tcp || p.udp) {
                let mut endpoints = Vec::new();
                for (key, target) in &port.endpoints {
                    if let Some(pod) = self.pods.get(key) {
                        let (v4, v6) = pod.addresses();
                        endpoints.push(SocketAddr::new(v4.into(), *target));
                        endpoints.push(SocketAddr::new(v6.into(), *target));
                    }
                }
                for address in &service.addresses {
                    all.push(VirtualAddress {
                        address: SocketAddr::new(*address, port.port),
                        udp: port.udp,
                        endpoints: endpoints.clone(),
                    });
                }
            }
        }
        all
    }

    /// The one pod that a person means: `namespace/pod`, the pod's name, its deployment, or the unique beginning of a name.
    ///
    /// # Errors
    /// None or several fit.
    pub fn pod(&self, said: &str) -> Result<&Pod, Failure> {
        let all = || self.pods.values();
        let exact = |p: &&Pod| p.key.name == said || p.key.to_string() == said;
        let deployed = |p: &&Pod| {
            p.deployment.as_ref().is_some_and(|d| d == said || format!("{}/{d}", p.key.namespace) == said)
        };
        let begins = |p: &&Pod| p.key.name.starts_with(said) || p.key.to_string().starts_with(said);
        let exact: Vec<&Pod> = all().filter(exact).collect();
        // Any replica of a deployment will do, so the first is taken; but not of two deployments of one name.
        let deployed: Vec<&Pod> = all().filter(deployed).collect();
        let namespaces: BTreeSet<&str> = deployed.iter().map(|p| p.key.namespace.as_str()).collect();
        let begins: Vec<&Pod> = all().filter(begins).collect();
        match (exact.as_slice(), deployed.as_slice(), begins.as_slice()) {
            ([one], _, _) => Ok(one),
            ([], [first, ..], _) if namespaces.len() == 1 => Ok(first),
            ([], [], [one]) => Ok(one),
            ([], [], []) => Err(Failure::new(
                format!("there is no pod `{said}` in this mesh."),
                format!("Name one of: {}.", names(self.pods.values())),
            )),
            ([], [], many) | ([], many, _) | (many, _, _) => Err(Failure::new(
                format!("`{said}` may mean several pods."),
                format!("Name one of: {}.", names(many.iter().copied())),
            )),
        }
    }
}

fn names<'a>(pods: impl Iterator<Item = &'a Pod>) -> String {
    pods.take(20).map(|p| p.key.to_string()).collect::<Vec<_>>().join(", ")
}

fn key_of(metadata: &Metadata) -> Key {
    Key::new(&metadata.namespace, &metadata.name)
}

/// Every pod that shall run, with the deployment it comes from: the pods as written, and `name-0`, `name-1`, … of each deployment.
fn replicas(documents: &Documents) -> Vec<(Located<kubernetes::Pod>, Option<String>)> {
    let mut all: Vec<_> = documents.pods.iter().map(|p| (p.clone(), None)).collect();
    for located in &documents.deployments {
        let deployment = &located.value;
        for n in 0..deployment.replicas {
            let mut pod = deployment.template.clone();
            pod.metadata.name = format!("{}-{n}", deployment.metadata.name);
            pod.metadata.namespace.clone_from(&deployment.metadata.namespace);
            let pod = Located { origin: located.origin.clone(), value: pod };
            all.push((pod, Some(deployment.metadata.name.clone())));
        }
    }
    all
}

fn services(
    documents: &Documents,
    replicas: &[(Located<kubernetes::Pod>, Option<String>)],
    previous: &Plan,
) -> Result<BTreeMap<Key, Service>, Failure> {
    let keys: BTreeSet<Key> = documents.services.iter().map(|s| key_of(&s.value.metadata)).collect();
    let mut claimed: BTreeMap<IpAddr, Key> = BTreeMap::new();
    for service in documents.services.iter().map(|s| &s.value) {
        for address in &service.cluster_ips {
            if let Some(other) = claimed.insert(*address, key_of(&service.metadata)) {
                return Err(Failure::new(
                    format!(
                        "services {other} and {} both claim the address {address}.",
                        key_of(&service.metadata)
                    ),
                    "Give one of them another clusterIP, or leave it out.",
                ));
            }
        }
    }
    let taken = |n: u16| virtual_pair(n).iter().any(|a| claimed.contains_key(a));
    let numbers = assign(&keys, |k| previous.services.get(k).map(|s| s.number), 1, taken)?;
    let mut all = BTreeMap::new();
    for service in documents.services.iter().map(|s| &s.value) {
        let key = key_of(&service.metadata);
        let Some(number) = numbers.get(&key).copied() else { continue };
        let addresses = if service.headless {
            Vec::new()
        } else if service.cluster_ips.is_empty() {
            virtual_pair(number).to_vec()
        } else {
            service.cluster_ips.clone()
        };
        let behind: Vec<&kubernetes::Pod> = replicas
            .iter()
            .map(|(pod, _)| &pod.value)
            .filter(|p| {
                p.metadata.namespace == key.namespace && selects(&service.selector, &p.metadata.labels)
            })
            .collect();
        let ports = service
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.port,
                udp: port.udp,
                endpoints: behind
                    .iter()
                    .filter_map(|p| Some((key_of(&p.metadata), target_port(port, p)?)))
                    .collect(),
            })
            .collect();
        all.insert(key.clone(), Service { key, addresses, number, ports });
    }
    Ok(all)
}

fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty() && selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn target_port(port: &kubernetes::ServicePort, pod: &kubernetes::Pod) -> Option<u16> {
    match &port.target {
        TargetPort::Number(0) => Some(port.port),
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => {
            pod.spec.containers.iter().flat_map(|c| &c.ports).find(|p| &p.name == name).map(|p| p.port)
        }
    }
}

fn virtual_pair(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    [
        IpAddr::V4(Ipv4Addr::new(10, 96, high, low)),
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number)),
    ]
}

/// Gives every key a number of its own, from `first` on in sorted order: the one it had, else the lowest free one.
fn assign(
    keys: &BTreeSet<Key>,
    had: impl Fn(&Key) -> Option<u16>,
    first: u16,
    skip: impl Fn(u16) -> bool,
) -> Result<BTreeMap<Key, u16>, Failure> {
    let mut numbers: BTreeMap<Key, u16> =
        keys.iter().filter_map(|k| Some((k.clone(), had(k).filter(|n| !skip(*n))?))).collect();
    let used: BTreeSet<u16> = numbers.values().copied().collect();
    let mut free = (first..=MOST).filter(|n| !used.contains(n) && !skip(*n));
    for key in keys {
        if !numbers.contains_key(key) {
            let number = free.next().ok_or_else(|| {
                Failure::new(
                    format!("there are more than {MOST} pods or services."),
                    "Split them into several folders.",
                )
            })?;
            numbers.insert(key.clone(), number);
        }
    }
    Ok(numbers)
}

fn interception(metadata: &Metadata) -> Result<InterceptionMode, Failure> {
    const ANNOTATION: &str = "sidecar.istio.io/interceptionMode";
    match metadata.annotations.get(ANNOTATION).map(String::as_str) {
        None | Some("REDIRECT") => Ok(InterceptionMode::Redirect),
        Some("TPROXY") => Ok(InterceptionMode::Tproxy),
        // NONE among them: a sidecar that nothing leads to would leave its pod open.
        Some(other) => Err(Failure::new(
            format!("the annotation {ANNOTATION} of {} is `{other}`.", key_of(metadata)),
            "Write REDIRECT or TPROXY.",
        )),
    }
}

/// What `prometheus.io/scrape`, `prometheus.io/port` and `prometheus.io/path` name, but for ports of the sidecar, which merges already.
fn app_metrics(metadata: &Metadata) -> Result<Option<AppMetrics>, Failure> {
    let of = |name: &str| metadata.annotations.get(name).map(String::as_str).unwrap_or_default();
    let named = AppMetrics::of_annotations(
        of("prometheus.io/scrape"),
        of("prometheus.io/port"),
        of("prometheus.io/path"),
    );
    let named = named.map_err(|cause| {
        Failure::new(
            format!("an annotation of {} cannot be used: {cause}.", key_of(metadata)),
            "Write the port and the path of the app's own metrics.",
        )
    })?;
    Ok(named.filter(|page| !(15000..=15099).contains(&page.address.port())))
}

fn exclusions(metadata: &Metadata) -> Result<Exclusions, Failure> {
    Ok(Exclusions {
        inbound_ports: list(
            metadata,
            "traffic.sidecar.istio.io/excludeInboundPorts",
            "ports, such as `22,9100`",
        )?,
        outbound_ports: list(
            metadata,
            "traffic.sidecar.istio.io/excludeOutboundPorts",
            "ports, such as `3306`",
        )?,
        outbound_ranges: list(
            metadata,
            "traffic.sidecar.istio.io/excludeOutboundIPRanges",
            "address ranges, such as `10.0.0.0/8`",
        )?,
    })
}

fn list<T: std::str::FromStr>(metadata: &Metadata, annotation: &str, form: &str) -> Result<Vec<T>, Failure> {
    let Some(text) = metadata.annotations.get(annotation) else { return Ok(Vec::new()) };
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse().map_err(|_| {
                Failure::new(
                    format!(
                        "the annotation {annotation} of {} has `{part}`, which it cannot.",
                        key_of(metadata)
                    ),
                    format!("Write a comma separated list of {form}."),
                )
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
