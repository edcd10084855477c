//! The control plane's part: policy that changes under traffic, policy that is refused, certificates that renew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, Request,
    mesh::{Settings, within},
    scenario::{mode, payments, policy},
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_policy_takes_effect_within_a_second_both_ways() {
    let mut mesh = Mesh::start(&payments(&mode("payments", "STRICT"))).await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 200);
    let began = std::time::Instant::now();
    mesh.apply(&payments(&(mode("payments", "STRICT") + &policy("none", "action: ALLOW")))).await;
    mesh.call_until("checkout-api", "payments-api", "GET", "/", 403).await;
    mesh.apply(&payments(&mode("payments", "STRICT"))).await;
    mesh.call_until("checkout-api", "payments-api", "GET", "/", 200).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_cannot_be_enforced_is_refused_and_the_last_good_one_stays() {
    let mesh = Mesh::start(&payments(&policy("none", "action: ALLOW"))).await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 403);
    // Documents with an error are not applied by anyone; a sidecar is the second line of defence.
    let file = postern_config::documents::SourceFile {
        name: "bad.yaml".into(),
        text: postern_tests::ports::substitute(&payments(&policy("all", "action: ALLOW, rules: [{}]"))),
    };
    let (mut documents, _) = postern_config::documents::read(&[file]);
    for policy in &mut documents.authorization_policies {
        policy.value.rules[0].when.push(postern_config::documents::authorization_policy::Condition {
            key: "no.such.key".into(),
            values: vec!["x".into()],
            not_values: vec![],
        });
    }
    mesh.apply_read(documents);
    within("the sidecar has refused", async {
        loop {
            let refused =
                mesh.control.status().into_iter().find(|s| s.instance == "payments-api" && s.nacks > 0);
            if let Some(status) = refused {
                assert!(status.last_nacks[0].reason.contains("no.such.key"), "{status:?}");
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "GET", "/").await.unwrap().status, 403);
    assert_eq!(mesh.app("payments-api").connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_policy_everything_is_refused() {
    let settings = Settings { without_policy: true, ..Settings::default() };
    let mesh = Mesh::start_with(&payments(""), settings).await;
    for (name, address) in [
        ("inbound", mesh.workload("payments-api").inbound(8080)),
        ("outbound", mesh.entry("checkout-api", "payments-api").0),
    ] {
        let answer = Request::new(address, "payments-api").send().await;
        assert!(answer.as_ref().map_or(true, |a| a.status == 503), "{name}: {answer:?}");
    }
    assert_eq!(mesh.app("payments-api").connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_renew_under_load_without_a_failed_request() {
    let lifetime = Duration::from_secs(4);
    let settings = Settings { certificate_lifetime: lifetime, ..Settings::default() };
    let mesh = Mesh::start_with(&payments(&mode("payments", "STRICT")), settings).await;
    let serial = async |name: &str| {
        let admin: SocketAddr = mesh.workload(name).admin();
        let page = Request::new(admin, admin.to_string()).path("/certificates").send().await.unwrap();
        assert_eq!(page.status, 200, "{page:?}");
        page.body
    };
    let before = (serial("checkout-api").await, serial("payments-api").await);
    let (done, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (request, done, calls) =
                (mesh.request("checkout-api", "payments-api").path("/load"), done.clone(), calls.clone());
            tokio::spawn(async move {
                while !done.load(Ordering::Relaxed) {
                    let answer = request.clone().send().await.expect("no connection may break");
                    assert_eq!(answer.status, 200);
                    calls.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
        })
        .collect();
    within("both certificates were renewed", async {
        loop {
            let now = (serial("checkout-api").await, serial("payments-api").await);
            if now.0 != before.0 && now.1 != before.1 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // And some more with the new ones.
    let renewed_at = calls.load(Ordering::Relaxed);
    within("calls go on", async {
        while calls.load(Ordering::Relaxed) < renewed_at + 50 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("zero failures");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_goes_on_without_the_control_plane() {
    let mesh = Mesh::start(&payments(
        &(mode("payments", "STRICT")
            + &policy("posts", "action: ALLOW, rules: [{to: [{operation: {methods: [POST]}}]}]")),
    ))
    .await;
    assert_eq!(mesh.call("checkout-api", "payments-api", "POST", "/").await.unwrap().status, 200);
    let Mesh { control, workloads, .. } = mesh;
    control.shutdown().await;
    let caller = &workloads["checkout-api"];
    let entry = caller.outbound[&("payments-api.payments.svc.cluster.local".to_owned(), 80)];
    for (method, status) in [("POST", 200), ("GET", 403)] {
        let answer = Request::new(entry, "payments-api.payments").method(method).send().await.unwrap();
        assert_eq!(answer.status, status, "{method}");
    }
}
