//! The life of one relationship: what is known of the other side, and the looks that keep it fresh.

use super::{
    Federation, FederationStatus, Source, Timing, fetch,
    store::{Record, Store},
};
use parking_lot::Mutex;
use postern_config::documents::{FederatedTrustDomain, federation::EndpointProfile};
use postern_identity::{Accept, Bundle, TrustBundles};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// The largest bundle in our own writing, in bytes: some fifty authorities. Every sidecar holds it.
const MAX_BUNDLE: usize = 64 * 1024;

/// One foreign trust domain.
pub(super) struct Partner {
    pub(super) relationship: FederatedTrustDomain,
    state: Mutex<State>,
    stop: CancellationToken,
}

#[derive(Clone, Default)]
struct State {
    known: Option<Known>,
    failures: u64,
    last_error: Option<String>,
}

#[derive(Clone)]
struct Known {
    bundle: Bundle,
    source: Source,
    fetched_at: Option<SystemTime>,
}

impl Partner {
    /// With the last good bundle: that of the relationship before it, the stored one, or the one of the document. What was
    /// fetched counts only while the endpoint is recognised as it was then: another profile, SPIFFE ID or initial bundle
    /// begins anew, which is how people recover from an endpoint that lost its keys.
    pub(super) fn open(
        relationship: FederatedTrustDomain,
        before: Option<&Self>,
        store: Option<&Store>,
    ) -> Self {
        let basis = basis(&relationship);
        let mut last_error = None;
        let inherited = before
            .filter(|before| self::basis(&before.relationship) == basis)
            .and_then(|before| before.state.lock().known.clone());
        let stored = || match store?.load(&relationship.trust_domain, &basis) {
            Ok(record) => record.map(|Record { bundle, fetched_at, .. }| Known {
                bundle,
                source: Source::Stored,
                fetched_at: Some(fetched_at),
            }),
            Err(reason) => {
                tracing::warn!(trust_domain = %relationship.trust_domain, reason, "a stored bundle is ignored");
                last_error = Some(reason);
                None
            }
        };
        let written = || {
            let bundle = relationship.bundle.clone()?;
            Some(Known { bundle, source: Source::Document, fetched_at: None })
        };
        let known = inherited.or_else(stored).or_else(written);
        let state = State { known, failures: 0, last_error };
        Self { relationship, state: Mutex::new(state), stop: CancellationToken::new() }
    }

    /// No more looks.
    pub(super) fn end(&self) {
        self.stop.cancel();
    }

    pub(super) fn bundle(&self) -> Option<Bundle> {
        self.state.lock().known.as_ref().map(|known| known.bundle.clone())
    }

    pub(super) fn status(&self) -> FederationStatus {
        let state = self.state.lock().clone();
        let bundle = state.known.as_ref().map(|known| &known.bundle);
        FederationStatus {
            trust_domain: self.relationship.trust_domain.clone(),
            url: self.relationship.url.to_string(),
            profile: match &self.relationship.profile {
                EndpointProfile::Web => "https_web".into(),
                EndpointProfile::Spiffe(id) => format!("https_spiffe {id}"),
            },
            source: state.known.as_ref().map(|known| known.source),
            sequence: bundle.and_then(|bundle| bundle.sequence),
            authorities: bundle.map_or(0, |bundle| bundle.anchors.len()),
            jwt_keys: bundle.map_or(0, |bundle| bundle.jwt_keys.len()),
            fetched_at: state.known.as_ref().and_then(|known| known.fetched_at),
            failures: state.failures,
            last_error: state.last_error,
        }
    }

    /// Takes a document that came from the authenticated endpoint. Returns whether the bundle is another one now.
    ///
    /// # Errors
    /// Why it is not taken; the last good one stays.
    fn take(&self, document: &[u8], now: SystemTime, store: Option<&Store>) -> Result<bool, String> {
        let trust_domain = self.relationship.trust_domain.clone();
        let bundle = Bundle::from_document(trust_domain, document)?;
        let size = bundle.to_document().len();
        if size > MAX_BUNDLE {
            return Err(format!(
                "the bundle has {size} bytes of authorities, which every sidecar would have to hold; the limit is {MAX_BUNDLE}"
            ));
        }
        let mut state = self.state.lock();
        let known = state.known.as_ref().map(|known| &known.bundle);
        if let Some(known) = known {
            check_sequence(known, &bundle)?;
        }
        let changed = known != Some(&bundle);
        if bundle.anchors.is_empty() && known.is_some_and(|known| !known.anchors.is_empty()) {
            tracing::warn!(trust_domain = %bundle.trust_domain, "the other side has revoked all of its authorities: its workloads are refused");
        }
        let record = Record { basis: basis(&self.relationship), fetched_at: now, bundle: bundle.clone() };
        // A full disk is no reason to trust yesterday's keys.
        let kept = store.map_or(Ok(()), |store| store.save(&record));
        state.known = Some(Known { bundle, source: Source::Fetched, fetched_at: Some(now) });
        if std::mem::take(&mut state.failures) > 0 {
            tracing::info!(trust_domain = %self.relationship.trust_domain, "the bundle of a federated trust domain is fetched again");
        }
        state.last_error = kept.err();
        if let Some(reason) = &state.last_error {
            tracing::warn!(reason, "a fetched bundle is in force and could not be kept for the next start");
        }
        Ok(changed)
    }

    fn failed(&self, reason: String) {
        let mut state = self.state.lock();
        state.failures += 1;
        tracing::warn!(
            trust_domain = %self.relationship.trust_domain, url = %self.relationship.url, failures = state.failures, reason,
            "the bundle of a federated trust domain could not be fetched; the last good one stays"
        );
        state.last_error = Some(reason);
    }

    fn next_look(&self, timing: &Timing) -> Duration {
        let state = self.state.lock();
        let fetched = state.known.as_ref().filter(|known| known.source != Source::Document);
        let Some(known) = fetched else { return timing.shortest };
        // What a hostile hint can do is bounded on both sides.
        known.bundle.refresh_hint.unwrap_or(timing.interval).min(timing.longest).max(timing.shortest)
    }
}

/// How the endpoint is recognised, as text: what was fetched on another basis is not carried over.
fn basis(relationship: &FederatedTrustDomain) -> String {
    let profile = match &relationship.profile {
        EndpointProfile::Web => "https_web",
        EndpointProfile::Spiffe(id) => id.as_str(),
    };
    let initial = relationship.bundle.as_ref().map(Bundle::to_document).unwrap_or_default();
    let digest =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, format!("{profile}\n{initial}").as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A replica that is behind, or an old document served again, must not bring back a removed authority (SPIFFE Trust Domain
/// and Bundle 4.1.1: the sequence only grows). The same content is never a roll-back.
fn check_sequence(known: &Bundle, next: &Bundle) -> Result<(), String> {
    let Some(before) = known.sequence else { return Ok(()) };
    let same_content = known.anchors == next.anchors && known.jwt_keys == next.jwt_keys;
    match next.sequence {
        Some(sequence) if sequence >= before => Ok(()),
        _ if same_content => Ok(()),
        Some(sequence) => Err(format!(
            "roll-back: the document has spiffe_sequence {sequence} and we know {before}; when the other side began anew, give its new bundle as trustDomainBundle"
        )),
        None => Err(format!(
            "roll-back: the document has no spiffe_sequence and we know {before}; when the other side began anew, give its new bundle as trustDomainBundle"
        )),
    }
}

/// Looks until the relationship ends. A look that failed is not repeated before the next one is due (SPIFFE Federation 5.3).
pub(super) async fn keep_fresh(federation: Arc<Federation>, partner: Arc<Partner>) {
    loop {
        tokio::select! {
            () = federation.stop.cancelled() => return,
            () = partner.stop.cancelled() => return,
            () = look(&federation, &partner) => {}
        }
        tokio::select! {
            () = federation.stop.cancelled() => return,
            () = partner.stop.cancelled() => return,
            () = tokio::time::sleep(partner.next_look(&federation.settings.timing)) => {}
        }
    }
}

async fn look(federation: &Federation, partner: &Partner) {
    let fetched = match client(federation, partner).await {
        Ok(tls) => fetch::fetch(&partner.relationship.url, tls, federation.settings.timing.deadline).await,
        Err(reason) => Err(reason),
    };
    let taken =
        fetched.and_then(|document| partner.take(&document, SystemTime::now(), federation.store.as_ref()));
    match taken {
        Ok(true) => {
            let status = partner.status();
            tracing::info!(
                trust_domain = %status.trust_domain, sequence = status.sequence, authorities = status.authorities,
                "a federated trust domain has another bundle"
            );
            federation.publish_again();
        }
        Ok(false) => {}
        Err(reason) => partner.failed(reason),
    }
}

/// How the endpoint must prove itself this time.
async fn client(federation: &Federation, partner: &Partner) -> Result<Arc<rustls::ClientConfig>, String> {
    match &partner.relationship.profile {
        EndpointProfile::Web => {
            // Read anew each time: authorities of the system are replaced while we run.
            let file = federation.settings.web_authorities.clone();
            tokio::task::spawn_blocking(move || fetch::web_client(file.as_deref()))
                .await
                .map_err(|cause| format!("the authorities for https_web could not be read: {cause}"))?
        }
        EndpointProfile::Spiffe(id) => {
            let bundle = federation.bundle(id.trust_domain()).ok_or_else(|| {
                format!(
                    "there is no bundle of `{}` yet, by which the endpoint {id} is recognised",
                    id.trust_domain()
                )
            })?;
            let trust: TrustBundles = [bundle].into_iter().collect();
            postern_identity::tls::client_config(
                None,
                Arc::new(trust),
                Accept::only(id.clone()),
                &[b"http/1.1"],
            )
            .map(Arc::new)
        }
    }
}
