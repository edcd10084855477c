//! Which parts of the start are still missing: each holds a guard, and dropping it means "done".

use parking_lot::Mutex;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// Readiness of one sidecar. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Ready(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    missing: Mutex<BTreeMap<&'static str, usize>>,
    is_ready: watch::Sender<bool>,
}

/// Holds readiness back while it lives.
#[derive(Debug)]
#[must_use = "readiness is held back only while the guard lives"]
pub struct Guard {
    ready: Ready,
    name: &'static str,
}

impl Default for Ready {
    fn default() -> Self {
        Self(Arc::new(Inner { missing: Mutex::default(), is_ready: watch::channel(true).0 }))
    }
}

impl Ready {
    /// Holds readiness back under this name until the guard is dropped.
    pub fn block(&self, name: &'static str) -> Guard {
        let mut missing = self.0.missing.lock();
        *missing.entry(name).or_default() += 1;
        self.0.is_ready.send_replace(false);
        Guard { ready: self.clone(), name }
    }

    /// What is missing, in alphabetical order; empty = ready.
    pub fn missing(&self) -> Vec<&'static str> {
        self.0.missing.lock().keys().copied().collect()
    }

    /// Resolves when nothing is missing.
    pub async fn wait(&self) {
        let mut is_ready = self.0.is_ready.subscribe();
        // The sender lives in `self`, so this cannot fail while we wait.
        let _ = is_ready.wait_for(|is_ready| *is_ready).await;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut missing = self.ready.0.missing.lock();
        if let Some(count) = missing.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                missing.remove(self.name);
            }
        }
        self.ready.0.is_ready.send_replace(missing.is_empty());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[tokio::test]
    async fn it_is_ready_when_the_last_guard_is_gone_and_says_what_is_missing_until_then() {
        let ready = Ready::default();
        let policy = ready.block("policy");
        let certificate = ready.block("certificate");
        let second = ready.block("certificate");
        assert_eq!(ready.missing(), ["certificate", "policy"]);
        drop(certificate);
        drop(policy);
        assert_eq!(ready.missing(), ["certificate"]);
        let waiting = tokio::spawn({
            let ready = ready.clone();
            async move { ready.wait().await }
        });
        drop(second);
        waiting.await.unwrap();
        assert!(ready.missing().is_empty());
    }
}
