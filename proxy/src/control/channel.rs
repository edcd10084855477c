//! A connection to the control plane: TLS of ours, verified by SPIFFE ID, under tonic's HTTP/2.

use crate::{bootstrap::Address, net::dial};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use postern_identity::{Accept, Peer, SpiffeId, TrustBundles, TrustDomain, tls};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use std::{io, sync::Arc, time::Duration};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// Where the control plane is and who it has to be.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Where.
    pub address: Address,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Trusted at first contact.
    pub bootstrap_trust: Arc<TrustBundles>,
    /// `SO_MARK` of our sockets.
    pub mark: Option<u32>,
    server: SpiffeId,
}

impl ControlPlane {
    /// The control plane of `trust_domain`: `spiffe://<td>/ns/postern-system/sa/control-plane`.
    ///
    /// # Errors
    /// When no such ID can be formed.
    pub fn new(
        address: Address,
        trust_domain: TrustDomain,
        bootstrap_trust: TrustBundles,
        mark: Option<u32>,
    ) -> Result<Self, String> {
        let server = SpiffeId::for_service_account(&trust_domain, "postern-system", "control-plane")
            .map_err(|cause| cause.to_string())?;
        Ok(Self { address, trust_domain, bootstrap_trust: Arc::new(bootstrap_trust), mark, server })
    }

    /// Connects, proving ourselves with `key` when we have one. The channel lives as long as this one connection: it
    /// never reconnects by itself, since the next connection may need another certificate. The peer is for those who
    /// judge it again later.
    ///
    /// # Errors
    /// One sentence: what was tried, and why it failed.
    pub async fn connect(
        &self,
        key: Option<Arc<CertifiedKey>>,
        trust: Arc<TrustBundles>,
    ) -> Result<(Channel, Peer), String> {
        let stream = self.open(key, trust).await.map_err(|cause| {
            let what = match tls::refusal_in(&cause) {
                Some(refusal) => format!("its certificate is refused: {refusal}"),
                None => cause.to_string(),
            };
            format!("control plane {}: {what}", self.address)
        })?;
        let peer = tls::peer(stream.get_ref().1.peer_certificates())
            .ok_or_else(|| format!("control plane {}: it showed no certificate", self.address))?;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.lock().take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let channel = Endpoint::from_static("http://control-plane.postern-system.svc")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|cause| format!("control plane {}: {cause}", self.address))?;
        Ok((channel, peer))
    }

    /// Whether it stands on this machine and knows by the socket who we are.
    pub fn is_local(&self) -> bool {
        matches!(self.address, Address::Unix(_))
    }

    async fn open(
        &self,
        key: Option<Arc<CertifiedKey>>,
        trust: Arc<TrustBundles>,
    ) -> io::Result<TlsStream<Either<TcpStream, UnixStream>>> {
        let config = tls::client_config(key, trust, Accept::only(self.server.clone()), &[b"h2"])
            .map_err(io::Error::other)?;
        // The name is a label: who may answer is decided by the SPIFFE ID alone.
        let (stream, name) = match &self.address {
            Address::Tcp(address) => {
                let stream = dial::connect(*address, self.mark, None, CONNECT).await?;
                (Either::Left(stream), ServerName::IpAddress(address.ip().into()))
            }
            Address::Unix(path) => {
                let stream = tokio::time::timeout(CONNECT, UnixStream::connect(path))
                    .await
                    .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"))??;
                let name =
                    ServerName::try_from("control-plane.postern-system.svc").map_err(io::Error::other)?;
                (Either::Right(stream), name)
            }
        };
        tokio::time::timeout(HANDSHAKE, TlsConnector::from(Arc::new(config)).connect(name, stream))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake within 5 s"))?
    }
}

/// A gRPC status as one line, with what lies under it.
pub fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
