//! The access log: one JSON object a line, formatted and written off the request path.
//!
//! What a caller controls is bounded and escaped; queries, headers and cookies are never written.

use super::{Entry, Metrics, entry::Entries, trace_context::hex};
use crate::bootstrap::AccessLogSink;
use anyhow::Context;
use parking_lot::Mutex;
use postern_config::RuleRef;
use std::{
    fmt::Write,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};
use time::{OffsetDateTime, format_description::BorrowedFormatItem, macros::format_description};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// Entries that may wait for the writer in one lane; more are counted and dropped.
const QUEUED: usize = 8192;
/// Entries in one lane that bring the writer before its time.
const PLENTY: usize = 1024;
/// Lanes; a thread keeps to its own, so that workers do not wait for each other.
const LANES: usize = 8;
/// How long the writer gathers after a batch: waking it for each line would cost more than the line.
const LINGER: Duration = Duration::from_millis(100);
const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]");

/// The data plane's end of the queue. Clones are the same queue.
#[derive(Clone, Debug)]
pub struct Queue(Arc<Waiting>);

#[derive(Debug)]
struct Waiting {
    lanes: [Mutex<Entries>; LANES],
    /// There is something.
    news: Notify,
    /// There is so much that the writer must not linger.
    plenty: Notify,
    metrics: Arc<Metrics>,
}

thread_local! {
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

impl Queue {
    fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Waiting {
            lanes: Default::default(),
            news: Notify::new(),
            plenty: Notify::new(),
            metrics,
        }))
    }

    /// Hands an entry over. Never waits for the sink.
    pub fn push(&self, entry: Box<Entry>) {
        let Some(lane) = self.0.lanes.get(LANE.with(|lane| *lane)) else { return };
        let mut lane = lane.lock();
        if lane.len() >= QUEUED {
            drop(lane);
            self.0.metrics.access_log_dropped(1);
            return;
        }
        lane.push(entry);
        let waiting = lane.len();
        drop(lane);
        if waiting == 1 {
            self.0.news.notify_one();
        } else if waiting == PLENTY {
            self.0.plenty.notify_one();
        }
    }

    /// Waits until there is something or it is time to stop, then moves all of it into `batch`; `false` when asked to stop and
    /// nothing is left.
    async fn next(&self, batch: &mut Entries, stop: &CancellationToken) -> bool {
        let is_over = stop.is_cancelled();
        if !is_over {
            tokio::select! { () = self.0.news.notified() => {}, () = stop.cancelled() => {} }
        }
        for lane in &self.0.lanes {
            batch.append(&mut lane.lock());
        }
        !(is_over && batch.is_empty())
    }

    async fn linger(&self, stop: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(LINGER) => {}
            () = self.0.plenty.notified() => {}
            () = stop.cancelled() => {}
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
    let queue = Queue::new(metrics);
    let task = match sink {
        AccessLogSink::Off => return Ok(None),
        AccessLogSink::Stdout => tokio::spawn(write_to(tokio::io::stdout(), queue.clone(), stop)),
        AccessLogSink::File(path) => {
            let file = tokio::fs::File::from_std(open(&path)?);
            tokio::spawn(write_to(file, queue.clone(), stop))
        }
        AccessLogSink::Channel(lines) => tokio::spawn(send_to(lines, queue.clone(), stop)),
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

async fn write_to(mut sink: impl AsyncWrite + Unpin, queue: Queue, stop: CancellationToken) {
    let (mut batch, mut text, mut lines) = (Vec::new(), Vec::new(), Lines::default());
    while queue.next(&mut batch, &stop).await {
        let count = batch.len();
        for entry in batch.drain(..) {
            lines.write(&entry, &mut text);
            text.push(b'\n');
        }
        let written = match sink.write_all(&text).await {
            Ok(()) => sink.flush().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written
            && queue.0.metrics.access_log_dropped(count as u64)
        {
            tracing::warn!(%error, "access log cannot be written; lines are dropped and counted");
        }
        text.clear();
        queue.linger(&stop).await;
    }
}

async fn send_to(sink: mpsc::Sender<String>, queue: Queue, stop: CancellationToken) {
    let (mut batch, mut lines) = (Vec::new(), Lines::default());
    while queue.next(&mut batch, &stop).await {
        for entry in batch.drain(..) {
            let mut line = Vec::new();
            lines.write(&entry, &mut line);
            // JSON is UTF-8.
            if sink.try_send(String::from_utf8(line).unwrap_or_default()).is_err() {
                queue.0.metrics.access_log_dropped(1);
            }
        }
    }
}

/// The name of a field with all that stands before its value, in one piece: a line has thirty of them.
macro_rules! name {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// Makes lines. It keeps the second it has written last, since most lines of a batch begin in the same one.
#[derive(Debug, Default)]
pub struct Lines {
    second: i64,
    date: String,
}

impl Lines {
    /// Appends one entry as one line of JSON, without the newline. The fields stand in the order in which people read them, and
    /// absent ones are left out.
    pub fn write(&mut self, entry: &Entry, text: &mut Vec<u8>) {
        let request = entry.request.as_ref();
        let decided = entry.decided.as_ref();
        let would = decided.and_then(|decided| decided.would.as_deref());
        let verdict = |is_allowed| if is_allowed { "allow" } else { "deny" };
        let mut line = Line(text);
        line.0.extend_from_slice(b"{\"timestamp\":\"");
        self.timestamp(entry.began, line.0);
        line.0.push(b'"');
        line.word(name!("direction"), Some(entry.direction.as_str()));
        line.word(name!("protocol"), entry.protocol);
        line.text(
            name!("method"),
            request.map(|request| cut(request.method.as_str(), super::record::TEXT_KEPT)),
        );
        line.text(name!("authority"), request.map(|request| request.authority.as_str()));
        line.text(name!("path"), request.map(|request| request.path.as_str()));
        line.number(name!("status"), entry.status.map(u64::from));
        line.number(name!("grpc_status"), entry.grpc_status.map(u64::from));
        line.word(name!("flags"), Some(entry.flag));
        line.text(
            name!("reason"),
            entry.reason.as_deref().map(|reason| cut(reason, super::record::REASON_KEPT)),
        );
        line.word(name!("source_principal"), entry.source_principal.as_deref());
        line.word(name!("destination_principal"), entry.destination_principal.as_deref());
        line.address(name!("source_address"), Some(entry.source_address));
        line.address(name!("destination_address"), Some(entry.destination_address));
        line.text(name!("destination_service"), entry.destination_service.as_deref());
        line.address(name!("upstream_address"), entry.upstream_address);
        line.word(name!("decision"), decided.map(|decided| verdict(decided.is_allowed)));
        line.text(name!("decision_id"), decided.and_then(|decided| decided.id.as_deref()));
        line.policy(name!("policy"), decided.and_then(|decided| decided.rule.as_deref()));
        line.number(
            name!("rule"),
            decided.and_then(|decided| decided.rule.as_ref()).map(|rule| rule.rule as u64),
        );
        line.word(name!("decision_reason"), decided.map(|decided| decided.reason));
        line.word(name!("would_decision"), would.map(|would| verdict(would.is_allowed)));
        line.text(name!("would_policy"), would.and_then(|would| would.policy.as_deref()));
        line.number(name!("would_rule"), would.and_then(|would| would.rule).map(|rule| rule as u64));
        line.policy(name!("audit_policy"), decided.and_then(|decided| decided.audit.as_deref()));
        line.text(name!("policy_version"), decided.map(|decided| &*decided.version));
        line.number(name!("bytes_received"), Some(entry.bytes_received));
        line.number(name!("bytes_sent"), Some(entry.bytes_sent));
        line.number(name!("duration_us"), Some(micros(entry.duration)));
        line.number(name!("proxy_us"), Some(micros(entry.proxy)));
        if let Some(trace) = entry.trace {
            line.hex(name!("trace_id"), &trace.trace_id.to_be_bytes());
            line.hex(name!("span_id"), &trace.span_id.to_be_bytes());
        }
        line.word(name!("tls_version"), entry.tls_version);
        line.text(name!("sni"), entry.sni.as_deref());
        line.text(name!("request_id"), request.and_then(|request| request.id.as_deref()));
        line.0.push(b'}');
    }

    /// `2026-01-02T03:04:05.678Z`
    fn timestamp(&mut self, at: SystemTime, text: &mut Vec<u8>) {
        let at = OffsetDateTime::from(at);
        if self.date.is_empty() || self.second != at.unix_timestamp() {
            self.second = at.unix_timestamp();
            self.date = at.format(DATE).unwrap_or_default();
        }
        text.extend_from_slice(self.date.as_bytes());
        let millis = at.millisecond();
        text.push(b'.');
        text.extend([millis / 100, millis / 10 % 10, millis % 10].map(|digit| b'0' + digit as u8));
        text.push(b'Z');
    }
}

/// A JSON object in the making, field after field.
struct Line<'t>(&'t mut Vec<u8>);

impl Line<'_> {
    fn name(&mut self, name: &str) {
        self.0.extend_from_slice(name.as_bytes());
    }

    /// A text of ours, or a SPIFFE ID: neither has anything to escape.
    fn word(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.name(name);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    /// `namespace/name`; no text is made of the two when there is nothing to escape.
    fn policy(&mut self, name: &str, rule: Option<&RuleRef>) {
        let Some(rule) = rule else { return };
        if is_plain(&rule.namespace) && is_plain(&rule.policy) {
            self.name(name);
            self.0.push(b'"');
            self.0.extend_from_slice(rule.namespace.as_bytes());
            self.0.push(b'/');
            self.0.extend_from_slice(rule.policy.as_bytes());
            self.0.push(b'"');
        } else {
            self.text(name, Some(&format!("{}/{}", rule.namespace, rule.policy)));
        }
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        let Some(value) = value else { return };
        self.name(name);
        if is_plain(value) {
            self.0.push(b'"');
            self.0.extend_from_slice(value.as_bytes());
            self.0.push(b'"');
        } else {
            // Serializing a text has no way to fail.
            let json = serde_json::to_string(value).unwrap_or_default();
            self.0.extend_from_slice(printable(&json).as_bytes());
        }
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        let Some(value) = value else { return };
        self.name(name);
        decimal(value, self.0);
    }

    fn address(&mut self, name: &str, value: Option<SocketAddr>) {
        let Some(value) = value else { return };
        self.name(name);
        self.0.push(b'"');
        match value {
            SocketAddr::V4(address) => {
                for (place, octet) in address.ip().octets().into_iter().enumerate() {
                    if place > 0 {
                        self.0.push(b'.');
                    }
                    decimal(u64::from(octet), self.0);
                }
                self.0.push(b':');
                decimal(u64::from(address.port()), self.0);
            }
            SocketAddr::V6(address) => self.0.extend_from_slice(address.to_string().as_bytes()),
        }
        self.0.push(b'"');
    }

    fn hex(&mut self, name: &str, bytes: &[u8]) {
        self.name(name);
        self.0.push(b'"');
        hex(bytes, self.0);
        self.0.push(b'"');
    }
}

/// Whether JSON takes it as it is.
fn is_plain(value: &str) -> bool {
    value.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\')
}

fn decimal(mut value: u64, text: &mut Vec<u8>) {
    let begin = text.len();
    loop {
        text.push(b'0' + (value % 10) as u8);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    if let Some(digits) = text.get_mut(begin..) {
        digits.reverse();
    }
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
fn printable(json: &str) -> String {
    let acts = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
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
#[path = "access_log_tests.rs"]
mod tests;
