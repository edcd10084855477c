//! Who is asking for a certificate: a one-use join token, or the current certificate.
//!
//! Every kind of evidence ends in an [`Attested`], and only [`attest`] makes that step; the authority never sees evidence.
//! The Kubernetes token comes through the same seam: a variant `Evidence::ServiceAccountToken(&str)` and one arm in
//! [`attest`] that sends a TokenReview with our own audience, checks the audiences that come back, and compares the
//! pod's UID with the token's. That needs the network, which is why [`attest`] is `async` already.

mod join_tokens;

pub use join_tokens::{JoinTokens, TokenRefusal};

use postern_identity::{Peer, TrustDomain};
use std::time::SystemTime;

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
    /// A one-use token, given to the pod when it was made.
    JoinToken(&'a str),
    /// The certificate of this very connection (mutual TLS), for renewals.
    Certificate(&'a Peer),
}

/// Why evidence was refused. `Display` may be told to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// The token is not good. Which way is for our log only.
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    /// The certificate ended while the connection stayed open.
    #[error("the certificate of {0} has ended; ask with a new join token")]
    CertificateEnded(String),
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
    tokens: &JoinTokens,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Attested, AttestError> {
    match evidence {
        Evidence::JoinToken(token) => Ok(tokens.redeem(token, now)?),
        Evidence::Certificate(peer) => renewing(peer, trust_domain, now),
    }
}

/// The handshake verified the certificate; but the connection may be older than its end, and a federated trust domain
/// is trusted to connect, not to be issued certificates of ours.
fn renewing(peer: &Peer, trust_domain: &TrustDomain, now: SystemTime) -> Result<Attested, AttestError> {
    if peer.not_after() < now {
        return Err(AttestError::CertificateEnded(peer.id().to_string()));
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::authority::Authority;
    use postern_identity::{Accept, TrustBundles, verify::verify};
    use rustls_pki_types::UnixTime;
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3600);

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn cart() -> Attested {
        Attested { namespace: "shop".into(), service_account: "cart".into(), pod: String::new() }
    }

    /// The verified peer with a certificate of one hour for [`cart`] in a trust domain.
    fn peer(trust_domain: &str) -> Peer {
        let trust_domain: TrustDomain = trust_domain.parse().unwrap();
        let authority = Authority::in_memory(trust_domain.clone(), now()).unwrap();
        let csr = rcgen::CertificateParams::default()
            .serialize_request(&rcgen::KeyPair::generate().unwrap())
            .unwrap();
        let issued = authority.issue(csr.der(), &cart(), HOUR, now()).unwrap();
        let clock = UnixTime::since_unix_epoch(now().duration_since(SystemTime::UNIX_EPOCH).unwrap());
        let trust = TrustBundles::from_iter([authority.bundle()]);
        verify(&issued.chain, &trust, &Accept::trust_domain(trust_domain), false, clock).unwrap()
    }

    /// Shows a certificate `later`.
    async fn check(peer: &Peer, later: Duration, expected: Result<Attested, &str>) {
        let ours = "cluster.local".parse().unwrap();
        let result = attest(Evidence::Certificate(peer), &JoinTokens::default(), &ours, now() + later).await;
        match (result, expected) {
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (result, expected) => assert_eq!(result.ok(), expected.ok()),
        }
    }

    #[tokio::test]
    async fn a_certificate_renews_its_own_identity_until_it_ends() {
        let ours = peer("cluster.local");
        check(&ours, Duration::ZERO, Ok(cart())).await;
        check(&ours, HOUR, Ok(cart())).await;
        check(&ours, HOUR + Duration::from_secs(1), Err("has ended")).await;
        check(
            &peer("other.example"),
            Duration::ZERO,
            Err("is not a workload of trust domain `cluster.local`"),
        )
        .await;
    }

    #[tokio::test]
    async fn a_join_token_attests_the_pod_that_it_was_made_for() {
        let (tokens, ours) = (JoinTokens::default(), "cluster.local".parse().unwrap());
        let pod = Attested { pod: "cart-1".into(), ..cart() };
        let token = tokens.issue(pod.clone(), HOUR, now());
        assert_eq!(attest(Evidence::JoinToken(&token), &tokens, &ours, now()).await, Ok(pod));
        let again = attest(Evidence::JoinToken(&token), &tokens, &ours, now()).await;
        assert_eq!(again, Err(AttestError::Token(TokenRefusal::Used)));
    }
}
