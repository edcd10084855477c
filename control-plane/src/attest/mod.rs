//! Who is asking for a certificate. Four kinds of evidence: the current certificate, a one-use join token, a projected
//! Kubernetes token, and being a process of a certain user on this machine.
//!
//! Every kind ends in an [`Attested`], and only [`attest`] makes that step; the authority never sees evidence.

mod join_tokens;
mod token_review;
mod unix_peer;

pub use join_tokens::{JoinTokens, TokenRefusal};
pub use token_review::{KubernetesTokens, MAX_SERVICE_ACCOUNT_TOKEN, ReviewError, TokenReviews};
pub use unix_peer::{UnixPeer, UnixPeerError};

use crate::registry::Index;
use postern_config::documents::kubernetes::ATTEST_UID;
use postern_identity::{Peer, TrustBundles, TrustDomain};
use rustls_pki_types::UnixTime;
use std::time::{Instant, SystemTime};

/// The attested caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account, which decides the SPIFFE ID.
    pub service_account: String,
    /// The pod, for logs and people; it decides nothing. Empty when the evidence does not name it: a certificate
    /// carries the identity of the service account only, so renewals come without.
    pub pod: String,
}

/// What a caller shows to prove who it is.
#[derive(Clone, Copy)]
pub enum Evidence<'a> {
    /// The certificate of this very connection (mutual TLS), for renewals.
    Certificate(&'a Peer),
    /// A one-use token, given to the pod when it was made.
    JoinToken(&'a str),
    /// A projected Kubernetes service account token, bound to a pod.
    ServiceAccountToken(&'a str),
    /// The process at the other end of our unix socket.
    UnixPeer(&'a UnixPeer),
}

/// What evidence is held against.
pub struct Doors<'a> {
    /// Ours.
    pub trust_domain: &'a TrustDomain,
    /// What certificates are verified with, now.
    pub trust: &'a TrustBundles,
    /// The join tokens that wait.
    pub tokens: &'a JoinTokens,
    /// Who reviews Kubernetes tokens, if anybody.
    pub reviews: Option<&'a TokenReviews>,
    /// The documents in force, which say what pod a user's processes are; `None` before the first.
    pub index: Option<&'a Index>,
}

/// Why evidence was refused. `Display` may be told to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The token is not good. Which way is for our log only.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// The service account token is not good, or cannot be reviewed.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// The process that opened the connection is not known for certain.
    #[error(transparent)]
    UnixPeer(#[from] UnixPeerError),
    /// No pod is this user's.
    #[error(
        "no pod is user {0}: write the annotation `{ATTEST_UID}: \"{0}\"` on the Pod whose sidecar runs as that user"
    )]
    UnknownUser(u32),
    /// Several pods are: the caller could be any of them.
    #[error(
        "more than one pod has the annotation `{ATTEST_UID}: \"{0}\"`: run each pod's sidecar as a user of its own"
    )]
    AmbiguousUser(u32),
    /// Nobody can be looked up yet.
    #[error("the control plane has not read its documents yet: try again")]
    NotReady,
    /// The certificate ended while the connection stayed open.
    #[error("the certificate of {0} has ended; ask with other evidence, such as a new join token")]
    CertificateEnded(String),
    /// Its authority went while the connection stayed open: revoked, or no longer published.
    #[error(
        "the certificate of {0} is not trusted any more ({1}); ask with other evidence, such as a new join token"
    )]
    CertificateNotTrusted(String, String),
    /// Another trust domain's identity, or one that is not `/ns/<namespace>/sa/<service account>` of ours.
    #[error(
        "{0} is not a workload of trust domain `{1}`: certificates are issued to spiffe://{1}/ns/<namespace>/sa/<service account> only"
    )]
    NotOurWorkload(String, TrustDomain),
}

/// From evidence to identity. A join token is used up by this, whatever follows.
///
/// # Errors
/// When the evidence is not good; see [`AttestError`].
pub async fn attest(
    evidence: Evidence<'_>,
    doors: &Doors<'_>,
    now: SystemTime,
) -> Result<Attested, AttestError> {
    match evidence {
        Evidence::Certificate(peer) => of_certificate(peer, doors.trust_domain, doors.trust, now),
        Evidence::JoinToken(token) => Ok(doors.tokens.redeem(token, now)?),
        Evidence::ServiceAccountToken(token) => {
            let reviews = doors.reviews.ok_or(ReviewError::NotConfigured)?;
            Ok(reviews.review(token, Instant::now()).await?)
        }
        Evidence::UnixPeer(peer) => user(peer, doors.index),
    }
}

/// Whether the certificate of an open connection would still be accepted: the connection may be older than its end, or
/// than the end of its authority.
///
/// # Errors
/// [`AttestError::CertificateEnded`] or [`AttestError::CertificateNotTrusted`].
pub fn still_good(peer: &Peer, trust: &TrustBundles, now: SystemTime) -> Result<(), AttestError> {
    if peer.not_after() < now {
        return Err(AttestError::CertificateEnded(peer.id().to_string()));
    }
    let clock = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
    peer.still_trusted(trust, false, clock)
        .map_err(|refusal| AttestError::CertificateNotTrusted(peer.id().to_string(), refusal.to_string()))
}

/// The workload of a certificate that is good now. A federated trust domain is trusted to connect, not to be issued
/// anything of ours.
///
/// # Errors
/// As [`still_good`], or it is no workload of ours.
pub fn of_certificate(
    peer: &Peer,
    trust_domain: &TrustDomain,
    trust: &TrustBundles,
    now: SystemTime,
) -> Result<Attested, AttestError> {
    still_good(peer, trust, now)?;
    let ours = peer.id().trust_domain() == trust_domain.as_str();
    match peer.id().service_account().filter(|_| ours) {
        Some((namespace, service_account)) => Ok(Attested {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: String::new(),
        }),
        None => Err(AttestError::NotOurWorkload(peer.id().to_string(), trust_domain.clone())),
    }
}

/// Exactly the pod whose annotation names the user. Root is a user like any other.
fn user(peer: &UnixPeer, index: Option<&Index>) -> Result<Attested, AttestError> {
    let mut pods = index.ok_or(AttestError::NotReady)?.pods_of_user(peer.uid());
    let (namespace, service_account, pod) = pods.next().ok_or(AttestError::UnknownUser(peer.uid()))?;
    if pods.next().is_some() {
        return Err(AttestError::AmbiguousUser(peer.uid()));
    }
    peer.still_runs()?;
    Ok(Attested {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.to_owned(),
    })
}

#[cfg(test)]
#[path = "attest_tests.rs"]
mod tests;
