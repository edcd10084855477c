//! Certificates for tests, good by default, with one thing changed at a time.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_identity::{Bundle, TrustBundles};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, string::Ia5String,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::time::Duration;
use time::OffsetDateTime;

pub const TD: &str = "cluster.local";
pub const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub const API: &str = "spiffe://cluster.local/ns/payments/sa/api";
pub const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
pub const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
pub const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];

/// The clock of the pure tests.
pub const NOW: i64 = 1_780_000_000;

pub fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW as u64))
}

pub fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

pub struct Authority {
    pub der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

pub struct Leaf {
    pub der: CertificateDer<'static>,
    key: KeyPair,
}

impl Leaf {
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

/// A root whose only certificate names `trust_domain`.
pub fn root(trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
    root_with(KeyPair::generate().unwrap(), trust_domain, change)
}

pub fn root_with(key: KeyPair, trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
    let mut params = authority_params(trust_domain);
    change(&mut params);
    let der = params.self_signed(&key).unwrap().der().clone();
    Authority { der, issuer: Issuer::new(params, key) }
}

impl Authority {
    pub fn intermediate(&self, trust_domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Authority {
        self.intermediate_with(KeyPair::generate().unwrap(), trust_domain, change)
    }

    pub fn intermediate_with(
        &self,
        key: KeyPair,
        trust_domain: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Authority {
        let mut params = authority_params(trust_domain);
        params.distinguished_name.push(DnType::CommonName, format!("{trust_domain} intermediate"));
        change(&mut params);
        let der = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Authority { der, issuer: Issuer::new(params, key) }
    }

    pub fn leaf(&self, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        self.leaf_with(KeyPair::generate().unwrap(), id, change)
    }

    pub fn leaf_with(&self, key: KeyPair, id: &str, change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let mut params = leaf_params(id);
        change(&mut params);
        Leaf { der: params.signed_by(&key, &self.issuer).unwrap().der().clone(), key }
    }

    /// The certificate of a key that nobody has: SubjectPublicKeyInfo of any kind.
    pub fn certify(&self, key: &impl PublicKeyData, params: &CertificateParams) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    pub fn trust(&self, trust_domain: &str) -> TrustBundles {
        TrustBundles::from_iter([self.bundle(trust_domain)])
    }

    pub fn bundle(&self, trust_domain: &str) -> Bundle {
        Bundle::new(trust_domain.parse().unwrap(), vec![self.der.clone()])
    }
}

pub fn authority_params(trust_domain: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, trust_domain);
    params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = at(NOW - 3_600);
    params.not_after = at(NOW + 86_400 * 3650);
    params
}

pub fn leaf_params(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = at(NOW - 300);
    params.not_after = at(NOW + 3_600);
    params
}

/// An RSA key of this many bits, as far as a certificate shows.
pub struct RsaOf {
    der: Vec<u8>,
}

impl RsaOf {
    pub fn bits(bits: usize) -> Self {
        let modulus = [&[0][..], &vec![0xc1; bits / 8]].concat();
        Self { der: der(0x30, &[der(0x02, &modulus), der(0x02, &[1, 0, 1])].concat()) }
    }
}

impl PublicKeyData for RsaOf {
    fn der_bytes(&self) -> &[u8] {
        &self.der
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

pub fn self_signed(id: &str) -> Leaf {
    let key = KeyPair::generate().unwrap();
    Leaf { der: leaf_params(id).self_signed(&key).unwrap().der().clone(), key }
}

pub fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

pub fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// One DER element.
pub fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        short @ 0..=127 => der.push(short as u8),
        middle @ 128..=255 => der.extend([0x81, middle as u8]),
        long => der.extend([0x82, (long >> 8) as u8, long as u8]),
    }
    der.extend(content);
    der
}

/// subjectAltName from raw names: `(context tag, bytes)`.
pub fn raw_names(critical: bool, names: &[(u8, &[u8])]) -> CustomExtension {
    let names: Vec<u8> = names.iter().flat_map(|(tag, bytes)| der(0x80 | tag, bytes)).collect();
    extension(SUBJECT_ALT_NAME, critical, der(0x30, &names))
}
