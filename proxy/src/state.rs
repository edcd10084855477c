//! The store: the only place that loads a snapshot, credentials or a destination.
use arc_swap::{ArcSwap, ArcSwapOption};
use postern_config::Snapshot;
use std::sync::Arc;
use tokio::sync::watch;

/// The inbound policy in force.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Inbound { pub version: String, pub snapshot: Snapshot }
/// What the current certificate makes possible: published whole.
pub struct Credentials {
    /// Our own ID.
    pub id: postern_identity::SpiffeId,
    /// Certificate and key.
    pub key: Arc<rustls::sign::CertifiedKey>,
    /// Bundles by trust domain.
    pub trust: Arc<postern_identity::TrustBundles>,
    /// When the leaf ends.
    pub not_after: std::time::SystemTime,
    /// Serial of the leaf, hex.
    pub serial: String,
    /// Ready-made TLS contexts for this certificate.
    pub tls: crate::tls::Contexts,
}
/// Where a connection to one original destination goes; replaced whole when the control plane says so.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Destination { Service(ServiceTarget), Workload(Endpoint), Outside { blocked: bool } }
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct ServiceTarget { pub namespace: String, pub name: String, pub host: String, pub port: u16, pub protocol: postern_config::snapshot::Protocol, pub endpoints: Vec<Endpoint> }
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Endpoint { /** namespace/pod */ pub workload: String, pub dial: std::net::SocketAddr, pub port: u16, /** mutual TLS to this ID; `None` = plain */ pub identity: Option<postern_identity::SpiffeId>, pub protocol: postern_config::snapshot::Protocol }

/// What is in force now. Cheap to share; every read is one atomic load.
pub struct Store { inbound: ArcSwapOption<Inbound>, credentials: ArcSwapOption<Credentials>, policy_changed: watch::Sender<u64> }
impl Default for Store { fn default() -> Self { Self { inbound: ArcSwapOption::empty(), credentials: ArcSwapOption::empty(), policy_changed: watch::channel(0).0 } } }
impl Store {
    /// The inbound policy; load once per connection or request. `None` = nothing received yet: refuse.
    pub fn inbound(&self) -> Option<Arc<Inbound>> { self.inbound.load_full() }
    /// The current credentials. `None` = no certificate yet: refuse.
    pub fn credentials(&self) -> Option<Arc<Credentials>> { self.credentials.load_full() }
    /// Publishes a compiled policy and wakes those who re-check open connections.
    pub fn publish_inbound(&self, inbound: Inbound) { self.inbound.store(Some(Arc::new(inbound))); self.policy_changed.send_modify(|g| *g += 1); }
    /// Publishes credentials.
    pub fn publish_credentials(&self, credentials: Credentials) { self.credentials.store(Some(Arc::new(credentials))); }
    /// Changes with every published policy.
    pub fn policy_generation(&self) -> watch::Receiver<u64> { self.policy_changed.subscribe() }
}
/// A destination that stays fresh while held.
#[derive(Clone)]
pub struct DestinationHandle(pub Arc<ArcSwap<Destination>>);
impl DestinationHandle { /** What is true now. */ pub fn current(&self) -> Arc<Destination> { self.0.load_full() } }
