//! The state folder: a crash after every single operation, and journals that nobody of ours wrote.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Ends the process, as far as the disk can tell, when so many operations have been done.
#[derive(Debug)]
pub(crate) struct Fuse(AtomicUsize);

impl Default for Fuse {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl Fuse {
    pub(crate) fn set(&self, operations: usize) {
        self.0.store(operations, Ordering::SeqCst);
    }

    pub(super) fn burn(&self) -> io::Result<()> {
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map(|_| ()).map_err(|_| io::Error::other("the process died here"))
    }
}

mod folder {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

    use super::super::super::{
        Authority, AuthorityError, AuthorityKind, AuthorityStatus, INTERMEDIATE_LIFETIME, Settings, Slot,
        StepError, Upstream,
    };
    use std::{
        collections::BTreeSet,
        fs,
        os::unix::fs::PermissionsExt,
        path::Path,
        time::{Duration, SystemTime},
    };

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn open(folder: &Path) -> Result<Authority, AuthorityError> {
        let settings = Settings {
            state: Some(folder.to_owned()),
            trust_domain: "cluster.local".parse().unwrap(),
            upstream: Upstream::Own,
            intermediate_lifetime: INTERMEDIATE_LIFETIME,
            leaf_lifetime: Duration::from_secs(3600),
            allow_ending: false,
        };
        Authority::open_with(settings, None, now())
    }

    fn copied(from: &Path) -> tempfile::TempDir {
        let to = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
        }
        to
    }

    /// What must survive: roots and token keys with their slots and marks. Intermediates are made anew by each process.
    fn kept(authority: &Authority) -> Vec<String> {
        let line = |one: &AuthorityStatus| {
            format!("{} {} {:?} {} {} {}", one.kind, one.id, one.slot, one.tainted, one.revoked, one.has_key)
        };
        let all = authority.status(now());
        all.iter().filter(|one| one.kind != AuthorityKind::Intermediate).map(line).collect()
    }

    fn id(authority: &Authority, kind: AuthorityKind, slot: Slot) -> postern_identity::KeyId {
        authority.status(now()).into_iter().find(|one| one.kind == kind && one.slot == slot).unwrap().id
    }

    fn names(folder: &Path) -> BTreeSet<String> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    type Step = fn(&Authority) -> Result<(), StepError>;

    /// A whole rotation of both kinds, and each way out. Each step with its name.
    const STEPS: &[(&str, Step)] = &[
        ("prepare a root", |a| a.prepare(AuthorityKind::Root, now()).map(drop)),
        ("prepare a token key", |a| a.prepare(AuthorityKind::JwtKey, now()).map(drop)),
        ("activate the root", |a| a.activate(AuthorityKind::Root, now()).map(drop)),
        ("activate the token key", |a| a.activate(AuthorityKind::JwtKey, now()).map(drop)),
        ("taint the old root", |a| a.taint(id(a, AuthorityKind::Root, Slot::Old), now())),
        ("retire the old root", |a| a.retire(id(a, AuthorityKind::Root, Slot::Old), now())),
        ("retire the old token key", |a| a.retire(id(a, AuthorityKind::JwtKey, Slot::Old), now())),
        ("prepare another root", |a| a.prepare(AuthorityKind::Root, now()).map(drop)),
        ("revoke the active root", |a| a.revoke(id(a, AuthorityKind::Root, Slot::Active), now())),
        ("revoke the token key", |a| a.revoke(id(a, AuthorityKind::JwtKey, Slot::Active), now())),
    ];

    #[test]
    fn a_crash_after_any_operation_of_any_step_leaves_the_state_before_or_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        let mut cuts = 0;
        for (name, step) in STEPS {
            let before = kept(&authority);
            let start = copied(folder.path());
            step(&authority).unwrap_or_else(|refusal| panic!("{name}: {refusal}"));
            // Keys made in a run that dies are others than those here: compared without ids.
            let shape = |lines: &[String]| -> Vec<String> {
                let without_id = |line: &String| {
                    let words: Vec<&str> = line.split(' ').filter(|word| word.len() != 64).collect();
                    words.join(" ")
                };
                lines.iter().map(without_id).collect()
            };
            let after = shape(&kept(&authority));
            for operations in 0.. {
                assert!(operations < 200, "{name} never ends");
                let place = copied(start.path());
                let dying = open(place.path()).unwrap();
                dying.store.as_ref().unwrap().fuse.set(operations);
                let outcome = step(&dying);
                let in_memory = kept(&dying);
                drop(dying);
                let again =
                    open(place.path()).unwrap_or_else(|error| panic!("{name}, {operations}: {error}"));
                let found = kept(&again);
                assert!(
                    found == before || shape(&found) == after,
                    "{name}, dead after {operations} operations: {found:#?}"
                );
                // What was answered for is there.
                if outcome.is_ok() {
                    assert_eq!(shape(&found), after, "{name}, {operations}");
                    break;
                }
                assert_eq!(
                    in_memory, before,
                    "{name}, {operations}: a step that failed has changed nothing here"
                );
                assert_tidy(place.path(), &again, name);
                cuts += 1;
            }
        }
        assert!(cuts > 80, "only {cuts} places to die at were tried");
    }

    #[test]
    fn a_crash_in_the_first_start_is_no_obstacle_for_the_second() {
        for operations in 0..60 {
            let folder = tempfile::tempdir().unwrap();
            let store = super::super::Store::open(folder.path()).unwrap();
            store.fuse.set(operations);
            let whole = open(folder.path()).unwrap();
            drop(whole);
            // The same writes once more into an empty place, cut short.
            let place = tempfile::tempdir().unwrap();
            let cut = super::super::Store::open(place.path()).unwrap();
            let state = store.read(&"cluster.local".parse().unwrap()).unwrap().unwrap();
            let keys = store.keys(&state, &super::super::Keys::new()).unwrap();
            cut.fuse.set(operations);
            let written = cut.write(&state, &keys);
            let again = open(place.path()).unwrap_or_else(|error| panic!("{operations}: {error}"));
            assert_tidy(place.path(), &again, "the first start");
            if written.is_ok() {
                assert!(operations > 20, "{operations} operations are too few");
                return;
            }
        }
        panic!("the first start never ends");
    }

    /// Nothing of a broken step is left, and what is secret is closed.
    fn assert_tidy(folder: &Path, authority: &Authority, name: &str) {
        let mut expected: BTreeSet<String> =
            ["journal.json", "lock", "root.pem", "root-key.pem"].map(str::to_owned).into();
        let held = authority.status(now()).into_iter();
        let held = held.filter(|one| one.has_key && one.kind != AuthorityKind::Intermediate);
        expected.extend(held.map(|one| format!("key-{}.pem", one.id)));
        assert_eq!(names(folder), expected, "{name}");
        for file in &expected {
            let mode = fs::metadata(folder.join(file)).unwrap().permissions().mode() & 0o7777;
            let wanted = if file == "root.pem" { 0o644 } else { 0o600 };
            assert_eq!(mode, wanted, "{name}: {file}");
        }
        assert_eq!(fs::read_to_string(folder.join("root.pem")).unwrap(), authority.bundle_pem(), "{name}");
        let active = id(authority, AuthorityKind::Root, Slot::Active);
        let key = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert_eq!(key("root-key.pem"), key(&format!("key-{active}.pem")), "{name}");
    }

    #[test]
    fn a_damaged_journal_is_refused_whatever_byte_is_hit_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        authority.prepare(AuthorityKind::Root, now()).unwrap();
        let expected = kept(&authority);
        let path = folder.path().join("journal.json");
        let good = fs::read(&path).unwrap();
        let mut refused = 0;
        // Each byte would take minutes: a step that meets every kind of place.
        for position in (0..good.len()).step_by(7) {
            let mut damaged = good.clone();
            damaged[position] ^= 1;
            fs::write(&path, &damaged).unwrap();
            let before = names(folder.path());
            match open(folder.path()) {
                // White space between the members means nothing.
                Ok(found) => assert_eq!(kept(&found), expected, "{position}"),
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error, AuthorityError::Journal { .. }), "{position}: {error}");
                    assert!(error.to_string().contains("nothing was changed"), "{error}");
                    assert_eq!(fs::read(&path).unwrap(), damaged, "{position}");
                    assert_eq!(names(folder.path()), before, "{position}");
                }
            }
        }
        assert!(refused > 100, "{refused}");
        for hostile in [&b""[..], b"{}", b"null", &good[..good.len() / 2], &[b'['; 100_000], b"\xff\xfe"] {
            fs::write(&path, hostile).unwrap();
            let error = open(folder.path()).unwrap_err();
            assert!(matches!(error, AuthorityError::Journal { .. }), "{error}");
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(kept(&open(folder.path()).unwrap()), expected);
    }

    /// Spoils a folder with a journal; a part of the error.
    fn check_spoilt(spoil: impl FnOnce(&Path, &Authority), part: &str) {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        spoil(folder.path(), &authority);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(part), "{error} should contain {part}");
    }

    #[test]
    fn a_folder_that_does_not_fit_its_journal_is_refused_with_a_remedy() {
        let key = |a: &Authority| format!("key-{}.pem", id(a, AuthorityKind::Root, Slot::Active));
        let chmod = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        check_spoilt(|f, a| fs::remove_file(f.join(key(a))).unwrap(), "is missing");
        check_spoilt(|f, a| fs::write(f.join(key(a)), "").unwrap(), "no usable private key");
        check_spoilt(|f, a| chmod(&f.join(key(a)), 0o644), "has mode 0644");
        let other_key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        check_spoilt(|f, a| fs::write(f.join(key(a)), &other_key).unwrap(), "belongs to no certificate");
        check_spoilt(|f, _| fs::write(f.join("root-key.pem"), &other_key).unwrap(), "move journal.json away");
    }

    #[test]
    fn a_lost_journal_is_made_anew_from_the_active_root_and_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        authority.prepare(AuthorityKind::Root, now()).unwrap();
        let active = authority.activate(AuthorityKind::Root, now()).unwrap();
        fs::remove_file(folder.path().join("journal.json")).unwrap();
        let again = open(folder.path()).unwrap();
        assert_eq!(id(&again, AuthorityKind::Root, Slot::Active), active);
        let anchors =
            |a: &Authority| a.bundle().anchors.iter().map(|one| one.to_vec()).collect::<BTreeSet<_>>();
        assert_eq!(anchors(&again), anchors(&authority), "the old root is still published");
    }

    #[test]
    fn two_processes_in_one_folder_see_each_others_steps() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (open(folder.path()).unwrap(), open(folder.path()).unwrap());
        let changes = two.changes();
        let prepared = one.prepare(AuthorityKind::Root, now()).unwrap();
        assert!(!changes.has_changed().unwrap());
        two.tick(now());
        assert!(changes.has_changed().unwrap());
        assert_eq!(id(&two, AuthorityKind::Root, Slot::Prepared), prepared);
        assert_eq!(two.activate(AuthorityKind::Root, now()).unwrap(), prepared);
        assert!(matches!(one.activate(AuthorityKind::Root, now()), Err(StepError::NothingPrepared)));
        one.tick(now());
        assert_eq!(kept(&one), kept(&two));
    }

    #[test]
    fn a_disk_that_fails_stops_no_renewal() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        authority.store.as_ref().unwrap().fuse.set(0);
        let later = now() + INTERMEDIATE_LIFETIME * 3 / 4;
        let events: Vec<String> = authority.tick(later).iter().map(ToString::to_string).collect();
        assert!(events.iter().any(|event| event.contains("the process died here")), "{events:?}");
        let ends = now() + INTERMEDIATE_LIFETIME * 7 / 4;
        assert!(events.iter().any(|event| event.starts_with("intermediate ")), "{events:?}");
        let active = authority.status(later).into_iter();
        let mut active =
            active.filter(|one| one.kind == AuthorityKind::Intermediate && one.slot == Slot::Active);
        assert_eq!(active.next().unwrap().not_after, ends);
        // Whether the disk can be used again is seen by itself.
        authority.store.as_ref().unwrap().fuse.set(usize::MAX);
        authority.tick(later + Duration::from_secs(1));
        authority.prepare(AuthorityKind::Root, later).unwrap();
    }
}
