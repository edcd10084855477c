//! From a presented chain to a verified [`Peer`], or the rule that was broken.
use crate::{SpiffeId, TrustBundles, TrustDomain};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::{collections::BTreeSet, time::SystemTime};

/// Whom we are willing to talk to.
#[derive(Clone, Debug)]
pub enum Accept {
    /// Any identity in one of these trust domains.
    TrustDomains(BTreeSet<TrustDomain>),
    /// Only these identities.
    Exactly(BTreeSet<SpiffeId>),
}
/// The verified other end of a connection. Only [`verify`] (and the TLS adapter on a finished handshake) makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer { id: SpiffeId, sha256: [u8; 32], serial: String, not_after: SystemTime, _made_by_verifier: () }
impl Peer {
    /// Who.
    pub fn id(&self) -> &SpiffeId { &self.id }
    /// SHA-256 of the leaf certificate (DER), as `Hash=` in x-forwarded-client-cert.
    pub fn sha256(&self) -> &[u8; 32] { &self.sha256 }
    /// Serial number in lower-case hex.
    pub fn serial(&self) -> &str { &self.serial }
    /// End of validity.
    pub fn not_after(&self) -> SystemTime { self.not_after }
}
/// Why a chain was refused: names the rule broken. One variant per rule; `Display` is a full sentence for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);
/// Verifies `chain` (leaf first).
pub fn verify(_chain: &[CertificateDer<'_>], _trust: &TrustBundles, _accept: &Accept, _server: bool, _now: UnixTime) -> Result<Peer, Refusal> { todo!() }
