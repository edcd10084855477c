//! A workload of a federated trust domain at the sidecar of ours: its own bundle, its own principals, and nobody else's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_control_plane::{
    ControlPlane, Options,
    federation::{Settings as Federation, Source},
};
use postern_tests::{
    Mesh,
    certificates::{Leaf, Pair, Signer},
    mesh::{DEADLINE, Settings, within},
    scenario::{mode, payments, policy},
};
use std::{path::Path, time::Duration};
use tokio::process::Command;

const CHECKOUT: &str = "spiffe://other.example/ns/checkout/sa/checkout-api";

async fn other(state: &Path) -> ControlPlane {
    let any = "127.0.0.1:0".parse().unwrap();
    postern_control_plane::start(Options {
        listen: any,
        state: Some(state.to_owned()),
        trust_domain: "other.example".into(),
        certificate_lifetime: Duration::from_secs(600),
        unix_socket: None,
        kubernetes: None,
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
        federation: Federation { listen: Some(any), ..Federation::default() },
    })
    .await
    .unwrap()
}

fn federated(other: &ControlPlane) -> String {
    let pem: String = other.trust_bundle_pem().lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "---\napiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: other}}\n\
         spec:\n  trustDomain: other.example\n  bundleEndpointURL: https://{}/bundle\n  bundleEndpointProfile:\n    \
         type: https_spiffe\n    endpointSPIFFEID: spiffe://other.example/ns/postern-system/sa/control-plane\n  \
         trustDomainBundle: |\n{pem}",
        other.bundle_endpoint().unwrap()
    )
}

/// The status of a call with this certificate, or `None` when the handshake fails.
async fn call(mesh: &Mesh, pair: &Pair) -> Option<u16> {
    let to = mesh.workload("payments-api").inbound(8080);
    let mut command = Command::new("curl");
    command.args(["--silent", "--insecure", "--max-time", "5", "--noproxy", "*", "--output", "/dev/null"]);
    command
        .args(["--write-out", "%{http_code}", "--cert"])
        .arg(&pair.certificate)
        .arg("--key")
        .arg(&pair.key);
    let output = command.arg(format!("https://{to}/v1/charges")).output().await.unwrap();
    let status: u16 = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    (status > 0).then_some(status)
}

async fn becomes(mesh: &Mesh, pair: &Pair, wanted: Option<u16>) {
    within(&format!("{} gets {wanted:?}", pair.certificate.display()), async {
        while call(mesh, pair).await != wanted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_principal_of_a_federated_domain_is_let_in_under_its_own_bundle_until_the_federation_ends() {
    if Command::new("curl").arg("--version").output().await.is_err() {
        eprintln!("SKIPPED: curl is missing on this machine (make setup)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (our_state, other_state) = (folder.path().join("ours"), folder.path().join("other"));
    let other = other(&other_state).await;
    let rules = "action: ALLOW, rules: [{from: [{source: {principals: [other.example/ns/checkout/sa/checkout-api]}}]}]";
    let policies = mode("payments", "STRICT") + &policy("callers", rules);
    let settings = Settings { state: Some(our_state.clone()), ..Settings::default() };
    let mut mesh = Mesh::start_with(&payments(&(policies.clone() + &federated(&other))), settings).await;

    let theirs = Signer::of_mesh(&other_state, folder.path());
    let ours = Signer::of_mesh(&our_state, folder.path());
    let pair = |signer: &Signer, name: &str, id: &str| signer.sign(name, &Leaf::good(id));
    let good = pair(&theirs, "good", CHECKOUT);
    becomes(&mesh, &good, Some(200)).await;
    let forwarded = mesh.app("payments-api").last().header("x-forwarded-client-cert").join(",");
    assert!(forwarded.contains(&format!("URI={CHECKOUT}")), "{forwarded}");

    let reports = pair(&theirs, "reports", "spiffe://other.example/ns/checkout/sa/reports");
    assert_eq!(call(&mesh, &reports).await, Some(403), "another account of the same domain");
    let namesake = CHECKOUT.replace("other.example", "cluster.local");
    assert_eq!(
        call(&mesh, &pair(&ours, "namesake", &namesake)).await,
        Some(403),
        "its namesake of our domain"
    );
    // Neither authority vouches for the other's names, though both are trusted for their own.
    assert_eq!(call(&mesh, &pair(&ours, "ours-for-theirs", CHECKOUT)).await, None);
    assert_eq!(call(&mesh, &pair(&theirs, "theirs-for-ours", &namesake)).await, None);
    let third = pair(&theirs, "third", "spiffe://third.example/ns/checkout/sa/checkout-api");
    assert_eq!(call(&mesh, &third).await, None);
    assert_eq!(
        mesh.app("payments-api").received().len(),
        1,
        "the app saw the one that is allowed and nobody else"
    );

    let fetched = async {
        while mesh.control.federation()[0].source != Some(Source::Fetched) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, fetched)
        .await
        .expect("the bundle is fetched from the other control plane");
    assert_eq!(call(&mesh, &good).await, Some(200), "under the fetched bundle, too");

    mesh.apply(&payments(&policies)).await;
    becomes(&mesh, &good, None).await;
    mesh.apply(&payments(&(policies + &federated(&other)))).await;
    becomes(&mesh, &good, Some(200)).await;
}
