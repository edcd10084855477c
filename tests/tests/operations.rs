//! The scripts of docs/operations.md, run as they stand there against a mesh of real processes under load. A script is the
//! block after a line `<!-- script: NAME -->`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    load::Load,
    standalone::{Settings, Standalone, faketime, program, until},
    tree,
    visitor::Visitor,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

const PODS: [&str; 3] = ["server", "client", "intruder"];

fn script(name: &str) -> String {
    let page = fs::read_to_string(tree::root().join("docs/operations.md")).unwrap();
    let marker = format!("<!-- script: {name} -->");
    let after = page.split_once(&marker).unwrap_or_else(|| panic!("no {marker} in docs/operations.md")).1;
    let block = after.split_once("```sh\n").expect("a block of sh").1;
    block.split_once("```").expect("the end of the block").0.to_owned()
}

/// Stands in for the service manager: asks this test to restart a unit and waits until it is done.
fn service_manager(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("restart");
    let text = format!(
        "#!/bin/sh\nset -e\ncd '{}'\n: > \"$1.asked\"\nwhile [ -e \"$1.asked\" ]; do sleep 0.05; done\n",
        folder.display()
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs a script of the page; it has to succeed. What it printed.
async fn run(mesh: &mut Standalone, name: &str) -> String {
    run_edited(mesh, name, |script| script).await
}

async fn run_edited(mesh: &mut Standalone, name: &str, edit: impl FnOnce(String) -> String) -> String {
    let text = edit(script(name));
    let folder = tempfile::tempdir().unwrap();
    let restart = service_manager(folder.path());
    symlink(program(), folder.path().join("postern")).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", folder.path().display());
    let mut child = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &text])
        .env_clear()
        .env("PATH", path)
        .env("STATE", mesh.path("state"))
        .env("BACKUP", mesh.path("backup"))
        .env("SIDECAR_STATE", mesh.path("sidecars"))
        .env("PODS", PODS.join(" "))
        .env("RESTART", &restart)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(
            began.elapsed() < Duration::from_secs(100),
            "the script {name} does not end\n{}",
            mesh.told()
        );
        for unit in ["control-plane"].iter().chain(&PODS) {
            let asked = folder.path().join(format!("{unit}.asked"));
            if !asked.exists() {
                continue;
            }
            match *unit {
                "control-plane" => mesh.restart_control_plane().await,
                pod => {
                    mesh.kill_sidecar(pod);
                    mesh.start_sidecar(pod).await;
                }
            }
            fs::remove_file(&asked).unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = child.wait_with_output().unwrap();
    let told =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the script {name}: {}\n{told}\n{}", output.status, mesh.told());
    told
}

fn root(mesh: &Standalone) -> Vec<u8> {
    fs::read(mesh.path("state/root.pem")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_mesh_says_who_holds_what_and_what_ends_soon() {
    let mesh = Standalone::start(Settings::default()).await;
    mesh.all_heard().await;
    let page: serde_json::Value = serde_json::from_str(&mesh.must(&["certs", "-o", "json"])).unwrap();
    let shown = page["certificates"].as_array().unwrap();
    assert_eq!((shown.len(), page["missing"].as_array().unwrap().len()), (PODS.len(), 0));
    for one in shown {
        let pod = one["pod"].as_str().unwrap();
        assert_eq!(one["serial"], mesh.serial(pod).await, "{pod}");
        assert_eq!(one["root"], mesh.authority("root", "active").unwrap(), "{pod}");
    }
    // Certificates of an hour and an intermediate of a day renew themselves; a root of ten years does not.
    assert!(mesh.must(&["check", "--expires-within", "30d"]).contains("nothing ends unrenewed"));
    let found = mesh.postern(&["check", "--expires-within", "4000d"]);
    let told = String::from_utf8(found.stdout).unwrap();
    assert_eq!(found.status.code(), Some(2), "{told}");
    assert_eq!(told.matches("ends at").count(), 1, "{told}");
    assert!(told.starts_with(&format!("root {}", &mesh.authority("root", "active").unwrap()[..8])), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_to_rotate_loses_no_call_and_leaves_one_new_root() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let (old, load) = (root(&mesh), Load::start(&mesh));
    load.pass(100).await;
    run(&mut mesh, "rotate").await;
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
    assert_ne!(root(&mesh), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scripts_to_revoke_move_everybody_first_lose_no_call_and_leave_the_thief_outside() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let inbound = mesh.inbound("server");
    let load = Load::start(&mesh);
    for (name, mut thief) in [
        ("revoke-certificate", Visitor::with_the_certificate_of_the_client(&mesh)),
        ("revoke", Visitor::with_the_root_of(&mesh)),
    ] {
        assert_eq!(thief.call(inbound).await, Ok(200), "{name}: before");
        let mut open = thief.connect(inbound).await.unwrap();
        assert_eq!(open.call().await, Ok(200));
        run(&mut mesh, name).await;
        let ended = Instant::now();
        thief.learn(&mesh);
        while open.call().await == Ok(200) || thief.call(inbound).await == Ok(200) {
            assert!(ended.elapsed() < Duration::from_secs(5), "{name}");
        }
    }
    load.pass(50).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_to_revoke_cuts_off_who_does_not_move_and_it_begins_again() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let old = root(&mesh);
    let load = Load::start(&mesh);
    mesh.freeze("intruder");
    run_edited(&mut mesh, "revoke", |script| script.replace("seq 120", "seq 4")).await;
    assert_ne!(root(&mesh), old);
    assert!(!String::from_utf8_lossy(&root(&mesh)).contains(String::from_utf8_lossy(&old).trim()));
    mesh.thaw("intruder");
    run_edited(&mut mesh, "begin-again", |script| format!("PODS=intruder\n{script}")).await;
    mesh.all_heard().await;
    load.pass(50).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_for_a_lost_disk_with_a_backup_loses_no_call() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let (old, load) = (root(&mesh), Load::start(&mesh));
    load.pass(50).await;
    run(&mut mesh, "backup").await;
    // Everybody knows a later step than the backup does.
    mesh.must(&["ca", "rotate", "--kind", "jwt"]);
    mesh.all_heard().await;
    fs::remove_dir_all(mesh.path("state")).unwrap();
    mesh.kill_control_plane();
    load.pass(50).await;
    run(&mut mesh, "restore").await;
    mesh.all_heard().await;
    load.pass(50).await;
    load.stop().await.assert_whole(&mesh);
    assert_eq!(root(&mesh), old);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_for_a_lost_disk_without_a_backup_brings_the_mesh_back_under_a_new_root() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let old = root(&mesh);
    fs::remove_dir_all(mesh.path("state")).unwrap();
    mesh.kill_control_plane();
    run(&mut mesh, "new-root").await;
    run(&mut mesh, "begin-again").await;
    assert_ne!(root(&mesh), old);
    let load = Load::start(&mesh);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_script_for_an_expired_root_brings_the_mesh_back_under_a_new_root() {
    if faketime().is_none() {
        return postern_tests::up::skipped("libfaketime is not installed (make setup)");
    }
    let mut mesh = Standalone::start(Settings { clocks: true, ..Settings::default() }).await;
    let (old, load) = (root(&mesh), Load::start(&mesh));
    // Nobody replaced it: the control plane was away.
    mesh.kill_control_plane();
    for name in PODS.iter().chain(&["control-plane"]) {
        mesh.set_clock(name, "+11y");
    }
    let lost = load.so_far().1;
    until("calls are refused: every certificate is over", || load.so_far().1 > lost + 10).await;
    load.stop().await.assert_no_breach(&mesh);
    run(&mut mesh, "new-root").await;
    run(&mut mesh, "begin-again").await;
    assert_ne!(root(&mesh), old);
    let load = Load::start(&mesh);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}
