//! The connections that are open now, for people who ask. A thread enters and leaves in a lane of its own, once per connection; what
//! a connection learns of itself later is written without a lock.

use super::Direction;
use parking_lot::Mutex;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

/// More threads than this share lanes.
const LANES: usize = 32;
/// How many are told of at most; the count is exact all the same.
pub const SHOWN: usize = 1000;

thread_local! {
    static LANE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % LANES
    };
}

/// What is known of one open connection.
#[derive(Debug)]
pub struct Seen {
    /// Which journey.
    pub direction: Direction,
    /// When it was accepted.
    pub since: SystemTime,
    /// Direct peer of the socket.
    pub downstream: SocketAddr,
    /// Original destination.
    pub destination: SocketAddr,
    peer: OnceLock<Arc<str>>,
    service: OnceLock<Arc<str>>,
    protocol: OnceLock<&'static str>,
    requests: AtomicU64,
}

impl Seen {
    /// SPIFFE ID of the verified other end. Outbound HTTP has none of its own: each request chooses its endpoint.
    pub fn peer(&self) -> Option<&str> {
        self.peer.get().map(AsRef::as_ref)
    }

    /// Host of the destination service, outbound.
    pub fn service(&self) -> Option<&str> {
        self.service.get().map(AsRef::as_ref)
    }

    /// `http/1.1`, `http/2` or `tcp`; `None` until that is known.
    pub fn protocol(&self) -> Option<&'static str> {
        self.protocol.get().copied()
    }

    /// Requests that have begun on it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

type Lane = Mutex<BTreeMap<u64, Arc<Seen>>>;

/// All open connections of one sidecar. Clones are cheap.
#[derive(Clone, Debug, Default)]
pub struct Connections(Arc<All>);

#[derive(Debug, Default)]
struct All {
    lanes: [Lane; LANES],
    next: AtomicU64,
}

/// One open connection; it is forgotten when this is dropped.
#[derive(Debug)]
pub struct Open {
    all: Connections,
    lane: usize,
    number: u64,
    seen: Arc<Seen>,
}

impl Connections {
    /// Enters a connection that was accepted just now.
    pub fn enter(&self, direction: Direction, downstream: SocketAddr, destination: SocketAddr) -> Open {
        let (peer, service, protocol) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let (since, requests) = (SystemTime::now(), AtomicU64::new(0));
        let seen = Seen { direction, since, downstream, destination, peer, service, protocol, requests };
        let (seen, lane) = (Arc::new(seen), LANE.with(|lane| *lane));
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        if let Some(lane) = self.0.lanes.get(lane) {
            lane.lock().insert(number, seen.clone());
        }
        Open { all: self.clone(), lane, number, seen }
    }

    /// How many are open, and of these the newest, newest first, at most [`SHOWN`].
    pub fn newest(&self) -> (usize, Vec<Arc<Seen>>) {
        let (mut count, mut found) = (0, Vec::new());
        for lane in &self.0.lanes {
            let lane = lane.lock();
            count += lane.len();
            found.extend(lane.iter().rev().take(SHOWN).map(|(number, seen)| (*number, seen.clone())));
        }
        found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
        (count, found.into_iter().take(SHOWN).map(|(_, seen)| seen).collect())
    }
}

impl Open {
    /// The verified other end; the first one stays.
    pub fn set_peer(&self, peer: &Arc<str>) {
        let _ = self.seen.peer.set(peer.clone());
    }

    /// The destination service; the first one stays.
    pub fn set_service(&self, host: &Arc<str>) {
        let _ = self.seen.service.set(host.clone());
    }

    /// In which language it speaks.
    pub fn set_protocol(&self, protocol: &'static str) {
        let _ = self.seen.protocol.set(protocol);
    }

    /// One more request has begun. Only the connection's own thread counts, so nothing gets lost between the two steps.
    pub fn count_request(&self) {
        let before = self.seen.requests.load(Ordering::Relaxed);
        self.seen.requests.store(before.wrapping_add(1), Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(lane) = self.all.0.lanes.get(self.lane) {
            lane.lock().remove(&self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_count_is_exact_and_only_so_many_of_the_newest_are_told() {
        let (all, mut open) = (Connections::default(), Vec::new());
        let address = |port| SocketAddr::from(([10, 0, 0, 1], port));
        std::thread::scope(|threads| {
            let elsewhere = threads.spawn(|| all.enter(Direction::Outbound, address(1), address(2)));
            open.push(elsewhere.join().unwrap());
        });
        for port in 0..1200 {
            open.push(all.enter(Direction::Inbound, address(port), address(8080)));
        }
        let (count, newest) = all.newest();
        assert_eq!((count, newest.len()), (1201, SHOWN));
        assert_eq!((newest[0].downstream.port(), newest[999].downstream.port()), (1199, 200));
        // Dropped elsewhere than where it was entered.
        std::thread::spawn(move || open.truncate(2)).join().unwrap();
        assert_eq!(all.newest().0, 0);
    }

    #[test]
    fn what_a_connection_learns_of_itself_shows() {
        let all = Connections::default();
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let open = all.enter(Direction::Inbound, address, address);
        assert_eq!((all.newest().1[0].protocol(), all.newest().1[0].peer()), (None, None));
        open.set_protocol("http/2");
        open.set_peer(&Arc::from("spiffe://a/b"));
        open.set_peer(&Arc::from("spiffe://a/c"));
        open.count_request();
        open.count_request();
        let seen = &all.newest().1[0];
        assert_eq!(
            (seen.protocol(), seen.peer(), seen.requests()),
            (Some("http/2"), Some("spiffe://a/b"), 2)
        );
    }
}
