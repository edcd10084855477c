//! A line is one line, whatever is in it; the queue never waits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{
    queue::{QUEUED, UNWRITTEN},
    *,
};
use crate::{
    bootstrap::access_log::Format,
    telemetry::{Direction, Entry, Record, Telemetry},
};
use http::{HeaderMap, Method};
use std::time::SystemTime;

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
        headers: vec![],
        noted: None,
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
        "/marks\u{200f}\u{200e}\u{61c}",
        "/umlaut-ä-雪",
        "",
    ] {
        let line = request_line("shop.example", path, Some("id-1"));
        assert!(!line.chars().any(char::is_control), "{line:?}");
        assert!(!line.contains(['\u{2028}', '\u{202e}', '\u{200f}', '\u{61c}']), "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["url.path"], path);
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
        access_log_lines: Written::default(),
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
    assert_eq!(value["url.path"].as_str().unwrap().len(), 2048);
    assert_eq!(value["server.address"].as_str().unwrap().len(), 256);
    assert_eq!(value["postern.request.id"].as_str().unwrap().len(), 256);
    assert!(!line.contains("secret"));
}

#[tokio::test]
async fn lines_are_appended_to_a_file_and_flushed_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.log");
    std::fs::write(&path, "before\n").unwrap();
    let options = crate::telemetry::Options {
        access_log: AccessLogSink::File(path.clone()),
        access_log_lines: Written::default(),
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
    let queue = Queue::new(metrics.clone(), &Written::default());
    let address = "10.0.0.1:1".parse().unwrap();
    for _ in 0..QUEUED + 2 {
        queue.push(Box::new(Entry::new(Direction::Inbound, SystemTime::now(), address, address)));
    }
    assert!(metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 2"));
}

fn entry() -> Box<Entry> {
    let address = "10.0.0.1:1".parse().unwrap();
    Box::new(Entry::new(Direction::Inbound, SystemTime::now(), address, address))
}

#[tokio::test]
async fn a_lossless_log_holds_new_work_while_its_folder_is_gone_and_loses_no_line() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("logs");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("access.log");
    let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
    let written = Written { audit: Audit::Lossless, ..Written::default() };
    let (queue, writer) =
        start(AccessLogSink::File(path.clone()), &written, metrics.clone(), stop.clone()).unwrap().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    for _ in 0..UNWRITTEN {
        assert!(queue.has_room());
        queue.push(entry());
    }
    assert!(!queue.has_room());
    assert!(tokio::time::timeout(3 * AGAIN, queue.room()).await.is_err(), "nothing can be written");
    // What was under way is taken all the same.
    queue.push(entry());
    std::fs::create_dir(&folder).unwrap();
    tokio::time::timeout(Duration::from_secs(5), queue.room()).await.expect("room again");
    stop.cancel();
    writer.await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), UNWRITTEN + 1);
    assert!(metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 0"));
}

#[tokio::test]
async fn a_lossless_log_that_cannot_be_written_at_the_end_says_how_much_was_lost() {
    let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
    let written = Written { audit: Audit::Lossless, ..Written::default() };
    let sink = AccessLogSink::File("/dev/full".into());
    let (queue, writer) = start(sink, &written, metrics.clone(), stop.clone()).unwrap().unwrap();
    queue.push(entry());
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), writer).await.expect("it ends").unwrap();
    assert!(metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 1"));
    assert!(start(AccessLogSink::Off, &written, metrics, stop).is_err());
}

#[tokio::test]
async fn a_file_whose_folder_is_gone_drops_and_counts_and_goes_on_when_it_is_back() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("logs");
    std::fs::create_dir(&folder).unwrap();
    let path = folder.join("access.log");
    let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
    let (queue, writer) =
        start(AccessLogSink::File(path.clone()), &Written::default(), metrics.clone(), stop.clone())
            .unwrap()
            .unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    queue.push(entry());
    let lost = async {
        while !metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 1") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), lost).await.expect("it is counted");
    std::fs::create_dir(&folder).unwrap();
    queue.push(entry());
    stop.cancel();
    writer.await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[tokio::test]
async fn only_headers_that_are_named_are_in_a_line_and_their_values_are_cut() {
    let (sender, mut lines) = mpsc::channel(8);
    let headers = vec![http::header::USER_AGENT, http::HeaderName::from_static("x-tenant")];
    let options = crate::telemetry::Options {
        access_log: AccessLogSink::Channel(sender),
        access_log_lines: Written { headers, ..Written::default() },
        otel: Default::default(),
        service: "shop".into(),
    };
    let (telemetry, _writers) = Telemetry::start(options).unwrap();
    let address = "10.0.0.1:1".parse().unwrap();
    let mut request = telemetry.connection(Direction::Inbound, address, address).request();
    let mut headers = HeaderMap::new();
    headers.append("user-agent", http::HeaderValue::from_bytes(b"a\xff\xfe\"b").unwrap());
    headers.append("user-agent", "second".parse().unwrap());
    headers.append("x-tenant", "\u{96ea}".repeat(5000).parse().unwrap());
    headers.append("x-other", "secret".parse().unwrap());
    request.set_request(&Method::GET, "a", "/", &headers);
    drop(request);
    let line = lines.recv().await.unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["http.request.header.user-agent"], "a\u{fffd}\u{fffd}\"b,second");
    assert_eq!(value["http.request.header.x-tenant"].as_str().unwrap().len(), 255, "never half a character");
    assert!(!line.contains("secret"));
}

#[tokio::test]
async fn the_format_is_that_of_the_mesh_unless_the_command_line_names_one() {
    for (named, expected) in
        [(None, "[20"), (Some(Format::Json), "{\"timestamp\""), (Some(Format::IstioJson), "{\"authority\"")]
    {
        let (sender, mut lines) = mpsc::channel(8);
        let written = Written { format: named, ..Written::default() };
        let (metrics, stop) = (Arc::new(Metrics::default()), CancellationToken::new());
        let (queue, _writer) =
            start(AccessLogSink::Channel(sender), &written, metrics, stop).unwrap().unwrap();
        queue.set_format(Format::IstioText);
        queue.push(entry());
        let line = lines.recv().await.unwrap();
        assert!(line.starts_with(expected), "{named:?}: {line}");
    }
}
