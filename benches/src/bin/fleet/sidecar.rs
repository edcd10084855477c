//! Simulated sidecars: what the control plane sees of one, and no more.

use crate::control::{Process, names};
use hyper_util::rt::TokioIo;
use postern_api::v1::{
    self, authority_client::AuthorityClient, control_message, discovery_client::DiscoveryClient,
    sidecar_message::Message,
};
use postern_identity::{Accept, Bundle, SpiffeId, TrustBundles, tls};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    net::TcpSocket,
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/postern-system/sa/control-plane";
/// Tokens shown over one connection, from one address: fewer than the control plane takes at once.
const JOINS: usize = 60;
/// Handshakes that this process does at one time.
const AT_ONCE: usize = 64;
/// A sidecar that is told to renew draws a moment in this time.
const JITTER: Duration = Duration::from_secs(10);
/// After a failure it waits up to so long.
const RETRY: Duration = Duration::from_secs(2);

/// All of them.
pub struct Fleet {
    world: Arc<World>,
    keys: Vec<Arc<CertifiedKey>>,
    told: watch::Sender<bool>,
    news: tokio::sync::Mutex<mpsc::UnboundedReceiver<News>>,
    tell: mpsc::UnboundedSender<News>,
}

/// What sidecars tell the bench.
enum News {
    /// It has its policy.
    Connected,
    /// It holds a new certificate.
    Renewed(Instant),
}

/// What all share. One key, so that making ten thousand is not a part of this; each certificate is another.
struct World {
    address: SocketAddr,
    trust: Arc<TrustBundles>,
    key: rcgen::KeyPair,
    csr: Vec<u8>,
    turns: Semaphore,
}

impl Fleet {
    /// Gets each sidecar its first certificate.
    pub async fn join(control: &Process, sidecars: usize) -> Self {
        let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), control.bundle.as_bytes()).unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let turns = Semaphore::new(AT_ONCE);
        let world = World {
            address: control.address,
            trust: Arc::new([bundle].into_iter().collect()),
            key,
            csr,
            turns,
        };
        let mut keys = Vec::new();
        for (batch, tokens) in control.tokens.chunks(JOINS).enumerate() {
            let channel = world.connect(200 * 65_536 + batch, None).await.unwrap();
            for token in tokens {
                keys.push(world.issue(channel.clone(), token).await.unwrap());
            }
        }
        assert_eq!(keys.len(), sidecars);
        let (tell, news) = mpsc::unbounded_channel();
        Self { world: Arc::new(world), keys, told: watch::channel(false).0, news: news.into(), tell }
    }

    /// Connects all; returns when each has acknowledged its bundles and its policy.
    pub async fn connect(&self) {
        for (number, key) in self.keys.iter().enumerate() {
            let (world, key, tell) = (Arc::clone(&self.world), Arc::clone(key), self.tell.clone());
            tokio::spawn(live(world, number, key, self.told.subscribe(), tell));
        }
        let mut news = self.news.lock().await;
        for _ in &self.keys {
            assert!(matches!(news.recv().await, Some(News::Connected)));
        }
    }

    /// Tells all to renew, as the control plane does that taints its authority.
    pub fn renew(&self) {
        self.told.send_replace(true);
    }

    /// Waits until each holds a new certificate; when each did, since `begin`.
    pub async fn all_renewed(&self, begin: Instant) -> Vec<Duration> {
        let (mut news, mut renewed) = (self.news.lock().await, Vec::new());
        while renewed.len() < self.keys.len() {
            if let Some(News::Renewed(at)) = news.recv().await {
                renewed.push(at - begin);
            }
        }
        renewed
    }
}

impl World {
    /// A connection from the address of this sidecar alone: one machine is one address, and limited as such.
    async fn connect(&self, number: usize, key: Option<Arc<CertifiedKey>>) -> io::Result<Channel> {
        let _turn = self.turns.acquire().await.unwrap();
        let accept = Accept::Exactly(BTreeSet::from([CONTROL_PLANE.parse::<SpiffeId>().unwrap()]));
        let config = tls::client_config(key, Arc::clone(&self.trust), accept, &[b"h2"]).unwrap();
        let bits = 0x7f01_0000 + u32::try_from(number).unwrap();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(Ipv4Addr::from_bits(bits).into(), 0))?;
        let stream = socket.connect(self.address).await?;
        let name = ServerName::try_from("control-plane.postern-system.svc").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let mut stream = Some(TokioIo::new(stream));
        let once = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the connection is gone"));
            std::future::ready(stream)
        });
        Endpoint::from_static("http://control-plane")
            .connect_with_connector(once)
            .await
            .map_err(io::Error::other)
    }

    async fn issue(&self, channel: Channel, token: &str) -> io::Result<Arc<CertifiedKey>> {
        let csr = self.csr.clone();
        let request = v1::IssueCertificateRequest { csr, join_token: token.to_owned(), ..Default::default() };
        let issued =
            AuthorityClient::new(channel).issue_certificate(request).await.map_err(io::Error::other)?;
        let chain = issued.into_inner().chain.into_iter().map(Into::into).collect();
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        tls::certified_key(chain, key.into()).map_err(io::Error::other)
    }
}

/// One sidecar: its stream, and one renewal when it is told.
async fn live(
    world: Arc<World>,
    number: usize,
    key: Arc<CertifiedKey>,
    mut told: watch::Receiver<bool>,
    tell: mpsc::UnboundedSender<News>,
) {
    let channel = loop {
        match world.connect(number, Some(Arc::clone(&key))).await {
            Ok(channel) => break channel,
            Err(error) => eprintln!("sidecar {number} connects again: {error}"),
        }
    };
    let (say, said) = mpsc::channel(4);
    let (_, instance) = names(number);
    let hello = Message::Hello(v1::Hello { build: "bench".into(), instance });
    say.send(v1::SidecarMessage { message: Some(hello) }).await.unwrap();
    let mut client = DiscoveryClient::new(channel);
    let mut hear = client.connect(ReceiverStream::new(said)).await.unwrap().into_inner();
    let mut waiting = true;
    loop {
        tokio::select! {
            update = hear.message() => {
                let update = update.expect("the stream stays").expect("the stream stays");
                let ack = Message::Ack(v1::Ack { nonce: update.nonce, version: update.version });
                say.send(v1::SidecarMessage { message: Some(ack) }).await.unwrap();
                if matches!(update.message, Some(control_message::Message::Inbound(_))) {
                    let _ = tell.send(News::Connected);
                }
            }
            changed = told.changed(), if waiting => {
                changed.unwrap();
                waiting = false;
                tokio::spawn(renew(Arc::clone(&world), number, Arc::clone(&key), tell.clone()));
            }
        }
    }
}

/// As a sidecar does: a connection of its own, by the current certificate.
async fn renew(world: Arc<World>, number: usize, key: Arc<CertifiedKey>, tell: mpsc::UnboundedSender<News>) {
    tokio::time::sleep(JITTER.mul_f64(drawn(number))).await;
    loop {
        let renewed = match world.connect(number, Some(Arc::clone(&key))).await {
            Ok(channel) => world.issue(channel, "").await,
            Err(error) => Err(error),
        };
        match renewed {
            Ok(_) => break,
            Err(error) => eprintln!("sidecar {number} renews again: {error}"),
        }
        tokio::time::sleep(RETRY.mul_f64(drawn(number))).await;
    }
    let _ = tell.send(News::Renewed(Instant::now()));
}

/// A share in 0.0..1.0, evenly spread over sidecars: repeatable, and as good as random for how load falls.
fn drawn(number: usize) -> f64 {
    (number as f64 * 0.618_033_988_749_895).fract()
}
