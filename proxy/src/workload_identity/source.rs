//! Where certificates come from, and by what a sidecar proves who it is.

use super::{
    agent::Agent,
    issue::{self, Issued},
};
use crate::{
    bootstrap::{JoinToken, JoinTokens, TokenFile},
    control::ControlPlane,
    state::Store,
};
use std::{sync::Arc, time::Duration};

/// Who gives us our certificates.
pub enum Source {
    /// Our own control plane.
    Authority(Authority),
    /// Somebody else's Workload API.
    Agent(Box<Agent>),
}

impl Source {
    /// One certificate, proven good.
    ///
    /// # Errors
    /// Each way that was tried, and why it failed.
    pub async fn obtain(&mut self, store: &Store) -> Result<Issued, String> {
        match self {
            Self::Authority(authority) => authority.obtain(store).await,
            Self::Agent(agent) => agent.obtain(store).await,
        }
    }

    /// The certificate is in force: what was good for one use only is forgotten.
    pub fn used(&mut self) {
        match self {
            Self::Authority(authority) => {
                if let Some(token) = authority.sent.take() {
                    authority.join_token =
                        authority.join_token.take().and_then(|tokens| tokens.spent(&token));
                }
            }
            Self::Agent(_) => {}
        }
    }

    /// Resolves when the source has a certificate for us that we did not ask for; never where it gives only what is asked for.
    pub async fn changed(&mut self) {
        match self {
            Self::Authority(_) => std::future::pending().await,
            Self::Agent(agent) => agent.changed().await,
        }
    }

    /// Whether the source decides when there is another certificate. Asking it is for the case that it is late.
    pub fn rotates_by_itself(&self) -> bool {
        matches!(self, Self::Agent(_))
    }
}

/// The authority of our control plane, and all the evidence that we have for it.
pub struct Authority {
    /// Where it is.
    pub control: Arc<ControlPlane>,
    /// Wanted lifetime; `None` = the authority's default.
    pub lifetime: Option<Duration>,
    /// Each good for one use; read again at each.
    pub join_token: Option<JoinTokens>,
    /// The one that was used last.
    pub sent: Option<JoinToken>,
    /// Kubernetes' projected token; read again at each use, since the kubelet replaces it.
    pub service_account_token: Option<TokenFile>,
}

impl Authority {
    /// By the current certificate first, then by tokens, then by who we are on a unix socket. A certificate that is withdrawn or
    /// over proves nothing.
    async fn obtain(&mut self, store: &Store) -> Result<Issued, String> {
        self.sent = None;
        let mut reasons = Vec::new();
        if let Ok(current) = store.own() {
            let asked = self.ask(Some(current.key.clone()), store, issue::Tokens::default()).await;
            match asked {
                Ok(issued) => return Ok(issued),
                Err(reason) => reasons.push(format!("with the current certificate: {reason}")),
            }
        }
        if let Some(token) = self.join_token.as_ref().and_then(|tokens| tokens.read().transpose()) {
            let asked = match &token {
                Ok(token) => {
                    let tokens = issue::Tokens { join: Some(token), service_account: None };
                    self.ask(None, store, tokens).await
                }
                Err(reason) => Err(reason.clone()),
            };
            match asked {
                Ok(issued) => {
                    self.sent = token.ok();
                    return Ok(issued);
                }
                Err(reason) => reasons.push(format!("with the join token: {reason}")),
            }
        }
        if let Some(file) = &self.service_account_token {
            let asked = match file.read() {
                Ok(token) => {
                    let tokens = issue::Tokens { join: None, service_account: Some(&token) };
                    self.ask(None, store, tokens).await
                }
                Err(reason) => Err(reason),
            };
            match asked {
                Ok(issued) => return Ok(issued),
                Err(reason) => reasons.push(format!("with the service account token: {reason}")),
            }
        }
        if self.control.is_local() {
            match self.ask(None, store, issue::Tokens::default()).await {
                Ok(issued) => return Ok(issued),
                Err(reason) => reasons.push(format!("by our user on the unix socket: {reason}")),
            }
        }
        if reasons.is_empty() {
            reasons.push(
                "no valid certificate and no token is left; write a new join token, or restart the sidecar with one".into(),
            );
        }
        Err(reasons.join("; "))
    }

    async fn ask(
        &self,
        current: Option<Arc<rustls::sign::CertifiedKey>>,
        store: &Store,
        tokens: issue::Tokens<'_>,
    ) -> Result<Issued, String> {
        // What is revoked by now must not be believed again, so the trust of the start counts only until there is other.
        let trust = store.trust().unwrap_or_else(|| self.control.bootstrap_trust.clone());
        issue::request(&self.control, current, trust, tokens, self.lifetime).await
    }
}
