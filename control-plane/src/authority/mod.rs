//! The certificate authority of one trust domain: root, intermediate, workload certificates; and keys for tokens.
//!
//! A certificate is issued for what was *attested*; of the request only the public key is used, and its signature as
//! proof of possession. Below the active root each process makes one intermediate whose key it keeps in memory, and signs
//! leaves with that. Authorities are rotated through slots, [`Slot::Prepared`] to [`Slot::Active`] to [`Slot::Old`]; the steps
//! check what can be known here, and whoever calls them checks that the sidecars are ready.
//!
//! `root` makes roots, `sign` intermediates and leaves, `jwt` tokens; `state` is what is remembered (pure), `journal` keeps it
//! on the disk, `writer` is the one who changes all that, `current` what issuing reads; `upstream` is the root that somebody else gives; [`status`] is what
//! others may know.

mod current;
mod error;
mod journal;
mod jwt;
mod root;
mod sign;
mod state;
pub mod status;
mod upstream;
mod writer;

pub use error::{AuthorityError, IssueError, StepError};
pub use jwt::{DEFAULT_JWT_LIFETIME, JwtIssued, MAX_JWT_LIFETIME};
pub use sign::Issued;
pub use status::{AuthorityKind, AuthorityStatus, Event, Outside, Published, Slot};
pub use upstream::{Settings, Upstream, VaultPki};

use crate::attest::Attested;
use arc_swap::ArcSwap;
use current::Current;
use journal::Store;
use parking_lot::Mutex;
use postern_identity::{Bundle, IdError, KeyId, SpiffeId, TrustDomain, bundle::pem_block, svid};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{broadcast, watch};
use upstream::Supplied;
use writer::Writer;

/// The lifetime of a workload certificate when none is asked for, and of our own server's.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The longest lifetime of a workload certificate.
pub const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// The lifetime of the intermediate when none is asked for.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// How far certificates start in the past, for machines whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// An authority that ends sooner than this is a problem to report.
const WARN_DAYS: i64 = 60;
/// Events that wait for the slowest listener.
const EVENTS: usize = 64;
/// Namespace of the control plane's own identity.
pub const NAMESPACE: &str = "postern-system";
/// Service account of the control plane's own identity.
pub const SERVICE_ACCOUNT: &str = "control-plane";

/// The authority of one trust domain. Share it behind an `Arc`: everything takes `&self`, and who issues never waits for who
/// changes it.
pub struct Authority {
    trust_domain: TrustDomain,
    upstream: Upstream,
    intermediate_lifetime: Duration,
    store: Option<Store>,
    writer: Mutex<Writer>,
    current: ArcSwap<Current>,
    changes: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
}

impl Authority {
    /// A new authority that nobody will know after the process has ended.
    ///
    /// # Errors
    /// Only when the machine has no randomness.
    pub fn in_memory(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let settings = Settings {
            state: None,
            trust_domain,
            upstream: Upstream::Own,
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            leaf_lifetime: DEFAULT_LIFETIME,
            allow_ending: false,
        };
        Self::open_with(settings, None, now)
    }

    /// The authority that `settings` describe; made at the first start. A folder with only `root.pem` and `root-key.pem` is
    /// taken over: the certificate that fits the key signs, further ones are old roots.
    ///
    /// # Errors
    /// When the files cannot be read or written, are not an authority that may be used, or the outside authority gives none:
    /// see [`AuthorityError`]. Nothing is overwritten then.
    pub async fn open(settings: Settings, now: SystemTime) -> Result<Self, AuthorityError> {
        let lifetime = settings.intermediate_lifetime;
        let supplied = settings.upstream.supply(&settings.trust_domain, lifetime, now).await?;
        Self::open_with(settings, supplied, now)
    }

    fn open_with(
        settings: Settings,
        supplied: Option<Supplied>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let store = settings.state.as_deref().map(Store::open).transpose()?;
        let lock = store.as_ref().map(Store::lock).transpose()?;
        let mut writer = Writer::open(&settings, store.as_ref(), supplied, now)?;
        writer.check_use(&settings, store.as_ref(), now)?;
        let events = writer.refresh(now);
        if let Some(Event::RenewalFailed { reason }) =
            events.iter().find(|event| matches!(event, Event::RenewalFailed { .. }))
        {
            return Err(AuthorityError::Upstream {
                place: "use".into(),
                trust_domain: settings.trust_domain,
                cause: reason.clone(),
            });
        }
        if let Some(store) = &store {
            store.write(&writer.state, &writer.keys)?;
        }
        drop(lock);
        // For the first tick; that there is an intermediate is no news.
        writer.news = events.into_iter().filter(|event| !matches!(event, Event::Renewed { .. })).collect();
        let current = Current::of(&writer, &settings.trust_domain, now);
        Ok(Self {
            changes: watch::channel(writer.state.sequence).0,
            events: broadcast::Sender::new(EVENTS),
            current: ArcSwap::from_pointee(current),
            trust_domain: settings.trust_domain,
            upstream: settings.upstream,
            intermediate_lifetime: settings.intermediate_lifetime,
            store,
            writer: Mutex::new(writer),
        })
    }

    /// The trust domain that this authority signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What others need to verify what this authority signs, and what is tainted or revoked.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.current.load().published)
    }

    /// The sequence of [`Authority::published`], at each change of it.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What happens by itself from now on. Who falls behind by more than 64 events has missed some.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// What others need to verify the certificates of this authority.
    pub fn bundle(&self) -> Bundle {
        self.published().bundle.clone()
    }

    /// The published roots as PEM, the active one first, for the bootstrap of sidecars.
    pub fn bundle_pem(&self) -> String {
        self.published().bundle.anchors.iter().map(|anchor| pem_block("CERTIFICATE", anchor)).collect()
    }

    /// The SPIFFE ID of the control plane, which sidecars expect at the other end.
    ///
    /// # Errors
    /// Never in practice: the names are constants.
    pub fn server_id(&self) -> Result<SpiffeId, IdError> {
        SpiffeId::for_service_account(&self.trust_domain, NAMESPACE, SERVICE_ACCOUNT)
    }

    /// A new key and certificate for the control plane's own server, valid for [`DEFAULT_LIFETIME`]: ask again at half of it,
    /// and after each of [`Authority::changes`].
    ///
    /// It is below the oldest root that is published and neither tainted nor revoked: a sidecar that was away while roots
    /// rotated still recognises it.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn server_identity(&self, now: SystemTime) -> Result<Arc<CertifiedKey>, IssueError> {
        let make = |cause: rcgen::Error| IssueError::Make(cause.to_string());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let id = self.server_id().map_err(IssueError::Identity)?;
        let current = self.current.load();
        let signer = current.server.as_ref().ok_or(IssueError::AuthorityNotValid)?;
        let issued = sign::leaf(signer, &key, id, DEFAULT_LIFETIME, now)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        postern_identity::tls::certified_key(issued.chain, key).map_err(IssueError::Make)
    }

    /// Issues a certificate for `attested` and the public key in `csr` (PKCS#10, DER). Everything else in the request is
    /// ignored: names, usages and lifetimes are decided here (X509-SVID 2 to 4).
    ///
    /// The lifetime is cut to [`MAX_LIFETIME`] and to the end of every certificate above.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn issue(
        &self,
        csr: &[u8],
        attested: &Attested,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let key = sign::requested_key(csr)?;
        let id =
            SpiffeId::for_service_account(&self.trust_domain, &attested.namespace, &attested.service_account)
                .map_err(IssueError::Identity)?;
        let current = self.current.load();
        let signer = current.workloads.as_ref().ok_or(IssueError::AuthorityNotValid)?;
        sign::leaf(signer, &key, id, lifetime, now)
    }

    /// A JWT-SVID for `id`, to be shown to `audience`; [`DEFAULT_JWT_LIFETIME`] is a good lifetime. It is cut to
    /// [`MAX_JWT_LIFETIME`] and to the end of the key.
    ///
    /// # Errors
    /// See [`IssueError`]: the ID is of another trust domain, or the audience or lifetime is none.
    pub fn issue_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<JwtIssued, IssueError> {
        if id.trust_domain() != self.trust_domain.as_str() || id.path().is_empty() {
            return Err(IssueError::Foreign(id.clone()));
        }
        let current = self.current.load();
        let signer = current.tokens.as_ref().ok_or(IssueError::AuthorityNotValid)?;
        signer.sign(id, audience, lifetime, now)
    }

    /// All authorities, roots first, each kind in the order of its slots; revoked ones last until they would have ended.
    pub fn status(&self, now: SystemTime) -> Vec<AuthorityStatus> {
        let writer = self.writer.lock();
        let current = self.current.load();
        status::of(&current.state, &writer.keys, writer.supplied.as_ref(), now, |id| {
            [&current.workloads, &current.server].into_iter().flatten().any(|signer| signer.id == id)
        })
    }

    /// Makes the next root or token key and publishes it. Gives its id.
    ///
    /// # Errors
    /// There is one already; or the kind is none that is made here, which the text explains.
    pub fn prepare(&self, kind: AuthorityKind, now: SystemTime) -> Result<KeyId, StepError> {
        self.step(now, |writer| {
            match kind {
                AuthorityKind::Intermediate => {
                    return Err(StepError::NotHere(
                        "an intermediate is made anew by itself at half of its life: taint it to have a new one now",
                    ));
                }
                AuthorityKind::Root if writer.supplied.is_some() => {
                    return Err(StepError::NotHere(
                        "the root comes from outside: give the new one there, and it is published here by itself",
                    ));
                }
                AuthorityKind::Root | AuthorityKind::JwtKey => {}
            }
            if let Some(prepared) = writer.state.slot(kind, Slot::Prepared) {
                return Err(StepError::AlreadyPrepared(prepared.id));
            }
            let next = writer.make_next(kind, now)?;
            let id = next.id;
            writer.state.prepare(kind, next)?;
            Ok(id)
        })
    }

    /// Lets the prepared root or token key sign; the one before it becomes old. Whether all sidecars know it is the caller's
    /// question. Gives its id.
    ///
    /// # Errors
    /// Nothing is prepared, or it cannot sign here.
    pub fn activate(&self, kind: AuthorityKind, now: SystemTime) -> Result<KeyId, StepError> {
        self.step(now, |writer| writer.activate(kind, seconds(now)))
    }

    /// Publishes an old or prepared root or token key no more. Whether anybody still needs it is the caller's question.
    ///
    /// # Errors
    /// It is active, or unknown; or it comes from outside and is named there still.
    pub fn retire(&self, id: KeyId, now: SystemTime) -> Result<(), StepError> {
        self.step(now, |writer| {
            if writer.supplied.as_ref().and_then(|supplied| supplied.says_of(id)).is_some() {
                return Err(StepError::NotHere(
                    "the outside authority still names this root: take it out there first",
                ));
            }
            writer.state.retire(id).map(|_| ())
        })
    }

    /// Whoever holds something that this signed shall have it replaced now: [`Published::tainted`]. A tainted intermediate of
    /// ours is replaced here at once, so tainting it renews all workloads.
    ///
    /// # Errors
    /// It is the active root or token key (then what is renewed would come from it again), tainted already, or unknown.
    pub fn taint(&self, id: KeyId, now: SystemTime) -> Result<(), StepError> {
        self.step(now, |writer| {
            writer.taintable(id)?;
            writer.state.taint(id)
        })
    }

    /// Trusts nothing any more that this signed: it is in `revoked` of the bundle, and no anchor or token key any more. In the
    /// place of an active root steps the prepared one; an active token key without a prepared one gets a new one.
    ///
    /// # Errors
    /// It is the active root and nothing is prepared, or it is revoked already, or unknown.
    pub fn revoke(&self, id: KeyId, now: SystemTime) -> Result<(), StepError> {
        self.step(now, |writer| writer.revoke(id, now))
    }

    /// Looks at the outside authority, when there is one, and it is time to. Call it before each [`Authority::tick`]; it waits for
    /// the network and for nothing else. What was good stays in force when nothing better comes.
    pub async fn renew_upstream(&self, now: SystemTime) -> Vec<Event> {
        if !self.writer.lock().asks_upstream(&self.upstream, now) {
            return Vec::new();
        }
        let supplied = self.upstream.supply(&self.trust_domain, self.intermediate_lifetime, now).await;
        let taken = supplied.map_err(StepError::from).and_then(|supplied| match supplied {
            // Files that say what they said.
            Some(supplied) if self.writer.lock().has(&supplied) => Ok(()),
            Some(supplied) => self.step(now, |writer| Ok(writer.follow(supplied, now)?)),
            None => Ok(()),
        });
        let told = taken.err().and_then(|cause| self.writer.lock().complain(seconds(now), cause.to_string()));
        let events = Vec::from_iter(told);
        self.tell(&events);
        events
    }

    /// What is to be done at `now`: call it every second or so. Renews the intermediate at half of its life, prepares the next
    /// token key or own root when 20 % of the active one's life are left and activates it at 5 % when nobody has, drops what has
    /// ended, and takes over what another process changed in the state folder. What happened is logged, told to
    /// [`Authority::events`], and returned.
    pub fn tick(&self, now: SystemTime) -> Vec<Event> {
        let mut writer = self.writer.lock();
        let mut next = writer.clone();
        let mut events = Vec::new();
        let mut failed = |next: &mut Writer, cause: AuthorityError| {
            let told = next.complain(seconds(now), cause.to_string());
            events.extend(told.map(|_| Event::StateFailed { reason: cause.to_string() }));
        };
        let lock = self.store.as_ref().map(Store::lock).transpose().and_then(|lock| {
            self.reload(&mut next)?;
            Ok(lock)
        });
        let before = next.state.clone();
        let lock = lock.unwrap_or_else(|cause| {
            failed(&mut next, cause);
            None
        });
        let advanced = next.advance(now).unwrap_or_else(|cause| {
            failed(&mut next, cause);
            Vec::new()
        });
        let refreshed = next.refresh(now);
        if let Some(store) = &self.store
            && before != next.state
            && lock.is_some()
            && let Err(cause) = store.write(&next.state, &next.keys)
        {
            failed(&mut next, cause);
        }
        drop(lock);
        events.extend(advanced.into_iter().chain(refreshed).chain(next.remaining(now)));
        self.tell(&events);
        *writer = next;
        self.publish(&writer, now);
        events
    }

    /// What should be repaired about the published bundle and the signing certificate, in sentences; empty when all is
    /// well.
    pub fn problems(&self, now: SystemTime) -> Vec<String> {
        let current = self.current.load();
        let mut problems = current.published.bundle.problems(unix(now));
        let active = current.state.slot(AuthorityKind::Root, Slot::Active);
        let ends = active.map_or(0, |root| root.not_after);
        let days = ends.saturating_sub(seconds(now)) / (24 * 60 * 60);
        if (0..WARN_DAYS).contains(&days) {
            problems.push(format!(
                "the root that signs for `{}` ends in {days} days; publish a new root beside it now",
                self.trust_domain
            ));
        }
        problems
    }

    /// Makes a change on a copy, which takes the place of what was only when it is whole and on the disk.
    fn step<T>(
        &self,
        now: SystemTime,
        change: impl FnOnce(&mut Writer) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let mut writer = self.writer.lock();
        let mut next = writer.clone();
        let lock = self.store.as_ref().map(Store::lock).transpose()?;
        self.reload(&mut next)?;
        let outcome = change(&mut next)?;
        let events = next.refresh(now);
        next.keep_only_named_keys();
        let active = next.state.slot(AuthorityKind::Root, Slot::Active);
        if !active.is_some_and(|root| next.signers.contains_key(&root.id)) {
            return Err(StepError::NotHere("after this step nothing could sign workload certificates"));
        }
        if let Some(store) = &self.store {
            store.write(&next.state, &next.keys)?;
        }
        drop(lock);
        self.tell(&events);
        *writer = next;
        self.publish(&writer, now);
        Ok(outcome)
    }

    /// What another process wrote meanwhile is in force here too.
    fn reload(&self, writer: &mut Writer) -> Result<(), AuthorityError> {
        let Some(store) = &self.store else { return Ok(()) };
        if let Some(state) = store.read(&self.trust_domain)?
            && state != writer.state
        {
            writer.keys = store.keys(&state, &writer.keys)?;
            writer.state = state;
        }
        Ok(())
    }

    /// To the log, and to whoever listens.
    fn tell(&self, events: &[Event]) {
        for event in events {
            match event.is_warning() {
                true => tracing::warn!("{event}"),
                false => tracing::info!("{event}"),
            }
            // Nobody may listen.
            let _ = self.events.send(event.clone());
        }
    }

    fn publish(&self, writer: &Writer, now: SystemTime) {
        let current = Current::of(writer, &self.trust_domain, now);
        let changed = current.published != self.current.load().published;
        self.current.store(Arc::new(current));
        if changed {
            self.changes.send_replace(writer.state.sequence);
        }
    }
}

/// Shows no key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Whether `certificate` may be a signing certificate of `trust_domain` now.
fn check_anchor(certificate: &[u8], trust_domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
    svid::check_anchor(certificate, trust_domain.as_str(), unix(now)).map_err(|refusal| refusal.to_string())
}

fn unix(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Seconds since 1970; a clock before that reads as 1970.
fn seconds(now: SystemTime) -> i64 {
    i64::try_from(unix(now).as_secs()).unwrap_or(i64::MAX)
}

/// The inverse of [`seconds`].
fn instant(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
}

#[cfg(test)]
mod rotation_tests;
#[cfg(test)]
mod tests;
