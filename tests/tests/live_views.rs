//! The live views: what passed in a mesh, as sidecars report it and `postern status`, `top` and `denials` show it; exact, and
//! harmless whatever a sidecar says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_api::v1::{self, sidecar_message};
use postern_config::documents::{self, SourceFile, authorization_policy::Condition};
use postern_tests::{
    Request,
    mesh::within,
    ports,
    scenario::{mode, payments, policy},
    stand_in::{join, message},
    watched::Watched,
};
use serde_json::Value;
use std::time::Duration;

fn flow<'v>(page: &'v Value, workload: &str, direction: &str, peer: Option<&str>) -> Option<&'v Value> {
    page["flows"].as_array().unwrap().iter().find(|flow| {
        flow["workload"] == workload && flow["direction"] == direction && flow["peer"].as_str() == peer
    })
}

const CHECKOUT: &str = "spiffe://cluster.local/ns/checkout/sa/checkout-api";
const REPORTS: &str = "spiffe://cluster.local/ns/checkout/sa/reports";
const PAYMENTS: &str = "spiffe://cluster.local/ns/payments/sa/payments-api";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn allowed_denied_and_plaintext_calls_appear_with_exact_counts() {
    let rules = policy(
        "callers",
        "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}], \
         to: [{operation: {methods: [POST], paths: [/v1/*]}}]}]",
    ) + &mode("payments", "PERMISSIVE");
    let watched = Watched::start(&payments(&rules)).await;
    let mesh = &watched.mesh;
    for _ in 0..7 {
        assert_eq!(
            mesh.call("checkout-api", "payments-api", "POST", "/v1/charges").await.unwrap().status,
            200
        );
    }
    for _ in 0..3 {
        assert_eq!(mesh.call("reports", "payments-api", "GET", "/v1/charges").await.unwrap().status, 403);
    }
    let plain = mesh.workload("payments-api").inbound(8080);
    for _ in 0..2 {
        let answer = Request::new(plain, "payments-api".to_owned()).path("/plain").send().await.unwrap();
        assert_eq!(answer.status, 403);
    }
    let server = "payments/payments-api";
    let count = |flow: Option<&Value>, key: &str| flow.and_then(|flow| flow[key].as_u64()).unwrap_or(0);
    let page = watched
        .page_becomes(&["top"], |page| {
            count(flow(page, server, "inbound", Some(CHECKOUT)), "calls") == 7
                && count(flow(page, server, "inbound", Some(REPORTS)), "calls") == 3
                && count(flow(page, server, "inbound", None), "calls") == 2
                && count(flow(page, "checkout/checkout-api", "outbound", Some(PAYMENTS)), "calls") == 7
        })
        .await;
    let counts = |peer: Option<&str>| {
        let flow = flow(&page, server, "inbound", peer);
        ["mutual_tls", "denied", "errors"].map(|key| count(flow, key))
    };
    assert_eq!(counts(Some(CHECKOUT)), [7, 0, 0]);
    assert_eq!(counts(Some(REPORTS)), [3, 3, 0]);
    assert_eq!(counts(None), [0, 2, 0]);
    let client = flow(&page, "checkout/checkout-api", "outbound", Some(PAYMENTS)).unwrap();
    assert_eq!(client["service"], "payments-api.payments.svc.cluster.local");
    assert_eq!((client["mutual_tls"].as_u64(), client["errors"].as_u64()), (Some(7), Some(0)));
    for key in ["p50_micros", "p99_micros", "proxy_p50_micros", "proxy_p99_micros"] {
        assert!(client[key].as_u64().is_some_and(|micros| micros > 0), "{key}: {client}");
    }
    let used: Vec<&Value> = page["rules"].as_array().unwrap().iter().collect();
    assert_eq!(used.len(), 1, "{page:#}");
    assert_eq!(
        (used[0]["policy"].as_str(), used[0]["matched"].as_u64()),
        (Some("payments/callers"), Some(7))
    );

    let page = watched.page(&["denials"]).await;
    let denials = page["denials"].as_array().unwrap();
    assert_eq!(denials.len(), 2, "{page:#}");
    let of = |peer: Value| denials.iter().find(|denial| denial["peer"] == peer).unwrap();
    let known = of(REPORTS.into());
    assert_eq!((known["count"].as_u64(), known["status"].as_u64()), (Some(3), Some(403)));
    assert_eq!((known["method"].as_str(), known["path"].as_str()), (Some("GET"), Some("/v1/charges")));
    assert_eq!(known["decisions"].as_array().unwrap().len(), 3);
    let closest = known["closest"].as_str().unwrap();
    assert!(closest.contains("payments/callers") && closest.contains("principals"), "{closest}");
    assert_eq!(of(Value::Null)["count"], 2);

    let table = watched.says(&["denials"]).await;
    let line = table.lines().find(|line| line.contains("sa/reports")).unwrap();
    assert!(line.contains("GET /v1/charges") && line.contains(" 403 ") && line.contains("  3  "), "{table}");
    let table = watched.says(&["top"]).await;
    assert!(table.contains("7/7"), "{table}");
    // Who was turned away was not served without mutual TLS.
    let row = table.lines().find(|line| line.starts_with("(no identity)")).unwrap();
    let cells: Vec<_> = row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
    assert_eq!(cells[2..8], ["server", "2", "2.0", "0", "2", "-"], "{table}");
    assert!(watched.says(&["top", "-o", "yaml"]).await.contains("mutual_tls: 7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_that_a_strict_port_resets_is_a_denial_by_its_reason() {
    let watched = Watched::start(&payments(&mode("payments", "STRICT"))).await;
    let plain = watched.mesh.workload("payments-api").inbound(8080);
    assert!(Request::new(plain, "payments-api".to_owned()).send().await.is_err());
    let page =
        watched.page_becomes(&["denials"], |page| !page["denials"].as_array().unwrap().is_empty()).await;
    let denial = &page["denials"][0];
    assert_eq!((denial["reason"].as_str(), denial["count"].as_u64()), (Some("plaintext-refused"), Some(1)));
    assert!(denial["method"].is_null() && denial["peer"].is_null(), "{denial}");
    assert!(watched.says(&["denials"]).await.contains("a connection"));
}

/// Pod and state of each row of `postern status`.
fn states(page: &Value) -> Vec<(String, String)> {
    let rows = page["workloads"].as_array().unwrap().iter();
    rows.map(|row| (row["pod"].as_str().unwrap().into(), row["state"].as_str().unwrap().into())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_sidecar_has_its_row_and_a_missing_one_shows() {
    let mut watched = Watched::start(&payments("")).await;
    let all = |state: &str| ["checkout-api", "reports", "payments-api"].map(|pod| (pod.into(), state.into()));
    let page = watched.page_becomes(&["status"], |page| states(page) == all("synced")).await;
    let row = &page["workloads"][2];
    assert_eq!(row["policy_wanted"], row["policy_in_force"]);
    assert!(row["certificate_remaining"].as_f64().is_some_and(|left| left > 0.9), "{row}");
    for key in ["policy_since", "connected_since", "certificate_not_after", "build"] {
        assert!(row[key].is_string(), "{key}: {row}");
    }
    let table = watched.says(&["status"]).await;
    assert_eq!(table.matches("synced").count(), 3, "{table}");
    drop(watched.mesh.workloads.get_mut("reports").unwrap().sidecar.take());
    watched
        .page_becomes(&["status"], |page| states(page).contains(&("reports".into(), "not-connected".into())))
        .await;
    assert!(watched.says(&["status"]).await.contains("not connected"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_refuses_its_policy_shows_as_refused_with_its_reason_and_others_as_synced() {
    let refuses_all = payments(&policy("callers", "action: ALLOW"));
    let allows_all = payments(&policy("callers", "action: ALLOW, rules: [{}]"));
    let mut watched = Watched::start(&refuses_all).await;
    let others = ["checkout-api", "reports"].map(|pod| (pod.to_owned(), "synced".to_owned()));
    let with_payments = |state: &str| [&others[..], &[("payments-api".into(), state.into())]].concat();
    let page = watched.page_becomes(&["status"], |page| states(page) == with_payments("synced")).await;
    assert!(page["workloads"][2]["refusal"].is_null(), "{page:#}");
    let good = page["workloads"][2]["policy_in_force"].clone();

    // A control plane applies no documents with an error; here it is newer than its sidecars, and knows a key that they do not.
    let file = SourceFile { name: "newer.yaml".into(), text: ports::substitute(&allows_all) };
    let (mut newer, _) = documents::read(&[file]);
    newer.authorization_policies[0].value.rules[0].when.push(Condition {
        key: "no.such.key".into(),
        values: vec!["x".into()],
        not_values: vec![],
    });
    watched.mesh.apply_read(newer);
    let page = watched.page_becomes(&["status"], |page| states(page) == with_payments("refused")).await;
    let row = &page["workloads"][2];
    assert!(row["refusal"].as_str().unwrap().contains("no.such.key"), "{row:#}");
    assert_eq!((&row["policy_in_force"], &row["unanswered"]), (&good, &0.into()), "{row:#}");
    assert_ne!(row["policy_wanted"], good, "{row:#}");
    let table = watched.says(&["status"]).await;
    let line = |pod: &str| table.lines().find(|line| line.contains(pod)).unwrap().to_owned();
    assert!(line("payments/payments-api").contains("refused"), "{table}");
    assert!(
        line("checkout/reports").contains("synced") && !line("checkout/reports").contains("refused"),
        "{table}"
    );
    assert!(table.contains("no.such.key"), "{table}");
    // What it says holds: the last good policy is in force.
    assert_eq!(watched.mesh.call("reports", "payments-api", "GET", "/").await.unwrap().status, 403);
    assert_eq!(watched.mesh.app("payments-api").connections(), 0);

    // The twin: the same policy without that key is acknowledged.
    watched.mesh.apply(&allows_all).await;
    let page = watched.page_becomes(&["status"], |page| states(page) == with_payments("synced")).await;
    let row = &page["workloads"][2];
    assert!(row["refusal"].is_null() && row["policy_in_force"] == row["policy_wanted"], "{row:#}");
    assert!(!watched.says(&["status"]).await.contains("refused"));
    assert_eq!(watched.mesh.call("reports", "payments-api", "GET", "/").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_policy_says_who_enforces_it_what_it_matched_and_what_a_dry_run_would_deny() {
    let callers = "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
    let tried = "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: tried, namespace: payments, annotations: {istio.io/dry-run: 'true'}}\n\
        spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}\n";
    let unselected =
        policy("unselected", "action: ALLOW, rules: [{}]").replace("app: payments-api", "app: nobody");
    let yaml = payments(
        &(policy("callers", callers)
            + tried
            + &unselected
            + &mode("payments", "STRICT")
            + &mode("checkout", "PERMISSIVE")),
    );
    let mut watched = Watched::start(&yaml).await;
    for (from, method, status) in
        [("checkout-api", "POST", 200), ("checkout-api", "DELETE", 200), ("reports", "POST", 403)]
    {
        assert_eq!(watched.mesh.call(from, "payments-api", method, "/v1").await.unwrap().status, status);
    }
    let find = |page: &Value, kind: &str, name: &str| {
        let all = page["policies"].as_array().unwrap();
        let found = all.iter().find(|one| {
            one["kind"] == kind && format!("{}/{}", one["namespace"], one["name"]).replace('"', "") == name
        });
        found.unwrap_or_else(|| panic!("{name}: {page:#}")).clone()
    };
    let page = watched
        .page_becomes(&["policies"], |page| {
            let tried = find(page, "AuthorizationPolicy", "payments/tried");
            tried["would_deny"] == 1 && find(page, "AuthorizationPolicy", "payments/callers")["matched"] == 2
        })
        .await;
    assert_eq!(page["policies"].as_array().unwrap().len(), 5, "{page:#}");
    let facts = |kind: &str, name: &str| {
        let one = find(&page, kind, name);
        let count = |key: &str| one[key].as_u64();
        (
            one["says"].as_str().unwrap().to_owned(),
            one["dry_run"].as_bool().unwrap(),
            count("enforced_by"),
            count("selected"),
            count("matched"),
        )
    };
    let some = |says: &str, dry_run: bool, by: u64, of: u64, matched: Option<u64>| {
        (says.to_owned(), dry_run, Some(by), Some(of), matched)
    };
    assert_eq!(facts("AuthorizationPolicy", "payments/callers"), some("ALLOW", false, 1, 1, Some(2)));
    assert_eq!(facts("AuthorizationPolicy", "payments/tried"), some("DENY", true, 1, 1, Some(0)));
    assert_eq!(facts("AuthorizationPolicy", "payments/unselected"), some("ALLOW", false, 0, 0, Some(0)));
    assert_eq!(facts("PeerAuthentication", "payments/default"), some("STRICT", false, 1, 1, None));
    assert_eq!(facts("PeerAuthentication", "checkout/default"), some("PERMISSIVE", false, 2, 2, None));
    assert!(find(&page, "AuthorizationPolicy", "payments/tried")["last"].is_string(), "{page:#}");
    assert!(find(&page, "AuthorizationPolicy", "payments/unselected")["last"].is_null(), "{page:#}");

    // Of a sidecar that is gone nobody knows what it enforces.
    drop(watched.mesh.workloads.get_mut("reports").unwrap().sidecar.take());
    let page = watched
        .page_becomes(&["policies"], |page| {
            find(page, "PeerAuthentication", "checkout/default")["enforced_by"] == 1
        })
        .await;
    assert_eq!(
        find(&page, "PeerAuthentication", "checkout/default")["waiting_for"],
        serde_json::json!(["checkout/reports"])
    );
    let table = watched.says(&["policies"]).await;
    let row = |start: &str| {
        let line =
            table.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {table}"));
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("payments/tried")[1..7], ["AuthorizationPolicy", "DENY (dry run)", "1/1", "0", "1", "0"]);
    assert_eq!(row("payments/unselected")[3], "nobody");
    assert!(table.contains("checkout/default is not acknowledged by checkout/reports"), "{table}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_is_explained_by_its_id_as_it_was_and_as_it_would_be_now() {
    let allow = |from: &str, more: &str| {
        let principal = format!("cluster.local/ns/checkout/sa/{from}");
        policy(
            "callers",
            &format!("action: ALLOW, rules: [{{from: [{{source: {{principals: [{principal}]}}}}]{more}}}]"),
        )
    };
    let mut watched = Watched::start(&payments(&allow("checkout-api", ""))).await;
    let answer = watched.mesh.call("reports", "payments-api", "GET", "/v1/charges").await.unwrap();
    assert_eq!(answer.status, 403);
    let log = watched.mesh.access_log("payments-api").clone();
    let line = log.next_with(&[("postern.decision", "deny".into())]).await;
    let id = line["postern.decision.id"].as_str().unwrap();
    assert!(String::from_utf8_lossy(&answer.body).contains(id), "the caller has the id, too");
    watched
        .page_becomes(&["denials"], |page| {
            page["denials"].as_array().unwrap().iter().any(|denial| denial["decisions"][0] == id)
        })
        .await;
    let asked = ["why", "--id", id];
    let page = watched.page(&asked).await;
    assert_eq!(
        (page["policy_changed"].as_bool(), page["allowed_now"].as_bool()),
        (Some(false), Some(false)),
        "{page:#}"
    );
    assert_eq!(page["denial"]["policy_version"], line["postern.policy.version"]);
    assert_eq!(page["facts"]["source_ip"], line["network.peer.address"]);
    let told = watched.says(&asked).await;
    for part in [
        "denied: GET /v1/charges from cluster.local/ns/checkout/sa/reports",
        "payments/callers rule 0",
        "the same policy",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }

    // Other policies: one that allows, one that still denies, and those that ask for what only the sidecar knows.
    let header = ", when: [{key: 'request.headers[x-tenant]', values: [blue]}]";
    for (policies, allowed, says) in [
        (allow("reports", ""), Some(true), "would be allowed"),
        (allow("nobody", ""), Some(false), "would be denied"),
        (allow("reports", header), None, "headers or tokens"),
    ] {
        watched.mesh.apply(&payments(&policies)).await;
        let page = watched.page(&asked).await;
        assert_eq!(
            (page["policy_changed"].as_bool(), page["allowed_now"].as_bool()),
            (Some(true), allowed),
            "{page:#}"
        );
        let told = watched.says(&asked).await;
        assert!(told.contains("has changed since") && told.contains(says), "{told}");
    }

    let unknown = watched.run(&["why", "--id", "0123456789abcdef"]).await;
    let told = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(unknown.status.code(), Some(1), "{told}");
    assert!(told.contains("no such decision") && told.contains("postern denials"), "{told}");
    assert_eq!(watched.run(&["why", "--id", "../status"]).await.status.code(), Some(64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_lies_is_cut_down_and_its_escapes_stay_text() {
    let watched = Watched::start(&payments("")).await;
    let (say, mut hear) = join(&watched.mesh.control, "checkout", "reports", false).await;
    // Of two streams of a pod the one counts that has told of its certificate.
    let certificate = v1::Certificate {
        serial: "0a".into(),
        not_before_unix_seconds: 1_700_000_000,
        not_after_unix_seconds: 1_800_000_000,
        authorities: vec![vec![1; 32]],
    };
    say.send(message(sidecar_message::Message::Certificate(certificate))).await.unwrap();
    let inbound = i32::from(v1::Direction::Inbound);
    let edge = |peer: &str, calls: u64| v1::Edge {
        direction: inbound,
        peer: peer.into(),
        calls,
        mutual_tls: u64::MAX,
        denied: u64::MAX,
        errors: u64::MAX,
        bytes_sent: u64::MAX,
        total: if calls > 1 { vec![u32::MAX; 600] } else { Vec::new() },
        ..Default::default()
    };
    let denial = v1::Denial {
        direction: inbound,
        peer: CHECKOUT.into(),
        method: "GET\u{1b}]0;owned\u{7}".into(),
        path: format!("/\u{1b}[2J\u{1b}[1;31m\u{202e}<script>{}", "x".repeat(2000)),
        port: 8080,
        status: 4030,
        reason: "because\r\nforged  row".into(),
        decisions: vec!["not an id".into()],
        count: u64::MAX,
        first_unix_millis: i64::MIN,
        last_unix_millis: i64::MAX,
        ..Default::default()
    };
    let edges = std::iter::once(edge(CHECKOUT, 5))
        .chain([edge("spiffe://x/\u{1b}[2J", 5), edge("nobody", 1)])
        .chain((0..400).map(|n| edge(&format!("spiffe://cluster.local/ns/a/sa/{n}"), 1)))
        .collect();
    // Another workload cannot be named: there is no field for it.
    let report = v1::Report { edges, denials: vec![denial], ..Default::default() };
    say.send(message(sidecar_message::Message::Report(report))).await.unwrap();

    let page = watched
        .page_becomes(&["top"], |page| flow(page, "checkout/reports", "inbound", Some(CHECKOUT)).is_some())
        .await;
    let told = flow(&page, "checkout/reports", "inbound", Some(CHECKOUT)).unwrap();
    let numbers = ["calls", "mutual_tls", "denied", "errors"].map(|key| told[key].as_u64().unwrap());
    assert_eq!(numbers, [5, 5, 5, 0]);
    let mine = page["flows"].as_array().unwrap().iter().filter(|flow| flow["workload"] == "checkout/reports");
    assert_eq!(mine.count(), 254, "256 are read, and two of them name nobody");
    assert_eq!(page["lost"]["dropped"], 147 + 2);

    let table = watched.says(&["denials"]).await;
    let line = table.lines().find(|line| line.contains("checkout/reports")).unwrap();
    assert!(
        !table.contains(|c: char| c.is_control() && c != '\n') && !table.contains('\u{202e}'),
        "{table:?}"
    );
    assert!(line.contains(r"/\u{1b}[2J\u{1b}[1;31m\u{202e}<script>xxx"), "{line}");
    assert!(line.contains(r"because\u{d}\u{a}forged  row"), "{line}");
    assert_eq!(table.lines().count(), 4, "a head, a row, and what was lost: {table}");
    for arguments in [&["denials", "-o", "json"][..], &["denials", "-o", "yaml"], &["status"]] {
        let told = watched.says(arguments).await;
        assert!(!told.contains(|c: char| c.is_control() && c != '\n'), "{arguments:?}: {told:?}");
    }
    // The stream goes on: policy must reach also those who report nonsense.
    let status = watched.page(&["status"]).await;
    assert!(
        status["workloads"].as_array().unwrap().iter().any(|row| row["build"] == "liar?[2J"),
        "{status:#}"
    );

    // What is larger than a message may be is not read at all.
    let denials = vec![v1::Denial { path: "x".repeat(60_000), ..Default::default() }];
    let report = v1::Report { denials, ..Default::default() };
    say.send(message(sidecar_message::Message::Report(report))).await.unwrap();
    let ended = within("the stream ends", async {
        loop {
            if let Err(status) = hear.message().await {
                return status;
            }
        }
    });
    assert_eq!(ended.await.code(), tonic::Code::OutOfRange);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_is_too_old_to_be_tapped_is_named_and_never_asked() {
    let watched = Watched::start(&payments("")).await;
    let (_say, mut hear) = join(&watched.mesh.control, "checkout", "reports", false).await;
    let output = watched.run(&["tap", "--for", "1s", "-o", "json"]).await;
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("tapping 3 sidecars") && told.contains("too old: checkout/reports"), "{told}");
    while let Ok(message) = tokio::time::timeout(Duration::from_millis(50), hear.message()).await {
        let message = message.unwrap().unwrap();
        assert!(!matches!(message.message, Some(v1::control_message::Message::Taps(_))), "{message:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_tells_a_tap_too_much_too_long_or_unasked_is_cut_down() {
    let watched = Watched::start(&payments("")).await;
    let (say, mut hear) = join(&watched.mesh.control, "checkout", "reports", true).await;
    let lying = async {
        let tap = within("the tap is asked for", async {
            loop {
                let message = hear.message().await.unwrap().unwrap();
                if let Some(v1::control_message::Message::Taps(taps)) = message.message {
                    return taps.taps.first().unwrap().id;
                }
            }
        });
        let tap = tap.await;
        let call = |tap: u64| v1::TappedCall {
            taps: vec![tap],
            direction: v1::Direction::Inbound.into(),
            peer: CHECKOUT.into(),
            method: "GET".into(),
            path: format!("/\u{1b}[2J\r\nforged{}", "x".repeat(2000)),
            status: 200,
            source_ip: "10.0.0.1".into(),
            ..Default::default()
        };
        let calls =
            vec![call(tap + 7), v1::TappedCall { peer: "nobody".into(), ..call(tap) }, call(tap), call(tap)];
        let left_out = vec![v1::LeftOut { tap, count: 5 }, v1::LeftOut { tap: tap + 7, count: 9 }];
        let told = v1::Tapped { calls, left_out };
        say.send(message(sidecar_message::Message::Tapped(told))).await.unwrap();
        let told = v1::Tapped { calls: vec![call(tap); 20], left_out: vec![] };
        say.send(message(sidecar_message::Message::Tapped(told))).await.unwrap();
    };
    let (output, ()) = tokio::join!(watched.run(&["tap", "--for", "2s", "--rate", "2", "-o", "json"]), lying);
    let (told, hints) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(0), "{hints}");
    // Twice the rate at most in one second, and the two messages may fall into two.
    let lines: Vec<&str> = told.lines().collect();
    assert!((3..=6).contains(&lines.len()), "{told}");
    for line in lines {
        let call: Value = serde_json::from_str(line).unwrap();
        let path = call["path"].as_str().unwrap();
        assert!(path.len() < 300 && path.starts_with(r"/\u{1b}[2J\u{d}\u{a}forged"), "{path}");
        assert_eq!(call["workload"], "checkout/reports");
    }
    assert!(hints.contains("… 5 more matched") && hints.contains("were refused"), "{hints}");
    assert!(!hints.contains("14 more"), "{hints}");
}
