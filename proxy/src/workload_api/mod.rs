//! The identity of the pod, for the pod: the SPIFFE Workload API and Envoy's SDS on a unix socket.
//!
//! Any SPIFFE-aware program, or an Envoy, gets the certificate that this sidecar has, and every later one. Who reaches the
//! socket is in the pod, and the pod is the workload; nothing else is asked (docs/security.md).

mod authfix;
mod callers;
mod door;
mod hpack;
mod huffman;
mod sds;
mod socket;
mod tokens;
mod view;
mod workload;

pub use socket::Socket;

use crate::{control::ControlPlane, state::Store};
use postern_api::open::{
    self, envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer,
    spiffe_workload_api_server::SpiffeWorkloadApiServer,
};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

/// The longest message that a caller may send, in bytes: a token of 16 KiB and its audience.
const MESSAGE_BYTES: usize = 64 * 1024;

/// Serves the socket until stopped, with what the store holds. JWT-SVIDs are asked for at the control plane.
pub async fn serve(socket: Socket, store: Arc<Store>, control: Arc<ControlPlane>, stop: CancellationToken) {
    let views = view::follow(store.clone(), stop.clone());
    let tokens = tokens::Tokens::new(store, control);
    let workload = SpiffeWorkloadApiServer::new(workload::Workload::new(views.clone(), tokens))
        .max_decoding_message_size(MESSAGE_BYTES);
    let secrets =
        SecretDiscoveryServiceServer::new(sds::Secrets::new(views)).max_decoding_message_size(MESSAGE_BYTES);
    let mut routes = Routes::new(workload).add_service(secrets);
    // SPIFFE Workload Endpoint 5: servers should offer reflection; old tools speak its alpha.
    let reflection = || {
        tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(open::DESCRIPTORS)
    };
    match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes = routes.add_service(v1).add_service(v1alpha),
        // The descriptors are compiled in; a defect there is no reason to withhold an identity.
        (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "server reflection is not available"),
    }
    tracing::info!(path = %socket.path().display(), "the Workload API is served");
    door::serve(socket, routes.prepare(), stop).await;
}
