//! The way down: one trigger, many watchers, one deadline.
//!
//! On drain readiness is false, HTTP/1.1 answers carry `connection: close`, HTTP/2 gets GOAWAY, at once. The inbound listeners
//! go on for a while, since callers learn only by and by that this workload goes; the outbound ones as long as the app may have
//! something to finish. What is in flight may last until the deadline; what is left then is cut off.

use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// How long inbound connections are accepted after the start, or half of the whole time where that is less.
const INBOUND: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
struct Plan {
    inbound_until: Instant,
    deadline: Instant,
    app_is_gone: bool,
}

/// Which listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Those for calls to the app.
    Inbound,
    /// Those for calls of the app.
    Outbound,
}

/// Starts the drain. Dropping it without a call starts a drain with no time left, so that nothing outlives its owner.
#[derive(Debug)]
pub struct Trigger(watch::Sender<Option<Plan>>);

/// Sees the drain. Clones are cheap; connections of HTTP hear of it from their worker ([`crate::news`]).
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Option<Plan>>);

/// A trigger and its first watch.
pub fn channel() -> (Trigger, Watch) {
    let (sender, receiver) = watch::channel(None);
    (Trigger(sender), Watch(receiver))
}

impl Trigger {
    /// Starts the drain: everything in flight may last `patience` longer. A second call can only shorten the time.
    pub fn start(&self, patience: Duration) {
        let now = Instant::now();
        let wanted = Plan {
            inbound_until: now + INBOUND.min(patience / 2),
            deadline: now + patience,
            app_is_gone: false,
        };
        self.0.send_modify(|plan| {
            *plan = Some(plan.map_or(wanted, |earlier| Plan {
                inbound_until: earlier.inbound_until.min(wanted.inbound_until),
                deadline: earlier.deadline.min(wanted.deadline),
                app_is_gone: earlier.app_is_gone,
            }));
        });
    }

    /// The app has ended: nobody is left to call, and nobody calls. Without effect before the start.
    pub fn app_is_gone(&self) {
        self.0.send_if_modified(|plan| {
            let news = plan.as_mut().filter(|plan| !plan.app_is_gone);
            news.map(|plan| plan.app_is_gone = true).is_some()
        });
    }
}

impl Watch {
    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
    }

    /// Whether the drain has started and its time is over.
    pub fn is_over(&self) -> bool {
        self.0.borrow().is_some_and(|plan| plan.deadline <= Instant::now())
    }

    /// Resolves when listeners of this side stop accepting.
    pub async fn closed(&self, side: Side) {
        let mut receiver = self.0.clone();
        loop {
            let plan = *receiver.borrow_and_update();
            let changed = match plan {
                Some(Plan { app_is_gone: true, .. }) => return,
                Some(plan) => {
                    let until = if side == Side::Inbound { plan.inbound_until } else { plan.deadline };
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => return,
                        changed = receiver.changed() => changed,
                    }
                }
                None => receiver.changed().await,
            };
            // The owner was dropped, which is the end.
            if changed.is_err() {
                return;
            }
        }
    }

    /// Resolves when the drain starts (at once when it already has).
    pub async fn started(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone: the owner was dropped, which is the end as well.
        let _ = receiver.wait_for(Option::is_some).await;
    }

    /// Resolves when the drain has started and its time is over.
    pub async fn over(&self) {
        let mut receiver = self.0.clone();
        loop {
            let deadline = receiver.borrow_and_update().map(|plan| plan.deadline);
            match deadline {
                Some(deadline) => tokio::select! {
                    () = tokio::time::sleep_until(deadline) => return,
                    changed = receiver.changed() => if changed.is_err() {
                        return tokio::time::sleep_until(deadline).await;
                    },
                },
                None if receiver.changed().await.is_err() => return,
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_sees_the_start_and_then_the_end() {
        let (trigger, watch) = channel();
        assert!(!watch.is_draining());
        trigger.start(Duration::from_secs(5));
        watch.started().await;
        assert!(watch.is_draining());
        let before = Instant::now();
        watch.over().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_start_can_only_shorten_the_time() {
        let (trigger, watch) = channel();
        trigger.start(Duration::from_secs(5));
        trigger.start(Duration::from_secs(50));
        let before = Instant::now();
        watch.over().await;
        assert_eq!(before.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn inbound_closes_after_a_while_and_outbound_with_the_deadline_or_the_app() {
        let took = async |patience: u64, side, gone_after: Option<u64>| {
            let (trigger, watch) = channel();
            trigger.app_is_gone();
            trigger.start(Duration::from_secs(patience));
            let before = Instant::now();
            let app = async {
                match gone_after {
                    Some(seconds) => tokio::time::sleep(Duration::from_secs(seconds)).await,
                    None => std::future::pending().await,
                }
                trigger.app_is_gone();
                std::future::pending::<()>().await;
            };
            tokio::select! { () = watch.closed(side) => {}, () = app => {} }
            before.elapsed().as_secs()
        };
        assert_eq!(took(60, Side::Inbound, None).await, 5);
        assert_eq!(took(6, Side::Inbound, None).await, 3);
        assert_eq!(took(60, Side::Outbound, None).await, 60);
        assert_eq!(took(60, Side::Outbound, Some(20)).await, 20);
        assert_eq!(took(60, Side::Inbound, Some(2)).await, 2);
    }

    #[tokio::test]
    async fn a_dropped_trigger_ends_everything_at_once() {
        let (trigger, watch) = channel();
        drop(trigger);
        watch.started().await;
        watch.closed(Side::Outbound).await;
        watch.over().await;
        assert!(watch.is_draining());
    }
}
