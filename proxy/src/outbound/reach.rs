//! From an original destination to a connection: which endpoints there are, and how one is reached.

use crate::{
    error::ProxyError,
    http::pool::InFlight,
    net::{Prefixed, dial, dials::time_left, set_keepalive},
    state::{Credentials, Destination, DestinationHandle, Endpoint},
    telemetry::{Record, Repeat},
    tls::{Carries, Stream, TlsFacts, open::Watch},
    traffic::{Worker, breaker::Share, upstream::Upstream},
};
use postern_config::documents::destination_rule::Traffic;
use postern_identity::Peer;
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Where one outbound connection wants to go.
pub struct Route {
    /// What the app dialled.
    pub original: SocketAddr,
    /// What that means, always fresh.
    pub handle: DestinationHandle,
}

/// Attempts of one call, the first included.
pub const MOST_TRIES: usize = 3;
/// After so long no other attempt is begun: the caller waits.
pub const TRY_WITHIN: Duration = Duration::from_secs(10);

impl Route {
    /// The endpoints of this moment, with the name they go by. The error says why there are none.
    pub fn endpoints(
        destination: &Destination,
        original: SocketAddr,
    ) -> Result<(&[Endpoint], Name<'_>), ProxyError> {
        match destination {
            Destination::Service(service) if service.endpoints.is_empty() => {
                Err(ProxyError::NoEndpoint(format!("{}:{}", service.host, service.port)))
            }
            Destination::Service(service) => {
                Ok((&service.endpoints, Name { host: &service.host, namespace: None, port: service.port }))
            }
            Destination::Workload(endpoint) => {
                let (namespace, pod) = endpoint.workload.split_once('/').unwrap_or(("", &endpoint.workload));
                let name = Name { host: pod, namespace: Some(namespace), port: endpoint.port };
                Ok((std::slice::from_ref(endpoint), name))
            }
            Destination::Outside { blocked: true, .. } => Err(ProxyError::Blocked(original)),
            Destination::Outside { blocked: false, .. } => {
                // It was a service or workload when the connection began, and is not any more.
                Err(ProxyError::NoEndpoint(original.to_string()))
            }
        }
    }
}

/// What the handshake calls the other end: a label, never a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name<'d> {
    host: &'d str,
    namespace: Option<&'d str>,
    port: u16,
}

impl Name<'_> {
    /// `outbound_.<port>_._.<host>` (reference 4.4).
    pub fn sni(&self) -> Rc<str> {
        let Self { host, namespace, port } = self;
        match namespace {
            None => format!("outbound_.{port}_._.{host}").into(),
            Some(namespace) => format!("outbound_.{port}_._.{host}.{namespace}").into(),
        }
    }
}

/// The credentials that a call to `endpoint` needs: none when it is plain.
pub fn credentials_for(worker: &Worker, endpoint: &Endpoint) -> Result<Option<Arc<Credentials>>, ProxyError> {
    match endpoint.identity {
        None => Ok(None),
        Some(_) => worker.shared.store.own().map(Some),
    }
}

/// A connection to an endpoint.
pub struct Reached {
    /// Open.
    pub stream: Stream,
    /// Who answered, when that is proven.
    pub met: Option<(Peer, TlsFacts)>,
    /// Whether that stays so.
    pub watch: Watch,
}

impl Reached {
    /// A plain connection.
    pub fn plain(stream: tokio::net::TcpStream) -> Self {
        Self { stream: Stream::Plain(Prefixed::new(stream)), met: None, watch: Watch::default() }
    }
}

/// Connects to an endpoint: mutual TLS to exactly its identity, or plain when it has none. Of the time to connect, and of
/// that for the handshake, the caller has `waited` some.
pub async fn open(
    worker: &Worker,
    endpoint: &Endpoint,
    credentials: Option<&Credentials>,
    sni: &str,
    carries: Carries,
    traffic: &Traffic,
    waited: Duration,
) -> Result<Reached, ProxyError> {
    let address = endpoint.dial;
    let stream = plain(worker, address, traffic, waited).await?;
    let Some(expected) = &endpoint.identity else {
        return Ok(Reached::plain(stream));
    };
    // An endpoint with an identity is never called without one of our own.
    let credentials = credentials.ok_or_else(|| ProxyError::NoCertificate("none was loaded".into()))?;
    let policy = worker.shared.store.inbound();
    let versions = policy.map(|policy| policy.snapshot.spec().mesh.tls_versions).unwrap_or_default();
    let handshake = credentials.tls.connect(stream, address, expected, sni, carries, versions);
    let patience = time_left(worker.shared.settings.limits.handshake, waited);
    let (stream, peer, facts) = tokio::time::timeout(patience, handshake).await.map_err(|_| {
        ProxyError::UpstreamTls { address, cause: format!("no handshake within {patience:?}") }
    })??;
    let watch = worker.watch(&peer, true, credentials).map_err(|refusal| ProxyError::UpstreamRefused {
        address,
        expected: expected.clone(),
        refusal: Box::new(refusal),
    })?;
    Ok(Reached { stream, met: Some((peer, facts)), watch })
}

/// Connects to an address, as it is. Of the time for that the caller has `waited` some.
pub async fn plain(
    worker: &Worker,
    address: SocketAddr,
    traffic: &Traffic,
    waited: Duration,
) -> Result<tokio::net::TcpStream, ProxyError> {
    let settings = &worker.shared.settings;
    let patience = time_left(traffic.connect_timeout.unwrap_or(settings.limits.connect), waited);
    let failed = |cause| ProxyError::Connect { address, cause };
    let stream = dial::connect(address, settings.mark, None, patience).await.map_err(failed)?;
    if let Some(keepalive) = &traffic.keepalive {
        set_keepalive(&stream, keepalive.time, keepalive.interval, keepalive.probes).map_err(failed)?;
    }
    Ok(stream)
}

/// Whether a call may be tried once more, after `tries` since `began`: it costs from the budget, and is one of `maxRetries`.
/// The answer counts as under way while it lives.
pub fn another_try(
    worker: &Worker,
    upstream: &Upstream,
    traffic: &Traffic,
    tries: usize,
    began: Instant,
) -> Option<InFlight> {
    if tries >= MOST_TRIES || began.elapsed() >= TRY_WITHIN {
        return None;
    }
    let metrics = worker.shared.telemetry.metrics().upstreams();
    let share = Share(worker.shared.settings.workers);
    let Some(repeat) = upstream.breaker.repeat(traffic.max_retries, share) else {
        metrics.repeated(&upstream.name, Repeat::OverLimit, 1);
        return None;
    };
    if !worker.pool.budget.withdraw() {
        metrics.repeated(&upstream.name, Repeat::OverBudget, 1);
        return None;
    }
    metrics.repeated(&upstream.name, Repeat::Sent, 1);
    Some(repeat)
}

/// Notes who answered.
pub fn note_peer(record: &mut Record, met: Option<&(Peer, TlsFacts)>) {
    if let Some((peer, facts)) = met {
        record.set_peer(peer);
        record.set_tls(facts);
    }
}
