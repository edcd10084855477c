//! What one workload enforces: compiled from an [`InboundSpec`], immutable, replaced whole.
use crate::{documents::{AuthorizationPolicy, MeshConfig, PeerAuthentication, peer_authentication::MtlsMode}, problem::Problem};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
/// One running instance with one identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Workload { pub namespace: String, pub name: String, pub service_account: String, pub labels: BTreeMap<String, String>, pub addresses: Vec<IpAddr> }
/// Declared protocol of a port (reference 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, Hash)]
#[allow(missing_docs)]
pub enum Protocol { #[default] Auto, Http, Http2, Tcp }
impl Protocol {
    /// From a Service port's `appProtocol`, name and number (reference 1.4).
    pub fn declared(_app_protocol: Option<&str>, _name: &str, _service_port: u16) -> Self { todo!() }
}
/// A workload port and what services declare it to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct DeclaredPort { pub port: u16, pub protocol: Protocol }
/// What the control plane sends: the selected documents, unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct InboundSpec { pub workload: Workload, pub mesh: MeshConfig, pub ports: Vec<DeclaredPort>, pub peer_authentications: Vec<PeerAuthentication>, pub authorization_policies: Vec<AuthorizationPolicy> }
/// The compiled form.
#[derive(Debug)]
pub struct Snapshot { spec: InboundSpec }
impl Snapshot {
    /// Compiles, or says everything that stands in the way; nothing is ever ignored.
    pub fn compile(_spec: InboundSpec) -> Result<Self, Vec<Problem>> { todo!() }
    /// What it was compiled from.
    pub fn spec(&self) -> &InboundSpec { &self.spec }
    /// Effective mode of a workload port; never `Unset`.
    pub fn mtls_mode(&self, _port: u16) -> MtlsMode { todo!() }
    /// Declared protocol of a workload port; `Auto` when undeclared.
    pub fn protocol(&self, _port: u16) -> Protocol { todo!() }
}
