//! The documents people write: Istio's security resources and the Kubernetes objects they talk about.
use crate::problem::Problem;

pub mod authorization_policy;
pub mod kubernetes;
pub mod mesh_config;
pub mod parse;
pub mod peer_authentication;

pub use authorization_policy::AuthorizationPolicy;
pub use kubernetes::{Deployment, Metadata, Namespace, Pod, PodSpec, Service, ServiceAccount};
pub use mesh_config::MeshConfig;
pub use peer_authentication::PeerAuthentication;

/// Where a document was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Origin { /** as named by the user */ pub file: String, /** 1-based line of the document's first key */ pub line: usize }
/// A document with its place.
#[derive(Clone, Debug)]
pub struct Located<T> { /** place */ pub origin: Origin, /** content */ pub value: T }

/// Everything a folder says.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Documents {
    pub namespaces: Vec<Located<Namespace>>,
    pub service_accounts: Vec<Located<ServiceAccount>>,
    pub services: Vec<Located<Service>>,
    pub deployments: Vec<Located<Deployment>>,
    pub pods: Vec<Located<Pod>>,
    pub peer_authentications: Vec<Located<PeerAuthentication>>,
    pub authorization_policies: Vec<Located<AuthorizationPolicy>>,
    /// From the ConfigMap `istio` in the root namespace, key `mesh`; defaults when absent.
    pub mesh: MeshConfig,
}

/// One file's text, read by the caller.
#[derive(Clone, Debug)]
pub struct SourceFile { /** as the user named it */ pub name: String, /** its bytes as text */ pub text: String }

/// Parses and validates every document of every file; returns all problems at once (errors and warnings), sorted by file and line.
/// When any problem has `Severity::Error`, the documents must not be used.
pub fn read(_files: &[SourceFile]) -> (Documents, Vec<Problem>) { todo!() }
