//! What the series are called, and that their number is bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::telemetry::request_metrics::{HISTOGRAMS, SERIES};
use std::time::Duration;

fn entry(principal: &str) -> Entry {
    let address = "10.0.0.1:1".parse().unwrap();
    let mut entry = Entry::new(Direction::Inbound, SystemTime::now(), address, address);
    entry.source_principal = Some(Arc::from(principal));
    entry.request = Some(crate::telemetry::entry::Request {
        method: http::Method::GET,
        authority: "shop".into(),
        path: "/".into(),
        id: None,
        headers: Default::default(),
        noted: Default::default(),
    });
    entry
}

/// The value of the one series that has all these labels.
fn value(text: &str, name: &str, labels: &[&str]) -> String {
    let is_it = |line: &&str| line.starts_with(name) && labels.iter().all(|label| line.contains(label));
    let mut found = text.lines().filter(is_it);
    let line = found.next().unwrap_or_else(|| panic!("{name} {labels:?} is missing in\n{text}"));
    assert_eq!(found.next(), None, "{name} {labels:?}");
    line.rsplit(' ').next().unwrap().to_owned()
}

#[test]
fn the_number_of_series_is_bounded_and_nothing_is_lost() {
    let metrics = Metrics::default();
    for number in 0..SERIES + 500 {
        metrics.observe(&entry(&format!("spiffe://td/ns/n/sa/{number}")));
    }
    let text = metrics.encode(SystemTime::now());
    let series = text.lines().filter(|line| line.starts_with("istio_requests_total{")).count();
    assert_eq!(series, SERIES + 1);
    assert_eq!(value(&text, "istio_requests_total{", &["source_principal=\"other\""]), "500");
    assert_eq!(value(&text, "postern_metric_overflow_total{", &["bound=\"series\""]), "500");
    // Histograms are bounded far below that.
    let name = "istio_request_bytes_count{";
    assert_eq!(text.lines().filter(|line| line.starts_with(name)).count(), HISTOGRAMS + 1);
    let rest = (SERIES + 500 - HISTOGRAMS).to_string();
    assert_eq!(value(&text, name, &["source_workload=\"other\""]), rest);
    assert_eq!(value(&text, "postern_metric_overflow_total{", &["bound=\"histograms\""]), rest);
    assert_eq!(value(&text, "postern_proxy_seconds_count{", &["reporter=\"destination\""]), "2000");
}

#[test]
fn dry_run_differences_are_bounded_and_none_is_lost() {
    let metrics = Metrics::default();
    for number in 0..DIFFERENCES + 7 {
        let mut entry = entry(&format!("spiffe://td/ns/n/sa/{number}"));
        let would =
            Would { is_allowed: false, policy: Some("n/p".into()), rule: None, workload: "n/w".into() };
        entry.decided = Some(crate::telemetry::entry::Decided {
            is_allowed: true,
            id: None,
            rule: None,
            reason: "",
            version: "".into(),
            would: Some(Box::new(would)),
            audit: None,
        });
        metrics.observe(&entry);
    }
    let text = metrics.encode(SystemTime::now());
    let lines = || text.lines().filter(|line| line.starts_with("postern_dry_run_differences_total{"));
    assert_eq!(lines().count(), DIFFERENCES + 1);
    assert!(lines().any(|line| line.contains("policy=\"other\"") && line.ends_with(" 7")), "{text}");
}

#[test]
fn the_age_of_what_we_know_grows_until_the_control_plane_is_heard_again() {
    let metrics = Metrics::default();
    let at = UNIX_EPOCH + Duration::from_secs(1000);
    metrics.control_plane_heard(at);
    let text = metrics.encode(at + Duration::from_millis(2500));
    assert!(text.contains("postern_control_plane_age_seconds 2.5"), "{text}");
    metrics.control_plane_heard(at + Duration::from_secs(2));
    assert!(metrics.encode(at + Duration::from_secs(2)).contains("postern_control_plane_age_seconds 0\n"));
}

#[test]
fn names_of_series_are_what_users_know() {
    let metrics = Metrics::default();
    metrics.observe(&entry("spiffe://td/ns/n/sa/s"));
    metrics.set_policy_version("v1");
    metrics.set_policy_version("v2");
    metrics.set_certificate(UNIX_EPOCH + Duration::from_secs(7), UNIX_EPOCH + Duration::from_secs(77));
    let text = metrics.encode(SystemTime::now());
    for wanted in [
        "istio_requests_total{reporter=\"destination\",source_workload=\"s\",source_workload_namespace=\"n\",source_principal=\"spiffe://td/ns/n/sa/s\"",
        "connection_security_policy=\"mutual_tls\"",
        "postern_proxy_seconds_bucket{le=\"0.000025\"",
        "postern_policy_version_info{version=\"v2\"} 1",
        "postern_certificate_expiry_timestamp_seconds 77",
        "postern_certificate_not_before_timestamp_seconds 7",
        "postern_access_log_dropped_total 0",
    ] {
        assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
    }
    assert!(!text.contains("version=\"v1\""));
}

#[test]
fn a_request_has_the_labels_that_istios_dashboards_ask_for() {
    let metrics = Metrics::default();
    metrics.set_workload(&Workload {
        namespace: "shop".into(),
        name: "web-7d9f-x2x4".into(),
        service_account: "web".into(),
        labels: [("app".to_owned(), "web-app".to_owned()), ("version".to_owned(), "v2".to_owned())].into(),
        ..Workload::default()
    });
    let mut call = entry("spiffe://td/ns/shop/sa/web");
    call.direction = Direction::Outbound;
    call.destination_principal = Some("spiffe://td/ns/pay/sa/cards".into());
    call.destination_service = Some("cards.pay.svc.cluster.local".into());
    (call.protocol, call.status, call.grpc_status) = (Some("grpc"), Some(200), Some(7));
    (call.duration, call.bytes_received, call.bytes_sent) = (Duration::from_millis(3), 150, 50);
    metrics.observe(&call);
    let text = metrics.encode(SystemTime::now());
    let long = [
        "reporter=\"source\"",
        "source_workload=\"web\"",
        "source_workload_namespace=\"shop\"",
        "source_principal=\"spiffe://td/ns/shop/sa/web\"",
        "source_app=\"web-app\"",
        "source_version=\"v2\"",
        "source_canonical_service=\"web-app\"",
        "source_canonical_revision=\"v2\"",
        "destination_workload=\"cards\"",
        "destination_workload_namespace=\"pay\"",
        "destination_principal=\"spiffe://td/ns/pay/sa/cards\"",
        "destination_service=\"cards.pay.svc.cluster.local\"",
        "destination_service_name=\"cards\"",
        "destination_service_namespace=\"pay\"",
        "request_protocol=\"grpc\"",
        "response_code=\"200\"",
        "grpc_response_status=\"7\"",
        "response_flags=\"-\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert_eq!(value(&text, "istio_requests_total{", &long), "1");
    let short = ["destination_workload=\"cards\"", "source_workload=\"web\""];
    let up_to = |name: &str, le: &str| value(&text, name, &[&format!("le=\"{le}\""), short[0], short[1]]);
    assert_eq!(up_to("istio_request_duration_milliseconds_bucket{", "2.5"), "0");
    assert_eq!(up_to("istio_request_duration_milliseconds_bucket{", "5.0"), "1");
    assert_eq!(value(&text, "istio_request_duration_milliseconds_sum{", &short), "3");
    assert_eq!(up_to("istio_request_bytes_bucket{", "100.0"), "0");
    assert_eq!(up_to("istio_request_bytes_bucket{", "+Inf"), "1");
    assert_eq!(up_to("istio_response_bytes_bucket{", "100.0"), "1");
}

#[test]
fn what_threads_count_apart_is_added_up() {
    let metrics = Metrics::default();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let metrics = &metrics;
            scope.spawn(move || {
                for number in 0..1000 {
                    metrics.observe(&entry(&format!("spiffe://td/ns/n/sa/{}", (number + thread) % 20)));
                }
            });
        }
    });
    let text = metrics.encode(SystemTime::now());
    for account in 0..20 {
        let principal = format!("sa/{account}\"");
        assert_eq!(value(&text, "istio_requests_total{", &[&principal]), "200", "{account}");
    }
}

#[test]
fn a_connection_without_requests_is_counted_as_tcp_and_nowhere_else() {
    let metrics = Metrics::default();
    let mut tcp = entry("spiffe://td/ns/n/sa/s");
    (tcp.request, tcp.protocol, tcp.bytes_received, tcp.bytes_sent) = (None, Some("tcp"), 7, 9);
    metrics.observe(&tcp);
    let text = metrics.encode(SystemTime::now());
    for (name, expected) in [("connections_closed", "1"), ("received_bytes", "7"), ("sent_bytes", "9")] {
        let name = format!("istio_tcp_{name}_total{{");
        assert_eq!(value(&text, &name, &["source_workload=\"s\"", "request_protocol=\"tcp\""]), expected);
    }
    assert!(
        !text.contains("istio_requests_total{") && !text.contains("istio_request_bytes_count{"),
        "{text}"
    );
}

#[test]
fn what_a_caller_can_vary_makes_no_series() {
    let metrics = Metrics::default();
    metrics.observe(&entry("spiffe://td/ns/n/sa/s"));
    let lines = || metrics.encode(UNIX_EPOCH).lines().count();
    let before = lines();
    for number in 0..10_000 {
        let mut entry = entry("spiffe://td/ns/n/sa/s");
        let request = entry.request.as_mut().unwrap();
        request.path = format!("/{number}");
        request.authority = format!("host-{number}");
        request.method = http::Method::from_bytes(format!("M{number}").as_bytes()).unwrap();
        request.id = Some(number.to_string());
        entry.sni = Some(number.to_string().into());
        (entry.status, entry.grpc_status) = (Some(1000 + number % 1000), Some(17 + number % 1000));
        entry.source_address.set_port(number);
        metrics.observe(&entry);
    }
    assert_eq!(lines(), before, "{}", metrics.encode(UNIX_EPOCH));
}
