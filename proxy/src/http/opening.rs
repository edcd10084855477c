//! Streams that an upstream does not let us open: SETTINGS_MAX_CONCURRENT_STREAMS of none, or none that ever gets free (RFC 9113
//! section 5.1.2). h2 keeps such a request back for as long as its client waits; that is as if nobody could be connected to, and
//! has the same deadline.

use super::{body::Exchange, flood::Seen};
use crate::error::ProxyError;
use std::{cell::Cell, io, net::SocketAddr, pin::pin, rc::Rc, time::Duration};

/// How long a request waits for a stream, where no `connectTimeout` says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Something under way; ends when dropped.
#[derive(Debug)]
pub struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    /// Counts one more.
    pub fn enter(counter: &Rc<Cell<usize>>) -> Self {
        counter.set(counter.get() + 1);
        Self(counter.clone())
    }

    /// How many there are, this one included.
    pub fn count(&self) -> usize {
        self.0.get()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Whether one more stream may have to wait: as many as the peer allows are there, or it has not said yet how many that is.
fn may_wait(seen: &Seen, stream: &InFlight) -> bool {
    seen.most_streams().is_none_or(|most| stream.count() > most)
}

/// The answer to a request that was handed to a connection; `None`: it had no stream within `patience`. Costs nothing where the
/// peer is known to allow one more.
pub async fn in_time<T>(
    answer: impl Future<Output = T>,
    exchange: &Exchange,
    (seen, stream): (&Seen, &InFlight),
    patience: Duration,
) -> Option<T> {
    if !may_wait(seen, stream) {
        return Some(answer.await);
    }
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answered = answer.as_mut() => return Some(answered),
        () = tokio::time::sleep(patience) => {}
    }
    match seen.most_streams() {
        // It was sent before the peer had said that it wants none.
        Some(0) => None,
        _ if exchange.is_begun() || !may_wait(seen, stream) => Some(answer.await),
        _ => None,
    }
}

/// What is said of it.
pub fn none_free(address: SocketAddr, patience: Duration) -> ProxyError {
    let cause = format!("no HTTP/2 stream could be opened within {patience:?}");
    ProxyError::Connect { address, cause: io::Error::new(io::ErrorKind::TimedOut, cause) }
}
