//! The outbound journey: from our app to the network, read top to bottom.

mod http;
mod outside;
mod reach;
mod tcp;

use crate::{
    drain::Side,
    error::ProxyError,
    net::{Accepted, Listener, Prefixed, reset_on_close, sniff, sniff::Application},
    state::Destination,
    telemetry::{Direction, Record},
    tls::Stream,
    traffic::{
        Shared, Worker,
        requests::{Carrying, not_carried},
    },
};
use postern_config::snapshot::Protocol;
use std::{rc::Rc, sync::Arc};
use tokio::time::Instant;

/// Serves one outbound listener until the drain is over. Same conditions as [`crate::inbound::serve`].
pub async fn serve(listener: Listener, shared: Arc<Shared>) {
    Worker::new(shared, Side::Outbound).accept_all(listener, connection).await;
}

async fn connection(worker: Rc<Worker>, accepted: Accepted) -> Option<Carrying> {
    // From here every exit is logged exactly once: when the record drops.
    let telemetry = &worker.shared.telemetry;
    let mut record = telemetry.connection(Direction::Outbound, accepted.downstream, accepted.destination);
    if let Some(credentials) = worker.shared.store.credentials() {
        record.set_own_identity(credentials.id.as_str());
    }

    let own = worker.shared.store.inbound();
    let own_addresses = own.as_ref().map_or(&[][..], |policy| &policy.snapshot.spec().workload.addresses);
    if accepted.is_loop(&worker.shared.settings.own_ports, own_addresses) {
        reset_on_close(&accepted.stream);
        return not_carried(record, &ProxyError::Loop(accepted.destination.port()));
    }

    // Where the address leads. The handle stays fresh while we hold it.
    let handle = match worker.shared.destinations.resolve(accepted.destination).await {
        Ok(handle) => handle,
        Err(error) => {
            reset_on_close(&accepted.stream);
            return not_carried(record, &error);
        }
    };
    let handle = match outside::dialled(handle, accepted.destination) {
        Ok(handle) => handle,
        Err(error) => {
            reset_on_close(&accepted.stream);
            return not_carried(record, &error);
        }
    };
    let route = reach::Route { original: accepted.destination, handle };
    let protocol = match &*route.handle.current() {
        Destination::Service(service) => {
            record.set_service(&service.host);
            service.protocol
        }
        Destination::Workload(endpoint) => endpoint.protocol,
        // Who is called says the call itself.
        Destination::Outside { by_name: true, .. } => {
            return Box::pin(outside::connection(worker, route, accepted.stream, record)).await;
        }
        Destination::Outside { blocked: false, .. } => Protocol::Tcp,
        Destination::Outside { blocked: true, .. } => Protocol::Auto,
    };

    // In which language the app speaks. It is our own workload, so it may take its time where the protocol is declared.
    let patience = worker.shared.settings.limits.next_request;
    // What is over soon is apart, or every connection would be as large as it is in its largest moment for as long as it lasts.
    let speech = Box::pin(language(accepted, protocol, &worker));
    let speech = match tokio::time::timeout(patience, speech).await {
        Ok(Ok(speech)) => speech,
        Ok(Err(error)) => return not_carried(record, &error),
        Err(_) => return not_carried(record, &ProxyError::DownstreamTimeout),
    };
    Some(match speech {
        (application @ (Application::Http1 | Application::Http2), stream) => {
            let is_http2 = application == Application::Http2;
            http::serve(worker, route, false, stream, is_http2, Instant::now() + patience, record)
        }
        (_, stream) => Box::pin(tcp::carry(worker, route, stream, record)),
    })
}

async fn language(
    accepted: Accepted,
    protocol: Protocol,
    worker: &Worker,
) -> Result<(Application, Prefixed<Stream>), ProxyError> {
    let silence = worker.greeters.patience(accepted.destination, worker.shared.settings.limits.server_first);
    let stream = Stream::Plain(Prefixed::new(accepted.stream));
    let sniffed = match protocol {
        Protocol::Tcp => return Ok((Application::Other, Prefixed::new(stream))),
        Protocol::Http | Protocol::Http2 => sniff::http_version(stream).await,
        Protocol::Auto => sniff::application(stream, Some(silence)).await,
    };
    match sniffed {
        Ok((Application::Closed, _)) | Err(_) => Err(ProxyError::DownstreamGone),
        Ok(sniffed) => Ok(sniffed),
    }
}

/// Notes what an endpoint is, before it is called.
fn note_endpoint(record: &mut Record, endpoint: &crate::state::Endpoint) {
    record.set_upstream(endpoint.dial, endpoint.identity.as_ref().map(postern_identity::SpiffeId::as_str));
}
