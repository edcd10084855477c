//! `ClusterFederatedTrustDomain` (spire.spiffe.io/v1alpha1): a foreign trust domain, and where its authorities are published.
use super::Metadata;
use http::Uri;
use postern_identity::{Bundle, SpiffeId, TrustDomain};

/// The longest URL of an endpoint, in bytes.
const MAX_URL: usize = 2048;

/// A relationship with a foreign trust domain (SPIFFE Federation 5): explicit in every part, nothing is inferred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FederatedTrustDomain {
    /// `metadata`; cluster scoped, so that the namespace is empty.
    pub metadata: Metadata,
    /// `spec.trustDomain`: whose certificates are accepted under the fetched bundle.
    pub trust_domain: TrustDomain,
    /// `spec.bundleEndpointURL`: where its bundle is fetched; see [`endpoint_url`].
    pub url: Uri,
    /// `spec.bundleEndpointProfile`.
    pub profile: EndpointProfile,
    /// `spec.trustDomainBundle`: in force until the first one was fetched.
    pub bundle: Option<Bundle>,
}

/// How the endpoint proves itself (SPIFFE Federation 5.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointProfile {
    /// `https_web`: by a certificate of a public authority, for the host of the URL.
    Web,
    /// `https_spiffe`: by exactly this SPIFFE ID.
    Spiffe(SpiffeId),
}

/// Reads the URL of a bundle endpoint (SPIFFE Federation 5.1.1, 5.2.1): https, with a host, without user information.
///
/// # Errors
/// What is wrong with it.
pub fn endpoint_url(text: &str) -> Result<Uri, String> {
    if text.len() > MAX_URL {
        return Err(format!("it is longer than {MAX_URL} bytes"));
    }
    if text.contains('#') {
        return Err("it has a fragment, which is never sent".into());
    }
    let url: Uri = text.parse().map_err(|cause| format!("it is no URL: {cause}"))?;
    if url.scheme_str() != Some("https") {
        return Err("it does not begin with https://".into());
    }
    match url.authority() {
        Some(authority) if authority.as_str().contains('@') => {
            Err("it has user information before the host".into())
        }
        Some(authority) if authority.host().is_empty() => Err("it has no host".into()),
        Some(authority)
            if authority.port().is_some() && authority.port_u16().is_none_or(|port| port == 0) =>
        {
            Err("its port is not in 1 to 65535".into())
        }
        Some(_) => Ok(url),
        None => Err("it has no host".into()),
    }
}

/// Reads `spec.trustDomainBundle`: a SPIFFE bundle document (SPIFFE Federation 5.2.2 demands it), or PEM.
///
/// # Errors
/// Why it cannot be read.
pub fn initial_bundle(trust_domain: TrustDomain, text: &str) -> Result<Bundle, String> {
    match text.trim_start() {
        text if text.starts_with("-----") => Bundle::from_pem(trust_domain, text.as_bytes()),
        text => Bundle::from_document(trust_domain, text.as_bytes()),
    }
}
