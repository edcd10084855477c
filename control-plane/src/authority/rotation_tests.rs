//! Authorities through their slots, as those who verify see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::{
    tests::{HOUR, attested, authority, now, p256, request},
    *,
};
use postern_identity::{Accept, TrustBundles, verify::verify};
use rustls_pki_types::CertificateDer;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn one(authority: &Authority, kind: AuthorityKind, slot: Slot) -> KeyId {
    let all = authority.status(now());
    all.iter().find(|one| one.kind == kind && one.slot == slot).expect("one in this slot").id
}

fn chain(authority: &Authority, at: SystemTime) -> Vec<CertificateDer<'static>> {
    authority.issue(&request(&p256(), |_| {}), &attested(), HOUR, at).unwrap().chain
}

/// What a sidecar that knows `bundle` says of `chain`.
fn judged(bundle: Bundle, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), &'static str> {
    let accept = Accept::trust_domain(bundle.trust_domain.clone());
    verify(chain, &TrustBundles::from_iter([bundle]), &accept, true, unix(at))
        .map(|_| ())
        .map_err(|refusal| refusal.code())
}

#[test]
fn a_root_rotates_with_overlap_and_nobody_meets_a_stranger() {
    let authority = authority();
    let first = authority.bundle();
    let old_leaf = chain(&authority, now());
    let mut changes = authority.changes();
    let next = authority.prepare(AuthorityKind::Root, now()).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(*changes.borrow_and_update(), authority.bundle().sequence.unwrap());
    assert_eq!(authority.bundle().anchors.len(), 2);
    assert_eq!(judged(first.clone(), &chain(&authority, now()), now()), Ok(()), "the first root still signs");
    assert!(
        matches!(authority.prepare(AuthorityKind::Root, now()), Err(StepError::AlreadyPrepared(id)) if id == next)
    );

    assert_eq!(authority.activate(AuthorityKind::Root, now()).unwrap(), next);
    let new_leaf = chain(&authority, now());
    assert_eq!(judged(authority.bundle(), &new_leaf, now()), Ok(()));
    assert_eq!(judged(authority.bundle(), &old_leaf, now()), Ok(()));
    assert_eq!(judged(first.clone(), &new_leaf, now()), Err("unknown-issuer"));
    // Somebody who was away knows the first root only.
    let server = authority.server_identity(now()).unwrap();
    assert_eq!(judged(first.clone(), &server.cert, now()), Ok(()));

    authority.retire(one(&authority, AuthorityKind::Root, Slot::Old), now()).unwrap();
    assert_eq!(judged(authority.bundle(), &old_leaf, now()), Err("unknown-issuer"));
    assert_eq!(judged(authority.bundle(), &new_leaf, now()), Ok(()));
    let server = authority.server_identity(now()).unwrap();
    assert_eq!(judged(authority.bundle(), &server.cert, now()), Ok(()));
    assert!(authority.bundle().sequence > first.sequence);
}

#[test]
fn the_active_authority_cannot_be_taken_away_before_another_one_signs() {
    let authority = authority();
    for kind in [AuthorityKind::Root, AuthorityKind::JwtKey] {
        let active = one(&authority, kind, Slot::Active);
        let is_active = |outcome| matches!(outcome, Err(StepError::Active(id)) if id == active);
        assert!(is_active(authority.retire(active, now())), "{kind}");
        assert!(is_active(authority.taint(active, now())), "{kind}");
        assert!(matches!(authority.activate(kind, now()), Err(StepError::NothingPrepared)));
    }
    let root = one(&authority, AuthorityKind::Root, Slot::Active);
    let (leaf, before) = (chain(&authority, now()), authority.published());
    assert!(matches!(authority.revoke(root, now()), Err(StepError::Active(_))));
    assert_eq!(authority.published(), before, "a refused step has changed nothing");

    authority.prepare(AuthorityKind::Root, now()).unwrap();
    authority.revoke(root, now()).unwrap();
    let bundle = authority.bundle();
    assert_eq!(bundle.revoked, [root].into());
    assert_eq!(judged(bundle.clone(), &leaf, now()), Err("unknown-issuer"));
    assert_eq!(judged(bundle.clone(), &chain(&authority, now()), now()), Ok(()));
    assert_eq!(judged(bundle, &authority.server_identity(now()).unwrap().cert, now()), Ok(()));
    assert!(matches!(authority.revoke(root, now()), Err(StepError::Already(..))));
    assert!(matches!(authority.retire(root, now()), Err(StepError::Unknown(_))));
    assert!(authority.status(now()).iter().any(|line| line.id == root && line.revoked));
}

#[test]
fn a_tainted_intermediate_is_replaced_at_once_and_a_revoked_one_is_refused() {
    let authority = authority();
    let leaf = chain(&authority, now());
    let first = KeyId::of_certificate(&leaf[1]).unwrap();
    assert_eq!(first, one(&authority, AuthorityKind::Intermediate, Slot::Active));
    authority.taint(first, now()).unwrap();
    assert_eq!(authority.published().tainted, [first].into());
    let second = chain(&authority, now());
    assert_ne!(leaf[1], second[1]);
    assert_eq!(judged(authority.bundle(), &leaf, now()), Ok(()), "tainted is not revoked");
    assert!(matches!(authority.taint(first, now()), Err(StepError::Already(..))));

    authority.revoke(first, now()).unwrap();
    assert_eq!(judged(authority.bundle(), &leaf, now()), Err("authority-revoked"));
    assert_eq!(judged(authority.bundle(), &second, now()), Ok(()));
    // Also the one that signs now.
    authority.revoke(KeyId::of_certificate(&second[1]).unwrap(), now()).unwrap();
    assert_eq!(judged(authority.bundle(), &second, now()), Err("authority-revoked"));
    assert_eq!(judged(authority.bundle(), &chain(&authority, now()), now()), Ok(()));
    assert!(matches!(authority.taint(KeyId::of_spki(b"nobody"), now()), Err(StepError::Unknown(_))));
    assert!(matches!(authority.revoke(KeyId::of_spki(b"nobody"), now()), Err(StepError::Unknown(_))));
    // Forgotten when it would have ended.
    authority.tick(now() + INTERMEDIATE_LIFETIME + HOUR);
    assert!(authority.bundle().revoked.is_empty());
    assert!(authority.published().tainted.is_empty());
}

#[test]
fn a_tainted_old_root_signs_for_our_server_no_more() {
    let authority = authority();
    let first = authority.bundle();
    authority.prepare(AuthorityKind::Root, now()).unwrap();
    authority.activate(AuthorityKind::Root, now()).unwrap();
    let server = |authority: &Authority| authority.server_identity(now()).unwrap().cert.clone();
    assert_eq!(judged(first.clone(), &server(&authority), now()), Ok(()));
    let old = one(&authority, AuthorityKind::Root, Slot::Old);
    authority.taint(old, now()).unwrap();
    assert_eq!(authority.published().tainted, [old].into());
    assert_eq!(judged(first, &server(&authority), now()), Err("unknown-issuer"));
    assert_eq!(judged(authority.bundle(), &server(&authority), now()), Ok(()));
}

#[test]
fn an_intermediate_is_renewed_at_half_of_its_life_and_ends_with_the_root() {
    let authority = authority();
    let first = chain(&authority, now())[1].clone();
    let half = now() + INTERMEDIATE_LIFETIME / 2;
    assert!(authority.tick(half - Duration::from_secs(1)).is_empty());
    let events = authority.tick(half);
    assert!(
        matches!(events.as_slice(), [Event::Renewed { not_after, .. }] if *not_after == half + INTERMEDIATE_LIFETIME)
    );
    assert_ne!(chain(&authority, half)[1], first);
    // Nobody renews for ever what ends with its root.
    let end = now() + DAY * 3650;
    let late = end - HOUR;
    authority.tick(late);
    let last = chain(&authority, late)[1].clone();
    authority.tick(late + HOUR / 2);
    let (_, to) = state::validity(&last).unwrap();
    assert!(to <= seconds(end) || authority.bundle().anchors.len() > 1);
}

#[test]
fn what_was_made_while_the_clock_was_ahead_is_made_again_when_it_comes_back() {
    let authority = authority();
    let ahead = now() + DAY * 2;
    authority.tick(ahead);
    assert_eq!(judged(authority.bundle(), &chain(&authority, ahead), ahead), Ok(()));
    // What it made then begins in two days, by the right clock.
    authority.tick(now());
    assert_eq!(judged(authority.bundle(), &chain(&authority, now()), now()), Ok(()));
    let server = authority.server_identity(now()).unwrap();
    assert_eq!(judged(authority.bundle(), &server.cert, now()), Ok(()));
}

#[test]
fn a_long_life_goes_by_itself_and_is_told_at_its_marks() {
    let authority = authority();
    let first_root = one(&authority, AuthorityKind::Root, Slot::Active);
    let first_key = one(&authority, AuthorityKind::JwtKey, Slot::Active);
    let (mut told, mut told_of_key, mut key_changes) = (Vec::new(), Vec::new(), 0);
    // A day at a time, eleven years; each day somebody asks for a certificate and a token.
    for day in 0..365 * 11 {
        let at = now() + DAY * day;
        for event in authority.tick(at) {
            match event {
                Event::Remaining { kind: AuthorityKind::Root, id, percent, .. } if id == first_root => {
                    told.push(percent);
                }
                Event::Remaining { kind: AuthorityKind::JwtKey, id, percent, .. } if id == first_key => {
                    told_of_key.push(percent);
                }
                Event::Activated { kind: AuthorityKind::JwtKey, .. } => key_changes += 1,
                Event::RenewalFailed { reason } => panic!("day {day}: {reason}"),
                _ => {}
            }
        }
        if day % 50 == 0 {
            assert_eq!(judged(authority.bundle(), &chain(&authority, at), at), Ok(()), "day {day}");
            let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
            authority.issue_jwt(&id, &["a".into()], DEFAULT_JWT_LIFETIME, at).unwrap();
        }
    }
    assert_eq!(told, [50, 20, 5]);
    assert_eq!(told_of_key, [50, 20, 5]);
    assert!((100..200).contains(&key_changes), "{key_changes}");
    assert_ne!(one(&authority, AuthorityKind::Root, Slot::Active), first_root);
    assert!(authority.status(now()).len() < 10, "nothing heaps up: {:#?}", authority.status(now()));
}

/// What is logged meanwhile, by lines.
fn logged(work: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(log, work);
    let bytes = lines.0.lock().clone();
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn the_marks_of_a_life_are_in_the_log_and_told_to_whoever_listens_and_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let settings = Settings {
            state: Some(folder.path().to_owned()),
            trust_domain: "cluster.local".parse().unwrap(),
            upstream: Upstream::Own,
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            leaf_lifetime: HOUR,
            allow_ending: false,
        };
        Authority::open_with(settings, None, now()).unwrap()
    };
    let authority = open();
    let root = one(&authority, AuthorityKind::Root, Slot::Active);
    let mut heard = authority.events();
    let mut told = || {
        let events = std::iter::from_fn(|| heard.try_recv().ok());
        let of_root = |event| match event {
            Event::Remaining { id, percent, .. } if id == root => Some(percent),
            _ => None,
        };
        events.filter_map(of_root).collect::<Vec<_>>()
    };
    for (years, percent, level) in
        [(4, None, ""), (6, Some(50), "INFO"), (7, None, ""), (9, Some(20), "WARN")]
    {
        let lines = logged(|| drop(authority.tick(now() + DAY * 365 * years)));
        let line =
            |percent| format!("{percent} % of the life of root {} are left: it ends at ", root.short());
        match percent {
            Some(percent) => {
                let found: Vec<_> = lines.iter().filter(|one| one.contains(&line(percent))).collect();
                assert_eq!(found.len(), 1, "{years}: {lines:#?}");
                assert!(found[0].contains(level), "{found:?}");
            }
            None => {
                assert!(!lines.iter().any(|one| one.contains("of the life of root")), "{years}: {lines:#?}")
            }
        }
        assert_eq!(told(), Vec::from_iter(percent), "{years}");
    }
    // The marks are in memory.
    let again = open();
    let events = again.tick(now() + DAY * 365 * 9);
    let is_it = |event: &Event| matches!(event, Event::Remaining { id, percent: 20, .. } if *id == root);
    assert_eq!(events.iter().filter(|event| is_it(event)).count(), 1, "{events:?}");
}
