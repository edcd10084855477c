//! How long a scrape takes and how large it is, by the number of peers that have called.
//!
//! `cargo run --release -p postern-benches --example scrape`
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use postern_proxy::telemetry::{Direction, Entry, Metrics, entry::Request};
use std::time::{Duration, Instant, SystemTime};

fn main() {
    for peers in [10, 100, 200, 1000, 2500] {
        let metrics = Metrics::default();
        let address = "10.0.0.1:1".parse().unwrap();
        for number in 0..peers {
            let mut entry = Entry::new(Direction::Inbound, SystemTime::now(), address, address);
            entry.source_principal =
                Some(format!("spiffe://cluster.local/ns/shop/sa/caller-{number}").into());
            entry.request = Some(Request {
                method: http::Method::GET,
                authority: "shop".into(),
                path: "/".into(),
                id: None,
                headers: Vec::new(),
                noted: None,
            });
            metrics.observe(&entry);
        }
        let (mut best, mut size) = (Duration::MAX, 0);
        for _ in 0..10 {
            let began = Instant::now();
            size = metrics.encode(SystemTime::now()).len();
            best = best.min(began.elapsed());
        }
        println!("{peers} peers: {} KiB in {:.1} ms", size / 1024, best.as_secs_f64() * 1e3);
    }
}
