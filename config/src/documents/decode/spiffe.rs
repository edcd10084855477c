//! Trees to federation with foreign trust domains.
use super::{kubernetes::metadata, optional};
use crate::documents::{
    Metadata,
    federation::{EndpointProfile, FederatedTrustDomain, endpoint_url, initial_bundle},
    parse::Node,
};
use postern_identity::TrustDomain;

/// `None` when validation has refused a part of it without which it means nothing.
pub fn federated_trust_domain(node: &Node) -> Option<FederatedTrustDomain> {
    let text = |path: &str| node.at(path).and_then(Node::text);
    let trust_domain: TrustDomain = text("spec.trustDomain")?.parse().ok()?;
    let profile = match text("spec.bundleEndpointProfile.type")? {
        "https_web" => EndpointProfile::Web,
        "https_spiffe" => {
            EndpointProfile::Spiffe(text("spec.bundleEndpointProfile.endpointSPIFFEID")?.parse().ok()?)
        }
        _ => return None,
    };
    let bundle = node.get("spec").and_then(|spec| optional(spec, "trustDomainBundle"));
    Some(FederatedTrustDomain {
        metadata: Metadata { namespace: String::new(), ..metadata(node) },
        url: endpoint_url(text("spec.bundleEndpointURL")?).ok()?,
        profile,
        bundle: match bundle.filter(|text| !text.trim().is_empty()) {
            Some(text) => Some(initial_bundle(trust_domain.clone(), &text).ok()?),
            None => None,
        },
        trust_domain,
    })
}
