//! Outbound TCP: an endpoint of a service, a workload, or the outside; then bytes both ways.

use super::{
    note_endpoint,
    reach::{self, MOST_TRIES, Reached, Route},
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
    traffic::{Worker, balance},
};

/// Carries one connection.
pub async fn carry(worker: &Worker, route: &Route, mut stream: Prefixed<Stream>, record: &mut Record) {
    record.set_protocol("tcp");
    if let Err(error) = connect_and_carry(worker, route, &mut stream, record).await {
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
    record.upstream_started();
    let connected = connect(worker, route, record).await;
    record.upstream_answered();
    let (Reached { stream: mut upstream, watch, .. }, _load) = connected?;
    let mut counts = Counts::default();
    let ended = tokio::select! {
        ended = both_ways(stream, &mut upstream, worker.shared.settings.limits.half_closed, &mut counts) => ended_as(ended),
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

async fn connect(
    worker: &Worker,
    route: &Route,
    record: &mut Record,
) -> Result<(Reached, InFlight), ProxyError> {
    let destination = route.handle.current();
    if *destination == (Destination::Outside { blocked: false }) {
        record.set_upstream(route.original, None);
        let stream = reach::plain(worker, route.original).await?;
        return Ok((Reached::plain(stream), worker.pool.enter(route.original)));
    }
    let (endpoints, name) = Route::endpoints(&destination, route.original)?;
    let sni = name.sni();
    let mut tried = Vec::new();
    let mut last = None;
    while tried.len() < MOST_TRIES
        && let Some(endpoint) =
            balance::pick(endpoints, &tried, |address| worker.pool.load(address), balance::random)
    {
        note_endpoint(record, endpoint);
        let credentials = reach::credentials_for(worker, endpoint)?;
        let load = worker.pool.enter(endpoint.dial);
        match reach::open(worker, endpoint, credentials.as_deref(), &sni, Carries::Tcp).await {
            Ok(reached) => {
                reach::note_peer(record, reached.met.as_ref());
                return Ok((reached, load));
            }
            Err(error) => last = Some(error),
        }
        tried.push(endpoint.dial);
    }
    Err(last.unwrap_or_else(|| ProxyError::NoEndpoint(route.original.to_string())))
}
