//! What one workload enforces: compiled from an [`InboundSpec`], immutable, replaced whole.

mod compile;
mod index;
#[doc(hidden)]
pub mod linear;
pub(crate) mod rules;

use crate::{
    documents::{
        AuthorizationPolicy, MeshConfig, PeerAuthentication, Telemetry, Upgrades,
        peer_authentication::MtlsMode,
    },
    problem::{self, Problem, Severity},
    select::{MtlsModes, telemetries},
    telemetry::Sides,
};
use rules::RuleSet;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// One running instance with one identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Name of its service account.
    pub service_account: String,
    /// What selectors look at.
    pub labels: BTreeMap<String, String>,
    /// Its own addresses, of both families.
    pub addresses: Vec<IpAddr>,
}

impl Workload {
    /// The app's name as people see it in traces and metrics: Istio's canonical service, by the same labels in the same order.
    pub fn canonical_service(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .into_iter()
            .find_map(|label| self.labels.get(label))
            .map_or(self.name.as_str(), String::as_str)
    }
}

/// Declared protocol of a port (reference 1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default, Hash)]
pub enum Protocol {
    /// Nothing is declared: look at the bytes.
    #[default]
    Auto,
    /// HTTP of any version, and what runs over HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge, gRPC.
    Http2,
    /// Opaque bytes.
    Tcp,
}

impl Protocol {
    /// From a Service port's `appProtocol`, name and number (reference 1.4). `appProtocol` wins over the name, also
    /// when it says nothing that is known.
    pub fn declared(app_protocol: Option<&str>, name: &str, service_port: u16) -> Self {
        match app_protocol {
            Some("kubernetes.io/h2c") => return Self::Http2,
            Some("kubernetes.io/ws") => return Self::Http,
            Some("kubernetes.io/wss") => return Self::Tcp,
            _ => {}
        }
        let word = app_protocol.unwrap_or(name).to_ascii_lowercase();
        if word.starts_with("grpc-web") {
            return Self::Http;
        }
        match word.split('-').next().unwrap_or_default() {
            "http" | "http_proxy" => Self::Http,
            "http2" | "grpc" => Self::Http2,
            "tcp" | "https" | "tls" | "mongo" | "redis" | "mysql" => Self::Tcp,
            // The server of these speaks first, so there would be nothing to look at.
            _ if matches!(service_port, 25 | 53 | 3306 | 27017) => Self::Tcp,
            _ => Self::Auto,
        }
    }
}

/// A workload port and what services declare it to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredPort {
    /// Workload (target) port.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

/// What the control plane sends: the selected documents, unchanged.
///
/// A field that this version does not know is an error: it may carry a restriction that would be lost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InboundSpec {
    /// Whom it is for.
    pub workload: Workload,
    /// Mesh-wide settings.
    pub mesh: MeshConfig,
    /// Ports that services declare. When two declare the same port, the first counts.
    pub ports: Vec<DeclaredPort>,
    /// At most one for mesh, namespace and workload each; more are resolved by reference 1.2.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// Those that apply to the workload.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// At most one for mesh, namespace and workload each, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub telemetries: Vec<Telemetry>,
    /// Beside `websocket`.
    #[serde(default, skip_serializing_if = "Upgrades::is_default")]
    pub upgrades: Upgrades,
}

/// What the telemetries of a spec say together.
fn sides(spec: &InboundSpec) -> Result<Sides, Vec<Problem>> {
    let workload = &spec.workload;
    let root = &spec.mesh.root_namespace;
    let chosen: Vec<&Telemetry> =
        telemetries(spec.telemetries.iter(), root, &workload.namespace, &workload.labels).collect();
    if chosen.len() < spec.telemetries.len() {
        return Err(vec![Problem {
            severity: Severity::Error,
            code: problem::NOT_SELECTED,
            file: String::new(),
            line: 0,
            column: 0,
            reason: format!(
                "of {} Telemetries only {} are for workload {}/{}",
                spec.telemetries.len(),
                chosen.len(),
                workload.namespace,
                workload.name
            ),
            hint: "send a workload one for the mesh, its namespace and itself each".into(),
            source_line: None,
        }]);
    }
    Sides::merge(&spec.mesh, chosen)
}

/// The compiled form.
#[derive(Debug)]
pub struct Snapshot {
    spec: InboundSpec,
    default_mode: MtlsMode,
    port_modes: BTreeMap<u16, MtlsMode>,
    protocols: BTreeMap<u16, Protocol>,
    rules: RuleSet,
    telemetry: Sides,
}

impl Snapshot {
    /// Compiles, or says everything that stands in the way; nothing is ever ignored.
    ///
    /// # Errors
    /// All problems at once: what is malformed, and what is valid but not enforced by this version.
    pub fn compile(spec: InboundSpec) -> Result<Self, Vec<Problem>> {
        let (rules, telemetry) = match (compile::rule_set(&spec), sides(&spec)) {
            (Ok(rules), Ok(telemetry)) => (rules, telemetry),
            (rules, telemetry) => {
                return Err([rules.err(), telemetry.err()].into_iter().flatten().flatten().collect());
            }
        };
        let workload = &spec.workload;
        let modes = MtlsModes::resolve(
            spec.peer_authentications.iter(),
            &spec.mesh.root_namespace,
            &workload.namespace,
            &workload.labels,
        );
        let (default_mode, port_modes) = (modes.default_mode(), modes.port_modes());
        let mut protocols = BTreeMap::new();
        for declared in &spec.ports {
            protocols.entry(declared.port).or_insert(declared.protocol);
        }
        Ok(Self { spec, default_mode, port_modes, protocols, rules, telemetry })
    }

    /// What it was compiled from.
    pub fn spec(&self) -> &InboundSpec {
        &self.spec
    }

    /// Effective mode of a workload port, declared or not; never `Unset`.
    pub fn mtls_mode(&self, port: u16) -> MtlsMode {
        self.port_modes.get(&port).copied().unwrap_or(self.default_mode)
    }

    /// Declared protocol of a workload port; `Auto` when undeclared.
    pub fn protocol(&self, port: u16) -> Protocol {
        self.protocols.get(&port).copied().unwrap_or_default()
    }

    /// For what HTTP/1.1 may be left, on the way into the workload and out of it.
    pub fn upgrades(&self) -> &Upgrades {
        &self.spec.upgrades
    }

    /// What the workload tells of the traffic.
    pub fn telemetry(&self) -> &Sides {
        &self.telemetry
    }

    pub(crate) fn rules(&self) -> &RuleSet {
        &self.rules
    }
}
