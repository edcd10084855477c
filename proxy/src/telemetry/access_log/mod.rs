//! The access log: one line for each request or connection, formatted and written off the request path.
//!
//! What a caller controls is bounded and escaped; queries and cookies are never written, headers only when they are named.

mod escape;
pub mod fields;
pub(super) mod istio;
mod json;
mod lines;
mod queue;
mod sink;

pub use lines::Lines;
pub use queue::Queue;

use super::Metrics;
use crate::bootstrap::{
    AccessLogSink, Failure,
    access_log::{Audit, Written},
};
use queue::Taken;
use sink::Sink;
use std::{sync::Arc, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Between two tries to write, and between two looks whether it is time to stop, when no line may be lost.
const AGAIN: Duration = Duration::from_millis(100);
/// Tries to write the last lines of a lossless log when it is time to stop.
const LAST_TRIES: u32 = 20;

/// Opens the sink and spawns its writer on the current runtime; `None` when the log is off.
///
/// # Errors
/// When the file cannot be opened for appending, or no line may be lost and all are.
pub fn start(
    sink: AccessLogSink,
    written: &Written,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<Option<(Queue, JoinHandle<()>)>> {
    let queue = Queue::new(metrics, written);
    let writer = Writer { lines: Lines::default(), queue: queue.clone(), audit: written.audit, stop };
    let task = match sink {
        AccessLogSink::Off if written.audit == Audit::Lossless => {
            return Err(Failure::error(
                "no line of the access log may be lost, and it is off.",
                "Give `--access-log` a place beside `--audit lossless`.",
            ));
        }
        AccessLogSink::Off => return Ok(None),
        AccessLogSink::Stdout => tokio::spawn(writer.write_to(Sink::stdout()?)),
        AccessLogSink::File(path) => tokio::spawn(writer.write_to(Sink::file(path)?)),
        AccessLogSink::Channel(lines) => tokio::spawn(writer.send_to(lines)),
    };
    Ok(Some((queue, task)))
}

/// Takes entries from the queue and makes lines of them.
struct Writer {
    lines: Lines,
    queue: Queue,
    audit: Audit,
    stop: CancellationToken,
}

impl Writer {
    async fn write_to(mut self, mut sink: Sink) {
        let (mut batch, mut text, mut is_stuck) = (Taken::default(), Vec::new(), false);
        let mut last_tries = LAST_TRIES;
        while self.queue.next(&mut batch, &self.stop).await {
            self.lines.set_format(self.queue.format());
            for entry in batch.drain() {
                self.lines.write(&entry, &mut text);
                text.push(b'\n');
            }
            while !text.is_empty() {
                let before = count(&text);
                // The calls of a file block, all of them.
                let appended = tokio::task::spawn_blocking(move || {
                    let result = sink.append(&mut text);
                    (sink, text, result)
                });
                let Ok((same, rest, result)) = appended.await else {
                    return tracing::error!("the writer of the access log ended by a bug; please report it");
                };
                (sink, text) = (same, rest);
                self.queue.written(before - count(&text));
                let Err(error) = result else {
                    is_stuck = false;
                    break;
                };
                if self.audit == Audit::BestEffort || last_tries == 0 {
                    self.dropped(sink.drop_lines(&mut text), &error);
                    break;
                }
                if !std::mem::replace(&mut is_stuck, true) {
                    tracing::warn!(%error, "access log cannot be written; new work waits for it");
                }
                last_tries -= u32::from(self.stop.is_cancelled());
                tokio::time::sleep(AGAIN).await;
            }
            self.queue.linger(&self.stop).await;
        }
        // One that was begun and never got its room.
        self.queue.metrics().access_log_dropped(count(&text) as u64);
    }

    async fn send_to(mut self, sink: mpsc::Sender<String>) {
        let mut batch = Taken::default();
        while self.queue.next(&mut batch, &self.stop).await {
            self.lines.set_format(self.queue.format());
            for entry in batch.drain() {
                let mut line = Vec::new();
                self.lines.write(&entry, &mut line);
                let line = String::from_utf8(line).unwrap_or_default();
                let is_sent = match self.audit {
                    Audit::BestEffort => sink.try_send(line).is_ok(),
                    Audit::Lossless => sink.send(line).await.is_ok(),
                };
                if !is_sent {
                    self.queue.metrics().access_log_dropped(1);
                }
                self.queue.written(1);
            }
        }
    }

    fn dropped(&self, count: u64, error: &std::io::Error) {
        self.queue.written(count as usize);
        if count > 0 && self.queue.metrics().access_log_dropped(count) {
            tracing::warn!(%error, "access log cannot be written; lines are dropped and counted");
        }
    }
}

fn count(text: &[u8]) -> usize {
    memchr::memchr_iter(b'\n', text).count()
}

/// At most `limit` bytes of `text`, never half a character.
pub fn cut(text: &str, limit: usize) -> &str {
    text.get(..text.floor_char_boundary(limit)).unwrap_or(text)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
