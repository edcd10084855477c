//! The demo as a stranger types it: the real program, every step ticked, nothing left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::up::{Place, Run, User, find, skipped};
use std::{path::Path, process::Command, time::Duration};

/// After the build the demo takes less.
const DEADLINE: Duration = Duration::from_secs(15);
const STEPS: usize = 8;

fn place(user: User) -> Place {
    let place = Place::new(user);
    place.copy("manifests/examples/payments");
    place
}

/// Runs it; what it said.
fn all_steps_hold(command: Command, user: User) -> String {
    let (status, said) = Run::start(command).end(DEADLINE);
    assert!(status.success(), "{user:?} {status}: {said}");
    for step in 1..=STEPS {
        let ticked = said.lines().any(|l| l.trim_start().starts_with(&format!("{step} ✔ ")));
        assert!(ticked, "step {step} as {user:?}: {said}");
    }
    assert!(!said.contains('✘'), "{user:?}: {said}");
    said
}

fn nothing_is_left(place: &Place) {
    let left = |p: &Path| {
        std::fs::read_dir(p).map(|d| d.flatten().map(|e| e.file_name()).collect()).unwrap_or_default()
    };
    let of_this_mesh: Vec<_> = Vec::into_iter(left(&place.meshes()))
        .filter(|name| place.user() != User::Root || name.to_string_lossy().contains(&fingerprint(place)))
        .collect();
    assert!(of_this_mesh.is_empty(), "{of_this_mesh:?}");
}

/// Root's meshes share a folder; ours is known by the fingerprint of its path.
fn fingerprint(place: &Place) -> String {
    let directory = place.yaml().canonicalize().unwrap();
    format!("{:016x}", postern::up::runtime_dir::fingerprint(&directory))
}

#[test]
fn every_step_of_the_demo_holds_in_network_namespaces() {
    for user in User::with_namespaces() {
        let place = place(user);
        let mut command = place.postern();
        command.args(["demo", "yaml", "--once"]);
        let said = all_steps_hold(command, user);
        assert!(
            said.contains("no plaintext in them") && !said.contains("note: no network namespaces"),
            "{said}"
        );
        nothing_is_left(&place);
    }
}

#[test]
fn every_step_of_the_demo_holds_without_namespaces() {
    for user in User::all() {
        let place = place(user);
        let mut command = place.postern();
        command.args(["demo", "yaml", "--once", "--no-namespaces"]);
        all_steps_hold(command, user);
        nothing_is_left(&place);
    }
}

/// In a user namespace without a single user, the kernel lets nobody make another one.
#[test]
fn where_namespaces_are_forbidden_the_demo_says_what_is_missing_and_falls_back() {
    let Some(unshare) = find("unshare") else { return skipped("`unshare` is missing (util-linux)") };
    for user in User::all() {
        let place = place(user);
        let mut command = place.command(&unshare);
        command.arg("--user").arg(place.program()).args(["demo", "yaml", "--once"]);
        let works = place.command(&unshare).args(["--user", "true"]).status().unwrap().success();
        if !works {
            skipped(&format!("{user:?} may not make a user namespace at all"));
            continue;
        }
        let said = all_steps_hold(command, user);
        let notes: Vec<&str> = said.lines().filter(|l| l.starts_with("note: ")).collect();
        assert_eq!(notes.len(), 1, "one line: {said}");
        let note = notes[0];
        assert!(note.contains("no network namespaces here (making a user namespace failed"), "{note}");
        assert!(note.contains("still with mutual TLS and policy"), "{note}");
        assert!(note.contains("as root"), "how to enable it: {note}");
    }
}
