//! What one user of the socket may take: connections, calls at once, calls a second. Counted before any work is done.
//!
//! By user id as the kernel reports it (`SO_PEERCRED`), not by process: a process makes children as it likes.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::Notify;

/// Bounds for each user id, and for all together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once, of one user and of all.
    pub connections: usize,
    pub connections_in_all: usize,
    /// Calls at once; a stream is a call as long as it lasts.
    pub calls: usize,
    /// New calls and connections a second, after a burst.
    pub rate: f64,
    pub burst: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, connections_in_all: 256, calls: 256, rate: 100.0, burst: 400.0 }
    }
}

/// More users than this in one pod are not remembered, they are refused.
const USERS: usize = 256;

struct Account {
    connections: usize,
    calls: usize,
    tokens: f64,
    filled: Instant,
}

/// Who takes how much.
pub(super) struct Callers {
    limits: Limits,
    accounts: Mutex<HashMap<u32, Account>>,
}

/// A connection's place. Dropping it gives it back.
pub(super) struct Seat {
    callers: Arc<Callers>,
    user: u32,
    active: AtomicUsize,
    changed: Notify,
}

/// A call's place. Dropping it gives it back.
pub(super) struct Call(Arc<Seat>);

impl Callers {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, accounts: Mutex::default() })
    }

    /// Takes a place for a connection, or says which limit is reached.
    pub(super) fn connect(self: &Arc<Self>, user: u32, now: Instant) -> Result<Arc<Seat>, &'static str> {
        let mut accounts = self.accounts.lock();
        if accounts.values().map(|account| account.connections).sum::<usize>()
            >= self.limits.connections_in_all
        {
            return Err("too many connections in all");
        }
        if accounts.len() >= USERS && !accounts.contains_key(&user) {
            // Who has no connection and has waited long enough is as one who never came.
            let full = Duration::from_secs_f64(self.limits.burst / self.limits.rate);
            accounts.retain(|_, account| {
                account.connections > 0 || now.saturating_duration_since(account.filled) < full
            });
            if accounts.len() >= USERS {
                return Err("too many users");
            }
        }
        let account = accounts.entry(user).or_insert_with(|| Account {
            connections: 0,
            calls: 0,
            tokens: self.limits.burst,
            filled: now,
        });
        if account.connections >= self.limits.connections {
            return Err("too many connections of this user");
        }
        account.spend(self.limits, now)?;
        account.connections += 1;
        drop(accounts);
        let seat = Seat { callers: self.clone(), user, active: AtomicUsize::new(0), changed: Notify::new() };
        Ok(Arc::new(seat))
    }
}

impl Account {
    fn spend(&mut self, limits: Limits, now: Instant) -> Result<(), &'static str> {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * limits.rate).min(limits.burst);
        self.filled = self.filled.max(now);
        if self.tokens < 1.0 {
            return Err("too many calls a second");
        }
        self.tokens -= 1.0;
        Ok(())
    }
}

impl Seat {
    /// Takes a place for a call, or says which limit is reached.
    pub(super) fn call(self: &Arc<Self>, now: Instant) -> Result<Call, &'static str> {
        let mut accounts = self.callers.accounts.lock();
        // Held as long as a seat of the user exists.
        let account = accounts.get_mut(&self.user).ok_or("no such user")?;
        if account.calls >= self.callers.limits.calls {
            return Err("too many calls at once");
        }
        account.spend(self.callers.limits, now)?;
        account.calls += 1;
        self.active.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        Ok(Call(self.clone()))
    }

    /// Resolves when no call was open for `first` from the beginning, or for `later` after one.
    pub(super) async fn idle(&self, first: Duration, later: Duration) {
        let mut patience = first;
        loop {
            let changed = self.changed.notified();
            if self.active.load(Ordering::Relaxed) > 0 {
                changed.await;
            } else if tokio::time::timeout(patience, changed).await.is_err() {
                return;
            }
            patience = later;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(account) = self.callers.accounts.lock().get_mut(&self.user) {
            account.connections -= 1;
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(account) = self.0.callers.accounts.lock().get_mut(&self.0.user) {
            account.calls -= 1;
        }
        self.0.active.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn callers() -> Arc<Callers> {
        let limits = Limits { connections: 2, connections_in_all: 3, calls: 2, rate: 1.0, burst: 6.0 };
        Callers::new(limits)
    }

    #[test]
    fn one_user_at_its_limits_takes_nothing_from_another() {
        let (callers, now) = (callers(), Instant::now());
        let first = callers.connect(1, now).unwrap();
        let second = callers.connect(1, now).unwrap();
        assert_eq!(callers.connect(1, now).err(), Some("too many connections of this user"));
        let other = callers.connect(2, now).unwrap();
        assert_eq!(callers.connect(3, now).err(), Some("too many connections in all"));
        let calls = (first.call(now).unwrap(), second.call(now).unwrap());
        assert_eq!(first.call(now).err(), Some("too many calls at once"));
        assert!(other.call(now).is_ok());
        drop(calls);
        assert!(first.call(now).is_ok());
        drop(second);
        assert!(callers.connect(1, now).is_ok(), "a seat that was given back is free");
    }

    #[test]
    fn a_burst_is_spent_and_comes_back_with_time_whether_by_calls_or_by_connections() {
        let (callers, now) = (callers(), Instant::now());
        let seat = callers.connect(1, now).unwrap();
        for _ in 0..5 {
            assert!(seat.call(now).is_ok());
        }
        assert_eq!(seat.call(now).err(), Some("too many calls a second"));
        assert_eq!(callers.connect(1, now).err(), Some("too many calls a second"));
        assert!(seat.call(now + Duration::from_secs(1)).is_ok());
        assert!(seat.call(now + Duration::from_secs(1)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_only_while_no_call_is_open() {
        let (first, later) = (Duration::from_secs(10), Duration::from_secs(60));
        let seat = callers().connect(1, Instant::now()).unwrap();
        let begin = tokio::time::Instant::now();
        seat.idle(first, later).await;
        assert_eq!(begin.elapsed(), first);
        let call = seat.call(Instant::now()).unwrap();
        let begin = tokio::time::Instant::now();
        let idle = tokio::spawn({
            let seat = seat.clone();
            async move { seat.idle(first, later).await }
        });
        tokio::time::sleep(Duration::from_secs(500)).await;
        assert!(!idle.is_finished());
        drop(call);
        idle.await.unwrap();
        assert_eq!(begin.elapsed(), Duration::from_secs(560));
    }
}
