//! Servers that speak first, on ports of which nothing says so. The first connection to one finds out, by waiting for a client that says
//! nothing; later ones do not wait for it again.

use std::{cell::RefCell, collections::HashSet, net::SocketAddr, time::Duration};

/// A greeting comes at once. What comes later is no greeting: a server of HTTP, for example, that tells a silent client how long it has
/// waited.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Addresses that are remembered at most; then it is found out anew.
const MOST: usize = 1024;

/// What one worker has learned, by the address that clients dial.
#[derive(Debug, Default)]
pub struct Greeters(RefCell<HashSet<SocketAddr>>);

impl Greeters {
    /// How long a client of this address may say nothing before its server is asked: `usual`, or no time.
    pub fn patience(&self, address: SocketAddr, usual: Duration) -> Duration {
        if self.0.borrow().contains(&address) { Duration::ZERO } else { usual }
    }

    /// On a connection for bytes the server spoke first, or not, so long after it stood. A client that spoke first to a server that
    /// was remembered was not waited for, and the next one will be: so an error lasts for one connection.
    pub fn learn(&self, address: SocketAddr, server: bool, after: Duration) {
        let mut known = self.0.borrow_mut();
        if !server {
            known.remove(&address);
        } else if after <= AT_ONCE {
            if known.len() >= MOST {
                known.clear();
            }
            known.insert(address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_greets_at_once_is_remembered_until_a_client_speaks_first() {
        const USUAL: Duration = Duration::from_millis(200);
        let greeters = Greeters::default();
        let address = |port| SocketAddr::from(([10, 96, 0, 1], port));
        let patience = |port| greeters.patience(address(port), USUAL);
        assert_eq!(patience(25), USUAL);
        greeters.learn(address(25), true, AT_ONCE);
        greeters.learn(address(26), true, AT_ONCE + Duration::from_millis(1));
        assert_eq!((patience(25), patience(26)), (Duration::ZERO, USUAL));
        greeters.learn(address(25), false, Duration::ZERO);
        assert_eq!(patience(25), USUAL);
        for port in 1..=2 * MOST as u16 {
            greeters.learn(address(port), true, Duration::ZERO);
        }
        assert!(greeters.0.borrow().len() <= MOST);
    }
}
