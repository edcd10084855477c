//! All answers of one generation of certificate and bundles, made once and shared by every stream.

use crate::state::{Credentials, Store};
use bytes::Bytes;
use postern_api::open::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use postern_identity::{Bundle, KeyId, SpiffeId, TrustBundles, bundle::pem_block};
use rustls_pki_types::CertificateDer;
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// The clock may jump, so a long wait looks at it now and then.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);

/// What can be said of trust while one set of bundles is in force.
pub(super) struct Trusted {
    pub bundles: Arc<TrustBundles>,
    pub x509: X509BundlesResponse,
    pub jwt: JwtBundlesResponse,
    /// For Envoy: anchors by trust domain; one without anchors is not there.
    pub anchors_pem: BTreeMap<String, Bytes>,
}

/// What can be said of the workload itself while one certificate is in force.
pub(super) struct Identity {
    pub id: SpiffeId,
    pub serial: String,
    pub not_after: SystemTime,
    pub svid: X509svidResponse,
    /// For Envoy: chain and key.
    pub chain_pem: Bytes,
    pub key_pem: Bytes,
    pub trusted: Arc<Trusted>,
}

/// Why there is no identity to hand out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Absent {
    /// The one in force has ended; whoever was given it can see that.
    Ended,
    /// Its authority is revoked, which nobody can see who was given it.
    Withdrawn,
}

/// All that can be said now. What is trusted outlives an identity that it forbids.
#[derive(Clone)]
pub(super) struct View {
    pub trusted: Arc<Trusted>,
    pub identity: Result<Arc<Identity>, Absent>,
}

/// Follows the newest view. `None`: neither identity nor trust yet.
pub(super) type Views = watch::Receiver<Option<View>>;

impl View {
    /// `None` before the first certificate.
    fn of(store: &Store) -> Option<Self> {
        let trusted = Arc::new(Trusted::of(store.trust()?));
        let identity = match store.credentials() {
            None => Err(Absent::Withdrawn),
            Some(ended) if has_ended(&ended) => Err(Absent::Ended),
            Some(credentials) => Ok(Arc::new(Identity::of(&credentials, trusted.clone()))),
        };
        Some(Self { trusted, identity })
    }
}

impl Trusted {
    fn of(bundles: Arc<TrustBundles>) -> Self {
        let named = |bundle: &Bundle| SpiffeId::for_trust_domain(&bundle.trust_domain).to_string();
        // Nothing to verify with is the same as nothing: clients refuse an empty list of certificates.
        let usable = || bundles.iter().filter(|bundle| !der(bundle).is_empty());
        let pem = |bundle: &Bundle| -> Bytes {
            anchors(bundle).map(|anchor| pem_block("CERTIFICATE", anchor)).collect::<String>().into()
        };
        Self {
            x509: X509BundlesResponse {
                crl: Vec::new(),
                bundles: usable().map(|bundle| (named(bundle), der(bundle))).collect(),
            },
            jwt: JwtBundlesResponse {
                bundles: bundles.iter().map(|b| (named(b), Bytes::from(b.jwt_document()))).collect(),
            },
            anchors_pem: usable().map(|bundle| (bundle.trust_domain.to_string(), pem(bundle))).collect(),
            bundles,
        }
    }
}

impl Identity {
    fn of(credentials: &Credentials, trusted: Arc<Trusted>) -> Self {
        let own = format!("spiffe://{}", credentials.id.trust_domain());
        let key = credentials.private_key.clone();
        let mut federated = trusted.x509.bundles.clone();
        let svid = X509svid {
            spiffe_id: credentials.id.to_string(),
            x509_svid: concatenated(credentials.key.cert.iter().map(AsRef::as_ref)),
            // Wiped with the last stream that sends it.
            x509_svid_key: Bytes::from_owner(key),
            bundle: federated.remove(&own).unwrap_or_default(),
            hint: String::new(),
        };
        let chain: String = credentials.key.cert.iter().map(|der| pem_block("CERTIFICATE", der)).collect();
        let key_pem = Zeroizing::new(pem_block("PRIVATE KEY", credentials.private_key.as_ref()).into_bytes());
        Self {
            id: credentials.id.clone(),
            serial: credentials.serial.clone(),
            not_after: credentials.not_after,
            svid: X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: federated },
            chain_pem: chain.into(),
            key_pem: Bytes::from_owner(key_pem),
            trusted,
        }
    }
}

fn has_ended(credentials: &Credentials) -> bool {
    credentials.not_after <= SystemTime::now()
}

/// Those of a bundle that may be built on. The formats of SPIFFE have no place for what is revoked.
fn anchors(bundle: &Bundle) -> impl Iterator<Item = &CertificateDer<'static>> {
    let is_revoked = |anchor: &&CertificateDer<'_>| {
        KeyId::of_certificate(anchor).is_ok_and(|key| bundle.revoked.contains(&key))
    };
    bundle.anchors.iter().filter(move |anchor| !is_revoked(anchor))
}

fn der(bundle: &Bundle) -> Bytes {
    concatenated(anchors(bundle).map(AsRef::as_ref))
}

fn concatenated<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Bytes {
    parts.collect::<Vec<_>>().concat().into()
}

/// Keeps a view of what the store holds, until stopped.
pub(super) fn follow(store: Arc<Store>, stop: CancellationToken) -> Views {
    let (tell, views) = watch::channel(None);
    tokio::spawn(async move {
        let (mut credentials, mut trust) = (store.credentials_generation(), store.trust_generation());
        loop {
            // Before the look, so that a change during the look is not missed.
            credentials.mark_unchanged();
            trust.mark_unchanged();
            tell.send_replace(View::of(&store));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = credentials.changed() => if changed.is_err() { return },
                changed = trust.changed() => if changed.is_err() { return },
                () = end_or_return(&store) => {}
            }
        }
    });
    views
}

/// Resolves when the certificate in force ends, or when the clock comes back to before its end.
async fn end_or_return(store: &Store) {
    let Some(current) = store.credentials() else { return std::future::pending().await };
    let had_ended = has_ended(&current);
    while has_ended(&current) == had_ended {
        let left = current.not_after.duration_since(SystemTime::now()).unwrap_or(LOOK_AT_CLOCK);
        tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
    }
}
