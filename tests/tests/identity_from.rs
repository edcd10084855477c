//! A sidecar that takes its identity from a Workload API instead of the control plane's authority: here that of another
//! sidecar, which to its clients is what a SPIRE agent is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_proxy::Sidecar;
use postern_tests::{
    Mesh, Request,
    mesh::{DEADLINE, within},
    scenario::payments,
    workload_api::{bootstrap, renew, settings},
};
use std::time::Duration;

async fn serial(sidecar: &Sidecar) -> Option<String> {
    let answer = Request::new(sidecar.addresses().admin.unwrap(), "localhost")
        .path("/certificates")
        .send()
        .await
        .unwrap();
    let page = answer.json();
    page["current"]["serial"].as_str().map(str::to_owned)
}

async fn until_serial(sidecar: &Sidecar, wanted: &str) {
    let follow = async {
        while serial(sidecar).await.as_deref() != Some(wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, follow).await.expect("the certificate of the source is taken over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_follows_the_workload_api_it_takes_its_identity_from_and_outlives_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut mesh = Mesh::start_with(&payments(""), settings(folder.path())).await;
    let source = folder.path().join("checkout-api.sock");
    let mut bootstrap = bootstrap("checkout-api");
    bootstrap.control_plane = mesh.control.address().into();
    bootstrap.trust_bundle_pem = mesh.control.trust_bundle_pem().into_bytes();
    bootstrap.identity_from = Some(source.clone());
    let taker = postern_proxy::start(bootstrap).await.unwrap();
    // Ready means that the control plane gave it its policy, for the identity that it took.
    within("it is ready", taker.ready()).await;
    for _ in 0..3 {
        let next = renew(mesh.workload("checkout-api")).await;
        until_serial(&taker, &next).await;
    }
    let last = serial(&taker).await;
    // What it shows is what it has, so that nothing new comes of asking, and nothing is lost.
    let asked = Request::new(taker.addresses().admin.unwrap(), "localhost")
        .method("POST")
        .path("/certificates/renew");
    let answer = asked.clone().send().await.unwrap();
    assert_eq!(answer.status, 502);
    assert!(String::from_utf8_lossy(&answer.body).contains("still gives"), "{:?}", answer.body);
    mesh.workloads.get_mut("checkout-api").unwrap().sidecar.take().unwrap().drain().await;
    assert!(!source.exists());
    let answer = asked.send().await.unwrap();
    assert_eq!(answer.status, 502);
    assert_eq!(serial(&taker).await, last);
    within("it stays ready", taker.ready()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_does_not_take_its_identity_from_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut bootstrap = bootstrap("itself");
    bootstrap.workload_api = Some(folder.path().join("own.sock"));
    bootstrap.identity_from.clone_from(&bootstrap.workload_api);
    let refused = postern_proxy::start(bootstrap).await.err().unwrap().to_string();
    assert!(refused.contains("own socket"), "{refused}");
}
