//! Calls to addresses that the mesh does not know. Where a ServiceEntry is found by name on the port, the name that the call
//! carries decides: the Host of each HTTP request, or the server name of the application's own TLS. With DNS and static
//! endpoints the sidecar dials addresses of its own knowledge, whatever the caller dialled; with NONE the dialled address, when
//! the entry covers it. Everything else passes as it is, or is blocked (`outboundTrafficPolicy`).

use super::{http, reach::Route, tcp};
use crate::{
    error::ProxyError,
    net::{Prefixed, sniff, sniff::Transport},
    state::{Destination, DestinationHandle, Endpoint},
    telemetry::Record,
    tls::Stream,
    traffic::{
        Worker,
        requests::{Carrying, not_carried},
    },
};
use sniff::Application;
use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};
use tokio::{net::TcpStream, time::Instant};

/// What a call says about whom it is for.
enum Speech {
    /// HTTP, `true`: version 2. Each request says it.
    Http(bool, Prefixed<Stream>),
    /// TLS to this name.
    Tls(String, Prefixed<Stream>),
    /// Nothing.
    Silent(Prefixed<Stream>),
}

/// Serves one connection to a port that something outside is found by name on.
pub async fn connection(
    worker: Rc<Worker>,
    route: Route,
    stream: TcpStream,
    mut record: Record,
) -> Option<Carrying> {
    let patience = worker.shared.settings.limits.next_request;
    let speech = match tokio::time::timeout(patience, listen(stream, &worker)).await {
        Ok(Ok(speech)) => speech,
        Ok(Err(error)) => return not_carried(record, &error),
        Err(_) => return not_carried(record, &ProxyError::DownstreamTimeout),
    };
    Some(match speech {
        Speech::Http(http2, stream) => {
            http::serve(worker, route, true, stream, http2, Instant::now() + patience, record)
        }
        Speech::Tls(name, stream) => match by_name(&worker, &name, &route).await {
            Ok(destination) => {
                note_service(&mut record, &destination);
                let handle = DestinationHandle(Arc::new(destination.into()));
                let route = Route { original: route.original, handle };
                Box::pin(tcp::carry(worker, route, stream, record))
            }
            Err(error) => {
                record.set_protocol("tcp");
                stream.inner().reset_on_close();
                return not_carried(record, &error);
            }
        },
        Speech::Silent(stream) => Box::pin(tcp::carry(worker, route, stream, record)),
    })
}

async fn listen(stream: TcpStream, worker: &Worker) -> Result<Speech, ProxyError> {
    let gone = |_| ProxyError::DownstreamGone;
    let silence = Some(worker.shared.settings.limits.server_first);
    let (transport, stream) = sniff::transport(stream, silence).await.map_err(gone)?;
    let stream = Stream::Plain(stream);
    match transport {
        Transport::Closed(true) => Err(ProxyError::DownstreamGone),
        Transport::Tls(sniff::Hello { sni: Some(name), .. }) => Ok(Speech::Tls(name, Prefixed::new(stream))),
        Transport::Tls(_) | Transport::BrokenTls | Transport::Silent => {
            Ok(Speech::Silent(Prefixed::new(stream)))
        }
        Transport::Raw | Transport::Closed(false) => {
            let (application, stream) = sniff::application(stream, None).await.map_err(gone)?;
            Ok(match application {
                Application::Http1 => Speech::Http(false, stream),
                Application::Http2 => Speech::Http(true, stream),
                Application::Other | Application::Silent | Application::Closed => Speech::Silent(stream),
            })
        }
    }
}

/// Where a call for `host` goes that was dialled to the address of `route`.
async fn by_name(worker: &Worker, host: &str, route: &Route) -> Result<Arc<Destination>, ProxyError> {
    let handle = worker.shared.destinations.resolve_name(host, route.original).await?;
    lead(&handle.current(), route.original, is_closed(route))
}

/// Whether only what an entry covers may be called.
fn is_closed(route: &Route) -> bool {
    !matches!(*route.handle.current(), Destination::Outside { blocked: false, .. })
}

/// The destination with endpoints to dial, the dialled address where that is what it means; or that it is blocked.
fn lead(
    destination: &Arc<Destination>,
    original: SocketAddr,
    is_closed: bool,
) -> Result<Arc<Destination>, ProxyError> {
    let as_it_is = || Arc::new(Destination::Workload(Endpoint::outside(original)));
    match &**destination {
        Destination::Outside { blocked: true, .. } => Err(ProxyError::Blocked(original)),
        Destination::Outside { blocked: false, .. } => Ok(as_it_is()),
        Destination::Service(service) if !service.original_within.is_empty() => {
            if !service.original_within.iter().any(|block| block.contains(original.ip())) {
                // The name is known, the address is not one of its own: no door opens by a name alone.
                return if is_closed { Err(ProxyError::Blocked(original)) } else { Ok(as_it_is()) };
            }
            let mut service = service.clone();
            service.endpoints.push(Endpoint::outside(original));
            Ok(Arc::new(Destination::Service(service)))
        }
        Destination::Service(_) | Destination::Workload(_) => Ok(destination.clone()),
    }
}

/// As [`lead`], for a destination that was found by its address; it stays fresh unless the address itself is the endpoint.
pub fn dialled(handle: DestinationHandle, original: SocketAddr) -> Result<DestinationHandle, ProxyError> {
    match &*handle.current() {
        Destination::Service(service) if !service.original_within.is_empty() => {
            lead(&handle.current(), original, true).map(|led| DestinationHandle(Arc::new(led.into())))
        }
        _ => Ok(handle),
    }
}

/// Whom the requests of one connection are for. The last answer is remembered, since most connections ask for one host.
#[derive(Default)]
pub struct Names(RefCell<Option<(String, DestinationHandle)>>);

impl Names {
    /// Where a request for `authority` goes. The port is that of the connection, whatever the authority says.
    pub async fn destination(
        &self,
        worker: &Worker,
        authority: &str,
        route: &Route,
    ) -> Result<Arc<Destination>, ProxyError> {
        let host = without_port(authority);
        let known =
            self.0.borrow().as_ref().filter(|(last, _)| last == host).map(|(_, handle)| handle.clone());
        let handle = match known {
            Some(handle) => handle,
            None => {
                let handle = worker.shared.destinations.resolve_name(host, route.original).await?;
                *self.0.borrow_mut() = Some((host.to_owned(), handle.clone()));
                handle
            }
        };
        lead(&handle.current(), route.original, is_closed(route))
    }
}

/// `host` of `host`, `host:port` and `[ip6]:port`; canonical, so that a colon outside brackets begins the port.
fn without_port(authority: &str) -> &str {
    match authority.rfind(']') {
        Some(end) => authority.get(..=end).unwrap_or(authority),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// Notes which entry a call goes to.
pub fn note_service(record: &mut Record, destination: &Destination) {
    if let Destination::Service(service) = destination {
        record.set_service(&service.host);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::state::ServiceTarget;
    use postern_config::matchers::AddressBlock;

    #[test]
    fn the_port_of_an_authority_is_no_part_of_the_name() {
        for (authority, host) in [
            ("api.example.com", "api.example.com"),
            ("api.example.com:8080", "api.example.com"),
            ("10.1.2.3:80", "10.1.2.3"),
            ("[fd00::1]", "[fd00::1]"),
            ("[fd00::1]:80", "[fd00::1]"),
        ] {
            assert_eq!(without_port(authority), host);
        }
    }

    #[test]
    fn a_name_alone_opens_no_address_that_its_entry_does_not_cover() {
        let service = ServiceTarget {
            original_within: vec![AddressBlock::parse("192.0.2.0/24").unwrap()],
            ..ServiceTarget::default()
        };
        let destination = Arc::new(Destination::Service(service));
        let within: SocketAddr = "192.0.2.7:443".parse().unwrap();
        let led = lead(&destination, within, true).unwrap();
        let Destination::Service(led) = &*led else { panic!("{led:?}") };
        assert_eq!(led.endpoints, [Endpoint::outside(within)]);
        let elsewhere: SocketAddr = "198.51.100.7:443".parse().unwrap();
        let refused = lead(&destination, elsewhere, true);
        assert!(matches!(refused, Err(ProxyError::Blocked(_))), "{refused:?}");
        let passed = lead(&destination, elsewhere, false).unwrap();
        assert_eq!(*passed, Destination::Workload(Endpoint::outside(elsewhere)));
    }
}
