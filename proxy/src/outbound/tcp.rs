//! Outbound TCP: an endpoint of a service, a workload, or the outside; then bytes both ways.

use super::{
    note_endpoint,
    reach::{self, Reached, Route},
};
use crate::{
    error::ProxyError,
    http::{pool::InFlight, upgrade::ended_as},
    net::{
        Prefixed,
        copy::{Counts, both_ways},
    },
    state::Destination,
    telemetry::Record,
    tls::{Carries, Stream},
    traffic::{Worker, balance, breaker::Share, upstream::Outcome},
};
use std::{convert::Infallible, rc::Rc, sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Carries one connection.
pub async fn carry(worker: Rc<Worker>, route: Route, mut stream: Prefixed<Stream>, mut record: Record) {
    record.set_protocol("tcp");
    if let Err(error) = connect_and_carry(&worker, &route, &mut stream, &mut record).await {
        stream.inner().reset_on_close();
        record.set_error(&error);
    }
}

async fn connect_and_carry(
    worker: &Worker,
    route: &Route,
    stream: &mut Prefixed<Stream>,
    record: &mut Record,
) -> Result<(), ProxyError> {
    let destination = route.handle.current();
    record.upstream_started(std::time::Instant::now());
    let connected = connect(worker, route, &destination, record).await;
    record.upstream_answered(std::time::Instant::now());
    let (Reached { stream: mut upstream, watch, .. }, _under_way) = connected?;
    let (mut counts, connected) = (Counts::default(), Instant::now());
    let first = |server| worker.greeters.learn(route.original, server, connected.elapsed());
    let (half_closed, idle) = (worker.shared.settings.limits.half_closed, destination.traffic().tcp_idle);
    let ended = tokio::select! {
        ended = both_ways(stream, &mut upstream, half_closed, idle, &mut counts, first) => ended_as(ended),
        refusal = watch.ended() => {
            upstream.reset_on_close();
            Some(ProxyError::UpstreamDistrusted(refusal))
        }
        () = worker.shared.drain.over() => Some(ProxyError::Draining),
    };
    record.add_received(counts.received);
    record.add_sent(counts.sent);
    if matches!(ended, Some(ProxyError::DownstreamGone | ProxyError::DownstreamTimeout)) {
        upstream.reset_on_close();
    }
    ended.map_or(Ok(()), Err)
}

/// What counts a connection while it lives: at its endpoint, and among those of its service.
type UnderWay = (Option<InFlight>, Option<OwnedSemaphorePermit>);

async fn connect(
    worker: &Worker,
    route: &Route,
    destination: &Arc<Destination>,
    record: &mut Record,
) -> Result<(Reached, UnderWay), ProxyError> {
    let traffic = destination.traffic();
    if matches!(**destination, Destination::Outside { blocked: false, .. }) {
        record.set_upstream(route.original, None);
        let stream = reach::plain(worker, route.original, traffic, Duration::ZERO).await?;
        return Ok((Reached::plain(stream), (None, None)));
    }
    let (endpoints, name) = Route::endpoints(destination, route.original)?;
    let (sni, upstream) = (name.sni(), worker.upstreams.of(destination));
    let metrics = worker.shared.telemetry.metrics().upstreams();
    let share = Share(worker.shared.settings.workers);
    let turn = upstream.breaker.connection(traffic.max_connections, share).inspect_err(|_| {
        metrics.circuit_open(&upstream.name, "maxConnections");
    })?;
    worker.pool.budget.deposit();
    let began = Instant::now();
    let (mut tried, mut again) = (Vec::new(), None);
    loop {
        let now = Instant::now();
        let Some((endpoint, state)) =
            balance::pick(&upstream, endpoints, &tried, traffic, now, balance::random)
        else {
            return Err(ProxyError::NoEndpoint(route.original.to_string()));
        };
        note_endpoint(record, endpoint);
        let credentials = reach::credentials_for(worker, endpoint)?;
        let load = state.enter();
        let Err((dialling, waited)) = state.dials.turn(|| None::<Infallible>).await;
        let credentials = credentials.as_deref();
        let opened = reach::open(worker, endpoint, credentials, &sni, Carries::Tcp, traffic, waited).await;
        if opened.is_err() {
            state.dials.failed();
        }
        drop(dialling);
        drop(again.take());
        let error = match opened {
            Ok(reached) => {
                let now = Instant::now();
                upstream.learn(endpoint.dial, &state, Outcome::Connected, endpoints.len(), traffic, now);
                reach::note_peer(record, reached.met.as_ref());
                return Ok((reached, (Some(load), turn)));
            }
            Err(error) => error,
        };
        if let Some(outcome) = Outcome::of(&error) {
            upstream.learn(endpoint.dial, &state, outcome, endpoints.len(), traffic, Instant::now());
        }
        tried.push(endpoint.dial);
        if endpoints.iter().all(|endpoint| tried.contains(&endpoint.dial)) {
            return Err(error);
        }
        again = match reach::another_try(worker, &upstream, traffic, tried.len(), began) {
            Some(repeat) => Some(repeat),
            None => return Err(error),
        };
    }
}
