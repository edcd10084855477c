//! Start-up in order: authority, registry, listener; and the handle that owners of the process use.
use postern_config::{Documents, Problem};
use std::{net::SocketAddr, path::PathBuf, time::Duration};
/// How to start.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Options {
    /// Where sidecars connect (usually `0.0.0.0:15012`); port 0 = any.
    pub listen: SocketAddr,
    /// Where root certificate and key live (key file 0600); made at first start. `None` = in memory only.
    pub state: Option<PathBuf>,
    pub trust_domain: String,
    /// Default and upper bound of workload certificates; at most one hour.
    pub certificate_lifetime: Duration,
}
/// A running control plane; dropping it stops it.
pub struct ControlPlane {}
#[allow(unused_variables, missing_docs)]
impl ControlPlane {
    pub fn address(&self) -> SocketAddr { todo!() }
    /// PEM of the root, for sidecars' bootstrap.
    pub fn trust_bundle_pem(&self) -> String { todo!() }
    /// A one-use token for one pod. Kept only as a hash; expires.
    pub fn join_token(&self, namespace: &str, service_account: &str, pod: &str) -> String { todo!() }
    /// Replaces the registry's content whole: pods with `pod_ips`, services, policies. Publishes what changed, to whom it concerns.
    pub fn apply(&self, documents: Documents) { todo!() }
}
/// Starts it.
pub async fn start(_options: Options) -> anyhow::Result<ControlPlane> { todo!() }
