//! The publisher: one port for sidecars, with certificates on request and one stream of policy and destinations each.
//!
//! `listener` accepts and authenticates, `certificates` and `discovery` are the two gRPC services, `session` is the
//! story of one stream, [`status`] is what people may ask about the streams.

pub(crate) mod certificates;
pub(crate) mod discovery;
pub(crate) mod listener;
pub(crate) mod rate;
mod report;
pub(crate) mod session;
pub mod status;
mod tapping;
pub(crate) mod trust;

use crate::{
    attest::{JoinTokens, TokenReviews},
    authority::Authority,
    federation::Federation,
    registry::Index,
    traffic::{Traffic, tap::Taps},
};
use postern_api::v1;
use postern_identity::TrustDomain;
use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use trust::Trust;

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
    /// The trust in force.
    pub trust: watch::Sender<Arc<Trust>>,
    pub sessions: status::Sessions,
    pub counters: Counters,
    /// What sidecars report.
    pub traffic: Traffic,
    /// Calls that are watched live.
    pub taps: Taps,
    /// Default and upper bound of workload certificates.
    pub certificate_lifetime: Duration,
    /// Requests for certificates, by source address (tokens).
    pub by_address: rate::Rate<IpAddr>,
    /// Requests for certificates on the unix socket, by user.
    pub by_user: rate::Rate<u32>,
    /// Requests for certificates, by identity (renewal).
    pub by_identity: rate::Rate<String>,
    /// Requests for JWT-SVIDs, by identity.
    pub tokens_by_identity: rate::Rate<String>,
    pub stop: CancellationToken,
}

impl Publisher {
    /// The trust in force, as every sidecar is told it.
    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.trust.borrow().clone()
    }

    /// Collects it anew, and pushes it when it came out different. To be called after each change of the authority or of
    /// foreign bundles. True when it did.
    pub(crate) fn renew_trust(&self) -> bool {
        // Collected under the lock of the channel, so that of two callers the later one's does not get lost.
        self.trust.send_if_modified(|current| {
            let next = Trust::new(&self.authority.published(), &self.federation.bundles().borrow());
            let changed = next.version != current.version;
            if changed {
                *current = Arc::new(next);
            }
            changed
        })
    }
}

/// What was asked for and how it ended, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub certificates_issued: AtomicU64,
    pub certificates_refused: AtomicU64,
    pub tokens_issued: AtomicU64,
    pub tokens_refused: AtomicU64,
}

impl Counters {
    /// Counts one outcome.
    pub(crate) fn count<T, E>(outcome: &Result<T, E>, done: &AtomicU64, refused: &AtomicU64) {
        (if outcome.is_ok() { done } else { refused }).fetch_add(1, Ordering::Relaxed);
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
    let connections = ReceiverStream::new(listener::accept(listeners, &tls, &publisher.trust, &stop));
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
