//! The way down: one trigger, many watchers, one deadline.
//!
//! On drain the listeners stop accepting, HTTP/1.1 answers carry `connection: close`, HTTP/2 gets GOAWAY, and what is
//! in flight may finish until the deadline; what is left then is cut off.

use std::time::Duration;
use tokio::{sync::watch, time::Instant};

/// Starts the drain. Dropping it without a call starts a drain with no time left, so that nothing outlives its owner.
#[derive(Debug)]
pub struct Trigger(watch::Sender<Option<Instant>>);

/// Sees the drain. Clones are cheap; every connection holds one.
#[derive(Clone, Debug)]
pub struct Watch(watch::Receiver<Option<Instant>>);

/// A trigger and its first watch.
pub fn channel() -> (Trigger, Watch) {
    let (sender, receiver) = watch::channel(None);
    (Trigger(sender), Watch(receiver))
}

impl Trigger {
    /// Starts the drain: everything in flight may last `patience` longer. A second call can only shorten the time.
    pub fn start(&self, patience: Duration) {
        let wanted = Instant::now() + patience;
        self.0
            .send_modify(|deadline| *deadline = Some(deadline.map_or(wanted, |earlier| earlier.min(wanted))));
    }
}

impl Watch {
    /// Whether the drain has started.
    pub fn is_draining(&self) -> bool {
        self.0.borrow().is_some() || self.0.has_changed().is_err()
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
            let deadline = *receiver.borrow_and_update();
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

    #[tokio::test]
    async fn a_dropped_trigger_ends_everything_at_once() {
        let (trigger, watch) = channel();
        drop(trigger);
        watch.started().await;
        watch.over().await;
        assert!(watch.is_draining());
    }
}
