//! Kubernetes' own objects, as far as a mesh needs them.
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};
/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Metadata { pub name: String, pub namespace: String, pub labels: BTreeMap<String, String>, pub annotations: BTreeMap<String, String>, pub creation_timestamp: Option<String> }
/// `Namespace`.
#[derive(Clone, Debug, Default)]
pub struct Namespace { /** metadata */ pub metadata: Metadata }
/// `ServiceAccount`.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccount { /** metadata */ pub metadata: Metadata }
/// `Service`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Service { pub metadata: Metadata, pub selector: BTreeMap<String, String>, pub cluster_ips: Vec<IpAddr>, pub headless: bool, pub ports: Vec<ServicePort> }
/// One port of a service.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ServicePort { pub name: String, pub port: u16, pub target: TargetPort, pub app_protocol: Option<String>, pub udp: bool }
/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort { /** same as `port` when unset */ Number(u16), /** a container port's name */ Name(String) }
impl Default for TargetPort { fn default() -> Self { Self::Number(0) } }
/// `Deployment`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Deployment { pub metadata: Metadata, pub replicas: u32, pub template: Pod }
/// `Pod` (also a pod template).
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Pod { pub metadata: Metadata, pub spec: PodSpec, /** `status.podIPs` */ pub pod_ips: Vec<IpAddr> }
/// `spec` of a pod.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct PodSpec { /** `default` when unset */ pub service_account: String, pub containers: Vec<Container> }
/// One container, which `postern up` runs as a host process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Container { pub name: String, pub command: Vec<String>, pub args: Vec<String>, pub env: Vec<(String, String)>, pub ports: Vec<ContainerPort>, pub working_dir: Option<String> }
/// One `ports[]` entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ContainerPort { pub name: String, pub port: u16 }
/// Whether a pod gets a sidecar: Istio's rules on `istio-injection=enabled` (namespace label), `sidecar.istio.io/inject`
/// (pod label, then annotation), and ours `postern.dev/inject` with the same values and precedence.
pub fn injected(_namespace: Option<&Namespace>, _pod: &Pod) -> bool { todo!() }
