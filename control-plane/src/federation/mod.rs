//! Federation with foreign trust domains (SPIFFE Federation): their bundles are fetched, kept and handed to our sidecars,
//! ours is served to them. A bundle vouches for its own trust domain only; none is ever merged with another.
//!
//! `partner` is the life of one relationship, `fetch` one look at an endpoint, `store` what survives a restart, `serve` our
//! own endpoint.

mod fetch;
mod partner;
mod serve;
mod store;

use crate::authority::Authority;
use anyhow::Context as _;
use parking_lot::Mutex;
use partner::Partner;
use postern_config::documents::FederatedTrustDomain;
use postern_identity::{Bundle, TrustDomain, jwks::DEFAULT_REFRESH_HINT};
use rustls::sign::CertifiedKey;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How to federate; the default fetches what documents name and serves nobody.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where our own bundle is served to others.
    pub listen: Option<SocketAddr>,
    /// PEM files of certificate chain and key for `https_web`. `None` = `https_spiffe`, by the control plane's own SVID.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// PEM file of the authorities that `https_web` endpoints are recognised by. `None` = those of the system.
    pub web_authorities: Option<PathBuf>,
    /// How often and how long.
    pub timing: Timing,
}

/// How often endpoints are looked at (SPIFFE Federation 5.3), and how long a look may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// When a bundle gives no refresh hint.
    pub interval: Duration,
    /// However short the hint; also until the first success.
    pub shortest: Duration,
    /// However long the hint.
    pub longest: Duration,
    /// From the first packet to the last byte, redirects and all.
    pub deadline: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            interval: DEFAULT_REFRESH_HINT,
            shortest: Duration::from_secs(60),
            longest: Duration::from_secs(24 * 3600),
            deadline: Duration::from_secs(20),
        }
    }
}

/// Where the bundle in force comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// `trustDomainBundle` of the document.
    Document,
    /// The state folder: fetched before this process began.
    Stored,
    /// The endpoint.
    Fetched,
}

/// What people may ask about one foreign trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederationStatus {
    /// Which.
    pub trust_domain: TrustDomain,
    /// Where its bundle is fetched.
    pub url: String,
    /// `https_web`, or `https_spiffe` with the SPIFFE ID of the endpoint.
    pub profile: String,
    /// Where the bundle in force comes from; `None` = there is none yet, so that its workloads are refused.
    pub source: Option<Source>,
    /// `spiffe_sequence` of the bundle in force.
    pub sequence: Option<u64>,
    /// X.509 authorities in it. None at all means that the other side has revoked everything.
    pub authorities: usize,
    /// JWT keys in it.
    pub jwt_keys: usize,
    /// When it was last fetched, or found unchanged.
    pub fetched_at: Option<SystemTime>,
    /// Looks that failed since then.
    pub failures: u64,
    /// Why the last look failed; `None` when it did not.
    pub last_error: Option<String>,
}

/// Bytes of all foreign bundles together: a sidecar takes messages of 4 MiB at most.
const MAX_PUBLISHED: usize = 3 * 1024 * 1024;

/// All relationships of this control plane.
pub(crate) struct Federation {
    authority: Arc<Authority>,
    settings: Settings,
    store: Option<store::Store>,
    partners: Mutex<BTreeMap<TrustDomain, Arc<Partner>>>,
    published: watch::Sender<Arc<[Bundle]>>,
    presented: Arc<serve::Presented>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Federation {
    /// Opens what was kept in `state`, and the listener when one is asked for.
    ///
    /// # Errors
    /// A file of the settings cannot be used, or the address cannot be listened on.
    pub(crate) async fn start(
        authority: Arc<Authority>,
        settings: Settings,
        state: Option<&Path>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> anyhow::Result<(Arc<Self>, Option<SocketAddr>)> {
        if let Some(file) = &settings.web_authorities {
            fetch::web_client(Some(file))
                .map_err(anyhow::Error::msg)
                .context("the authorities for https_web cannot be used")?;
        }
        let presented = Arc::new(serve::Presented::new(settings.certificate.clone())?);
        let federation = Arc::new(Self {
            store: state.map(store::Store::new),
            partners: Mutex::default(),
            published: watch::channel(Arc::from([])).0,
            presented: Arc::clone(&presented),
            stop: stop.clone(),
            tasks: tasks.clone(),
            authority: Arc::clone(&authority),
            settings,
        });
        let Some(address) = federation.settings.listen else { return Ok((federation, None)) };
        let listener = serve::listen(address).await?;
        let address = listener.local_addr().context("the address of the bundle endpoint is not known")?;
        tasks.spawn(serve::serve(listener, presented, authority, stop, tasks.clone()));
        Ok((federation, Some(address)))
    }

    /// Our own certificate, for connections to our endpoint from now on.
    pub(crate) fn present(&self, key: Arc<CertifiedKey>) {
        self.presented.replace(key);
    }

    /// Exactly these relationships from now on. One that stays as it is goes on; one that is gone is trusted no more.
    pub(crate) fn follow<'d>(self: &Arc<Self>, wanted: impl IntoIterator<Item = &'d FederatedTrustDomain>) {
        let mut partners = self.partners.lock();
        let mut before = std::mem::take(&mut *partners);
        for relationship in wanted {
            // Validation has refused it already; to be trusted as foreign what is ours would undo every policy.
            if relationship.trust_domain == *self.authority.trust_domain() {
                continue;
            }
            let known = before.remove(&relationship.trust_domain);
            let partner = match known {
                Some(known) if known.relationship == *relationship => known,
                known => {
                    known.iter().for_each(|known| known.end());
                    let partner = Partner::open(relationship.clone(), known.as_deref(), self.store.as_ref());
                    let partner = Arc::new(partner);
                    self.tasks.spawn(partner::keep_fresh(Arc::clone(self), Arc::clone(&partner)));
                    partner
                }
            };
            partners.insert(relationship.trust_domain.clone(), partner);
        }
        for gone in before.into_values() {
            gone.end();
        }
        self.publish(&partners);
    }

    /// The foreign bundles in force, by trust domain; with every change of them.
    pub(crate) fn bundles(&self) -> watch::Receiver<Arc<[Bundle]>> {
        self.published.subscribe()
    }

    /// One row for each relationship, by trust domain.
    pub(crate) fn status(&self) -> Vec<FederationStatus> {
        self.partners.lock().values().map(|partner| partner.status()).collect()
    }

    /// The bundle by which an endpoint of `trust_domain` is recognised now.
    fn bundle(&self, trust_domain: &str) -> Option<Bundle> {
        if trust_domain == self.authority.trust_domain().as_str() {
            return Some(self.authority.bundle());
        }
        self.partners.lock().get(trust_domain).and_then(|partner| partner.bundle())
    }

    /// After a bundle has changed.
    fn publish_again(&self) {
        self.publish(&self.partners.lock());
    }

    fn publish(&self, partners: &BTreeMap<TrustDomain, Arc<Partner>>) {
        let mut room = MAX_PUBLISHED;
        let mut bundles = Vec::new();
        for bundle in partners.values().filter_map(|partner| partner.bundle()) {
            let size = bundle.to_document().len();
            match room.checked_sub(size) {
                Some(left) => {
                    room = left;
                    bundles.push(bundle);
                }
                None => tracing::error!(
                    trust_domain = %bundle.trust_domain,
                    "the bundles of all federated trust domains together are too large for the sidecars: this one is left out; federate with fewer"
                ),
            }
        }
        let bundles: Arc<[Bundle]> = bundles.into();
        self.published.send_if_modified(|current| {
            let changed = *current != bundles;
            *current = bundles;
            changed
        });
    }
}
