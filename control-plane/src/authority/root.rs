//! Roots: made for ten years, or read back and turned into a signer.

use super::{
    AuthorityError, seconds,
    sign::{Key, Signer},
    state,
};
use postern_identity::{KeyId, SpiffeId, TrustDomain};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use std::time::{Duration, SystemTime};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Ten years: a root is replaced by plan, not by expiry.
const LIFETIME: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// A root starts an hour in the past, more than any leaf below it.
const BACKDATE: Duration = Duration::from_secs(60 * 60);
/// The longest common name that X.520 allows.
const MAX_COMMON_NAME: usize = 64;

/// A new P-256 key.
pub(super) fn make_key() -> Result<Key, AuthorityError> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(Key::new).map_err(make)
}

/// A self-signed signing certificate (X509-SVID 2, 4.1, 4.3): the ID of the trust domain itself, cA with room for one
/// intermediate, keyCertSign and cRLSign.
pub(super) fn make_certificate(
    trust_domain: &TrustDomain,
    key: &Key,
    now: SystemTime,
) -> Result<CertificateDer<'static>, AuthorityError> {
    let mut params = signing_params(trust_domain, "root", key).map_err(make)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.not_before = instant(now.checked_sub(BACKDATE).unwrap_or(now))?;
    params.not_after = instant(now.checked_add(LIFETIME).unwrap_or(now))?;
    Ok(params.self_signed(key).map_err(make)?.der().clone())
}

/// What all signing certificates of ours have in common. The key is in the name, since a verifier that finds two authorities
/// of one name blames a signature where it should miss an authority.
pub(super) fn signing_params(
    trust_domain: &TrustDomain,
    role: &str,
    key: &Key,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = trust_domain.as_str();
    let name = if name.len() <= MAX_COMMON_NAME { name } else { "mesh" };
    let key = KeyId::of_spki(&key.subject_public_key_info());
    params.distinguished_name.push(DnType::OrganizationName, "Postern");
    params.distinguished_name.push(DnType::OrganizationalUnitName, format!("{role} {}", key.short()));
    params.distinguished_name.push(DnType::CommonName, name);
    let id = SpiffeId::for_trust_domain(trust_domain);
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(SerialNumber::from(super::sign::random_serial().to_vec()));
    Ok(params)
}

/// Whether `key` is the key of `certificate`.
pub(super) fn fits(certificate: &[u8], key: &Key) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, certificate)| {
        certificate.public_key().subject_public_key.data.as_ref() == key.pair().public_key_raw()
    })
}

/// A root of ours as signer.
pub(super) fn signer(certificate: &CertificateDer<'static>, key: Key) -> Result<Signer, String> {
    let (not_before, not_after) = state::validity(certificate)?;
    let id = KeyId::of_certificate(certificate).map_err(|refusal| refusal.to_string())?;
    let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|cause| cause.to_string())?;
    Ok(Signer { issuer, chain: Vec::new(), id, root: id, made: not_before, not_before, not_after })
}

fn instant(time: SystemTime) -> Result<OffsetDateTime, AuthorityError> {
    OffsetDateTime::from_unix_timestamp(seconds(time))
        .map_err(|cause| AuthorityError::Make(cause.to_string()))
}

fn make(cause: rcgen::Error) -> AuthorityError {
    AuthorityError::Make(cause.to_string())
}
