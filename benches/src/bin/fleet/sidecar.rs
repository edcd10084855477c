//! Simulated sidecars: what the control plane sees of one, and no more.

use crate::control::{Process, names, pod_ip};
use hyper_util::rt::TokioIo;
use postern_api::v1::{
    self, authority_client::AuthorityClient, control_message, discovery_client::DiscoveryClient,
    sidecar_message::Message,
};
use postern_identity::{Accept, Bundle, KeyId, SpiffeId, TrustBundles, tls};
use postern_proxy::workload_identity::schedule::{retry_pause, taint_pause};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpSocket,
    sync::{Semaphore, mpsc},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

const CONTROL_PLANE: &str = "spiffe://cluster.local/ns/postern-system/sa/control-plane";
/// Tokens shown over one connection, from one address: fewer than the control plane takes at once.
const JOINS: usize = 250;
/// First connections that are used or opened at one time. Renewals are not held back.
const AT_ONCE: usize = 32;
/// Destinations that each is subscribed to.
const DESTINATIONS: usize = 3;
/// As in the sidecar (`proxy::control::channel`, `proxy::workload_identity::issue`).
const CONNECT: Duration = Duration::from_secs(5);
const HANDSHAKE: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_PATIENCE: Duration = Duration::from_secs(10);

/// All of them.
pub struct Fleet {
    world: Arc<World>,
    held: Vec<Held>,
    news: tokio::sync::Mutex<mpsc::UnboundedReceiver<News>>,
    tell: mpsc::UnboundedSender<News>,
}

/// What sidecars tell the bench.
enum News {
    /// It has its policy and its destinations.
    Connected,
    /// It holds a certificate below no tainted authority again; attempts that had failed before.
    Renewed(Instant, u32),
}

/// A certificate, and what is above it.
#[derive(Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    not_after: SystemTime,
    authorities: Arc<[KeyId]>,
}

/// What all share. One key, so that making ten thousand is not a part of this; each certificate is another.
struct World {
    address: SocketAddr,
    trust: Arc<TrustBundles>,
    key: rcgen::KeyPair,
    csr: Vec<u8>,
    turns: Semaphore,
    /// From here on streams may end.
    is_over: AtomicBool,
}

impl Fleet {
    /// The control plane is about to go.
    pub fn end(&self) {
        self.world.is_over.store(true, Ordering::SeqCst);
    }

    /// Gets each sidecar its first certificate.
    pub async fn join(control: &Process, sidecars: usize) -> Self {
        let bundle = Bundle::from_pem("cluster.local".parse().unwrap(), control.bundle.as_bytes()).unwrap();
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
        let turns = Semaphore::new(AT_ONCE);
        let trust = Arc::new([bundle].into_iter().collect());
        let world = Arc::new(World {
            address: control.address,
            trust,
            key,
            csr,
            turns,
            is_over: AtomicBool::new(false),
        });
        let batches: Vec<_> = control
            .tokens
            .chunks(JOINS)
            .enumerate()
            .map(|(batch, tokens)| tokio::spawn(join(Arc::clone(&world), batch, tokens.to_vec())))
            .collect();
        let mut held = Vec::new();
        for batch in batches {
            held.extend(batch.await.unwrap());
        }
        assert_eq!(held.len(), sidecars);
        let (tell, news) = mpsc::unbounded_channel();
        Self { world, held, news: news.into(), tell }
    }

    /// Connects all; returns when each has acknowledged its bundles, its policy and its destinations.
    pub async fn connect(&self) {
        for (number, held) in self.held.iter().enumerate() {
            let (world, tell) = (Arc::clone(&self.world), self.tell.clone());
            tokio::spawn(live(world, number, held.clone(), tell));
        }
        let mut news = self.news.lock().await;
        for _ in &self.held {
            assert!(matches!(news.recv().await, Some(News::Connected)));
        }
    }

    /// Waits until each holds a new certificate: when each did, since `begin`, and how many attempts failed in all.
    pub async fn all_renewed(&self, begin: Instant) -> (Vec<Duration>, u32) {
        let (mut news, mut renewed, mut failed) = (self.news.lock().await, Vec::new(), 0);
        while renewed.len() < self.held.len() {
            if let Some(News::Renewed(at, failures)) = news.recv().await {
                renewed.push(at - begin);
                failed += failures;
            }
        }
        (renewed, failed)
    }
}

impl World {
    /// A connection from the address of this sidecar alone: one machine is one address, and limited as such.
    async fn connect(&self, number: usize, key: Option<Arc<CertifiedKey>>) -> io::Result<Channel> {
        let accept = Accept::Exactly(BTreeSet::from([CONTROL_PLANE.parse::<SpiffeId>().unwrap()]));
        let config = tls::client_config(key, Arc::clone(&self.trust), accept, &[b"h2"]).unwrap();
        let bits = 0x7f01_0000 + u32::try_from(number).unwrap();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(Ipv4Addr::from_bits(bits).into(), 0))?;
        let stream = timeout(CONNECT, socket.connect(self.address)).await??;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("control-plane.postern-system.svc").unwrap();
        let shaken = timeout(HANDSHAKE, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
        let mut stream = Some(TokioIo::new(shaken??));
        let once = tower::service_fn(move |_| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the connection is gone"));
            std::future::ready(stream)
        });
        Endpoint::from_static("http://control-plane")
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_PATIENCE)
            .keep_alive_while_idle(true)
            .connect_with_connector(once)
            .await
            .map_err(io::Error::other)
    }

    async fn issue(&self, channel: Channel, token: &str) -> io::Result<Held> {
        let csr = self.csr.clone();
        let request = v1::IssueCertificateRequest { csr, join_token: token.to_owned(), ..Default::default() };
        let mut client = AuthorityClient::new(channel);
        let issued = timeout(ANSWER, client.issue_certificate(request)).await?.map_err(io::Error::other)?;
        let chain: Vec<_> = issued.into_inner().chain.into_iter().map(Into::into).collect();
        let not_after = tls::peer(Some(&chain)).unwrap().not_after();
        let roots = self.trust.iter().flat_map(|bundle| &bundle.anchors);
        let above = chain[1..].iter().chain(roots);
        let authorities = above.map(|certificate| KeyId::of_certificate(certificate).unwrap()).collect();
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let key = tls::certified_key(chain, key.into()).map_err(io::Error::other)?;
        Ok(Held { key, not_after, authorities })
    }
}

/// First certificates, one after the other, from an address that no sidecar has.
async fn join(world: Arc<World>, batch: usize, tokens: Vec<String>) -> Vec<Held> {
    let _turn = world.turns.acquire().await.unwrap();
    let channel = world.connect(200 * 65_536 + batch, None).await.unwrap();
    let mut held = Vec::new();
    for token in tokens {
        held.push(world.issue(channel.clone(), &token).await.unwrap());
    }
    held
}

/// One sidecar: its stream, and a renewal when what it holds is tainted.
async fn live(world: Arc<World>, number: usize, mut held: Held, tell: mpsc::UnboundedSender<News>) {
    let channel = loop {
        let _turn = world.turns.acquire().await.unwrap();
        match world.connect(number, Some(Arc::clone(&held.key))).await {
            Ok(channel) => break channel,
            Err(error) => eprintln!("sidecar {number} connects again: {error}"),
        }
    };
    let (send, sent) = mpsc::channel(64);
    let say = async |message| send.send(v1::SidecarMessage { message: Some(message) }).await.unwrap();
    let (_, instance) = names(number);
    say(Message::Hello(v1::Hello { build: "bench".into(), instance, ..Default::default() })).await;
    let mut client = DiscoveryClient::new(channel);
    let mut hear = client.connect(ReceiverStream::new(sent)).await.unwrap().into_inner();
    say(report(number, &held)).await;
    for near in 1..=DESTINATIONS {
        let port = 8080;
        say(Message::Subscribe(v1::Subscribe { address: format!("{}:{port}", pod_ip(number + near)) })).await;
    }
    let mut wanted = 2 + DESTINATIONS;
    let mut renewal: Option<JoinHandle<(Held, u32)>> = None;
    loop {
        tokio::select! {
            update = hear.message() => {
                let update = match update {
                    Ok(Some(update)) => update,
                    _ if world.is_over.load(Ordering::SeqCst) => return,
                    ended => panic!("the stream stays: {ended:?}"),
                };
                say(Message::Ack(v1::Ack { nonce: update.nonce, version: update.version })).await;
                if let Some(control_message::Message::Bundles(trust)) = &update.message
                    && renewal.is_none()
                    && is_below(&held, &trust.tainted)
                {
                    let spread = Duration::from_secs(trust.renewal_spread_seconds.into());
                    renewal = Some(tokio::spawn(renew(Arc::clone(&world), number, held.clone(), spread)));
                }
                wanted = wanted.saturating_sub(1);
                if wanted == 0 {
                    wanted = usize::MAX;
                    let _ = tell.send(News::Connected);
                }
            }
            renewed = async { renewal.as_mut().unwrap().await }, if renewal.is_some() => {
                let (new, failures) = renewed.unwrap();
                let at = Instant::now();
                renewal = None;
                let (old, new_issuer) = (held.authorities[0], new.authorities[0]);
                assert!(old != new_issuer, "the new certificate is below the tainted authority, too");
                held = new;
                say(report(number, &held)).await;
                let _ = tell.send(News::Renewed(at, failures));
            }
        }
    }
}

/// As `proxy::workload_identity` does: a moment is drawn, then a connection of its own, proven by the current certificate.
async fn renew(world: Arc<World>, number: usize, held: Held, spread: Duration) -> (Held, u32) {
    let remaining = || held.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    tokio::time::sleep(taint_pause(spread, remaining(), rand::random())).await;
    let mut failures = 0;
    loop {
        let renewed = match world.connect(number, Some(Arc::clone(&held.key))).await {
            Ok(channel) => world.issue(channel, "").await,
            Err(error) => Err(error),
        };
        match renewed {
            Ok(new) => return (new, failures),
            Err(error) => eprintln!("sidecar {number} renews again: {error}"),
        }
        tokio::time::sleep(retry_pause(failures, Some(remaining()), rand::random())).await;
        failures += 1;
    }
}

fn is_below(held: &Held, tainted: &[Vec<u8>]) -> bool {
    tainted.iter().any(|key| held.authorities.iter().any(|above| above.as_bytes() == key.as_slice()))
}

/// What a sidecar says of the certificate that it has in force. The serial has the right length and says nothing.
fn report(number: usize, held: &Held) -> Message {
    let seconds = |at: SystemTime| i64::try_from(at.duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    Message::Certificate(v1::Certificate {
        serial: format!("{number:032x}"),
        not_before_unix_seconds: seconds(held.not_after) - 3600,
        not_after_unix_seconds: seconds(held.not_after),
        authorities: held.authorities.iter().map(|key| key.as_bytes().to_vec()).collect(),
    })
}
