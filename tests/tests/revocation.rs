//! After a revocation nothing below the revoked authority is accepted any more, on new connections and on open ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    load::Load,
    standalone::{Settings, Standalone, until},
    visitor::{self, Connection, Visitor},
};
use std::time::{Duration, Instant};

/// What is promised.
const PROMISED: Duration = Duration::from_secs(5);

/// Waits until new calls and calls on an open connection are refused, which must be soon, and stay so.
async fn refused(mesh: &Standalone, thief: &mut Visitor, open: &mut Connection, since: Instant) {
    let inbound = mesh.inbound("server");
    let (mut refused_new, mut refused_open) = (None, None);
    while refused_new.is_none() || refused_open.is_none() {
        let waited = since.elapsed();
        assert!(waited < PROMISED, "new {refused_new:?}, open {refused_open:?}\n{}", mesh.told());
        if refused_open.is_none() && open.call().await != Ok(200) {
            refused_open = Some(since.elapsed());
        }
        if refused_new.is_none() && thief.call(inbound).await != Ok(200) {
            refused_new = Some(since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    thief.learn(mesh);
    let seen = visitor::seen(mesh);
    for _ in 0..20 {
        let accepted = thief.call(inbound).await;
        assert!(accepted.is_err(), "{accepted:?}");
        assert!(open.call().await.is_err());
    }
    assert_eq!(visitor::seen(mesh), seen, "the app saw nothing of the refused calls");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_root_is_refused_within_five_seconds_on_open_connections_too_and_no_call_is_lost() {
    let mesh = Standalone::start(Settings::default()).await;
    let mut thief = Visitor::with_the_root_of(&mesh);
    let inbound = mesh.inbound("server");
    let old = mesh.authority("root", "active").unwrap();

    // The twin: before the revocation the stolen root opens the door, and the mesh moves on without losing a call.
    let mut open = thief.connect(inbound).await.unwrap();
    assert_eq!(open.call().await, Ok(200));
    let load = Load::start(&mesh);
    mesh.must(&["ca", "rotate", "--step", "prepare"]);
    mesh.all_heard().await;
    mesh.must(&["ca", "rotate", "--step", "activate"]);
    let early = mesh.postern(&["ca", "revoke", &old]);
    assert_eq!(early.status.code(), Some(2), "everybody still holds certificates below it");
    mesh.must(&["ca", "taint", &old]);
    until("everybody has renewed", || {
        let now = mesh.authorities();
        now.authorities.iter().any(|one| one.id == old && one.holders == Some(0))
    })
    .await;
    thief.learn(&mesh);
    // The server has left the connections that know it by its old certificate.
    let mut open = thief.connect(inbound).await.unwrap();
    assert_eq!(open.call().await, Ok(200));

    mesh.must(&["ca", "revoke", &old[..12]]);
    refused(&mesh, &mut thief, &mut open, Instant::now()).await;
    load.pass(200).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_was_stolen_from_a_pod_goes_with_its_intermediate_and_no_call_is_lost() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let mut thief = Visitor::with_the_certificate_of_the_client(&mesh);
    let inbound = mesh.inbound("server");
    let old = mesh.authority("intermediate", "active").unwrap();
    let mut open = thief.connect(inbound).await.unwrap();
    assert_eq!(open.call().await, Ok(200));
    let load = Load::start(&mesh);
    // Another process signs by now, and everybody still holds what the first one signed.
    mesh.restart_control_plane().await;
    mesh.all_heard().await;
    mesh.must(&["ca", "rotate", "--kind", "intermediate"]);
    let mut open = thief.connect(inbound).await.unwrap();
    assert_eq!(open.call().await, Ok(200));
    mesh.must(&["ca", "revoke", &old]);
    refused(&mesh, &mut thief, &mut open, Instant::now()).await;
    load.pass(200).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_is_revoked_by_force_ends_everything_below_it_and_new_join_tokens_bring_it_back() {
    let mesh = Standalone::start(Settings::default()).await;
    let mut thief = Visitor::with_the_root_of(&mesh);
    let old = mesh.authority("root", "active").unwrap();
    let mut open = thief.connect(mesh.inbound("server")).await.unwrap();
    assert_eq!(open.call().await, Ok(200));
    let load = Load::start(&mesh);
    mesh.must(&["ca", "rotate", "--step", "prepare"]);
    mesh.all_heard().await;
    mesh.must(&["ca", "revoke", &old, "--force"]);
    refused(&mesh, &mut thief, &mut open, Instant::now()).await;
    load.stop().await.assert_no_breach(&mesh);
    // Nobody restarts anything: the control plane has written new tokens for those that were used, and they are found.
    for name in ["server", "client", "intruder"] {
        mesh.ready(name).await;
    }
    let load = Load::start(&mesh);
    load.pass(200).await;
    load.stop().await.assert_whole(&mesh);
}
