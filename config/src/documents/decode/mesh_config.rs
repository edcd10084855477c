//! Tree to MeshConfig.
use super::{number, optional, strings};
use crate::{
    documents::{
        mesh_config::{AccessLogEncoding, ExtensionProvider, MeshConfig},
        parse::Node,
        schema,
    },
    path::Normalization,
};
use postern_identity::tls::Versions;
use std::collections::BTreeMap;

pub fn mesh_config(node: &Node) -> MeshConfig {
    let default = MeshConfig::default();
    let sampling = node.at("defaultConfig.tracing").and_then(|tracing| number(tracing, "sampling"));
    let tracing_off = node.get("enableTracing").and_then(Node::text).and_then(schema::boolean) == Some(false);
    MeshConfig {
        trust_domain: optional(node, "trustDomain").unwrap_or(default.trust_domain),
        trust_domain_aliases: strings(node.get("trustDomainAliases")),
        root_namespace: optional(node, "rootNamespace").unwrap_or(default.root_namespace),
        path_normalization: match node.at("pathNormalization.normalization").and_then(Node::text) {
            Some("NONE") => Normalization::None,
            Some("MERGE_SLASHES") => Normalization::MergeSlashes,
            Some("DECODE_AND_MERGE_SLASHES") => Normalization::DecodeAndMergeSlashes,
            _ => Normalization::Base,
        },
        access_log_file: optional(node, "accessLogFile").unwrap_or(default.access_log_file),
        access_log_encoding: match node.get("accessLogEncoding").and_then(Node::text) {
            Some("JSON") => Some(AccessLogEncoding::Json),
            Some("TEXT") => Some(AccessLogEncoding::Text),
            _ => None,
        },
        tracing_sampling: if tracing_off { Some(0.0) } else { sampling },
        outbound_registry_only: node.at("outboundTrafficPolicy.mode").and_then(Node::text)
            == Some("REGISTRY_ONLY"),
        tls_versions: match node.at("meshMTLS.minProtocolVersion").and_then(Node::text) {
            Some("TLSV1_2") => Versions::Tls12And13,
            _ => Versions::Tls13,
        },
    }
}

/// `extensionProviders`, by their names.
pub fn extension_providers(node: &Node) -> BTreeMap<String, ExtensionProvider> {
    let kind = |provider: &Node| {
        let is = |word: &str| provider.get(word).is_some_and(|kind| !kind.is_null());
        ExtensionProvider::ALL.iter().find(|(word, _)| is(word)).map(|(_, kind)| *kind)
    };
    let all = node.list("extensionProviders");
    all.filter_map(|provider| Some((provider.string("name"), kind(provider)?))).collect()
}
