//! Our own identity: obtain a certificate, renew it in time, publish it when it is proven good.
//!
//! A new key for each certificate; the key never leaves the process. A failed renewal never drops a valid certificate.

pub mod agent;
pub mod issue;
mod readiness;
pub mod schedule;
pub mod source;

use crate::{
    ready,
    state::{Credentials, Store},
    telemetry::Telemetry,
};
use issue::Issued;
use parking_lot::Mutex;
use readiness::Readiness;
use source::Source;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// The clock may jump (a laptop that slept), so a long wait looks at it now and then.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(5);
/// Clocks that differ by more than this are worth a warning: certificates are about to look expired or not yet valid.
const SKEW_WARNING: Duration = Duration::from_secs(5);

/// What people may know about our certificate.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// When the next renewal is due.
    pub renew_at: Option<SystemTime>,
    /// Why the last attempt failed; `None` after a success.
    pub last_failure: Option<String>,
    /// The authority's clock minus ours, in seconds.
    pub clock_skew: Option<f64>,
    /// Certificates obtained so far.
    pub obtained: u64,
}

/// Asks for a renewal, and for the status. Clones are cheap.
#[derive(Clone, Debug)]
pub struct Handle {
    asks: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
    status: Arc<Mutex<Status>>,
}

impl Handle {
    /// Renews now; the serial of the new certificate.
    ///
    /// # Errors
    /// Why it failed; the current certificate stays.
    pub async fn renew(&self) -> Result<String, String> {
        let (answer, answered) = oneshot::channel();
        self.asks
            .try_send(answer)
            .map_err(|_| "other renewals are waiting; try again in a moment".to_owned())?;
        answered.await.map_err(|_| "the sidecar is shutting down".to_owned())?
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        self.status.lock().clone()
    }
}

/// Keeps a valid certificate in the store.
pub struct WorkloadIdentity {
    source: Source,
    store: Arc<Store>,
    telemetry: Telemetry,
    readiness: Option<Readiness>,
    asks: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    status: Arc<Mutex<Status>>,
    failures: u32,
}

impl WorkloadIdentity {
    /// Nothing happens until [`WorkloadIdentity::run`]. Readiness is held back from here on, as `certificate`, unless the store has a
    /// certificate already.
    pub fn new(
        source: Source,
        store: Arc<Store>,
        telemetry: Telemetry,
        ready: ready::Ready,
    ) -> (Self, Handle) {
        let (sender, asks) = mpsc::channel(8);
        let status = Arc::new(Mutex::new(Status::default()));
        let handle = Handle { asks: sender, status: status.clone() };
        let readiness = Some(Readiness::new(store.clone(), ready));
        let identity = Self { source, store, telemetry, readiness, asks, status, failures: 0 };
        (identity, handle)
    }

    /// Obtains the first certificate, then renews it in time, until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let readiness = self.readiness.take();
        let follow = async {
            match readiness {
                Some(readiness) => readiness.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = follow => {}
            () = self.keep_valid() => {}
        }
    }

    async fn keep_valid(&mut self) {
        let mut due = Due::at(self.first_due());
        let mut trust = self.store.trust_generation();
        let mut has_askers = true;
        loop {
            self.status.lock().renew_at = Some(due.clock);
            let ask = tokio::select! {
                () = due.comes() => None,
                () = self.source.changed() => None,
                // The sender lives in our own store, so this never fails.
                _ = trust.changed() => {
                    due = self.sooner(due);
                    continue;
                }
                ask = self.asks.recv(), if has_askers => match ask {
                    Some(ask) => Some(ask),
                    // Nobody holds a handle any more; the schedule goes on.
                    None => {
                        has_askers = false;
                        continue;
                    }
                },
            };
            let obtained = self.source.obtain(&self.store).await;
            let answer = match obtained.and_then(|issued| self.publish(issued)) {
                Ok((serial, next)) => {
                    due = Due::at(next);
                    Ok(serial)
                }
                Err(reason) => {
                    due = Due::at(self.failed(&reason));
                    Err(reason)
                }
            };
            if let Some(ask) = ask {
                let _ = ask.send(answer);
            }
        }
    }

    /// At once without a certificate; else as if the one that was kept had been obtained by us.
    fn first_due(&self) -> SystemTime {
        let now = SystemTime::now();
        let Some(kept) = self.store.credentials() else { return now };
        self.telemetry.metrics().set_certificate(kept.not_before, kept.not_after);
        let due = schedule::renewal_moment(kept.not_before, kept.not_before, kept.not_after, rand::random());
        due.max(now + schedule::taint_pause(Duration::ZERO, remaining(&kept, now), rand::random()))
    }

    /// Trust has changed: a certificate below an authority that is about to go is replaced soon, one below a revoked
    /// authority at once.
    fn sooner(&self, due: Due) -> Due {
        if !self.store.wants_renewal() {
            return due;
        }
        let now = SystemTime::now();
        let pause = match self.store.credentials() {
            Some(current) => {
                schedule::taint_pause(self.store.renewal_spread(), remaining(&current, now), rand::random())
            }
            None => Duration::ZERO,
        };
        tracing::info!(
            pause_ms = pause.as_millis(),
            "our certificate is below an authority that goes; renewing it now"
        );
        due.or(Due::at(now + pause))
    }

    /// Only what our own verifier accepts is published: what peers would refuse never replaces what they accept.
    fn publish(&mut self, issued: Issued) -> Result<(String, SystemTime), String> {
        if let Some(skew) = issued.clock_skew {
            self.note_skew(skew);
        }
        let new = issued.credentials;
        let (id, serial, not_before, not_after) =
            (new.id.clone(), new.serial.clone(), new.not_before, new.not_after);
        let nearly_over = new.nearly_over();
        self.store.publish_credentials(new)?;
        let now = SystemTime::now();
        let next = if self.source.rotates_by_itself() {
            nearly_over
        } else {
            schedule::renewal_moment(now, now, not_after, rand::random())
        };
        tracing::info!(
            identity = %id, %serial, seconds = seconds_until(now, not_after),
            renewal_in_seconds = seconds_until(now, next), "certificate in force"
        );
        self.telemetry.metrics().certificate_renewed(true);
        self.telemetry.metrics().set_certificate(not_before, not_after);
        self.source.used();
        self.failures = 0;
        let mut status = self.status.lock();
        status.last_failure = None;
        status.obtained += 1;
        Ok((serial, next))
    }

    /// The current certificate stays. The moment of the next attempt.
    fn failed(&mut self, reason: &str) -> SystemTime {
        let now = SystemTime::now();
        let remaining = self.store.credentials().map(|current| remaining(&current, now));
        let pause = schedule::retry_pause(self.failures, remaining, rand::random());
        self.failures = self.failures.saturating_add(1);
        self.telemetry.metrics().certificate_renewed(false);
        tracing::warn!(
            %reason, retry_ms = pause.as_millis(), remaining_seconds = remaining.unwrap_or_default().as_secs(),
            "no new certificate; the current one, if any, stays in force until it ends"
        );
        self.status.lock().last_failure = Some(reason.to_owned());
        now + pause
    }

    fn note_skew(&self, seconds: f64) {
        self.telemetry.metrics().set_clock_skew(seconds);
        self.status.lock().clock_skew = Some(seconds);
        if seconds.abs() >= SKEW_WARNING.as_secs_f64() {
            tracing::warn!(
                skew_seconds = seconds,
                "our clock and the authority's differ; certificates may look expired or not yet valid: check time synchronization"
            );
        }
    }
}

fn remaining(current: &Credentials, now: SystemTime) -> Duration {
    current.not_after.duration_since(now).unwrap_or_default()
}

/// A moment to come: by the clock, or when as much time has passed as it was away, whichever is first. A clock that is set
/// back, or was ahead for a while, must not put off a renewal beyond the end of the certificate.
#[derive(Clone, Copy, Debug)]
struct Due {
    clock: SystemTime,
    passing: Instant,
}

impl Due {
    fn at(clock: SystemTime) -> Self {
        Self { clock, passing: Instant::now() + clock.duration_since(SystemTime::now()).unwrap_or_default() }
    }

    fn or(self, other: Self) -> Self {
        Self { clock: self.clock.min(other.clock), passing: self.passing.min(other.passing) }
    }

    async fn comes(self) {
        while let Ok(left) = self.clock.duration_since(SystemTime::now()) {
            let left = left.min(self.passing.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
        }
    }
}

fn seconds_until(now: SystemTime, then: SystemTime) -> u64 {
    then.duration_since(now).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn a_moment_comes_by_the_clock_or_by_the_time_that_has_passed() {
        let now = SystemTime::now();
        Due::at(now).comes().await;
        Due::at(now - HOUR).comes().await;
        // Time passes here and the clock stands still, as after a clock that was set back.
        let (began, due) = (Instant::now(), Due::at(now + HOUR));
        due.comes().await;
        assert!(began.elapsed() <= HOUR + LOOK_AT_CLOCK && began.elapsed() > HOUR - LOOK_AT_CLOCK);
        // The clock is there although no time has passed.
        let ahead = Due { clock: now, passing: Instant::now() + HOUR };
        let began = Instant::now();
        ahead.comes().await;
        Due::at(now + HOUR).or(ahead).comes().await;
        assert!(began.elapsed() < LOOK_AT_CLOCK);
    }
}
