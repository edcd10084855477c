//! What sidecars report, told on as it comes to those who watch. While nobody watches nothing is written; a watcher that does not keep up
//! is cut off, and costs nobody anything.

use super::{
    history::{denial, written},
    intake::Taken,
    pages,
};
use bytes::Bytes;
use std::{cmp::Reverse, sync::Arc, time::SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};

/// Who may watch at once.
pub(crate) const WATCHERS: usize = 8;
/// Events that wait for the slowest of them. One has at most 80 KiB and typically one, so that all together are never more than 20 MiB.
const WAITING: usize = 256;
/// What one event tells at most.
const DENIALS: usize = 8;
const CALLERS: usize = 16;
const RULES: usize = 8;

/// All who watch.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Bytes>,
    places: Arc<Semaphore>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(WAITING), places: Arc::new(Semaphore::new(WATCHERS)) }
    }
}

/// Somebody who watches, until this is dropped.
pub(crate) struct Watcher {
    events: broadcast::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Events {
    /// `None` when there are too many.
    pub(crate) fn watch(&self) -> Option<Watcher> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Watcher { events: self.sender.subscribe(), _place: place })
    }

    /// How many events the slowest has not been told yet.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.sender.len()
    }

    /// Tells what is left of a report.
    pub(super) fn tell(&self, namespace: &str, pod: &str, identity: &str, taken: &Taken, now: SystemTime) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let event = event(format!("{namespace}/{pod}"), identity, taken, now);
        if event.denials.is_empty() && event.allowed.is_empty() && event.rules.is_empty() {
            return;
        }
        // Texts and numbers have no way to fail; that the last watcher has just gone is no matter.
        let _ = self.sender.send(serde_json::to_vec(&event).unwrap_or_default().into());
    }
}

impl Watcher {
    /// The next event, as JSON in one line; `None` when it came too late for some. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.events.recv().await.ok()
    }
}

fn event(workload: String, identity: &str, taken: &Taken, now: SystemTime) -> pages::Decided {
    let mut allowed: Vec<_> = taken
        .edges
        .iter()
        .filter(|(edge, sums)| edge.is_inbound && sums.calls > sums.denied)
        .map(|(edge, sums)| pages::Allowed { peer: edge.peer.clone(), calls: sums.calls - sums.denied })
        .collect();
    allowed.sort_by_key(|one| Reverse(one.calls));
    let mut rules: Vec<_> = taken
        .rules
        .iter()
        .map(|((policy, rule), used)| pages::Matched {
            policy: policy.clone(),
            rule: *rule,
            matched: used.matched,
            would_deny: used.would_deny,
        })
        .collect();
    rules.sort_by_key(|one| Reverse(one.matched.max(one.would_deny)));
    let left_out = allowed.len().saturating_sub(CALLERS) + taken.denials.len().saturating_sub(DENIALS);
    allowed.truncate(CALLERS);
    rules.truncate(RULES);
    pages::Decided {
        now: written(now),
        identity: identity.to_owned(),
        denials: taken
            .denials
            .iter()
            .take(DENIALS)
            .map(|(kind, denied)| denial(workload.clone(), identity, kind, denied, denied.count))
            .collect(),
        allowed,
        rules,
        left_out,
        workload,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::traffic::intake::{
        self,
        tests::{denial_of, edge_of, now},
    };
    use postern_api::v1;

    const PEER: &str = "spiffe://cluster.local/ns/a/sa/b";

    fn tell(events: &Events, report: v1::Report) {
        events.tell(
            "shop",
            "cart",
            "spiffe://cluster.local/ns/shop/sa/cart",
            &intake::read(report, now()),
            now(),
        );
    }

    /// Tells of eight denials at paths below this one, in some 5 KiB.
    pub(crate) fn tell_denials(events: &Events, path: &str) {
        let closest = "x".repeat(500);
        let denials = (0..DENIALS)
            .map(|n| v1::Denial { closest: closest.clone(), ..denial_of(&format!("{path}/{n}"), "0a") });
        tell(events, v1::Report { denials: denials.collect(), ..Default::default() });
    }

    #[tokio::test]
    async fn a_watcher_is_told_what_was_let_in_and_what_was_denied_and_by_which_rule() {
        let events = Events::default();
        let mut watcher = events.watch().unwrap();
        let edge = v1::Edge { denied: 2, ..edge_of(PEER, 7) };
        let outbound = v1::Edge { direction: v1::Direction::Outbound.into(), ..edge_of(PEER, 9) };
        let rule =
            v1::RuleUse { policy: "shop/callers".into(), rule: Some(0), matched: 5, ..Default::default() };
        tell(
            &events,
            v1::Report {
                edges: vec![edge, outbound],
                denials: vec![denial_of("/x", "0a")],
                rules: vec![rule],
                ..Default::default()
            },
        );
        let told: pages::Decided = serde_json::from_slice(&watcher.next().await.unwrap()).unwrap();
        assert_eq!(told.workload, "shop/cart");
        assert_eq!(
            told.allowed,
            [pages::Allowed { peer: Some(PEER.into()), calls: 5 }],
            "what it called itself is told by the called"
        );
        assert_eq!((told.rules[0].policy.as_str(), told.rules[0].matched), ("shop/callers", 5));
        assert_eq!(told.denials[0].path.as_deref(), Some("/x"));
    }

    #[tokio::test]
    async fn a_watcher_that_does_not_keep_up_is_cut_off_and_too_many_are_not_taken() {
        let events = Events::default();
        let mut slow = events.watch().unwrap();
        let mut quick = events.watch().unwrap();
        for count in 0..=WAITING {
            tell(&events, v1::Report { edges: vec![edge_of(PEER, 1)], ..Default::default() });
            assert!(quick.next().await.is_some(), "{count}");
        }
        assert!(slow.next().await.is_none());
        let others: Vec<_> = (2..WATCHERS).map(|_| events.watch().unwrap()).collect();
        assert!(events.watch().is_none());
        drop(others);
        assert!(events.watch().is_some());
    }

    #[test]
    fn an_event_is_bounded_whatever_a_sidecar_says() {
        let long = "\u{1b}".repeat(600);
        let denials = (0..64).map(|n| v1::Denial {
            closest: long.clone(),
            reason: long.clone(),
            ..denial_of(&format!("/{n}{long}"), "0a")
        });
        let edges = (0..256).map(|n| edge_of(&format!("spiffe://cluster.local/ns/a/sa/b{n}"), n + 1));
        let rules =
            (0..256).map(|n| v1::RuleUse { policy: format!("{n}{long}"), matched: 1, ..Default::default() });
        let report = v1::Report {
            denials: denials.collect(),
            edges: edges.collect(),
            rules: rules.collect(),
            ..Default::default()
        };
        let told = event("shop/cart".into(), PEER, &intake::read(report, now()), now());
        assert_eq!((told.denials.len(), told.allowed.len(), told.rules.len()), (DENIALS, CALLERS, RULES));
        assert_eq!((told.allowed[0].calls, told.left_out), (256, 64 - DENIALS + 256 - CALLERS));
        assert!(serde_json::to_vec(&told).unwrap().len() < 80 * 1024);
    }
}
