//! Which documents concern a workload: scope, selectors, oldest wins (reference 1.2, 2.2).

use crate::{
    documents::{
        AuthorizationPolicy, Documents, Located, Metadata, PeerAuthentication, Telemetry, Upgrades,
        peer_authentication::MtlsMode,
    },
    snapshot::{DeclaredPort, InboundSpec, Workload},
};
use std::{cmp::Ordering, collections::BTreeMap};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// All that `workload` needs to enforce, picked from `documents` and in the order in which it counts.
///
/// Documents that cannot have an effect on the workload are left out, so that changing them changes no spec. Upgrades are the pod's
/// own, and who knows the pod adds them.
pub fn inbound_spec(documents: &Documents, workload: Workload, ports: Vec<DeclaredPort>) -> InboundSpec {
    let root = &documents.mesh.root_namespace;
    let modes = MtlsModes::resolve(
        values(&documents.peer_authentications),
        root,
        &workload.namespace,
        &workload.labels,
    );
    let peer_authentications = modes.documents().cloned().collect();
    let mut policies: Vec<&AuthorizationPolicy> = values(&documents.authorization_policies)
        .filter(|policy| concerns(policy, root, &workload.namespace, &workload.labels))
        .collect();
    policies.sort_by(|a, b| by_age(&a.metadata, &b.metadata));
    let telemetries =
        telemetries(values(&documents.telemetries), root, &workload.namespace, &workload.labels)
            .cloned()
            .collect();
    let authorization_policies = policies.into_iter().cloned().collect();
    InboundSpec {
        mesh: documents.mesh.clone(),
        workload,
        ports,
        peer_authentications,
        authorization_policies,
        telemetries,
        upgrades: Upgrades::default(),
    }
}

/// The mode of one workload port, for a client that asks whether to speak mutual TLS to an endpoint (reference 4.13:
/// all levels, per endpoint only). Never `Unset`.
pub fn effective_mode(
    documents: &Documents,
    workload_namespace: &str,
    labels: &BTreeMap<String, String>,
    port: u16,
) -> MtlsMode {
    let peer_authentications = values(&documents.peer_authentications);
    MtlsModes::resolve(peer_authentications, &documents.mesh.root_namespace, workload_namespace, labels)
        .mode(port)
}

/// Whether an authorization policy applies to a workload: written in the root or the workload's namespace, and its
/// selector fits. One with target references never applies to a sidecar.
pub fn concerns(
    policy: &AuthorizationPolicy,
    root_namespace: &str,
    workload_namespace: &str,
    labels: &BTreeMap<String, String>,
) -> bool {
    let namespace = &policy.metadata.namespace;
    !policy.has_target_refs
        && (namespace == root_namespace || namespace == workload_namespace)
        && selects(&policy.selector, labels)
}

/// The telemetries that count for one workload, in the order in which they are merged: mesh, namespace, workload; of each the
/// oldest. A selector looks at workloads of its own namespace only, also in the root namespace.
pub fn telemetries<'a>(
    all: impl Iterator<Item = &'a Telemetry>,
    root_namespace: &str,
    workload_namespace: &str,
    labels: &BTreeMap<String, String>,
) -> impl Iterator<Item = &'a Telemetry> {
    let [mut mesh, mut namespace, mut workload] = [None::<&Telemetry>; 3];
    for document in all.filter(|document| !document.has_target_refs) {
        let own = document.metadata.namespace == workload_namespace;
        let slot = match document.selector.is_empty() {
            true if document.metadata.namespace == root_namespace => &mut mesh,
            true if own => &mut namespace,
            false if own && selects(&document.selector, labels) => &mut workload,
            _ => continue,
        };
        if slot.is_none_or(|chosen| by_age(&document.metadata, &chosen.metadata) == Ordering::Less) {
            *slot = Some(document);
        }
    }
    [mesh, namespace, workload].into_iter().flatten()
}

/// Oldest first, then by name, then by namespace. A document without a time stamp (or with one that cannot be read)
/// counts as older than any other, as the zero time does in Istio.
pub fn by_age(a: &Metadata, b: &Metadata) -> Ordering {
    created(a).cmp(&created(b)).then_with(|| a.name.cmp(&b.name)).then_with(|| a.namespace.cmp(&b.namespace))
}

/// When a document was created; `None` when it does not say, or not in RFC 3339.
pub fn created(metadata: &Metadata) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(metadata.creation_timestamp.as_deref()?, &Rfc3339).ok()
}

/// The peer authentications that count for one workload: the oldest of each level, and nothing else.
#[derive(Clone, Copy, Debug, Default)]
pub struct MtlsModes<'a> {
    mesh: Option<&'a PeerAuthentication>,
    namespace: Option<&'a PeerAuthentication>,
    workload: Option<&'a PeerAuthentication>,
}

impl<'a> MtlsModes<'a> {
    /// Picks from `all`, in any order. A selector in the root namespace disables a document completely.
    pub fn resolve(
        all: impl Iterator<Item = &'a PeerAuthentication>,
        root_namespace: &str,
        workload_namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Self {
        let mut modes = Self::default();
        for document in all {
            let namespace = &document.metadata.namespace;
            let slot = match (namespace == root_namespace, document.selector.is_empty()) {
                (true, true) => &mut modes.mesh,
                (true, false) => continue,
                (false, _) if namespace != workload_namespace => continue,
                (false, true) => &mut modes.namespace,
                (false, false) if selects(&document.selector, labels) => &mut modes.workload,
                (false, false) => continue,
            };
            if slot.is_none_or(|chosen| by_age(&document.metadata, &chosen.metadata) == Ordering::Less) {
                *slot = Some(document);
            }
        }
        modes
    }

    /// Mesh, namespace, workload: those that exist.
    pub fn documents(&self) -> impl Iterator<Item = &'a PeerAuthentication> {
        [self.mesh, self.namespace, self.workload].into_iter().flatten()
    }

    /// The mode of ports that have none of their own. Never `Unset`.
    pub fn default_mode(&self) -> MtlsMode {
        let said = self.documents().map(|document| document.mode).filter(|mode| *mode != MtlsMode::Unset);
        said.last().unwrap_or(MtlsMode::Permissive)
    }

    /// The ports with a mode of their own. Never `Unset`.
    pub fn port_modes(&self) -> BTreeMap<u16, MtlsMode> {
        let default = self.default_mode();
        let own = self.workload.into_iter().flat_map(|document| &document.port_level);
        own.map(|(port, mode)| (*port, if *mode == MtlsMode::Unset { default } else { *mode })).collect()
    }

    /// The mode of one workload port. Never `Unset`.
    pub fn mode(&self, port: u16) -> MtlsMode {
        let own = self.workload.and_then(|document| document.port_level.get(&port));
        own.copied().filter(|mode| *mode != MtlsMode::Unset).unwrap_or_else(|| self.default_mode())
    }
}

/// Every label of the selector has to be there and be equal; an empty selector takes everything.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn values<T>(located: &[Located<T>]) -> impl Iterator<Item = &T> {
    located.iter().map(|located| &located.value)
}
