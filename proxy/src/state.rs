//! The store: the only place that loads a snapshot, credentials or a destination.

mod credentials;

pub use credentials::{Credentials, PrivateKey};

use crate::error::ProxyError;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use postern_config::{
    Snapshot, documents::destination_rule::Traffic, matchers::AddressBlock, snapshot::Protocol,
};
use postern_identity::{KeyId, SpiffeId, TrustBundles};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::watch, time::Instant};

/// So long after a new certificate handshakes may be under way with the one before.
const SETTLING: Duration = Duration::from_secs(1);

/// The inbound policy in force.
#[derive(Debug)]
pub struct Inbound {
    /// Version, as the control plane names it.
    pub version: Arc<str>,
    /// What is enforced.
    pub snapshot: Snapshot,
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
        /// Something outside is called by its name on this port: the name is asked for before anything passes.
        by_name: bool,
        /// It belongs to the mesh all the same, and must not be called.
        in_mesh: bool,
    },
}

impl Destination {
    /// What a DestinationRule says of calls to it; the defaults for a workload that is called by its own address.
    pub fn traffic(&self) -> &Traffic {
        static DEFAULT: std::sync::LazyLock<Traffic> = std::sync::LazyLock::new(Traffic::default);
        match self {
            Self::Service(service) => &service.traffic,
            Self::Workload(_) | Self::Outside { .. } => &DEFAULT,
        }
    }
}

/// A service, or something outside that a ServiceEntry names, and its endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
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
    /// Names whose addresses are endpoints as well.
    pub lookups: Vec<Lookup>,
    /// How many of the endpoints, the last ones, were looked up.
    pub looked_up: usize,
    /// Where the address that the caller dialled is the endpoint.
    pub original_within: Vec<AddressBlock>,
    /// What a DestinationRule says of calls.
    pub traffic: Arc<Traffic>,
}

/// A name to look up, and the port to dial there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// DNS name.
    pub name: String,
    /// Port.
    pub port: u16,
}

impl Endpoint {
    /// Something outside the mesh: plain, and what it speaks is not known.
    pub fn outside(dial: SocketAddr) -> Self {
        Self { workload: String::new(), dial, port: dial.port(), identity: None, protocol: Protocol::Auto }
    }
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

/// Our own authorities that are about to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tainted {
    /// Whoever has a certificate below one of these replaces it.
    pub keys: BTreeSet<KeyId>,
    /// Over how long the fleet spreads that; zero where nobody said.
    pub spread: Duration,
}

/// What is in force now. Cheap to share; every read is one atomic load.
pub struct Store {
    inbound: ArcSwapOption<Inbound>,
    credentials: ArcSwapOption<Credentials>,
    // Since the first certificate.
    own_id: OnceLock<SpiffeId>,
    // Beside the credentials, since it outlives a certificate that it forbids.
    trust: ArcSwapOption<TrustBundles>,
    tainted: ArcSwap<Tainted>,
    // Why there is no certificate; `None` before the first one.
    withdrawn: Mutex<Option<String>>,
    // When the last certificate took the place of another one.
    replaced: Mutex<Option<Instant>>,
    policy_changed: watch::Sender<u64>,
    credentials_changed: watch::Sender<u64>,
    trust_changed: watch::Sender<u64>,
    // One writer of credentials at a time: a renewal and a new bundle must not overwrite each other.
    writing: Mutex<()>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            inbound: ArcSwapOption::empty(),
            credentials: ArcSwapOption::empty(),
            own_id: OnceLock::new(),
            trust: ArcSwapOption::empty(),
            tainted: ArcSwap::default(),
            withdrawn: Mutex::new(None),
            replaced: Mutex::new(None),
            policy_changed: watch::channel(0).0,
            credentials_changed: watch::channel(0).0,
            trust_changed: watch::channel(0).0,
            writing: Mutex::new(()),
        }
    }
}

impl Store {
    /// The inbound policy; load once per connection or request. `None` = nothing received yet: refuse.
    pub fn inbound(&self) -> Option<Arc<Inbound>> {
        self.inbound.load_full()
    }

    /// The current credentials. `None` = no certificate yet, or its authority is revoked: refuse.
    pub fn credentials(&self) -> Option<Arc<Credentials>> {
        self.credentials.load_full()
    }

    /// The credentials that may be used with a peer now.
    ///
    /// # Errors
    /// [`ProxyError::NoCertificate`] with the reason: none yet, ended, or below a revoked authority.
    pub fn own(&self) -> Result<Arc<Credentials>, ProxyError> {
        match self.credentials() {
            Some(current) if current.not_after > SystemTime::now() => Ok(current),
            Some(ended) => Err(ProxyError::NoCertificate(format!(
                "our own ended at {} (Unix seconds) and no other was obtained in time",
                ended.not_after.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
            ))),
            None => Err(ProxyError::NoCertificate(
                self.withdrawn
                    .lock()
                    .clone()
                    .unwrap_or_else(|| "the authority has not issued one yet".to_owned()),
            )),
        }
    }

    /// The bundles that peers are judged by. `None` before the first certificate.
    pub fn trust(&self) -> Option<Arc<TrustBundles>> {
        self.trust.load_full()
    }

    /// Whether our certificate shall be replaced now: it is below an authority that is about to go, or has gone.
    pub fn wants_renewal(&self) -> bool {
        let tainted = &self.tainted.load().keys;
        match self.credentials() {
            Some(current) => current.authorities.iter().any(|key| tainted.contains(key)),
            None => self.withdrawn.lock().is_some(),
        }
    }

    /// Over how long a fleet spreads such renewals, as the control plane wants it.
    pub fn renewal_spread(&self) -> Duration {
        self.tainted.load().spread
    }

    /// The authorities that are about to go.
    pub fn tainted(&self) -> Arc<Tainted> {
        self.tainted.load_full()
    }

    /// Publishes a compiled policy and wakes those who re-check open connections.
    pub fn publish_inbound(&self, inbound: Inbound) {
        self.inbound.store(Some(Arc::new(inbound)));
        self.policy_changed.send_modify(|generation| *generation += 1);
    }

    /// Publishes credentials. When newer bundles came in while the certificate was being issued, it is published with them:
    /// what was revoked in the meantime must not come back.
    ///
    /// # Errors
    /// When the certificate is not valid under those newer bundles, or names somebody else than the first one: nobody becomes
    /// another workload while it runs, so that this is a mistake or worse. Nothing changes then.
    pub fn publish_credentials(&self, mut credentials: Credentials) -> Result<(), String> {
        let _one_at_a_time = self.writing.lock();
        let own = self.own_id.get_or_init(|| credentials.id.clone());
        if *own != credentials.id {
            return Err(format!(
                "it is a certificate of {}, and this sidecar is {own}; if that is meant, restart the sidecar without what it has kept",
                credentials.id
            ));
        }
        if let Some(trust) = self.trust()
            && goes_back(&trust, &credentials.trust, credentials.id.trust_domain()).is_some()
        {
            credentials = credentials.under(trust)?;
        }
        if self.credentials().is_some() {
            *self.replaced.lock() = Some(Instant::now());
        }
        self.replace_trust(credentials.trust.clone());
        self.replace_credentials(credentials);
        Ok(())
    }

    /// Publishes other bundles, and which authorities are about to go (`tainted`). When ours is among the revoked ones, trust is
    /// taken all the same and our certificate withdrawn: peers are judged by it at once, and nothing forbidden is presented.
    ///
    /// # Errors
    /// When there was no certificate ever, when the current one would not be valid under these bundles, or when they are older
    /// than those in force, as from a control plane that lags: what was taken away must not come back. Nothing changes then.
    pub fn publish_trust(&self, trust: TrustBundles, tainted: Tainted) -> Result<(), String> {
        let _one_at_a_time = self.writing.lock();
        let known = self.trust().ok_or("there is no certificate yet")?;
        let own = self.own_id.get().map(SpiffeId::trust_domain).unwrap_or_default();
        if let Some((known, other)) = goes_back(&known, &trust, own) {
            return Err(format!(
                "the bundle of `{own}` has sequence {other}, older than the one in force ({known})"
            ));
        }
        let is_news = *known != trust || self.tainted.load().keys != tainted.keys;
        if *known != trust {
            let trust = Arc::new(trust);
            // Old values of the two are never seen together with new ones in a way that accepts more than either.
            match self.credentials() {
                None => self.trust.store(Some(trust)),
                Some(current) => match current.under(trust.clone()) {
                    Ok(credentials) => {
                        self.trust.store(Some(trust));
                        self.replace_credentials(credentials);
                    }
                    Err(reason) => {
                        let key = current.revoked_by(&trust).ok_or(reason)?;
                        self.trust.store(Some(trust));
                        self.withdraw(key);
                    }
                },
            }
        }
        if is_news {
            self.tainted.store(Arc::new(tainted));
            self.trust_changed.send_modify(|generation| *generation += 1);
        }
        Ok(())
    }

    /// When nothing is begun with an earlier certificate any more, so that nobody is cut off when its authority goes.
    pub fn settled(&self) -> Option<Instant> {
        self.replaced.lock().map(|at| at + SETTLING)
    }

    /// Changes with every published policy.
    pub fn policy_generation(&self) -> watch::Receiver<u64> {
        self.policy_changed.subscribe()
    }

    /// Changes with every published certificate or bundle, and when a certificate is withdrawn.
    pub fn credentials_generation(&self) -> watch::Receiver<u64> {
        self.credentials_changed.subscribe()
    }

    /// Changes with the bundles and with what is tainted, but not with our own certificate.
    pub fn trust_generation(&self) -> watch::Receiver<u64> {
        self.trust_changed.subscribe()
    }

    fn replace_credentials(&self, credentials: Credentials) {
        *self.withdrawn.lock() = None;
        self.credentials.store(Some(Arc::new(credentials)));
        self.credentials_changed.send_modify(|generation| *generation += 1);
    }

    fn replace_trust(&self, trust: Arc<TrustBundles>) {
        let is_news = self.trust().is_none_or(|known| known != trust);
        self.trust.store(Some(trust));
        if is_news {
            self.trust_changed.send_modify(|generation| *generation += 1);
        }
    }

    fn withdraw(&self, key: KeyId) {
        let reason = format!("our own is below authority {key}, which is revoked; another one is asked for");
        tracing::error!(%reason, "our certificate is withdrawn; nothing that needs it is served until there is another");
        *self.withdrawn.lock() = Some(reason);
        self.credentials.store(None);
        self.credentials_changed.send_modify(|generation| *generation += 1);
    }
}

/// Both sequences of our own bundle when `known` is younger than `other`. Those of foreign domains are the control plane's
/// business: a partner may begin anew.
fn goes_back(known: &TrustBundles, other: &TrustBundles, own: &str) -> Option<(u64, u64)> {
    let sequence = |trust: &TrustBundles| trust.get(own).and_then(|bundle| bundle.sequence);
    sequence(known).zip(sequence(other)).filter(|(known, other)| known > other)
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

#[cfg(test)]
pub mod signer;

#[cfg(test)]
#[path = "state/state_tests.rs"]
mod tests;
