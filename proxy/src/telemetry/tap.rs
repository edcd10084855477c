//! Calls shown live while somebody taps. When nobody does, a finished call costs one relaxed load here.
//!
//! The filter runs on the thread of the call, and of what matches only so many in a second are copied; telling them is not done here.

use super::{Direction, Entry};
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// Taps at once.
pub const TAPS: usize = 4;
/// Calls that wait to be told; more are left out.
const WAITING: usize = 512;

/// Which calls are asked for. An empty filter lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// As seen by which end.
    pub direction: Option<Direction>,
    /// The caller: a SPIFFE ID, or its path without the leading slash, in any trust domain.
    pub from: Option<String>,
    /// The called.
    pub to: Option<Called>,
    /// As sent.
    pub method: Option<String>,
    /// What the path begins with; only requests pass.
    pub path_prefix: String,
    /// First and last; only answered requests pass.
    pub status: Option<(u16, u16)>,
    /// Whether policy allowed it; what was refused without a policy counts as denied.
    pub is_allowed: Option<bool>,
}

/// Who is asked for as the called one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Called {
    /// Our own workload is.
    pub own: bool,
    /// Hosts of services, whole or up to a dot.
    pub hosts: Vec<String>,
}

impl Filter {
    fn passes(&self, entry: &Entry) -> bool {
        let request = entry.request.as_ref();
        self.direction.is_none_or(|direction| direction == entry.direction)
            && self.from.as_deref().is_none_or(|from| is_from(from, entry.source_principal.as_deref()))
            && self.to.as_ref().is_none_or(|to| to.is(entry))
            && self.method.as_deref().is_none_or(|m| request.is_some_and(|r| r.method.as_str() == m))
            && (self.path_prefix.is_empty() || request.is_some_and(|r| r.path.starts_with(&self.path_prefix)))
            && self.status.is_none_or(|(from, to)| entry.status.is_some_and(|s| (from..=to).contains(&s)))
            && self.is_allowed.is_none_or(|wanted| verdict(entry) == Some(wanted))
    }
}

impl Called {
    fn is(&self, entry: &Entry) -> bool {
        match (entry.direction, &entry.destination_service) {
            (Direction::Inbound, _) => self.own,
            (Direction::Outbound, None) => false,
            (Direction::Outbound, Some(host)) => self.hosts.iter().any(|wanted| {
                host.strip_prefix(wanted.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            }),
        }
    }
}

fn is_from(wanted: &str, id: Option<&str>) -> bool {
    let Some(id) = id else { return false };
    let path = || id.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/')).map(|(_, path)| path);
    id == wanted || path() == Some(wanted)
}

/// Allowed or denied; `None`: nobody decided.
pub fn verdict(entry: &Entry) -> Option<bool> {
    match entry.denial() {
        Some(_) => Some(false),
        None => entry.decided.as_ref().map(|decided| decided.is_allowed),
    }
}

/// One open tap.
#[derive(Debug)]
pub struct Tap {
    /// As the control plane numbers it.
    pub id: u64,
    /// Calls that are shown in a second.
    pub rate: u32,
    /// When it ends by itself.
    pub until: Instant,
    /// Which calls.
    pub filter: Filter,
    second: AtomicU64,
    shown: AtomicU32,
    left_out: AtomicU64,
}

impl Tap {
    /// A tap that has shown nothing yet.
    pub fn new(id: u64, rate: u32, until: Instant, filter: Filter) -> Self {
        let (second, shown, left_out) = (AtomicU64::new(0), AtomicU32::new(0), AtomicU64::new(0));
        Self { id, rate, until, filter, second, shown, left_out }
    }

    /// Whether one more is shown in this second. Threads that meet at the turn of a second may show a few more.
    fn has_room(&self, now: SystemTime) -> bool {
        let second = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        if self.second.swap(second, Ordering::Relaxed) != second {
            self.shown.store(0, Ordering::Relaxed);
        }
        self.shown.fetch_add(1, Ordering::Relaxed) < self.rate
    }
}

/// A call that is to be told.
#[derive(Clone, Debug)]
pub struct Tapped {
    /// The taps that it matched.
    pub taps: Vec<u64>,
    /// The call.
    pub entry: Box<Entry>,
}

/// All taps of one sidecar.
#[derive(Debug, Default)]
pub struct Taps {
    is_open: AtomicBool,
    open: ArcSwap<Vec<Arc<Tap>>>,
    waiting: Mutex<VecDeque<Tapped>>,
    news: Notify,
}

impl Taps {
    /// Whether anybody taps.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// From now on these are open, at most [`TAPS`]; one that was open before goes on with its counts.
    pub fn set(&self, taps: Vec<Tap>) {
        let before = self.open.load_full();
        let kept = |tap: Tap| match before.iter().find(|known| known.id == tap.id) {
            Some(known) => known.clone(),
            None => Arc::new(tap),
        };
        let open: Vec<_> = taps.into_iter().take(TAPS).map(kept).collect();
        self.put(open);
    }

    fn put(&self, open: Vec<Arc<Tap>>) {
        self.is_open.store(!open.is_empty(), Ordering::Relaxed);
        if open.is_empty() {
            *self.waiting.lock() = VecDeque::new();
        }
        self.open.store(Arc::new(open));
    }

    /// Takes a copy of a finished call when somebody asked for it.
    pub(crate) fn observe(&self, entry: &Entry, now: SystemTime) {
        let open = self.open.load();
        let matched: Vec<&Arc<Tap>> = open.iter().filter(|tap| tap.filter.passes(entry)).collect();
        let (shown, full): (Vec<_>, Vec<_>) = matched.into_iter().partition(|tap| tap.has_room(now));
        let leave_out = |taps: &[&Arc<Tap>]| {
            for tap in taps {
                tap.left_out.fetch_add(1, Ordering::Relaxed);
            }
        };
        leave_out(&full);
        if shown.is_empty() {
            return;
        }
        let tapped =
            Tapped { taps: shown.iter().map(|tap| tap.id).collect(), entry: Box::new(entry.clone()) };
        let mut waiting = self.waiting.lock();
        if waiting.len() >= WAITING {
            leave_out(&shown);
            return;
        }
        waiting.push_back(tapped);
        drop(waiting);
        self.news.notify_one();
    }

    /// The next calls, at least one and at most `most`. Cancel safe: nothing is taken before it resolves.
    pub async fn next(&self, most: usize) -> Vec<Tapped> {
        loop {
            let news = self.news.notified();
            let taken: Vec<_> = {
                let mut waiting = self.waiting.lock();
                let count = waiting.len().min(most);
                waiting.drain(..count).collect()
            };
            if !taken.is_empty() {
                return taken;
            }
            news.await;
        }
    }

    /// Ends what is over, and hands out how many calls each tap did not show since the last time.
    pub fn turn(&self, now: Instant) -> Vec<(u64, u64)> {
        let open = self.open.load_full();
        let left_out = open
            .iter()
            .map(|tap| (tap.id, tap.left_out.swap(0, Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        if open.iter().any(|tap| tap.until <= now) {
            self.put(open.iter().filter(|tap| tap.until > now).cloned().collect());
        }
        left_out
    }
}

#[cfg(test)]
#[path = "tap_tests.rs"]
mod tests;
