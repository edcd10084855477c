//! The index: all documents of one generation, arranged so that each question of a sidecar is one look-up.
//!
//! Pure and immutable. A change of the documents makes a new index; a session asks the new one again and pushes what came
//! out different, so there is no code that works out differences.

use super::{interception, outside::Entries, rules::Rules, selected::Selected};
use postern_config::{
    Documents,
    documents::{
        Pod, Service, UPGRADES, Upgrades,
        kubernetes::{ATTEST_UID, ContainerPort, ServicePort, TargetPort, attest_uid, injected},
    },
    select,
    snapshot::{DeclaredPort, InboundSpec, Protocol, Workload},
};
use postern_identity::{SpiffeId, TrustDomain};
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::OnceLock,
};

/// All documents of one generation, indexed by pod and by address.
pub struct Index {
    pub(super) documents: Documents,
    pub(super) members: Vec<Member>,
    pub(super) services: Vec<Backed>,
    members_by_name: HashMap<(String, String), usize>,
    pub(super) members_by_address: HashMap<IpAddr, Vec<usize>>,
    pub(super) services_by_address: HashMap<IpAddr, usize>,
    /// The headless services that select a pod, oldest first.
    pub(super) headless_by_member: HashMap<usize, Vec<usize>>,
    pub(super) entries: Entries,
    pub(super) rules: Rules,
    /// Pods whose processes run as a user of this machine; more than one is a refusal.
    members_by_uid: HashMap<u32, Vec<usize>>,
    warnings: Vec<String>,
    /// Made when it is first asked for.
    selected: OnceLock<Selected>,
    /// How many states of the documents there have been, this one included; 0 before it is in force.
    pub(crate) number: u64,
}

/// One pod, and what other documents say about it.
pub(super) struct Member {
    pub workload: Workload,
    /// What services declare its ports to speak, by port.
    pub ports: Vec<DeclaredPort>,
    /// Whether a sidecar stands beside it and a caller must expect an identity.
    pub identity: Expected,
    /// Listeners of a sidecar without redirect rules, by workload port.
    pub listeners: BTreeMap<u16, SocketAddr>,
    /// The user whose processes it is, by its annotation.
    pub attest_uid: Option<u32>,
    /// For what HTTP/1.1 may be left, by its annotation.
    pub upgrades: Upgrades,
    /// Ports that its containers list.
    pub container_ports: Vec<ContainerPort>,
}

/// What a caller has to expect of a workload.
pub(super) enum Expected {
    /// No sidecar: plain.
    Nobody,
    /// A sidecar with this identity.
    Identity(SpiffeId),
    /// A sidecar whose identity or listeners cannot be told: nobody may call it, since plain would be open.
    Unusable,
}

/// A service and the pods it selects.
pub(super) struct Backed {
    pub service: Service,
    /// Indices into `members`.
    pub members: Vec<usize>,
}

/// The inbound policy of one pod, as the wire carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Hash of the content: equal content has an equal version.
    pub version: String,
    /// JSON of [`postern_config::InboundSpec`].
    pub spec: Vec<u8>,
}

impl Index {
    /// Arranges `documents`. `trust_domain` is the authority's: identities are made of it, and policies see it as the
    /// mesh's own whatever the documents say (a difference is a warning).
    pub fn build(mut documents: Documents, trust_domain: &TrustDomain) -> Self {
        let mut warnings = Vec::new();
        if documents.mesh.trust_domain != trust_domain.as_str() {
            warnings.push(format!(
                "the mesh configuration says trustDomain {}, but certificates are issued for {trust_domain}, which counts: \
                 set trustDomain to {trust_domain}",
                documents.mesh.trust_domain
            ));
            documents.mesh.trust_domain = trust_domain.as_str().to_owned();
        }

        let mut members: Vec<Member> = documents
            .pods
            .iter()
            .map(|pod| member(&documents, &pod.value, trust_domain, &mut warnings))
            .collect();
        members.sort_by(|a, b| {
            (&a.workload.namespace, &a.workload.name).cmp(&(&b.workload.namespace, &b.workload.name))
        });

        let services = backed_services(&documents, &members);
        declare_ports(&services, &mut members);

        let mut members_by_name = HashMap::new();
        let mut members_by_address: HashMap<IpAddr, Vec<usize>> = HashMap::new();
        for (number, member) in members.iter().enumerate() {
            members_by_name.insert((member.workload.namespace.clone(), member.workload.name.clone()), number);
            for address in &member.workload.addresses {
                members_by_address.entry(address.to_canonical()).or_default().push(number);
            }
        }
        let mut members_by_uid: HashMap<u32, Vec<usize>> = HashMap::new();
        for (number, uid) in members.iter().enumerate().filter_map(|(n, m)| Some((n, m.attest_uid?))) {
            members_by_uid.entry(uid).or_default().push(number);
        }
        let mut services_by_address = HashMap::new();
        let mut headless_by_member: HashMap<usize, Vec<usize>> = HashMap::new();
        for (number, backed) in services.iter().enumerate() {
            for member in backed.members.iter().filter(|_| backed.service.headless) {
                headless_by_member.entry(*member).or_default().push(number);
            }
            for address in &backed.service.cluster_ips {
                services_by_address.entry(address.to_canonical()).or_insert(number);
            }
        }
        let (entries, rules) = (Entries::of(&documents), Rules::of(&documents));
        Self {
            documents,
            members,
            services,
            entries,
            rules,
            members_by_name,
            members_by_address,
            services_by_address,
            headless_by_member,
            members_by_uid,
            warnings,
            selected: OnceLock::new(),
            number: 0,
        }
    }

    /// What the documents say that cannot be honoured; sentences for the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Which sidecars each policy is for.
    pub(crate) fn selected(&self) -> &Selected {
        self.selected.get_or_init(|| Selected::of(self))
    }

    /// The services that have a pod with a sidecar behind them, as (namespace, service, service account of the pod), each as often as it has pods.
    pub(crate) fn backing(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.services.iter().flat_map(|backed| {
            let metadata = &backed.service.metadata;
            let members = backed.members.iter().filter_map(|number| self.members.get(*number));
            let in_mesh = members.filter(|member| !matches!(member.identity, Expected::Nobody));
            in_mesh.map(|member| {
                (
                    metadata.namespace.as_str(),
                    metadata.name.as_str(),
                    member.workload.service_account.as_str(),
                )
            })
        })
    }

    /// The pods that get a sidecar, as (namespace, service account, pod).
    pub fn sidecars(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.members.iter().filter(|member| !matches!(member.identity, Expected::Nobody)).map(|member| {
            let workload = &member.workload;
            (workload.namespace.as_str(), workload.service_account.as_str(), workload.name.as_str())
        })
    }

    /// The pods whose processes run as the user `uid`, as (namespace, service account, pod); more than one only when the
    /// documents were not validated.
    pub fn pods_of_user(&self, uid: u32) -> impl Iterator<Item = (&str, &str, &str)> {
        let numbers = self.members_by_uid.get(&uid).map_or(&[][..], Vec::as_slice);
        numbers.iter().filter_map(|number| self.members.get(*number)).map(|member| {
            let workload = &member.workload;
            (workload.namespace.as_str(), workload.service_account.as_str(), workload.name.as_str())
        })
    }

    /// Whether any pod runs under this service account: only then is there somebody to renew a certificate for.
    pub fn runs(&self, namespace: &str, service_account: &str) -> bool {
        self.members.iter().any(|member| {
            member.workload.namespace == namespace && member.workload.service_account == service_account
        })
    }

    /// What one pod enforces. `None` when there is no such pod *under this service account*: a caller only ever gets
    /// the policy of a pod of its own identity.
    pub fn policy(&self, namespace: &str, service_account: &str, pod: &str) -> Option<Policy> {
        let number = *self.members_by_name.get(&(namespace.to_owned(), pod.to_owned()))?;
        let member = self.members.get(number).filter(|m| m.workload.service_account == service_account)?;
        let spec = select::inbound_spec(&self.documents, member.workload.clone(), member.ports.clone());
        let spec = InboundSpec { upgrades: member.upgrades.clone(), ..spec };
        match serde_json::to_vec(&spec) {
            Ok(spec) => Some(Policy { version: version(&spec), spec }),
            Err(error) => {
                tracing::error!(namespace, pod, %error, "the policy of a pod cannot be written as JSON; its last good one stays");
                None
            }
        }
    }
}

/// Version of a content: the first 16 bytes of its SHA-256, in hex.
pub(crate) fn version(content: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, content);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn member(
    documents: &Documents,
    pod: &Pod,
    trust_domain: &TrustDomain,
    warnings: &mut Vec<String>,
) -> Member {
    let metadata = &pod.metadata;
    let namespace = documents
        .namespaces
        .iter()
        .find(|namespace| namespace.value.metadata.name == metadata.namespace)
        .map(|namespace| &namespace.value);
    let service_account =
        if pod.spec.service_account.is_empty() { "default" } else { pod.spec.service_account.as_str() };

    let mut identity = Expected::Nobody;
    let mut listeners = BTreeMap::new();
    if injected(namespace, pod) {
        let id = SpiffeId::for_service_account(trust_domain, &metadata.namespace, service_account)
            .map_err(|error| format!("its identity is not a SPIFFE ID: {error}"));
        let table = metadata
            .annotations
            .get(interception::ANNOTATION)
            .map_or_else(|| Ok(BTreeMap::new()), |value| interception::listeners(value));
        identity = match (id, table) {
            (Ok(id), Ok(table)) => {
                listeners = table;
                Expected::Identity(id)
            }
            (Err(reason), _) | (_, Err(reason)) => {
                warnings.push(format!(
                    "nobody can call the pod {}/{} in the mesh: {reason}",
                    metadata.namespace, metadata.name
                ));
                Expected::Unusable
            }
        };
    }
    Member {
        workload: Workload {
            namespace: metadata.namespace.clone(),
            name: metadata.name.clone(),
            service_account: service_account.to_owned(),
            labels: metadata.labels.clone(),
            addresses: pod.pod_ips.clone(),
        },
        ports: Vec::new(),
        identity,
        listeners,
        // The validation has refused other values already.
        attest_uid: metadata.annotations.get(ATTEST_UID).and_then(|value| attest_uid(value).ok()),
        upgrades: metadata
            .annotations
            .get(UPGRADES)
            .and_then(|value| Upgrades::parse(value).ok())
            .unwrap_or_default(),
        container_ports: pod.spec.containers.iter().flat_map(|container| container.ports.clone()).collect(),
    }
}

/// Services oldest first (then by name and namespace, as Istio orders), each with the pods it selects. A service
/// without a selector has none.
fn backed_services(documents: &Documents, members: &[Member]) -> Vec<Backed> {
    let mut in_namespace: HashMap<&str, Vec<usize>> = HashMap::new();
    for (number, member) in members.iter().enumerate() {
        in_namespace.entry(&member.workload.namespace).or_default().push(number);
    }
    let mut services: Vec<Backed> = documents
        .services
        .iter()
        .map(|located| {
            let service = located.value.clone();
            let candidates =
                in_namespace.get(service.metadata.namespace.as_str()).map_or(&[][..], Vec::as_slice);
            let selected = |number: &usize| {
                !service.selector.is_empty()
                    && members.get(*number).is_some_and(|member| {
                        service
                            .selector
                            .iter()
                            .all(|(key, value)| member.workload.labels.get(key) == Some(value))
                    })
            };
            let members = candidates.iter().copied().filter(selected).collect();
            Backed { service, members }
        })
        .collect();
    services.sort_by(|a, b| select::by_age(&a.service.metadata, &b.service.metadata));
    services
}

/// Gives each pod the ports that services declare. When two services say different things about one port the older one
/// wins, but a declared protocol always wins over none.
fn declare_ports(services: &[Backed], members: &mut [Member]) {
    for backed in services {
        for port in backed.service.ports.iter().filter(|port| !port.udp) {
            let protocol = declared(port);
            for number in &backed.members {
                let Some(member) = members.get_mut(*number) else { continue };
                let Some(target) = member.target(port) else { continue };
                match member.ports.iter_mut().find(|known| known.port == target) {
                    Some(known) if known.protocol == Protocol::Auto => known.protocol = protocol,
                    Some(_) => {}
                    None => member.ports.push(DeclaredPort { port: target, protocol }),
                }
            }
        }
    }
    for member in members {
        member.ports.sort_by_key(|declared| declared.port);
    }
}

/// What a service port is declared to speak (reference 1.4).
pub(super) fn declared(port: &ServicePort) -> Protocol {
    Protocol::declared(port.app_protocol.as_deref(), &port.name, port.port)
}

impl Member {
    /// The port that a service port leads to; `None` when it is named and no container has a port of that name.
    pub(super) fn target(&self, port: &ServicePort) -> Option<u16> {
        match &port.target {
            TargetPort::Number(0) => Some(port.port),
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => {
                self.container_ports.iter().find(|candidate| candidate.name == *name).map(|found| found.port)
            }
        }
    }

    /// Whether a service, a container or the sidecar's annotation names this port.
    pub(super) fn declares(&self, port: u16) -> bool {
        self.ports.iter().any(|declared| declared.port == port)
            || self.container_ports.iter().any(|container| container.port == port)
            || self.listeners.contains_key(&port)
    }
}
