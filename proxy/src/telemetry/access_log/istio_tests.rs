//! Lines as Istio writes them, octet by octet, and what callers cannot do to them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::super::{Lines, fields};
use super::*;
use crate::{
    bootstrap::access_log::Format,
    error,
    telemetry::entry::{Decided, Request},
};
use postern_config::{RuleRef, documents::authorization_policy::Action};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

fn connection(direction: Direction) -> Entry {
    let mut entry = Entry::new(
        direction,
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
        "10.0.0.9:4000".parse().unwrap(),
        "10.0.0.1:8080".parse().unwrap(),
    );
    entry.duration = Duration::from_micros(5_900);
    (entry.bytes_received, entry.bytes_sent) = (70, 23);
    entry.sni = Some("outbound_.80_._.api.shop.svc.cluster.local".into());
    entry
}

fn request(direction: Direction) -> Entry {
    let mut entry = connection(direction);
    entry.protocol = Some("http/1.1");
    entry.status = Some(200);
    entry.request = Some(Request {
        method: http::Method::GET,
        authority: "api.shop:80".into(),
        path: "/orders/7".into(),
        id: Some("id-1".into()),
        headers: vec![(http::header::USER_AGENT, "curl/8.5.0".into())],
        noted: None,
    });
    entry.upstream_address = Some("10.0.0.1:8080".parse().unwrap());
    entry.upstream_time = Some(Duration::from_micros(4_100));
    entry
}

fn denied(mut entry: Entry, rule: Option<&str>) -> Entry {
    entry.status = entry.request.is_some().then_some(403);
    (entry.upstream_address, entry.upstream_time) = (None, None);
    entry.reason = Some("RBAC: access denied".into());
    let policy =
        |name: &str| RuleRef { namespace: "shop".into(), policy: name.into(), rule: 3, action: Action::Deny };
    entry.decided = Some(Decided {
        is_allowed: false,
        id: Some("d".into()),
        rule: rule.map(|name| Arc::new(policy(name))),
        reason: "DENY rule matched",
        version: "1".into(),
        would: None,
        audit: None,
    });
    entry
}

fn failed(mut entry: Entry, status: Option<u16>, flag: &'static str, reason: &str) -> Entry {
    (entry.status, entry.flag, entry.reason) = (status, flag, Some(reason.into()));
    entry.upstream_address = None;
    entry
}

fn line(format: Format, entry: &Entry) -> String {
    let mut text = Vec::new();
    Lines::new(format).write(entry, &mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn text_lines_are_those_of_istio() {
    let (inbound, outbound) = (Direction::Inbound, Direction::Outbound);
    let mut to_service = request(outbound);
    to_service.destination_service = Some("api.shop.svc.cluster.local".into());
    let check = |entry: &Entry, expected: &str| assert_eq!(line(Format::IstioText, entry), expected);
    check(
        &request(inbound),
        r#"[2026-01-02T03:04:05.678Z] "GET /orders/7 HTTP/1.1" 200 - via_upstream - "-" 70 23 5 4 "-" "curl/8.5.0" "id-1" "api.shop:80" "10.0.0.1:8080" inbound|8080|| - 10.0.0.1:8080 10.0.0.9:4000 outbound_.80_._.api.shop.svc.cluster.local default"#,
    );
    check(
        &to_service,
        r#"[2026-01-02T03:04:05.678Z] "GET /orders/7 HTTP/1.1" 200 - via_upstream - "-" 70 23 5 4 "-" "curl/8.5.0" "id-1" "api.shop:80" "10.0.0.1:8080" outbound|8080||api.shop.svc.cluster.local - 10.0.0.1:8080 10.0.0.9:4000 - default"#,
    );
    check(
        &denied(request(inbound), Some("deny all")),
        r#"[2026-01-02T03:04:05.678Z] "GET /orders/7 HTTP/1.1" 403 - rbac_access_denied_matched_policy[ns[shop]-policy[deny_all]-rule[3]] - "-" 70 23 5 - "-" "curl/8.5.0" "id-1" "api.shop:80" "-" inbound|8080|| - 10.0.0.1:8080 10.0.0.9:4000 outbound_.80_._.api.shop.svc.cluster.local default"#,
    );
    check(
        &denied(connection(inbound), None),
        r#"[2026-01-02T03:04:05.678Z] "- - -" 0 - - rbac_access_denied_matched_policy[none] "-" 70 23 5 - "-" "-" "-" "-" "-" inbound|8080|| - 10.0.0.1:8080 10.0.0.9:4000 outbound_.80_._.api.shop.svc.cluster.local -"#,
    );
    check(
        &failed(request(outbound), Some(503), "UF", "connect to 10.0.0.1:8080 failed: \"refused\""),
        r#"[2026-01-02T03:04:05.678Z] "GET /orders/7 HTTP/1.1" 503 UF upstream_reset_before_response_started{connection_failure} - "connect to 10.0.0.1:8080 failed: \x22refused\x22" 70 23 5 - "-" "curl/8.5.0" "id-1" "api.shop:80" "-" - - 10.0.0.1:8080 10.0.0.9:4000 - allow_any"#,
    );
    check(
        &failed(request(outbound), Some(502), "UH", "outbound traffic is blocked"),
        r#"[2026-01-02T03:04:05.678Z] "GET /orders/7 HTTP/1.1" 502 UH no_healthy_upstream - "-" 70 23 5 - "-" "curl/8.5.0" "id-1" "api.shop:80" "-" BlackHoleCluster - 10.0.0.1:8080 10.0.0.9:4000 - block_all"#,
    );
    check(
        &failed(connection(inbound), None, "NR", "plaintext on a port that is STRICT"),
        r#"[2026-01-02T03:04:05.678Z] "- - -" 0 NR filter_chain_not_found - "-" 70 23 5 - "-" "-" "-" "-" "-" inbound|8080|| - 10.0.0.1:8080 10.0.0.9:4000 outbound_.80_._.api.shop.svc.cluster.local -"#,
    );
}

#[test]
fn the_json_has_the_keys_of_istio_in_the_order_of_envoy_and_null_for_what_is_absent() {
    for entry in [request(Direction::Inbound), connection(Direction::Outbound)] {
        let text = line(Format::IstioJson, &entry);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), fields::ISTIO.len());
        let places: Vec<usize> =
            fields::ISTIO.iter().map(|(key, ..)| text.find(&format!("\"{key}\":")).expect(key)).collect();
        assert!(places.is_sorted(), "{text}");
    }
    assert!(fields::ISTIO.is_sorted_by_key(|(key, ..)| key));
    let value: serde_json::Value =
        serde_json::from_str(&line(Format::IstioJson, &request(Direction::Inbound))).unwrap();
    let expected = serde_json::json!({
        "authority": "api.shop:80", "bytes_received": 70, "bytes_sent": 23, "connection_termination_details": null,
        "downstream_local_address": "10.0.0.1:8080", "downstream_remote_address": "10.0.0.9:4000", "duration": 5,
        "method": "GET", "path": "/orders/7", "protocol": "HTTP/1.1", "request_id": "id-1",
        "requested_server_name": "outbound_.80_._.api.shop.svc.cluster.local", "response_code": 200,
        "response_code_details": "via_upstream", "response_flags": "-", "route_name": "default",
        "start_time": "2026-01-02T03:04:05.678Z", "upstream_cluster": "inbound|8080||",
        "upstream_host": "10.0.0.1:8080", "upstream_local_address": null, "upstream_service_time": "4",
        "upstream_transport_failure_reason": null, "user_agent": "curl/8.5.0", "x_forwarded_for": null,
    });
    assert_eq!(value, expected);
}

#[test]
fn our_own_json_has_the_fields_of_its_table_in_their_order() {
    let mut entry = denied(request(Direction::Inbound), Some("p"));
    entry.upstream_address = Some("10.0.0.1:8080".parse().unwrap());
    entry.grpc_status = Some(7);
    entry.source_principal = Some("spiffe://td/a".into());
    entry.destination_principal = Some("spiffe://td/b".into());
    entry.destination_service = Some("api.shop".into());
    entry.tls_version = Some("TLSv1.3");
    let mut headers = http::HeaderMap::new();
    headers.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
    entry.trace = Some(crate::telemetry::propagation::Propagation::default().begin(&headers));
    let decided = entry.decided.as_mut().unwrap();
    decided.audit = decided.rule.clone();
    decided.would = Some(Box::new(crate::telemetry::entry::Would {
        is_allowed: true,
        policy: Some("shop/p".into()),
        rule: Some(0),
        workload: "shop/api".into(),
    }));
    let text = line(Format::Json, &entry);
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> = fields::JSON.iter().map(|(name, _)| *name).collect();
    let mut written: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    written.sort_by_key(|name| text.find(&format!("\"{name}\":")));
    assert_eq!(written.pop(), Some("http.request.header.user-agent"), "{text}");
    assert_eq!(written, names);
    assert_eq!(value["http.request.header.user-agent"], "curl/8.5.0");
}

#[test]
fn every_flag_of_the_table_of_errors_has_a_word_of_envoy() {
    for row in error::table() {
        for is_http2 in [false, true] {
            assert!(details_of(row.flag, is_http2, true).is_some(), "{}: {}", row.code, row.flag);
        }
    }
}

#[test]
fn whatever_a_caller_says_a_line_is_one_line_and_no_field_is_forged() {
    let long = "\"".repeat(64 << 10);
    let harmless = line(Format::IstioText, &request(Direction::Inbound));
    for attack in [
        "a b HTTP/1.1\" 200 - via_upstream - \"-\"",
        "\",\"response_code\":200,\"x\":\"",
        "\r\n[2026-01-02T03:04:05.678Z] \"GET / HTTP/1.1\" 200",
        "\u{1b}[31mred\0\u{7f}\u{9b}",
        "right\u{202e}left\u{200f}\u{2028}\u{61c}",
        "\u{fffd}\\x22\\",
        "-",
        cut(&long, 2048),
    ] {
        let mut entry = request(Direction::Inbound);
        entry.sni = Some(cut(attack, 256).into());
        let request = entry.request.as_mut().unwrap();
        (request.path, request.authority) = (attack.to_owned(), cut(attack, 256).to_owned());
        request.id = Some(cut(attack, 256).to_owned());
        request.headers = vec![
            (http::header::USER_AGENT, cut(attack, 256).to_owned()),
            (http::HeaderName::from_static("x-forwarded-for"), cut(attack, 256).to_owned()),
        ];
        let text = line(Format::IstioText, &entry);
        assert!(text.bytes().all(|octet| matches!(octet, b' '..=b'~')), "{text:?}");
        assert_eq!(text.matches('"').count(), harmless.matches('"').count(), "{text}");
        let outside = |line: &str| line.split('"').step_by(2).collect::<String>().matches(' ').count();
        assert_eq!(outside(&text), outside(&harmless), "{text}");
        let request_line = text.split('"').nth(1).unwrap();
        assert_eq!(request_line.split(' ').count(), 3, "{text}");
        assert!(
            text.starts_with("[2026-01-02T03:04:05.678Z] \"GET ") && text.contains(" HTTP/1.1\" 200 - via_")
        );
        assert!(!text.contains("\"-\" \"-\""), "what was sent does not look absent: {text}");
        assert!(text.len() < 16 << 10);

        let text = line(Format::IstioJson, &entry);
        let acts = |c: char| c.is_control() || "\u{202e}\u{200f}\u{2028}\u{61c}".contains(c);
        assert!(!text.contains(acts), "{text:?}");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value.as_object().unwrap().len(), fields::ISTIO.len());
        assert_eq!((&value["path"], &value["response_code"]), (&attack.into(), &200.into()));
        for key in ["authority", "request_id", "user_agent", "x_forwarded_for", "requested_server_name"] {
            assert_eq!(value[key], cut(attack, 256), "{key}");
        }
    }
}
