//! The documents people write: Istio's security resources and the Kubernetes objects they talk about.
//!
//! [`read`] takes a file through five rooms: `parse` (text to trees), `intake` (which kind is it), `schema` (are these
//! its fields), [`crate::validate`] (do the values make sense) and `decode` (trees to the types of this module).
use crate::{problem::Problem, validate};
use std::collections::BTreeMap;

pub mod authorization_policy;
mod decode;
pub mod destination_rule;
pub mod federation;
mod intake;
pub mod kubernetes;
pub mod mesh_config;
pub(crate) mod parse;
pub mod peer_authentication;
mod places;
pub mod policy_test;
pub(crate) mod report;
pub(crate) mod schema;
pub mod service_entry;
pub mod telemetry;
mod tree;
pub mod upgrades;

pub use authorization_policy::AuthorizationPolicy;
pub(crate) use decode::{
    istio::{DRY_RUN, authorization_policy as decode_policy, go_bool},
    kubernetes::pod_field,
    telemetry::{custom_tag as decode_custom_tag, named_providers},
};
pub use destination_rule::DestinationRule;
pub use federation::FederatedTrustDomain;
pub use kubernetes::{Deployment, Metadata, Namespace, Pod, PodSpec, Service, ServiceAccount, service_host};
pub use mesh_config::{ExtensionProvider, MeshConfig};
pub use peer_authentication::PeerAuthentication;
pub use places::Places;
pub use policy_test::PolicyTest;
pub use service_entry::ServiceEntry;
pub use telemetry::{NamedProvider, Telemetry};
pub use upgrades::{UPGRADES, Upgrades};

/// Where a document was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin {
    /// As named by the user.
    pub file: String,
    /// 1-based line of the document's first key.
    pub line: usize,
}

/// A document with its place.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// Place.
    pub origin: Origin,
    /// Content.
    pub value: T,
}

/// Everything a folder says.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// `Namespace`
    pub namespaces: Vec<Located<Namespace>>,
    /// `ServiceAccount`
    pub service_accounts: Vec<Located<ServiceAccount>>,
    /// `Service`
    pub services: Vec<Located<Service>>,
    /// `Deployment`
    pub deployments: Vec<Located<Deployment>>,
    /// `Pod`
    pub pods: Vec<Located<Pod>>,
    /// `PeerAuthentication`
    pub peer_authentications: Vec<Located<PeerAuthentication>>,
    /// `AuthorizationPolicy`
    pub authorization_policies: Vec<Located<AuthorizationPolicy>>,
    /// `ServiceEntry`
    pub service_entries: Vec<Located<ServiceEntry>>,
    /// `DestinationRule`
    pub destination_rules: Vec<Located<DestinationRule>>,
    /// `Telemetry`
    pub telemetries: Vec<Located<Telemetry>>,
    /// The providers that Telemetries name.
    pub named_providers: Vec<Located<NamedProvider>>,
    /// `PolicyTest`: for `postern test`, of no effect on anything that runs.
    pub policy_tests: Vec<Located<PolicyTest>>,
    /// `ClusterFederatedTrustDomain`
    pub federated_trust_domains: Vec<Located<FederatedTrustDomain>>,
    /// From the ConfigMap `istio` in the root namespace, key `mesh`; defaults when absent.
    pub mesh: MeshConfig,
    /// `extensionProviders` of the mesh configuration, by their names.
    pub extension_providers: BTreeMap<String, ExtensionProvider>,
    /// Where the mesh configuration was written.
    pub mesh_origin: Option<Origin>,
    /// Where single fields were written, for findings that need several documents.
    pub places: Places,
}

/// One file's text, read by the caller.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// As the user named it.
    pub name: String,
    /// Its bytes as text.
    pub text: String,
}

/// Parses and validates every document of every file; returns all problems at once (errors and warnings), sorted by file and line.
/// When any problem has `Severity::Error`, the documents must not be used.
///
/// Total on any text and bounded: 4 MiB a file, 64 levels, 200,000 values a document with aliases followed.
pub fn read(files: &[SourceFile]) -> (Documents, Vec<Problem>) {
    let mut documents = Documents::default();
    let mut problems = Vec::new();
    // In the order of their names, whatever the order of the folder: "already in" means above.
    let mut files: Vec<&SourceFile> = files.iter().collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    for file in files {
        problems.extend(intake::read_file(file, &mut documents));
    }
    problems.extend(validate::relations(&documents));
    problems.sort_by(|a, b| {
        (&a.file, a.line, a.column, b.severity).cmp(&(&b.file, b.line, b.column, a.severity))
    });
    problems.dedup();
    (documents, problems)
}
