//! When the app has ended during a drain: then there is nothing left to wait for.
//!
//! A sidecar sees no processes, only ports: the app is gone when nobody listens any more on any of its ports. Where no port is known,
//! when no connection was open for a while.

use crate::{
    drain::{Trigger, Watch},
    net,
    state::Store,
    telemetry::Telemetry,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(100);
/// As many looks without a connection are a while.
const QUIET: u32 = 5;

/// Looks for the end of the app.
pub struct Departure {
    /// Told of it.
    pub trigger: Arc<Trigger>,
    /// Says when to begin.
    pub draining: Watch,
    /// Knows the ports that services declare.
    pub store: Arc<Store>,
    /// Knows how many connections are open.
    pub telemetry: Telemetry,
    /// Where the app listens; empty: on the declared ports of any address.
    pub app: Vec<SocketAddr>,
}

impl Departure {
    /// Waits for the drain, then for the end of the app.
    pub async fn follow(self, stop: CancellationToken) {
        let following = async {
            self.draining.started().await;
            let mut quiet = 0;
            loop {
                let app = self.addresses();
                let is_gone = if app.is_empty() {
                    quiet = if self.telemetry.metrics().connections_open() == 0 { quiet + 1 } else { 0 };
                    quiet >= QUIET
                } else {
                    !app.into_iter().any(net::is_taken)
                };
                if is_gone {
                    return self.trigger.app_is_gone();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! { () = following => {}, () = stop.cancelled() => {} }
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        if !self.app.is_empty() {
            return self.app.clone();
        }
        let Some(policy) = self.store.inbound() else { return Vec::new() };
        let ports = policy.snapshot.spec().ports.iter().map(|declared| declared.port);
        let any = |port| [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
        ports.flat_map(any).collect()
    }
}
