//! What is revoked is trusted no more, on new connections and on open ones; and nothing else changes with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod mint;

use mint::*;
use postern_identity::{Accept, Bundle, KeyId, Peer, Refusal, TrustBundles, verify::verify};
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

fn named(name: &'static str) -> impl FnOnce(&mut CertificateParams) {
    move |p| p.distinguished_name.push(DnType::OrganizationName, name)
}

fn accept() -> Accept {
    Accept::trust_domain(TD.parse().unwrap())
}

/// `roots` with the keys of `revoked` revoked: anchors among them go, as in what the control plane publishes.
fn trust(roots: &[&Authority], revoked: &[&Authority]) -> TrustBundles {
    let ders = roots.iter().filter(|root| revoked.iter().all(|gone| gone.der != root.der));
    let mut bundle = Bundle::new(TD.parse().unwrap(), ders.map(|root| root.der.clone()).collect());
    bundle.revoked = revoked.iter().map(|gone| KeyId::of_certificate(&gone.der).unwrap()).collect();
    TrustBundles::from_iter([bundle])
}

/// `Ok(())`, or the code of the refusal, in both directions.
fn check(chain: &[&CertificateDer<'static>], trust: &TrustBundles, expected: Result<(), &str>) {
    let chain: Vec<_> = chain.iter().map(|certificate| (*certificate).clone()).collect();
    for server in [true, false] {
        let result = verify(&chain, trust, &accept(), server, now()).map(|_| ());
        assert_eq!(result.as_ref().map_err(Refusal::code).copied(), expected, "{result:?}");
    }
}

#[test]
fn below_a_revoked_root_nothing_is_accepted_and_beside_it_all_is() {
    let (one, two) = (root(TD, named("one")), root(TD, named("two")));
    let (a, b) = (one.leaf(CART, |_| {}), two.leaf(CART, |_| {}));
    let both = trust(&[&one, &two], &[]);
    check(&[&a.der], &both, Ok(()));
    check(&[&b.der], &both, Ok(()));
    let without = trust(&[&one, &two], &[&one]);
    check(&[&a.der], &without, Err("unknown-issuer"));
    check(&[&b.der], &without, Ok(()));
    // Should the anchor still stand in the bundle, it is not used all the same.
    let mut bundle = one.bundle(TD);
    bundle.revoked.insert(KeyId::of_certificate(&one.der).unwrap());
    let refusal = verify(&[a.der], &TrustBundles::from_iter([bundle]), &accept(), true, now()).unwrap_err();
    assert_eq!(refusal.code(), "no-usable-authority");
    assert!(refusal.to_string().contains("is revoked (key "), "{refusal}");
}

#[test]
fn a_revoked_intermediate_takes_its_leaves_and_not_those_of_its_sisters() {
    let root = root(TD, |_| {});
    let (one, two) = (root.intermediate(TD, named("one")), root.intermediate(TD, named("two")));
    let (a, b) = (one.leaf(CART, |_| {}), two.leaf(CART, |_| {}));
    let revoked = trust(&[&root], &[&one]);
    check(&[&a.der, &one.der], &trust(&[&root], &[]), Ok(()));
    check(&[&a.der, &one.der], &revoked, Err("authority-revoked"));
    check(&[&b.der, &two.der], &revoked, Ok(()));
    check(&[&root.leaf(CART, |_| {}).der], &revoked, Ok(()));
    // A revoked certificate that is only carried along decides nothing.
    check(&[&b.der, &two.der, &one.der], &revoked, Ok(()));
    // Nor does it help to sign the intermediate of a revoked one with a good one above it.
    let below = one.intermediate(TD, named("below"));
    check(&[&below.leaf(CART, |_| {}).der, &below.der, &one.der], &revoked, Err("authority-revoked"));
}

#[test]
fn another_path_around_what_is_revoked_is_found_and_a_new_certificate_of_a_revoked_key_is_not() {
    let (old, new) = (root(TD, named("old")), root(TD, named("new")));
    // One intermediate key, certified by both roots.
    let key = || KeyPair::generate().unwrap();
    let pair = key();
    let again = KeyPair::try_from(pair.serialize_der()).unwrap();
    let (by_old, by_new) =
        (old.intermediate_with(pair, TD, |_| {}), new.intermediate_with(again, TD, |_| {}));
    let leaf = by_old.leaf(CART, |_| {});
    let chain = [&leaf.der, &by_old.der, &by_new.der];
    check(&chain, &trust(&[&old, &new], &[]), Ok(()));
    check(&chain, &trust(&[&old, &new], &[&old]), Ok(()));
    check(&chain, &trust(&[&old, &new], &[&new]), Ok(()));
    check(&chain, &trust(&[&old, &new], &[&old, &new]), Err("no-usable-authority"));
    // The key itself revoked: neither of its certificates leads anywhere.
    check(&chain, &trust(&[&old, &new], &[&by_old]), Err("authority-revoked"));
    // The key of the revoked root, cross-signed by the good one, is still the revoked key.
    let (pair, other) = (key(), root(TD, named("other")));
    let again = KeyPair::try_from(pair.serialize_der()).unwrap();
    let gone = root_with(pair, TD, named("gone"));
    let crossed = other.intermediate_with(again, TD, named("gone"));
    let leaf = crossed.leaf(CART, |_| {});
    check(&[&leaf.der, &crossed.der], &trust(&[&other], &[]), Ok(()));
    check(&[&leaf.der, &crossed.der], &trust(&[&other, &gone], &[&gone]), Err("authority-revoked"));
}

#[test]
fn what_one_trust_domain_revokes_is_no_business_of_another() {
    let (ours, theirs) = (root(TD, |_| {}), root("other.example", |_| {}));
    let mut foreign = theirs.bundle("other.example");
    foreign.revoked.insert(KeyId::of_certificate(&ours.der).unwrap());
    let trust = TrustBundles::from_iter([ours.bundle(TD), foreign]);
    check(&[&ours.leaf(CART, |_| {}).der], &trust, Ok(()));
}

/// An open connection, asked again.
fn check_open(peer: &Peer, trust: &TrustBundles, after: i64, expected: Result<(), &str>) {
    let then = UnixTime::since_unix_epoch(Duration::from_secs((NOW + after) as u64));
    for server in [true, false] {
        let result = peer.still_trusted(trust, server, then);
        assert_eq!(result.as_ref().map_err(Refusal::code).copied(), expected, "{result:?}");
    }
}

#[test]
fn an_open_connection_is_judged_again_and_its_twin_stays() {
    let (one, two) = (root(TD, named("one")), root(TD, named("two")));
    let (by_one, by_two) = (one.intermediate(TD, named("a")), two.intermediate(TD, named("b")));
    let peer = |intermediate: &Authority, change: &dyn Fn(&mut CertificateParams)| {
        let leaf = intermediate.leaf(CART, change);
        verify(&[leaf.der, intermediate.der.clone()], &trust(&[&one, &two], &[]), &accept(), false, now())
            .unwrap()
    };
    let (peer, twin) = (peer(&by_one, &|_| {}), peer(&by_two, &|_| {}));
    let check_both = |trust: &TrustBundles, after, expected: Result<(), &str>| {
        check_open(&peer, trust, after, expected);
        check_open(&twin, trust, after, Ok(()));
    };
    check_both(&trust(&[&one, &two], &[]), 0, Ok(()));
    check_both(&trust(&[&one, &two], &[]), 3_600, Ok(()));
    check_both(&trust(&[&two], &[]), 0, Err("unknown-issuer"));
    check_both(&trust(&[&one, &two], &[&one]), 0, Err("unknown-issuer"));
    check_both(&trust(&[&one, &two], &[&by_one]), 0, Err("authority-revoked"));
    check_open(&peer, &trust(&[&one, &two], &[]), 3_601, Err("expired"));
    check_open(&peer, &TrustBundles::default(), 0, Err("unknown-trust-domain"));
    check_open(&peer, &trust(&[], &[]), 0, Err("no-usable-authority"));
    // A clock that went back finds the certificate not yet valid, as at the handshake.
    check_open(&peer, &trust(&[&one, &two], &[]), -3_000, Err("not-yet-valid"));
}
