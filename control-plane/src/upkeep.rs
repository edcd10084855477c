//! What the control plane does by itself, about once a second: the authority ticks, trust goes out, our own certificate is
//! renewed, a rotation takes its next step; and what operators ask for, step by step, each against the evidence.

use crate::{
    attest::Attested,
    authority::{AuthorityKind, Event, Slot, StepError},
    publish::{Publisher, listener::Tls},
    rotation::{Action, Lagging, Step, View, is_on_its_way},
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use postern_identity::{
    Accept, KeyId,
    tls::{ClientCertificate, server_config},
};
use rustls::{ServerConfig, sign::CertifiedKey};
use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// From one look to the next.
const INTERVAL: Duration = Duration::from_secs(1);
/// A renewal of our own certificate that failed is tried again after this time.
const RENEWAL_RETRY: Duration = Duration::from_secs(10);

/// Why an operator's step was not made.
#[derive(Debug)]
pub(crate) enum Refused {
    /// The authority cannot.
    Step(StepError),
    /// It would cut these off.
    Lagging(Vec<Lagging>),
}

impl From<StepError> for Refused {
    fn from(cause: StepError) -> Self {
        Self::Step(cause)
    }
}

/// The steps of a rotation that one may ask for alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Single {
    Prepare,
    Activate,
    Retire,
}

/// Whoever changes authorities while sidecars are connected.
pub(crate) struct Upkeep {
    publisher: Arc<Publisher>,
    tls: Tls,
    started: SystemTime,
    /// Whole rotations that somebody asked for, or that the authority began.
    asked: Mutex<BTreeSet<AuthorityKind>>,
    own: Mutex<Own>,
}

/// Our own certificate.
struct Own {
    /// When our clock says something earlier, it was ahead, and others refuse the certificate.
    not_before: SystemTime,
    renew_at: SystemTime,
    /// The trust that connections are verified by.
    trust_version: String,
}

impl Upkeep {
    /// Makes our own certificate.
    ///
    /// # Errors
    /// The authority cannot sign now.
    pub(crate) fn new(publisher: Arc<Publisher>, now: SystemTime) -> anyhow::Result<Self> {
        let (config, own) = own_tls(&publisher, now)?;
        Ok(Self {
            publisher,
            tls: Arc::new(ArcSwap::new(config)),
            started: now,
            asked: Mutex::default(),
            own: Mutex::new(own),
        })
    }

    /// What the server for sidecars shows and asks for.
    pub(crate) fn tls(&self) -> Tls {
        Arc::clone(&self.tls)
    }

    pub(crate) fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Until the publisher stops.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changes = self.publisher.authority.changes();
        let mut foreign = self.publisher.federation.bundles();
        let mut clock = tokio::time::interval(INTERVAL);
        clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.publisher.stop.cancelled() => return,
                _ = clock.tick() => {}
                Ok(()) = changes.changed() => {}
                Ok(()) = foreign.changed() => {}
            }
            self.publisher.authority.renew_upstream(SystemTime::now()).await;
            let upkeep = Arc::clone(&self);
            // The authority reads and writes its journal.
            let done = tokio::task::spawn_blocking(move || upkeep.tick(SystemTime::now())).await;
            if done.is_err() {
                tracing::error!("a round of upkeep broke off; the next one follows");
            }
        }
    }

    /// One round.
    pub(crate) fn tick(&self, now: SystemTime) {
        for event in self.publisher.authority.tick(now) {
            // What it prepares by itself shall be finished.
            if let Event::Prepared { kind, .. } = event {
                self.asked.lock().insert(kind);
            }
        }
        self.publisher.tokens.prune(now);
        self.publisher
            .sessions
            .forget_departed(now.checked_sub(self.publisher.certificate_lifetime).unwrap_or(now));
        self.publish(now);
        self.advance(now);
    }

    /// What is known now.
    pub(crate) fn view(&self, now: SystemTime) -> View {
        let publisher = &self.publisher;
        let index = publisher.index.borrow().clone();
        let named = |(namespace, service_account, pod): (&str, &str, &str)| Attested {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: pod.to_owned(),
        };
        View {
            sessions: publisher.sessions.all(),
            departed: publisher.sessions.departed(),
            expected: index
                .iter()
                .flat_map(|index| index.sidecars().map(named).collect::<Vec<_>>())
                .collect(),
            authorities: publisher.authority.status(now),
            trust_version: publisher.trust().version.clone(),
            started: self.started,
            certificate_lifetime: publisher.certificate_lifetime,
            now,
        }
    }

    /// Whole rotations that go on by themselves because somebody asked.
    pub(crate) fn asked(&self) -> BTreeSet<AuthorityKind> {
        self.asked.lock().clone()
    }

    /// Begins a whole rotation, which then goes on by itself; or goes on with one that is prepared. A sentence on what was done.
    pub(crate) fn rotate(&self, kind: AuthorityKind, now: SystemTime) -> Result<String, Refused> {
        let authority = &self.publisher.authority;
        let view = self.view(now);
        if kind == AuthorityKind::Intermediate {
            let active = view.slot(kind, Slot::Active).map(|active| active.id);
            let active =
                active.ok_or(StepError::NotHere("no intermediate is in use: the root signs itself"))?;
            authority.taint(active, now)?;
            // Sidecars may hold certificates of processes that signed before this one.
            let others =
                view.authorities.iter().filter(|one| one.kind == kind && !one.tainted && !one.revoked);
            for other in others.filter(|other| other.id != active) {
                authority.taint(other.id, now)?;
            }
            self.publish(now);
            return Ok(format!("intermediate {} is tainted, and another one signs", active.short()));
        }
        let told = match view.next_of(kind) {
            Some(next) => format!("{kind} {} was prepared already", next.id.short()),
            None if !view.is_over(kind) => {
                format!("the last rotation of the {kind} goes on")
            }
            None => format!("{kind} {} is prepared and published", authority.prepare(kind, now)?.short()),
        };
        self.asked.lock().insert(kind);
        self.publish(now);
        self.advance(now);
        Ok(told)
    }

    /// One step of a rotation. `force` does it whatever the evidence says.
    pub(crate) fn step(
        &self,
        kind: AuthorityKind,
        single: Single,
        force: bool,
        now: SystemTime,
    ) -> Result<String, Refused> {
        let authority = &self.publisher.authority;
        let told = match single {
            Single::Prepare => {
                format!("{kind} {} is prepared and published", authority.prepare(kind, now)?.short())
            }
            Single::Activate => {
                if self.view(now).next_of(kind).is_some() {
                    self.check(Step::Activate(kind), force, now)?;
                }
                format!("{kind} {} signs now", authority.activate(kind, now)?.short())
            }
            Single::Retire => {
                let view = self.view(now);
                let old = |slot| view.slot(kind, slot).map(|one| one.id);
                let id = old(Slot::Old)
                    .ok_or(StepError::NotHere("there is no old one of this kind that could be retired"))?;
                self.check(Step::Retire(id), force, now)?;
                authority.retire(id, now)?;
                format!("{kind} {} is published no more", id.short())
            }
        };
        self.publish(now);
        Ok(told)
    }

    /// Whoever holds something below `id` renews now.
    pub(crate) fn taint(&self, id: KeyId, now: SystemTime) -> Result<String, Refused> {
        self.publisher.authority.taint(id, now)?;
        self.publish(now);
        Ok(format!("{} is tainted: whoever holds a certificate below it renews now", id.short()))
    }

    /// Nothing below `id` is trusted any more. `force` does it whomever that cuts off.
    pub(crate) fn revoke(&self, id: KeyId, force: bool, now: SystemTime) -> Result<String, Refused> {
        self.check(Step::Revoke(id), force, now)?;
        self.publisher.authority.revoke(id, now)?;
        self.publish(now);
        Ok(format!("{} is revoked: nothing below it is trusted any more", id.short()))
    }

    fn check(&self, step: Step, force: bool, now: SystemTime) -> Result<(), Refused> {
        let lagging = self.view(now).lagging(step);
        if lagging.is_empty() {
            return Ok(());
        }
        if !force {
            return Err(Refused::Lagging(lagging));
        }
        for Lagging { who, reason } in &lagging {
            tracing::warn!(?step, "forced although {who} {reason}");
        }
        Ok(())
    }

    /// The steps that the evidence allows by now.
    fn advance(&self, now: SystemTime) {
        loop {
            let asked = {
                // Held meanwhile, so that what is asked now is not forgotten for what was known before.
                let mut asked = self.asked.lock();
                // As good as always: then nobody copies what is known of ten thousand sidecars, once a second.
                if !is_on_its_way(&self.publisher.authority.status(now)) {
                    return asked.clear();
                }
                asked.clone()
            };
            let view = self.view(now);
            let mut changed = false;
            for action in view.next(&asked) {
                changed |= self.act(action, now);
            }
            if changed {
                self.publish(now);
                continue;
            }
            self.asked.lock().retain(|kind| !view.is_over(*kind));
            return;
        }
    }

    /// Whether it was done.
    fn act(&self, action: Action, now: SystemTime) -> bool {
        let authority = &self.publisher.authority;
        let done = match action {
            Action::Activate(kind) => authority.activate(kind, now).map(|id| {
                tracing::info!("{kind} {} signs now: every sidecar knows it", id.short());
            }),
            Action::Taint(id) => authority.taint(id, now).map(|()| {
                tracing::info!("{} is tainted: sidecars renew what they hold below it", id.short());
            }),
            Action::Retire(id) => authority.retire(id, now).map(|()| {
                tracing::info!("{} is published no more: nobody holds anything below it", id.short());
            }),
        };
        done.inspect_err(|cause| tracing::debug!(%cause, ?action, "a rotation waits")).is_ok()
    }

    /// Tells everybody what is in force, and ourselves.
    fn publish(&self, now: SystemTime) {
        let changed = self.publisher.renew_trust();
        let due = {
            let own = self.own.lock();
            changed
                || own.renew_at <= now
                || now < own.not_before
                || own.trust_version != self.publisher.trust().version
        };
        if due && let Err(reason) = self.renew_own(now) {
            self.own.lock().renew_at = now + RENEWAL_RETRY;
            tracing::warn!(%reason, "the control plane's own certificate could not be renewed; the current one stays");
        }
    }

    /// A new certificate of our own and the trust in force, for connections to come; open ones keep what they have.
    pub(crate) fn renew_own(&self, now: SystemTime) -> anyhow::Result<()> {
        let (config, own) = own_tls(&self.publisher, now)?;
        self.tls.store(config);
        *self.own.lock() = own;
        Ok(())
    }
}

/// Any workload of our trust domain may connect, and a starting sidecar without a certificate.
fn own_tls(publisher: &Publisher, now: SystemTime) -> anyhow::Result<(Arc<ServerConfig>, Own)> {
    let trust = publisher.trust();
    let key = publisher
        .authority
        .server_identity(now)
        .context("no certificate for the control plane itself could be made")?;
    let (not_before, not_after) = validity(&key)?;
    let left = not_after.duration_since(now).unwrap_or_default();
    let accept = Accept::trust_domain(publisher.trust_domain.clone());
    let own_trust = Arc::new(trust.own.clone());
    let config = server_config(Arc::clone(&key), own_trust, accept, ClientCertificate::Optional, &[b"h2"])
        .map_err(|reason| {
            anyhow::anyhow!("the TLS configuration of the control plane is not valid: {reason}")
        })?;
    publisher.federation.present(key);
    let renew_at = now + (left / 2).max(INTERVAL);
    let own = Own { not_before, renew_at, trust_version: trust.version.clone() };
    Ok((Arc::new(config), own))
}

fn validity(key: &CertifiedKey) -> anyhow::Result<(SystemTime, SystemTime)> {
    let leaf = key.cert.first().context("the control plane's own chain is empty")?;
    let (_, leaf) =
        x509_parser::parse_x509_certificate(leaf).context("the control plane's own certificate")?;
    let at = |time: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
    };
    Ok((at(leaf.validity().not_before), at(leaf.validity().not_after)))
}
