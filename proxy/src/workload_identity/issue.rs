//! One certificate: new key, CSR, the authority's answer, and the proof that the answer is good.

use crate::{
    bootstrap::JoinToken,
    control::{ControlPlane, channel::describe, translate},
    state::{Credentials, PrivateKey},
};
use postern_api::v1::{self, authority_client::AuthorityClient};
use postern_identity::{Accept, TrustBundles, tls, verify::verify};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const DEADLINE: Duration = Duration::from_secs(10);

/// A certificate that passed our own verifier, and what was learned on the way.
pub struct Issued {
    /// Proven, with the bundles that came with it.
    pub credentials: Credentials,
    /// The authority's clock minus ours, in seconds; `None` where nobody told the time.
    pub clock_skew: Option<f64>,
}

/// Proofs that travel in the request; none of them where the connection itself is the proof.
#[derive(Clone, Copy, Default)]
pub struct Tokens<'a> {
    /// One use.
    pub join: Option<&'a JoinToken>,
    /// Kubernetes' projected token.
    pub service_account: Option<&'a JoinToken>,
}

/// Asks for one certificate, proving ourselves with `current` (mutual TLS), with tokens, or by who we are on a unix socket.
///
/// # Errors
/// One sentence: which step failed, and why.
pub async fn request(
    control: &ControlPlane,
    current: Option<Arc<CertifiedKey>>,
    trust: Arc<TrustBundles>,
    tokens: Tokens<'_>,
    lifetime: Option<Duration>,
) -> Result<Issued, String> {
    let (private_key, csr) = new_key()?;
    let (channel, _) = control.connect(current, trust).await?;
    let text = |token: Option<&JoinToken>| token.map(|token| token.0.clone()).unwrap_or_default();
    let request = v1::IssueCertificateRequest {
        csr,
        join_token: text(tokens.join),
        lifetime_seconds: lifetime
            .map_or(0, |lifetime| u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX)),
        service_account_token: text(tokens.service_account),
    };
    let asked = SystemTime::now();
    let reply = tokio::time::timeout(DEADLINE, AuthorityClient::new(channel).issue_certificate(request))
        .await
        .map_err(|_| format!("the authority did not answer within {DEADLINE:?}"))?
        .map_err(|status| format!("the authority refused: {}", describe(&status)))?
        .into_inner();
    let answered = SystemTime::now();
    let clock_skew = skew(reply.server_time_unix_millis, asked, answered);
    accept(reply, private_key, control, clock_skew)
}

/// Only what our own verifier accepts now: a certificate that is not yet valid on our clock replaces none that is.
fn accept(
    reply: v1::IssueCertificateResponse,
    private_key: PrivateKey,
    control: &ControlPlane,
    clock_skew: f64,
) -> Result<Issued, String> {
    let (trust, _) = translate::trust(reply.trust.unwrap_or_default(), &control.trust_domain)?;
    let trust = Arc::new(trust);
    let chain: Vec<_> = reply.chain.into_iter().map(CertificateDer::from).collect();
    let accept = Accept::trust_domain(control.trust_domain.clone());
    verify(&chain, &trust, &accept, false, UnixTime::now()).map_err(|refusal| {
        format!("the certificate that the authority issued is not usable: {refusal} (its clock is {clock_skew:+.1} s from ours)")
    })?;
    let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(private_key.as_ref().to_vec()));
    let key = tls::certified_key(chain, der)?;
    let credentials = Credentials::prove(key, private_key, trust)?;
    Ok(Issued { credentials, clock_skew: Some(clock_skew) })
}

/// A P-256 key and a CSR that carries nothing but it: who we are is not ours to say.
fn new_key() -> Result<(PrivateKey, Vec<u8>), String> {
    let failed = |cause: rcgen::Error| format!("no key could be made: {cause}");
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key).map_err(failed)?.der().to_vec();
    Ok((key.serialize_der().into(), csr))
}

/// The authority spoke somewhere between question and answer; the middle is the best guess.
fn skew(server_unix_millis: i64, asked: SystemTime, answered: SystemTime) -> f64 {
    let middle = asked + answered.duration_since(asked).unwrap_or_default() / 2;
    let ours = middle.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    server_unix_millis as f64 / 1000.0 - ours
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn every_certificate_gets_a_new_key_and_the_csr_names_nobody() {
        let (first, csr) = new_key().unwrap();
        let (second, _) = new_key().unwrap();
        assert_ne!(first.as_ref(), second.as_ref());
        assert_eq!(format!("{first:?}"), "PrivateKey(..)");
        let mut named = CertificateParams::new(vec!["name.example".to_owned()]).unwrap();
        named.distinguished_name.push(rcgen::DnType::CommonName, "name.example");
        let key = KeyPair::generate().unwrap();
        let with_name = named.serialize_request(&key).unwrap().der().to_vec();
        let contains = |der: &[u8]| der.windows(12).any(|window| window == b"name.example");
        assert!(contains(&with_name));
        assert!(!contains(&csr));
        // An empty subject is an empty sequence: version 0, then 30 00.
        assert!(csr.windows(5).any(|window| window == [0x02, 0x01, 0x00, 0x30, 0x00]));
    }

    #[test]
    fn skew_is_measured_against_the_middle_of_question_and_answer() {
        let asked = UNIX_EPOCH + Duration::from_millis(100_000);
        let answered = UNIX_EPOCH + Duration::from_millis(100_200);
        for (server, expected) in [(100_100, 0.0), (105_100, 5.0), (90_100, -10.0)] {
            assert!((skew(server, asked, answered) - expected).abs() < 1e-6);
        }
    }
}
