//! What one worker knows of a service that it calls: load and latency of each endpoint, who is ejected, and how much is under
//! way. It lives outside of the snapshot, by the service's name, so that a push resets nothing; one thread, so cells are enough.

use super::breaker::Breaker;
use crate::{
    error::ProxyError,
    http::pool::InFlight,
    net::dials::{self, Dials},
    state::Endpoint,
    telemetry::{Ejection, Telemetry},
};
use postern_config::documents::destination_rule::{Outliers, Traffic};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// A latency that is not confirmed any more fades with this time constant (Finagle's and Linkerd's 10 s).
const FADING: f64 = 10.0;
/// What a failure counts as, in seconds: an endpoint that fails fast must not look like a fast one.
const PENALTY: f64 = 1.0;
/// The longest ejection (Envoy's max_ejection_time).
const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// One service, or one workload that is called directly.
pub struct Upstream {
    /// `host:port`, as configured.
    pub name: Arc<str>,
    /// Limits on what is under way.
    pub breaker: Breaker,
    endpoints: RefCell<HashMap<SocketAddr, Rc<EndpointState>>>,
    ejected: RefCell<Vec<SocketAddr>>,
    turn: Cell<usize>,
    telemetry: Telemetry,
}

/// One endpoint of one service.
#[derive(Debug)]
pub struct EndpointState {
    in_flight: Rc<Cell<usize>>,
    // Seconds, at the moment it was measured; `None`: never.
    latency: Cell<Option<(f64, Instant)>>,
    errors: Cell<Errors>,
    ejected_until: Cell<Option<Instant>>,
    ejections: Cell<u32>,
    /// TCP connections that are being made to it.
    pub dials: Rc<Dials>,
}

/// Errors in a row.
#[derive(Clone, Copy, Debug, Default)]
struct Errors {
    server: u32,
    gateway: u32,
    local: u32,
}

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The other end answered: HTTP status, and how long the head of the answer took.
    Answered(u16, Duration),
    /// A connection for bytes stands.
    Connected,
    /// No connection, or a connection that broke.
    Failed,
}

impl Outcome {
    /// What an error says of the endpoint; `None` when it is not the endpoint's fault.
    pub fn of(error: &ProxyError) -> Option<Self> {
        match error {
            ProxyError::Connect { .. }
            | ProxyError::UpstreamTls { .. }
            | ProxyError::UpstreamRefused { .. }
            | ProxyError::UpstreamReset(_)
            | ProxyError::UpstreamProtocol(_) => Some(Self::Failed),
            _ => None,
        }
    }
}

impl Upstream {
    pub(super) fn new(name: Arc<str>, telemetry: Telemetry) -> Self {
        Self {
            name,
            breaker: Breaker::default(),
            endpoints: RefCell::default(),
            ejected: RefCell::default(),
            turn: Cell::new(0),
            telemetry,
        }
    }

    /// What is known of an endpoint.
    pub fn endpoint(&self, address: SocketAddr) -> Rc<EndpointState> {
        self.endpoints.borrow_mut().entry(address).or_insert_with(|| Rc::new(EndpointState::new())).clone()
    }

    /// Forgets endpoints that are not there any more and have nothing under way.
    pub fn retain(&self, current: &[Endpoint]) {
        let current: HashSet<SocketAddr> = current.iter().map(|endpoint| endpoint.dial).collect();
        self.endpoints
            .borrow_mut()
            .retain(|address, state| current.contains(address) || state.in_flight.get() > 0);
        self.ejected.borrow_mut().retain(|address| {
            let stays = current.contains(address);
            if !stays {
                self.telemetry.ejections().ended(&self.name, *address);
            }
            stays
        });
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.endpoints.borrow().len()
    }

    pub(super) fn next_turn(&self) -> usize {
        self.turn.replace(self.turn.get().wrapping_add(1))
    }

    /// Whether ejected endpoints are left out: not when fewer are healthy than `minHealthPercent`.
    pub(super) fn heeds_ejections(&self, endpoints: usize, traffic: &Traffic, now: Instant) -> bool {
        // The usual case first: nobody is.
        let Some(outliers) = traffic.outliers.as_ref().filter(|_| !self.ejected.borrow().is_empty()) else {
            return false;
        };
        let healthy = endpoints.saturating_sub(self.count_ejected(now));
        healthy * 100 >= endpoints * percent(outliers.min_health_percent)
    }

    /// How many are ejected now. Whose time is over is back.
    fn count_ejected(&self, now: Instant) -> usize {
        let mut ejected = self.ejected.borrow_mut();
        ejected.retain(|address| {
            let is_out = self.endpoints.borrow().get(address).is_some_and(|state| state.is_ejected(now));
            if !is_out {
                self.telemetry.ejections().ended(&self.name, *address);
            }
            is_out
        });
        ejected.len()
    }

    /// Takes note of how an attempt ended, and ejects the endpoint when it was one too many. `endpoints` is their number.
    pub fn learn(
        &self,
        address: SocketAddr,
        state: &EndpointState,
        outcome: Outcome,
        endpoints: usize,
        traffic: &Traffic,
        now: Instant,
    ) {
        match outcome {
            Outcome::Answered(_, took) => state.measure(took.as_secs_f64(), now),
            Outcome::Connected => {}
            Outcome::Failed => state.measure(PENALTY, now),
        }
        let Some(outliers) = &traffic.outliers else { return };
        if let Some(reason) = state.count(outcome, outliers) {
            self.eject(address, state, reason, endpoints, outliers, now);
        }
    }

    fn eject(
        &self,
        address: SocketAddr,
        state: &EndpointState,
        reason: &'static str,
        endpoints: usize,
        outliers: &Outliers,
        now: Instant,
    ) {
        let out = self.count_ejected(now);
        let too_many = (out + 1) * 100 > endpoints * percent(outliers.max_ejection_percent);
        // One may always go, as in Envoy, or small services would have no ejection at all.
        if state.is_ejected(now) || (out > 0 && too_many) || outliers.max_ejection_percent == 0 {
            return;
        }
        let time = state.eject(outliers, now);
        self.ejected.borrow_mut().push(address);
        self.telemetry.metrics().upstreams().ejected(&self.name, reason);
        self.telemetry.ejections().began(Ejection {
            service: self.name.clone(),
            address,
            reason,
            until: std::time::SystemTime::now() + time,
        });
        tracing::warn!(service = %self.name, %address, reason, ?time, "an endpoint is ejected");
    }
}

fn percent(value: u32) -> usize {
    usize::try_from(value.min(100)).unwrap_or(100)
}

impl EndpointState {
    fn new() -> Self {
        Self {
            in_flight: Rc::default(),
            latency: Cell::new(None),
            errors: Cell::default(),
            ejected_until: Cell::new(None),
            ejections: Cell::new(0),
            dials: Rc::new(Dials::new(dials::MOST)),
        }
    }

    /// Something begins at this endpoint.
    pub fn enter(&self) -> InFlight {
        InFlight::enter(&self.in_flight)
    }

    /// Whether it is left out for now.
    pub fn is_ejected(&self, now: Instant) -> bool {
        self.ejected_until.get().is_some_and(|until| now < until)
    }

    /// By faded peak latency times what is in flight; where one was never measured, by what is in flight.
    pub(super) fn is_cheaper_than(&self, other: &Self, now: Instant) -> bool {
        let (own, others) = (self.in_flight.get(), other.in_flight.get());
        match (self.faded(now), other.faded(now)) {
            (Some(a), Some(b)) => a * (own as f64 + 1.0) < b * (others as f64 + 1.0),
            // A failure is worse than nothing known.
            (Some(a), None) if a > PENALTY / 2.0 => false,
            (None, Some(b)) if b > PENALTY / 2.0 => true,
            _ => own < others,
        }
    }

    fn faded(&self, now: Instant) -> Option<f64> {
        let (seconds, at) = self.latency.get()?;
        let age = now.saturating_duration_since(at).as_secs_f64();
        // Never quite zero, so that what is in flight still counts.
        Some((seconds * fading(age)).max(1e-6))
    }

    /// Peak EWMA: up at once, down slowly.
    fn measure(&self, seconds: f64, now: Instant) {
        let latency = match self.latency.get() {
            Some((known, at)) if known > seconds => {
                let weight = fading(now.saturating_duration_since(at).as_secs_f64());
                known * weight + seconds * (1.0 - weight)
            }
            _ => seconds,
        };
        self.latency.set(Some((latency, now)));
    }

    /// Counts errors in a row; the reason when there are too many.
    fn count(&self, outcome: Outcome, outliers: &Outliers) -> Option<&'static str> {
        let mut errors = self.errors.get();
        match outcome {
            Outcome::Failed if outliers.splits_local => errors.local += 1,
            // A failure of the connection is a 503 to whoever called.
            Outcome::Failed | Outcome::Answered(502..=504, _) => {
                errors.server += 1;
                errors.gateway += 1;
            }
            Outcome::Answered(500.., _) => (errors.server, errors.gateway) = (errors.server + 1, 0),
            Outcome::Answered(..) => errors = Errors::default(),
            Outcome::Connected => errors.local = 0,
        }
        if outliers.splits_local && matches!(outcome, Outcome::Answered(..)) {
            errors.local = 0;
        }
        let reached = |count: u32, limit: u32| limit > 0 && count >= limit;
        let reason = if reached(errors.gateway, outliers.consecutive_gateway) {
            Some("gateway-errors")
        } else if reached(errors.server, outliers.consecutive_5xx) {
            Some("5xx-errors")
        } else if outliers.splits_local && reached(errors.local, outliers.consecutive_local) {
            Some("local-origin-failures")
        } else {
            None
        };
        self.errors.set(if reason.is_some() { Errors::default() } else { errors });
        reason
    }

    /// Leaves it out, longer each time; an interval without an ejection takes one back.
    fn eject(&self, outliers: &Outliers, now: Instant) -> Duration {
        let quiet =
            self.ejected_until.get().map_or(Duration::ZERO, |back| now.saturating_duration_since(back));
        let forgiven = quiet.as_secs_f64() / outliers.interval.as_secs_f64().max(0.001);
        let ejections = f64::from(self.ejections.get()) - forgiven.floor();
        let ejections = (ejections.max(0.0) as u32).saturating_add(1);
        self.ejections.set(ejections);
        let time = outliers.base_ejection.saturating_mul(ejections);
        let time = time.min(LONGEST_EJECTION.max(outliers.base_ejection));
        self.ejected_until.set(Some(now + time));
        time
    }
}

/// What is left of a latency of this age, in seconds: e^(-age / FADING) but for at most 0.03, by the beginning of the series of its
/// inverse. The exact one is not worth half a megabyte of the mathematical library beside every pod.
fn fading(age: f64) -> f64 {
    let x = age / FADING;
    1.0 / (1.0 + x * (1.0 + x / 2.0 * (1.0 + x / 3.0)))
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
