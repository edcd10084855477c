//! Which sidecars each policy is for, and which take mutual TLS only: the selection by which policy is sent, turned around. Worked out once for each state of the documents.

use super::index::{Expected, Index};
use postern_config::{
    documents::{AuthorizationPolicy, Metadata, authorization_policy::Action, peer_authentication::MtlsMode},
    select::{MtlsModes, concerns},
};
use std::collections::BTreeSet;

/// What is worked out of the documents.
#[derive(Debug, Default)]
pub(crate) struct Selected {
    /// By kind, namespace and name.
    pub policies: Vec<Policy>,
    /// Namespace and pod of the sidecars that should take mutual TLS only, on every port.
    pub strict: BTreeSet<(String, String)>,
}

/// A policy, and whom it is for.
#[derive(Debug)]
pub(crate) struct Policy {
    /// As the document says.
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    /// The action, or the mode of mutual TLS.
    pub says: &'static str,
    pub is_dry_run: bool,
    /// Namespace and pod of each sidecar that it is sent to.
    pub sidecars: Vec<(String, String)>,
}

impl Policy {
    fn of(
        kind: &'static str,
        metadata: &Metadata,
        says: &'static str,
        sidecars: Vec<(String, String)>,
    ) -> Self {
        let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
        Self { kind, namespace, name, says, is_dry_run: false, sidecars }
    }
}

impl Selected {
    pub(super) fn of(index: &Index) -> Self {
        let documents = &index.documents;
        let root = &documents.mesh.root_namespace;
        let sidecars: Vec<_> = index
            .members
            .iter()
            .filter(|member| !matches!(member.identity, Expected::Nobody))
            .map(|member| &member.workload)
            .collect();
        let named = |concerned: &dyn Fn(usize) -> bool| -> Vec<(String, String)> {
            let chosen = sidecars.iter().enumerate().filter(|(number, _)| concerned(*number));
            chosen.map(|(_, one)| (one.namespace.clone(), one.name.clone())).collect()
        };
        let modes: Vec<MtlsModes<'_>> = sidecars
            .iter()
            .map(|one| {
                let all = documents.peer_authentications.iter().map(|located| &located.value);
                MtlsModes::resolve(all, root, &one.namespace, &one.labels)
            })
            .collect();
        let is_strict = |number: usize| {
            modes.get(number).is_some_and(|modes| {
                modes.default_mode() == MtlsMode::Strict
                    && modes.port_modes().values().all(|mode| *mode == MtlsMode::Strict)
            })
        };
        let mut policies: Vec<Policy> = Vec::new();
        for policy in documents.authorization_policies.iter().map(|located| &located.value) {
            let is_for = |number: usize| {
                sidecars.get(number).is_some_and(|one| concerns(policy, root, &one.namespace, &one.labels))
            };
            let one = Policy::of("AuthorizationPolicy", &policy.metadata, action(policy), named(&is_for));
            policies.push(Policy { is_dry_run: policy.dry_run, ..one });
        }
        for document in documents.peer_authentications.iter().map(|located| &located.value) {
            let is_for = |number: usize| {
                modes
                    .get(number)
                    .is_some_and(|modes| modes.documents().any(|one| std::ptr::eq(one, document)))
            };
            let says = match document.mode {
                MtlsMode::Unset => "UNSET",
                MtlsMode::Disable => "DISABLE",
                MtlsMode::Permissive => "PERMISSIVE",
                MtlsMode::Strict => "STRICT",
            };
            policies.push(Policy::of("PeerAuthentication", &document.metadata, says, named(&is_for)));
        }
        policies.sort_by(|a, b| (a.kind, &a.namespace, &a.name).cmp(&(b.kind, &b.namespace, &b.name)));
        Self { policies, strict: named(&is_strict).into_iter().collect() }
    }
}

fn action(policy: &AuthorizationPolicy) -> &'static str {
    match policy.action {
        Action::Allow => "ALLOW",
        Action::Deny => "DENY",
        Action::Audit => "AUDIT",
        Action::Custom => "CUSTOM",
    }
}
