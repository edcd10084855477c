//! Clocks that jump, each process by itself (libfaketime): by minutes nothing is lost; beyond the life of every certificate calls
//! are refused, and they pass again within seconds after the clock is right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Request,
    load::Load,
    standalone::{Settings, Standalone, faketime, until},
    up::skipped,
    visitor::Visitor,
};
use std::{
    fs,
    time::{Duration, Instant},
};

/// From a clock that is right again to calls that pass.
const PROMISED: Duration = Duration::from_secs(6);

async fn mesh() -> Option<Standalone> {
    if faketime().is_none() {
        skipped("libfaketime is not installed (make setup)");
        return None;
    }
    Some(Standalone::start(Settings { clocks: true, ..Settings::default() }).await)
}

/// How many renewals of the sidecar of a pod had this result.
async fn renewals(mesh: &Standalone, name: &str, result: &str) -> f64 {
    mesh.metric(name, &format!("postern_certificate_renewals_total{{result=\"{result}\"}}")).await
}

/// Asks the sidecar of a pod for a new certificate; what it answered.
async fn renew(mesh: &Standalone, name: &str) -> (u16, String) {
    let request = Request::new(mesh.admin(name), "localhost").method("POST").path("/certificates/renew");
    let answer = request.send().await.unwrap();
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_jump_by_minutes_and_no_call_is_lost() {
    let Some(mesh) = mesh().await else { return };
    let load = Load::start_without_tokens(&mesh);
    // Certificates begin five minutes in the past, and live an hour.
    for (who, offset) in [
        ("client", "-4m"),
        ("client", "+20m"),
        ("server", "-4m"),
        ("server", "+20m"),
        ("control-plane", "+4m"),
        ("control-plane", "-4m"),
    ] {
        for offset in [offset, "+0"] {
            mesh.set_clock(who, offset);
            load.pass(60).await;
            for name in ["client", "server"] {
                let (status, told) = renew(&mesh, name).await;
                assert_eq!(status, 200, "{who} {offset}: {told}\n{}", mesh.told());
            }
            load.pass(60).await;
        }
    }
    load.stop().await.assert_whole(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_clock_leaves_the_life_of_every_certificate_refuses_until_it_comes_back() {
    let Some(mesh) = mesh().await else { return };
    let load = Load::start_without_tokens(&mesh);
    for name in ["server", "client"] {
        mesh.set_clock(name, "+2d");
        let lost = load.so_far().1;
        until("calls are refused while certificates look dead", || load.so_far().1 > lost + 10).await;
        until("it says that it is not ready", || !mesh.is_ready(name)).await;
        mesh.set_clock(name, "+0");
        recovered(&mesh, &load, name).await;
    }
    load.stop().await.assert_no_breach(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_whose_clock_is_before_every_certificate_accepts_nobody_until_it_comes_back() {
    let Some(mesh) = mesh().await else { return };
    let visitor = Visitor::with_the_certificate_of_the_client(&mesh);
    assert_eq!(visitor.call(mesh.inbound("server")).await, Ok(200));
    let load = Load::start_without_tokens(&mesh);
    mesh.set_clock("server", "-2d");
    assert!(visitor.call(mesh.inbound("server")).await.is_err());
    until("it says that it is not ready", || !mesh.is_ready("server")).await;
    // Whoever reads the line sees which clock is wrong: ours was right when the last certificate came.
    until("the log says how the clocks stood", || {
        let log = fs::read_to_string(mesh.path("server.log")).unwrap_or_default();
        let tells = |line: &str| {
            line.contains("is not yet valid: now ") && line.contains("; the authority's clock is ")
        };
        log.lines().any(tells)
    })
    .await;
    mesh.set_clock("server", "+0");
    recovered(&mesh, &load, "server").await;
    assert_eq!(visitor.call(mesh.inbound("server")).await, Ok(200));
    load.stop().await.assert_no_breach(&mesh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_measured_at_each_certificate_and_warned_of_from_five_seconds_on() {
    let Some(mesh) = mesh().await else { return };
    let warnings = || mesh.said("client").matches("our clock and the authority's differ").count();
    for (who, offset, skew, is_warned) in [
        ("control-plane", "+2", 2.0, false),
        ("control-plane", "+60", 60.0, true),
        ("control-plane", "-60", -60.0, true),
        ("client", "+60", -60.0, true),
        ("client", "+0", 0.0, false),
    ] {
        mesh.set_clock(who, offset);
        let before = warnings();
        let (status, told) = renew(&mesh, "client").await;
        assert_eq!(status, 200, "{who} {offset}: {told}");
        let measured = mesh.metric("client", "postern_clock_skew_seconds").await;
        assert!((measured - skew).abs() < 2.0, "{who} {offset}: {measured}");
        assert_eq!(warnings() > before, is_warned, "{who} {offset}: {}", mesh.told());
        mesh.set_clock(who, "+0");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_nearly_over_makes_not_ready_and_neither_dead_nor_refused() {
    let Some(mesh) = mesh().await else { return };
    let load = Load::start_without_tokens(&mesh);
    // Whatever the authority issues now has four minutes left by this clock, of sixty.
    mesh.set_clock("client", "+56m");
    until("it says that it is not ready", || !mesh.is_ready("client")).await;
    assert!(mesh.is_live("client") && mesh.is_ready("server"));
    load.pass(60).await;
    assert!(!mesh.is_ready("client") && mesh.is_live("client"));
    mesh.set_clock("client", "+0");
    mesh.ready("client").await;
    load.pass(60).await;
    load.stop().await.assert_whole(&mesh);
}

/// The clock of `name` has just been set right.
async fn recovered(mesh: &Standalone, load: &Load, name: &str) {
    let back = Instant::now();
    loop {
        let (calls, lost) = load.so_far();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (later, still_lost) = load.so_far();
        if later > calls + 20 && still_lost == lost {
            break;
        }
        assert!(back.elapsed() < PROMISED, "{name}: {:?}\n{}", back.elapsed(), mesh.told());
    }
    mesh.ready(name).await;
    let (status, told) = renew(mesh, name).await;
    assert_eq!(status, 200, "{told}\n{}", mesh.told());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_whose_clock_jumps_by_days_costs_no_call_and_signs_again_when_it_is_back() {
    let Some(mesh) = mesh().await else { return };
    let load = Load::start_without_tokens(&mesh);
    for offset in ["+2d", "-2d", "+50m"] {
        mesh.set_clock("control-plane", offset);
        load.pass(400).await;
        for name in ["client", "server"] {
            let failures = renewals(&mesh, name, "failure").await;
            let (status, _) = renew(&mesh, name).await;
            assert_ne!(status, 200, "what it issues now is not valid by anybody else's clock");
            assert!(renewals(&mesh, name, "failure").await > failures, "{name}: the failure is counted");
        }
        mesh.set_clock("control-plane", "+0");
        let back = Instant::now();
        for name in ["client", "server"] {
            let successes = renewals(&mesh, name, "success").await;
            loop {
                let (status, told) = renew(&mesh, name).await;
                if status == 200 {
                    break;
                }
                assert!(back.elapsed() < PROMISED, "{offset}: {told}\n{}", mesh.told());
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert!(renewals(&mesh, name, "success").await > successes, "{name}: so is the success");
        }
    }
    mesh.all_heard().await;
    mesh.must(&["ca", "rotate"]);
    load.pass(100).await;
    load.stop().await.assert_whole(&mesh);
}
