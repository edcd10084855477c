//! Authorities of tests, and what they sign.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::{Credentials, PrivateKey};
use postern_identity::{Bundle, KeyId, TrustBundles, tls};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::{sync::Arc, time::Duration};

/// Whom they sign for, where nobody else is named.
pub const OWN: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A root, or an intermediate below another one.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate.
    pub der: CertificateDer<'static>,
}

impl Signer {
    /// Of this name.
    pub fn new(name: &str, above: Option<&Self>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let der = match above {
            None => params.self_signed(&key).unwrap().der().clone(),
            Some(above) => params.signed_by(&key, &above.issuer).unwrap().der().clone(),
        };
        Self { issuer: Issuer::new(params, key), der }
    }

    /// Of its key.
    pub fn key(&self) -> KeyId {
        KeyId::of_certificate(&self.der).unwrap()
    }

    /// A leaf for `key` that began a minute ago, changed before it is signed, and `above` behind it.
    pub fn chain(
        &self,
        key: &KeyPair,
        above: &[&Self],
        life: Duration,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(OWN.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = time::OffsetDateTime::now_utc() - Duration::from_secs(60);
        params.not_after = time::OffsetDateTime::now_utc() + life;
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer).unwrap().der().clone();
        std::iter::once(leaf).chain(above.iter().map(|signer| signer.der.clone())).collect()
    }

    /// Such a leaf with a key of its own, as it is put in force.
    pub fn credentials(
        &self,
        above: &[&Self],
        trust: TrustBundles,
        life: Duration,
    ) -> Result<Credentials, String> {
        let key = KeyPair::generate().unwrap();
        let chain = self.chain(&key, above, life, |_| {});
        let der = key.serialize_der();
        let certified = tls::certified_key(chain, PrivateKeyDer::Pkcs8(der.clone().into())).unwrap();
        Credentials::prove(certified, PrivateKey::from(der), Arc::new(trust))
    }
}

/// The life of most.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The bundle of `cluster.local`, alone.
pub fn trust(anchors: &[&Signer], revoked: &[KeyId], sequence: u64) -> TrustBundles {
    let mut bundle = Bundle::new(
        "cluster.local".parse().unwrap(),
        anchors.iter().map(|signer| signer.der.clone()).collect(),
    );
    bundle.revoked = revoked.iter().copied().collect();
    bundle.sequence = Some(sequence);
    [bundle].into_iter().collect()
}
