//! The stream to the control plane: policy in, destinations on demand, ack and nack.
use crate::{error::ProxyError, state::DestinationHandle};
use std::net::SocketAddr;
/// Asks for destinations; shared by all workers.
#[derive(Clone)]
pub struct Destinations {}
impl Destinations {
    /// The destination of an original address: from the cache, else asked for; waits at most the resolve deadline.
    pub async fn resolve(&self, _address: SocketAddr) -> Result<DestinationHandle, ProxyError> { todo!() }
}
