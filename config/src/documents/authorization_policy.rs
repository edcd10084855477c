//! `AuthorizationPolicy` (security.istio.io/v1, v1beta1): every field of Istio's (reference 2.1).
use super::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// The default.
    #[default]
    Allow,
    /// Before any ALLOW.
    Deny,
    /// Marks only; not enforced yet.
    Audit,
    /// Asks a provider; not enforced yet.
    Custom,
}

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicy {
    /// `metadata`.
    pub metadata: Metadata,
    /// `spec.selector.matchLabels`; empty = every workload in scope.
    pub selector: BTreeMap<String, String>,
    /// `targetRef` or `targetRefs` is set: not for sidecars, enforces nothing.
    pub has_target_refs: bool,
    /// `spec.action`.
    pub action: Action,
    /// `spec.provider.name`.
    pub provider: Option<String>,
    /// Annotation `istio.io/dry-run`.
    pub dry_run: bool,
    /// `spec.rules`; ALLOW without rules denies everything.
    pub rules: Vec<Rule>,
}

/// One rule: (any `from`) and (any `to`) and (all `when`); an empty list is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Rule {
    /// `from`.
    pub from: Vec<From>,
    /// `to`.
    pub to: Vec<To>,
    /// `when`.
    pub when: Vec<Condition>,
}

/// One entry of `from`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From {
    /// `source`.
    pub source: Source,
}

/// One entry of `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To {
    /// `operation`.
    pub operation: Operation,
}

/// Fields are ANDed, values of one field ORed (reference 2.7).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>,
    pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// Fields are ANDed, values of one field ORed (reference 2.8).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// One entry of `when` (reference 2.10).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Condition {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}
