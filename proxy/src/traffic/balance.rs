//! Which endpoint: power of two choices by what is in flight.
//!
//! Two random candidates, the less loaded one wins: nearly as even as asking all, without a herd on the emptiest
//! (Mitzenmacher 2001; Envoy's LEAST_REQUEST does the same).

use crate::state::Endpoint;
use std::net::SocketAddr;

/// Picks an endpoint that was not tried yet; `None` when there is none. `random(n)` is uniform below `n`.
pub fn pick<'e>(
    endpoints: &'e [Endpoint],
    tried: &[SocketAddr],
    load: impl Fn(&SocketAddr) -> usize,
    mut random: impl FnMut(usize) -> usize,
) -> Option<&'e Endpoint> {
    let untried = || endpoints.iter().filter(|endpoint| !tried.contains(&endpoint.dial));
    let count = untried().count();
    if count <= 1 {
        return untried().next();
    }
    let first = random(count);
    // Shifted, so that both differ.
    let second = (first + 1 + random(count - 1)) % count;
    let (first, second) = (untried().nth(first)?, untried().nth(second)?);
    Some(if load(&second.dial) < load(&first.dial) { second } else { first })
}

/// Uniform below `n`.
pub fn random(n: usize) -> usize {
    rand::random_range(0..n.max(1))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use postern_config::snapshot::Protocol;

    fn endpoints(count: u16) -> Vec<Endpoint> {
        (1..=count)
            .map(|port| Endpoint {
                workload: format!("ns/pod-{port}"),
                dial: ([10, 0, 0, 1], port).into(),
                port,
                identity: None,
                protocol: Protocol::Http,
            })
            .collect()
    }

    #[test]
    fn the_less_loaded_of_two_different_ones_wins() {
        let endpoints = endpoints(4);
        for first in 0..4 {
            for second in 0..3 {
                let mut draws = [first, second].into_iter();
                let chosen =
                    pick(&endpoints, &[], |address| address.port() as usize, |_| draws.next().unwrap())
                        .unwrap();
                let other = (first + 1 + second) % 4;
                assert_ne!(first, other);
                assert_eq!(usize::from(chosen.port), first.min(other) + 1);
            }
        }
    }

    #[test]
    fn what_was_tried_is_not_tried_again() {
        let endpoints = endpoints(2);
        let tried = [endpoints[0].dial];
        assert_eq!(pick(&endpoints, &tried, |_| 0, |_| 0), Some(&endpoints[1]));
        assert_eq!(pick(&endpoints, &[endpoints[0].dial, endpoints[1].dial], |_| 0, |_| 0), None);
        assert_eq!(pick(&[], &[], |_| 0, |_| 0), None);
    }

    #[test]
    fn an_idle_mesh_is_used_evenly() {
        let endpoints = endpoints(3);
        let mut seen = [0_usize; 3];
        for _ in 0..3000 {
            seen[usize::from(pick(&endpoints, &[], |_| 0, random).unwrap().port) - 1] += 1;
        }
        assert!(seen.iter().all(|count| *count > 700), "{seen:?}");
    }
}
