//! Where the root comes from: made here, or given from outside.
//!
//! `files` is Istio's folder of an authority, `vault` the PKI of HashiCorp Vault.

mod files;
mod vault;

pub use vault::VaultPki;

use super::{AuthorityError, sign::Signer, status::Outside};
use postern_identity::{KeyId, TrustDomain};
use rustls_pki_types::CertificateDer;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Where the root of the mesh comes from.
#[derive(Clone, Debug, Default)]
pub enum Upstream {
    /// Made here at the first start, and rotated here.
    #[default]
    Own,
    /// A folder with `ca-cert.pem`, `ca-key.pem`, `root-cert.pem` and, when the first is no root, `cert-chain.pem`: Istio's
    /// secret `cacerts`. Read again when it changes.
    Files(PathBuf),
    /// Vault keeps the root and signs the intermediate of this process.
    Vault(VaultPki),
}

/// How an authority is kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the journal and the keys, made when it is not there; `None` = in memory only.
    pub state: Option<PathBuf>,
    /// Whose authority.
    pub trust_domain: TrustDomain,
    /// Where its root comes from.
    pub upstream: Upstream,
    /// Life of the intermediate, which is renewed at half of it: at least twice a workload certificate's life, so that none is
    /// cut short.
    pub intermediate_lifetime: Duration,
    /// Start also when the authority ends before two lives of a workload certificate have passed.
    pub allow_ending: bool,
    /// The longest life of a workload certificate.
    pub leaf_lifetime: Duration,
}

/// What an outside authority gave.
#[derive(Clone)]
pub(super) struct Supplied {
    /// Signs.
    pub signer: Arc<Signer>,
    /// Whether it signs leaves itself: it may sign nothing else, or was made for this process alone.
    pub direct: bool,
    /// All roots to publish; the one above `signer` is among them.
    pub anchors: Vec<CertificateDer<'static>>,
}

impl Supplied {
    /// What is said of a root.
    pub(super) fn says_of(&self, id: KeyId) -> Option<Outside> {
        let is_it = |anchor| KeyId::of_certificate(anchor).is_ok_and(|known| known == id);
        match self.anchors.iter().any(|anchor| is_it(anchor)) {
            _ if self.signer.root == id => Some(Outside::Signs),
            true => Some(Outside::Names),
            false => None,
        }
    }
}

impl Upstream {
    /// What it gives now; `None` when the root is made here.
    pub(super) async fn supply(
        &self,
        trust_domain: &TrustDomain,
        intermediate_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Option<Supplied>, AuthorityError> {
        let (place, supplied) = match self {
            Self::Own => return Ok(None),
            Self::Files(folder) => (folder.display().to_string(), files::read(folder, trust_domain, now)),
            Self::Vault(vault) => {
                (vault.address.clone(), vault.sign(trust_domain, intermediate_lifetime, now).await)
            }
        };
        let trust_domain = trust_domain.clone();
        supplied.map(Some).map_err(|cause| AuthorityError::Upstream { place, trust_domain, cause })
    }

    /// Whether a change is only seen by looking: files are read again and again, Vault is asked when an intermediate is needed.
    pub(super) fn is_watched(&self) -> bool {
        matches!(self, Self::Files(_))
    }
}
