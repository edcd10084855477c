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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::state::{
        Tainted,
        signer::{HOUR, Signer, trust},
    };
    use std::time::Duration;

    #[test]
    fn the_sidecar_is_ready_while_its_certificate_will_last() {
        let (root, other) = (Signer::new("root", None), Signer::new("other", None));
        let (store, ready) = (Arc::new(Store::default()), ready::Ready::default());
        let mut readiness = Readiness::new(store.clone(), ready.clone());
        let second = Duration::from_secs(1);
        let mut check = |at: SystemTime, is_ready: bool, what: &str| {
            readiness.look(at);
            assert_eq!(ready.missing().is_empty(), is_ready, "{what}");
        };
        check(SystemTime::now(), false, "none yet");
        let trusted = || trust(&[&root, &other], &[], 1);
        store.publish_credentials(root.credentials(&[], trusted(), HOUR).unwrap()).unwrap();
        let current = store.credentials().unwrap();
        check(current.not_before, true, "begun");
        check(current.not_before - second, false, "not yet valid");
        check(current.nearly_over() - second, true, "more than a tenth is left");
        check(current.nearly_over(), false, "a tenth is left");
        check(current.not_after + second, false, "over");
        // The next one lasts longer.
        store.publish_credentials(root.credentials(&[], trusted(), 2 * HOUR).unwrap()).unwrap();
        check(current.nearly_over(), true, "another certificate is there");
        store.publish_trust(trust(&[&other], &[root.key()], 2), Tainted::default()).unwrap();
        check(SystemTime::now(), false, "withdrawn");
    }
}
