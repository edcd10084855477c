//! C22 of the table of faults (reference: reliability 4.2): an app closes connections in the very moment of their use, while 100,000
//! GETs are made. It takes all of the machine for a minute, so it is a program of its own, and no test runs beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    calls::{Calls, Client, LANES, Lane},
    faulty::Fault,
    ground::Ground,
};
use std::time::Duration;
use tokio::task::JoinSet;

const GETS: u64 = 100_000;
/// So many ask at the same time, each on one connection to its sidecar: one for each call would take all ports.
const CLIENTS: u64 = 20;
/// After every so many calls a client pauses, and some connections to the app are not used meanwhile. What meets their end is sent again,
/// and of all requests a fifth may be: more at a time is a storm, which is refused.
const BETWEEN_PAUSES: u64 = 10;
/// After so long without a call the app closes a connection.
const IDLE: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_that_closes_what_is_idle_in_the_moment_of_its_use_loses_no_get() {
    let Some(ground) = Ground::start(1, "").await else { return };
    let app = &ground.apps[0];
    app.set(Fault::CloseWhenIdle(IDLE));
    let lanes: Vec<_> = LANES.into_iter().filter(|lane| *lane != Lane::Bytes).collect();
    let calls = Calls::with(&ground.places, &lanes);
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = Client::new(&ground.places.client, ground.places.service);
        clients.spawn(async move {
            for turn in 0..GETS / CLIENTS {
                let end = client.ask("GET", "/ok", &format!("race-{number}-{turn}")).await;
                assert_eq!(end.map(|(status, _)| status), Ok(200), "{number} {turn}");
                if turn % BETWEEN_PAUSES == 0 {
                    // Around the moment at which the app closes, before it and after.
                    let beside = Duration::from_millis((turn / BETWEEN_PAUSES + number) % 10);
                    tokio::time::sleep(IDLE - Duration::from_millis(5) + beside).await;
                }
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client.expect("no GET is lost");
    }
    calls.pass(1).await;
    let report = calls.stop().await;
    report.assert_safe(&ground.seen());
    let gets = app.ids().iter().filter(|id| id.starts_with("race-")).count() as u64;
    assert!(gets >= GETS, "all have come: {gets}");
    assert!(app.connections() as u64 > GETS / 50, "connections were closed: {}", app.connections());
    // What met that moment and may not be sent again, since nobody knows whether it was processed, is refused.
    let lost = report.lost();
    assert!(!lost.is_empty(), "some calls met that moment");
    for call in lost {
        assert!(call.lane.method() == Some("POST") && call.is_refused("upstream-reset"), "{call:?}");
    }
}
