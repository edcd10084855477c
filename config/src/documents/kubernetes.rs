//! Kubernetes' own objects, as far as a mesh needs them.
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::IpAddr};

/// `metadata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// `name`; a pod template has its Deployment's.
    pub name: String,
    /// `namespace`, `default` when unset; empty for a Namespace.
    pub namespace: String,
    /// `labels`.
    pub labels: BTreeMap<String, String>,
    /// `annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `creationTimestamp` as written (RFC 3339).
    pub creation_timestamp: Option<String>,
}

/// `Namespace`.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    /// `metadata`.
    pub metadata: Metadata,
}

/// `ServiceAccount`.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccount {
    /// `metadata`.
    pub metadata: Metadata,
}

/// `Service`.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.selector`; empty selects nothing.
    pub selector: BTreeMap<String, String>,
    /// `spec.clusterIPs`, else `clusterIP`; empty when unset or headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`.
    pub headless: bool,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// One port of a service.
#[derive(Clone, Debug, Default)]
pub struct ServicePort {
    /// `name`, may be empty when it is the only port.
    pub name: String,
    /// `port`.
    pub port: u16,
    /// `targetPort`; the number of `port` when unset.
    pub target: TargetPort,
    /// `appProtocol`.
    pub app_protocol: Option<String>,
    /// `protocol: UDP`.
    pub udp: bool,
}

/// The whole host of a service: under it callers ask for it, rules of traffic name it, and sidecars report it.
pub fn service_host(name: &str, namespace: &str) -> String {
    format!("{name}.{namespace}.svc.cluster.local")
}

/// `targetPort`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number; same as `port` when unset.
    Number(u16),
    /// A container port's name.
    Name(String),
}

impl Default for TargetPort {
    fn default() -> Self {
        Self::Number(0)
    }
}

/// `Deployment`.
#[derive(Clone, Debug, Default)]
pub struct Deployment {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.replicas`, 1 when unset.
    pub replicas: u32,
    /// `spec.template`, with the Deployment's name and namespace in its metadata.
    pub template: Pod,
}

/// `Pod` (also a pod template).
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec`.
    pub spec: PodSpec,
    /// `status.podIPs`, else `status.podIP`.
    pub pod_ips: Vec<IpAddr>,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    /// `serviceAccountName`, `default` when unset.
    pub service_account: String,
    /// `containers`.
    pub containers: Vec<Container>,
    /// `hostNetwork`: such a pod gets no sidecar.
    pub host_network: bool,
}

/// One container, which `postern up` runs as a host process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// `name`.
    pub name: String,
    /// `command`, as written: `$(NAME)` is replaced by whoever runs it.
    pub command: Vec<String>,
    /// `args`, as written.
    pub args: Vec<String>,
    /// `env` with a literal `value`, as written, in order.
    pub env: Vec<(String, String)>,
    /// `env` with `valueFrom.fieldRef`, known when the pod runs.
    pub field_env: Vec<(String, PodField)>,
    /// `ports`.
    pub ports: Vec<ContainerPort>,
    /// `workingDir`.
    pub working_dir: Option<String>,
}

/// A fact of the running pod that `env[].valueFrom.fieldRef` may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodField {
    /// `metadata.name`
    Name,
    /// `metadata.namespace`
    Namespace,
    /// `status.podIP`
    PodIp,
    /// `spec.serviceAccountName`
    ServiceAccount,
}

/// One `ports[]` entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// `name`, may be empty.
    pub name: String,
    /// `containerPort`.
    pub port: u16,
}

/// Namespaces whose pods never get a sidecar (reference 4.2).
const SYSTEM_NAMESPACES: &[&str] = &["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];
/// Pod label, else annotation, `"true"` or `"false"`: ours, then Istio's.
pub(crate) const POD_KEYS: [&str; 2] = ["postern.dev/inject", "sidecar.istio.io/inject"];

/// Pod annotation: the user id whose processes on the control plane's machine are this pod (attestation by unix socket).
pub const ATTEST_UID: &str = "postern.dev/attest-uid";
/// What Linux shows for every user that is not mapped into a user namespace: it names nobody.
const OVERFLOW_UID: u32 = 65534;

/// The user id in a value of [`ATTEST_UID`].
///
/// # Errors
/// What is wrong with it: it is one decimal number without sign or leading zeros, and stands for one user.
pub fn attest_uid(value: &str) -> Result<u32, String> {
    match value.parse::<u32>() {
        Ok(uid) if uid.to_string() != value => Err("it has a sign or leading zeros".into()),
        Ok(OVERFLOW_UID | u32::MAX) => Err("it stands for many users or none".into()),
        Ok(uid) => Ok(uid),
        Err(_) => Err("it is no number of a user".into()),
    }
}

/// Whether a pod gets a sidecar: Istio's rules on `istio-injection=enabled` (namespace label), `sidecar.istio.io/inject`
/// (pod label, then annotation), and ours `postern.dev/inject` with the same values and precedence. Where both are set,
/// ours counts.
pub fn injected(namespace: Option<&Namespace>, pod: &Pod) -> bool {
    if pod.spec.host_network || SYSTEM_NAMESPACES.contains(&pod.metadata.namespace.as_str()) {
        return false;
    }
    let label = wish(&pod.metadata.labels);
    let annotation = wish(&pod.metadata.annotations);
    match namespace.map_or(Scope::Silent, scope) {
        Scope::Disabled => false,
        // The webhook sees the pod only when its label asks for it; the annotation is not enough.
        Scope::Silent => label == Some(true),
        Scope::Enabled => label.or(annotation).unwrap_or(true),
    }
}

/// Exactly `true` or `false`; anything else is as good as absent.
fn wish(map: &BTreeMap<String, String>) -> Option<bool> {
    POD_KEYS.iter().find_map(|key| match map.get(*key).map(String::as_str) {
        Some("true") => Some(true),
        Some("false") => Some(false),
        _ => None,
    })
}

enum Scope {
    Enabled,
    Disabled,
    Silent,
}

fn scope(namespace: &Namespace) -> Scope {
    let label = |key: &str| namespace.metadata.labels.get(key).map(String::as_str);
    match (label("postern.dev/inject"), label("istio-injection")) {
        (Some("enabled" | "true"), _) => Scope::Enabled,
        (Some("disabled" | "false"), _) => Scope::Disabled,
        (_, Some("enabled")) => Scope::Enabled,
        (_, Some("disabled")) => Scope::Disabled,
        _ if label("istio.io/rev").is_some() => Scope::Enabled,
        _ => Scope::Silent,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn an_attest_uid_is_one_user_written_in_one_way() {
        for (value, uid) in [("0", 0), ("1001", 1001), ("4294967294", u32::MAX - 1)] {
            assert_eq!(attest_uid(value), Ok(uid));
        }
        for value in
            ["", "-1", "+1", "01", "1 ", "0x1", "billing", "65534", "4294967295", "4294967296", "\u{661}"]
        {
            assert!(attest_uid(value).is_err(), "{value}");
        }
    }

    #[test]
    fn injection_follows_istios_rules_and_ours() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        const ISTIO: &str = "sidecar.istio.io/inject";
        const OURS: &str = "postern.dev/inject";
        let cases: &[(Pairs, Pairs, Pairs, bool)] = &[
            (&[], &[], &[], false),
            (&[("istio-injection", "enabled")], &[], &[], true),
            (&[("istio-injection", "Enabled")], &[], &[], false),
            (&[("istio.io/rev", "default")], &[], &[], true),
            (&[("istio-injection", "disabled"), ("istio.io/rev", "default")], &[], &[], false),
            (&[("istio-injection", "disabled")], &[(ISTIO, "true")], &[], false),
            (&[], &[(ISTIO, "true")], &[], true),
            (&[], &[], &[(ISTIO, "true")], false),
            (&[("istio-injection", "enabled")], &[(ISTIO, "false")], &[(ISTIO, "true")], false),
            (&[("istio-injection", "enabled")], &[], &[(ISTIO, "false")], false),
            (&[("istio-injection", "enabled")], &[(ISTIO, "no")], &[], true),
            (&[("istio-injection", "enabled")], &[(ISTIO, "no")], &[(ISTIO, "false")], false),
            (&[(OURS, "enabled")], &[], &[], true),
            (&[(OURS, "disabled"), ("istio-injection", "enabled")], &[], &[], false),
            (&[], &[(OURS, "true")], &[], true),
            (&[], &[(OURS, "false"), (ISTIO, "true")], &[], false),
        ];
        for (namespace, labels, annotations, expected) in cases {
            let ns = Namespace { metadata: Metadata { labels: map(namespace), ..Metadata::default() } };
            let mut pod = Pod::default();
            pod.metadata.labels = map(labels);
            pod.metadata.annotations = map(annotations);
            assert_eq!(injected(Some(&ns), &pod), *expected, "{namespace:?} {labels:?} {annotations:?}");
            pod.spec.host_network = true;
            assert!(!injected(Some(&ns), &pod));
        }
        let mut pod = Pod::default();
        pod.metadata.labels = map(&[(ISTIO, "true")]);
        pod.metadata.namespace = "kube-system".into();
        assert!(!injected(None, &pod));
    }
}
