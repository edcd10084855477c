//! `Discovery.Connect`: opens a session for a sidecar that has proved who it is.

use super::{Publisher, listener::Caller, session};
use postern_api::v1;
use postern_identity::Peer;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, adapters::Map, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

/// Messages that wait for a sidecar to read; when they are so many, its session waits, too.
const WAITING: usize = 32;

/// What a stream of tonic's is made of.
type Update = Result<v1::ControlMessage, Status>;

// A `Status` is what gRPC streams carry.
#[allow(clippy::result_large_err)]
fn unboxed(answer: session::Answer) -> Update {
    answer.map(|update| *update).map_err(|status| *status)
}

pub(crate) struct Discovery {
    publisher: Arc<Publisher>,
}

impl Discovery {
    pub(crate) fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher }
    }
}

#[tonic::async_trait]
impl v1::discovery_server::Discovery for Discovery {
    type ConnectStream = Map<ReceiverStream<session::Answer>, fn(session::Answer) -> Update>;

    async fn connect(
        &self,
        request: Request<Streaming<v1::SidecarMessage>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let caller = caller(&request)?;
        let Some(peer) = caller.peer else {
            return Err(Status::unauthenticated(
                "policy is only for workloads with a certificate: ask Authority.IssueCertificate for one first",
            ));
        };
        account(&peer)?;
        let (answers, stream) = mpsc::channel(WAITING);
        let publisher = Arc::clone(&self.publisher);
        tokio::spawn(session::run(publisher, peer, caller.address, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream).map(unboxed)))
    }
}

/// Who is at the other end of a request's connection.
// A `Status` is what gRPC services return; boxing it here would only unbox it at once.
#[allow(clippy::result_large_err)]
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    // Our own listener puts it on every request; without it nothing is known about the caller.
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::internal("the connection has no caller"))
}

/// Namespace and service account of a peer.
#[allow(clippy::result_large_err)]
pub(crate) fn account(peer: &Peer) -> Result<(String, String), Status> {
    match peer.id().service_account() {
        Some((namespace, service_account)) => Ok((namespace.to_owned(), service_account.to_owned())),
        None => Err(Status::permission_denied(format!(
            "{} names no service account: the control plane serves spiffe://<trust domain>/ns/<namespace>/sa/<account>",
            peer.id()
        ))),
    }
}
