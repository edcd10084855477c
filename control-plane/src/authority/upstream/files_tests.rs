//! Folders as Istio's documentation and its users make them, good and bad.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use crate::authority::{
    Authority, AuthorityKind, AuthorityStatus, Event, INTERMEDIATE_LIFETIME, Settings, Slot, StepError,
    Upstream,
    tests::{HOUR, attested, now, p256, request},
    unix,
};
use postern_identity::{Accept, Bundle, TrustBundles, verify::verify};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};
use time::OffsetDateTime;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A certificate that may sign, with its key.
struct Ca {
    pem: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

fn params(name: &str, path_length: BasicConstraints) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path_length);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = OffsetDateTime::from(now() - DAY);
    params.not_after = OffsetDateTime::from(now() + DAY * 365);
    params
}

fn signed(params: CertificateParams, key: KeyPair, by: Option<&Ca>) -> Ca {
    let certificate = match by {
        Some(above) => params.signed_by(&key, &above.issuer).unwrap(),
        None => params.self_signed(&key).unwrap(),
    };
    Ca { pem: certificate.pem(), key: key.serialize_pem(), issuer: Issuer::new(params, key) }
}

fn root() -> Ca {
    let name = format!("root {}", rand::random::<u64>());
    signed(params(&name, BasicConstraints::Unconstrained), p256(), None)
}

/// What Istio's Makefile makes: an intermediate that may sign leaves only.
fn intermediate(root: &Ca) -> Ca {
    signed(params("istio intermediate", BasicConstraints::Constrained(0)), p256(), Some(root))
}

fn write(folder: &Path, ca: &Ca, roots: &[&Ca]) {
    let all: String = roots.iter().map(|root| root.pem.as_str()).collect();
    fs::write(folder.join("root-cert.pem"), &all).unwrap();
    fs::write(folder.join("ca-cert.pem"), &ca.pem).unwrap();
    fs::write(folder.join("cert-chain.pem"), ca.pem.clone() + &all).unwrap();
    fs::write(folder.join("ca-key.pem"), &ca.key).unwrap();
}

fn open_at(folder: &Path, state: Option<&Path>, at: SystemTime) -> Result<Authority, String> {
    open_with(folder, state, at, false)
}

fn open_with(
    folder: &Path,
    state: Option<&Path>,
    at: SystemTime,
    allow_ending: bool,
) -> Result<Authority, String> {
    let settings = Settings {
        state: state.map(Path::to_owned),
        trust_domain: "cluster.local".parse().unwrap(),
        upstream: Upstream::Files(folder.to_owned()),
        intermediate_lifetime: INTERMEDIATE_LIFETIME,
        leaf_lifetime: HOUR,
        allow_ending,
    };
    run(Authority::open(settings, at)).map_err(|error| error.to_string())
}

fn open(folder: &Path) -> Result<Authority, String> {
    open_at(folder, None, now())
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn chain(authority: &Authority, at: SystemTime) -> Vec<CertificateDer<'static>> {
    authority.issue(&request(&p256(), |_| {}), &attested(), HOUR, at).unwrap().chain
}

fn judged(bundle: Bundle, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<(), &'static str> {
    let accept = Accept::trust_domain(bundle.trust_domain.clone());
    verify(chain, &TrustBundles::from_iter([bundle]), &accept, true, unix(at))
        .map(|_| ())
        .map_err(|refusal| refusal.code())
}

fn slots(authority: &Authority) -> Vec<Slot> {
    let is_root = |one: &AuthorityStatus| one.kind == AuthorityKind::Root;
    authority.status(now()).into_iter().filter(is_root).map(|one| one.slot).collect()
}

/// A folder that is good but for `spoil`; the length of chains, or a part of the error.
fn check(ca: &Ca, roots: &[&Ca], spoil: impl FnOnce(&Path), expected: Result<usize, &str>) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), ca, roots);
    spoil(folder.path());
    match (open(folder.path()), expected) {
        (Ok(authority), Ok(length)) => {
            let chain = chain(&authority, now());
            assert_eq!(chain.len(), length);
            assert_eq!(judged(authority.bundle(), &chain, now()), Ok(()));
            assert_eq!(
                judged(authority.bundle(), &authority.server_identity(now()).unwrap().cert, now()),
                Ok(())
            );
        }
        (Err(error), Err(part)) => assert!(error.contains(part), "{error} should contain {part}"),
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

fn nothing(_: &Path) {}

#[test]
fn istios_layouts_sign_with_an_intermediate_of_ours_where_there_is_room_for_one() {
    let root = root();
    check(&intermediate(&root), &[&root], nothing, Ok(2));
    let roomy = signed(params("roomy", BasicConstraints::Constrained(1)), p256(), Some(&root));
    check(&roomy, &[&root], nothing, Ok(3));
    // The root itself, as Istio's self-signed authority.
    check(&root, &[&root], nothing, Ok(2));
    let alone = signed(params("alone", BasicConstraints::Constrained(0)), p256(), None);
    check(&alone, &[&alone], nothing, Ok(1));
    // Room in the authority, none in the root above it.
    let narrow = signed(params("narrow", BasicConstraints::Constrained(1)), p256(), None);
    let below = signed(params("below", BasicConstraints::Unconstrained), p256(), Some(&narrow));
    check(&below, &[&narrow], nothing, Ok(2));
    // A root before or after it in the same file.
    let other = self::root();
    check(&intermediate(&root), &[&other, &root], nothing, Ok(2));
    // Two certificates between.
    let deep = signed(params("deep", BasicConstraints::Constrained(0)), p256(), Some(&roomy));
    check(
        &deep,
        &[&root],
        |f| fs::write(f.join("cert-chain.pem"), deep.pem.clone() + &roomy.pem).unwrap(),
        Ok(3),
    );
}

#[test]
fn an_authority_that_ends_soon_signs_when_it_may_and_nothing_that_outlives_it() {
    let root = root();
    let half = now() + HOUR / 2;
    for path_length in [0, 1] {
        let mut params = params("ending", BasicConstraints::Constrained(path_length));
        params.not_after = OffsetDateTime::from(half);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &signed(params, p256(), Some(&root)), &[&root]);
        let refused = open_with(folder.path(), None, now(), false).unwrap_err();
        assert!(
            refused.contains("sooner than two lives") && refused.contains("--allow-ending-authority"),
            "{refused}"
        );
        let authority = open_with(folder.path(), None, now(), true).unwrap();
        let issued = authority.issue(&request(&p256(), |_| {}), &attested(), HOUR, now()).unwrap();
        assert_eq!(issued.not_after, half, "pathLen {path_length}");
        assert_eq!(judged(authority.bundle(), &issued.chain, half - HOUR / 60), Ok(()));
        let late = authority.issue(&request(&p256(), |_| {}), &attested(), HOUR, half);
        assert!(late.is_err(), "pathLen {path_length}");
    }
}

#[test]
fn keys_of_authorities_may_be_p256_p384_or_rsa() {
    let root = root();
    let kinds: [&SignatureAlgorithm; 3] =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256];
    for kind in kinds {
        let key = KeyPair::generate_for(kind).unwrap();
        let ca = signed(params("ca", BasicConstraints::Constrained(0)), key, Some(&root));
        check(&ca, &[&root], nothing, Ok(2));
    }
}

#[test]
fn a_folder_that_cannot_work_is_refused_with_the_file_and_the_reason() {
    let root = root();
    let good = intermediate(&root);
    let put = |name: &'static str, content: String| {
        move |folder: &Path| fs::write(folder.join(name), content).unwrap()
    };
    let gone = |name: &'static str| move |folder: &Path| fs::remove_file(folder.join(name)).unwrap();
    check(&good, &[&root], nothing, Ok(2));
    check(&good, &[&root], gone("cert-chain.pem"), Ok(2));
    check(&good, &[&root], gone("ca-cert.pem"), Err("ca-cert.pem"));
    check(&good, &[&root], gone("ca-key.pem"), Err("ca-key.pem"));
    check(&good, &[&root], gone("root-cert.pem"), Err("root-cert.pem"));
    check(
        &good,
        &[&root],
        put("ca-key.pem", p256().serialize_pem()),
        Err("is not the key of the certificate"),
    );
    check(&good, &[&root], put("ca-key.pem", "nonsense".into()), Err("no usable private key"));
    check(&good, &[&root], put("ca-cert.pem", good.key.clone()), Err("a private key"));
    check(
        &good,
        &[&root],
        put("root-cert.pem", self::root().pem),
        Err("no certificate of root-cert.pem verifies"),
    );
    check(
        &good,
        &[&root],
        put("cert-chain.pem", "-----BEGIN CERTIFICATE-----\n".into()),
        Err("cert-chain.pem"),
    );

    let ca = |change: fn(&mut CertificateParams)| {
        let mut params = params("ca", BasicConstraints::Constrained(0));
        change(&mut params);
        signed(params, p256(), Some(&root))
    };
    let check_ca = |change, part| check(&ca(change), &[&root], nothing, Err(part));
    check_ca(|p| p.is_ca = IsCa::ExplicitNoCa, "is not a certificate authority");
    check_ca(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign], "keyCertSign");
    check_ca(|p| p.not_after = OffsetDateTime::from(now() - HOUR), "not valid now");
    check_ca(|p| p.not_before = OffsetDateTime::from(now() + HOUR), "not valid now");
    check_ca(|p| p.not_after = OffsetDateTime::from(now() + HOUR), "sooner than two lives");
    check_ca(
        |p| p.subject_alt_names = vec![SanType::URI("spiffe://other.example".try_into().unwrap())],
        "other.example",
    );
    check_ca(
        |p| p.custom_extensions.push(uri_constraint()),
        "URI name constraint: that limits the host in a URI",
    );
}

/// `permittedSubtrees { [6] ".local" }`, critical.
fn uri_constraint() -> rcgen::CustomExtension {
    let uri = b"\x86\x06.local";
    let tree = [&[0x30, u8::try_from(uri.len()).unwrap()], &uri[..]].concat();
    let trees = [&[0xa0, u8::try_from(tree.len()).unwrap()], &tree[..]].concat();
    let content = [&[0x30, u8::try_from(trees.len()).unwrap()], &trees[..]].concat();
    let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
    extension.set_criticality(true);
    extension
}

#[test]
fn a_new_authority_below_the_same_root_takes_over_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let root = root();
    write(folder.path(), &intermediate(&root), &[&root]);
    let authority = open(folder.path()).unwrap();
    let first = chain(&authority, now());
    let later = now() + Duration::from_secs(10);
    assert!(run(authority.renew_upstream(later)).is_empty());
    assert_eq!(chain(&authority, later)[1], first[1], "nothing has changed");
    write(folder.path(), &intermediate(&root), &[&root]);
    let later = later + Duration::from_secs(10);
    assert!(run(authority.renew_upstream(later)).is_empty());
    let second = chain(&authority, later);
    assert_ne!(second[1], first[1]);
    assert_eq!(judged(authority.bundle(), &second, later), Ok(()));
    // Half a change, or a bad one: what was good stays.
    fs::write(folder.path().join("ca-key.pem"), p256().serialize_pem()).unwrap();
    let later = later + Duration::from_secs(10);
    let told: Vec<String> = run(authority.renew_upstream(later)).iter().map(ToString::to_string).collect();
    assert!(told[0].contains("is not the key of the certificate"), "{told:?}");
    assert_eq!(chain(&authority, later)[1], second[1]);
}

#[test]
fn a_new_root_is_published_first_and_signs_when_it_is_activated() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (root(), root());
    write(folder.path(), &intermediate(&old), &[&old]);
    let authority = open_at(folder.path(), Some(state.path()), now()).unwrap();
    let known = authority.bundle();
    assert!(matches!(authority.prepare(AuthorityKind::Root, now()), Err(StepError::NotHere(_))));
    let later = now() + Duration::from_secs(10);
    write(folder.path(), &intermediate(&new), &[&old, &new]);
    assert!(run(authority.renew_upstream(later)).is_empty());
    assert_eq!(slots(&authority), [Slot::Prepared, Slot::Active]);
    assert_eq!(judged(known.clone(), &chain(&authority, later), later), Ok(()), "the old one still signs");
    authority.activate(AuthorityKind::Root, later).unwrap();
    let leaf = chain(&authority, later);
    assert_eq!(judged(known, &leaf, later), Err("unknown-issuer"));
    assert_eq!(judged(authority.bundle(), &leaf, later), Ok(()));
    let named = authority
        .status(later)
        .into_iter()
        .find(|one| one.slot == Slot::Old && one.kind == AuthorityKind::Root);
    assert!(matches!(authority.retire(named.unwrap().id, later), Err(StepError::NotHere(_))));
    // Taken out there, it stays until somebody says that nobody needs it; and the next process finds it so.
    write(folder.path(), &intermediate(&new), &[&new]);
    run(authority.renew_upstream(later + Duration::from_secs(10)));
    assert_eq!(authority.bundle().anchors.len(), 2);
    let old = authority
        .status(later)
        .into_iter()
        .find(|one| one.slot == Slot::Old && one.kind == AuthorityKind::Root);
    authority.retire(old.unwrap().id, later).unwrap();
    assert_eq!(authority.bundle().anchors.len(), 1);
    let again = open_at(folder.path(), Some(state.path()), later).unwrap();
    assert_eq!(again.bundle().anchors, authority.bundle().anchors);
    assert_eq!(again.bundle().jwt_keys, authority.bundle().jwt_keys);
}

/// Opens below `old`, puts `new` in its place, and looks.
fn replaced(folder: &Path, state: &Path, old: &Ca, new: &Ca) -> Authority {
    write(folder, &intermediate(old), &[old]);
    let authority = open_at(folder, Some(state), now()).unwrap();
    write(folder, &intermediate(new), &[new]);
    assert!(run(authority.renew_upstream(now() + Duration::from_secs(10))).is_empty());
    authority
}

#[test]
fn a_new_root_waits_as_long_as_something_signs_below_the_old_one() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (root(), root());
    let authority = replaced(folder.path(), state.path(), &old, &new);
    let told = |at| authority.tick(at).iter().map(ToString::to_string).collect::<Vec<_>>();
    // The step logged that it is prepared. Nobody has acknowledged it, and half of the old one's life goes by.
    let known = Bundle::from_pem("cluster.local".parse().unwrap(), old.pem.as_bytes()).unwrap();
    for day in [1, 100, 200, 345] {
        let at = now() + DAY * day;
        told(at);
        assert_eq!(slots(&authority), [Slot::Prepared, Slot::Active], "day {day}");
        assert_eq!(judged(known.clone(), &chain(&authority, at), at), Ok(()), "day {day}");
    }
    // 5 % of its life: it is time.
    let late = now() + DAY * 348;
    let events = told(late);
    assert!(
        events.iter().any(|event| event.contains("signs now, since the one before it comes to its end")),
        "{events:?}"
    );
    assert_eq!(judged(known, &chain(&authority, late), late), Err("unknown-issuer"));
    assert_eq!(judged(authority.bundle(), &chain(&authority, late), late), Ok(()));
}

#[test]
fn the_root_before_comes_back_when_the_files_do() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (root(), root());
    let authority = replaced(folder.path(), state.path(), &old, &new);
    authority.activate(AuthorityKind::Root, now()).unwrap();
    let later = now() + Duration::from_secs(20);
    write(folder.path(), &intermediate(&old), &[&old]);
    run(authority.renew_upstream(later));
    assert_eq!(slots(&authority), [Slot::Prepared, Slot::Active]);
    authority.activate(AuthorityKind::Root, later).unwrap();
    let known = Bundle::from_pem("cluster.local".parse().unwrap(), old.pem.as_bytes()).unwrap();
    assert_eq!(judged(known, &chain(&authority, later), later), Ok(()));
}

#[test]
fn after_a_restart_a_new_root_signs_at_once_where_nothing_can_sign_below_the_old_one_and_says_so() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (old, new) = (root(), root());
    write(folder.path(), &intermediate(&old), &[&old]);
    drop(open_at(folder.path(), Some(state.path()), now()).unwrap());
    write(folder.path(), &intermediate(&new), &[&new]);
    let authority = open_at(folder.path(), Some(state.path()), now()).unwrap();
    // Who holds something below the old one is let in as before.
    assert_eq!(slots(&authority), [Slot::Active, Slot::Old]);
    let told = authority.tick(now());
    let [warning @ Event::Replaced { published: false, .. }] = told.as_slice() else { panic!("{told:?}") };
    assert!(warning.is_warning() && warning.to_string().contains("no sidecar was told of it before"));
    assert!(authority.tick(now()).is_empty(), "once");

    // The twin: both roots stood in the files before what signs was replaced.
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(folder.path(), &intermediate(&old), &[&old, &new]);
    drop(open_at(folder.path(), Some(state.path()), now()).unwrap());
    write(folder.path(), &intermediate(&new), &[&old, &new]);
    let authority = open_at(folder.path(), Some(state.path()), now()).unwrap();
    let told = authority.tick(now());
    assert!(matches!(told.as_slice(), [Event::Replaced { published: true, .. }]), "{told:?}");
}

#[test]
fn a_mesh_moves_from_its_own_root_to_a_given_one_and_back() {
    let (folder, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let own = |at| {
        let settings = Settings {
            state: Some(state.path().to_owned()),
            trust_domain: "cluster.local".parse().unwrap(),
            upstream: Upstream::Own,
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            leaf_lifetime: HOUR,
            allow_ending: false,
        };
        run(Authority::open(settings, at)).unwrap()
    };
    let first = own(now()).bundle();
    let root = root();
    write(folder.path(), &intermediate(&root), &[&root]);
    let given = open_at(folder.path(), Some(state.path()), now()).unwrap();
    assert_eq!(slots(&given), [Slot::Prepared, Slot::Active], "nobody knows it yet");
    assert_eq!(judged(first.clone(), &chain(&given, now()), now()), Ok(()));
    given.activate(AuthorityKind::Root, now()).unwrap();
    assert_eq!(slots(&given), [Slot::Active, Slot::Old]);
    assert_eq!(judged(given.bundle(), &chain(&given, now()), now()), Ok(()));
    let server = given.server_identity(now()).unwrap();
    assert_eq!(judged(first, &server.cert, now()), Ok(()), "who was away still knows us");
    let known = given.bundle();
    drop(given);
    let back = own(now());
    assert!(matches!(back.tick(now()).as_slice(), [Event::Replaced { published: true, .. }]));
    assert_eq!(judged(back.bundle(), &chain(&back, now()), now()), Ok(()));
    assert!(known.anchors.iter().all(|anchor| back.bundle().anchors.contains(anchor)));
}
