//! `AuthorizationPolicy` (security.istio.io/v1, v1beta1): every field of Istio's.
use super::Metadata;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
/// `spec.action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Action { #[default] Allow, Deny, Audit, Custom }
/// The document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AuthorizationPolicy { pub metadata: Metadata, pub selector: BTreeMap<String, String>, pub has_target_refs: bool, pub action: Action, pub provider: Option<String>, pub dry_run: bool, pub rules: Vec<Rule> }
/// One rule: (any `from`) and (any `to`) and (all `when`); an empty list is true.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule { pub from: Vec<From>, pub to: Vec<To>, pub when: Vec<Condition> }
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct From { pub source: Source }
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct To { pub operation: Operation }
/// Fields are ANDed, values of one field ORed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Source {
    pub principals: Vec<String>, pub not_principals: Vec<String>,
    pub request_principals: Vec<String>, pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>, pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>, pub not_service_accounts: Vec<String>,
    pub trust_domains: Vec<String>, pub not_trust_domains: Vec<String>,
    pub ip_blocks: Vec<String>, pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>, pub not_remote_ip_blocks: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Operation {
    pub hosts: Vec<String>, pub not_hosts: Vec<String>,
    pub ports: Vec<String>, pub not_ports: Vec<String>,
    pub methods: Vec<String>, pub not_methods: Vec<String>,
    pub paths: Vec<String>, pub not_paths: Vec<String>,
}
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Condition { pub key: String, pub values: Vec<String>, pub not_values: Vec<String> }
