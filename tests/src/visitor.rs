//! Somebody beside the sidecars who has a certificate and its key: stolen from a pod, or made with a stolen root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use crate::{
    certificates::{Leaf, Signer},
    standalone::Standalone,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use postern_identity::{Accept, Bundle, TrustBundles, tls};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The identity that policy lets in.
pub const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
/// The header by which the app recognises a visitor.
pub const HEADER: &str = "x-visitor";

/// Calls past the client's sidecar.
pub struct Visitor {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    trust: Arc<TrustBundles>,
}

/// An open connection of a visitor.
pub struct Connection(SendRequest<Empty<Bytes>>);

impl Visitor {
    /// Has a copy of the active root's key: whatever it signs is perfect.
    pub fn with_the_root_of(mesh: &Standalone) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pair = Signer::of_mesh(&mesh.path("state"), folder.path()).sign("thief", &Leaf::good(CLIENT));
        let chain = CertificateDer::pem_file_iter(&pair.certificate).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&pair.key).unwrap();
        Self { chain, key, trust: trust(mesh) }
    }

    /// Has a copy of what the client's sidecar holds.
    pub fn with_the_certificate_of_the_client(mesh: &Standalone) -> Self {
        let kept = std::fs::read(mesh.sidecar_state("client").join("identity.json")).unwrap();
        let kept: serde_json::Value = serde_json::from_slice(&kept).unwrap();
        let decoded = |text: &serde_json::Value| STANDARD.decode(text.as_str().unwrap()).unwrap();
        let chain = kept["chain"].as_array().unwrap().iter().map(|der| decoded(der).into()).collect();
        let key = PrivatePkcs8KeyDer::from(decoded(&kept["key"])).into();
        Self { chain, key, trust: trust(mesh) }
    }

    /// Trusts whatever roots the mesh has by now.
    pub fn learn(&mut self, mesh: &Standalone) {
        self.trust = trust(mesh);
    }

    /// A connection, or why there is none. A refused certificate may come to light with the first call only.
    pub async fn connect(&self, to: SocketAddr) -> Result<Connection, String> {
        let key = tls::certified_key(self.chain.clone(), self.key.clone_key()).unwrap();
        let accept = Accept::trust_domain("cluster.local".parse().unwrap());
        let config = tls::client_config(Some(key), self.trust.clone(), accept, &[b"http/1.1"]).unwrap();
        let stream = TcpStream::connect(to).await.map_err(|e| e.to_string())?;
        let name = ServerName::IpAddress(to.ip().into());
        let stream =
            TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|e| e.to_string())?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(connection);
        Ok(Connection(sender))
    }

    /// The status of one call on a new connection, or why there was none.
    pub async fn call(&self, to: SocketAddr) -> Result<u16, String> {
        self.connect(to).await?.call().await
    }
}

impl Connection {
    /// The status of one call, or why there was none.
    pub async fn call(&mut self) -> Result<u16, String> {
        self.0.ready().await.map_err(|e| e.to_string())?;
        let request = http::Request::get("/ok").header("host", "server").header(HEADER, "1");
        let request = request.body(Empty::new()).unwrap();
        let answer = self.0.send_request(request).await.map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        answer.into_body().collect().await.map_err(|e| e.to_string())?;
        Ok(status)
    }
}

/// How many calls of visitors the app has seen.
pub fn seen(mesh: &Standalone) -> usize {
    mesh.app.received().iter().filter(|received| received.headers.contains_key(HEADER)).count()
}

fn trust(mesh: &Standalone) -> Arc<TrustBundles> {
    let pem = std::fs::read(mesh.path("state/root.pem")).unwrap();
    let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), &pem).unwrap();
    Arc::new(TrustBundles::from_iter([bundle]))
}
