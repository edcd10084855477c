//! h2spec, the conformance test of HTTP/2 (RFC 7540, RFC 7541), against the inbound listener of a sidecar in PERMISSIVE mode, and
//! against the outbound one of its caller. Who wants it builds it by `make h2spec`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    Mesh, foreign,
    scenario::{mode, payments},
};
use std::{net::SocketAddr, path::Path, process::Command};

/// How many cases h2spec 2.2.1 has (S-H2-01).
const CASES: usize = 145;
/// The cases that fail, each with the reason why that is what we want: section and title.
const KNOWN: &[(&str, &str)] = &[
    // What does not begin as HTTP/2 is read as HTTP/1.1, answered with 400 and closed; h2spec wants it closed without a word.
    ("http2/3.5", "Sends invalid connection preface"),
];

/// Section and title of each case, and whether it failed, out of a JUnit report.
fn cases(report: &str) -> Vec<(String, String, bool)> {
    let attribute = |case: &str, name: &str| {
        let (_, rest) = case.split_once(&format!("{name}=\"")).unwrap();
        rest.split_once('"').unwrap().0.to_owned()
    };
    let all = report.split("<testcase ").skip(1);
    all.map(|case| {
        let case = case.split("</testcase>").next().unwrap();
        // One that could not be tried shows nothing.
        let failed = ["<failure", "<error", "<skipped"].iter().any(|sign| case.contains(sign));
        (attribute(case, "package"), attribute(case, "classname"), failed)
    })
    .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_listeners_pass_h2spec_but_for_what_is_named_here() {
    let Some(program) =
        foreign::by_script("h2spec.sh", "POSTERN_H2SPEC_REQUIRED", "HTTP/2 was not tried by h2spec")
    else {
        return;
    };
    // An app that answers with a body, which some cases need.
    let yaml = payments(&mode("payments", "PERMISSIVE")).replace(
        "{name: http, containerPort: 8080}, {name: web",
        "{name: http-raw, containerPort: 8080}, {name: web",
    );
    let mesh = Mesh::start(&yaml).await;
    let inbound = mesh.workload("payments-api").inbound(8080);
    let (outbound, _) = mesh.entry("checkout-api", "payments-api:80");
    for gate in [inbound, outbound] {
        passes(&program, gate).await;
    }
}

async fn passes(program: &Path, gate: SocketAddr) {
    let folder = tempfile::tempdir().unwrap();
    let report = folder.path().join("report.xml");
    let mut command = Command::new(program);
    command.args(["--host", &gate.ip().to_string(), "--port", &gate.port().to_string(), "--timeout", "4"]);
    command.arg("--junit-report").arg(&report);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let cases = cases(&std::fs::read_to_string(&report).unwrap_or_else(|e| panic!("{e}: {said}")));
    assert_eq!(cases.len(), CASES, "{gate}: {said}");
    let failed: Vec<(&str, &str)> = cases
        .iter()
        .filter(|(.., failed)| *failed)
        .map(|(section, title, _)| (&section[..], &title[..]))
        .collect();
    assert_eq!(failed, KNOWN, "{gate}: {said}");
}
