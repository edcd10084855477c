//! The port for sidecars: accept, finish the TLS handshake under a deadline, tell who is there.
//!
//! A client without a certificate is let in, since a sidecar asks for its first certificate that way; such a connection is
//! short, and only `certificates` answers on it.

use arc_swap::ArcSwap;
use postern_identity::Peer;
use rustls::ServerConfig;
use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
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
/// After a failed accept (usually no more file descriptors) others get time to close theirs.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end; an extension of every request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    /// The verified identity; `None` when the client showed no certificate.
    pub peer: Option<Peer>,
    pub address: SocketAddr,
}

/// Accepts until `stop`, whatever errors come. The receiver gets connections with finished handshakes.
pub(crate) fn accept(listener: TcpListener, tls: Tls, stop: CancellationToken) -> mpsc::Receiver<Connection> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        let gate = Arc::new(Gate {
            handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            sidecars: Arc::new(Semaphore::new(SIDECARS)),
        });
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept_forever(&listener, &tls, &gate, &ready, &stop) => {}
        }
    });
    connections
}

struct Gate {
    handshakes: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    sidecars: Arc<Semaphore>,
}

async fn accept_forever(
    listener: &TcpListener,
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
            Ok(accepted) => accepted,
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
            let shaken =
                tokio::time::timeout(HANDSHAKE_DEADLINE, greet(stream, address, acceptor, &gate, &stop));
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
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    gate: &Gate,
    stop: &CancellationToken,
) -> Result<Connection, String> {
    let _ = stream.set_nodelay(true);
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
    let deadline = peer.is_none().then(|| Box::pin(tokio::time::sleep(STRANGER_DEADLINE)));
    Ok(Connection {
        stream,
        caller: Caller { peer, address },
        deadline,
        stopped: Box::pin(stop.clone().cancelled_owned()),
        _room: room,
    })
}

/// A connection with a finished handshake. It ends by itself when the control plane stops, and after a short time when
/// the client showed no certificate.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    caller: Caller,
    deadline: Option<Pin<Box<Sleep>>>,
    stopped: Pin<Box<WaitForCancellationFutureOwned>>,
    _room: OwnedSemaphorePermit,
}

impl Connection {
    fn ended(&mut self, context: &mut Context<'_>) -> bool {
        self.stopped.as_mut().poll(context).is_ready()
            || self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(context).is_ready())
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
