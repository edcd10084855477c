//! A sidecar driven by hand: it says exactly what a test tells it to, over real TLS, to the real control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
// Each test program uses its part of it.
#![allow(dead_code)]

use hyper_util::rt::TokioIo;
use postern_api::v1::{
    self, authority_client::AuthorityClient, control_message, discovery_client::DiscoveryClient,
    sidecar_message,
};
use postern_config::{
    Documents, Severity,
    documents::{self, SourceFile},
};
use postern_control_plane::{ControlPlane, Options};
use postern_identity::{Accept, Bundle, SpiffeId, TrustBundles, tls};
use rustls::{pki_types::ServerName, sign::CertifiedKey};
use std::{collections::BTreeSet, future::Future, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Nothing in a test may take longer.
const DEADLINE: Duration = Duration::from_secs(20);

pub const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/postern-system/sa/control-plane";

/// Waits for an event; a test never waits for ever.
pub async fn soon<T>(what: &str, event: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, event).await.unwrap_or_else(|_| panic!("in vain: {what}"))
}

pub async fn start() -> ControlPlane {
    start_with(Duration::from_secs(3600)).await
}

/// One whose certificates live only so long.
pub async fn start_with(certificate_lifetime: Duration) -> ControlPlane {
    postern_control_plane::start(Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        state: None,
        trust_domain: "cluster.local".into(),
        certificate_lifetime,
        unix_socket: None,
        kubernetes: None,
        federation: Default::default(),
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
    })
    .await
    .unwrap()
}

pub fn read(yaml: &str) -> Documents {
    let (documents, problems) =
        documents::read(&[SourceFile { name: "mesh.yaml".into(), text: yaml.into() }]);
    let errors: Vec<_> =
        problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    documents
}

fn connector(control_plane: &ControlPlane, key: Option<Arc<CertifiedKey>>) -> tokio_rustls::TlsConnector {
    let bundle =
        Bundle::from_pem("cluster.local".parse().unwrap(), control_plane.trust_bundle_pem().as_bytes())
            .unwrap();
    let trust: TrustBundles = [bundle].into_iter().collect();
    let accept = Accept::Exactly(BTreeSet::from([CONTROL_PLANE.parse::<SpiffeId>().unwrap()]));
    let config = tls::client_config(key, Arc::new(trust), accept, &[b"h2"]).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

async fn dial(
    connector: tokio_rustls::TlsConnector,
    address: SocketAddr,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    connector.connect(ServerName::try_from("control-plane.postern-system.svc").unwrap(), stream).await
}

/// A connection to the control plane, with a client certificate or without.
pub async fn channel(control_plane: &ControlPlane, key: Option<Arc<CertifiedKey>>) -> Channel {
    try_channel(control_plane, key).await.unwrap()
}

/// [`channel`], for a certificate that may be refused.
pub async fn try_channel(
    control_plane: &ControlPlane,
    key: Option<Arc<CertifiedKey>>,
) -> Result<Channel, tonic::transport::Error> {
    let (connector, address) = (connector(control_plane, key), control_plane.address());
    let connect = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move { dial(connector, address).await.map(TokioIo::new) }
    });
    soon("a connection", Endpoint::from_static("http://control-plane").connect_with_connector(connect)).await
}

/// A connection over `stream`, which leads to the control plane already: its unix socket.
pub async fn channel_over(
    control_plane: &ControlPlane,
    key: Option<Arc<CertifiedKey>>,
    stream: UnixStream,
) -> Channel {
    let connector = connector(control_plane, key);
    let name = ServerName::try_from("control-plane.postern-system.svc").unwrap();
    let connection = soon("a handshake", connector.connect(name, stream)).await.unwrap();
    // It is asked for once; there is no second one to be had.
    let mut connection = Some(TokioIo::new(connection));
    let connect = tower::service_fn(move |_| {
        let connection = connection.take().ok_or_else(|| std::io::Error::other("the connection is gone"));
        std::future::ready(connection)
    });
    soon("a connection", Endpoint::from_static("http://control-plane").connect_with_connector(connect))
        .await
        .unwrap()
}

/// A connection that asks for nothing, and sees how long it is left open.
pub struct Silent(tokio_rustls::client::TlsStream<TcpStream>);

impl Silent {
    pub async fn open(control_plane: &ControlPlane, key: Arc<CertifiedKey>) -> Self {
        let dialled = dial(connector(control_plane, Some(key)), control_plane.address());
        let mut connection = soon("a handshake", dialled).await.unwrap();
        // HTTP/2's preface and empty settings (RFC 9113 3.4), so that it is one of the good.
        connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        // The head of its settings: it has taken us.
        soon("an answer", connection.read_exact(&mut [0; 9])).await.unwrap();
        Self(connection)
    }

    /// Resolves when the control plane closes it.
    pub async fn ended(mut self) {
        // An end without TLS's own good-bye is an end, too.
        let _ = self.0.read_to_end(&mut Vec::new()).await;
    }
}

/// The certificate that a new connection is shown.
pub async fn shown_certificate(control_plane: &ControlPlane) -> Vec<u8> {
    let connection =
        soon("a handshake", dial(connector(control_plane, None), control_plane.address())).await.unwrap();
    connection.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// A key pair and its CSR.
pub fn csr() -> (rcgen::KeyPair, Vec<u8>) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
    (key, request.der().to_vec())
}

pub async fn issue(
    channel: Channel,
    csr: Vec<u8>,
    token: &str,
) -> Result<v1::IssueCertificateResponse, Status> {
    let request = v1::IssueCertificateRequest { csr, join_token: token.into(), ..Default::default() };
    let mut client = AuthorityClient::new(channel);
    soon("a certificate", client.issue_certificate(request)).await.map(tonic::Response::into_inner)
}

/// A certificate for one service account, got by join token.
pub async fn join(
    control_plane: &ControlPlane,
    namespace: &str,
    account: &str,
    pod: &str,
) -> Arc<CertifiedKey> {
    let token = control_plane.join_token(namespace, account, pod);
    let (key, csr) = csr();
    let issued = issue(channel(control_plane, None).await, csr, &token).await.unwrap();
    certified(issued, &key)
}

pub fn certified(issued: v1::IssueCertificateResponse, key: &rcgen::KeyPair) -> Arc<CertifiedKey> {
    let chain = issued.chain.into_iter().map(Into::into).collect();
    tls::certified_key(chain, rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap()
}

/// A stream of one sidecar.
pub struct Stream {
    say: mpsc::Sender<v1::SidecarMessage>,
    hear: Streaming<v1::ControlMessage>,
}

impl Stream {
    pub async fn open(channel: Channel, instance: &str) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(16);
        let mut client = DiscoveryClient::new(channel);
        let hello = v1::Hello { build: "test".into(), instance: instance.into(), ..Default::default() };
        let message = Some(sidecar_message::Message::Hello(hello));
        // There is room for it, whatever becomes of the stream.
        say.send(v1::SidecarMessage { message }).await.unwrap();
        let hear = soon("a stream", client.connect(ReceiverStream::new(said))).await?.into_inner();
        Ok(Self { say, hear })
    }

    pub async fn say(&self, message: sidecar_message::Message) {
        self.say.send(v1::SidecarMessage { message: Some(message) }).await.unwrap();
    }

    pub async fn subscribe(&self, address: &str) {
        self.say(sidecar_message::Message::Subscribe(v1::Subscribe { address: address.into() })).await;
    }

    pub async fn ack(&self, update: &v1::ControlMessage) {
        let (nonce, version) = (update.nonce.clone(), update.version.clone());
        self.say(sidecar_message::Message::Ack(v1::Ack { nonce, version })).await;
    }

    pub async fn nack(&self, update: &v1::ControlMessage, reason: &str) {
        let (nonce, version) = (update.nonce.clone(), update.version.clone());
        self.say(sidecar_message::Message::Nack(v1::Nack { nonce, version, reason: reason.into() })).await;
    }

    /// The next update, or why the stream ended.
    pub async fn hear(&mut self) -> Result<v1::ControlMessage, Status> {
        match soon("an update", self.hear.message()).await {
            Ok(Some(update)) => Ok(update),
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => Err(status),
        }
    }

    /// The next update, which must be the whole inbound policy.
    pub async fn hear_policy(&mut self) -> (v1::ControlMessage, postern_config::InboundSpec) {
        let update = self.hear().await.unwrap();
        let Some(control_message::Message::Inbound(policy)) = &update.message else { panic!("{update:?}") };
        let spec = serde_json::from_slice(&policy.spec).unwrap();
        (update, spec)
    }

    /// The next update, which must be a destination.
    pub async fn hear_destination(&mut self) -> (v1::ControlMessage, v1::Destination) {
        let update = self.hear().await.unwrap();
        let Some(control_message::Message::Destination(destination)) = update.message.clone() else {
            panic!("{update:?}")
        };
        (update, destination)
    }

    /// The next update, which must be the bundles.
    pub async fn hear_bundles(&mut self) -> Vec<v1::Bundle> {
        let update = self.hear().await.unwrap();
        let Some(control_message::Message::Bundles(bundles)) = update.message else { panic!("{update:?}") };
        bundles.bundles
    }
}

/// Waits until the table of sessions is as wanted.
pub async fn status_becomes(
    control_plane: &ControlPlane,
    what: &str,
    wanted: impl Fn(&[postern_control_plane::SessionStatus]) -> bool,
) {
    soon(what, async {
        while !wanted(&control_plane.status()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
