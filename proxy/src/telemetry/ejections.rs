//! Who is ejected now, for people: written when it happens, read by the admin page. Never on the way of a request that works.

use parking_lot::Mutex;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

/// Remembered at most.
const MOST: usize = 1000;

/// An endpoint that is left out for a time, by one worker at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    /// `host:port` of the service.
    pub service: Arc<str>,
    /// Which endpoint.
    pub address: SocketAddr,
    /// `5xx-errors`, `gateway-errors` or `local-origin-failures`.
    pub reason: &'static str,
    /// When it is back.
    pub until: SystemTime,
}

/// All ejections of one sidecar.
#[derive(Debug, Default)]
pub struct Ejections(Mutex<BTreeMap<(Arc<str>, SocketAddr), Ejection>>);

impl Ejections {
    /// Notes one.
    pub fn began(&self, ejection: Ejection) {
        let mut all = self.0.lock();
        let key = (ejection.service.clone(), ejection.address);
        if all.len() < MOST || all.contains_key(&key) {
            all.insert(key, ejection);
        }
    }

    /// It is over, or the endpoint is gone.
    pub fn ended(&self, service: &Arc<str>, address: SocketAddr) {
        self.0.lock().remove(&(service.clone(), address));
    }

    /// Those that are not over at `now`, by service and address.
    pub fn list(&self, now: SystemTime) -> Vec<Ejection> {
        self.0.lock().values().filter(|ejection| ejection.until > now).cloned().collect()
    }
}
