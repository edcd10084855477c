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
    use crate::state::{
        Store,
        signer::{HOUR, OWN, Signer, trust},
    };
    use rcgen::SanType;

    /// What an authority answers that signed `chain`, under `trust`.
    fn reply(chain: Vec<CertificateDer<'static>>, trust: &TrustBundles) -> v1::IssueCertificateResponse {
        let bundle = |bundle: &postern_identity::Bundle| v1::Bundle {
            trust_domain: bundle.trust_domain.to_string(),
            document: bundle.to_document().into_bytes(),
            revoked: bundle.revoked.iter().map(|key| key.as_bytes().to_vec()).collect(),
        };
        let bundles = trust.iter().map(bundle).collect();
        v1::IssueCertificateResponse {
            chain: chain.iter().map(|der| der.to_vec()).collect(),
            trust: Some(v1::BundleUpdate { bundles, ..v1::BundleUpdate::default() }),
            ..v1::IssueCertificateResponse::default()
        }
    }

    #[test]
    fn what_an_authority_answers_is_checked_and_what_was_good_stays() {
        let (root, stranger) = (Signer::new("root", None), Signer::new("stranger", None));
        let ours = trust(&[&root], &[], 1);
        let control = ControlPlane::new(
            std::net::SocketAddr::from(([127, 0, 0, 1], 1)).into(),
            "cluster.local".parse().unwrap(),
            TrustBundles::default(),
            None,
        )
        .unwrap();
        let store = Store::default();
        let first = root.credentials(&[], ours.clone(), HOUR).unwrap();
        let serial = first.serial.clone();
        store.publish_credentials(first).unwrap();
        let (asked, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let key = || PrivateKey::from(asked.serialize_der());
        let take = |reply| {
            accept(reply, key(), &control, 7.5)
                .and_then(|issued| store.publish_credentials(issued.credentials))
        };
        let good = || root.chain(&asked, &[], HOUR, |_| {});
        let named = |uri: &str| {
            root.chain(&asked, &[], HOUR, |p| {
                p.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())]
            })
        };
        let moved = |from: i64, to: i64| {
            root.chain(&asked, &[], HOUR, |p| {
                let now = time::OffsetDateTime::now_utc();
                p.not_before = now + time::Duration::seconds(from);
                p.not_after = now + time::Duration::seconds(to);
            })
        };
        let garbage = vec![CertificateDer::from(vec![0x30, 3, 1, 2])];
        let foreign = "spiffe://other.example/ns/shop/sa/web";
        let without_trust = v1::IssueCertificateResponse { trust: None, ..reply(good(), &ours) };
        for (what, answer, part) in [
            (
                "another key",
                reply(root.chain(&other, &[], HOUR, |_| {}), &ours),
                "does not belong to the certificate",
            ),
            ("another trust domain", reply(named(foreign), &ours), "its trust domain is not trusted here"),
            (
                "another workload",
                reply(named(&format!("{OWN}-2")), &ours),
                "this sidecar is spiffe://cluster.local/ns/shop/sa/web;",
            ),
            ("no workload", reply(named("spiffe://cluster.local"), &ours), "has no path"),
            ("ended", reply(moved(-120, -60), &ours), "is expired"),
            ("not yet valid", reply(moved(60, 120), &ours), "is not yet valid"),
            ("not yet valid, and which clock", reply(moved(60, 120), &ours), "its clock is +7.5 s from ours"),
            ("garbage", reply(garbage, &ours), "not X.509 DER"),
            ("no certificate", reply(vec![], &ours), "no certificate was presented"),
            (
                "a stranger's",
                reply(stranger.chain(&asked, &[], HOUR, |_| {}), &ours),
                "not issued by an authority",
            ),
            ("revoked already", reply(good(), &trust(&[&root], &[root.key()], 2)), "no usable authority"),
            ("no bundle", without_trust, "no bundle of our own trust domain"),
            ("an empty bundle", reply(good(), &trust(&[], &[], 2)), "no usable authority"),
        ] {
            let refused = take(answer).unwrap_err();
            assert!(refused.contains(part), "{what}: {refused}");
            assert_eq!(store.own().ok().map(|own| own.serial.clone()), Some(serial.clone()), "{what}");
            assert_eq!(*store.trust().unwrap(), ours, "{what}");
        }
        take(reply(good(), &ours)).unwrap();
        assert_ne!(store.own().ok().map(|own| own.serial.clone()), Some(serial), "the twin is taken");
    }

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
