//! Where the root comes from: made here, or given from outside.

use super::{AuthorityError, sign::Signer};
use postern_identity::TrustDomain;
use rustls_pki_types::CertificateDer;
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Where the root of the mesh comes from.
#[derive(Clone, Debug, Default)]
pub enum Upstream {
    /// Made here at the first start, and rotated here.
    #[default]
    Own,
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

impl Upstream {
    /// What it gives now; `None` when the root is made here.
    #[allow(clippy::unused_async)]
    pub(super) async fn supply(&self) -> Result<Option<Supplied>, AuthorityError> {
        match self {
            Self::Own => Ok(None),
        }
    }
}
