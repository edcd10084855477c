//! The publisher: one port for sidecars, with certificates on request and one stream of policy and destinations each.
//!
//! `listener` accepts and authenticates, `certificates` and `discovery` are the two gRPC services, `session` is the
//! story of one stream, [`status`] is what people may ask about the streams.

pub(crate) mod certificates;
pub(crate) mod discovery;
pub(crate) mod listener;
pub(crate) mod rate;
pub(crate) mod session;
pub mod status;

use crate::{
    attest::{JoinTokens, TokenReviews},
    authority::Authority,
    federation::Federation,
    registry::Index,
};
use postern_api::v1;
use postern_identity::TrustDomain;
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::sync::watch;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;

/// What all connections share.
pub(crate) struct Publisher {
    pub authority: Arc<Authority>,
    pub federation: Arc<Federation>,
    pub tokens: JoinTokens,
    /// Who reviews Kubernetes tokens, if anybody.
    pub reviews: Option<TokenReviews>,
    pub trust_domain: TrustDomain,
    /// The documents in force; `None` until the first are applied.
    pub index: watch::Sender<Option<Arc<Index>>>,
    pub sessions: status::Sessions,
    /// Default and upper bound of workload certificates.
    pub certificate_lifetime: Duration,
    /// Requests for certificates, by source address (tokens).
    pub by_address: rate::Rate<IpAddr>,
    /// Requests for certificates on the unix socket, by user.
    pub by_user: rate::Rate<u32>,
    /// Requests for certificates, by identity (renewal).
    pub by_identity: rate::Rate<String>,
    pub stop: CancellationToken,
}

impl Publisher {
    /// All trust bundles, as the wire carries them.
    pub(crate) fn trust(&self) -> v1::BundleUpdate {
        let bundle = self.authority.bundle();
        let bundle = v1::Bundle {
            trust_domain: bundle.trust_domain.as_str().to_owned(),
            document: bundle.to_document().into_bytes(),
            revoked: bundle.revoked.iter().map(|key| key.as_bytes().to_vec()).collect(),
        };
        let foreign = self.federation.bundles().borrow().clone();
        let foreign = foreign.iter().map(|bundle| v1::Bundle {
            trust_domain: bundle.trust_domain.as_str().to_owned(),
            document: bundle.to_document().into_bytes(),
            revoked: Vec::new(),
        });
        let bundles = std::iter::once(bundle).chain(foreign).collect();
        v1::BundleUpdate { bundles, tainted: Vec::new() }
    }
}

/// An idle connection is asked so often whether the other end lives ...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// ... and has so long to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// A sidecar needs one stream and now and then one request.
const STREAMS_PER_CONNECTION: u32 = 16;
/// The largest message that a sidecar may send, in bytes: a CSR and a token of 16 KiB each, with room to spare.
const MAX_MESSAGE: usize = 48 * 1024;
/// The largest header list that a sidecar may send, in bytes.
const MAX_HEADERS: u32 = 16 * 1024;

/// Serves `listeners` until the publisher is stopped.
pub(crate) async fn serve(publisher: Arc<Publisher>, listeners: Vec<listener::Listener>, tls: listener::Tls) {
    let stop = publisher.stop.clone();
    let connections = ReceiverStream::new(listener::accept(listeners, &tls, &stop));
    let certificates = certificates::Certificates::new(Arc::clone(&publisher));
    let discovery = discovery::Discovery::new(publisher);
    let served = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_header_list_size(MAX_HEADERS)
        .add_service(
            v1::authority_server::AuthorityServer::new(certificates).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            v1::discovery_server::DiscoveryServer::new(discovery).max_decoding_message_size(MAX_MESSAGE),
        )
        .serve_with_incoming_shutdown(connections.map(Ok::<_, std::io::Error>), stop.cancelled())
        .await;
    if let Err(error) = served {
        tracing::error!(%error, "the server for sidecars ended");
    }
}
