//! Table of the fields of SPIRE's ClusterFederatedTrustDomain (spire-controller-manager, api/v1alpha1).
use super::{Object, Shape, kubernetes::OBJECT_META};
use Shape::{Any, Text, Word};

/// `ClusterFederatedTrustDomain`.
pub const CLUSTER_FEDERATED_TRUST_DOMAIN: Shape = Shape::Object(&Object {
    fields: &[
        ("apiVersion", Text),
        ("kind", Text),
        ("metadata", OBJECT_META),
        ("spec", Shape::Object(&SPEC)),
        ("status", Any),
    ],
    required: &["metadata", "spec"],
    nullable: false,
});
const SPEC: Object = Object {
    fields: &[
        ("trustDomain", Text),
        ("bundleEndpointURL", Text),
        ("bundleEndpointProfile", Shape::Object(&PROFILE)),
        ("trustDomainBundle", Text),
        ("className", Text),
    ],
    required: &["trustDomain", "bundleEndpointURL", "bundleEndpointProfile"],
    nullable: false,
};
const PROFILE: Object = Object {
    fields: &[("type", Word(&["https_web", "https_spiffe"])), ("endpointSPIFFEID", Text)],
    required: &["type"],
    nullable: false,
};
