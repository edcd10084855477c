//! HTTP/2 on a connection that was just made: hyper's client side with our bounds.

use super::{
    body::Upload,
    flood::{Bounds, Paced, Seen},
};
use crate::{
    error::ProxyError,
    net::Prefixed,
    tls::{Stream, open::Watch},
};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{net::SocketAddr, rc::Rc, time::Duration};

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
