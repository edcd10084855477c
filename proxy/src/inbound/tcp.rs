//! Inbound TCP: one decision before the app is connected, then bytes both ways, judged again when policy changes.

use super::Caller;
use crate::{
    bootstrap::TPROXY_MARK,
    error::ProxyError,
    http::upgrade::ended_as,
    net::{
        Prefixed,
        copy::{Counts, both_ways},
        dial,
    },
    telemetry::Record,
    tls::Stream,
    traffic::{AppSource, Settings, Worker},
};
use postern_config::Verdict;
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};
use tokio::net::TcpStream;

/// Decides and carries one connection.
pub async fn carry(worker: Rc<Worker>, caller: Caller, mut stream: Prefixed<Stream>, mut record: Record) {
    record.set_protocol("tcp");
    if let Err(error) = decide_and_carry(&worker, &caller, &mut stream, &mut record).await {
        // The other side must not take a refusal or a broken upstream for an orderly end.
        stream.inner().reset_on_close();
        record.set_error(&error);
    }
}

async fn decide_and_carry(
    worker: &Worker,
    caller: &Caller,
    stream: &mut Prefixed<Stream>,
    record: &mut Record,
) -> Result<(), ProxyError> {
    {
        let policy = worker.shared.store.inbound().ok_or(ProxyError::NoSnapshot)?;
        let (judgement, facts) = caller.authorize_connection(&policy.snapshot);
        record.set_decision(&judgement, &facts, &policy.snapshot.spec().workload, &policy.version);
        if judgement.decision.verdict == Verdict::Deny {
            return Err(ProxyError::Denied);
        }
    }
    let settings = &worker.shared.settings;
    record.set_upstream(caller.destination, None);
    record.upstream_started(std::time::Instant::now());
    let app = connect_app(caller.destination, caller.downstream.ip(), settings).await;
    record.upstream_answered(std::time::Instant::now());
    let mut app = app?;
    let revoked = worker.revoked(|policy| {
        caller.objection(&policy.snapshot).or_else(|| {
            let (judgement, _) = caller.authorize_connection(&policy.snapshot);
            (judgement.decision.verdict == Verdict::Deny).then_some(ProxyError::Denied)
        })
    });
    let watch = record.watch().clone();
    let mut counts = Counts::default();
    let ended = tokio::select! {
        ended = both_ways(stream, &mut app, settings.limits.half_closed, None, &mut counts, |_| {}) => ended_as(ended),
        error = revoked => {
            crate::net::reset_on_close(&app);
            Some(error)
        }
        refusal = watch.ended() => {
            crate::net::reset_on_close(&app);
            Some(ProxyError::PeerDistrusted(refusal))
        }
        () = worker.shared.drain.over() => Some(ProxyError::Draining),
    };
    record.add_received(counts.received);
    record.add_sent(counts.sent);
    ended.map_or(Ok(()), Err)
}

/// Connects to the app on behalf of `caller`, from the address that the rules of interception leave alone.
pub async fn connect_app(
    address: SocketAddr,
    caller: IpAddr,
    settings: &Settings,
) -> Result<TcpStream, ProxyError> {
    let (source, patience) = (settings.app_source.on_behalf_of(caller), settings.limits.connect);
    let connected = match (settings.app_source, source) {
        (AppSource::Caller, Some(source)) => dial::connect_as(address, source, TPROXY_MARK, patience).await,
        _ => dial::connect(address, settings.mark, source, patience).await,
    };
    connected.map_err(|cause| ProxyError::Connect { address, cause })
}
