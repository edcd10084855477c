//! The denials we remember: a bounded ring of owned facts, explained only when someone asks.

use parking_lot::Mutex;
use postern_config::{Facts, HttpFacts, RuleRef};
use postern_identity::SpiffeId;
use std::{collections::VecDeque, net::IpAddr, sync::Arc, time::SystemTime};

/// How many are kept; the oldest goes first.
pub const REMEMBERED: usize = 256;
const HEADERS_KEPT: usize = 64;
const HEADER_BYTES_KEPT: usize = 16 * 1024;
const TEXT_KEPT: usize = 2048;
/// Never kept, since they are secrets of the caller.
const SECRET_HEADERS: [http::HeaderName; 4] = [
    http::header::AUTHORIZATION,
    http::header::PROXY_AUTHORIZATION,
    http::header::COOKIE,
    http::header::SET_COOKIE,
];

/// One denial with the facts that policy saw.
#[derive(Clone, Debug)]
pub struct Denial {
    /// Key.
    pub id: String,
    /// When.
    pub at: SystemTime,
    /// Version of the policy that denied.
    pub policy_version: Arc<str>,
    /// In words.
    pub reason: &'static str,
    /// The rule that denied, when one did.
    pub rule: Option<Arc<RuleRef>>,
    peer: Option<SpiffeId>,
    source_ip: IpAddr,
    remote_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
    sni: Option<String>,
    http: Option<OwnedHttp>,
}

#[derive(Clone, Debug)]
struct OwnedHttp {
    method: String,
    path: String,
    host: String,
    headers: http::HeaderMap,
}

impl Denial {
    /// Copies what it needs of the facts, bounded, without the caller's secrets.
    pub fn new(
        id: String,
        at: SystemTime,
        policy_version: &Arc<str>,
        reason: &'static str,
        rule: Option<Arc<RuleRef>>,
        facts: &Facts<'_>,
    ) -> Self {
        Self {
            id,
            at,
            policy_version: policy_version.clone(),
            reason,
            rule,
            peer: facts.peer.cloned(),
            source_ip: facts.source_ip,
            remote_ip: facts.remote_ip,
            destination_ip: facts.destination_ip,
            destination_port: facts.destination_port,
            sni: facts.sni.map(|sni| bounded(sni).to_owned()),
            http: facts.http.map(|http| OwnedHttp {
                method: bounded(http.method).to_owned(),
                path: bounded(http.path).to_owned(),
                host: bounded(http.host).to_owned(),
                headers: kept(http.headers),
            }),
        }
    }

    /// The facts again, as policy takes them. Secret headers are missing and long texts are cut.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            claims: None,
            peer: self.peer.as_ref(),
            source_ip: self.source_ip,
            remote_ip: self.remote_ip,
            destination_ip: self.destination_ip,
            destination_port: self.destination_port,
            sni: self.sni.as_deref(),
            http: self.http.as_ref().map(|http| HttpFacts {
                method: &http.method,
                path: &http.path,
                host: &http.host,
                headers: &http.headers,
            }),
        }
    }
}

/// The ring. One per sidecar.
#[derive(Debug, Default)]
pub struct Denials(Mutex<VecDeque<Denial>>);

impl Denials {
    /// Remembers one, forgetting the oldest when full.
    pub fn remember(&self, denial: Denial) {
        let mut ring = self.0.lock();
        while ring.len() >= REMEMBERED {
            ring.pop_front();
        }
        ring.push_back(denial);
    }

    /// One, while it is remembered.
    pub fn find(&self, id: &str) -> Option<Denial> {
        self.0.lock().iter().find(|denial| denial.id == id).cloned()
    }

    /// The newest first, at most `count`.
    pub fn newest(&self, count: usize) -> Vec<Denial> {
        self.0.lock().iter().rev().take(count).cloned().collect()
    }
}

fn kept(headers: &http::HeaderMap) -> http::HeaderMap {
    let mut kept = http::HeaderMap::new();
    let mut bytes = 0usize;
    for (name, value) in headers.iter().filter(|(name, _)| !SECRET_HEADERS.contains(name)).take(HEADERS_KEPT)
    {
        bytes += name.as_str().len() + value.len();
        if bytes > HEADER_BYTES_KEPT {
            break;
        }
        kept.append(name.clone(), value.clone());
    }
    kept
}

fn bounded(text: &str) -> &str {
    super::access_log::cut(text, TEXT_KEPT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn denial(id: usize, headers: &http::HeaderMap) -> Denial {
        let ip = IpAddr::from([10, 0, 0, 1]);
        let facts = Facts {
            claims: None,
            peer: None,
            source_ip: ip,
            remote_ip: ip,
            destination_ip: ip,
            destination_port: 8080,
            sni: None,
            http: Some(HttpFacts { method: "GET", path: "/x", host: "h", headers }),
        };
        Denial::new(id.to_string(), SystemTime::UNIX_EPOCH, &"1".into(), "DENY rule matched", None, &facts)
    }

    #[test]
    fn the_ring_forgets_the_oldest_and_stays_bounded() {
        let ring = Denials::default();
        for id in 0..REMEMBERED + 10 {
            ring.remember(denial(id, &http::HeaderMap::new()));
        }
        assert!(ring.find("9").is_none());
        assert!(ring.find("10").is_some());
        assert_eq!(ring.newest(usize::MAX).len(), REMEMBERED);
        assert_eq!(ring.newest(1)[0].id, (REMEMBERED + 9).to_string());
    }

    #[test]
    fn secrets_of_the_caller_are_not_remembered() {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, "Bearer secret".parse().unwrap());
        headers.insert(http::header::COOKIE, "a=secret".parse().unwrap());
        headers.insert("x-tenant", "blue".parse().unwrap());
        let denial = denial(1, &headers);
        let facts = denial.facts();
        let seen = facts.http.unwrap().headers;
        assert_eq!(seen.len(), 1);
        assert_eq!(seen["x-tenant"], "blue");
        assert!(!format!("{denial:?}").contains("secret"));
    }
}
