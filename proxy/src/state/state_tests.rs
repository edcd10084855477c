//! What changes of trust do to our own certificate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{
    signer::{HOUR, Signer, trust},
    *,
};

#[test]
fn the_authorities_of_a_certificate_are_all_keys_above_it_up_to_the_anchor_that_verifies_it() {
    let (old, root) = (Signer::new("old", None), Signer::new("root", None));
    let intermediate = Signer::new("intermediate", Some(&root));
    let trust = trust(&[&old, &root], &[], 1);
    let below = intermediate.credentials(&[&intermediate], trust.clone(), HOUR).unwrap();
    assert_eq!(*below.authorities, [intermediate.key(), root.key()]);
    let direct = old.credentials(&[], trust, HOUR).unwrap();
    assert_eq!(*direct.authorities, [old.key()]);
}

#[test]
fn a_certificate_rests_for_a_moment_when_another_takes_its_place() {
    let root = Signer::new("root", None);
    let store = Store::default();
    let publish = || {
        let new = root.credentials(&[], trust(&[&root], &[], 1), HOUR).unwrap();
        store.publish_credentials(new).unwrap();
    };
    publish();
    assert_eq!(store.settled(), None, "before the first there was none");
    publish();
    assert!(store.settled().unwrap() > Instant::now());
}

#[test]
fn trust_without_our_authority_is_refused_unless_it_names_it_as_revoked() {
    let (root, other) = (Signer::new("root", None), Signer::new("other", None));
    let intermediate = Signer::new("intermediate", Some(&root));
    // (anchors, revoked, whether trust is taken, whether our certificate stays)
    let rows: [(&[&Signer], &[KeyId], bool, bool); 6] = [
        (&[&root, &other], &[], true, true),
        (&[&other], &[], false, true),
        (&[], &[], false, true),
        (&[&other], &[root.key()], true, false),
        (&[&root, &other], &[intermediate.key()], true, false),
        (&[&root, &other], &[other.key()], true, true),
    ];
    for (number, (anchors, revoked, taken, stays)) in rows.into_iter().enumerate() {
        let store = Store::default();
        let first = trust(&[&root], &[], 1);
        store
            .publish_credentials(intermediate.credentials(&[&intermediate], first.clone(), HOUR).unwrap())
            .unwrap();
        let next = trust(anchors, revoked, 2);
        let answer = store.publish_trust(next.clone(), Tainted::default());
        assert_eq!(answer.is_ok(), taken, "row {number}: {answer:?}");
        assert_eq!(*store.trust().unwrap(), if taken { next } else { first }, "row {number}");
        assert_eq!(store.own().is_ok(), stays, "row {number}");
        assert_eq!(store.wants_renewal(), !stays, "row {number}");
        if !stays {
            assert!(store.own().err().unwrap().to_string().contains("is revoked"));
        }
    }
}

#[test]
fn a_withdrawn_certificate_is_replaced_and_until_then_newer_trust_is_still_taken() {
    let (root, other) = (Signer::new("root", None), Signer::new("other", None));
    let store = Store::default();
    store.publish_credentials(root.credentials(&[], trust(&[&root], &[], 1), HOUR).unwrap()).unwrap();
    store.publish_trust(trust(&[&other], &[root.key()], 2), Tainted::default()).unwrap();
    let newer = trust(&[&other], &[root.key()], 3);
    store.publish_trust(newer.clone(), Tainted::default()).unwrap();
    assert_eq!(*store.trust().unwrap(), newer);
    store.publish_credentials(other.credentials(&[], newer, HOUR).unwrap()).unwrap();
    assert!(store.own().is_ok() && !store.wants_renewal());
}

#[test]
fn a_certificate_that_was_issued_before_a_revocation_does_not_bring_the_old_trust_back() {
    let (root, other) = (Signer::new("root", None), Signer::new("other", None));
    let (before, after) = (trust(&[&root, &other], &[], 1), trust(&[&other], &[root.key()], 2));
    for (signer, is_good) in [(&root, false), (&other, true)] {
        let store = Store::default();
        store.publish_credentials(other.credentials(&[], before.clone(), HOUR).unwrap()).unwrap();
        let in_flight = signer.credentials(&[], before.clone(), HOUR).unwrap();
        store.publish_trust(after.clone(), Tainted::default()).unwrap();
        assert_eq!(store.publish_credentials(in_flight).is_ok(), is_good);
        assert_eq!(*store.trust().unwrap(), after);
        assert_eq!(*store.credentials().unwrap().trust, after);
    }
}

#[test]
fn a_tainted_authority_above_us_asks_for_a_renewal_and_another_one_does_not() {
    let root = Signer::new("root", None);
    let intermediate = Signer::new("intermediate", Some(&root));
    let trust = trust(&[&root], &[], 1);
    for (tainted, wanted) in
        [(root.key(), true), (intermediate.key(), true), (Signer::new("x", None).key(), false)]
    {
        let store = Store::default();
        let own = intermediate.credentials(&[&intermediate], trust.clone(), HOUR).unwrap();
        store.publish_credentials(own).unwrap();
        let mut generation = store.trust_generation();
        generation.mark_unchanged();
        let tainted = Tainted { keys: BTreeSet::from([tainted]), spread: Duration::from_secs(40) };
        store.publish_trust(trust.clone(), tainted).unwrap();
        assert_eq!(store.renewal_spread(), Duration::from_secs(40));
        assert_eq!(store.wants_renewal(), wanted);
        assert!(generation.has_changed().unwrap());
        assert!(store.own().is_ok());
    }
}

#[test]
fn readiness_ends_at_a_tenth_of_the_life_of_the_certificate_and_not_of_a_wish() {
    let root = Signer::new("root", None);
    // A minute of back-dating, then `life`; five minutes are taken off where there are so many.
    for (life, tenth) in [(840, 60), (40, 10)] {
        let own = root.credentials(&[], trust(&[&root], &[], 1), Duration::from_secs(life)).unwrap();
        assert_eq!(own.not_after.duration_since(own.nearly_over()).unwrap(), Duration::from_secs(tenth));
    }
}
