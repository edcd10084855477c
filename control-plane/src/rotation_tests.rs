//! Who lags, and what may be done next: each case one look at sessions, pods and authorities.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::publish::status::Refused;
use std::sync::Arc;

const HOUR: Duration = Duration::from_secs(3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn key(name: &str) -> KeyId {
    KeyId::of_spki(name.as_bytes())
}

fn authority(kind: AuthorityKind, name: &str, slot: Slot) -> AuthorityStatus {
    AuthorityStatus {
        kind,
        id: key(name),
        subject: String::new(),
        slot,
        root: None,
        tainted: false,
        revoked: false,
        has_key: true,
        outside: None,
        not_before: now() - 2 * HOUR,
        not_after: now() + 1000 * HOUR,
        since: now() - 2 * HOUR,
        remaining: 0.9,
    }
}

/// One pod `shop/cart`, connected, with everything acknowledged and a certificate below the old root.
fn view() -> View {
    let mut below_old = authority(AuthorityKind::Intermediate, "below old", Slot::Old);
    below_old.root = Some(key("old"));
    View {
        sessions: vec![session("cart", &["old", "active", "next", "next key"], Some("below old"))],
        departed: Vec::new(),
        expected: vec![pod("cart")],
        authorities: vec![
            authority(AuthorityKind::Root, "next", Slot::Prepared),
            authority(AuthorityKind::Root, "active", Slot::Active),
            authority(AuthorityKind::Root, "old", Slot::Old),
            below_old,
            authority(AuthorityKind::JwtKey, "next key", Slot::Prepared),
            authority(AuthorityKind::JwtKey, "active key", Slot::Active),
            authority(AuthorityKind::JwtKey, "old key", Slot::Old),
        ],
        trust_version: "81aa000000".into(),
        started: now() - Duration::from_secs(60),
        certificate_lifetime: HOUR,
        now: now(),
    }
}

fn pod(name: &str) -> Attested {
    Attested { namespace: "shop".into(), service_account: name.into(), pod: name.into() }
}

fn session(pod: &str, known: &[&str], issuer: Option<&str>) -> SessionStatus {
    SessionStatus {
        instance: pod.into(),
        namespace: "shop".into(),
        identity: format!("spiffe://cluster.local/ns/shop/sa/{pod}"),
        build: "test".into(),
        knows_taps: true,
        version_sent: String::new(),
        version_acked: String::new(),
        policy_since: None,
        trust_sent: "81aa000000".into(),
        trust_acked: "81aa000000".into(),
        trust_known: keys(known),
        certificate: issuer.map(certificate),
        nacks: 0,
        last_nacks: Vec::new(),
        subscriptions: 0,
        documents: 1,
        unanswered: 0,
        pushes: 0,
        connected_since: now(),
    }
}

fn keys(names: &[&str]) -> Arc<BTreeSet<KeyId>> {
    Arc::new(names.iter().map(|name| key(name)).collect())
}

fn certificate(issuer: &str) -> Held {
    Held {
        serial: "1".into(),
        not_before: now() - HOUR / 2,
        not_after: now() + HOUR / 2,
        authorities: vec![key(issuer)],
    }
}

fn departed(pod: &str, known: &[&str], issuer: Option<&str>) -> Departed {
    Departed {
        namespace: "shop".into(),
        instance: pod.into(),
        at: now() - Duration::from_secs(600),
        certificate: issuer.map(certificate),
        trust_known: keys(known),
    }
}

/// `parts` are of the one who lags; none: nobody does.
fn check(what: &str, step: Step, change: impl FnOnce(&mut View), parts: &[&str]) {
    let mut view = view();
    change(&mut view);
    let lagging = view.lagging(step);
    let told: Vec<String> = lagging.iter().map(|one| format!("{} {}", one.who, one.reason)).collect();
    match parts {
        [] => assert!(told.is_empty(), "{what}: {told:?}"),
        parts => {
            assert_eq!(told.len(), 1, "{what}: {told:?}");
            for part in parts {
                assert!(told[0].contains(part), "{what}: {told:?} should contain {part}");
            }
        }
    }
}

#[test]
fn a_prepared_authority_signs_when_every_sidecar_has_acknowledged_it() {
    let root = Step::Activate(AuthorityKind::Root);
    check("all know it", root, |_| {}, &[]);
    check("a token key likewise", Step::Activate(AuthorityKind::JwtKey), |_| {}, &[]);
    let behind = |view: &mut View| {
        view.sessions[0].trust_known = keys(&["old", "active"]);
        view.sessions[0].trust_acked = "3f00000000".into();
    };
    check("one is behind", root, behind, &["shop/cart", "has acknowledged trust 3f000000, not 81aa0000"]);
    check(
        "one has said nothing",
        root,
        |view| view.sessions[0] = SessionStatus { trust_acked: String::new(), ..session("cart", &[], None) },
        &["has acknowledged no trust yet"],
    );
    let refused = |view: &mut View| {
        behind(view);
        let (resource, version) = ("trust bundles".into(), "81aa000000".into());
        view.sessions[0].last_nacks =
            vec![Refused { resource, version, reason: "too old".into(), at: now() }];
    };
    check("one refused it", root, refused, &["it refused that (too old)"]);
    let second_stream = |view: &mut View| {
        behind(view);
        view.sessions.push(session("cart", &["next"], None));
    };
    check("its newer stream has it", root, second_stream, &[]);
    check("nothing is prepared", root, |view| drop(view.authorities.remove(0)), &[]);
}

#[test]
fn who_is_away_counts_until_nothing_that_it_holds_can_be_valid() {
    let root = Step::Activate(AuthorityKind::Root);
    let away = |view: &mut View| view.sessions.clear();
    check("never seen", root, away, &["shop/cart", "has not connected since the control plane started"]);
    let long_ago = |view: &mut View| {
        away(view);
        view.started = now() - HOUR;
    };
    check("not seen for a lifetime", root, long_ago, &[]);
    let gone = |view: &mut View| {
        long_ago(view);
        view.departed = vec![departed("cart", &["old", "active"], Some("below old"))];
    };
    check("gone before it knew", root, gone, &["has not been connected since 2027-01-15T07:50:00Z"]);
    let gone_knowing = |view: &mut View| {
        away(view);
        view.departed = vec![departed("cart", &["next"], None)];
    };
    check("gone, but it knew", root, gone_knowing, &[]);
    let removed = |view: &mut View| {
        away(view);
        view.expected.clear();
    };
    check("its pod is gone from the documents", root, removed, &[]);
}

#[test]
fn an_old_root_goes_when_nobody_holds_a_certificate_below_it() {
    let old = Step::Retire(key("old"));
    check(
        "one holds one",
        old,
        |_| {},
        &["shop/cart", "holds a certificate below", "until 2027-01-15T08:30:00Z"],
    );
    let below = |issuer: &'static str| {
        move |view: &mut View| view.sessions[0].certificate = Some(certificate(issuer))
    };
    check("the root itself signed it", old, below("old"), &["holds a certificate"]);
    check("another one signed it", old, below("below active"), &[]);
    let ended = |view: &mut View| view.now = now() + HOUR;
    check("what it holds has ended", old, ended, &[]);
    check("it has not said", old, |view| view.sessions[0].certificate = None, &["has not said"]);
    let newer = |view: &mut View| view.sessions.push(session("cart", &[], Some("below active")));
    check("its newer stream has another one", old, newer, &[]);
    let away = |issuer: Option<&'static str>| {
        move |view: &mut View| {
            view.sessions.clear();
            view.departed = vec![departed("cart", &["active"], issuer)];
        }
    };
    check("gone with one", old, away(Some("below old")), &["may hold a certificate below", "T08:30:00Z"]);
    check("gone with another one", old, away(Some("below active")), &[]);
    check("gone without a word", old, away(None), &["may hold a certificate below", "T08:50:00Z"]);
    check("it never signed", Step::Retire(key("next")), |_| {}, &[]);
    check("nobody knows it", Step::Retire(key("unknown")), |_| {}, &[]);
}

#[test]
fn an_old_token_key_goes_when_its_tokens_have_ended() {
    let old = Step::Retire(key("old key"));
    check("two hours ago", old, |_| {}, &[]);
    check(
        "just now",
        old,
        |view| view.authorities[6].since = now(),
        &["tokens signed by", "may be in use until"],
    );
}

#[test]
fn a_revocation_names_everybody_whom_it_cuts_off() {
    check("an old root", Step::Revoke(key("old")), |_| {}, &["holds a certificate below"]);
    check("its intermediate", Step::Revoke(key("below old")), |_| {}, &["holds a certificate below"]);
    let moved = |view: &mut View| view.sessions[0].certificate = Some(certificate("below active"));
    check("an old root that nobody needs", Step::Revoke(key("old")), moved, &[]);
    let ignorant = |view: &mut View| view.sessions[0].trust_known = keys(&["active"]);
    check("the active root, its successor unknown", Step::Revoke(key("active")), ignorant, &["acknowledged"]);
}

#[test]
fn a_rotation_goes_on_by_itself_when_asked_or_when_the_end_is_near() {
    let asked = BTreeSet::from([AuthorityKind::Root]);
    let old_key_only = |mut view: View| {
        view.authorities.retain(|one| one.kind != AuthorityKind::JwtKey);
        view
    };
    let mut view = old_key_only(view());
    assert_eq!(view.next(&BTreeSet::new()), [], "nobody asked");
    let (activate, taint) = (Action::Activate(AuthorityKind::Root), Action::Taint(key("old")));
    assert_eq!(view.next(&asked), [activate, taint], "the old one still has a holder");
    view.sessions[0].trust_known = keys(&[]);
    assert_eq!(view.next(&asked), [taint], "the next one is not known");
    view.authorities[2].tainted = true;
    assert_eq!(view.next(&asked), []);
    view.sessions[0].certificate = Some(certificate("below active"));
    assert_eq!(view.next(&asked), [Action::Retire(key("old"))]);
    assert!(!view.is_over(AuthorityKind::Root));
    view.authorities.retain(|one| one.slot == Slot::Active);
    assert!(view.is_over(AuthorityKind::Root));

    let mut ending = old_key_only(self::view());
    ending.authorities[1].remaining = 0.2;
    assert_eq!(ending.next(&BTreeSet::new()), [activate], "the active root comes to its end");
}

#[test]
fn the_root_that_an_outside_authority_signs_below_goes_on_by_the_evidence_and_what_it_names_stays() {
    let nobody = BTreeSet::new();
    let (activate, taint) = (Action::Activate(AuthorityKind::Root), Action::Taint(key("old")));
    let given = |place: usize| {
        let mut view = view();
        view.authorities.retain(|one| one.kind != AuthorityKind::JwtKey);
        view.authorities[place].outside = Some(Outside::Signs);
        view
    };
    let mut view = given(0);
    assert_eq!(view.next(&nobody), [activate, taint], "nobody has to ask");
    view.sessions[0].trust_known = keys(&[]);
    assert_eq!(view.next(&nobody), [taint], "the next one is not known");

    // One more root is named, and nothing is signed below it.
    let mut view = given(1);
    view.authorities[0].outside = Some(Outside::Names);
    assert_eq!(view.next(&nobody), [taint]);
    view.authorities[2].tainted = true;
    view.sessions[0].certificate = Some(certificate("below active"));
    assert_eq!(view.next(&nobody), [Action::Retire(key("old"))]);
    view.authorities[2].outside = Some(Outside::Names);
    assert_eq!(view.next(&nobody), []);
    assert!(view.is_over(AuthorityKind::Root), "nothing is left to do here");
    let lagging = view.lagging(Step::Retire(key("old")));
    assert_eq!(lagging[0].who, "the outside authority", "{lagging:?}");
}

#[test]
fn a_token_key_that_nobody_asked_for_is_known_to_foreign_domains_before_it_signs() {
    let mut view = view();
    let activate = Action::Activate(AuthorityKind::JwtKey);
    assert_eq!(view.next(&BTreeSet::new()), [activate], "published two hours ago");
    view.authorities[4].since = now() - TOKEN_KEY_NOTICE + Duration::from_secs(1);
    assert_eq!(view.next(&BTreeSet::new()), []);
    assert_eq!(view.next(&BTreeSet::from([AuthorityKind::JwtKey])), [activate], "asked for");
}

#[test]
fn whoever_is_not_on_its_way_has_no_next_step_and_is_over() {
    let all = [AuthorityKind::Root, AuthorityKind::JwtKey].into();
    let whole = view().authorities;
    // Every subset of what there is.
    for chosen in 0..1_u32 << whole.len() {
        let kept = |(at, _): &(usize, &AuthorityStatus)| chosen & (1 << at) != 0;
        let authorities = whole.iter().enumerate().filter(kept).map(|(_, one)| one.clone()).collect();
        let view = View { authorities, sessions: vec![], expected: vec![], departed: vec![], ..view() };
        let over = view.is_over(AuthorityKind::Root) && view.is_over(AuthorityKind::JwtKey);
        assert_eq!(is_on_its_way(&view.authorities), !over, "{:?}", view.authorities);
        assert!(!over || view.next(&all).is_empty());
    }
}
