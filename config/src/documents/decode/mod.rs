//! Trees to typed documents. Nothing is checked here: the schema and validation have seen the same tree before, and
//! what they refused is read as absent.
use super::parse::Node;
use std::collections::BTreeMap;

pub mod istio;
pub mod kubernetes;
pub mod mesh_config;
pub mod networking;
pub mod policy_test;
pub mod spiffe;
pub mod telemetry;

/// The texts of a list of scalars.
fn strings(node: Option<&Node>) -> Vec<String> {
    node.into_iter().flat_map(Node::items).filter_map(|item| item.text().map(str::to_owned)).collect()
}

/// A map of scalars.
fn string_map(node: Option<&Node>) -> BTreeMap<String, String> {
    let entries = node.map(Node::entries).unwrap_or_default();
    let texts =
        entries.iter().map(|(key, value)| (key.text.clone(), value.text().unwrap_or_default().to_owned()));
    texts.collect()
}

/// The text under a key, `None` when absent.
fn optional(node: &Node, key: &str) -> Option<String> {
    node.get(key).and_then(Node::text).map(str::to_owned)
}

/// The boolean under a key, false when absent.
fn flag(node: &Node, key: &str) -> bool {
    node.get(key).and_then(Node::text).and_then(super::schema::boolean).unwrap_or(false)
}

/// The number under a key when it fits.
fn number<T: std::str::FromStr>(node: &Node, key: &str) -> Option<T> {
    node.get(key).and_then(Node::text).and_then(|text| text.parse().ok())
}
