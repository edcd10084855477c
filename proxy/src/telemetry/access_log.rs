//! The access log: one JSON object a line, formatted and written off the request path.
//!
//! What a caller controls is bounded and escaped; queries, headers and cookies are never written.

use super::{Entry, Metrics};
use crate::bootstrap::AccessLogSink;
use anyhow::Context;
use serde::Serialize;
use std::{fmt::Write, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Entries that may wait for the writer; more are counted and dropped.
const QUEUED: usize = 8192;
/// Entries written with one system call.
const BATCH: usize = 512;
/// Pause after a batch, so that a busy worker does not wake the writer for each line.
const LINGER: Duration = Duration::from_millis(10);
const TIMESTAMP: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The data plane's end of the queue.
#[derive(Clone, Debug)]
pub struct Queue {
    entries: mpsc::Sender<Arc<Entry>>,
    metrics: Arc<Metrics>,
}

impl Queue {
    /// Hands an entry over. Never waits.
    pub fn push(&self, entry: Arc<Entry>) {
        if self.entries.try_send(entry).is_err() {
            self.metrics.access_log_dropped(1);
        }
    }
}

/// Opens the sink and spawns its writer on the current runtime; `None` when the log is off.
///
/// # Errors
/// When the file cannot be opened for appending.
pub fn start(
    sink: AccessLogSink,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<Option<(Queue, JoinHandle<()>)>> {
    let (sender, receiver) = mpsc::channel(QUEUED);
    let queue = Queue { entries: sender, metrics: metrics.clone() };
    let task = match sink {
        AccessLogSink::Off => return Ok(None),
        AccessLogSink::Stdout => tokio::spawn(write_to(tokio::io::stdout(), receiver, metrics, stop)),
        AccessLogSink::File(path) => {
            let file = tokio::fs::File::from_std(open(&path)?);
            tokio::spawn(write_to(file, receiver, metrics, stop))
        }
        AccessLogSink::Channel(lines) => tokio::spawn(send_to(lines, receiver, metrics, stop)),
    };
    Ok(Some((queue, task)))
}

fn open(path: &Path) -> anyhow::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o640).open(path).with_context(|| {
        format!(
            "the access log {} cannot be opened for appending; make its folder writable or choose `--access-log stdout`",
            path.display()
        )
    })
}

async fn write_to(
    mut sink: impl AsyncWrite + Unpin,
    mut entries: mpsc::Receiver<Arc<Entry>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut text = String::new();
    while next(&mut entries, &mut batch, &stop).await {
        text.clear();
        for entry in &batch {
            text.push_str(&line(entry));
            text.push('\n');
        }
        let written = match sink.write_all(text.as_bytes()).await {
            Ok(()) => sink.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written
            && metrics.access_log_dropped(batch.len() as u64)
        {
            tracing::warn!(%error, "access log cannot be written; lines are dropped and counted");
        }
        batch.clear();
        tokio::select! { () = tokio::time::sleep(LINGER) => {}, () = stop.cancelled() => {} }
    }
}

async fn send_to(
    lines: mpsc::Sender<String>,
    mut entries: mpsc::Receiver<Arc<Entry>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut batch = Vec::with_capacity(BATCH);
    while next(&mut entries, &mut batch, &stop).await {
        for entry in batch.drain(..) {
            if lines.try_send(line(&entry)).is_err() {
                metrics.access_log_dropped(1);
            }
        }
    }
}

/// Fills `batch`; `false` when asked to stop and nothing is left.
async fn next(
    entries: &mut mpsc::Receiver<Arc<Entry>>,
    batch: &mut Vec<Arc<Entry>>,
    stop: &CancellationToken,
) -> bool {
    if !stop.is_cancelled() {
        tokio::select! {
            count = entries.recv_many(batch, BATCH) => return count > 0,
            () = stop.cancelled() => {}
        }
    }
    entries.close();
    entries.recv_many(batch, BATCH).await > 0
}

/// One entry as one line of JSON, without the newline.
pub fn line(entry: &Entry) -> String {
    let request = entry.request.as_ref();
    let decided = entry.decided.as_ref();
    let would = decided.and_then(|decided| decided.would.as_deref());
    let line = Line {
        timestamp: OffsetDateTime::from(entry.began).format(TIMESTAMP).unwrap_or_default(),
        direction: entry.direction.as_str(),
        protocol: entry.protocol,
        method: request.map(|request| cut(request.method.as_str(), super::record::TEXT_KEPT)),
        authority: request.map(|request| request.authority.as_str()),
        path: request.map(|request| request.path.as_str()),
        status: entry.status,
        grpc_status: entry.grpc_status,
        flags: entry.flag,
        reason: entry.reason.as_deref().map(|reason| cut(reason, super::record::REASON_KEPT)),
        source_principal: entry.source_principal.as_deref(),
        destination_principal: entry.destination_principal.as_deref(),
        source_address: entry.source_address,
        destination_address: entry.destination_address,
        destination_service: entry.destination_service.as_deref(),
        upstream_address: entry.upstream_address,
        decision: decided.map(|decided| if decided.is_allowed { "allow" } else { "deny" }),
        decision_id: decided.and_then(|decided| decided.id.as_deref()),
        policy: decided.and_then(|decided| decided.policy.as_deref()),
        rule: decided.and_then(|decided| decided.rule),
        decision_reason: decided.map(|decided| decided.reason),
        would_decision: would.map(|would| if would.is_allowed { "allow" } else { "deny" }),
        would_policy: would.and_then(|would| would.policy.as_deref()),
        would_rule: would.and_then(|would| would.rule),
        audit_policy: decided.and_then(|decided| decided.audit_policy.as_deref()),
        policy_version: decided.map(|decided| decided.version.as_str()),
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        duration_us: micros(entry.duration),
        proxy_us: micros(entry.proxy),
        trace_id: entry.trace.map(|trace| trace.trace_id_hex()),
        span_id: entry.trace.map(|trace| trace.span_id_hex()),
        tls_version: entry.tls_version,
        sni: entry.sni.as_deref(),
        request_id: request.and_then(|request| request.id.as_deref()),
    };
    // Serializing a struct of texts and numbers has no way to fail.
    printable(serde_json::to_string(&line).unwrap_or_default())
}

/// The fields, in the order in which people read them. Absent ones are left out.
#[derive(Serialize)]
struct Line<'a> {
    timestamp: String,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u16>,
    flags: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_principal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_principal: Option<&'a str>,
    source_address: SocketAddr,
    destination_address: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_service: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_address: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_decision: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    would_rule: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    audit_policy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_version: Option<&'a str>,
    bytes_received: u64,
    bytes_sent: u64,
    duration_us: u64,
    proxy_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_version: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// At most `limit` bytes of `text`, never half a character.
pub fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

/// JSON escapes what is below U+0020; terminals and line readers act on more than that. All of these can stand only
/// inside strings, so escaping them keeps the JSON what it is.
fn printable(json: String) -> String {
    let acts = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if !json.contains(acts) {
        return json;
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if acts(c) {
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::telemetry::{Direction, Record, Telemetry};
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
        });
        line(&entry)
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
        for (text, limit, expected) in [
            ("abc", 5, "abc"),
            ("abc", 3, "abc"),
            ("abc", 2, "ab"),
            ("aä", 2, "a"),
            ("雪", 2, ""),
            ("", 0, ""),
        ] {
            assert_eq!(cut(text, limit), expected);
        }
    }

    #[tokio::test]
    async fn what_the_caller_controls_is_bounded_and_the_query_is_left_out() {
        let (sender, mut lines) = mpsc::channel(8);
        let options = crate::telemetry::Options {
            access_log: AccessLogSink::Channel(sender),
            otlp_endpoint: None,
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
            otlp_endpoint: None,
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
        let (sender, _receiver) = mpsc::channel(1);
        let queue = Queue { entries: sender, metrics: metrics.clone() };
        let address = "10.0.0.1:1".parse().unwrap();
        for _ in 0..3 {
            queue.push(Arc::new(Entry::new(Direction::Inbound, SystemTime::now(), address, address)));
        }
        assert!(metrics.encode(SystemTime::now()).contains("postern_access_log_dropped_total 2"));
    }
}
