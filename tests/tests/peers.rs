//! Real clients, not our own: `curl` and `openssl s_client` in front of a sidecar, with good certificates and bad ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh,
    certificates::{Leaf, Pair, Signer, self_signed},
    mesh::Settings,
    scenario::{mode, payments, policy},
};
use std::net::SocketAddr;
use tokio::process::Command;

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";

struct Stage {
    mesh: Mesh,
    folder: tempfile::TempDir,
    state: std::path::PathBuf,
}

async fn stage() -> Stage {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("authority");
    let rules = "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
    let yaml = payments(&(mode("payments", "STRICT") + &policy("callers", rules)));
    let mesh = Mesh::start_with(&yaml, Settings { state: Some(state.clone()), ..Settings::default() }).await;
    Stage { mesh, folder, state }
}

/// Whether the program is here; says so when it is not, since the test then shows nothing.
async fn is_here(program: &str) -> bool {
    let found =
        Command::new(program).arg(if program == "curl" { "--version" } else { "version" }).output().await;
    if found.is_err() {
        eprintln!("SKIPPED: {program} is missing on this machine (make setup)");
    }
    found.is_ok()
}

/// (exit code, status, body)
async fn curl(to: SocketAddr, pair: Option<&Pair>, more: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("curl");
    command.args([
        "--silent",
        "--insecure",
        "--max-time",
        "5",
        "--noproxy",
        "*",
        "--write-out",
        "\n%{http_code}",
    ]);
    if let Some(pair) = pair {
        command.arg("--cert").arg(&pair.certificate).arg("--key").arg(&pair.key);
    }
    let output = command.args(more).arg(format!("https://{to}/v1/charges")).output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or(("", ""));
    (output.status.code().unwrap_or(-1), status.into(), body.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_with_a_good_certificate_is_let_in_over_both_versions_of_http() {
    if !is_here("curl").await {
        return;
    }
    let stage = stage().await;
    let good = Signer::of_mesh(&stage.state, stage.folder.path()).sign("good", &Leaf::good(CHECKOUT));
    let to = stage.mesh.workload("payments-api").inbound(8080);
    for (n, version) in ["--http1.1", "--http2"].iter().enumerate() {
        let (code, status, body) = curl(to, Some(&good), &[version, "--data", "amount=1"]).await;
        assert_eq!((code, status.as_str(), body.as_str()), (0, "200", "amount=1"), "{version}");
        assert_eq!(stage.mesh.app("payments-api").received().len(), n + 1);
    }
    let forwarded = stage.mesh.app("payments-api").last().header("x-forwarded-client-cert").join(",");
    assert!(forwarded.contains(&format!("URI={CHECKOUT}")), "{forwarded}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_with_another_identity_is_answered_and_refused() {
    if !is_here("curl").await {
        return;
    }
    let stage = stage().await;
    let reports = Leaf::good("spiffe://cluster.local/ns/checkout/sa/reports");
    let reports = Signer::of_mesh(&stage.state, stage.folder.path()).sign("reports", &reports);
    let (code, status, body) =
        curl(stage.mesh.workload("payments-api").inbound(8080), Some(&reports), &[]).await;
    assert_eq!((code, status.as_str()), (0, "403"));
    assert!(body.contains("RBAC: access denied"), "{body}");
    assert_eq!(stage.mesh.app("payments-api").connections(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_breaks_any_rule_ends_the_handshake() {
    if !is_here("curl").await {
        return;
    }
    let stage = stage().await;
    let folder = stage.folder.path();
    let ours = Signer::of_mesh(&stage.state, folder);
    let stranger = Signer::stranger("cluster.local", folder);
    let cases: Vec<(&str, Option<Pair>)> = vec![
        ("no certificate", None),
        (
            "wrong trust domain",
            Some(ours.sign("domain", &Leaf::good("spiffe://evil.example/ns/checkout/sa/checkout-api"))),
        ),
        ("expired", Some(ours.sign("expired", &Leaf::good(CHECKOUT).expired()))),
        ("not yet valid", Some(ours.sign("early", &Leaf::good(CHECKOUT).not_yet_valid()))),
        ("self-signed", Some(self_signed(folder, "selfsigned", &Leaf::good(CHECKOUT)))),
        ("signed by a stranger with the right name", Some(stranger.sign("stranger", &Leaf::good(CHECKOUT)))),
        (
            "two identities",
            Some(ours.sign(
                "two",
                &Leaf {
                    uris: vec![CHECKOUT.into(), "spiffe://cluster.local/ns/a/sa/b".into()],
                    ..Leaf::good(CHECKOUT)
                },
            )),
        ),
        ("no identity", Some(ours.sign("none", &Leaf { uris: vec![], ..Leaf::good(CHECKOUT) }))),
        ("an identity without a path", Some(ours.sign("root", &Leaf::good("spiffe://cluster.local")))),
        (
            "not a SPIFFE URI",
            Some(ours.sign("https", &Leaf::good("https://cluster.local/ns/checkout/sa/checkout-api"))),
        ),
        ("an authority, not a leaf", Some(ours.sign("ca", &Leaf { is_ca: true, ..Leaf::good(CHECKOUT) }))),
    ];
    let to = stage.mesh.workload("payments-api").inbound(8080);
    for (what, pair) in &cases {
        for version in ["--http1.1", "--http2"] {
            let (code, status, body) = curl(to, pair.as_ref(), &[version]).await;
            assert_ne!(code, 0, "{what} {version}: {status} {body}");
            assert_eq!(stage.mesh.app("payments-api").connections(), 0, "{what} {version}");
        }
    }
    // The twin: all the same, with nothing wrong.
    let good = ours.sign("good", &Leaf::good(CHECKOUT));
    assert_eq!(curl(to, Some(&good), &[]).await.1, "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_sees_tls_1_3_only_and_a_chain_that_its_own_verifier_accepts() {
    if !is_here("openssl").await {
        return;
    }
    let stage = stage().await;
    let good = Signer::of_mesh(&stage.state, stage.folder.path()).sign("good", &Leaf::good(CHECKOUT));
    let to = stage.mesh.workload("payments-api").inbound(8080).to_string();
    let root = stage.state.join("root.pem");
    let s_client = async |more: &[&str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-connect", &to, "-verify_return_error", "-CAfile"]).arg(&root);
        command.arg("-cert").arg(&good.certificate).arg("-key").arg(&good.key).args(more);
        let output = command.stdin(std::process::Stdio::null()).output().await.unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let seen = s_client(&["-tls1_3", "-alpn", "h2,http/1.1"]).await;
    assert!(seen.contains("TLSv1.3") && seen.contains("Verify return code: 0 (ok)"), "{seen}");
    assert!(seen.contains("ALPN protocol: h2"), "{seen}");
    let seen = s_client(&["-tls1_2"]).await;
    assert!(seen.contains("alert protocol version"), "TLS 1.2 must be refused: {seen}");
    // A session is written to the file as soon as a ticket comes. None does, so that there is nothing to resume with.
    let session = stage.folder.path().join("session");
    let seen = s_client(&["-tls1_3", "-sess_out", session.to_str().unwrap(), "-groups", "X25519"]).await;
    assert!(
        seen.contains("Verify return code: 0 (ok)") && seen.contains("Server Temp Key: X25519"),
        "{seen}"
    );
    assert!(!seen.contains("New Session Ticket arrived") && !session.exists(), "{seen}");
    assert!(!seen.contains("Early data was accepted"), "{seen}");
    // What Istio's sidecars offer, and nothing at all, must both get through.
    for alpn in [&["-alpn", "istio-http/1.1,istio"][..], &[]] {
        let seen = s_client(alpn).await;
        assert!(seen.contains("Verify return code: 0 (ok)"), "{alpn:?}: {seen}");
    }
}
