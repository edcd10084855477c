//! Why a token was refused: one variant per rule, and a sentence for the log that never holds the token.

use crate::{SpiffeId, id::quoted, refusal::instant};

/// Why a JWT-SVID was refused: names the rule broken. `Display` is a full sentence for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenRefusal {
    /// More bytes than any sound token has; nothing was read.
    #[error("the token has {length} bytes, the limit is {limit}")]
    TooLong {
        /// Bytes given.
        length: usize,
        /// The most we read.
        limit: usize,
    },
    /// JWT-SVID section 2: JWS compact serialization only; no JSON serialization, no encryption.
    #[error("the token is not a signed token in compact form, `header.claims.signature` (JWT-SVID 2)")]
    NotCompact,
    /// RFC 7515 section 2.
    #[error("the {0} of the token is not base64url without padding (RFC 7515 2)")]
    NotBase64(&'static str),
    /// RFC 7515 section 4: header and claims are JSON objects, each member once.
    #[error("the {part} of the token is no JSON object with each member once: {cause}")]
    NotJson {
        /// `header` or `claims`.
        part: &'static str,
        /// What is wrong.
        cause: String,
    },
    /// JWT-SVID section 2: `alg`, `kid` and `typ`, nothing else.
    #[error("the header of the token has {}; only `alg`, `kid` and `typ` may be there (JWT-SVID 2)", quoted(.0))]
    HeaderNotAllowed(String),
    /// RFC 7515 section 4.1: the members of a header are text.
    #[error("`{0}` in the header of the token is not text (RFC 7515 4.1)")]
    HeaderNotText(&'static str),
    /// JWT-SVID section 2.1.
    #[error("the header of the token has no `alg` (JWT-SVID 2.1)")]
    NoAlgorithm,
    /// JWT-SVID section 2.1.
    #[error(
        "the algorithm {} is not allowed; only RS, ES and PS with 256, 384 or 512 are (JWT-SVID 2.1)",
        quoted(.0)
    )]
    AlgorithmNotAllowed(String),
    /// JWT-SVID section 2.3.
    #[error("`typ` is {}, but must be `JWT` or `JOSE` (JWT-SVID 2.3)", quoted(.0))]
    TypeNotAllowed(String),
    /// JWT-SVID section 3.1.
    #[error("the token has no `sub`, or it is not text, so it names nobody (JWT-SVID 3.1)")]
    NoSubject,
    /// JWT-SVID section 3.1 and SPIFFE-ID section 2.
    #[error("`sub` of the token is refused: {0}")]
    InvalidSubject(String),
    /// JWT-SVID section 3.1: the subject is a workload.
    #[error("`sub` is {0}, which has no path: it names a trust domain, not a workload (JWT-SVID 3.1)")]
    SubjectWithoutPath(SpiffeId),
    /// We hold no bundle for the trust domain of the subject.
    #[error("{id}: its trust domain is not trusted here (known: {known})")]
    UnknownTrustDomain {
        /// Who is said to have been issued the token.
        id: SpiffeId,
        /// The trust domains that we hold bundles of.
        known: String,
    },
    /// JWT-SVID section 5.2: the key must be in the bundle of the subject's trust domain, and in no other.
    #[error("{id}: the bundle of its trust domain has no key {} for tokens (JWT-SVID 5.2)", quoted(.kid))]
    UnknownKey {
        /// Who is said to have been issued the token.
        id: SpiffeId,
        /// The `kid` of the header.
        kid: String,
    },
    /// JWT-SVID section 5.2: no key of the bundle can have made such a signature.
    #[error(
        "{id}: no key of its trust domain that the token may mean can be used with {algorithm} (JWT-SVID 5.2)"
    )]
    NoFittingKey {
        /// Who is said to have been issued the token.
        id: SpiffeId,
        /// The `alg` of the header.
        algorithm: &'static str,
    },
    /// JWT-SVID section 5.2.
    #[error("{0}: the signature of the token does not verify (JWT-SVID 5.2)")]
    BadSignature(SpiffeId),
    /// JWT-SVID section 3.2: text or an array of texts, with at least one value.
    #[error("the token of {0} has no `aud` with at least one text in it (JWT-SVID 3.2)")]
    NoAudience(SpiffeId),
    /// JWT-SVID section 3.2: a token for somebody else is not for us.
    #[error("the token of {id} is not for {}: `aud` does not hold it (JWT-SVID 3.2)", quoted(.expected))]
    OtherAudience {
        /// Whose token.
        id: SpiffeId,
        /// The audience of the verifier.
        expected: String,
    },
    /// JWT-SVID section 3.3.
    #[error("the token of {0} has no `exp` (JWT-SVID 3.3)")]
    NoExpiry(SpiffeId),
    /// RFC 7519 section 2: times are numbers.
    #[error("`{claim}` in the token of {id} is not a number (RFC 7519 2)")]
    TimeNotNumber {
        /// Whose token.
        id: SpiffeId,
        /// Which claim.
        claim: &'static str,
    },
    /// JWT-SVID section 3.3.
    #[error("the token of {id} is expired: now {}, exp {} (JWT-SVID 3.3)", instant(*.now), instant(*.exp))]
    Expired {
        /// Whose token.
        id: SpiffeId,
        /// The clock of the verifier, seconds since 1970.
        now: i64,
        /// End of validity, exclusive, seconds since 1970.
        exp: i64,
    },
    /// RFC 7519 sections 4.1.5 and 4.1.6.
    #[error(
        "the token of {id} is not valid yet: now {}, {claim} {}; compare the clocks of both machines (RFC 7519 4.1)",
        instant(*.now), instant(*.from)
    )]
    NotYetValid {
        /// Whose token.
        id: SpiffeId,
        /// `nbf` or `iat`.
        claim: &'static str,
        /// The clock of the verifier, seconds since 1970.
        now: i64,
        /// Start of validity, seconds since 1970.
        from: i64,
    },
}

impl TokenRefusal {
    /// A stable code for metrics and documents: the variant, in kebab case.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "too-long",
            Self::NotCompact => "not-compact",
            Self::NotBase64(_) => "not-base64",
            Self::NotJson { .. } => "not-json",
            Self::HeaderNotAllowed(_) => "header-not-allowed",
            Self::HeaderNotText(_) => "header-not-text",
            Self::NoAlgorithm => "no-algorithm",
            Self::AlgorithmNotAllowed(_) => "algorithm-not-allowed",
            Self::TypeNotAllowed(_) => "type-not-allowed",
            Self::NoSubject => "no-subject",
            Self::InvalidSubject(_) => "invalid-subject",
            Self::SubjectWithoutPath(_) => "subject-without-path",
            Self::UnknownTrustDomain { .. } => "unknown-trust-domain",
            Self::UnknownKey { .. } => "unknown-key",
            Self::NoFittingKey { .. } => "no-fitting-key",
            Self::BadSignature(_) => "bad-signature",
            Self::NoAudience(_) => "no-audience",
            Self::OtherAudience { .. } => "other-audience",
            Self::NoExpiry(_) => "no-expiry",
            Self::TimeNotNumber { .. } => "time-not-number",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
        }
    }
}
