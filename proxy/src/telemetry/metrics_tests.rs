//! What the series are called, and that their number is bounded.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::telemetry::request_metrics::SERIES;
use std::time::Duration;

fn entry(principal: &str) -> Entry {
    let address = "10.0.0.1:1".parse().unwrap();
    let mut entry = Entry::new(Direction::Inbound, SystemTime::now(), address, address);
    entry.source_principal = Some(Arc::from(principal));
    entry
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
    let other = text.lines().find(|line| line.contains("source_principal=\"other\"")).unwrap();
    assert!(other.ends_with(" 500"), "{other}");
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
    assert!(metrics.encode(at + Duration::from_secs(2)).contains("postern_control_plane_age_seconds 0.0"));
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
        "istio_requests_total{reporter=\"destination\",source_principal=\"spiffe://td/ns/n/sa/s\"",
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
