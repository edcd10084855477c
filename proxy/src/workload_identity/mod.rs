//! Our own identity: obtain a certificate, renew it in time, publish it when it is proven good.
//!
//! A new key for each certificate; the key never leaves the process. A failed renewal never drops a valid certificate.

pub mod issue;
pub mod schedule;

use crate::{
    bootstrap::JoinToken,
    control::ControlPlane,
    ready,
    state::{Credentials, Store},
    telemetry::Telemetry,
};
use issue::Issued;
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// The clock may jump (a laptop that slept), so a long wait looks at it now and then.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(20);
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
    control: Arc<ControlPlane>,
    store: Arc<Store>,
    telemetry: Telemetry,
    token: Option<JoinToken>,
    lifetime: Option<Duration>,
    ready: ready::Ready,
    blocked: Option<ready::Guard>,
    asks: mpsc::Receiver<oneshot::Sender<Result<String, String>>>,
    status: Arc<Mutex<Status>>,
    failures: u32,
}

impl WorkloadIdentity {
    /// Nothing happens until [`WorkloadIdentity::run`]. Readiness is held back from here on, as `certificate`.
    pub fn new(
        control: Arc<ControlPlane>,
        store: Arc<Store>,
        telemetry: Telemetry,
        token: Option<JoinToken>,
        lifetime: Option<Duration>,
        ready: ready::Ready,
    ) -> (Self, Handle) {
        let (sender, asks) = mpsc::channel(8);
        let status = Arc::new(Mutex::new(Status::default()));
        let handle = Handle { asks: sender, status: status.clone() };
        let blocked = Some(ready.block("certificate"));
        let identity =
            Self { control, store, telemetry, token, lifetime, ready, blocked, asks, status, failures: 0 };
        (identity, handle)
    }

    /// Obtains the first certificate, then renews it in time, until stopped.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut due = SystemTime::now();
        let mut has_askers = true;
        loop {
            let ask = tokio::select! {
                () = stop.cancelled() => return,
                () = until(due) => None,
                ask = self.asks.recv(), if has_askers => match ask {
                    Some(ask) => Some(ask),
                    // Nobody holds a handle any more; the schedule goes on.
                    None => {
                        has_askers = false;
                        continue;
                    }
                },
            };
            let obtained = tokio::select! {
                () = stop.cancelled() => return,
                obtained = self.obtain() => obtained,
            };
            let answer = match obtained {
                Ok((serial, next)) => {
                    due = next;
                    Ok(serial)
                }
                Err(reason) => {
                    due = self.failed(&reason);
                    Err(reason)
                }
            };
            self.status.lock().renew_at = Some(due);
            if let Some(ask) = ask {
                let _ = ask.send(answer);
            }
        }
    }

    /// By the current certificate first, by the token second.
    async fn obtain(&mut self) -> Result<(String, SystemTime), String> {
        let current = self.store.credentials().filter(|current| current.not_after > SystemTime::now());
        let mut reasons = Vec::new();
        if let Some(current) = &current {
            let attempt = issue::request(
                &self.control,
                Some(current.key.clone()),
                current.trust.clone(),
                None,
                self.lifetime,
            );
            match attempt.await.and_then(|issued| self.publish(issued)) {
                Ok(published) => return Ok(published),
                Err(reason) => reasons.push(format!("with the current certificate: {reason}")),
            }
        }
        if let Some(token) = self.token.clone() {
            let trust = self.store.credentials().map(|current| current.trust.clone());
            let trust = trust.unwrap_or_else(|| self.control.bootstrap_trust.clone());
            let attempt = issue::request(&self.control, None, trust, Some(&token), self.lifetime);
            match attempt.await.and_then(|issued| self.publish(issued)) {
                Ok(published) => return Ok(published),
                Err(reason) => reasons.push(format!("with the join token: {reason}")),
            }
        }
        if reasons.is_empty() {
            reasons.push(
                "no valid certificate and no join token is left; restart the sidecar with a new token".into(),
            );
        }
        Err(reasons.join("; "))
    }

    /// Only what our own verifier accepts is published: what peers would refuse never replaces what they accept.
    fn publish(&mut self, issued: Issued) -> Result<(String, SystemTime), String> {
        self.note_skew(&issued);
        let tls = crate::tls::Contexts::build(issued.key.clone(), issued.trust.clone(), issued.peer.id())?;
        let not_after = issued.peer.not_after();
        let serial = issued.peer.serial().to_owned();
        let now = SystemTime::now();
        let next = schedule::renewal_moment(now, now, not_after, rand::random());
        tracing::info!(
            identity = %issued.peer.id(), %serial, seconds = seconds_until(now, not_after),
            renewal_in_seconds = seconds_until(now, next), "certificate in force"
        );
        self.store.publish_credentials(Credentials {
            id: issued.peer.id().clone(),
            key: issued.key,
            private_key: issued.private_key,
            trust: issued.trust,
            not_after,
            serial: serial.clone(),
            tls,
        });
        self.telemetry.metrics().certificate_renewed(Some(not_after));
        // One use only: it has no value any more.
        self.token = None;
        self.blocked = None;
        self.failures = 0;
        let mut status = self.status.lock();
        status.last_failure = None;
        status.obtained += 1;
        Ok((serial, next))
    }

    /// The current certificate stays; readiness goes when its end is near. The moment of the next attempt.
    fn failed(&mut self, reason: &str) -> SystemTime {
        let now = SystemTime::now();
        let remaining =
            self.store.credentials().map(|current| current.not_after.duration_since(now).unwrap_or_default());
        let pause = schedule::retry_pause(self.failures, remaining, rand::random());
        self.failures = self.failures.saturating_add(1);
        self.telemetry.metrics().certificate_renewed(None);
        let left = remaining.unwrap_or_default();
        // The last renewal was due at 65 % at the latest; a fifth of the lifetime later it is serious.
        if self.blocked.is_none() && left < self.lifetime.unwrap_or(Duration::from_secs(3600)) / 10 {
            self.blocked = Some(self.ready.block("certificate"));
        }
        tracing::warn!(
            %reason, retry_ms = pause.as_millis(), remaining_seconds = left.as_secs(),
            "no new certificate; the current one stays in force until it ends"
        );
        self.status.lock().last_failure = Some(reason.to_owned());
        now + pause
    }

    fn note_skew(&mut self, issued: &Issued) {
        self.telemetry.metrics().set_clock_skew(issued.clock_skew);
        self.status.lock().clock_skew = Some(issued.clock_skew);
        if issued.clock_skew.abs() >= SKEW_WARNING.as_secs_f64() {
            tracing::warn!(
                skew_seconds = issued.clock_skew,
                "our clock and the authority's differ; certificates may look expired or not yet valid: check time synchronization"
            );
        }
    }
}

async fn until(moment: SystemTime) {
    while let Ok(left) = moment.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LOOK_AT_CLOCK)).await;
    }
}

fn seconds_until(now: SystemTime, then: SystemTime) -> u64 {
    then.duration_since(now).unwrap_or_default().as_secs()
}
