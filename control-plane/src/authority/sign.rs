//! What signs, and what it signs: intermediates, and leaves, of whose request the key is taken and nothing else.

use super::{BACKDATE, IssueError, MAX_LIFETIME, root, seconds, unix};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, UnparsedPublicKey, VerificationAlgorithm,
};
use postern_identity::{Accept, Bundle, KeyId, SpiffeId, TrustBundles, TrustDomain, verify::verify};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SigningKey, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest,
    der_parser::{Oid, oid},
    parse_x509_certificate,
    prelude::FromDer,
    x509::AlgorithmIdentifier,
};

const EC_PUBLIC_KEY: Oid<'static> = oid!(1.2.840.10045.2.1);
const P256: Oid<'static> = oid!(1.2.840.10045.3.1.7);
const ECDSA_SHA256: Oid<'static> = oid!(1.2.840.10045.4.3.2);
const ECDSA_SHA384: Oid<'static> = oid!(1.2.840.10045.4.3.3);
/// An uncompressed point: a tag and two coordinates.
const P256_POINT_BYTES: usize = 65;

/// How far an intermediate starts in the past, more than any leaf below it.
const INTERMEDIATE_BACKDATE: Duration = Duration::from_secs(60 * 60);

/// A certificate and what the caller wants to log about it.
#[derive(Clone, Debug)]
pub struct Issued {
    /// DER, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// For whom.
    pub id: SpiffeId,
    /// End of validity.
    pub not_after: SystemTime,
    /// Serial number in lower-case hex.
    pub serial: String,
}

/// A private key that several signers share.
#[derive(Clone)]
pub(super) struct Key(Arc<KeyPair>);

impl Key {
    pub(super) fn new(pair: KeyPair) -> Self {
        Self(Arc::new(pair))
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A signing certificate with its key.
pub(super) struct Signer {
    pub issuer: Issuer<'static, Key>,
    /// Its own certificate and those above it, without the root; empty for a root.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub id: KeyId,
    /// The root at the end of the chain.
    pub root: KeyId,
    /// When it was made, without the back-dating. Seconds since 1970, as the following.
    pub made: i64,
    /// Nothing below may leave what every certificate of the chain and the root have in common.
    pub not_before: i64,
    pub not_after: i64,
}

impl Signer {
    /// Whether it can sign at `now`.
    pub(super) fn is_valid(&self, now: i64) -> bool {
        (self.not_before..self.not_after).contains(&now)
    }

    /// An intermediate below this one, with a key that exists only here. It signs leaves and nothing else.
    pub(super) fn intermediate(
        &self,
        trust_domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, IssueError> {
        let at = seconds(now);
        if !self.is_valid(at) {
            return Err(IssueError::AuthorityNotValid);
        }
        let key = root::make_key().map_err(|cause| IssueError::Make(cause.to_string()))?;
        let not_before = at.saturating_sub(whole_seconds(INTERMEDIATE_BACKDATE)).max(self.not_before);
        let not_after = at.saturating_add(whole_seconds(lifetime).max(1)).min(self.not_after);
        let mut params = intermediate_params(trust_domain, &key).map_err(make)?;
        params.use_authority_key_identifier_extension = true;
        params.not_before = instant(not_before)?;
        params.not_after = instant(not_after)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(make)?.der().clone();
        let id =
            KeyId::of_certificate(&certificate).map_err(|refusal| IssueError::Make(refusal.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(make)?;
        let chain = std::iter::once(certificate).chain(self.chain.iter().cloned()).collect();
        Ok(Self { issuer, chain, id, root: self.root, made: at, not_before, not_after })
    }

    /// Signs a leaf for nobody and lets the verifier judge it, as every sidecar will: what it refuses must not get into use.
    pub(super) fn prove(
        &self,
        trust_domain: &TrustDomain,
        anchors: &[CertificateDer<'static>],
        now: SystemTime,
    ) -> Result<(), String> {
        let id = SpiffeId::for_service_account(trust_domain, super::NAMESPACE, "probe")
            .map_err(|cause| cause.to_string())?;
        let key = root::make_key().map_err(|cause| cause.to_string())?;
        let issued = leaf(self, &key, id, MAX_LIFETIME, now).map_err(|cause| cause.to_string())?;
        let trust = TrustBundles::from_iter([Bundle::new(trust_domain.clone(), anchors.to_vec())]);
        verify(&issued.chain, &trust, &Accept::only(issued.id), true, unix(now))
            .map(|_| ())
            .map_err(|refusal| refusal.to_string())
    }
}

/// Whether `path`, from the lowest signing certificate to the root, allows `more` intermediates below it (RFC 5280 4.2.1.9). Path
/// building does not look at the root's own limit; OpenSSL and others do.
pub(super) fn has_room<'a>(path: impl IntoIterator<Item = &'a CertificateDer<'a>>, more: u32) -> bool {
    path.into_iter().zip(more..).all(|(certificate, below)| {
        let limit = parse_x509_certificate(certificate).ok().and_then(|(_, certificate)| {
            let constraints = certificate.basic_constraints().ok().flatten();
            constraints.and_then(|constraints| constraints.value.path_len_constraint)
        });
        limit.is_none_or(|limit| below <= limit)
    })
}

/// What an intermediate of ours says, dates apart.
pub(super) fn intermediate_params(
    trust_domain: &TrustDomain,
    key: &Key,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = root::signing_params(trust_domain, "intermediate", key)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(params)
}

/// The public key of a PKCS#10 request whose signature proves that the caller holds the private key.
pub(super) fn requested_key(csr: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    let (rest, request) =
        X509CertificationRequest::from_der(csr).map_err(|cause| IssueError::Malformed(cause.to_string()))?;
    if !rest.is_empty() {
        return Err(IssueError::Malformed(format!("{} bytes follow the request", rest.len())));
    }
    let info = &request.certification_request_info;
    let spki = &info.subject_pki;
    if !is_p256(&spki.algorithm) {
        return Err(IssueError::UnsupportedKey(described(&spki.algorithm)));
    }
    let point: &[u8] = &spki.subject_public_key.data;
    if point.len() != P256_POINT_BYTES || point.first() != Some(&4) {
        return Err(IssueError::UnsupportedKey("not an uncompressed point of P-256".into()));
    }
    let algorithm: &'static dyn VerificationAlgorithm = match &request.signature_algorithm.algorithm {
        oid if *oid == ECDSA_SHA256 => &ECDSA_P256_SHA256_ASN1,
        oid if *oid == ECDSA_SHA384 => &ECDSA_P256_SHA384_ASN1,
        _ => return Err(IssueError::UnsupportedSignature),
    };
    UnparsedPublicKey::new(algorithm, point)
        .verify(info.raw, &request.signature_value.data)
        .map_err(|_| IssueError::BadSignature)?;
    SubjectPublicKeyInfo::from_der(spki.raw).map_err(|cause| IssueError::Malformed(cause.to_string()))
}

/// Signs a leaf: no subject, one critical URI name, digitalSignature, both purposes, cA false (X509-SVID 2, 4).
pub(super) fn leaf(
    signer: &Signer,
    key: &impl PublicKeyData,
    id: SpiffeId,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Issued, IssueError> {
    let (not_before, not_after) = validity(signer, lifetime, seconds(now))?;
    let serial = random_serial();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into().map_err(make)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(SerialNumber::from(serial.to_vec()));
    params.not_before = instant(not_before)?;
    params.not_after = instant(not_after)?;
    let certificate = params.signed_by(key, &signer.issuer).map_err(make)?;
    let mut chain = vec![certificate.der().clone()];
    chain.extend(signer.chain.iter().cloned());
    Ok(Issued {
        chain,
        id,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(not_after).unwrap_or(0)),
        serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
    })
}

/// 128 random bits, positive and of constant length (RFC 5280 4.1.2.2 allows 160).
pub(super) fn random_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x7f | 0x40;
    serial
}

/// `(notBefore, notAfter)` in seconds since 1970, inside the validity of the signer.
fn validity(signer: &Signer, lifetime: Duration, now: i64) -> Result<(i64, i64), IssueError> {
    if !signer.is_valid(now) {
        return Err(IssueError::AuthorityNotValid);
    }
    let lifetime = whole_seconds(lifetime.min(MAX_LIFETIME));
    if lifetime == 0 {
        return Err(IssueError::Lifetime);
    }
    let not_before = now.saturating_sub(whole_seconds(BACKDATE)).max(signer.not_before);
    Ok((not_before, now.saturating_add(lifetime).min(signer.not_after)))
}

fn is_p256(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    let curve = algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    algorithm.algorithm == EC_PUBLIC_KEY && curve.is_some_and(|curve| curve == P256)
}

fn described(algorithm: &AlgorithmIdentifier<'_>) -> String {
    match algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => "RSA".into(),
        "1.3.101.112" => "Ed25519".into(),
        "1.2.840.10045.2.1" => "ECDSA on another curve".into(),
        oid => format!("of the unknown kind {oid}"),
    }
}

pub(super) fn whole_seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn instant(seconds: i64) -> Result<OffsetDateTime, IssueError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|cause| IssueError::Make(cause.to_string()))
}

fn make(cause: rcgen::Error) -> IssueError {
    IssueError::Make(cause.to_string())
}
