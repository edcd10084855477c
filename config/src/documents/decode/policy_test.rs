//! Trees to policy tests.
use super::{flag, kubernetes::metadata, number, optional, string_map};
use crate::documents::{
    Origin,
    parse::{Node, Plain, Value},
    policy_test::{Case, PolicyTest},
};
use serde_json::{Map, Value as Json};

pub fn policy_test(node: &Node, file: &str) -> PolicyTest {
    PolicyTest { metadata: metadata(node), tests: node.list("tests").map(|row| case(row, file)).collect() }
}

fn case(row: &Node, file: &str) -> Case {
    let line = row.entries().first().map_or(row.place.line, |(key, _)| key.place.line);
    Case {
        origin: Origin { file: file.to_owned(), line },
        name: row.string("name"),
        from: row.string("from"),
        to: row.string("to"),
        method: optional(row, "method"),
        path: optional(row, "path"),
        headers: string_map(row.get("headers")),
        host: optional(row, "host"),
        port: number(row, "port"),
        claims: row.get("claims").map(object),
        tcp: flag(row, "tcp"),
        plaintext: flag(row, "plaintext"),
        expect_allow: row.get("expect").and_then(Node::text) == Some("allow"),
        because: optional(row, "because").filter(|text| !text.is_empty()),
    }
}

fn object(node: &Node) -> Map<String, Json> {
    node.entries().iter().map(|(key, value)| (key.text.clone(), json(value))).collect()
}

/// A tree as JSON; the depth of a tree is bounded by the parser.
fn json(node: &Node) -> Json {
    match &node.value {
        Value::Map(_) => Json::Object(object(node)),
        Value::List(_) => Json::Array(node.items().map(json).collect()),
        Value::Scalar(scalar) => match scalar.plain() {
            Plain::Null => Json::Null,
            Plain::Boolean => Json::Bool(matches!(scalar.text.as_str(), "true" | "True" | "TRUE")),
            Plain::Number => serde_json::from_str(&scalar.text).unwrap_or(Json::String(scalar.text.clone())),
            Plain::String => Json::String(scalar.text.clone()),
        },
    }
}
