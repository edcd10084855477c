//! Readiness, as far as the certificate goes: false without a usable one and below a tenth of its life. Liveness never asks.

use super::LOOK_AT_CLOCK;
use crate::{ready, state::Store};
use std::{sync::Arc, time::SystemTime};

/// Holds readiness back as `certificate` while there is none that will last.
pub struct Readiness {
    store: Arc<Store>,
    ready: ready::Ready,
    blocked: Option<ready::Guard>,
}

impl Readiness {
    /// Held back from here on, unless the store has a good certificate already.
    pub fn new(store: Arc<Store>, ready: ready::Ready) -> Self {
        let blocked = Some(ready.block("certificate"));
        let mut readiness = Self { store, ready, blocked };
        readiness.look(SystemTime::now());
        readiness
    }

    /// Follows the certificate for ever.
    pub async fn follow(mut self) {
        let mut changed = self.store.credentials_generation();
        loop {
            changed.borrow_and_update();
            self.look(SystemTime::now());
            // The sender lives in our own store, so this fails never; but the clock may jump at any time, and back.
            let _ = tokio::time::timeout(LOOK_AT_CLOCK, changed.changed()).await;
        }
    }

    fn look(&mut self, now: SystemTime) {
        let lasts = self
            .store
            .credentials()
            .is_some_and(|current| (current.not_before..current.nearly_over()).contains(&now));
        if lasts {
            self.blocked = None;
        } else if self.blocked.is_none() {
            tracing::error!(
                "the certificate is withdrawn, over, not yet valid, or has less than a tenth of its life left: not ready"
            );
            self.blocked = Some(self.ready.block("certificate"));
        }
    }
}
