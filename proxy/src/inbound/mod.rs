//! The inbound journey: from the network to our app, read top to bottom.

mod admit;
mod http;
mod tcp;

use crate::{
    drain::Side,
    error::ProxyError,
    net::{Accepted, Arrival, Listener, reset_on_close},
    telemetry::Direction,
    traffic::{
        Shared, Worker,
        governor::Sourced,
        requests::{Carrying, not_carried},
    },
};
use postern_config::{Facts, HttpFacts, Judgement, authorize::judge, snapshot::Snapshot};
use postern_identity::{Peer, TrustBundles};
use rustls_pki_types::UnixTime;
use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};
use tokio::time::Instant;

/// Serves one inbound listener until the drain is over. Runs inside a single-threaded worker runtime that is local
/// (it spawns with `spawn_local`); each worker calls it with its own listener. Never fails: what goes wrong
/// with a connection is in its record.
pub async fn serve(listener: Listener, shared: Arc<Shared>) {
    Worker::new(shared, Side::Inbound).accept_all(listener, connection).await;
}

async fn connection(worker: Rc<Worker>, accepted: Accepted) -> Option<Carrying> {
    // From here every exit is logged exactly once: when the record drops.
    let telemetry = &worker.shared.telemetry;
    let mut record = telemetry.connection(Direction::Inbound, accepted.downstream, accepted.destination);
    let deadline = Instant::now() + worker.shared.settings.limits.first_request;

    let (settings, port) = (&worker.shared.settings, accepted.destination.port());
    // Whatever rules bring to the inbound side is for this machine, so a port of ours is a loop on any address.
    let own_port = !matches!(accepted.arrival, Arrival::Fixed(_)) && settings.own_ports.contains(&port);
    if own_port || accepted.is_loop(&settings.own_ports, &[]) {
        reset_on_close(&accepted.stream);
        return not_carried(record, &ProxyError::Loop(port));
    }

    // One source cannot take the places of all others.
    let (limits, source) = (&settings.limits, accepted.downstream.ip());
    let (most, most_unproven) = (limits.connections_per_source, limits.unproven_per_source);
    let mut place = match worker.sources.enter(source, most, most_unproven) {
        Ok(place) => place,
        Err(limit) => {
            telemetry.metrics().shed(limit);
            reset_on_close(&accepted.stream);
            return not_carried(record, &ProxyError::Overloaded("too many connections of one source"));
        }
    };

    // Who calls, and in which language: sniff, TLS, protocol, all under one deadline.
    let mut admitted = match admit::admit(&worker, accepted, deadline, &mut record).await {
        Ok(admitted) => admitted,
        Err(error) => return not_carried(record, &error),
    };
    place.prove();
    admitted.caller.place = Some(place);

    let admit::Admitted { caller, stream, speaks } = admitted;
    Some(match speaks {
        admit::Speaks::Http { http2 } => http::serve(worker, caller, stream, http2, deadline, record),
        admit::Speaks::Tcp => Box::pin(tcp::carry(worker, caller, stream, record)),
    })
}

/// The other end of one inbound connection, as policy sees it.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Who, verified; `None`: plaintext.
    peer: Option<Peer>,
    /// What it was verified under.
    trust: Option<Arc<TrustBundles>>,
    /// From where.
    downstream: SocketAddr,
    /// Where to: the original destination, which is our app.
    destination: SocketAddr,
    /// Server name it asked for in the handshake.
    sni: Option<String>,
    /// Its place among the connections of its source, kept for as long as anything of the connection is, tunnels included.
    place: Option<Sourced>,
}

impl Caller {
    /// The facts of a decision; `http` is `None` for TCP.
    fn facts<'a>(&'a self, remote_ip: IpAddr, http: Option<HttpFacts<'a>>) -> Facts<'a> {
        Facts {
            claims: None,
            peer: self.peer.as_ref().map(Peer::id),
            source_ip: self.downstream.ip(),
            remote_ip,
            destination_ip: self.destination.ip(),
            destination_port: self.destination.port(),
            sni: self.sni.as_deref(),
            http,
        }
    }

    /// Decides about the connection as such.
    fn authorize_connection<'s>(&self, snapshot: &'s Snapshot) -> (Judgement<'s>, Facts<'_>) {
        let facts = self.facts(self.downstream.ip(), None);
        (judge(snapshot, &facts), facts)
    }

    /// What stands against this connection whatever it asks for: policy may have become STRICT since it was accepted, and
    /// certificates end.
    fn objection(&self, snapshot: &Snapshot) -> Option<ProxyError> {
        match &self.peer {
            None if !admit::takes_plaintext(snapshot, self.destination.port()) => {
                Some(ProxyError::PlaintextRefused)
            }
            // An ended certificate is found by a comparison; only then the verifier is asked for the words.
            Some(peer) if peer.not_after() < std::time::SystemTime::now() => {
                let trust = self.trust.clone().unwrap_or_default();
                let refusal = peer.still_trusted(&trust, false, UnixTime::now()).err();
                refusal.map(ProxyError::PeerDistrusted)
            }
            _ => None,
        }
    }
}
