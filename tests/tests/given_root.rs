//! The real control plane with Istio's `cacerts`: certificates below that root, never longer than it, and another root under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_control_plane::admin::pages::{Certificate, Certificates};
use postern_tests::{
    cacerts::Cacerts,
    load::Load,
    standalone::{Settings, Standalone, until},
};
use std::{path::Path, process::Command};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

fn settings(cacerts: &Path, more: &[&str]) -> Settings {
    let mut control_plane = vec![format!("--cacerts={}", cacerts.display())];
    control_plane.extend(more.iter().map(|flag| (*flag).to_owned()));
    Settings { control_plane, ..Settings::default() }
}

/// What every sidecar says that it holds.
async fn held(mesh: &Standalone) -> Vec<Certificate> {
    mesh.all_heard().await;
    let page: Certificates = serde_json::from_str(&mesh.must(&["certs", "-o", "json"])).unwrap();
    assert_eq!(page.certificates.len(), 3);
    page.certificates
}

/// Waits until this root signs, and the one before is published no more.
async fn rotated(mesh: &Standalone, to: &Cacerts) {
    let id = to.root_id().to_string();
    until("the new root signs, and the old one is gone", || {
        mesh.authority("root", "active").as_ref() == Some(&id) && mesh.authority("root", "old").is_none()
    })
    .await;
    assert!(held(mesh).await.iter().all(|one| one.root.as_ref() == Some(&id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_below_the_given_root_and_end_with_what_signed_them() {
    let folder = tempfile::tempdir().unwrap();
    let cacerts = Cacerts::new(Duration::minutes(30));
    cacerts.write(folder.path());
    // Certificates of an hour would be cut short, which somebody has to want.
    let state = tempfile::tempdir().unwrap();
    std::fs::create_dir(state.path().join("mesh")).unwrap();
    let mut command = Command::new(postern_tests::standalone::program());
    command.args(["control-plane", "--listen=127.0.0.1:0"]).current_dir(state.path());
    command.args(["--config=mesh", "--state=state"]).arg(format!("--cacerts={}", folder.path().display()));
    let refused = command.output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{told}");
    assert!(told.contains("--allow-ending-authority"), "{told}");

    let mesh = Standalone::start(settings(folder.path(), &["--allow-ending-authority"])).await;
    let signs = cacerts.ends.unix_timestamp();
    for one in held(&mesh).await {
        assert_eq!(one.root, Some(cacerts.root_id().to_string()), "{}", one.pod);
        let end = OffsetDateTime::parse(&one.not_after.unwrap(), &Rfc3339).unwrap();
        assert_eq!(end.unix_timestamp(), signs, "{}", one.pod);
    }
    let load = Load::start(&mesh);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_root_in_the_files_takes_over_under_load_and_no_call_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second, third] = [(); 3].map(|()| Cacerts::new(Duration::days(365)));
    first.write(folder.path());
    let mut mesh = Standalone::start(settings(folder.path(), &[])).await;
    assert!(held(&mesh).await.iter().all(|one| one.root == Some(first.root_id().to_string())));
    let load = Load::start(&mesh);
    load.pass(100).await;

    // All four files at once: nobody has to ask for anything.
    second.write(folder.path());
    rotated(&mesh, &second).await;

    // As Istio's documentation has it: first both roots, and then a control plane that starts with the other authority loses nothing.
    third.add_root(folder.path());
    until("the third root is published", || mesh.authority("root", "prepared").is_some()).await;
    mesh.all_heard().await;
    mesh.kill_control_plane();
    third.write(folder.path());
    mesh.start_control_plane().await;
    rotated(&mesh, &third).await;
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}
