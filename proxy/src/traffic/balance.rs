//! Which endpoint: the better of two random ones, by peak latency and what is in flight (peak EWMA; Mitzenmacher 2001, Finagle),
//! and never one that is ejected. The cost does not grow with the number of endpoints; only when both are ejected or were tried
//! all are looked at.

use super::upstream::{EndpointState, Upstream};
use crate::state::Endpoint;
use postern_config::documents::destination_rule::{Balance, Traffic};
use std::{net::SocketAddr, rc::Rc};
use tokio::time::Instant;

/// Picks an endpoint that was not tried yet; `None` when there is none. `random(n)` is uniform below `n`.
pub fn pick<'e>(
    upstream: &Upstream,
    endpoints: &'e [Endpoint],
    tried: &[SocketAddr],
    traffic: &Traffic,
    now: Instant,
    mut random: impl FnMut(usize) -> usize,
) -> Option<(&'e Endpoint, Rc<EndpointState>)> {
    let count = endpoints.len();
    let at = |number: usize| {
        let endpoint = endpoints.get(number)?;
        Some((endpoint, upstream.endpoint(endpoint.dial)))
    };
    let heeds = upstream.heeds_ejections(count, traffic, now);
    let good = |candidate: &(&Endpoint, Rc<EndpointState>)| {
        let is_out = heeds && candidate.1.is_ejected(now);
        !is_out && !tried.contains(&candidate.0.dial)
    };
    let better = |a: (&'e Endpoint, Rc<EndpointState>), b: (&'e Endpoint, Rc<EndpointState>)| {
        if b.1.is_cheaper_than(&a.1, now) { b } else { a }
    };
    let (first, second) = match (traffic.balance, count) {
        (_, 0) => return None,
        (_, 1) => (at(0), None),
        (Balance::LeastRequest, _) => {
            let first = random(count);
            // Shifted, so that both differ.
            (at(first), at((first + 1 + random(count - 1)) % count))
        }
        (Balance::Random, _) => (at(random(count)), None),
        (Balance::RoundRobin, _) => (at(upstream.next_turn() % count), None),
    };
    match (first.filter(&good), second.filter(&good)) {
        (Some(first), Some(second)) => return Some(better(first, second)),
        (Some(only), None) | (None, Some(only)) => return Some(only),
        (None, None) => {}
    }
    // From a random place on, so that the load of those that are out spreads over all others.
    let start = random(count);
    let mut rest = (0..count).filter_map(|step| at((start + step) % count)).filter(good);
    let first = rest.next()?;
    Some(match (traffic.balance, rest.next()) {
        (Balance::LeastRequest, Some(second)) => better(first, second),
        _ => first,
    })
}

/// Uniform below `n`.
pub fn random(n: usize) -> usize {
    rand::random_range(0..n.max(1))
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
