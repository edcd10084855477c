//! Between those who serve and the one who writes.

use super::super::{
    Metrics,
    entry::{Entries, Entry},
};
use crate::bootstrap::access_log::{Audit, Format, Written};
use parking_lot::Mutex;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Entries that may wait for the writer in one lane; more are counted and dropped.
pub(super) const QUEUED: usize = 8192;
/// Entries in one lane that bring the writer before its time.
const PLENTY: usize = 1024;
/// Lanes; a thread keeps to its own, so that workers do not wait for each other.
const LANES: usize = 8;
/// How long the writer gathers after a batch: waking it for each line would cost more than the line.
const LINGER: Duration = Duration::from_millis(100);
/// Lines of a lossless log that may wait before new work does. As many and those of what is under way are lost when the sidecar is
/// killed, so that it is less than above.
pub(super) const UNWRITTEN: usize = 1024;
/// Lines of a lossless log that bring the writer before its time.
const SOME: usize = UNWRITTEN / 4;

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
    /// Of a lossless log, whose lines all count from the moment of their queueing until they are written.
    unwritten: Option<Unwritten>,
    /// What the mesh says, unless the command line says otherwise.
    format: Mutex<Format>,
    is_format_fixed: bool,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct Unwritten {
    lines: AtomicUsize,
    fewer: Notify,
}

/// What the writer has taken out.
#[derive(Debug, Default)]
pub(super) struct Taken(Entries);

impl Taken {
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Box<Entry>> {
        self.0.drain(..)
    }
}

thread_local! {
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

impl Queue {
    pub(super) fn new(metrics: Arc<Metrics>, written: &Written) -> Self {
        Self(Arc::new(Waiting {
            lanes: Default::default(),
            news: Notify::new(),
            plenty: Notify::new(),
            unwritten: (written.audit == Audit::Lossless).then(Unwritten::default),
            format: Mutex::new(written.format.unwrap_or_default()),
            is_format_fixed: written.format.is_some(),
            metrics,
        }))
    }

    /// Hands an entry over. Never waits for the sink.
    pub fn push(&self, entry: Box<Entry>) {
        let Some(lane) = self.0.lanes.get(LANE.with(|lane| *lane)) else { return };
        let unwritten = self.0.unwritten.as_ref();
        let all = unwritten.map_or(0, |unwritten| unwritten.lines.fetch_add(1, Ordering::Relaxed) + 1);
        let mut lane = lane.lock();
        if unwritten.is_none() && lane.len() >= QUEUED {
            drop(lane);
            self.0.metrics.access_log_dropped(1);
            return;
        }
        lane.push(entry);
        let waiting = lane.len();
        drop(lane);
        if waiting == 1 {
            self.0.news.notify_one();
        } else if waiting == PLENTY || all >= SOME {
            self.0.plenty.notify_one();
        }
    }

    /// Whether new work may begin: always, unless no line may be lost and too many are not written yet. What is under way pushes its
    /// lines all the same.
    pub fn has_room(&self) -> bool {
        self.0.unwritten.as_ref().is_none_or(|unwritten| unwritten.lines.load(Ordering::Relaxed) < UNWRITTEN)
    }

    /// Waits until new work may begin.
    pub async fn room(&self) {
        let Some(unwritten) = &self.0.unwritten else { return };
        loop {
            let fewer = unwritten.fewer.notified();
            tokio::pin!(fewer);
            // First in, then asked: so no news falls between the two.
            fewer.as_mut().enable();
            if self.has_room() {
                return;
            }
            fewer.await;
        }
    }

    /// So many lines are written, or dropped for good.
    pub(super) fn written(&self, lines: usize) {
        if let Some(unwritten) = &self.0.unwritten {
            unwritten.lines.fetch_sub(lines, Ordering::Relaxed);
            unwritten.fewer.notify_waiters();
        }
    }

    /// The format from the next batch on; without effect where the command line named one.
    pub fn set_format(&self, format: Format) {
        if !self.0.is_format_fixed {
            *self.0.format.lock() = format;
        }
    }

    pub(super) fn format(&self) -> Format {
        *self.0.format.lock()
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    /// Waits until there is something or it is time to stop, then moves all of it into `batch`; `false` when asked to stop and
    /// nothing is left.
    pub(super) async fn next(&self, batch: &mut Taken, stop: &CancellationToken) -> bool {
        let is_over = stop.is_cancelled();
        if !is_over {
            tokio::select! { () = self.0.news.notified() => {}, () = stop.cancelled() => {} }
        }
        for lane in &self.0.lanes {
            batch.0.append(&mut lane.lock());
        }
        !(is_over && batch.0.is_empty())
    }

    pub(super) async fn linger(&self, stop: &CancellationToken) {
        tokio::select! {
            () = tokio::time::sleep(LINGER) => {}
            () = self.0.plenty.notified() => {}
            () = stop.cancelled() => {}
        }
    }
}
