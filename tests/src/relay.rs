//! A wire that is bad on purpose: a relay between two sidecars that delays, slices or cuts what passes. The kernel of a test
//! machine may have no netem, and netem cannot cut at an exact byte.

use crate::pods::PodNetwork;
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// What the wire does with connections that begin from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Nothing.
    Good,
    /// Everything takes so long, in each direction.
    Delay(Duration),
    /// The same and up to as much again, differently for each piece, without changing their order.
    Jitter(Duration),
    /// One byte at a time.
    Slices,
    /// The end of either side is passed on so much later.
    SlowClose(Duration),
    /// Both ends are reset when so many bytes of the answering side have passed.
    Cut(usize),
}

/// A running relay.
pub struct Relay(Arc<Mutex<Wire>>);

impl Relay {
    /// Takes what comes to a listener to an address that is called from `from`.
    pub fn start(listener: TcpListener, from: PodNetwork, to: SocketAddr) -> Self {
        let wire = Arc::new(Mutex::new(Wire::Good));
        let now = wire.clone();
        drop(tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (from, wire) = (from.clone(), *now.lock().unwrap());
                drop(tokio::spawn(async move {
                    if let Ok(far) = from.connect(to).await {
                        carry(near, far, wire).await;
                    }
                }));
            }
        }));
        Self(wire)
    }

    /// From now on, for new connections.
    pub fn set(&self, wire: Wire) {
        *self.0.lock().unwrap() = wire;
    }
}

async fn carry(near: TcpStream, far: TcpStream, wire: Wire) {
    near.set_nodelay(true).unwrap();
    let (cut, mut left) = (CancellationToken::new(), usize::MAX);
    if let Wire::Cut(after) = wire {
        left = after;
        for stream in [&near, &far] {
            socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    let both = async {
        tokio::join!(
            pass(near_read, far_write, wire, usize::MAX, &cut),
            pass(far_read, near_write, wire, left, &cut)
        )
    };
    // What is dropped here is closed, or reset.
    cut.run_until_cancelled(both).await;
}

/// One direction, piece by piece, each at its time.
async fn pass(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    wire: Wire,
    mut left: usize,
    cut: &CancellationToken,
) {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    let reading = async move {
        let mut pieces = 0_u32;
        loop {
            let mut piece = vec![0; 16 * 1024];
            let length = read.read(&mut piece).await.unwrap_or(0);
            piece.truncate(length);
            pieces += 1;
            let later = match wire {
                Wire::Delay(time) => time,
                // Evenly between once and twice, and the same in each run.
                Wire::Jitter(time) => time + time * (pieces * 7 % 11) / 11,
                Wire::SlowClose(time) if length == 0 => time,
                _ => Duration::ZERO,
            };
            if sender.send((Instant::now() + later, piece)).await.is_err() || length == 0 {
                return;
            }
        }
    };
    let writing = async {
        while let Some((due, piece)) = pieces.recv().await {
            tokio::time::sleep_until(due).await;
            if piece.is_empty() {
                break;
            }
            let passes = piece.get(..left).unwrap_or(&piece);
            let slice = if wire == Wire::Slices { 1 } else { usize::MAX };
            for bytes in passes.chunks(slice.min(passes.len()).max(1)) {
                if write.write_all(bytes).await.is_err() {
                    return;
                }
            }
            left -= passes.len();
            if left == 0 {
                return cut.cancel();
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::join!(reading, writing);
}
