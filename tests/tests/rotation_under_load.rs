//! Rotation while more than 200 calls a second pass and forbidden ones are tried all the time: no call is lost, none gets through, at
//! any step, whoever is killed in between.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_control_plane::admin::pages::Authority;
use postern_tests::{
    load::{Load, is_good_token, token},
    standalone::{SOON, Settings, Standalone, until},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

fn anchors(mesh: &Standalone) -> usize {
    std::fs::read_to_string(mesh.path("state/root.pem")).unwrap().matches("BEGIN CERTIFICATE").count()
}

/// Waits until the sidecars of both ends have other certificates than these.
async fn renewed(mesh: &Standalone, before: &BTreeSet<String>) -> BTreeSet<String> {
    let began = Instant::now();
    loop {
        let now = mesh.serials().await;
        if now.is_disjoint(before) {
            return now;
        }
        assert!(began.elapsed() < SOON, "no new certificates\n{}", mesh.told());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_certificates_of_a_few_seconds_rotate_and_no_call_is_lost() {
    let settings = Settings { certificate_lifetime: Some(8), ..Settings::default() };
    let mesh = Standalone::start(settings).await;
    let load = Load::start(&mesh);
    let mut serials = mesh.serials().await;
    for _ in 0..3 {
        serials = renewed(&mesh, &serials).await;
    }
    load.pass(200).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn workload_certificates_of_a_few_seconds_rotate_while_the_control_plane_is_killed_all_the_time_and_no_call_is_lost()
 {
    let settings = Settings { certificate_lifetime: Some(8), ..Settings::default() };
    let mut mesh = Standalone::start(settings).await;
    let load = Load::start(&mesh);
    let mut kills = 0;
    for _ in 0..3 {
        let before = mesh.serials().await;
        let began = Instant::now();
        // Killed a second after it began to serve, whatever it signs just then.
        while !mesh.serials().await.is_disjoint(&before) {
            assert!(began.elapsed() < SOON, "no new certificates\n{}", mesh.told());
            mesh.restart_control_plane().await;
            kills += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
    assert!(kills >= 6, "{kills} kills in three lives of a certificate");
    load.pass(200).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_intermediate_the_token_key_and_the_root_are_replaced_and_no_call_is_lost() {
    let mesh = Standalone::start(Settings::default()).await;
    let old_root = std::fs::read(mesh.path("state/root.pem")).unwrap();
    let load = Load::start(&mesh);
    load.pass(100).await;

    let before = mesh.serials().await;
    mesh.must(&["ca", "rotate", "--kind", "intermediate"]);
    let before = renewed(&mesh, &before).await;

    let (client, server) = (mesh.workload_api("client"), mesh.workload_api("server"));
    let key = mesh.authority("jwt-key", "active").unwrap();
    let earlier = token(&client, "an-audience").await.unwrap();
    mesh.must(&["ca", "rotate", "--kind", "jwt"]);
    assert_ne!(mesh.authority("jwt-key", "active").unwrap(), key);
    let later = token(&client, "another-audience").await.unwrap();
    assert_eq!(is_good_token(&server, "an-audience", &earlier).await, Ok(()));
    assert_eq!(is_good_token(&server, "another-audience", &later).await, Ok(()));

    let told = mesh.must(&["ca", "rotate"]);
    renewed(&mesh, &before).await;
    assert_eq!(anchors(&mesh), 1, "the old root is gone\n{told}");
    assert_ne!(std::fs::read(mesh.path("state/root.pem")).unwrap(), old_root);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}

/// Whether a step has been made, by what the control plane said before it.
fn is_done(mesh: &Standalone, kind: &str, step: &str, active: &Option<String>) -> bool {
    let kind = if kind == "jwt" { "jwt-key" } else { kind };
    match step {
        "prepare" => mesh.authority(kind, "prepared").is_some(),
        "activate" => mesh.authority(kind, "active") != *active,
        _ => mesh.authority(kind, "old").is_none(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_is_killed_during_and_after_each_step_and_no_call_is_lost() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let load = Load::start(&mesh);
    load.pass(100).await;
    let steps = [
        ("root", "prepare"),
        ("root", "activate"),
        ("jwt", "prepare"),
        ("root", "retire"),
        ("jwt", "activate"),
    ];
    let mut cut_short = 0;
    for instants in [[0, 1500], [400, 4000]] {
        for (kind, step) in steps {
            let active = mesh.authority(if kind == "jwt" { "jwt-key" } else { kind }, "active");
            // In the middle of it, some microseconds after it was asked for.
            for instant in instants {
                mesh.all_heard().await;
                if step == "retire" {
                    let old = mesh.authority("root", "old").unwrap();
                    mesh.postern(&["ca", "taint", &old]);
                    until("nobody holds a certificate below the old root", || {
                        let all = mesh.authorities();
                        all.pending.iter().all(|one| one.step != "retire" || one.lagging.is_empty())
                    })
                    .await;
                }
                let body = format!("{{\"kind\": \"{kind}\", \"step\": \"{step}\"}}");
                let asked = mesh.post("/authorities/rotate", &body);
                std::thread::sleep(Duration::from_micros(instant));
                mesh.restart_control_plane().await;
                drop(asked);
                if is_done(&mesh, kind, step, &active) {
                    break;
                }
                cut_short += 1;
            }
            if !is_done(&mesh, kind, step, &active) {
                until("the evidence is there for the step", || {
                    mesh.postern(&["ca", "rotate", "--kind", kind, "--step", step]).status.success()
                })
                .await;
            }
            // And right after it.
            mesh.restart_control_plane().await;
            assert!(is_done(&mesh, kind, step, &active), "{kind} {step} is remembered");
        }
        // The intermediate is gone with each process that had it; sidecars hold certificates below all of those.
        mesh.all_heard().await;
        let before = mesh.serials().await;
        let asked = mesh.post("/authorities/rotate", "{\"kind\": \"intermediate\"}");
        std::thread::sleep(Duration::from_micros(instants[1]));
        mesh.restart_control_plane().await;
        drop(asked);
        mesh.all_heard().await;
        mesh.must(&["ca", "rotate", "--kind", "intermediate"]);
        mesh.restart_control_plane().await;
        assert!(mesh.serials().await.is_disjoint(&before), "everybody renewed");
    }
    assert!(cut_short > 0, "no kill came in time to cut a step short");
    assert_eq!(anchors(&mesh), 1);
    mesh.all_heard().await;
    load.pass(50).await;
    load.stop().await.assert_whole(&mesh);
}

/// Posts `body` to `page` and kills the control plane some microseconds later, until what was asked for is so; and kills it once more
/// right after that. Gives how often it was not so after a kill.
async fn killed_over(
    mesh: &mut Standalone,
    page: &str,
    body: &str,
    is_done: impl Fn(&Standalone) -> bool,
) -> u32 {
    let mut cut_short = 0;
    for instant in [0, 300, 600, 1500, 4000, 10_000] {
        mesh.all_heard().await;
        let asked = mesh.post(page, body);
        std::thread::sleep(Duration::from_micros(instant));
        mesh.restart_control_plane().await;
        drop(asked);
        if is_done(mesh) {
            break;
        }
        cut_short += 1;
    }
    if !is_done(mesh) {
        mesh.all_heard().await;
        let asked = mesh.post(page, body);
        until("it is so", || is_done(mesh)).await;
        drop(asked);
    }
    mesh.restart_control_plane().await;
    assert!(is_done(mesh), "{page} {body} is remembered");
    mesh.all_heard().await;
    cut_short
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_plane_is_killed_over_a_taint_a_revocation_and_the_end_of_a_token_key_and_no_call_is_lost()
 {
    let mut mesh = Standalone::start(Settings::default()).await;
    // A token of before would be refused with its key, as it should be.
    let load = Load::start_without_tokens(&mesh);
    load.pass(100).await;
    let mut cut_short = 0;
    for _ in 0..2 {
        let old = mesh.authority("root", "active").unwrap();
        for step in ["prepare", "activate"] {
            mesh.all_heard().await;
            mesh.must(&["ca", "rotate", "--step", step]);
        }
        let found = |mesh: &Standalone, is_so: fn(&Authority) -> bool| {
            mesh.authorities().authorities.iter().any(|one| one.id == old && is_so(one))
        };
        let before = mesh.serials().await;
        let path = format!("/authorities/{old}/taint");
        cut_short += killed_over(&mut mesh, &path, "", |mesh| found(mesh, |one| one.tainted)).await;
        renewed(&mesh, &before).await;
        until("nobody holds a certificate below the old root", || {
            let all = mesh.authorities().pending;
            all.iter().all(|one| one.step != "retire" || one.lagging.is_empty())
        })
        .await;
        let path = format!("/authorities/{old}/revoke");
        cut_short += killed_over(&mut mesh, &path, "", |mesh| found(mesh, |one| one.revoked)).await;
        assert_eq!(anchors(&mesh), 1);

        for step in ["prepare", "activate"] {
            mesh.all_heard().await;
            mesh.must(&["ca", "rotate", "--kind", "jwt", "--step", step]);
        }
        // Tokens live for minutes yet.
        let retire = r#"{"kind": "jwt", "step": "retire", "force": true}"#;
        let is_gone = |mesh: &Standalone| mesh.authority("jwt-key", "old").is_none();
        assert!(!is_gone(&mesh));
        cut_short += killed_over(&mut mesh, "/authorities/rotate", retire, is_gone).await;
        // The twin: what the key in force signs is good.
        let token = token(&mesh.workload_api("client"), "an-audience").await.unwrap();
        assert_eq!(is_good_token(&mesh.workload_api("server"), "an-audience", &token).await, Ok(()));
    }
    assert!(cut_short > 0, "no kill came in time to cut a step short");
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_rotation_that_is_cut_off_at_any_instant_is_finished_by_asking_again() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let load = Load::start(&mesh);
    load.pass(100).await;
    for instant in [10, 60, 200, 500, 1100] {
        let root = mesh.authority("root", "active");
        mesh.all_heard().await;
        let mut asking = mesh.begin(&["ca", "rotate", "--timeout", "5"]);
        tokio::time::sleep(Duration::from_millis(instant)).await;
        mesh.restart_control_plane().await;
        let _ = asking.kill();
        let _ = asking.wait();
        mesh.must(&["ca", "rotate"]);
        assert_ne!(mesh.authority("root", "active"), root);
        assert_eq!(anchors(&mesh), 1, "after {instant} ms");
    }
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_waits_for_a_sidecar_that_is_away_and_names_it() {
    let mut mesh = Standalone::start(Settings::default()).await;
    let load = Load::start(&mesh);
    mesh.kill_sidecar("intruder");
    let waiting = mesh.postern(&["ca", "rotate", "--timeout", "2"]);
    let told =
        String::from_utf8_lossy(&waiting.stderr).into_owned() + &String::from_utf8_lossy(&waiting.stdout);
    assert_eq!(waiting.status.code(), Some(2), "{told}");
    assert!(told.contains("shop/intruder"), "{told}");
    assert_eq!(anchors(&mesh), 2, "the next root is published and does not sign yet");
    mesh.start_sidecar("intruder").await;
    mesh.must(&["ca", "rotate"]);
    assert_eq!(anchors(&mesh), 1);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_restarts_while_the_control_plane_is_away_or_frozen_goes_on() {
    let mut mesh = Standalone::start(Settings::default()).await;
    // What a sidecar does not know, nobody can tell it while the control plane is away.
    let load = Load::start(&mesh);
    load.pass(50).await;
    load.stop().await;
    until("where the service is has been written down", || {
        let kept = |name: &str| std::fs::read(mesh.sidecar_state(name).join("destinations.bin"));
        ["client", "intruder"].iter().all(|name| kept(name).is_ok_and(|bytes| !bytes.is_empty()))
    })
    .await;
    for away in ["killed", "frozen"] {
        match away {
            "killed" => mesh.kill_control_plane(),
            _ => mesh.freeze("control-plane"),
        }
        let serials = mesh.serials().await;
        for name in ["server", "client", "intruder"] {
            mesh.kill_sidecar(name);
            mesh.start_sidecar(name).await;
        }
        assert_eq!(mesh.serials().await, serials, "{away}");
        let load = Load::start(&mesh);
        load.pass(200).await;
        match away {
            "killed" => mesh.start_control_plane().await,
            _ => mesh.thaw("control-plane"),
        }
        mesh.all_heard().await;
        load.pass(100).await;
        load.stop().await.assert_whole(&mesh);
    }
}
