//! One worker: its accept loop and its pool. Everything here stays on one thread.

use super::Shared;
use crate::{
    error::ProxyError,
    http::pool::Pool,
    net::{Accepted, Listener},
    state::Inbound,
};
use std::{rc::Rc, sync::Arc};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

/// What the connections of one listener share.
pub struct Worker {
    /// The surroundings.
    pub shared: Arc<Shared>,
    /// Connections for reuse.
    pub pool: Rc<Pool>,
    /// Tunnels, which outlive the HTTP connection that they began as.
    pub tunnels: TaskTracker,
}

impl Worker {
    /// A worker with an empty pool, swept from now on.
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let pool = Pool::new(shared.settings.limits.idle);
        pool.keep_swept(shared.store.clone());
        Rc::new(Self { shared, pool, tunnels: TaskTracker::new() })
    }

    /// Accepts until the drain starts, then waits for what is in flight until the drain is over. A panic ends one connection.
    pub async fn accept_all<J, F>(self: Rc<Self>, listener: Listener, journey: J)
    where
        J: Fn(Rc<Self>, Accepted) -> F,
        F: Future<Output = ()> + 'static,
    {
        let mut acceptor = match listener.open() {
            Ok(acceptor) => acceptor,
            Err(error) => return tracing::error!(%error, "cannot use a listener"),
        };
        let drain = &self.shared.drain;
        let mut connections = JoinSet::new();
        loop {
            let has_room = connections.len() < self.shared.settings.limits.connections;
            tokio::select! {
                () = drain.started() => break,
                Some(ended) = connections.join_next() => self.report(ended),
                accepted = acceptor.accept(), if has_room => {
                    drop(connections.spawn_local(journey(self.clone(), accepted)));
                }
            }
        }
        drop(acceptor);
        loop {
            tokio::select! {
                ended = connections.join_next() => match ended {
                    Some(ended) => self.report(ended),
                    None => break,
                },
                // Dropping the set aborts what is left.
                () = drain.over() => return,
            }
        }
        self.tunnels.close();
        tokio::select! {
            () = self.tunnels.wait() => {}
            () = drain.over() => {}
        }
    }

    /// Resolves when policy withdraws what it had allowed: `judge` is asked now and after each change of policy.
    pub async fn revoked(&self, judge: impl Fn(&Inbound) -> Option<ProxyError>) -> ProxyError {
        let mut generation = self.shared.store.policy_generation();
        loop {
            generation.borrow_and_update();
            if let Some(policy) = self.shared.store.inbound()
                && let Some(error) = judge(&policy)
            {
                return error;
            }
            if generation.changed().await.is_err() {
                // The store is gone, and with it whoever could change the policy.
                return std::future::pending().await;
            }
        }
    }

    fn report(&self, ended: Result<(), tokio::task::JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            self.shared.telemetry.metrics().panicked();
            tracing::error!("a connection ended in a panic; please report it");
        }
    }
}
