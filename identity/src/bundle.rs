//! Trust bundles: the anchors of one trust domain, and the set of all we know, never merged.
use crate::TrustDomain;
use rustls_pki_types::CertificateDer;

/// The authorities of one trust domain.
#[derive(Clone, Debug)]
pub struct Bundle { /** whose */ pub trust_domain: TrustDomain, /** DER certificates */ pub anchors: Vec<CertificateDer<'static>> }
impl Bundle {
    /// Reads one or more PEM certificates. At least one is required.
    pub fn from_pem(_trust_domain: TrustDomain, _pem: &[u8]) -> Result<Self, String> { todo!() }
    /// PEM form, one block per anchor.
    pub fn to_pem(&self) -> String { todo!() }
}
/// Bundles by trust domain.
#[derive(Clone, Debug, Default)]
pub struct TrustBundles(std::collections::BTreeMap<TrustDomain, Bundle>);
impl TrustBundles {
    /// The bundle of one trust domain.
    pub fn get(&self, _trust_domain: &str) -> Option<&Bundle> { todo!() }
    /// All bundles.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> { self.0.values() }
}
impl FromIterator<Bundle> for TrustBundles { fn from_iter<T: IntoIterator<Item = Bundle>>(iter: T) -> Self { Self(iter.into_iter().map(|b| (b.trust_domain.clone(), b)).collect()) } }
