//! Why a certificate was refused: one variant per rule, and a sentence for the log.

use crate::{KeyId, SpiffeId, id::quoted};
use rustls_pki_types::UnixTime;
use std::fmt;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Why a chain was refused: names the rule broken. One variant per rule; `Display` is a full sentence for the log.
///
/// The other end learns only the TLS alert; this is for our own log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The peer sent no certificate although one is required.
    #[error("no certificate was presented")]
    NoCertificate,
    /// More certificates than any sound chain has; nothing was parsed.
    #[error("the chain has {length} certificates, the limit is {limit}")]
    ChainTooLong {
        /// Certificates presented.
        length: usize,
        /// The most we read.
        limit: usize,
    },
    /// Not an X.509 v3 certificate, or one of its extensions cannot be read (RFC 5280 section 4).
    #[error("malformed certificate: {0}")]
    Malformed(String),
    /// A name in the subject alternative name extension is not printable ASCII (RFC 5280 4.2.1.6).
    #[error("the subject alternative name {} is not printable ASCII (RFC 5280 4.2.1.6)", quoted(.0))]
    NameNotAscii(String),
    /// X509-SVID section 2.
    #[error("the certificate has no URI subject alternative name, so it carries no SPIFFE ID (X509-SVID 2)")]
    NoUriSan,
    /// X509-SVID section 2.
    #[error(
        "the certificate has {count} URI subject alternative names ({shown}), exactly one is allowed (X509-SVID 2)"
    )]
    SeveralUriSans {
        /// How many.
        count: usize,
        /// The first of them, escaped.
        shown: String,
    },
    /// The URI is not a canonical SPIFFE ID (SPIFFE-ID section 2).
    #[error("the URI of the certificate is refused: {0}")]
    InvalidId(String),
    /// X509-SVID section 5.2: a leaf names a workload, never the trust domain.
    #[error("{0} has no path: it names a trust domain, not a workload (X509-SVID 5.2)")]
    IdWithoutPath(SpiffeId),
    /// RFC 5280 4.2.1.6: with an empty subject the names must not be ignorable.
    #[error(
        "the certificate of {0} has an empty subject, so its names must be marked critical (RFC 5280 4.2.1.6)"
    )]
    SanNotCritical(SpiffeId),
    /// X509-SVID section 4.1: a leaf must not be an authority.
    #[error(
        "the certificate of {0} is a certificate authority (cA is true) and may not authenticate (X509-SVID 4.1)"
    )]
    LeafIsAuthority(SpiffeId),
    /// X509-SVID section 4.3.
    #[error("the certificate of {0} has no keyUsage extension (X509-SVID 4.3)")]
    KeyUsageMissing(SpiffeId),
    /// X509-SVID section 4.3.
    #[error("keyUsage in the certificate of {0} is not marked critical (X509-SVID 4.3)")]
    KeyUsageNotCritical(SpiffeId),
    /// X509-SVID section 4.3.
    #[error("keyUsage in the certificate of {0} lacks digitalSignature (X509-SVID 4.3)")]
    NoDigitalSignature(SpiffeId),
    /// X509-SVID section 4.3.
    #[error("keyUsage in the certificate of {0} has keyCertSign: it could sign certificates (X509-SVID 4.3)")]
    LeafCanSignCertificates(SpiffeId),
    /// X509-SVID section 4.3.
    #[error("keyUsage in the certificate of {0} has cRLSign: it could sign revocation lists (X509-SVID 4.3)")]
    LeafCanSignCrls(SpiffeId),
    /// X509-SVID section 4.4: when present, both purposes must be there.
    #[error(
        "extendedKeyUsage in the certificate of {id} lacks {missing}: both serverAuth and clientAuth, or no extension (X509-SVID 4.4)"
    )]
    HalfExtendedKeyUsage {
        /// Whose certificate.
        id: SpiffeId,
        /// Which purpose is missing.
        missing: &'static str,
    },
    /// An RSA key that can be broken.
    #[error("{what} has an RSA key of {bits} bits; at least 2048 are needed")]
    WeakKey {
        /// Whose certificate.
        what: String,
        /// Length of the modulus.
        bits: usize,
    },
    /// A signature algorithm that we do not verify, SHA-1 among them.
    #[error("{0}: a certificate in the chain is signed with an algorithm that is weak or unknown")]
    SignatureAlgorithm(SpiffeId),
    /// We hold no bundle for the trust domain of the presented ID.
    #[error("{id}: its trust domain is not trusted here (known: {known})")]
    UnknownTrustDomain {
        /// Who asked.
        id: SpiffeId,
        /// The trust domains that we hold bundles of.
        known: String,
    },
    /// The bundle of the trust domain holds no anchor that may be used now.
    #[error("{id}: no usable authority in the bundle of its trust domain: {detail}")]
    NoUsableAuthority {
        /// Who asked.
        id: SpiffeId,
        /// The reason for each authority.
        detail: String,
    },
    /// The operator has revoked an authority of the chain (`postern ca revoke`).
    #[error("{id}: an authority of its chain is revoked (key {key})")]
    AuthorityRevoked {
        /// Who asked.
        id: SpiffeId,
        /// Which key.
        key: KeyId,
    },
    /// Now is after notAfter.
    #[error("{what} is expired: {validity}, {} ago", span(.validity.now - .validity.not_after))]
    Expired {
        /// Whose certificate.
        what: String,
        /// The three times.
        validity: Validity,
    },
    /// Now is before notBefore.
    #[error("{what} is not yet valid: {validity}, {} from now; compare the clocks of both machines", span(.validity.not_before - .validity.now))]
    NotYetValid {
        /// Whose certificate.
        what: String,
        /// The three times.
        validity: Validity,
    },
    /// No path to an authority of the ID's own trust domain (this includes self-signed leaves and foreign issuers).
    #[error("{0}: not issued by an authority of its own trust domain")]
    UnknownIssuer(SpiffeId),
    /// A signature in the chain does not verify.
    #[error(
        "{0}: a signature in the certificate chain does not verify; perhaps it comes from another authority of the same name"
    )]
    BadSignature(SpiffeId),
    /// X509-SVID section 4.1: signing certificates must have cA.
    #[error("{0} is not a certificate authority (cA is not true) (X509-SVID 4.1)")]
    SigningNotAuthority(String),
    /// X509-SVID section 4.3: signing certificates must have a critical keyUsage with keyCertSign.
    #[error("{0} has no critical keyUsage with keyCertSign, so it may not sign certificates (X509-SVID 4.3)")]
    SigningNoKeyCertSign(String),
    /// X509-SVID section 3.2: the SPIFFE ID of a signing certificate has no path.
    #[error(
        "{what} carries {id}, but the SPIFFE ID of a signing certificate must have no path (X509-SVID 3.2)"
    )]
    SigningIdWithPath {
        /// Which certificate.
        what: String,
        /// Its ID.
        id: SpiffeId,
    },
    /// X509-SVID section 3.2: a signing certificate belongs to the trust domain that it signs for.
    #[error("{what} belongs to {id}, but it was to sign for trust domain `{wanted}` (X509-SVID 3.2)")]
    SigningForeignTrustDomain {
        /// Which certificate.
        what: String,
        /// Its ID.
        id: SpiffeId,
        /// The trust domain concerned.
        wanted: String,
    },
    /// The path library refuses every SPIFFE ID under a URI name constraint (RUSTSEC-2026-0098).
    #[error(
        "{0} carries a URI name constraint: that limits the host in a URI (RFC 5280 4.2.1.10), a trust domain is no host, and path \
         validation refuses every SPIFFE ID below it (X509-SVID 4.2 warns of that). Use an authority without URI name constraints"
    )]
    UriNameConstraint(String),
    /// A name constraint of an authority excludes a name of the certificate.
    #[error("{0}: a name constraint of an authority in the chain forbids a name of this certificate")]
    NameConstraint(SpiffeId),
    /// RFC 5280 4.2.1.9.
    #[error("{0}: the chain is longer than the path length constraint of an authority allows")]
    PathLength(SpiffeId),
    /// RFC 5280 4.2: an extension that must be understood is not.
    #[error("{0}: a certificate in the chain has a critical extension that is not understood")]
    UnknownCriticalExtension(SpiffeId),
    /// Any other rule of path validation (RFC 5280 section 6).
    #[error("{id}: the certificate chain is refused: {cause}")]
    Path {
        /// Who asked.
        id: SpiffeId,
        /// In the words of the path library.
        cause: String,
    },
    /// A good certificate of somebody else.
    #[error("{presented} is verified, but not accepted here: expected {expected}")]
    NotAccepted {
        /// Who it is.
        presented: SpiffeId,
        /// Whom we want.
        expected: String,
    },
    /// A rule whose own sentence does not say who presented the certificate, such as one that a signing certificate breaks.
    #[error("{id}: {rule}")]
    Of {
        /// The ID of the leaf.
        id: SpiffeId,
        /// The rule; never another `Of`.
        rule: Box<Refusal>,
    },
}

impl Refusal {
    /// The same, of a chain whose leaf names `id`.
    pub(crate) fn of(self, id: &SpiffeId) -> Self {
        Self::Of { id: id.clone(), rule: Box::new(self) }
    }

    /// The rule broken, whoever presented the certificate.
    pub fn rule(&self) -> &Self {
        match self {
            Self::Of { rule, .. } => rule,
            rule => rule,
        }
    }

    /// A stable code for metrics and documents: the variant, in kebab case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::ChainTooLong { .. } => "chain-too-long",
            Self::Malformed(_) => "malformed",
            Self::NameNotAscii(_) => "name-not-ascii",
            Self::NoUriSan => "no-uri-san",
            Self::SeveralUriSans { .. } => "several-uri-sans",
            Self::InvalidId(_) => "invalid-id",
            Self::IdWithoutPath(_) => "id-without-path",
            Self::SanNotCritical(_) => "san-not-critical",
            Self::LeafIsAuthority(_) => "leaf-is-authority",
            Self::KeyUsageMissing(_) => "key-usage-missing",
            Self::KeyUsageNotCritical(_) => "key-usage-not-critical",
            Self::NoDigitalSignature(_) => "no-digital-signature",
            Self::LeafCanSignCertificates(_) => "leaf-can-sign-certificates",
            Self::LeafCanSignCrls(_) => "leaf-can-sign-crls",
            Self::HalfExtendedKeyUsage { .. } => "half-extended-key-usage",
            Self::WeakKey { .. } => "weak-key",
            Self::SignatureAlgorithm(_) => "signature-algorithm",
            Self::UnknownTrustDomain { .. } => "unknown-trust-domain",
            Self::NoUsableAuthority { .. } => "no-usable-authority",
            Self::AuthorityRevoked { .. } => "authority-revoked",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::UnknownIssuer(_) => "unknown-issuer",
            Self::BadSignature(_) => "bad-signature",
            Self::SigningNotAuthority(_) => "signing-not-authority",
            Self::SigningNoKeyCertSign(_) => "signing-no-key-cert-sign",
            Self::SigningIdWithPath { .. } => "signing-id-with-path",
            Self::SigningForeignTrustDomain { .. } => "signing-foreign-trust-domain",
            Self::UriNameConstraint(_) => "uri-name-constraint",
            Self::NameConstraint(_) => "name-constraint",
            Self::PathLength(_) => "path-length",
            Self::UnknownCriticalExtension(_) => "unknown-critical-extension",
            Self::Path { .. } => "path",
            Self::NotAccepted { .. } => "not-accepted",
            Self::Of { rule, .. } => rule.code(),
        }
    }
}

/// The three times that matter when time is the reason, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The clock of the verifier.
    pub now: i64,
    /// Start of validity.
    pub not_before: i64,
    /// End of validity, inclusive.
    pub not_after: i64,
}

impl Validity {
    /// Refuses when `now` lies outside; `what` names the certificate in the sentence.
    ///
    /// # Errors
    /// [`Refusal::Expired`] or [`Refusal::NotYetValid`].
    pub fn check(self, what: impl FnOnce() -> String) -> Result<(), Refusal> {
        if self.now < self.not_before {
            return Err(Refusal::NotYetValid { what: what(), validity: self });
        }
        if self.now > self.not_after {
            return Err(Refusal::Expired { what: what(), validity: self });
        }
        Ok(())
    }
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { now, not_before, not_after } = self;
        write!(
            f,
            "now {}, notBefore {}, notAfter {}",
            instant(*now),
            instant(*not_before),
            instant(*not_after)
        )
    }
}

/// Seconds since 1970 as this crate compares them.
pub(crate) fn seconds(time: UnixTime) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}

pub(crate) fn instant(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("@{seconds}"))
}

/// `2d 3h`, `5m 10s`: the two largest units are enough to see which clock is wrong.
fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let units =
        [("d", seconds / 86_400), ("h", seconds / 3_600 % 24), ("m", seconds / 60 % 60), ("s", seconds % 60)];
    let shown: Vec<String> =
        units.iter().skip_while(|(_, n)| *n == 0).take(2).map(|(unit, n)| format!("{n}{unit}")).collect();
    if shown.is_empty() { "0s".into() } else { shown.join(" ") }
}
