//! What the fuzz targets of `identity` demand of any input. Also compiled into `identity/tests/corpora.rs`, which runs the
//! corpora.
use postern_identity::{Accept, Bundle, SpiffeId, TrustBundles, TrustDomain, jwt, verify::verify};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

/// Whatever a certificate or a document claims: an ID is accepted exactly when the grammar of SPIFFE-ID 2 has it, and
/// reading it again gives the same.
pub fn identity(text: &str) {
    let parsed = text.parse::<SpiffeId>();
    assert_eq!(parsed.is_ok(), is_spiffe_id(text), "{text:?}: {parsed:?}");
    if let Ok(id) = parsed {
        assert_eq!(id.as_str(), text);
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        assert!(id.trust_domain().parse::<TrustDomain>().is_ok());
    }
    assert_eq!(text.parse::<TrustDomain>().is_ok(), is_trust_domain(text), "{text:?}");
}

/// The grammar, written a second time: by bytes, and without an eye on good messages.
pub fn is_spiffe_id(text: &str) -> bool {
    let bytes = text.as_bytes();
    let Some(rest) = bytes.strip_prefix(b"spiffe://") else { return false };
    let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
    let (name, path) = rest.split_at(end);
    let is_segment = |segment: &[u8]| {
        !segment.is_empty()
            && segment != b"."
            && segment != b".."
            && segment.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(byte))
    };
    bytes.len() <= 2048
        && is_name(name)
        && (path.is_empty() || path.split(|byte| *byte == b'/').skip(1).all(is_segment))
}

fn is_trust_domain(text: &str) -> bool {
    is_name(text.as_bytes())
}

fn is_name(name: &[u8]) -> bool {
    (1..=255).contains(&name.len())
        && name.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_'))
}

/// Whatever somebody publishes: a document that is read can be written and read again, as one bundle and in a map, and what
/// is wrong with one is said with the trust domain.
pub fn bundle(document: &str) {
    let Ok(trust_domain) = "fuzz.example".parse::<TrustDomain>() else { return };
    match Bundle::from_document(trust_domain.clone(), document.as_bytes()) {
        Ok(bundle) => {
            let again = Bundle::from_document(trust_domain.clone(), bundle.to_document().as_bytes());
            assert_eq!(again.as_ref(), Ok(&bundle));
            let map = TrustBundles::from_iter([bundle.clone()]).to_document();
            let read = TrustBundles::from_document(map.as_bytes());
            assert_eq!(read.as_ref().ok().and_then(|all| all.get("fuzz.example")), Some(&bundle));
            assert!(Bundle::from_document(trust_domain, bundle.jwt_document().as_bytes()).is_ok());
            let _ = bundle.problems(now());
        }
        Err(cause) => assert!(cause.contains("fuzz.example"), "{cause}"),
    }
    if let Ok(all) = TrustBundles::from_document(document.as_bytes()) {
        assert_eq!(TrustBundles::from_document(all.to_document().as_bytes()), Ok(all));
    }
}

/// Whatever is shown as a token: nobody who trusts no key accepts it, and the sentence does not repeat it.
pub fn token(text: &str) {
    let Ok(domain) = "cluster.local".parse::<TrustDomain>() else { return };
    for trust in [TrustBundles::default(), TrustBundles::from_iter([Bundle::new(domain, Vec::new())])] {
        match jwt::verify(text, &trust, "fuzz", now()) {
            Ok(svid) => panic!("accepted without any key: {}", svid.id),
            Err(refusal) => {
                assert!(!refusal.code().is_empty());
                let signature = text.rsplit('.').next().unwrap_or_default();
                assert!(signature.len() < 24 || !refusal.to_string().contains(signature), "{refusal}");
            }
        }
    }
}

/// Whatever comes in a handshake: first line the PEM of anchors and chain is split at `===`; the verifier answers, the same
/// in the form of an open connection, and what it accepts has an ID by the grammar and of a trust domain that we hold.
pub fn chain(text: &str) {
    let (anchors, chain) = text.split_once("===").unwrap_or(("", text));
    let Ok(domain) = "cluster.local".parse::<TrustDomain>() else { return };
    let Ok(bundle) = Bundle::from_pem(domain.clone(), anchors.as_bytes()) else {
        return never_panics(chain);
    };
    // PEM is only a carrier here: what is between the lines goes to the verifier, readable or not.
    let chain: Vec<CertificateDer<'static>> = ders(chain).into_iter().map(CertificateDer::from).collect();
    let trust = TrustBundles::from_iter([bundle]);
    for server in [true, false] {
        match verify(&chain, &trust, &Accept::trust_domain(domain.clone()), server, now()) {
            Ok(peer) => {
                assert!(is_spiffe_id(peer.id().as_str()) && !peer.id().path().is_empty());
                assert_eq!(peer.id().trust_domain(), domain.as_str());
                assert_eq!(peer.still_trusted(&trust, server, now()), Ok(()));
                assert!(peer.still_trusted(&TrustBundles::default(), server, now()).is_err());
            }
            Err(refusal) => assert!(!refusal.to_string().is_empty() && !refusal.code().is_empty()),
        }
    }
}

fn never_panics(chain: &str) {
    for der in ders(chain) {
        let _ = postern_identity::svid::check_leaf(&der);
        let _ = postern_identity::svid::check_signing(&der, "cluster.local");
        let _ = postern_identity::svid::check_anchor(&der, "cluster.local", now());
        let _ = postern_identity::KeyId::of_certificate(&der);
    }
}

/// The blocks of PEM, or, when there is none, the bytes themselves.
fn ders(text: &str) -> Vec<Vec<u8>> {
    use rustls_pki_types::pem::PemObject;
    let blocks: Vec<Vec<u8>> = CertificateDer::pem_slice_iter(text.as_bytes())
        .take(12)
        .filter_map(Result::ok)
        .map(|der| der.as_ref().to_vec())
        .collect();
    if blocks.is_empty() { vec![text.as_bytes().to_vec()] } else { blocks }
}

/// The clock of the corpora.
fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_780_000_000))
}
