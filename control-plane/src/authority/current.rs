//! What issuing and publishing read: one immutable picture, made anew after each change.

use super::{
    AuthorityKind, Published, Slot,
    jwt::TokenSigner,
    seconds,
    sign::Signer,
    state::{Entry, State},
    writer::Writer,
};
use postern_identity::{Bundle, TrustDomain, jwks};
use std::{sync::Arc, time::SystemTime};

/// What issuing reads: made anew after each change.
pub(super) struct Current {
    pub published: Arc<Published>,
    pub state: State,
    /// Below the active root.
    pub workloads: Option<Arc<Signer>>,
    /// Below the oldest published root.
    pub server: Option<Arc<Signer>>,
    pub tokens: Option<TokenSigner>,
}

impl Current {
    pub(super) fn of(writer: &Writer, trust_domain: &TrustDomain, now: SystemTime) -> Current {
        let state = &writer.state;
        let active = state.slot(AuthorityKind::Root, Slot::Active);
        let others = state.roots.iter().filter(|root| root.slot != Slot::Active);
        let anchors = active.into_iter().chain(others).map(Entry::certificate).collect();
        let mut bundle = Bundle::new(trust_domain.clone(), anchors);
        bundle.jwt_keys = state.jwt_keys.iter().map(Entry::public_jwt_key).collect();
        bundle.sequence = Some(state.sequence);
        bundle.refresh_hint = Some(jwks::DEFAULT_REFRESH_HINT);
        bundle.revoked = state.revoked.iter().map(|revoked| revoked.id).collect();
        let server = writer.server_root(seconds(now)).and_then(|root| writer.signers.get(&root));
        let tokens = state.slot(AuthorityKind::JwtKey, Slot::Active).and_then(|entry| {
            TokenSigner::new(entry, writer.keys.get(&entry.id)?)
                .inspect_err(|reason| tracing::error!("{reason}"))
                .ok()
        });
        Current {
            published: Arc::new(Published { bundle, tainted: state.tainted() }),
            workloads: active.and_then(|root| writer.signers.get(&root.id)).cloned(),
            server: server.cloned(),
            tokens,
            state: state.clone(),
        }
    }
}
