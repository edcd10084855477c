//! The authority: files, requests, and certificates as others read them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::*;
use postern_identity::{Accept, TrustBundles, verify::verify};
use rcgen::{CertificateParams, DnType, IsCa, KeyPair, SanType};
use rustls_pki_types::CertificateDer;
use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    process::Command,
};

pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(super) fn attested() -> Attested {
    Attested { namespace: "shop".into(), service_account: "cart".into(), pod: "cart-1".into() }
}

fn settings(folder: &Path, trust_domain: &str) -> Settings {
    Settings {
        state: Some(folder.to_owned()),
        trust_domain: trust_domain.parse().unwrap(),
        upstream: Upstream::Own,
        intermediate_lifetime: INTERMEDIATE_LIFETIME,
        leaf_lifetime: HOUR,
        allow_ending: false,
    }
}

fn open(folder: &Path, at: SystemTime) -> Result<Authority, AuthorityError> {
    Authority::open_with(settings(folder, "cluster.local"), None, at)
}

pub(super) fn authority() -> Authority {
    Authority::in_memory(domain(), now()).unwrap()
}

pub(super) fn request(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    change(&mut params);
    params.serialize_request(key).unwrap().der().to_vec()
}

pub(super) fn p256() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn issue(authority: &Authority, lifetime: Duration) -> Issued {
    authority.issue(&request(&p256(), |_| {}), &attested(), lifetime, now()).unwrap()
}

fn verified(authority: &Authority, chain: &[CertificateDer<'_>], at: SystemTime) -> Result<SpiffeId, String> {
    let trust = TrustBundles::from_iter([authority.bundle()]);
    verify(chain, &trust, &Accept::trust_domain(domain()), true, unix(at))
        .map(|peer| peer.id().clone())
        .map_err(|refusal| refusal.to_string())
}

#[test]
fn an_issued_certificate_is_an_svid_for_who_was_attested() {
    let authority = authority();
    let issued = issue(&authority, HOUR);
    assert_eq!(issued.id.as_str(), "spiffe://cluster.local/ns/shop/sa/cart");
    assert_eq!(issued.not_after, now() + HOUR);
    assert_eq!(issued.chain.len(), 2, "leaf and intermediate: the root is in the bundle, not in the chain");
    assert_eq!(verified(&authority, &issued.chain, now()), Ok(issued.id.clone()));
    assert_eq!(verified(&authority, &issued.chain, now() - BACKDATE), Ok(issued.id.clone()));
    assert!(verified(&authority, &issued.chain, now() - BACKDATE - Duration::from_secs(1)).is_err());
    assert!(verified(&authority, &issued.chain, now() + HOUR + Duration::from_secs(1)).is_err());
    let other = Authority::in_memory(domain(), now()).unwrap();
    assert!(
        verified(&other, &issued.chain, now()).is_err(),
        "another authority of the same name does not vouch for it"
    );
}

#[test]
fn of_a_request_only_the_key_is_used() {
    let authority = authority();
    let key = p256();
    let greedy = request(&key, |p| {
        p.distinguished_name.push(DnType::CommonName, "root of all");
        p.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/bank/sa/vault".try_into().unwrap()),
            SanType::DnsName("bank.example".try_into().unwrap()),
        ];
        p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        p.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    });
    let issued = authority.issue(&greedy, &attested(), HOUR, now()).unwrap();
    assert_eq!(verified(&authority, &issued.chain, now()), Ok(issued.id));
    for asked in [&b"root of all"[..], b"vault", b"bank.example"] {
        assert!(!issued.chain[0].windows(asked.len()).any(|window| window == asked));
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    postern_identity::tls::certified_key(issued.chain, key)
        .expect("the key of the certificate is the key of the request");
}

/// `Ok` or a part of the refusal.
fn check_request(csr: &[u8], expected: Result<(), &str>) {
    match (authority().issue(csr, &attested(), HOUR, now()), expected) {
        (Ok(_), Ok(())) => {}
        (Err(refusal), Err(part)) => {
            assert!(refusal.to_string().contains(part), "{refusal} should contain {part}")
        }
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

#[test]
fn requests_need_a_p256_key_and_proof_of_possession() {
    let good = request(&p256(), |_| {});
    check_request(&good, Ok(()));
    check_request(b"", Err("malformed"));
    check_request(b"hello", Err("malformed"));
    check_request(&[&good[..], b"x"].concat(), Err("1 bytes follow"));
    check_request(&good[..good.len() - 1], Err("malformed"));
    let generate = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    check_request(&request(&generate(&rcgen::PKCS_ECDSA_P384_SHA384), |_| {}), Err("ECDSA on another curve"));
    check_request(&request(&generate(&rcgen::PKCS_ED25519), |_| {}), Err("Ed25519"));
    check_request(&request(&generate(&rcgen::PKCS_RSA_SHA256), |_| {}), Err("RSA"));
    // The key of somebody else in a request of mine.
    let (mine, theirs) = (p256(), p256());
    let mut stolen = request(&mine, |_| {});
    let position = stolen.windows(65).position(|window| window == mine.public_key_raw()).unwrap();
    stolen[position..position + 65].copy_from_slice(theirs.public_key_raw());
    check_request(&stolen, Err("does not fit its key"));
}

#[test]
fn no_flipped_bit_gives_a_certificate_for_another_key() {
    let key = p256();
    let good = request(&key, |_| {});
    for position in 0..good.len() {
        let mut flipped = good.clone();
        flipped[position] ^= 1;
        // Some bits of the envelope are not signed and mean nothing.
        if let Ok(issued) = authority_shared().issue(&flipped, &attested(), HOUR, now()) {
            let same_key = issued.chain[0].windows(65).any(|window| window == key.public_key_raw());
            assert!(same_key, "flipped at {position}");
        }
    }
}

fn authority_shared() -> &'static Authority {
    static SHARED: std::sync::LazyLock<Authority> = std::sync::LazyLock::new(authority);
    &SHARED
}

#[test]
fn lifetimes_are_capped_by_a_day_and_by_every_certificate_above() {
    let authority = authority();
    assert_eq!(issue(&authority, Duration::from_secs(10)).not_after, now() + Duration::from_secs(10));
    assert_eq!(issue(&authority, HOUR * 48).not_after, now() + HOUR * 24);
    let csr = request(&p256(), |_| {});
    let asked =
        |lifetime, at| authority.issue(&csr, &attested(), lifetime, at).map(|issued| issued.not_after);
    assert_eq!(asked(Duration::ZERO, now()), Err(IssueError::Lifetime));
    assert_eq!(asked(Duration::from_millis(900), now()), Err(IssueError::Lifetime));
    let end = now() + INTERMEDIATE_LIFETIME;
    assert_eq!(asked(HOUR, end - HOUR / 2), Ok(end), "never longer than the intermediate");
    assert_eq!(asked(HOUR, end), Err(IssueError::AuthorityNotValid));
    assert_eq!(asked(HOUR, now() - HOUR * 2), Err(IssueError::AuthorityNotValid));
}

#[test]
fn serials_are_128_bits_positive_and_never_the_same() {
    let serials: std::collections::BTreeSet<_> =
        (0..200).map(|_| issue(authority_shared(), HOUR).serial).collect();
    assert_eq!(serials.len(), 200);
    for serial in serials {
        assert_eq!(serial.len(), 32);
        assert!(('4'..='7').contains(&serial.chars().next().unwrap()), "positive, constant length: {serial}");
    }
    let issued = issue(authority_shared(), HOUR);
    let trust = TrustBundles::from_iter([authority_shared().bundle()]);
    let peer = verify(&issued.chain, &trust, &Accept::only(issued.id), false, unix(now())).unwrap();
    assert_eq!(peer.serial(), issued.serial);
}

#[test]
fn names_that_make_no_spiffe_id_are_not_issued() {
    let csr = request(&p256(), |_| {});
    for (namespace, service_account) in [("", "a"), ("a", ""), ("a/sa/b", "c"), ("a", "../b"), ("a", "b%20c")]
    {
        let attested = Attested {
            namespace: namespace.into(),
            service_account: service_account.into(),
            pod: "p".into(),
        };
        let refusal = authority_shared().issue(&csr, &attested, HOUR, now()).unwrap_err();
        assert!(matches!(refusal, IssueError::Identity(_)), "{namespace:?} {service_account:?}: {refusal}");
    }
}

#[test]
fn the_control_planes_own_certificate_names_the_control_plane() {
    let authority = authority();
    let key = authority.server_identity(now()).unwrap();
    let id = verified(&authority, &key.cert, now()).unwrap();
    assert_eq!(id.as_str(), "spiffe://cluster.local/ns/postern-system/sa/control-plane");
    assert_eq!(id, authority.server_id().unwrap());
    assert_eq!(format!("{authority:?}"), "Authority { trust_domain: TrustDomain(\"cluster.local\"), .. }");
}

#[test]
fn openssl_reads_and_accepts_what_is_issued() {
    let folder = tempfile::tempdir().unwrap();
    let authority = open(folder.path(), now()).unwrap();
    let issued = issue(&authority, HOUR);
    let [leaf, intermediate] = ["leaf.pem", "intermediate.pem"].map(|name| folder.path().join(name));
    fs::write(&leaf, postern_identity::bundle::pem_block("CERTIFICATE", &issued.chain[0])).unwrap();
    fs::write(&intermediate, postern_identity::bundle::pem_block("CERTIFICATE", &issued.chain[1])).unwrap();
    let root = folder.path().join("root.pem");
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().expect("openssl is installed");
        (
            output.status.success(),
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
        )
    };
    let (path, root) = (leaf.to_str().unwrap(), root.to_str().unwrap());
    let intermediate = intermediate.to_str().unwrap();
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", path]);
    for part in [
        "Version: 3 (0x2)",
        "Signature Algorithm: ecdsa-with-SHA256",
        "X509v3 Subject Alternative Name: critical\n                URI:spiffe://cluster.local/ns/shop/sa/cart\n",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "X509v3 Authority Key Identifier",
        "ASN1 OID: prime256v1",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(text.lines().any(|line| line.trim_end() == "        Subject:"), "the subject is empty\n{text}");
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", root]);
    for part in [
        "URI:spiffe://cluster.local\n",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
        "CA:TRUE, pathlen:1",
        "CN = cluster.local",
    ] {
        assert!(text.replace("CN=", "CN = ").contains(part), "{part:?} is missing in\n{text}");
    }
    let (_, text) = openssl(&["x509", "-noout", "-text", "-in", intermediate]);
    for part in [
        "URI:spiffe://cluster.local\n",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
        "CA:TRUE, pathlen:0",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let time = seconds(now()).to_string();
    for purpose in ["sslserver", "sslclient"] {
        let (good, text) = openssl(&[
            "verify",
            "-x509_strict",
            "-attime",
            &time,
            "-purpose",
            purpose,
            "-CAfile",
            root,
            "-untrusted",
            intermediate,
            path,
        ]);
        assert!(good, "{text}");
    }
    let late = (seconds(now()) + 3601).to_string();
    assert!(!openssl(&["verify", "-attime", &late, "-CAfile", root, "-untrusted", intermediate, path]).0);
}

#[test]
fn the_first_start_makes_a_root_and_every_other_start_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state/authority");
    let first = open(&state, now()).unwrap();
    let second = open(&state, now() + HOUR * 24 * 365).unwrap();
    assert_eq!(first.bundle().anchors, second.bundle().anchors);
    assert_eq!(first.bundle().jwt_keys, second.bundle().jwt_keys);
    assert_eq!(first.bundle_pem(), fs::read_to_string(state.join("root.pem")).unwrap());
    let issued = issue(&first, HOUR);
    assert!(verified(&second, &issued.chain, now()).is_ok());
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(state.join("root-key.pem")), 0o600);
    assert_eq!(mode(state.clone()) & 0o077, 0, "the folder is closed to others");
    let mut names: Vec<_> = fs::read_dir(&state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let keys: Vec<String> = first
        .status(now())
        .iter()
        .filter(|one| one.kind != AuthorityKind::Intermediate)
        .map(|one| format!("key-{}.pem", one.id))
        .collect();
    let mut expected: Vec<&str> = ["journal.json", "lock", "root-key.pem", "root.pem"].into();
    expected.extend(keys.iter().map(String::as_str));
    expected.sort();
    assert_eq!(names, expected, "nothing unfinished stays behind");
}

#[test]
fn many_first_starts_at_once_agree_on_one_root() {
    let folder = tempfile::tempdir().unwrap();
    let bundles: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> =
            (0..8).map(|_| scope.spawn(|| open(folder.path(), now()).unwrap().bundle_pem())).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(bundles.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The folder as it was kept before there was a journal.
fn without_journal(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if !["root.pem", "root-key.pem"].iter().any(|kept| path.ends_with(kept)) {
            fs::remove_file(path).unwrap();
        }
    }
}

/// Opens a folder without journal that was spoilt after the first start; `Ok` or a part of the error.
fn check_open(spoil: impl FnOnce(&Path), at: SystemTime, td: &str, expected: Result<(), &str>) {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), now()).unwrap();
    without_journal(folder.path());
    spoil(folder.path());
    match (Authority::open_with(settings(folder.path(), td), None, at), expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error} should contain {part}"),
        (result, expected) => panic!("{result:?}, expected {expected:?}"),
    }
}

fn check_spoilt(spoil: impl FnOnce(&Path), expected: Result<(), &str>) {
    check_open(spoil, now(), "cluster.local", expected);
}

fn write_key(path: &Path, content: &str) {
    use std::io::Write;
    let _ = fs::remove_file(path);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

#[test]
fn a_root_that_may_not_be_used_stops_the_start_with_a_remedy() {
    let chmod = |mode| {
        move |state: &Path| {
            fs::set_permissions(state.join("root-key.pem"), fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    check_spoilt(|_| {}, Ok(()));
    check_spoilt(chmod(0o400), Ok(()));
    check_spoilt(chmod(0o640), Err("has mode 0640"));
    check_spoilt(chmod(0o604), Err("chmod 600"));
    check_spoilt(chmod(0o700), Err("has mode 0700"));
    check_spoilt(|s| fs::remove_file(s.join("root-key.pem")).unwrap(), Err("root-key.pem is missing"));
    check_spoilt(|s| fs::remove_file(s.join("root.pem")).unwrap(), Ok(()));
    check_spoilt(|s| fs::write(s.join("root.pem"), "").unwrap(), Err("holds no certificate"));
    check_spoilt(
        |s| fs::write(s.join("root.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap(),
        Err("malformed"),
    );
    check_spoilt(|s| write_key(&s.join("root-key.pem"), ""), Err("no usable private key"));
    check_spoilt(
        |s| write_key(&s.join("root-key.pem"), &p256().serialize_pem()),
        Err("belongs to no certificate"),
    );
    check_open(|_| {}, now() + HOUR * 24 * 3650, "cluster.local", Err("ends in 0 s"));
    check_open(|_| {}, now() + HOUR * 24 * 3650 - HOUR, "cluster.local", Err("--allow-ending-authority"));
    check_open(|_| {}, now() + HOUR * 24 * 3650 - HOUR * 2, "cluster.local", Ok(()));
    check_open(|_| {}, now() + HOUR * 24 * 3651, "cluster.local", Err("is expired"));
    check_open(|_| {}, now() - HOUR * 2, "cluster.local", Err("not yet valid"));
    check_open(|_| {}, now(), "other.example", Err("was to sign for trust domain `other.example`"));
}

#[test]
fn a_leaf_in_the_place_of_the_root_is_no_root() {
    let spoil = |state: &Path| {
        let key = p256();
        let issued = authority_shared().issue(&request(&key, |_| {}), &attested(), HOUR, now()).unwrap();
        write_key(&state.join("root-key.pem"), &key.serialize_pem());
        let pem = postern_identity::bundle::pem_block("CERTIFICATE", &issued.chain[0]);
        fs::write(state.join("root.pem"), pem).unwrap();
    };
    check_spoilt(spoil, Err("is not a certificate authority"));
}

#[test]
fn further_roots_are_published_and_the_one_with_the_key_signs() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), now()).unwrap();
    let old = authority();
    without_journal(folder.path());
    fs::write(folder.path().join("root.pem"), old.bundle_pem() + &first.bundle_pem()).unwrap();
    let both = open(folder.path(), now()).unwrap();
    assert_eq!(both.bundle().anchors.len(), 2);
    assert!(verified(&first, &issue(&both, HOUR).chain, now()).is_ok());
    assert!(verified(&both, &issue(&old, HOUR).chain, now()).is_ok());
    assert_eq!(both.problems(now()), Vec::<String>::new());
    assert_eq!(both.problems(now() + HOUR * 24 * 3651).len(), 2);
    assert_eq!(both.problems(now() + HOUR * 24 * 3589), Vec::<String>::new());
    assert!(both.problems(now() + HOUR * 24 * 3600)[0].contains("ends in 50 days"));
    let slots: Vec<Slot> =
        both.status(now()).iter().filter(|one| one.kind == AuthorityKind::Root).map(|one| one.slot).collect();
    assert_eq!(slots, [Slot::Active, Slot::Old]);
    // From now on the journal says so, whatever becomes of the file.
    fs::write(folder.path().join("root.pem"), old.bundle_pem()).unwrap();
    assert_eq!(open(folder.path(), now()).unwrap().bundle().anchors, both.bundle().anchors);
}

#[test]
fn whoever_knows_later_steps_follows_a_backup_that_is_restored() {
    let (folder, backup) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy = |from: &Path, to: &Path| {
        for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    let began = now();
    let first = open(folder.path(), began).unwrap();
    copy(folder.path(), backup.path());
    for _ in 0..20 {
        first.prepare(AuthorityKind::JwtKey, now()).unwrap();
        first.activate(AuthorityKind::JwtKey, now()).unwrap();
    }
    let known = first.bundle().sequence.unwrap();
    // However soon: within the same second.
    let restored = open(backup.path(), began + Duration::from_millis(200)).unwrap();
    assert!(restored.bundle().sequence.unwrap() > known);
    // Another process that starts on the same state says the same, or more, never less.
    let beside = open(backup.path(), now()).unwrap();
    assert!(beside.bundle().sequence >= restored.bundle().sequence);
}

#[test]
fn a_process_that_starts_again_and_again_can_start_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let first = open(folder.path(), now()).unwrap();
    let id = |number: u16| KeyId::of_spki(&number.to_be_bytes());
    let mut state = first.current.load().state.clone();
    for number in 0..300 {
        let root = state.roots[0].id;
        let (since, not_after) = (seconds(now()), seconds(now() + HOUR));
        state.note_intermediate(state::Intermediate {
            id: id(number),
            root,
            since,
            not_after,
            tainted: false,
        });
    }
    state.check("cluster.local").unwrap();
    assert!(state.intermediates.iter().any(|one| one.id == id(299)), "the oldest go");
}
