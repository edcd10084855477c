//! `postern bug-report`: it lists first, asks, overwrites nothing, and holds no secret, wherever one was planted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use postern_tests::{
    Mesh,
    mesh::{Settings, within},
    scenario::{payments, policy},
    standalone::program,
};
use serde_json::Value;
use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

const JWT: &str =
    "eyJhbGciOiJFUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbi0xMjM0";

async fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(program());
    command.arg("bug-report").args(arguments).arg("--socket").arg(folder.join("control.sock"));
    command.current_dir(folder).stdin(Stdio::null()).kill_on_drop(true);
    within("the command ends", command.output()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_planted_anywhere_is_in_the_archive_and_what_helps_is() {
    let rules = policy(
        "callers",
        "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}], \
         when: [{key: 'request.headers[x-tenant]', values: [planted-header-value]}]}]",
    );
    let settings = Settings { report_interval: Duration::from_millis(50), ..Settings::default() };
    let mesh = Mesh::start_with(&payments(&rules), settings).await;
    let folder = tempfile::tempdir().unwrap();
    mesh.control.open_admin_socket(folder.path().join("control.sock")).unwrap();
    let join_token = mesh.control.join_token("checkout", "reports", "reports");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (pem, der) = (key.serialize_pem(), STANDARD.encode(key.serialize_der()));

    let call = mesh.request("reports", "payments-api").path("/v1/charges?card=planted-query");
    let answer = call.header("authorization", &format!("Bearer {JWT}")).send().await.unwrap();
    assert_eq!(answer.status, 403);
    fs::create_dir(folder.path().join("logs")).unwrap();
    let log = format!(
        "a useful line\n{{\"path\":\"/a?b=planted-query\",\"http.request.header.x-tenant\":\"planted-header-value\"}}\n\
         Authorization: Bearer {JWT}\nused {join_token} and {JWT}\n{pem}{der}\npassword: planted-password\n"
    );
    fs::write(folder.path().join("logs/web-0.proxy.log"), log).unwrap();
    fs::write(folder.path().join("logs/web-0.app.log"), "planted-app-line\n").unwrap();
    let documents = folder.path().join("documents");
    fs::create_dir(&documents).unwrap();
    let secret = format!("---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s}}\ndata: {{key: {der}}}\n");
    let pod = format!(
        "---\n# {join_token}\napiVersion: v1\nkind: Pod\nmetadata: {{name: useful, annotations: {{x/last: {join_token}}}}}\n\
         spec: {{containers: [{{name: a, command: [run, planted-password], env: [{{name: K, value: planted-env}}]}}], note: \"{der}\"}}\n"
    );
    fs::write(documents.join("all.yaml"), rules + &pod + &secret).unwrap();

    // The report of the denial is on its way to the control plane.
    let arguments = ["--documents", "documents", "--file", "report.tar.gz", "--yes", "-o", "json"];
    let (mut text, path) = (String::new(), folder.path().join("report.tar.gz"));
    for _ in 0..100 {
        let _ = fs::remove_file(&path);
        let output = run(folder.path(), &arguments).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let contents: Value = serde_json::from_slice(&output.stdout).unwrap();
        let names: Vec<&str> =
            contents["files"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
        for name in [
            "status.json",
            "denials.json",
            "policies.json",
            "policies-wanted.json",
            "machine.txt",
            "documents/all.yaml",
        ] {
            assert!(names.contains(&name), "{name}: {names:?}");
        }
        assert!(contents["left_out"].to_string().contains("a Secret of"), "{contents:#}");
        text.clear();
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(fs::File::open(&path).unwrap()).read_to_end(&mut bytes).unwrap();
        text.push_str(&String::from_utf8_lossy(&bytes));
        if text.contains("/v1/charges") {
            break;
        }
    }
    for useful in
        ["/v1/charges", "a useful line", "payments/callers", "useful", "x-tenant", "sa/reports", "postern_"]
    {
        assert!(text.contains(useful), "{useful} is missing");
    }
    let key_lines = pem.lines().filter(|line| !line.starts_with('-'));
    let pieces =
        [join_token.as_str(), join_token.trim_start_matches("pjt1."), &der, "c2lnbmF0dXJl", "eyJzdWIi"];
    let planted = [
        "planted-query",
        "planted-header-value",
        "planted-password",
        "planted-env",
        "planted-app-line",
        "PRIVATE KEY",
    ];
    for secret in pieces.into_iter().chain(key_lines).chain(planted) {
        assert!(!text.contains(secret), "{secret} is in the archive");
    }
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let listed = std::process::Command::new("tar").arg("-tzf").arg(&path).output().unwrap();
    let names = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.status.success() && names.starts_with("contents.json\n"), "{names}");
    assert!(names.contains("logs/web-0.proxy.log") && !names.contains("app.log"), "{names}");

    // One that is there is not overwritten.
    let before = fs::read(&path).unwrap();
    let output = run(folder.path(), &arguments).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("never overwritten"));
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_yes_it_only_lists_and_without_a_mesh_it_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["--file", "report.tar.gz"]).await;
    let (told, hint) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(2), "{hint}");
    assert!(told.contains("machine.txt") && told.contains("left out: status.json"), "{told}");
    assert!(hint.contains("--yes"), "{hint}");
    assert!(!folder.path().join("report.tar.gz").exists());
}
