//! Many calls with a summary: a count or a time, at a rate or as fast as answers come.
//!
//! With a rate, latency counts from the moment a call was due, so that a stalled server cannot hide behind the calls
//! that were never made.

use super::{
    Outcome,
    client::{Call, Connection, NoAnswer},
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep_until, timeout};

/// How much.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub count: Option<u64>,
    pub time: Option<Duration>,
    /// Calls a second over all connections.
    pub rate: Option<f64>,
    pub connections: usize,
    /// Of one call.
    pub timeout: Duration,
}

/// What happened, printed as one JSON object.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    pub requests: u64,
    pub ok: u64,
    pub failed: u64,
    pub by_status: BTreeMap<u16, u64>,
    pub errors: BTreeMap<String, u64>,
    pub connections_opened: u64,
    pub seconds: f64,
    pub requests_per_second: f64,
    pub latency_us: Latencies,
    #[serde(skip)]
    samples: Vec<u64>,
}

/// Microseconds, of answered calls.
#[derive(Debug, Default, Serialize)]
pub(super) struct Latencies {
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

impl Summary {
    /// All 2xx: yes. Any call without an answer: no answer. Else: no.
    pub(super) fn outcome(&self) -> Outcome {
        match (self.failed, self.errors.is_empty()) {
            (0, _) => Outcome::Yes,
            (_, true) => Outcome::No,
            (_, false) => Outcome::NoAnswer,
        }
    }

    fn note(&mut self, result: Result<u16, NoAnswer>, took: Duration) {
        self.requests += 1;
        match result {
            Ok(status) => {
                *self.by_status.entry(status).or_default() += 1;
                if (200..300).contains(&status) {
                    self.ok += 1
                } else {
                    self.failed += 1
                }
                self.samples.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
            }
            Err(NoAnswer(why)) => {
                self.failed += 1;
                *self.errors.entry(why).or_default() += 1;
            }
        }
    }

    fn merge(&mut self, other: Self) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.failed += other.failed;
        self.connections_opened += other.connections_opened;
        for (status, count) in other.by_status {
            *self.by_status.entry(status).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.samples.extend(other.samples);
    }

    fn finish(mut self, took: Duration) -> Self {
        self.samples.sort_unstable();
        let at = |per_mille: usize| {
            let index = (self.samples.len().saturating_sub(1)) * per_mille / 1000;
            self.samples.get(index).copied().unwrap_or(0)
        };
        self.latency_us = Latencies { min: at(0), p50: at(500), p90: at(900), p99: at(990), max: at(1000) };
        self.seconds = took.as_secs_f64();
        self.requests_per_second =
            if took.is_zero() { 0.0 } else { self.requests as f64 / took.as_secs_f64() };
        self
    }
}

/// Calls as planned and sums up.
pub(super) async fn run(call: Call, plan: Plan) -> Summary {
    let call = Arc::new(call);
    let tickets = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let workers: Vec<_> = (0..plan.connections.max(1))
        .map(|_| tokio::spawn(work(call.clone(), plan, tickets.clone(), start)))
        .collect();
    let mut sum = Summary::default();
    for worker in workers {
        match worker.await {
            Ok(part) => sum.merge(part),
            Err(panic) => sum.note(Err(NoAnswer(format!("a worker ended early: {panic}"))), Duration::ZERO),
        }
    }
    sum.finish(start.elapsed())
}

async fn work(call: Arc<Call>, plan: Plan, tickets: Arc<AtomicU64>, start: Instant) -> Summary {
    let mut sum = Summary::default();
    let mut connection = None;
    loop {
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        if plan.count.is_some_and(|count| ticket >= count) {
            return sum;
        }
        let due = match plan.rate {
            Some(rate) if rate > 0.0 => {
                let due = start + Duration::from_secs_f64(ticket as f64 / rate);
                if plan.time.is_some_and(|time| due >= start + time) {
                    return sum;
                }
                sleep_until(due).await;
                due
            }
            _ => Instant::now(),
        };
        if plan.time.is_some_and(|time| start.elapsed() >= time) {
            return sum;
        }
        let result =
            match timeout(plan.timeout, one(&call, &mut connection, &mut sum.connections_opened)).await {
                Ok(result) => result,
                Err(_) => Err(NoAnswer(format!("no answer within {:?}", plan.timeout))),
            };
        if result.is_err() {
            connection = None;
        }
        sum.note(result, due.elapsed());
    }
}

async fn one(call: &Call, slot: &mut Option<Connection>, opened: &mut u64) -> Result<u16, NoAnswer> {
    // A kept connection may have been closed while idle; a fresh one gets no second chance.
    loop {
        let reused = slot.as_ref().is_some_and(|c| !c.is_closed());
        let mut connection = match slot.take() {
            Some(connection) if reused => connection,
            _ => {
                *opened += 1;
                Connection::open(call).await?
            }
        };
        match connection.exchange(call).await? {
            Some(answer) => {
                *slot = Some(connection);
                return Ok(answer.status.as_u16());
            }
            None if reused => (),
            None => return Err(NoAnswer("connection closed before an answer".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_answers_and_errors_apart_and_orders_latencies() {
        let mut sum = Summary::default();
        for us in 1..=100 {
            sum.note(Ok(200), Duration::from_micros(us));
        }
        assert_eq!(sum.outcome(), Outcome::Yes);
        sum.note(Ok(403), Duration::from_micros(5));
        assert_eq!(sum.outcome(), Outcome::No);
        sum.note(Err(NoAnswer("connection reset by peer".into())), Duration::ZERO);
        assert_eq!(sum.outcome(), Outcome::NoAnswer);
        let sum = sum.finish(Duration::from_secs(1));
        assert_eq!((sum.requests, sum.ok, sum.failed), (102, 100, 2));
        assert_eq!((sum.latency_us.min, sum.latency_us.max), (1, 100));
        assert!(sum.latency_us.p50 <= sum.latency_us.p99);
    }
}
