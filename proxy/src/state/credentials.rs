//! What the current certificate makes possible: proven before it is published, and replaced whole.

use crate::tls::Contexts;
use postern_identity::{Accept, Bundle, KeyId, SpiffeId, TrustBundles, svid, verify::verify};
use rustls::sign::CertifiedKey;
use rustls_pki_types::UnixTime;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use zeroize::Zeroizing;

/// By how much our authority back-dates, against clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);

/// What the current certificate makes possible: published whole.
pub struct Credentials {
    /// Our own ID.
    pub id: SpiffeId,
    /// Certificate and key.
    pub key: Arc<CertifiedKey>,
    /// The same key for those who need its bytes: the workload itself, by the Workload API.
    pub private_key: PrivateKey,
    /// Bundles by trust domain.
    pub trust: Arc<TrustBundles>,
    /// When the leaf begins.
    pub not_before: SystemTime,
    /// When the leaf ends.
    pub not_after: SystemTime,
    /// Serial of the leaf, hex.
    pub serial: String,
    /// Keys of the certificates above the leaf, from its issuer to the anchor that it was verified to.
    pub authorities: Arc<[KeyId]>,
    /// Ready-made TLS contexts for this certificate.
    pub tls: Contexts,
}

impl Credentials {
    /// From a certificate that our own verifier accepts under `trust`, as server and as client: what peers would refuse is
    /// never presented to them.
    ///
    /// # Errors
    /// The rule that the certificate breaks, in a sentence.
    pub fn prove(
        key: Arc<CertifiedKey>,
        private_key: PrivateKey,
        trust: Arc<TrustBundles>,
    ) -> Result<Self, String> {
        let der = key.cert.first().ok_or("our own certificate chain is empty")?;
        let leaf = svid::check_leaf(der).map_err(|refusal| format!("our own certificate: {refusal}"))?;
        let tls = Contexts::build(key.clone(), trust.clone(), &leaf.id)?;
        Ok(Self {
            authorities: authorities(&key, &trust, &leaf.id).into(),
            not_before: at(leaf.not_before),
            not_after: at(leaf.not_after),
            serial: leaf.serial,
            id: leaf.id,
            key,
            private_key,
            trust,
            tls,
        })
    }

    /// The same certificate under other bundles.
    ///
    /// # Errors
    /// When it would not be valid under them.
    pub fn under(&self, trust: Arc<TrustBundles>) -> Result<Self, String> {
        Self::prove(self.key.clone(), self.private_key.clone(), trust)
    }

    /// The authority above us that `trust` names as revoked.
    pub fn revoked_by(&self, trust: &TrustBundles) -> Option<KeyId> {
        let revoked = &trust.get(self.id.trust_domain())?.revoked;
        self.authorities.iter().find(|key| revoked.contains(key)).copied()
    }

    /// When less than a tenth of its life is left: from then on it is an alarm that no other certificate is there. The minutes
    /// by which it was back-dated are no life.
    pub fn nearly_over(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        let life = life.checked_sub(BACKDATE).unwrap_or(life);
        self.not_after.checked_sub(life / 10).unwrap_or(self.not_after)
    }
}

/// The keys above the leaf. The anchor is not in the chain, so it is found by asking which one verifies it.
fn authorities(key: &CertifiedKey, trust: &TrustBundles, id: &SpiffeId) -> Vec<KeyId> {
    let above = key.cert.iter().skip(1);
    let mut keys: Vec<KeyId> = above.filter_map(|der| KeyId::of_certificate(der).ok()).collect();
    let Some(bundle) = trust.get(id.trust_domain()) else { return keys };
    let accept = Accept::only(id.clone());
    let verifies = |anchor: &rustls_pki_types::CertificateDer<'static>| {
        let alone = Bundle::new(bundle.trust_domain.clone(), vec![anchor.clone()]);
        verify(&key.cert, &[alone].into_iter().collect(), &accept, true, UnixTime::now()).is_ok()
    };
    keys.extend(
        bundle
            .anchors
            .iter()
            .find(|anchor| verifies(anchor))
            .and_then(|anchor| KeyId::of_certificate(anchor).ok()),
    );
    keys
}

fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
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
