//! Readiness, as far as the certificate goes: false without a usable one and below a tenth of its life. Liveness never asks.

use super::until;
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
            let next = self.look(SystemTime::now());
            tokio::select! {
                // The sender lives in our own store, so this never fails.
                _ = changed.changed() => {}
                () = async { match next { Some(moment) => until(moment).await, None => std::future::pending().await } } => {}
            }
        }
    }

    /// Looks once; the moment at which the answer changes by itself.
    fn look(&mut self, now: SystemTime) -> Option<SystemTime> {
        let low = self.store.credentials().map(|current| current.nearly_over());
        let lasts = low.is_some_and(|low| now < low);
        if lasts {
            self.blocked = None;
        } else if self.blocked.is_none() {
            tracing::error!(
                "the certificate is withdrawn, over, or has less than a tenth of its life left: not ready"
            );
            self.blocked = Some(self.ready.block("certificate"));
        }
        low.filter(|_| lasts)
    }
}
