//! From a presented chain to a verified [`Peer`], or the rule that was broken.
//!
//! The order: rules of the leaf, the bundle of *its* trust domain (never a merged root store), the anchors that may be
//! used now, the path, the rules of each intermediate on that path, and last whether we want this identity.

use crate::{
    Bundle, KeyId, Refusal, SpiffeId, TrustBundles, TrustDomain,
    provider::provider_ref,
    refusal::{Validity, seconds},
    svid::{self, Leaf},
};
use aws_lc_rs::digest;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::{
    cell::RefCell,
    collections::BTreeSet,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// More certificates than this in one chain are refused unread. (The path library follows six intermediates at most.)
pub const MAX_CHAIN: usize = 8;

/// Whom we are willing to talk to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Accept {
    /// Any identity in one of these trust domains.
    TrustDomains(BTreeSet<TrustDomain>),
    /// Only these identities.
    Exactly(BTreeSet<SpiffeId>),
}

impl Accept {
    /// Any identity of one trust domain.
    pub fn trust_domain(trust_domain: TrustDomain) -> Self {
        Self::TrustDomains(BTreeSet::from([trust_domain]))
    }

    /// Only this identity.
    pub fn only(id: SpiffeId) -> Self {
        Self::Exactly(BTreeSet::from([id]))
    }

    /// Whether `id` is among them.
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::TrustDomains(trust_domains) => trust_domains.contains(id.trust_domain()),
            Self::Exactly(ids) => ids.contains(id),
        }
    }
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = match self {
            Self::TrustDomains(trust_domains) => trust_domains.iter().map(TrustDomain::as_str).collect(),
            Self::Exactly(ids) => ids.iter().map(SpiffeId::as_str).collect(),
        };
        match self {
            Self::TrustDomains(_) => write!(f, "any identity of trust domain {}", names.join(" or ")),
            Self::Exactly(_) if names.is_empty() => f.write_str("nobody"),
            Self::Exactly(_) => f.write_str(&names.join(" or ")),
        }
    }
}

/// The verified other end of a connection. Only [`verify`] (and the TLS adapter on a finished handshake) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    id: SpiffeId,
    sha256: [u8; 32],
    serial: String,
    not_after: SystemTime,
    chain: Arc<[CertificateDer<'static>]>,
}

impl Peer {
    /// Who.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// SHA-256 of the leaf certificate (DER), as `Hash=` in x-forwarded-client-cert.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Serial number in lower-case hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// End of validity.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// What the verifier would say of the same chain under `trust` at `now`: authorities go, and certificates end, while
    /// a connection stays open. `server` says that the peer is the server of the connection.
    ///
    /// # Errors
    /// The rule that the chain breaks by now.
    pub fn still_trusted(&self, trust: &TrustBundles, server: bool, now: UnixTime) -> Result<(), Refusal> {
        verify(&self.chain, trust, &Accept::only(self.id.clone()), server, now).map(|_| ())
    }

    /// From a chain that was verified, now or in the handshake of this very connection.
    pub(crate) fn from_verified(leaf: Leaf, chain: &[CertificateDer<'_>]) -> Self {
        let mut sha256 = [0; 32];
        let der = chain.first().map(AsRef::as_ref).unwrap_or_default();
        sha256.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        let not_after =
            SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(leaf.not_after).unwrap_or(0));
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self { id: leaf.id, sha256, serial: leaf.serial, not_after, chain }
    }
}

/// Verifies `chain` (leaf first). `server` says that the other end is the server of the connection.
///
/// # Errors
/// The rule that was broken; nothing of a refused chain may be used for anything but a log line.
pub fn verify(
    chain: &[CertificateDer<'_>],
    trust: &TrustBundles,
    accept: &Accept,
    server: bool,
    now: UnixTime,
) -> Result<Peer, Refusal> {
    let Some((leaf_der, intermediates)) = chain.split_first() else { return Err(Refusal::NoCertificate) };
    if chain.len() > MAX_CHAIN {
        return Err(Refusal::ChainTooLong { length: chain.len(), limit: MAX_CHAIN });
    }
    let leaf = svid::check_leaf(leaf_der)?;
    let Some(bundle) = trust.get(leaf.id.trust_domain()) else {
        return Err(Refusal::UnknownTrustDomain { id: leaf.id, known: trust.to_string() });
    };
    let validity = Validity { now: seconds(now), not_before: leaf.not_before, not_after: leaf.not_after };
    validity.check(|| format!("the certificate of {}", leaf.id))?;
    let anchors = usable_anchors(bundle, &leaf.id, now)?;
    check_path(leaf_der, intermediates, &anchors, bundle, &leaf.id, server, now)?;
    if !accept.accepts(&leaf.id) {
        return Err(Refusal::NotAccepted { presented: leaf.id, expected: accept.to_string() });
    }
    Ok(Peer::from_verified(leaf, chain))
}

/// Path validation takes any anchor it is given, expired or not an authority at all; so only sound ones are given.
fn usable_anchors<'a>(
    bundle: &'a Bundle,
    id: &SpiffeId,
    now: UnixTime,
) -> Result<Vec<TrustAnchor<'a>>, Refusal> {
    let mut usable = Vec::with_capacity(bundle.anchors.len());
    let mut reasons = Vec::new();
    for anchor in &bundle.anchors {
        let checked = svid::check_anchor(anchor, id.trust_domain(), now)
            .and_then(|()| check_revoked(anchor, bundle, id))
            .map_err(|refusal| refusal.to_string());
        match checked.and_then(|()| anchor_from_trusted_cert(anchor).map_err(|cause| cause.to_string())) {
            Ok(anchor) => usable.push(anchor),
            Err(reason) => reasons.push(reason),
        }
    }
    if usable.is_empty() {
        let detail = if reasons.is_empty() { "the bundle is empty".to_owned() } else { reasons.join("; ") };
        return Err(Refusal::NoUsableAuthority { id: id.clone(), detail });
    }
    Ok(usable)
}

/// Whether a signing certificate may still be built on.
fn check_revoked(signing: &[u8], bundle: &Bundle, id: &SpiffeId) -> Result<(), Refusal> {
    if bundle.revoked.is_empty() {
        return Ok(());
    }
    let key = KeyId::of_certificate(signing)?;
    if bundle.revoked.contains(&key) {
        return Err(Refusal::AuthorityRevoked { id: id.clone(), key });
    }
    Ok(())
}

fn check_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    bundle: &Bundle,
    id: &SpiffeId,
    server: bool,
    now: UnixTime,
) -> Result<(), Refusal> {
    let end_entity =
        EndEntityCert::try_from(leaf).map_err(|cause| path_refusal(cause, id, intermediates, now))?;
    // The callback can only answer in the library's own errors; ours is kept beside it.
    let broken: RefCell<Option<Refusal>> = RefCell::new(None);
    let check_intermediates = |path: &webpki::VerifiedPath<'_>| {
        for intermediate in path.intermediate_certificates() {
            let der = intermediate.der();
            let checked = svid::check_signing(&der, id.trust_domain()).map_err(|refusal| refusal.of(id));
            if let Err(refusal) = checked.and_then(|()| check_revoked(&der, bundle, id)) {
                broken.replace(Some(refusal));
                return Err(webpki::Error::UnknownIssuer);
            }
        }
        Ok(())
    };
    let usage = if server { KeyUsage::server_auth() } else { KeyUsage::client_auth() };
    let algorithms = provider_ref().signature_verification_algorithms.all;
    end_entity
        .verify_for_usage(algorithms, anchors, intermediates, now, usage, None, Some(&check_intermediates))
        .map(|_| ())
        .map_err(|cause| broken.take().unwrap_or_else(|| path_refusal(cause, id, intermediates, now)))
}

fn path_refusal(
    cause: webpki::Error,
    id: &SpiffeId,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
) -> Refusal {
    use webpki::Error as E;
    let of_signing = |refusal: Refusal| refusal.of(id);
    let id = id.clone();
    match cause {
        E::UnknownIssuer => Refusal::UnknownIssuer(id),
        E::InvalidSignatureForPublicKey | E::SignatureAlgorithmMismatch => Refusal::BadSignature(id),
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => Refusal::SignatureAlgorithm(id),
        E::PathLenConstraintViolated => Refusal::PathLength(id),
        E::UnsupportedCriticalExtension => Refusal::UnknownCriticalExtension(id),
        E::EndEntityUsedAsCa => Refusal::SigningNotAuthority(format!("an intermediate in the chain of {id}")),
        E::CertExpired { .. } | E::CertNotValidYet { .. } => intermediates
            .iter()
            // The leaf was in time, so one of these is not.
            .find_map(|der| svid::check_validity(der, now).err())
            .map(of_signing)
            .unwrap_or_else(|| Refusal::Path { id, cause: cause.to_string() }),
        E::NameConstraintViolation => {
            match intermediates.iter().find_map(|der| svid::uri_name_constraint(der)) {
                Some(what) => of_signing(Refusal::UriNameConstraint(what)),
                None => Refusal::NameConstraint(id),
            }
        }
        E::BadDer | E::BadDerTime | E::UnsupportedCertVersion => {
            Refusal::Malformed(format!("a certificate in the chain of {id}: {cause}"))
        }
        other => Refusal::Path { id, cause: other.to_string() },
    }
}
