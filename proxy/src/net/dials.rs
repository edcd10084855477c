//! Connections that are being made to one place. A burst of requests finds no kept connection and would open one for each of them at
//! once: handshakes that the other end has to refuse when they are too many, and most of them of no use a moment later. So only
//! some are made at a time, and who waits gets whatever is there first: a connection that was given back, one that
//! carries several, or a turn to make one. TCP connections of the app, each of which needs its own, wait for their turn.

use std::{cell::Cell, rc::Rc, time::Duration};
use tokio::{sync::Notify, time::Instant};

/// As many as are made at the same time, where one carries one call at a time. Another sidecar's worker takes 500 from one source that
/// have not proven themselves yet.
pub const MOST: usize = 64;
/// After so long whoever waits makes a connection all the same.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long somebody who has `waited` for the connection of others may take for its own, when `patience` is for both. A tenth is
/// left at least: others' may have failed for a reason that is gone.
pub fn time_left(patience: Duration, waited: Duration) -> Duration {
    patience.saturating_sub(waited).max(patience / 10)
}

/// One worker's for one place.
#[derive(Debug)]
pub struct Dials {
    most: usize,
    under_way: Cell<usize>,
    waiting: Cell<usize>,
    // Goes up when one fails.
    failures: Cell<u64>,
    news: Notify,
}

/// A turn to make a connection; over when dropped.
#[derive(Debug)]
pub struct Turn(Rc<Dials>);

/// Somebody waits as long as this is there.
struct Waiting<'d>(&'d Dials);

impl Dials {
    /// At most so many at a time.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            under_way: Cell::default(),
            waiting: Cell::default(),
            failures: Cell::default(),
            news: Notify::new(),
        }
    }

    /// A turn to make a connection, and how long it was waited for, or what `kept` finds before: a connection that somebody has given
    /// back. Nobody waits for those who could not be reached a moment ago: when one fails, all who wait get a turn at once, and
    /// not one after the other.
    pub async fn turn<C>(self: &Rc<Self>, kept: impl Fn() -> Option<C>) -> Result<C, (Turn, Duration)> {
        if self.waiting.get() == 0
            && let Some(turn) = self.take()
        {
            return Err((turn, Duration::ZERO));
        }
        let came = Instant::now();
        self.wait(kept).await.map_err(|turn| (turn, came.elapsed()))
    }

    async fn wait<C>(self: &Rc<Self>, kept: impl Fn() -> Option<C>) -> Result<C, Turn> {
        self.waiting.set(self.waiting.get() + 1);
        let _waiting = Waiting(self);
        let failures = self.failures.get();
        let found = tokio::time::timeout(PATIENCE, async {
            loop {
                self.news.notified().await;
                if let Some(connection) = kept() {
                    return Some(Ok(connection));
                }
                if self.failures.get() != failures {
                    return None;
                }
                if let Some(turn) = self.take() {
                    return Some(Err(turn));
                }
            }
        });
        match found.await {
            Ok(Some(found)) => found,
            Ok(None) | Err(_) => Err(self.enter()),
        }
    }

    /// A connection was given back.
    pub fn given_back(&self) {
        if self.waiting.get() > 0 {
            self.news.notify_one();
        }
    }

    /// A connection could not be made.
    pub fn failed(&self) {
        self.failures.set(self.failures.get() + 1);
        self.news.notify_waiters();
    }

    fn take(self: &Rc<Self>) -> Option<Turn> {
        (self.under_way.get() < self.most).then(|| self.enter())
    }

    fn enter(self: &Rc<Self>) -> Turn {
        self.under_way.set(self.under_way.get() + 1);
        Turn(self.clone())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get().saturating_sub(1));
        self.0.given_back();
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
        // What served this one may serve the next one as well, or a turn is left.
        self.0.given_back();
    }
}
