//! HTTP on a connection that was just made: hyper's client side with our bounds.

use super::{
    bell::Bell,
    body::Upload,
    canonical,
    flood::{Bounds, Paced, Seen},
    interim::{Bounded, Sender},
    when_woken,
};
use crate::{
    error::ProxyError,
    net::Prefixed,
    tls::{Stream, open::Watch},
};
use futures_util::StreamExt;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

/// When no more is read of an answer ahead of a client that does not take it, in octets, and of its head: as of requests. The last
/// read may be as large again.
/// hyper's own 400 KiB would be held for each slow reader, and make no large body faster.
const READ_AHEAD: usize = canonical::MAX_HEADER_BYTES + 16 * 1024;

/// A connection that carries one request after the other; ends with the trust in the peer.
///
/// # Errors
/// [`ProxyError::Connect`], when hyper cannot begin.
pub async fn http1(stream: Stream, address: SocketAddr, watch: Watch) -> Result<Sender, ProxyError> {
    let (io, turn) = Bounded::new(Prefixed::new(stream));
    let (sender, connection) = http1::Builder::new()
        // At most 100 headers, as of requests, is what hyper does by itself.
        .max_buf_size(READ_AHEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ProxyError::Connect { address, cause: std::io::Error::other(error) })?;
    let bell = Arc::<Bell>::default();
    let called = bell.clone();
    drop(tokio::task::spawn_local(async move {
        let mut ended = when_woken(watch.ended());
        tokio::select! {
            biased;
            // Its errors reach the requests it carries.
            _ = called.run(connection.with_upgrades()) => {}
            _ = ended.next() => {}
        }
    }));
    Ok(Sender::new(sender, turn, bell))
}

/// A connection that carries requests side by side; ends with the trust in the peer, or when that is gone without a word.
///
/// # Errors
/// [`ProxyError::Connect`], when the other end does not speak HTTP/2.
pub async fn http2(
    stream: Stream,
    address: SocketAddr,
    watch: Watch,
) -> Result<(http2::SendRequest<Upload>, Rc<Seen>), ProxyError> {
    // A hostile upstream floods as well as a hostile client.
    let (io, seen) =
        Paced::client(Prefixed::new(stream), Bounds { frames: 10_000, stalled: Duration::from_secs(300) });
    let (sender, connection) = http2::Builder::new(Watched(watch.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(4 << 20)
        // A dead peer is found within 25 s, also before the next request would find it.
        .keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .max_header_list_size(64 * 1024)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| ProxyError::Connect { address, cause: std::io::Error::other(error) })?;
    drop(tokio::task::spawn_local(async move {
        tokio::select! {
            _ = connection => {}
            _ = watch.ended() => {}
        }
    }));
    Ok((sender, seen))
}

/// hyper runs the connection itself in a task of its own, which outlives what we hold of it until the last stream has ended.
/// So that task has to end with the trust in the peer as well.
#[derive(Clone)]
struct Watched(Watch);

impl<F> hyper::rt::Executor<F> for Watched
where
    F: Future + 'static,
{
    fn execute(&self, task: F) {
        let watch = self.0.clone();
        drop(tokio::task::spawn_local(async move {
            tokio::select! {
                _ = task => {}
                _ = watch.ended() => {}
            }
        }));
    }
}
