//! The certificate authority of one trust domain: a root, and workload certificates signed by it.
//!
//! A certificate is issued for what was *attested*; of the request only the public key is used, and its signature as
//! proof of possession. Today the root signs leaves itself. [`Signer`] is the seam for an intermediate (one per replica,
//! key in memory only): it carries the certificates between leaf and root, which every issued chain then ends with.
//!
//! `root` makes and checks roots, `store` keeps them in files, `sign` makes leaves.

mod root;
mod sign;
mod store;

use crate::attest::Attested;
use postern_identity::{Bundle, IdError, SpiffeId, TrustDomain, svid};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// The longest lifetime of a workload certificate, and the lifetime when none is asked for.
pub const MAX_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// How far certificates start in the past, for machines whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// An authority that ends sooner than this is a problem to report.
const WARN_DAYS: i64 = 60;
/// Namespace of the control plane's own identity.
pub const NAMESPACE: &str = "postern-system";
/// Service account of the control plane's own identity.
pub const SERVICE_ACCOUNT: &str = "control-plane";

/// The authority of one trust domain. Cheap to share behind an `Arc`; issuing takes `&self`.
pub struct Authority {
    trust_domain: TrustDomain,
    bundle: Bundle,
    signer: Signer,
}

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

/// Why an authority cannot be started. `Display` is one sentence of cause and one of remedy.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file or folder cannot be read or written.
    #[error(
        "{action} {path} failed: {cause}; check that the folder exists on a local disk and belongs to this user"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The key file is open to others.
    #[error(
        "the key file {path} has mode {mode:04o}, so other users may read it; run `chmod 600 {path}`, or replace the root when the key may have been read"
    )]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file holds no usable key.
    #[error(
        "{path} holds no usable private key: {cause}; restore it, or remove it together with the certificate to begin with a new root"
    )]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// The certificate was left without its key.
    #[error(
        "{certificate} is there but {key} is missing; restore the key, or remove the certificate to begin with a new root, which every sidecar must then be given"
    )]
    KeyMissing {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The certificate file holds no usable root.
    #[error(
        "{path} cannot be the root of trust domain `{trust_domain}`: {cause}; restore the right file, or remove it together with its key to begin with a new root"
    )]
    Root {
        /// The certificate file.
        path: PathBuf,
        /// For whom.
        trust_domain: TrustDomain,
        /// Why.
        cause: String,
    },
    /// No certificate in the file belongs to the key.
    #[error(
        "the key in {key} belongs to no certificate in {certificate}; restore the pair, or remove both to begin with a new root"
    )]
    KeyMismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The library could not make a certificate or key.
    #[error(
        "making a root certificate failed: {0}; this is a fault of this program or of the machine's randomness"
    )]
    Make(String),
}

/// Why a certificate was not issued. `Display` may be told to the caller: it says nothing that the caller did not send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Not a PKCS#10 request in DER.
    #[error("the certificate request is malformed: {0}; send one PKCS#10 request in DER")]
    Malformed(String),
    /// Another kind of key.
    #[error("the key of the certificate request is {0}; only ECDSA keys on the curve P-256 are accepted")]
    UnsupportedKey(String),
    /// Another kind of signature.
    #[error("the certificate request is not signed with ecdsa-with-SHA256 or ecdsa-with-SHA384")]
    UnsupportedSignature,
    /// The caller does not hold the private key.
    #[error("the signature of the certificate request does not fit its key")]
    BadSignature,
    /// The attested names do not make a SPIFFE ID.
    #[error("the attested identity cannot be written as a SPIFFE ID: {0}")]
    Identity(IdError),
    /// A lifetime of zero.
    #[error("a certificate lifetime of less than a second was asked for")]
    Lifetime,
    /// The authority itself is not valid now.
    #[error(
        "the authority's own certificate is not valid now; the operator must replace it or set the clock right"
    )]
    AuthorityNotValid,
    /// The library could not make the certificate.
    #[error("making the certificate failed: {0}")]
    Make(String),
}

/// What signs leaves: today the root itself, later an intermediate.
pub(crate) struct Signer {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    /// Certificates between a leaf and the root; empty while the root signs.
    intermediates: Vec<CertificateDer<'static>>,
    /// Nothing may outlive any certificate of the chain. Seconds since 1970.
    not_before: i64,
    not_after: i64,
}

impl Authority {
    /// A new authority that nobody will know after the process has ended.
    ///
    /// # Errors
    /// Only when the machine has no randomness.
    pub fn in_memory(trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = root::make_key()?;
        let certificate = root::make_certificate(&trust_domain, &key, now)?;
        let bundle = Bundle::new(trust_domain.clone(), vec![certificate.clone()]);
        let signer = root::signer(&certificate, key).map_err(AuthorityError::Make)?;
        Ok(Self { trust_domain, bundle, signer })
    }

    /// The authority whose root lives in `folder` as `root.pem` and `root-key.pem` (mode 0600); made at the first start.
    ///
    /// `root.pem` may hold further certificates (the root before or after this one): all are published in the bundle,
    /// the one that fits the key signs.
    ///
    /// # Errors
    /// When the files cannot be read or written, or are not a root that may be used: see [`AuthorityError`].
    pub fn open(folder: &Path, trust_domain: TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let (bundle, signer) = store::open(folder, &trust_domain, now)?;
        Ok(Self { trust_domain, bundle, signer })
    }

    /// The trust domain that this authority signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What others need to verify the certificates of this authority.
    pub fn bundle(&self) -> Bundle {
        self.bundle.clone()
    }

    /// [`Authority::bundle`] as PEM, for the bootstrap of sidecars.
    pub fn bundle_pem(&self) -> String {
        self.bundle.to_pem()
    }

    /// The SPIFFE ID of the control plane, which sidecars expect at the other end.
    ///
    /// # Errors
    /// Never in practice: the names are constants.
    pub fn server_id(&self) -> Result<SpiffeId, IdError> {
        SpiffeId::for_service_account(&self.trust_domain, NAMESPACE, SERVICE_ACCOUNT)
    }

    /// A new key and certificate for the control plane's own server, valid for [`MAX_LIFETIME`]: ask again at half of it.
    ///
    /// # Errors
    /// As [`Authority::issue`].
    pub fn server_identity(&self, now: SystemTime) -> Result<Arc<CertifiedKey>, IssueError> {
        let make = |cause: rcgen::Error| IssueError::Make(cause.to_string());
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let id = self.server_id().map_err(IssueError::Identity)?;
        let issued = sign::leaf(&self.signer, &key, id, MAX_LIFETIME, now)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        postern_identity::tls::certified_key(issued.chain, key).map_err(IssueError::Make)
    }

    /// Issues a certificate for `attested` and the public key in `csr` (PKCS#10, DER). Everything else in the request is
    /// ignored: names, usages and lifetimes are decided here (X509-SVID 2 to 4).
    ///
    /// The lifetime is cut to [`MAX_LIFETIME`] and to the end of the authority's own certificate.
    ///
    /// # Errors
    /// See [`IssueError`].
    pub fn issue(
        &self,
        csr: &[u8],
        attested: &Attested,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        let key = sign::requested_key(csr)?;
        let id =
            SpiffeId::for_service_account(&self.trust_domain, &attested.namespace, &attested.service_account)
                .map_err(IssueError::Identity)?;
        sign::leaf(&self.signer, &key, id, lifetime, now)
    }

    /// What should be repaired about the published bundle and the signing certificate, in sentences; empty when all is
    /// well.
    pub fn problems(&self, now: SystemTime) -> Vec<String> {
        let mut problems = self.bundle.problems(unix(now));
        let days = self.signer.not_after.saturating_sub(seconds(now)) / (24 * 60 * 60);
        if (0..WARN_DAYS).contains(&days) {
            problems.push(format!(
                "the certificate that signs for `{}` ends in {days} days; publish a new root beside it now",
                self.trust_domain
            ));
        }
        problems
    }
}

/// Shows no key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

/// Whether `certificate` may be a signing certificate of `trust_domain` now.
fn check_anchor(certificate: &[u8], trust_domain: &TrustDomain, now: SystemTime) -> Result<(), String> {
    svid::check_anchor(certificate, trust_domain.as_str(), unix(now)).map_err(|refusal| refusal.to_string())
}

fn unix(now: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// Seconds since 1970; a clock before that reads as 1970.
fn seconds(now: SystemTime) -> i64 {
    i64::try_from(unix(now).as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
