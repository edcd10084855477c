//! A connection to the control plane: TLS of ours, verified by SPIFFE ID, under tonic's HTTP/2.

use crate::net::dial;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use postern_identity::{Accept, SpiffeId, TrustBundles, TrustDomain, tls};
use rustls::sign::CertifiedKey;
use rustls_pki_types::ServerName;
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(5);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// Where the control plane is and who it has to be.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    /// Where.
    pub address: SocketAddr,
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
        address: SocketAddr,
        trust_domain: TrustDomain,
        bootstrap_trust: TrustBundles,
        mark: Option<u32>,
    ) -> Result<Self, String> {
        let server = SpiffeId::for_service_account(&trust_domain, "postern-system", "control-plane")
            .map_err(|cause| cause.to_string())?;
        Ok(Self { address, trust_domain, bootstrap_trust: Arc::new(bootstrap_trust), mark, server })
    }

    /// Connects, proving ourselves with `key` when we have one. The channel lives as long as this one connection: it
    /// never reconnects by itself, since the next connection may need another certificate.
    ///
    /// # Errors
    /// One sentence: what was tried, and why it failed.
    pub async fn connect(
        &self,
        key: Option<Arc<CertifiedKey>>,
        trust: Arc<TrustBundles>,
    ) -> Result<Channel, String> {
        let stream = self.open(key, trust).await.map_err(|cause| {
            let what = match tls::refusal_in(&cause) {
                Some(refusal) => format!("its certificate is refused: {refusal}"),
                None => cause.to_string(),
            };
            format!("control plane {}: {what}", self.address)
        })?;
        let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = once.lock().take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        Endpoint::from_static("http://control-plane.postern-system.svc")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await
            .map_err(|cause| format!("control plane {}: {cause}", self.address))
    }

    async fn open(
        &self,
        key: Option<Arc<CertifiedKey>>,
        trust: Arc<TrustBundles>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let config = tls::client_config(key, trust, Accept::only(self.server.clone()), &[b"h2"])
            .map_err(io::Error::other)?;
        let stream = dial::connect(self.address, self.mark, None, CONNECT).await?;
        let name = ServerName::IpAddress(self.address.ip().into());
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
