//! The port for sidecars, and the unix socket: accept, finish the TLS handshake under a deadline, tell who is there.
//!
//! On the unix socket everything is the same, TLS included; beyond that the kernel says which process came. A client without a certificate is let in, since a sidecar asks for its first certificate that way; such a connection is
//! short, and only `certificates` answers on it.

use super::{rate::Rate, trust::Trust};
use crate::attest::{AttestError, UnixPeer, still_good};
use arc_swap::ArcSwap;
use postern_identity::Peer;
use rustls::ServerConfig;
use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant, SystemTime},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

/// The server's TLS configuration; replaced when its certificate is renewed, for connections to come.
pub(crate) type Tls = Arc<ArcSwap<ServerConfig>>;

/// From accept to the end of the handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes in progress at one time; more wait in the kernel.
const HANDSHAKES: usize = 1024;
/// Connections of clients that showed no certificate: how many, and for how long each.
const STRANGERS: usize = 1024;
const STRANGER_DEADLINE: Duration = Duration::from_secs(30);
/// Connections of sidecars.
const SIDECARS: usize = 20_000;
/// From the loss of a peer's authority to the end of its connections.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// After a failed accept (usually no more file descriptors) others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end; an extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The verified identity; `None` when the client showed no certificate.
    pub peer: Option<Peer>,
    pub address: Address,
}

/// Where a connection comes from. `Display` is for logs.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Network(SocketAddr),
    /// A process of this machine, as the kernel says.
    Process(Arc<UnixPeer>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(address) => address.fmt(f),
            Self::Process(peer) => peer.fmt(f),
        }
    }
}

/// What connections are accepted from.
pub(crate) enum Listener {
    Tcp(TcpListener),
    /// Users may connect so often each.
    Unix(UnixListener, Rate<u32>),
}

/// Accepts until `stop`, whatever errors come. The receiver gets connections with finished handshakes.
pub(crate) fn accept(
    listeners: Vec<Listener>,
    tls: &Tls,
    trust: &watch::Sender<Arc<Trust>>,
    stop: &CancellationToken,
) -> mpsc::Receiver<Connection> {
    let (ready, connections) = mpsc::channel(64);
    let gate = Arc::new(Gate {
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        strangers: Arc::new(Semaphore::new(STRANGERS)),
        sidecars: Arc::new(Semaphore::new(SIDECARS)),
        trust: trust.subscribe(),
    });
    for listener in listeners {
        let (tls, stop, gate, ready) = (Arc::clone(tls), stop.clone(), Arc::clone(&gate), ready.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = accept_forever(&listener, &tls, &gate, &ready, &stop) => {}
            }
        });
    }
    connections
}

impl Listener {
    /// The next connection; `None` when it was refused (and logged) before any work was done for it.
    async fn accept(&self) -> io::Result<Option<(Stream, Address)>> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                let _ = stream.set_nodelay(true);
                Ok(Some((Stream::Tcp(stream), Address::Network(address))))
            }
            Self::Unix(listener, rate) => {
                let (stream, _) = listener.accept().await?;
                let peer = match UnixPeer::of(&stream) {
                    Ok(peer) => peer,
                    Err(reason) => {
                        tracing::info!(%reason, "a connection on the unix socket was refused");
                        return Ok(None);
                    }
                };
                if !rate.admit(peer.uid(), Instant::now()) {
                    tracing::info!(address = %peer, "a connection was refused: its user opens too many");
                    return Ok(None);
                }
                Ok(Some((Stream::Unix(stream), Address::Process(Arc::new(peer)))))
            }
        }
    }
}

struct Gate {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    sidecars: Arc<Semaphore>,
    trust: watch::Receiver<Arc<Trust>>,
}

async fn accept_forever(
    listener: &Listener,
    tls: &Tls,
    gate: &Arc<Gate>,
    ready: &mpsc::Sender<Connection>,
    stop: &CancellationToken,
) {
    let mut failing = false;
    loop {
        // The semaphore is never closed.
        let Ok(turn) = Arc::clone(&gate.handshakes).acquire_owned().await else { return };
        let (stream, address) = match listener.accept().await {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(error) => {
                // Once for each series of errors; the pause keeps a lasting one from eating the processor.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%error, "cannot accept connections of sidecars; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (gate, ready, stop) = (Arc::clone(gate), ready.clone(), stop.clone());
        tokio::spawn(async move {
            let _turn = turn;
            let greeting = greet(stream, address.clone(), acceptor, &gate, &stop);
            let shaken = tokio::time::timeout(HANDSHAKE_DEADLINE, greeting);
            let outcome = tokio::select! {
                () = stop.cancelled() => return,
                outcome = shaken => outcome.unwrap_or_else(|_| {
                    Err(format!("no TLS handshake within {} s", HANDSHAKE_DEADLINE.as_secs()))
                }),
            };
            match outcome {
                Ok(connection) => {
                    let _ = ready.send(connection).await;
                }
                Err(reason) => tracing::info!(%address, reason, "a connection was refused"),
            }
        });
    }
}

async fn greet(
    stream: Stream,
    address: Address,
    acceptor: TlsAcceptor,
    gate: &Gate,
    stop: &CancellationToken,
) -> Result<Connection, String> {
    let stream = acceptor.accept(stream).await.map_err(|error| format!("TLS handshake: {error}"))?;
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = postern_identity::tls::peer(certificates);
    if peer.is_none() && certificates.is_some_and(|chain| !chain.is_empty()) {
        return Err("the client's certificate has no verified identity".to_owned());
    }
    let room = if peer.is_some() { &gate.sidecars } else { &gate.strangers };
    let room = Arc::clone(room)
        .try_acquire_owned()
        .map_err(|_| "too many connections: close some, or run a second control plane".to_owned())?;
    let ended: Ended = match peer.clone() {
        None => Box::pin(tokio::time::sleep(STRANGER_DEADLINE)),
        Some(peer) => Box::pin(distrusted(peer, gate.trust.clone())),
    };
    Ok(Connection {
        stream,
        caller: Caller { peer, address },
        ended,
        stopped: Box::pin(stop.clone().cancelled_owned()),
        _room: room,
    })
}

/// Resolves a moment after `peer` has lost its authority: its stream has been told why by then.
async fn distrusted(peer: Peer, mut trusted: watch::Receiver<Arc<Trust>>) {
    // Whatever came between the handshake and now is looked at, too: the handshake may have known less.
    let mut before: Option<Arc<Trust>> = None;
    loop {
        let trust = trusted.borrow_and_update().clone();
        let looked_at = before.as_ref().is_some_and(|before| !trust.takes_away_from(before));
        if !looked_at
            && let Err(AttestError::CertificateNotTrusted(id, reason)) =
                still_good(&peer, &trust.own, SystemTime::now())
        {
            tracing::info!(id, reason, "a connection ends, since its peer is trusted no more");
            return tokio::time::sleep(LAST_WORDS).await;
        }
        before = Some(trust);
        if trusted.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The bytes below TLS.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// What ends a connection before its time.
type Ended = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection with a finished handshake. It ends by itself when the control plane stops, soon when the authority of its
/// peer is trusted no more, and after a short time when the client showed no certificate.
pub(crate) struct Connection {
    stream: TlsStream<Stream>,
    caller: Caller,
    ended: Ended,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    fn ended(&mut self, context: &mut Context<'_>) -> bool {
        self.stopped.as_mut().poll(context).is_ready() || self.ended.as_mut().poll(context).is_ready()
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended(context) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
