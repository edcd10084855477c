//! The surroundings of every connection: one value, shared by all workers.

use super::governor::Governor;
use crate::{control::Destinations, drain, state::Store, telemetry::Telemetry};
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Everything a journey needs besides its own connection.
pub struct Shared {
    /// Policy and credentials in force.
    pub store: Arc<Store>,
    /// Where original destinations lead.
    pub destinations: Destinations,
    /// Where records go.
    pub telemetry: Telemetry,
    /// What was decided at the start and never changes.
    pub settings: Settings,
    /// What is refused when we run short.
    pub governor: Arc<Governor>,
    /// The way down.
    pub drain: drain::Watch,
}

/// Settings of the data path, fixed at the start.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `SO_MARK` on every socket we open; needs `CAP_NET_ADMIN`.
    pub mark: Option<u32>,
    /// From where the inbound side connects to the app.
    pub app_source: AppSource,
    /// Our own listening ports on local addresses: a connection whose original destination is one of them is a loop.
    pub own_ports: Vec<u16>,
    /// Workers that share the limits of a DestinationRule.
    pub workers: usize,
    /// Bounds on what anyone may make us hold or wait for.
    pub limits: Limits,
}

/// From which address the inbound side connects to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AppSource {
    /// Any: nothing is intercepted.
    #[default]
    Any,
    /// 127.0.0.6 and ::6, as Istio has it, which redirect rules leave alone.
    Passthrough,
    /// The caller's, with [`TPROXY_MARK`](crate::bootstrap::TPROXY_MARK).
    Caller,
}

impl AppSource {
    /// The address that a connection on behalf of `caller` comes from, when that is not the kernel's choice.
    pub fn on_behalf_of(self, caller: IpAddr) -> Option<IpAddr> {
        match self {
            Self::Any => None,
            Self::Passthrough if caller.is_ipv4() => Some(IpAddr::from([127, 0, 0, 6])),
            Self::Passthrough => Some(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 6])),
            Self::Caller => Some(caller),
        }
    }
}

/// Bounds on what anyone may make us hold or wait for. Tests shorten them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From accept to the first complete request head, or to the TLS handshake's end on TCP.
    pub first_request: Duration,
    /// How long an idle HTTP/1.1 connection may wait for its next request head.
    pub next_request: Duration,
    /// A request head, from its first octet to its last.
    pub head: Duration,
    /// How long we wait for more of a request's body.
    pub body: Duration,
    /// How long a client may take nothing of what we have for it; not in tunnels and on TCP.
    pub stalled: Duration,
    /// HTTP/2 frames a second that carry nothing, per connection ([`crate::http::flood`]).
    pub frames: u32,
    /// How long a port of unknown protocol waits for the client to speak before it is taken for server-first TCP.
    pub server_first: Duration,
    /// TCP connect to an app or an endpoint.
    pub connect: Duration,
    /// TLS handshake with an endpoint.
    pub handshake: Duration,
    /// How long one direction of a TCP connection may stay open after the other has ended.
    pub half_closed: Duration,
    /// How long pooled connections may stay idle.
    pub idle: crate::http::pool::Idle,
    /// Open downstream connections per worker and listener.
    pub connections: usize,
    /// Of these, from one source address on the way in.
    pub connections_per_source: usize,
    /// Of these, from one source address and not yet proven: no handshake and no request so far.
    pub unproven_per_source: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            first_request: Duration::from_secs(10),
            next_request: Duration::from_secs(3600),
            head: Duration::from_secs(10),
            body: Duration::from_secs(60),
            stalled: Duration::from_secs(300),
            frames: 10_000,
            server_first: Duration::from_millis(200),
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            half_closed: Duration::from_secs(60),
            idle: crate::http::pool::Idle { plain: Duration::from_secs(4), mesh: Duration::from_secs(60) },
            connections: 10_000,
            connections_per_source: 5_000,
            unproven_per_source: 500,
        }
    }
}
