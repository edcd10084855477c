//! A line is one line, whatever is in it; the queue never waits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use crate::telemetry::{Direction, Record, Telemetry};
use http::{HeaderMap, Method};

fn request_line(authority: &str, path: &str, request_id: Option<&str>) -> String {
    let mut headers = HeaderMap::new();
    if let Some(id) = request_id {
        headers.insert("x-request-id", id.parse().unwrap());
    }
    let mut entry = Entry::new(
        Direction::Inbound,
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678),
        "10.0.0.1:4000".parse().unwrap(),
        "10.0.0.2:8080".parse().unwrap(),
    );
    entry.request = Some(crate::telemetry::entry::Request {
        method: Method::POST,
        authority: authority.to_owned(),
        path: path.to_owned(),
        id: headers.get("x-request-id").map(|v| v.to_str().unwrap().to_owned()),
    });
    let mut text = Vec::new();
    Lines::default().write(&entry, &mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn a_line_is_one_flat_json_object_whatever_the_caller_sent() {
    for path in [
        "/plain",
        "/quote\"and\\backslash",
        "/new\nline\rand\ttab\0nul",
        "/escape\u{1b}[31mred",
        "/del\u{7f}c1\u{9b}31m",
        "/separators\u{2028}\u{2029}",
        "/bidi\u{202e}gnp.exe",
        "/umlaut-ä-雪",
        "",
    ] {
        let line = request_line("shop.example", path, Some("id-1"));
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.contains(['\u{2028}', '\u{202e}']), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["path"], path);
        assert_eq!(value["timestamp"], "2026-01-02T03:04:05.678Z");
        assert!(value.as_object().unwrap().values().all(|v| !v.is_object() && !v.is_array()));
    }
}

#[test]
fn cutting_keeps_whole_characters() {
    for (text, limit, expected) in
        [("abc", 5, "abc"), ("abc", 3, "abc"), ("abc", 2, "ab"), ("aä", 2, "a"), ("雪", 2, ""), ("", 0, "")]
    {
        assert_eq!(cut(text, limit), expected);
    }
}

#[tokio::test]
async fn what_the_caller_controls_is_bounded_and_the_query_is_left_out() {
    let (sender, mut lines) = mpsc::channel(8);
    let options = crate::telemetry::Options {
        access_log: AccessLogSink::Channel(sender),
        otel: Default::default(),
        service: "shop".into(),
    };
    let (telemetry, _writers) = Telemetry::start(options).unwrap();
    let address = "10.0.0.1:1".parse().unwrap();
    let mut connection = telemetry.connection(Direction::Inbound, address, address);
    let mut request: Record = connection.request();
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", "i".repeat(5000).parse().unwrap());
    headers.insert("cookie", "session=secret".parse().unwrap());
    let path = format!("/{}?token=secret", "p".repeat(5000));
    request.set_request(&Method::GET, &"a".repeat(5000), &path, &headers);
    drop(request);
    let line = lines.recv().await.unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["path"].as_str().unwrap().len(), 2048);
    assert_eq!(value["authority"].as_str().unwrap().len(), 256);
    assert_eq!(value["request_id"].as_str().unwrap().len(), 256);
    assert!(!line.contains("secret"));
}

#[tokio::test]
async fn lines_are_appended_to_a_file_and_flushed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    std::fs::write(&path, "before\n").unwrap();
    let options = crate::telemetry::Options {
        access_log: AccessLogSink::File(path.clone()),
        otel: Default::default(),
        service: "shop".into(),
    };
    let (telemetry, writers) = Telemetry::start(options).unwrap();
    let address = "10.0.0.1:1".parse().unwrap();
    for _ in 0..1000 {
        drop(telemetry.connection(Direction::Outbound, address, address));
    }
    writers.finish().await;
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("before\n"));
    assert_eq!(text.lines().count(), 1001);
}

#[tokio::test]
async fn a_full_queue_drops_and_counts_and_never_waits() {
    let metrics = Arc::new(Metrics::default());
    let queue = Queue::new(metrics.clone());
    let address = "10.0.0.1:1".parse().unwrap();
    for _ in 0..QUEUED + 2 {
        queue.push(Box::new(Entry::new(Direction::Inbound, SystemTime::now(), address, address)));
    }
    assert!(metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 2"));
}
