//! What can go wrong with an authority: at the start, when it signs, and when it is moved on.

use postern_identity::{IdError, KeyId, SpiffeId, TrustDomain};
use std::path::PathBuf;

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
    /// The journal is not what was written.
    #[error(
        "the journal {path} cannot be used: {cause}; nothing was changed: restore it from a backup, or move it away to go on with root.pem and root-key.pem beside it"
    )]
    Journal {
        /// The journal.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Somebody put another key in the place of the active root's.
    #[error(
        "the key in {key} is not one that journal.json knows; put the old file back, or move journal.json away to go on with the root in root.pem and root-key.pem"
    )]
    KeyUnknown {
        /// The key file.
        key: PathBuf,
    },
    /// The authority that was given from outside cannot sign here.
    #[error("the authority in {place} cannot sign for trust domain `{trust_domain}`: {cause}")]
    Upstream {
        /// A folder, or the address of a server.
        place: String,
        /// For whom.
        trust_domain: TrustDomain,
        /// What is wrong and what to do.
        cause: String,
    },
    /// It would end while certificates below it are still needed.
    #[error(
        "the authority {id} ends in {left_seconds} s, sooner than two lives of a workload certificate ({wanted_seconds} s); give a new authority, or start with --allow-ending-authority to go on for the rest"
    )]
    Ending {
        /// First digits of the authority's key id.
        id: String,
        /// What is left of it.
        left_seconds: i64,
        /// What should be left at least.
        wanted_seconds: i64,
    },
    /// The library could not make a certificate or key.
    #[error(
        "making a root certificate failed: {0}; this is a fault of this program or of the machine's randomness"
    )]
    Make(String),
}

/// Why a certificate or token was not issued. `Display` may be told to the caller: it says nothing that the caller did not
/// send.
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
    /// A token for somebody whom this authority does not speak for.
    #[error("{0} is no workload of this trust domain")]
    Foreign(SpiffeId),
    /// A token without audience, or with one that nobody could mean (JWT-SVID 3.2).
    #[error("the audience of a token is {0}; send one to {max} names of 1 to {bytes} bytes", max = super::jwt::MAX_AUDIENCES, bytes = super::jwt::MAX_AUDIENCE_BYTES)]
    Audience(&'static str),
    /// A lifetime of zero.
    #[error("a lifetime of less than a second was asked for")]
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

/// Why a step of a rotation was not made. Nothing has changed then, unless [`StepError::Store`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is one already.
    #[error("{0} is prepared already: activate it, or retire it before another one is prepared")]
    AlreadyPrepared(KeyId),
    /// There is none.
    #[error(
        "nothing is prepared: prepare the next authority first, and give the sidecars time to learn of it"
    )]
    NothingPrepared,
    /// No authority of ours.
    #[error("no authority has the id {0}: `postern ca status` shows them")]
    Unknown(KeyId),
    /// It signs now.
    #[error("{0} is the active authority: prepare and activate another one first")]
    Active(KeyId),
    /// Nothing to do: it is so already.
    #[error("{0} is {1} already")]
    Already(KeyId, &'static str),
    /// It comes from outside, or makes itself.
    #[error("{0}")]
    NotHere(&'static str),
    /// The state could not be written; what the disk holds decides after the next look at it.
    #[error(transparent)]
    Store(#[from] AuthorityError),
}
