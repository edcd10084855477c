//! The store: the only place that loads a snapshot, credentials or a destination.

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use postern_config::{Snapshot, snapshot::Protocol};
use postern_identity::{SpiffeId, TrustBundles};
use std::{net::SocketAddr, sync::Arc, time::SystemTime};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// The inbound policy in force.
#[derive(Debug)]
pub struct Inbound {
    /// Version, as the control plane names it.
    pub version: String,
    /// What is enforced.
    pub snapshot: Snapshot,
}

/// What the current certificate makes possible: published whole.
pub struct Credentials {
    /// Our own ID.
    pub id: SpiffeId,
    /// Certificate and key.
    pub key: Arc<rustls::sign::CertifiedKey>,
    /// The same key for those who need its bytes: the workload itself, by the Workload API.
    pub private_key: PrivateKey,
    /// Bundles by trust domain.
    pub trust: Arc<TrustBundles>,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// Serial of the leaf, hex.
    pub serial: String,
    /// Ready-made TLS contexts for this certificate.
    pub tls: crate::tls::Contexts,
}

/// A private key, PKCS#8 DER: wiped when the last clone goes, and never printed.
#[derive(Clone)]
pub struct PrivateKey(Arc<Zeroizing<Vec<u8>>>);

impl From<Vec<u8>> for PrivateKey {
    fn from(pkcs8: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(pkcs8)))
    }
}

impl AsRef<[u8]> for PrivateKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PrivateKey(..)")
    }
}

/// Where a connection to one original destination goes; replaced whole when the control plane says so.
#[derive(Clone, Debug, PartialEq)]
pub enum Destination {
    /// The address of a service.
    Service(ServiceTarget),
    /// The address of one workload.
    Workload(Endpoint),
    /// Nothing that the mesh knows.
    Outside {
        /// `outboundTrafficPolicy: REGISTRY_ONLY`.
        blocked: bool,
    },
}

/// A service and its endpoints.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceTarget {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `name.namespace.svc.cluster.local`.
    pub host: String,
    /// Service port.
    pub port: u16,
    /// Declared protocol.
    pub protocol: Protocol,
    /// Where to go; may be empty.
    pub endpoints: Vec<Endpoint>,
}

/// One port of one workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// `namespace/pod`.
    pub workload: String,
    /// Where to connect to.
    pub dial: SocketAddr,
    /// Workload port: what policy calls the destination port.
    pub port: u16,
    /// Mutual TLS to this ID; `None` = plain.
    pub identity: Option<SpiffeId>,
    /// Declared protocol.
    pub protocol: Protocol,
}

/// What is in force now. Cheap to share; every read is one atomic load.
pub struct Store {
    inbound: ArcSwapOption<Inbound>,
    credentials: ArcSwapOption<Credentials>,
    policy_changed: watch::Sender<u64>,
    credentials_changed: watch::Sender<u64>,
    // One writer of credentials at a time: a renewal and a new bundle must not overwrite each other.
    writing: Mutex<()>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            inbound: ArcSwapOption::empty(),
            credentials: ArcSwapOption::empty(),
            policy_changed: watch::channel(0).0,
            credentials_changed: watch::channel(0).0,
            writing: Mutex::new(()),
        }
    }
}

impl Store {
    /// The inbound policy; load once per connection or request. `None` = nothing received yet: refuse.
    pub fn inbound(&self) -> Option<Arc<Inbound>> {
        self.inbound.load_full()
    }

    /// The current credentials. `None` = no certificate yet: refuse.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.load_full()
    }

    /// Publishes a compiled policy and wakes those who re-check open connections.
    pub fn publish_inbound(&self, inbound: Inbound) {
        self.inbound.store(Some(Arc::new(inbound)));
        self.policy_changed.send_modify(|generation| *generation += 1);
    }

    /// Publishes credentials.
    pub fn publish_credentials(&self, credentials: Credentials) {
        let _one_at_a_time = self.writing.lock();
        self.replace_credentials(credentials);
    }

    /// Publishes the current certificate with other bundles.
    ///
    /// # Errors
    /// When there is no certificate yet, or the current one would not be valid under these bundles; nothing changes then.
    pub fn publish_trust(&self, trust: TrustBundles) -> Result<(), String> {
        let _one_at_a_time = self.writing.lock();
        let current = self.credentials().ok_or("there is no certificate yet")?;
        if *current.trust == trust {
            return Ok(());
        }
        let trust = Arc::new(trust);
        let tls = crate::tls::Contexts::build(current.key.clone(), trust.clone(), &current.id)?;
        self.replace_credentials(Credentials {
            id: current.id.clone(),
            key: current.key.clone(),
            private_key: current.private_key.clone(),
            trust,
            not_after: current.not_after,
            serial: current.serial.clone(),
            tls,
        });
        Ok(())
    }

    /// Changes with every published policy.
    pub fn policy_generation(&self) -> watch::Receiver<u64> {
        self.policy_changed.subscribe()
    }

    /// Changes with every published certificate or bundle.
    pub fn credentials_generation(&self) -> watch::Receiver<u64> {
        self.credentials_changed.subscribe()
    }

    fn replace_credentials(&self, credentials: Credentials) {
        self.credentials.store(Some(Arc::new(credentials)));
        self.credentials_changed.send_modify(|generation| *generation += 1);
    }
}

/// A destination that stays fresh while held.
#[derive(Clone, Debug)]
pub struct DestinationHandle(pub Arc<ArcSwap<Destination>>);

impl DestinationHandle {
    /// A handle on a first value.
    pub fn new(destination: Destination) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(destination)))
    }

    /// What is true now.
    pub fn current(&self) -> Arc<Destination> {
        self.0.load_full()
    }
}
