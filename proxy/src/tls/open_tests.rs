//! When an open connection ends, by trust and by the clock.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use postern_identity::{Accept, Bundle, verify::verify};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls_pki_types::CertificateDer;

const BEGAN: u64 = 1_800_000_000;
const LIFE: u64 = 3600;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(BEGAN + seconds)
}

fn moment(seconds: u64) -> time::OffsetDateTime {
    at(seconds).into()
}

fn trust(anchors: &[&CertificateDer<'static>]) -> TrustBundles {
    let anchors = anchors.iter().map(|der| (*der).clone()).collect();
    [Bundle::new("td".parse().unwrap(), anchors)].into_iter().collect()
}

/// A root and a peer below it whose certificate ends at [`LIFE`].
fn authority() -> (CertificateDer<'static>, Peer) {
    let mut root = CertificateParams::default();
    root.distinguished_name = DistinguishedName::new();
    root.distinguished_name.push(DnType::CommonName, "root");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate().unwrap();
    let der = root.self_signed(&key).unwrap().der().clone();
    let mut leaf = CertificateParams::default();
    leaf.distinguished_name = DistinguishedName::new();
    leaf.subject_alt_names = vec![SanType::URI("spiffe://td/ns/n/sa/s".try_into().unwrap())];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    (leaf.not_before, leaf.not_after) = (moment(0), moment(LIFE));
    let issuer = Issuer::new(root, key);
    let chain = [leaf.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()];
    let accept = Accept::trust_domain("td".parse().unwrap());
    let peer = verify(&chain, &trust(&[&der]), &accept, false, unix(at(1))).unwrap();
    (der, peer)
}

#[tokio::test(start_paused = true)]
async fn a_revoked_authority_ends_its_connections_and_no_other() {
    let ((root, peer), (other_root, other)) = (authority(), authority());
    let open = Open::default();
    let (watch, second, twin) = (
        open.enter(peer.clone(), false, &Arc::default()),
        open.enter(peer, false, &Arc::default()),
        open.enter(other, false, &Arc::default()),
    );
    assert!(open.judge(&trust(&[&root, &other_root]), at(1), Occasion::Revocation).await.is_empty());
    assert!(watch.takes_more(|| at(1)));
    let ended = open.judge(&trust(&[&other_root]), at(1), Occasion::Revocation).await;
    assert_eq!(ended.len(), 2, "{ended:?}");
    watch.ended().await;
    assert!(second.is_ending());
    assert!(!watch.takes_more(|| at(1)) && watch.refusal().is_some());
    assert!(twin.takes_more(|| at(1)) && twin.refusal().is_none());
    assert!(
        open.judge(&trust(&[&other_root]), at(1), Occasion::Revocation).await.is_empty(),
        "an end is told once"
    );
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_published_no_more_lets_finish_what_is_under_way() {
    let ((root, peer), (other_root, other)) = (authority(), authority());
    let open = Open::default();
    let (watch, twin) = (open.enter(peer, false, &Arc::default()), open.enter(other, false, &Arc::default()));
    let (both, after) = (trust(&[&root, &other_root]), trust(&[&other_root]));
    assert_eq!(Occasion::of_change(Some(&both), &after), Occasion::Round);
    assert!(open.judge(&after, at(1), Occasion::Round).await.is_empty());
    assert!(watch.is_ending());
    assert!(!watch.takes_more(|| at(1)) && watch.refusal().is_none());
    assert!(twin.takes_more(|| at(1)));
    tokio::time::advance(NOTICE_OF_ISSUER).await;
    assert_eq!(open.judge(&after, at(1), Occasion::Clock).await.len(), 1);
    assert!(watch.refusal().is_some() && twin.refusal().is_none());
}

#[tokio::test(start_paused = true)]
async fn who_waits_on_a_quiet_connection_hears_of_its_end() {
    let ((root, peer), (other_root, _)) = (authority(), authority());
    let open = Open::default();
    let watch = open.enter(peer, false, &Arc::default());
    let mut ended = std::pin::pin!(watch.ended());
    assert!(futures_util::poll!(ended.as_mut()).is_pending());
    assert!(open.judge(&trust(&[&root]), at(1), Occasion::Revocation).await.is_empty());
    assert!(futures_util::poll!(ended.as_mut()).is_pending());
    assert_eq!(open.judge(&trust(&[&other_root]), at(1), Occasion::Revocation).await.len(), 1);
    tokio::time::timeout(Duration::from_secs(1), ended).await.expect("it was told");
}

#[tokio::test(start_paused = true)]
async fn who_knows_us_by_a_certificate_whose_authority_goes_is_asked_to_come_again() {
    let ((root, peer), (going, _)) = (authority(), authority());
    let id = |der| KeyId::of_certificate(der).unwrap();
    let open = Open::default();
    let old = open.enter(peer.clone(), false, &Arc::from([id(&going)]));
    let new = open.enter(peer, false, &Arc::from([id(&root)]));
    open.leave(&BTreeSet::from([id(&going)]));
    assert!(old.is_left());
    assert!(!old.takes_more(|| at(1)) && old.refusal().is_none() && new.takes_more(|| at(1)));
    // Whatever takes long may take its time.
    tokio::time::advance(NOTICE * 2).await;
    assert!(open.judge(&trust(&[&root]), at(1), Occasion::Round).await.is_empty());
    assert!(old.refusal().is_none() && new.takes_more(|| at(1)));
    // Its notice begins when its own time has come.
    assert!(open.judge(&trust(&[&going]), at(1), Occasion::Round).await.is_empty());
    assert!(old.refusal().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_revocation_does_not_wait_for_a_notice_that_was_given() {
    let ((root, peer), (other_root, _)) = (authority(), authority());
    let open = Open::default();
    let watch = open.enter(peer, false, &Arc::default());
    let after = trust(&[&other_root]);
    open.judge(&after, at(1), Occasion::Round).await;
    assert!(watch.refusal().is_none());
    let mut bundle = after.get("td").unwrap().clone();
    bundle.revoked = [KeyId::of_certificate(&root).unwrap()].into();
    let revoked: TrustBundles = [bundle].into_iter().collect();
    assert_eq!(Occasion::of_change(Some(&after), &revoked), Occasion::Revocation);
    assert_eq!(Occasion::of_change(None, &revoked), Occasion::Revocation);
    assert_eq!(Occasion::of_change(Some(&revoked), &revoked), Occasion::Round);
    open.judge(&revoked, at(1), Occasion::Revocation).await;
    assert!(watch.refusal().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_ended_certificate_takes_nothing_new_and_gets_less_than_a_minute() {
    let (root, peer) = authority();
    let open = Open::default();
    let watch = open.enter(peer, true, &Arc::default());
    let trust = trust(&[&root]);
    assert!(open.judge(&trust, at(LIFE), Occasion::Clock).await.is_empty());
    assert!(watch.takes_more(|| at(LIFE)), "the last second is inclusive");
    assert!(!watch.takes_more(|| at(LIFE + 1)), "known without a judge");
    assert!(open.judge(&trust, at(LIFE + 1), Occasion::Clock).await.is_empty());
    assert!(watch.is_ending());
    assert!(watch.refusal().is_none(), "what is under way goes on");
    let mut waited = Duration::ZERO;
    while watch.refusal().is_none() {
        tokio::time::advance(LOOK).await;
        waited += LOOK;
        open.judge(&trust, at(LIFE + 1 + waited.as_secs()), Occasion::Clock).await;
    }
    assert!((Duration::from_secs(45)..=Duration::from_secs(60)).contains(&waited), "{waited:?}");
    let told = watch.refusal().unwrap().to_string();
    assert!(told.contains("expired") && told.contains("notAfter") && told.contains("now"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_revocation_gives_no_notice_to_a_certificate_that_has_ended_too() {
    let ((root, peer), (other_root, _)) = (authority(), authority());
    let open = Open::default();
    let watch = open.enter(peer, false, &Arc::default());
    open.judge(&trust(&[&root]), at(LIFE + 1), Occasion::Revocation).await;
    assert!(watch.refusal().is_none());
    open.judge(&trust(&[&other_root]), at(LIFE + 1), Occasion::Revocation).await;
    assert!(watch.refusal().is_some());
}

#[tokio::test]
async fn connections_that_have_gone_are_forgotten() {
    let (_, peer) = authority();
    let open = Open::default();
    for _ in 0..1000 {
        drop(open.enter(peer.clone(), false, &Arc::default()));
    }
    let last = open.enter(peer, false, &Arc::default());
    assert!(open.seats.borrow().len() <= 8, "{}", open.seats.borrow().len());
    assert!(last.refusal().is_none());
}
