//! A sidecar whose identity comes from a SPIRE agent, in a mesh of sidecars whose identity comes from our control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::{Interception, Sidecar};
use postern_tests::{
    Mesh, Request,
    mesh::{DEADLINE, Settings, within},
    scenario::{mode, payments, policy},
    spire::Spire,
    workload_api::bootstrap,
};
use std::{net::SocketAddr, time::Duration};

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
/// The shortest life of a certificate: SPIRE renews at half of it.
const SECONDS: u32 = 12;

async fn serial(sidecar: &Sidecar) -> String {
    let page = Request::new(sidecar.addresses().admin.unwrap(), "localhost").path("/certificates");
    page.send().await.unwrap().json()["current"]["serial"].as_str().unwrap_or_default().to_owned()
}

async fn call(through: SocketAddr, path: &str) -> u16 {
    Request::new(through, "payments-api.payments.svc.cluster.local").path(path).send().await.unwrap().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_from_spire_calls_and_is_decided_about_and_follows_rotations() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let rule = format!(
        "action: ALLOW, rules: [{{from: [{{source: {{principals: [{}]}}}}], to: [{{operation: {{paths: [/ok]}}}}]}}]",
        CHECKOUT.trim_start_matches("spiffe://")
    );
    let yaml = payments(&format!("{}{}", mode("payments", "STRICT"), policy("checkout", &rule)));
    let settings = Settings { state: Some(state.clone()), ..Settings::default() };
    let mut mesh = Mesh::start_with(&yaml, settings).await;
    // In its place comes one that has no token of ours.
    let own = mesh.workloads.get_mut("checkout-api").unwrap().sidecar.take().unwrap();
    own.drain().await;
    let at = folder.path().to_owned();
    let started =
        tokio::task::spawn_blocking(move || Spire::start(&at, &state, CHECKOUT, SECONDS)).await.unwrap();
    let Some(mut spire) = started else { return };

    let mut bootstrap = bootstrap("checkout-api");
    bootstrap.control_plane = mesh.control.address().into();
    bootstrap.trust_bundle_pem = mesh.control.trust_bundle_pem().into_bytes();
    bootstrap.identity_from = Some(spire.socket());
    let service = SocketAddr::from(([10, 96, 0, 1], 80));
    bootstrap.interception =
        Interception::Explicit { inbound: vec![], outbound: vec![("127.0.0.1:0".parse().unwrap(), service)] };
    let sidecar = postern_proxy::start(bootstrap).await.unwrap();
    within("it is ready", sidecar.ready()).await;
    let through = sidecar.addresses().outbound[0];

    assert_eq!(call(through, "/ok").await, 200);
    let seen = mesh.workload("payments-api").app.received();
    let told = seen.last().unwrap().headers["x-forwarded-client-cert"].to_str().unwrap().to_owned();
    assert!(told.contains(CHECKOUT), "{told}");
    assert_eq!(call(through, "/other").await, 403);
    assert_eq!(
        mesh.workload("payments-api").app.received().len(),
        seen.len(),
        "the refused call reached the app"
    );

    let (mut last, mut rotations) = (serial(&sidecar).await, 0);
    let follow = async {
        while rotations < 3 {
            let now = serial(&sidecar).await;
            if now != last {
                (last, rotations) = (now, rotations + 1);
                assert_eq!(call(through, "/ok").await, 200, "after rotation {rotations}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(90), follow).await.expect("three rotations");

    // The agent goes: what is in force stays until it ends, and then nothing passes.
    tokio::task::spawn_blocking(move || {
        spire.kill_agent();
        spire
    })
    .await
    .unwrap();
    assert_eq!(call(through, "/ok").await, 200);
    let ended = async {
        while call(through, "/ok").await == 200 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE + Duration::from_secs(2 * u64::from(SECONDS)), ended)
        .await
        .expect("it ends");
}
