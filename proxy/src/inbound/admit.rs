//! Who calls, and in which language: the table of mode × protocol (reference 1.5), decided on real bytes.

use super::Caller;
use crate::{
    error::ProxyError,
    net::{
        Accepted, Prefixed, reset_on_close,
        sniff::{self, Application, Hello, Transport},
    },
    state::Credentials,
    telemetry::Record,
    tls::Stream,
    traffic::Worker,
};
use postern_config::{
    documents::peer_authentication::MtlsMode,
    snapshot::{Protocol, Snapshot},
};
use postern_identity::{Peer, tls::Versions};
use std::{io, sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::Instant};

/// A connection that may go on.
pub struct Admitted {
    /// The other end.
    pub caller: Caller,
    /// Decrypted, nothing lost.
    pub stream: Prefixed<Stream>,
    /// What it carries.
    pub speaks: Speaks,
}

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP, by declaration or by its first bytes.
    Http {
        /// By its preface.
        http2: bool,
    },
    /// Bytes.
    Tcp,
}

/// Whether plaintext may reach this port at all.
pub fn takes_plaintext(snapshot: &Snapshot, port: u16) -> bool {
    matches!(snapshot.mtls_mode(port), MtlsMode::Permissive | MtlsMode::Disable)
}

/// Admits a connection, or says why not. A refused one is reset wherever no handshake has begun.
pub async fn admit(
    worker: &Worker,
    accepted: Accepted,
    deadline: Instant,
    record: &mut Record,
) -> Result<Admitted, ProxyError> {
    let Accepted { stream, downstream, destination, .. } = accepted;
    let (store, limits) = (&worker.shared.store, &worker.shared.settings.limits);
    let port = destination.port();
    let policy = or_reset(&stream, store.inbound().ok_or(ProxyError::NoSnapshot))?;
    let (mode, protocol) = (policy.snapshot.mtls_mode(port), policy.snapshot.protocol(port));
    let credentials = store.own();
    if let Ok(credentials) = &credentials {
        record.set_own_identity(credentials.id.as_str());
    }
    let mut caller = Caller { peer: None, trust: None, downstream, destination, sni: None, place: None };

    let secured = if mode == MtlsMode::Disable {
        Secured::Plain(Stream::Plain(Prefixed::new(stream)))
    } else {
        let credentials = or_reset(&stream, credentials)?;
        let versions = policy.snapshot.spec().mesh.tls_versions;
        let rules = Rules { mode, protocol, versions, server_first: limits.server_first };
        caller.trust = Some(credentials.trust.clone());
        let secured = secure(stream, rules, &credentials, deadline, record).await?;
        if let Secured::Mutual { peer, .. } = &secured {
            record.set_watch(worker.watch(peer, false, &credentials).map_err(ProxyError::PeerDistrusted)?);
        }
        secured
    };
    let (stream, certainty) = match secured {
        Secured::Mutual { stream, peer, hello } => {
            caller.peer = Some(peer);
            let certainty = match protocol {
                Protocol::Auto if hello.is_mesh_http() => Certainty::Http,
                Protocol::Auto if hello.is_mesh_tcp() => Certainty::Tcp,
                _ => Certainty::of(protocol),
            };
            caller.sni = hello.sni;
            (stream, certainty)
        }
        Secured::Plain(stream) => (stream, Certainty::of(protocol)),
        Secured::Opaque(stream) => (stream, Certainty::Tcp),
    };
    let (speaks, stream) = language(stream, certainty, limits.server_first, deadline).await?;
    Ok(Admitted { caller, stream, speaks })
}

enum Secured {
    Mutual {
        stream: Stream,
        peer: Peer,
        hello: Hello,
    },
    Plain(Stream),
    /// Bytes of which nothing more can be known: somebody else's TLS, or a client that waits for the server to speak.
    Opaque(Stream),
}

/// What holds for the transport of one port.
struct Rules {
    mode: MtlsMode,
    protocol: Protocol,
    versions: Versions,
    server_first: Duration,
}

/// The transport half of the table: what is TLS, and who ends it.
async fn secure(
    stream: TcpStream,
    rules: Rules,
    credentials: &Arc<Credentials>,
    deadline: Instant,
    record: &mut Record,
) -> Result<Secured, ProxyError> {
    let Rules { mode, protocol, versions, server_first } = rules;
    let is_http = matches!(protocol, Protocol::Http | Protocol::Http2);
    // Anything but PERMISSIVE is treated as STRICT: a mode that we do not know must not open a port.
    let is_permissive = mode == MtlsMode::Permissive;
    let silence = (is_permissive && !is_http).then_some(server_first);
    let (transport, stream) = within(deadline, sniff::transport(stream, silence)).await?;
    let plain = |stream| Stream::Plain(stream);
    let hello = match transport {
        Transport::Tls(hello) if !is_permissive || hello.is_mesh() => hello,
        // Not answerable; the TLS stack knows the right alert.
        Transport::BrokenTls if !is_permissive => Hello::default(),
        Transport::Tls(_) | Transport::BrokenTls if is_http => {
            reset_on_close(stream.inner());
            return Err(ProxyError::DownstreamTls(
                "TLS that is not of the mesh, on a port that carries HTTP".into(),
            ));
        }
        Transport::Tls(_) | Transport::BrokenTls => return Ok(Secured::Opaque(plain(stream))),
        Transport::Closed(true) if !is_permissive => return Err(ProxyError::DownstreamGone),
        Transport::Raw | Transport::Silent | Transport::Closed(_) if !is_permissive => {
            // Bytes lie unread or were read by us alone: the client must see an error, as with Istio, and never an orderly end.
            reset_on_close(stream.inner());
            return Err(ProxyError::PlaintextRefused);
        }
        Transport::Silent => return Ok(Secured::Opaque(plain(stream))),
        Transport::Raw | Transport::Closed(_) => return Ok(Secured::Plain(plain(stream))),
    };
    let carries_http = is_http || (protocol == Protocol::Auto && !hello.is_mesh_tcp());
    let accepting = credentials.tls.accept(stream, &hello.alpn, carries_http, versions);
    let (stream, peer, facts) =
        tokio::time::timeout_at(deadline, accepting).await.map_err(|_| ProxyError::DownstreamTimeout)??;
    record.set_peer(&peer);
    record.set_tls(&facts);
    Ok(Secured::Mutual { stream, peer, hello })
}

/// What declaration and ALPN say about the application bytes.
#[derive(Clone, Copy)]
enum Certainty {
    Http,
    Tcp,
    None,
}

impl Certainty {
    fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http | Protocol::Http2 => Self::Http,
            Protocol::Tcp => Self::Tcp,
            Protocol::Auto => Self::None,
        }
    }
}

async fn language(
    stream: Stream,
    certainty: Certainty,
    server_first: Duration,
    deadline: Instant,
) -> Result<(Speaks, Prefixed<Stream>), ProxyError> {
    let (application, stream) = match certainty {
        Certainty::Tcp => return Ok((Speaks::Tcp, Prefixed::new(stream))),
        Certainty::Http => within(deadline, sniff::http_version(stream)).await?,
        Certainty::None => within(deadline, sniff::application(stream, Some(server_first))).await?,
    };
    match application {
        Application::Http1 => Ok((Speaks::Http { http2: false }, stream)),
        Application::Http2 => Ok((Speaks::Http { http2: true }, stream)),
        Application::Other | Application::Silent => Ok((Speaks::Tcp, stream)),
        Application::Closed => Err(ProxyError::DownstreamGone),
    }
}

async fn within<T>(
    deadline: Instant,
    sniffing: impl Future<Output = io::Result<T>>,
) -> Result<T, ProxyError> {
    tokio::time::timeout_at(deadline, sniffing)
        .await
        .map_err(|_| ProxyError::DownstreamTimeout)?
        .map_err(|_| ProxyError::DownstreamGone)
}

fn or_reset<T>(stream: &TcpStream, found: Result<T, ProxyError>) -> Result<T, ProxyError> {
    if found.is_err() {
        reset_on_close(stream);
    }
    found
}
