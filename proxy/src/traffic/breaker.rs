//! Circuit breaking: how much of one worker may be under way to one service (`connectionPool`). What is too much is refused at
//! once, so that a slow service does not hold everything up.

use crate::{error::ProxyError, http::pool::InFlight};
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What is under way to one service.
#[derive(Debug, Default)]
pub struct Breaker {
    requests: Rc<Cell<usize>>,
    repeats: Rc<Cell<usize>>,
    waiting: Rc<Cell<usize>>,
    // With the limit that it was made for.
    connections: RefCell<Option<(u32, Arc<Semaphore>)>>,
}

/// What a worker's share of a limit is: the limit is the sidecar's, each worker takes its part of it, rounded up.
#[derive(Clone, Copy, Debug)]
pub struct Share(pub usize);

impl Share {
    fn of(self, limit: u32) -> usize {
        usize::try_from(limit).unwrap_or(usize::MAX).div_ceil(self.0.max(1))
    }
}

impl Breaker {
    /// One more request (`http2MaxRequests`).
    ///
    /// # Errors
    /// `CircuitOpen` when there are enough.
    pub fn request(&self, limit: Option<u32>, share: Share) -> Result<InFlight, ProxyError> {
        enter(&self.requests, limit, share).ok_or(ProxyError::CircuitOpen("http2MaxRequests"))
    }

    /// One more repeat under way (`maxRetries`); `None` when there are enough.
    pub fn repeat(&self, limit: Option<u32>, share: Share) -> Option<InFlight> {
        enter(&self.repeats, limit, share)
    }

    /// One more connection in use (`maxConnections`), now or never; `None` when nothing limits them.
    ///
    /// # Errors
    /// `CircuitOpen` when there are enough.
    pub fn connection(
        &self,
        limit: Option<u32>,
        share: Share,
    ) -> Result<Option<OwnedSemaphorePermit>, ProxyError> {
        let Some(limit) = limit else { return Ok(None) };
        let turn = self.semaphore(limit, share).try_acquire_owned();
        turn.map(Some).map_err(|_| ProxyError::CircuitOpen("maxConnections"))
    }

    /// As [`Breaker::connection`]; when there are enough, waits `patience` for one, and at most `http1MaxPendingRequests` wait.
    ///
    /// # Errors
    /// `CircuitOpen` when there are enough, of both, or none became free in time.
    pub async fn connection_in_turn(
        &self,
        limit: Option<u32>,
        pending: Option<u32>,
        share: Share,
        patience: Duration,
    ) -> Result<Option<OwnedSemaphorePermit>, ProxyError> {
        let Some(limit) = limit else { return Ok(None) };
        let semaphore = self.semaphore(limit, share);
        if let Ok(turn) = semaphore.clone().try_acquire_owned() {
            return Ok(Some(turn));
        }
        let pending = pending.or(Some(MOST_PENDING));
        let waiting = enter(&self.waiting, pending, share);
        let _waiting = waiting.ok_or(ProxyError::CircuitOpen("http1MaxPendingRequests"))?;
        match tokio::time::timeout(patience, semaphore.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(Some(turn)),
            _ => Err(ProxyError::CircuitOpen("maxConnections")),
        }
    }

    fn semaphore(&self, limit: u32, share: Share) -> Arc<Semaphore> {
        let mut connections = self.connections.borrow_mut();
        match &*connections {
            Some((known, semaphore)) if *known == limit => semaphore.clone(),
            _ => {
                let semaphore = Arc::new(Semaphore::new(share.of(limit).min(Semaphore::MAX_PERMITS)));
                *connections = Some((limit, semaphore.clone()));
                semaphore
            }
        }
    }
}

/// Requests of one worker that may wait for a connection where nothing else is said (Envoy's default).
const MOST_PENDING: u32 = 1024;

fn enter(counter: &Rc<Cell<usize>>, limit: Option<u32>, share: Share) -> Option<InFlight> {
    let is_full = limit.is_some_and(|limit| counter.get() >= share.of(limit));
    (!is_full).then(|| InFlight::enter(counter))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const ALL: Share = Share(1);

    #[test]
    fn each_worker_has_its_part_of_a_limit_and_at_least_one() {
        for (workers, limit, share) in [(1, 5, 5), (2, 5, 3), (4, 1, 1), (0, 7, 7)] {
            assert_eq!(Share(workers).of(limit), share);
        }
    }

    #[test]
    fn requests_above_the_limit_are_refused_until_one_ends() {
        let breaker = Breaker::default();
        let first = breaker.request(Some(1), ALL).unwrap();
        assert!(matches!(breaker.request(Some(1), ALL), Err(ProxyError::CircuitOpen("http2MaxRequests"))));
        assert!(breaker.request(Some(2), ALL).is_ok() && breaker.request(None, ALL).is_ok());
        drop(first);
        assert!(breaker.request(Some(1), ALL).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_finds_no_connection_waits_its_turn_among_a_few_and_not_for_ever() {
        let breaker = Rc::new(Breaker::default());
        let patience = Duration::from_secs(5);
        let wait = || breaker.connection_in_turn(Some(1), Some(1), ALL, patience);
        let first = wait().await.unwrap();
        assert!(matches!(breaker.connection(Some(1), ALL), Err(ProxyError::CircuitOpen(_))));
        let (second, third, ()) = tokio::join!(wait(), wait(), async {
            tokio::task::yield_now().await;
            drop(first);
        });
        assert!(matches!(third, Err(ProxyError::CircuitOpen("http1MaxPendingRequests"))), "{third:?}");
        let second = second.unwrap();
        let before = tokio::time::Instant::now();
        assert!(matches!(wait().await, Err(ProxyError::CircuitOpen("maxConnections"))));
        assert_eq!(before.elapsed(), patience);
        drop(second);
        assert!(wait().await.is_ok());
    }
}
