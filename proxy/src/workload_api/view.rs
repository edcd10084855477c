//! All answers of one generation of certificate and bundles, made once and shared by every stream.

use crate::state::{Credentials, Store};
use bytes::Bytes;
use postern_api::open::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use postern_identity::{Bundle, SpiffeId, TrustBundles, bundle::pem_block};
use std::{collections::BTreeMap, sync::Arc, time::SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

/// What can be said while one certificate and one set of bundles are in force.
pub(super) struct View {
    pub id: SpiffeId,
    pub serial: String,
    pub not_after: SystemTime,
    pub trust: Arc<TrustBundles>,
    pub svid: X509svidResponse,
    pub bundles: X509BundlesResponse,
    pub jwt_bundles: JwtBundlesResponse,
    /// For Envoy: chain and key.
    pub chain_pem: Bytes,
    pub key_pem: Bytes,
    /// For Envoy: anchors by trust domain; one without anchors is not there.
    pub anchors_pem: BTreeMap<String, Bytes>,
}

/// Follows the newest view. `None`: no identity yet.
pub(super) type Views = watch::Receiver<Option<Arc<View>>>;

impl View {
    fn of(credentials: &Credentials) -> Self {
        let own = credentials.id.trust_domain();
        let key = credentials.private_key.clone();
        let svid = X509svid {
            spiffe_id: credentials.id.to_string(),
            x509_svid: concatenated(credentials.key.cert.iter().map(AsRef::as_ref)),
            // Wiped with the last stream that sends it.
            x509_svid_key: Bytes::from_owner(key),
            bundle: credentials.trust.get(own).map(der).unwrap_or_default(),
            hint: String::new(),
        };
        let named = |bundle: &Bundle| SpiffeId::for_trust_domain(&bundle.trust_domain).to_string();
        let x509 = |of: &Bundle| (named(of), der(of));
        // Nothing to verify with is the same as nothing: clients refuse an empty list of certificates.
        let usable = || credentials.trust.iter().filter(|bundle| !bundle.anchors.is_empty());
        let federated = usable().filter(|bundle| bundle.trust_domain.as_str() != own).map(x509).collect();
        let jwt = |of: &Bundle| (named(of), Bytes::from(of.jwt_document()));
        let chain: String = credentials.key.cert.iter().map(|der| pem_block("CERTIFICATE", der)).collect();
        let key_pem = Zeroizing::new(pem_block("PRIVATE KEY", credentials.private_key.as_ref()).into_bytes());
        Self {
            id: credentials.id.clone(),
            serial: credentials.serial.clone(),
            not_after: credentials.not_after,
            trust: credentials.trust.clone(),
            svid: X509svidResponse { svids: vec![svid], crl: Vec::new(), federated_bundles: federated },
            bundles: X509BundlesResponse { crl: Vec::new(), bundles: usable().map(x509).collect() },
            jwt_bundles: JwtBundlesResponse { bundles: credentials.trust.iter().map(jwt).collect() },
            chain_pem: chain.into(),
            key_pem: Bytes::from_owner(key_pem),
            anchors_pem: usable()
                .map(|bundle| (bundle.trust_domain.to_string(), bundle.to_pem().into()))
                .collect(),
        }
    }
}

fn der(bundle: &Bundle) -> Bytes {
    concatenated(bundle.anchors.iter().map(AsRef::as_ref))
}

fn concatenated<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Bytes {
    parts.collect::<Vec<_>>().concat().into()
}

/// Keeps a view of what the store holds, until stopped.
pub(super) fn follow(store: Arc<Store>, stop: CancellationToken) -> Views {
    let (tell, views) = watch::channel(None);
    tokio::spawn(async move {
        let mut generation = store.credentials_generation();
        loop {
            // Before the look, so that a change during the look is not missed.
            generation.mark_unchanged();
            let view = store.credentials().map(|credentials| Arc::new(View::of(&credentials)));
            tell.send_replace(view);
            tokio::select! {
                () = stop.cancelled() => return,
                changed = generation.changed() => if changed.is_err() { return },
            }
        }
    });
    views
}
