//! What survives a restart: certificate, key and bundles, the last good policy, and where destinations lead. A sidecar that is
//! restarted while the control plane is away goes on with them.
//!
//! Nothing is believed for having been kept: the certificate has to pass our own verifier again, the policy is compiled
//! again. Kept things that are damaged, over, or not ours alone are left aside, with the reason in the log.

mod destinations;
mod folder;
mod identity;

pub use folder::Folder;

use crate::{
    control::{Destinations, translate},
    state::{Inbound, Store},
};
use postern_api::v1;
use postern_identity::TrustDomain;
use serde::{Deserialize, Serialize};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

const POLICY: &str = "policy.json";
/// Destinations come and go with traffic; they are written at most so often.
const TICK: Duration = Duration::from_secs(1);

#[derive(Serialize, Deserialize)]
struct Policy {
    version: String,
    spec: serde_json::Value,
}

/// Puts in force what an earlier life of this sidecar knew. Call it before anything is served.
pub fn recall(folder: &Folder, store: &Store, destinations: &Destinations, own: &TrustDomain) {
    if let Some(credentials) = identity::recall(folder, own) {
        let (id, serial) = (credentials.id.clone(), credentials.serial.clone());
        match store.publish_credentials(credentials) {
            Ok(()) => {
                tracing::info!(identity = %id, serial, "the certificate of before the restart is in force again")
            }
            Err(reason) => folder.ignored(identity::FILE, &reason),
        }
    }
    // Whose policy it was says the certificate; without one nothing can be served anyway.
    let Some(credentials) = store.credentials() else { return };
    match policy(folder) {
        Ok(None) => {}
        Ok(Some(inbound)) if is_for(&inbound, &credentials.id) => store.publish_inbound(inbound),
        Ok(Some(_)) => folder.ignored(POLICY, "it is the policy of another workload"),
        Err(reason) => folder.ignored(POLICY, &reason),
    }
    for (address, destination) in destinations::recall(folder) {
        destinations.recall(address, destination);
    }
}

fn policy(folder: &Folder) -> Result<Option<Inbound>, String> {
    let Some(text) = folder.read(POLICY) else { return Ok(None) };
    let Policy { version, spec } = serde_json::from_slice(&text).map_err(|cause| cause.to_string())?;
    let spec = serde_json::to_vec(&spec).map_err(|cause| cause.to_string())?;
    Ok(Some(Inbound { version: version.into(), snapshot: translate::inbound(&v1::InboundPolicy { spec })? }))
}

fn is_for(inbound: &Inbound, id: &postern_identity::SpiffeId) -> bool {
    let workload = &inbound.snapshot.spec().workload;
    // An identity of another form than /ns/<namespace>/sa/<account> says nothing about the workload.
    id.service_account().is_none_or(|(namespace, _)| namespace == workload.namespace)
}

/// Writes down what is in force whenever it changes, until stopped.
pub async fn follow(folder: Folder, store: Arc<Store>, destinations: Destinations, stop: CancellationToken) {
    let (mut credentials, mut policy) = (store.credentials_generation(), store.policy_generation());
    credentials.mark_changed();
    policy.mark_changed();
    let mut tick = tokio::time::interval(TICK);
    let mut written = Vec::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = credentials.changed() => match store.credentials() {
                Some(current) => identity::keep(&folder, &current),
                // Withdrawn: what is revoked must not come back.
                None => folder.forget(identity::FILE),
            },
            _ = policy.changed() => if let Some(inbound) = store.inbound() {
                keep_policy(&folder, &inbound);
            },
            _ = tick.tick() => {
                let bytes = destinations::encode(&destinations);
                if bytes != written {
                    folder.keep(destinations::FILE, &bytes);
                    written = bytes;
                }
            }
        }
    }
}

fn keep_policy(folder: &Folder, inbound: &Inbound) {
    let spec = serde_json::to_value(inbound.snapshot.spec());
    let text =
        spec.and_then(|spec| serde_json::to_vec(&Policy { version: inbound.version.to_string(), spec }));
    match text {
        Ok(text) => folder.keep(POLICY, &text),
        Err(error) => tracing::warn!(%error, "the policy cannot be written down"),
    }
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
