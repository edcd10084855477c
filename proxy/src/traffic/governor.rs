//! What keeps a sidecar alive that runs short: it sheds new work before old, and both before it is killed.
//!
//! Connections may take 40 % of the descriptors beyond those that the sidecar needs for itself, since each may need a second
//! one. Memory is looked at ten times a second, and while many are connected the more often the less of it is left, up to a hundred
//! times: from 80 % of the limit idle connections go, from 90 % new requests are answered 503, from 95 % nothing is accepted and the newest connections are ended, some at a time,
//! until there is room. A small limit keeps more free than that, since what was already let in can take 16 MiB before the next looks
//! have had their effect. The allocator (mimalloc) gives freed memory back by itself. Envoy has the same as its overload manager, off by default.

use crate::bootstrap::resources::{Resident, Resources};
use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, watch};

/// How short of memory we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below 80 % of the limit.
    Calm,
    /// From 80 %: what is kept for comfort goes.
    Tight,
    /// From 90 %: no new requests.
    Shedding,
    /// From 95 %: no new connections, and the newest end.
    Full,
}

/// Each level: the share of the limit, in percent, that is free where it begins, and, in quarters of [`BURST`], how much at least.
const BEGINS: [(u64, u64, Level); 3] = [(5, 4, Level::Full), (10, 5, Level::Shedding), (20, 6, Level::Tight)];
/// Bytes that a burst of answers to slow readers takes before ending connections has had its effect: what was measured, doubled.
const BURST: u64 = 16 << 20;
/// A level ends this many percent of the limit below where it began, so that it does not come and go with each request.
const HYSTERESIS: u64 = 3;
/// Percent of the descriptors that connections may take: each may need a second one, towards the app or an endpoint.
const SHARE: u64 = 40;
/// Descriptors that the sidecar needs by itself: listeners, runtimes, control plane, log, admin, metrics, probes.
const OWN: u64 = 40;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);
/// While there are [`MANY`] connections, who can take much in little time: so that what is left cannot be gone before the next look,
/// but not more often than this. A look costs some 10 µs.
const LOOK_CLOSELY: Duration = Duration::from_millis(10);
/// Bytes in a microsecond that all connections together cannot take faster (4 GB/s).
const FASTEST: u64 = 4000;
const MANY: usize = 32;

/// One for the whole sidecar.
#[derive(Debug)]
pub struct Governor {
    memory: Option<u64>,
    most: usize,
    open: AtomicUsize,
    // Read by every request: a byte that is hardly ever written.
    level: AtomicU8,
    levels: watch::Sender<Level>,
    // Bytes in use at the last look.
    used: AtomicU64,
    many: Notify,
}

/// A place for a connection; free again when dropped.
#[derive(Debug)]
pub struct Place(Arc<Governor>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Governor {
    /// For these limits. Without one of them nothing is bounded by it.
    pub fn new(resources: Resources) -> Arc<Self> {
        let most = resources.descriptors.map_or(usize::MAX, |all| {
            let all = all.saturating_sub(OWN);
            usize::try_from(all / 100 * SHARE + all % 100 * SHARE / 100).unwrap_or(usize::MAX).max(1)
        });
        Arc::new(Self {
            memory: resources.memory,
            most,
            open: AtomicUsize::new(0),
            level: AtomicU8::new(Level::Calm as u8),
            levels: watch::Sender::new(Level::Calm),
            used: AtomicU64::new(0),
            many: Notify::new(),
        })
    }

    /// How short of memory we are.
    pub fn level(&self) -> Level {
        match self.level.load(Ordering::Relaxed) {
            0 => Level::Calm,
            1 => Level::Tight,
            2 => Level::Shedding,
            _ => Level::Full,
        }
    }

    /// Sees every change of the level.
    pub fn levels(&self) -> watch::Receiver<Level> {
        self.levels.subscribe()
    }

    /// Whether one more connection may be accepted; the error says what we are short of.
    ///
    /// # Errors
    /// `memory` or `descriptors`.
    pub fn has_room(&self) -> Result<(), &'static str> {
        if self.level() >= Level::Full {
            Err("memory")
        } else if self.open.load(Ordering::Relaxed) >= self.most {
            Err("descriptors")
        } else {
            Ok(())
        }
    }

    /// Takes a place for a connection.
    pub fn enter(self: &Arc<Self>) -> Place {
        if self.open.fetch_add(1, Ordering::Relaxed) + 1 == MANY {
            self.many.notify_one();
        }
        Place(self.clone())
    }

    /// So many of `open` connections, the newest, are to end when nothing else has helped: an eighth, and half of them once most of
    /// what is kept free for a burst is gone.
    pub fn surplus(&self, open: usize) -> usize {
        let is_late = self.memory.is_some_and(|limit| {
            self.used.load(Ordering::Relaxed) >= limit.saturating_sub(free(limit, BEGINS[0]) / 2)
        });
        open.div_ceil(if is_late { 2 } else { 8 })
    }

    /// So much is in use now.
    pub fn note(&self, used: u64) {
        let Some(limit) = self.memory.filter(|limit| *limit > 0) else { return };
        self.used.store(used, Ordering::Relaxed);
        let reached = |margin: u64| {
            let used = used.saturating_add(margin);
            let level = BEGINS.iter().find(|begins| used >= limit.saturating_sub(free(limit, **begins)));
            level.map_or(Level::Calm, |(.., level)| *level)
        };
        let before = self.level();
        // Up at once, down only with a margin.
        let now = reached(0).max(before.min(reached(limit / 100 * HYSTERESIS)));
        if now != before {
            tracing::warn!(level = ?now, used_mib = used >> 20, limit_mib = limit >> 20, "memory: what is refused has changed");
            self.level.store(now as u8, Ordering::Relaxed);
            self.levels.send_replace(now);
        }
    }

    /// Until the next look, with many connections.
    fn pause(&self) -> Duration {
        let full = self.memory.map_or(0, |limit| limit.saturating_sub(free(limit, BEGINS[0])));
        let left = full.saturating_sub(self.used.load(Ordering::Relaxed));
        Duration::from_micros(left / FASTEST).clamp(LOOK_CLOSELY, LOOK)
    }

    /// Looks at the memory of this process for as long as somebody holds the governor.
    pub async fn keep_watch(self: Arc<Self>) {
        let (Some(_), Ok(resident)) = (self.memory, Resident::open()) else { return };
        let governor = Arc::downgrade(&self);
        drop(self);
        while let Some(governor) = governor.upgrade() {
            if let Some(bytes) = resident.bytes() {
                governor.note(bytes);
            }
            let has_many = governor.open.load(Ordering::Relaxed) >= MANY;
            if has_many {
                let pause = governor.pause();
                drop(governor);
                tokio::time::sleep(pause).await;
            } else {
                let _ = tokio::time::timeout(LOOK, governor.many.notified()).await;
            }
        }
    }
}

/// Bytes of a limit that are free where a level begins. A burst is taken as at most a quarter of a limit, so that very little
/// memory is of use too.
fn free(limit: u64, (percent, quarters, _): (u64, u64, Level)) -> u64 {
    (limit / 100 * percent).max(BURST.min(limit / 4) / 4 * quarters)
}

/// The connections of one listener by the address they come from.
#[derive(Debug, Default)]
pub struct Sources(RefCell<HashMap<IpAddr, Load>>);

#[derive(Debug, Default)]
struct Load {
    open: usize,
    unproven: usize,
}

/// One connection of a source; gone when dropped.
#[derive(Debug)]
pub struct Sourced {
    sources: Rc<Sources>,
    source: IpAddr,
    is_proven: bool,
}

impl Sources {
    /// Takes a place among those of one source: `most` in all, `most_unproven` that have shown nothing yet.
    ///
    /// # Errors
    /// Which of the two is full.
    pub fn enter(
        self: &Rc<Self>,
        source: IpAddr,
        most: usize,
        most_unproven: usize,
    ) -> Result<Sourced, &'static str> {
        let mut sources = self.0.borrow_mut();
        let load = sources.entry(source).or_default();
        if load.open >= most {
            return Err("source");
        }
        if load.unproven >= most_unproven {
            return Err("unproven");
        }
        load.open += 1;
        load.unproven += 1;
        Ok(Sourced { sources: self.clone(), source, is_proven: false })
    }
}

impl Sourced {
    /// The other end has proven itself, or has at least asked something.
    pub fn prove(&mut self) {
        if !std::mem::replace(&mut self.is_proven, true)
            && let Some(load) = self.sources.0.borrow_mut().get_mut(&self.source)
        {
            load.unproven -= 1;
        }
    }
}

impl Drop for Sourced {
    fn drop(&mut self) {
        self.prove();
        let mut sources = self.sources.0.borrow_mut();
        if let Some(load) = sources.get_mut(&self.source) {
            load.open -= 1;
            if load.open == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_less_is_left_the_more_often_it_is_looked_at() {
        for (limit, used, millis) in [
            (24_000, 12, 100),
            (512, 12, 100),
            (256, 12, 59),
            (256, 200, 10),
            (64, 12, 10),
            (64, 63, 10),
            (0, 0, 10),
        ] {
            let governor = Governor::new(Resources { descriptors: None, memory: Some(limit << 20) });
            governor.note(used << 20);
            assert_eq!(governor.pause().as_millis(), millis, "{used} of {limit} MiB");
        }
    }

    #[test]
    fn levels_rise_at_once_and_fall_with_a_margin() {
        let of = |memory: u64| Governor::new(Resources { descriptors: None, memory: Some(memory << 20) });
        let governor = of(1000);
        for (resident, level) in [
            (0, Level::Calm),
            (799, Level::Calm),
            (800, Level::Tight),
            (771, Level::Tight),
            (769, Level::Calm),
            (950, Level::Full),
            (921, Level::Full),
            (919, Level::Shedding),
            (871, Level::Shedding),
            (869, Level::Tight),
            (5000, Level::Full),
            (100, Level::Calm),
            (900, Level::Shedding),
        ] {
            governor.note(resident << 20);
            assert_eq!(governor.level(), level, "{resident}");
        }
        governor.note(960 << 20);
        assert_eq!(governor.has_room(), Err("memory"));
        assert_eq!(governor.surplus(16), 2);
        governor.note(980 << 20);
        assert_eq!(governor.surplus(16), 8, "it is late");
        // A small limit keeps free what a burst can take.
        for (memory, begins) in [(64, [40, 44, 48]), (16, [10, 11, 12])] {
            for (mib, level) in begins.into_iter().zip([Level::Tight, Level::Shedding, Level::Full]) {
                let governor = of(memory);
                governor.note((mib << 20) - 1);
                assert!(governor.level() < level, "{memory}: {mib}");
                governor.note(mib << 20);
                assert_eq!(governor.level(), level, "{memory}: {mib}");
            }
        }
        let unbounded = Governor::new(Resources::default());
        unbounded.note(u64::MAX);
        assert_eq!((unbounded.level(), unbounded.has_room()), (Level::Calm, Ok(())));
    }

    #[test]
    fn connections_take_four_tenths_of_the_descriptors() {
        for (descriptors, most) in [(64, 9), (1024, 393), (1, 1)] {
            let governor = Governor::new(Resources { descriptors: Some(descriptors), memory: None });
            let places: Vec<Place> = (0..most).map(|_| governor.enter()).collect();
            assert_eq!(governor.has_room(), Err("descriptors"), "{descriptors}");
            drop(places);
            assert_eq!(governor.has_room(), Ok(()));
        }
        assert_eq!(Governor::new(Resources { descriptors: Some(u64::MAX), memory: None }).has_room(), Ok(()));
    }

    #[test]
    fn one_source_cannot_take_the_places_of_another() {
        let sources = Rc::new(Sources::default());
        let [one, two] = ["10.0.0.1", "10.0.0.2"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let mut first = sources.enter(one, 3, 2).unwrap();
        let second = sources.enter(one, 3, 2).unwrap();
        assert_eq!(sources.enter(one, 3, 2).unwrap_err(), "unproven");
        assert!(sources.enter(two, 3, 2).is_ok(), "another source has its own places");
        first.prove();
        first.prove();
        let third = sources.enter(one, 3, 2).unwrap();
        assert_eq!(sources.enter(one, 3, 9).unwrap_err(), "source");
        drop((first, second, third));
        assert!(sources.0.borrow().is_empty(), "nothing is remembered of who has gone");
    }
}
