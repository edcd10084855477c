//! Start-up in order: identity, control, listeners, workers; and the way down.
use crate::bootstrap::Bootstrap;
use std::net::SocketAddr;
/// A running sidecar. Dropping it stops it at once; `drain` stops it politely.
pub struct Sidecar {}
/// The real addresses after binding (port 0 resolved), in the order of the bootstrap's lists.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Addresses { pub inbound: Vec<SocketAddr>, pub outbound: Vec<SocketAddr>, pub admin: Option<SocketAddr>, pub probes: Option<SocketAddr>, pub metrics: Option<SocketAddr> }
/// Binds listeners, obtains the first certificate and policy in the background, and returns as soon as sockets are bound.
pub async fn start(_bootstrap: Bootstrap) -> anyhow::Result<Sidecar> { todo!() }
impl Sidecar {
    /// Where it listens.
    pub fn addresses(&self) -> &Addresses { todo!() }
    /// Resolves when certificate and inbound policy are in force.
    pub async fn ready(&self) { todo!() }
    /// Stops accepting, lets requests in flight finish until the deadline.
    pub async fn drain(self) { todo!() }
}
