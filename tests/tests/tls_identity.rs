//! The checklist of the identity at the gate (reference: reliability 2.6), against running sidecars: a hostile client in front
//! of one, a hostile server behind another. The stranger learns the alert and nothing else, the app sees nothing, the log names
//! the rule and both identities; and beside each thing refused stands its twin that passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

#[path = "tls_identity/hostile.rs"]
mod hostile;
#[path = "tls_identity/table.rs"]
mod table;

use hostile::{Impostor, Manner, Outcome, call, hello, raw};
use postern_tests::{
    Mesh,
    certificates::{Leaf, Signer},
    mesh::{Settings, within},
    scenario::{mode, payments, policy},
};
use rustls::AlertDescription as Alert;
use serde_json::{Value, json};
use std::{net::SocketAddr, time::Duration};
use table::{API, CART, Row, table};
use tokio::io::AsyncWriteExt;

struct Stage {
    mesh: Mesh,
    ours: Signer,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn new(documents: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("authority");
        let rules = "action: ALLOW, rules: [{from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout-api]}}]}]";
        let yaml = payments(&(mode("payments", "STRICT") + &policy("callers", rules) + documents));
        let settings = Settings { state: Some(state.clone()), ..Settings::default() };
        let mesh = Mesh::start_with(&yaml, settings).await;
        let ours = Signer::of_mesh(&state, folder.path());
        Self { mesh, ours, folder }
    }

    fn gate(&self) -> SocketAddr {
        self.mesh.workload("payments-api").inbound(8080)
    }

    /// A good call goes through, and is the only one that the app has seen.
    async fn twin(&self, what: &str, calls: usize) {
        let good = self.ours.issue(&Leaf::good(CART), |_| {});
        let outcome = call(self.gate(), Some(good), &[], &[]).await;
        assert!(matches!(&outcome, Outcome::Answer(text) if text.contains(" 200 ")), "{what}: {outcome:?}");
        assert_eq!(self.mesh.app("payments-api").received().len(), calls, "{what}");
        // So that no line of its own is taken for one of what follows.
        let good = |lines: &[Value]| {
            lines.iter().filter(|line| line["http.response.status_code"] == 200).count() == calls
        };
        self.mesh.access_log("payments-api").until(what, good).await;
    }
}

/// Lines 03, 04, 05, 06, 07, 08.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_calls_with_a_certificate_that_breaks_a_rule_learns_the_alert_and_the_log_names_the_rule() {
    let stage = Stage::new("").await;
    stage.twin("before", 1).await;
    let log = stage.mesh.access_log("payments-api");
    for Row { what, key, rule, presented } in table(&stage.ours, stage.folder.path(), CART) {
        let before = log.lines().len();
        let expected = if key.is_none() { Alert::CertificateRequired } else { Alert::CertificateUnknown };
        let outcome = call(stage.gate(), key, &[], &[]).await;
        assert_eq!(outcome, Outcome::Alert(expected), "{what}");
        assert_eq!(stage.mesh.app("payments-api").connections(), 1, "{what}: the app was touched");
        log.at_least(before + 1).await;
        let line = log.lines()[before].clone();
        let reason = line["postern.reason"].as_str().unwrap_or_default();
        assert!(reason.contains(rule), "{what}: `{rule}` is not in {line}");
        assert!(reason.contains(API), "{what}: it does not say who refuses: {line}");
        for name in &presented {
            assert!(reason.contains(name), "{what}: `{name}` is not in {line}");
        }
        assert_eq!(line["postern.destination.id"], json!(API), "{what}: {line}");
        assert!(line["postern.source.id"].is_null(), "{what}: nobody was verified: {line}");
    }
    stage.twin("after", 2).await;
}

/// Lines 03 to 08 and 16, mirrored: the same certificates, shown by a server that the mesh believes to be payments-api.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_with_a_certificate_that_breaks_a_rule_never_sees_the_request() {
    let mut stage = Stage::new("").await;
    let impostor = Impostor::start().await;
    stage.mesh.impersonate("payments-api", 8080, impostor.address);
    let mut cases: Vec<_> = table(&stage.ours, stage.folder.path(), API)
        .into_iter()
        .filter_map(|row| Some((row.what, row.key?, row.rule, row.presented)))
        .collect();
    let reports = "spiffe://cluster.local/ns/checkout/sa/reports";
    let other = stage.ours.issue(&Leaf::good(reports), |_| {});
    let rule = "verified, but not accepted here";
    cases.push(("a good certificate of another service", other, rule, vec![reports.to_owned()]));
    let good = || stage.ours.issue(&Leaf::good(API), |_| {});
    impostor.show(good());
    // Resolution is fresh when the impostor is reached: then everything after it is about certificates.
    stage.mesh.call_until("checkout-api", "payments-api", "GET", "/twin", 299).await;
    let log = stage.mesh.access_log("checkout-api");
    for (case, (what, key, rule, presented)) in cases.into_iter().enumerate() {
        impostor.show(key);
        let seen = impostor.bytes();
        let path = format!("/v1/charges/{case}");
        let answer = stage.mesh.call("checkout-api", "payments-api", "POST", &path).await.unwrap();
        assert_eq!(answer.status, 503, "{what}");
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert!(!body.contains(rule), "{what}: the app learns that it failed, the log why: {body}");
        assert_eq!(impostor.bytes(), seen, "{what}: bytes of the request came out");
        let alert = within("the impostor is refused", impostor.next_alert()).await;
        assert_eq!(alert, Some(Alert::CertificateUnknown), "{what}");
        let line = log.next_with(&[("url.path", json!(path))]).await;
        let reason = line["postern.reason"].as_str().unwrap_or_default();
        assert!(reason.contains(rule) && reason.contains(API), "{what}: `{rule}` is not in {line}");
        // Who was expected stands there in any case, so who was presented has to stand there beside.
        let expected = format!("expected {API}");
        let said = reason.replacen(&expected, "", 1);
        for name in &presented {
            assert!(said.contains(name), "{what}: `{name}` is not in {said}");
        }
        assert_eq!(line["postern.source.id"], json!(CART), "{what}: {line}");
    }
    impostor.show(good());
    let answer = stage.mesh.call("checkout-api", "payments-api", "GET", "/twin").await.unwrap();
    assert_eq!(answer.status, 299);
    assert_eq!(stage.mesh.app("payments-api").connections(), 0);
}

/// Lines 01, 02 and 09, mirrored: where payments-api should be sits something that speaks no TLS, or not ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_speak_our_tls_never_sees_the_request_and_no_ticket_is_used() {
    let mut stage = Stage::new("").await;
    let impostor = Impostor::start().await;
    stage.mesh.impersonate("payments-api", 8080, impostor.address);
    let good = || stage.ours.issue(&Leaf::good(API), |_| {});
    impostor.show(good());
    stage.mesh.call_until("checkout-api", "payments-api", "GET", "/twin", 299).await;
    let log = stage.mesh.access_log("checkout-api");
    let tls_1_2 = hostile::server(good(), &[&rustls::version::TLS12]);
    for (case, (what, manner)) in [
        ("HTTP in clear", Manner::Bytes(b"HTTP/1.1 299 twin\r\nContent-Length: 0\r\n\r\n")),
        ("HTTP/2 in clear", Manner::Bytes(b"\0\0\0\x04\0\0\0\0\0")),
        ("noise", Manner::Bytes(b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6")),
        ("a record of no known version", Manner::Bytes(b"\x16\x09\x09\0\x04\x02\0\0\0")),
        ("TLS 1.2 alone", Manner::Tls(tls_1_2)),
    ]
    .into_iter()
    .enumerate()
    {
        impostor.behave(manner);
        let seen = impostor.bytes();
        let path = format!("/v1/charges/{case}");
        let answer = stage.mesh.call("checkout-api", "payments-api", "POST", &path).await.unwrap();
        assert_eq!(answer.status, 503, "{what}");
        let raw = impostor.raw();
        assert!(!raw.windows(4).any(|part| part == b"POST"), "{what}: the request came out in clear");
        assert_eq!(impostor.bytes(), seen, "{what}: bytes of the request came out");
        let line = log.next_with(&[("url.path", json!(path))]).await;
        let reason = line["postern.reason"].as_str().unwrap_or_default();
        assert!(reason.starts_with("TLS to "), "{what}: {line}");
        assert_eq!(line["postern.source.id"], json!(CART), "{what}: {line}");
        impostor.show(good());
        stage.mesh.call_until("checkout-api", "payments-api", "GET", "/twin", 299).await;
    }

    // A server with a memory: whoever takes its tickets comes in without another look at a certificate.
    let remembers = hostile::server(good(), &[&rustls::version::TLS13]);
    let kinds = impostor.kinds().len();
    impostor.behave(Manner::Tls(remembers.clone()));
    for _ in 0..3 {
        let answer = stage.mesh.call("checkout-api", "payments-api", "GET", "/twin").await.unwrap();
        assert_eq!(answer.status, 299);
    }
    let full = rustls::HandshakeKind::Full;
    assert_eq!(impostor.kinds()[kinds..], [full, full, full], "nothing is resumed");
    let taker = hostile::client(Some(stage.ours.issue(&Leaf::good(CART), |_| {})), &[], &[]);
    for _ in 0..2 {
        let mut stream = hostile::connect(impostor.address, &taker).await.unwrap();
        stream.write_all(hostile::REQUEST).await.unwrap();
        assert!(hostile::read_head(&mut stream).await.unwrap().contains(" 299 "));
    }
    assert_eq!(impostor.kinds().last(), Some(&rustls::HandshakeKind::Resumed), "the twin resumes");
    assert_eq!(stage.mesh.app("payments-api").connections(), 0);
}

/// Lines 01 and 11.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_handshake_get_no_byte_of_http_back() {
    let stage = Stage::new("").await;
    let hello = hello();
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind, 3, 1, length[0], length[1]], content].concat()
    };
    // A hello of 64 KiB, in records of 16 KiB, and one that is nothing but 10 000 empty extensions.
    let huge = {
        let message = [&[1, 0, 0xff, 0xfb], vec![0; 0xfffb].as_slice()].concat();
        message.chunks(16 << 10).flat_map(|part| record(22, part)).collect::<Vec<u8>>()
    };
    let extensions = {
        let list: Vec<u8> = (0..10_000u16).flat_map(|n| [(n >> 8) as u8, n as u8, 0, 0]).collect();
        let mut body = [&[3, 3], [7; 32].as_slice(), &[0, 0, 2, 0x13, 1, 1, 0]].concat();
        body.extend(u16::try_from(list.len()).unwrap().to_be_bytes());
        body.extend(list);
        let length = u32::try_from(body.len()).unwrap().to_be_bytes();
        let message = [&[1], &length[1..], &body].concat();
        message.chunks(16 << 10).flat_map(|part| record(22, part)).collect::<Vec<u8>>()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("HTTP/1.1", b"GET /v1/charges HTTP/1.1\r\nHost: payments-api\r\n\r\n".to_vec()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("noise", (0..=255).rev().collect()),
        ("nothing", vec![]),
        ("half a hello", hello[..hello.len() / 2].to_vec()),
        ("a hello of 64 KiB", huge),
        ("ten thousand extensions", extensions),
        ("an alert", record(21, &[2, 40])),
        ("application data", record(23, b"GET / HTTP/1.1\r\n\r\n")),
        ("a record of no known version", [&[22, 9, 9, 0, 4], b"\x01\0\0\0".as_slice()].concat()),
    ];
    for (n, (what, bytes)) in cases.iter().enumerate() {
        let app = stage.mesh.app("payments-api");
        let (before, received) = (app.connections(), app.received().len());
        let back = raw(stage.gate(), bytes).await;
        // At most one TLS alert record: 21, version, length 2.
        assert!(back.is_empty() || (back.len() == 7 && back[0] == 21), "{what}: {back:?}");
        assert_eq!(
            (app.connections(), app.received().len()),
            (before, received),
            "{what}: the app was touched"
        );
        stage.twin(what, n + 1).await;
    }
}

/// Line 11: a hello is the same hello however it is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_may_come_byte_by_byte() {
    let stage = Stage::new("").await;
    let good = stage.ours.issue(&Leaf::good(CART), |_| {});
    let outcome = hostile::call_in_pieces(stage.gate(), good).await;
    assert!(matches!(&outcome, Outcome::Answer(text) if text.contains(" 200 ")), "{outcome:?}");
}

/// Line 02 and the last of 09: what is not asked for is not spoken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_is_spoken_only_where_the_mesh_configuration_says_so_and_never_resumed() {
    let allow = |minimum: &str| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\n\
             data:\n  mesh: |\n    meshMTLS: {{minProtocolVersion: {minimum}}}\n"
        )
    };
    let tls_1_2 = &[&rustls::version::TLS12][..];
    for minimum in ["TLS_AUTO", "TLSV1_3"] {
        let stage = Stage::new(&allow(minimum)).await;
        let good = stage.ours.issue(&Leaf::good(CART), |_| {});
        let outcome = call(stage.gate(), Some(good), &[], tls_1_2).await;
        assert_eq!(outcome, Outcome::Alert(Alert::ProtocolVersion), "{minimum}");
        assert_eq!(stage.mesh.app("payments-api").connections(), 0);
        stage.twin(minimum, 1).await;
    }
    let stage = Stage::new(&allow("TLSV1_2")).await;
    let good = stage.ours.issue(&Leaf::good(CART), |_| {});
    for n in 1..3 {
        let outcome = call(stage.gate(), Some(good.clone()), &[], tls_1_2).await;
        assert!(matches!(&outcome, Outcome::Answer(text) if text.contains(" 200 ")), "{outcome:?}");
        assert_eq!(stage.mesh.app("payments-api").received().len(), n);
    }
    let line =
        stage.mesh.access_log("payments-api").next_with(&[("tls.protocol.version", json!("1.2"))]).await;
    assert_eq!(line["postern.source.id"], json!(CART), "{line}");
    let expired = stage.ours.issue(&Leaf::good(CART).expired(), |_| {});
    let outcome = call(stage.gate(), Some(expired), &[], tls_1_2).await;
    assert_eq!(outcome, Outcome::Alert(Alert::CertificateUnknown));
    stage.twin("1.3 is still there", 3).await;
}

/// Lines 09 and 10.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_can_be_resumed_and_a_flood_of_key_updates_ends_the_connection() {
    let stage = Stage::new("").await;
    let good = stage.ours.issue(&Leaf::good(CART), |_| {});
    // The same configuration, with a memory for sessions, three times.
    let client = hostile::client(Some(good.clone()), &[], &[]);
    for _ in 0..3 {
        let mut stream = hostile::connect(stage.gate(), &client).await.unwrap();
        stream.write_all(hostile::REQUEST).await.unwrap();
        assert!(hostile::read_head(&mut stream).await.unwrap().contains(" 200 "));
        let connection = stream.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
        assert!(!connection.is_early_data_accepted());
    }
    // A few updates are nobody's business; hundreds without a byte of data are an attack.
    for (updates, survives) in [(3, true), (500, false)] {
        let mut stream = hostile::connect(stage.gate(), &client).await.unwrap();
        for _ in 0..updates {
            if stream.get_mut().1.refresh_traffic_keys().is_err() || stream.flush().await.is_err() {
                break;
            }
        }
        let sent = stream.write_all(hostile::REQUEST).await;
        let reading = tokio::time::timeout(Duration::from_secs(5), hostile::read_head(&mut stream));
        let answer = reading.await.expect("answered, or closed");
        let is_answered = sent.is_ok() && answer.is_ok_and(|text| text.contains(" 200 "));
        assert_eq!(is_answered, survives, "{updates} updates");
    }
}

/// Line 12: what a client offers says how it speaks, never what it may do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alpn_never_chooses_policy() {
    let stage = Stage::new("").await;
    let reports = "spiffe://cluster.local/ns/checkout/sa/reports";
    let mut served = 0;
    for alpn in [
        &[][..],
        &[b"unknown".to_vec()],
        &[b"http/1.1".to_vec()],
        &[b"istio-http/1.1".to_vec(), b"istio".to_vec()],
    ] {
        let stranger = stage.ours.issue(&Leaf::good(reports), |_| {});
        let outcome = call(stage.gate(), Some(stranger), alpn, &[]).await;
        assert!(matches!(&outcome, Outcome::Answer(text) if text.contains(" 403 ")), "{alpn:?}: {outcome:?}");
        let good = stage.ours.issue(&Leaf::good(CART), |_| {});
        let outcome = call(stage.gate(), Some(good), alpn, &[]).await;
        assert!(matches!(&outcome, Outcome::Answer(text) if text.contains(" 200 ")), "{alpn:?}: {outcome:?}");
        served += 1;
        assert_eq!(stage.mesh.app("payments-api").received().len(), served, "{alpn:?}");
    }
    // HTTP/1.1 after `h2` was agreed on, by somebody who may not call: refused in whatever words, and never served.
    for alpn in [&[b"h2".to_vec()][..], &[b"istio-peer-exchange".to_vec(), b"istio".to_vec()]] {
        let stranger = stage.ours.issue(&Leaf::good(reports), |_| {});
        let outcome = call(stage.gate(), Some(stranger), alpn, &[]).await;
        assert!(
            !matches!(&outcome, Outcome::Answer(text) if text.contains(" 200 ")),
            "{alpn:?}: {outcome:?}"
        );
        assert_eq!(stage.mesh.app("payments-api").received().len(), served, "{alpn:?}");
    }
}
