//! TLS contexts of one certificate, accept and connect. The rules themselves live in `postern_identity::tls`.

pub mod open;

use crate::{error::ProxyError, net::Prefixed};
use parking_lot::Mutex;
use postern_identity::{
    Accept, Peer, SpiffeId, TrustBundles,
    tls::{
        ClientCertificate, Versions, alpn_for, client_config_for, peer, refusal_in, server_config_for,
        without_alpn,
    },
    verify::verify,
};
use rustls::{ClientConfig, ServerConfig, sign::CertifiedKey};
use rustls_pki_types::{ServerName, UnixTime};
use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// What a connection between sidecars carries; chooses ALPN on both sides (reference 1.7 and 4.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carries {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl Carries {
    fn client_alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Http1 => &[b"istio-http/1.1", b"istio", b"http/1.1"],
            Self::Http2 => &[b"istio-h2", b"istio", b"h2"],
            Self::Tcp => &[b"istio-peer-exchange", b"istio"],
        }
    }
}

/// Server contexts, ready to use; client contexts are made per expected identity and cached here.
pub struct Contexts {
    tls_1_3: Servers,
    // Used only while the mesh configuration says so.
    tls_1_2: Servers,
    own: SpiffeId,
    key: Arc<CertifiedKey>,
    trust: Arc<TrustBundles>,
    // Locked only while a connection is dialled, never per request.
    clients: Mutex<HashMap<(SpiffeId, Carries, Versions), Arc<ClientConfig>>>,
}

/// The server contexts of one setting of versions.
struct Servers {
    http: Arc<ServerConfig>,
    tcp: Arc<ServerConfig>,
    // For clients that offer only protocols we do not have: they are accepted without ALPN, as Istio does.
    no_alpn: Arc<ServerConfig>,
}

/// More identities than this are not worth remembering: the contexts are cheap to make again.
const MOST_CLIENTS: usize = 1024;

/// TLS facts for the log.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct TlsFacts {
    pub version: Option<&'static str>,
    pub sni: Option<String>,
    pub alpn: Option<String>,
}

impl Contexts {
    /// Builds all contexts, or says why the certificate cannot be used (then nothing is published). The new certificate must
    /// pass our own verifier, as server and as client: what peers would refuse never replaces what they accept.
    pub fn build(key: Arc<CertifiedKey>, trust: Arc<TrustBundles>, own: &SpiffeId) -> Result<Self, String> {
        let exactly = Accept::Exactly(BTreeSet::from([own.clone()]));
        for server in [true, false] {
            verify(&key.cert, &trust, &exactly, server, UnixTime::now())
                .map_err(|refusal| format!("our own certificate would be refused by our peers: {refusal}"))?;
        }
        let domains = Accept::TrustDomains(trust.iter().map(|bundle| bundle.trust_domain.clone()).collect());
        let server = |versions, alpn: &[&[u8]]| {
            let (key, trust, domains) = (key.clone(), trust.clone(), domains.clone());
            server_config_for(versions, key, trust, domains, ClientCertificate::Required, alpn).map(Arc::new)
        };
        let servers = |versions| {
            let http = server(versions, &[b"h2", b"http/1.1"])?;
            let tcp = server(versions, &[b"istio-peer-exchange", b"h2", b"http/1.1"])?;
            let no_alpn = Arc::new(without_alpn(&http));
            Ok::<_, String>(Servers { http, tcp, no_alpn })
        };
        let (tls_1_3, tls_1_2) = (servers(Versions::Tls13)?, servers(Versions::Tls12And13)?);
        Ok(Self { tls_1_3, tls_1_2, own: own.clone(), key, trust, clients: Mutex::default() })
    }

    fn client(
        &self,
        expected: &SpiffeId,
        carries: Carries,
        versions: Versions,
    ) -> Result<Arc<ClientConfig>, String> {
        let wanted = (expected.clone(), carries, versions);
        if let Some(config) = self.clients.lock().get(&wanted) {
            return Ok(config.clone());
        }
        let exactly = Accept::Exactly(BTreeSet::from([expected.clone()]));
        let (key, trust) = (Some(self.key.clone()), self.trust.clone());
        let config = client_config_for(versions, key, trust, exactly, carries.client_alpn()).map(Arc::new)?;
        let mut clients = self.clients.lock();
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(wanted, config.clone());
        Ok(config)
    }

    /// The server's half of the handshake with a client that offers `alpn`. `http` chooses our ALPN list only, never the
    /// policy. Put a deadline around it.
    pub async fn accept(
        &self,
        stream: Prefixed<TcpStream>,
        alpn: &[Vec<u8>],
        http: bool,
        versions: Versions,
    ) -> Result<(Stream, Peer, TlsFacts), ProxyError> {
        let servers = match versions {
            Versions::Tls13 => &self.tls_1_3,
            Versions::Tls12And13 => &self.tls_1_2,
        };
        let config = if http { &servers.http } else { &servers.tcp };
        let offers = alpn.iter().map(Vec::as_slice);
        let config =
            if alpn_for(offers, &config.alpn_protocols).is_empty() { &servers.no_alpn } else { config };
        let accepted = TlsAcceptor::from(config.clone()).accept(stream).await;
        let stream = accepted.map_err(|error| downstream_failure(error, &self.own))?;
        let stream = TlsStream::Server(stream);
        // Our configurations demand a certificate; without a peer there is nothing to trust.
        let peer = peer(stream.get_ref().1.peer_certificates())
            .ok_or_else(|| ProxyError::DownstreamTls("the handshake ended without a verified peer".into()))?;
        let facts = facts(&stream);
        Ok((Stream::Tls(Box::new(stream)), peer, facts))
    }

    /// The client's half, to exactly one identity. Put a deadline around it.
    pub async fn connect(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        expected: &SpiffeId,
        sni: &str,
        carries: Carries,
        versions: Versions,
    ) -> Result<(Stream, Peer, TlsFacts), ProxyError> {
        let failed = |cause: String| ProxyError::UpstreamTls { address, cause };
        let config = self.client(expected, carries, versions).map_err(failed)?;
        // The name only labels the connection: who may answer is decided by the SPIFFE ID alone.
        let name = ServerName::try_from(sni.to_owned())
            .unwrap_or_else(|_| ServerName::IpAddress(address.ip().into()));
        let stream =
            TlsConnector::from(config).connect(name, Prefixed::new(stream)).await.map_err(|error| {
                match refusal_in(&error).cloned() {
                    Some(refusal) => ProxyError::UpstreamRefused {
                        address,
                        expected: expected.clone(),
                        refusal: Box::new(refusal),
                    },
                    None => failed(error.to_string()),
                }
            })?;
        let stream = TlsStream::Client(stream);
        let peer = peer(stream.get_ref().1.peer_certificates())
            .ok_or_else(|| failed("the handshake ended without a verified peer".into()))?;
        let mut facts = facts(&stream);
        facts.sni = Some(sni.to_owned());
        Ok((Stream::Tls(Box::new(stream)), peer, facts))
    }
}

impl std::fmt::Debug for Contexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Contexts(..)")
    }
}

fn downstream_failure(error: io::Error, own: &SpiffeId) -> ProxyError {
    match refusal_in(&error) {
        Some(refusal) => ProxyError::PeerRefused { own: own.clone(), refusal: Box::new(refusal.clone()) },
        None if error.kind() == io::ErrorKind::UnexpectedEof => ProxyError::DownstreamGone,
        None => ProxyError::DownstreamTls(error.to_string()),
    }
}

fn facts(stream: &TlsStream<Prefixed<TcpStream>>) -> TlsFacts {
    let (_, connection) = stream.get_ref();
    let version = connection.protocol_version().map(|version| match version {
        rustls::ProtocolVersion::TLSv1_3 => "TLSv1.3",
        rustls::ProtocolVersion::TLSv1_2 => "TLSv1.2",
        _ => "other",
    });
    let alpn = connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
    let sni = match stream {
        TlsStream::Server(stream) => stream.get_ref().1.server_name().map(str::to_owned),
        TlsStream::Client(_) => None,
    };
    TlsFacts { version, sni, alpn }
}

/// One end of a conversation: plain, or inside TLS. The only stream type above this room.
#[derive(Debug)]
pub enum Stream {
    /// As it came from the socket.
    Plain(Prefixed<TcpStream>),
    /// Encrypted, both ends known.
    Tls(Box<TlsStream<Prefixed<TcpStream>>>),
}

impl Stream {
    /// Makes the coming close a reset.
    pub fn reset_on_close(&self) {
        crate::net::reset_on_close(self.socket());
    }

    /// Whoever reads gets the end, now.
    pub fn stop_reading(&self) {
        crate::net::stop_reading(self.socket());
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream.inner(),
            Self::Tls(stream) => stream.get_ref().0.inner(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
