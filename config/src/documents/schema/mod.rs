//! What fields an object may have: tables as data, and the one walker that holds a tree against them.
use crate::documents::{
    parse::{Key, Node, Place, Plain, Scalar, Style, Value, shorten},
    report::Report,
};
use crate::problem;

pub mod istio;
pub mod kubernetes;
pub mod networking;
pub mod postern;
pub mod spiffe;
pub mod telemetry;

/// What a value must look like.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// Anything; not looked at.
    Any,
    Text,
    Integer,
    Number,
    Boolean,
    /// A number or a string: ports by name, quantities.
    IntOrText,
    /// One of these words.
    Word(&'static [&'static str]),
    List(&'static Shape),
    /// Keys are free.
    MapOf(&'static Shape),
    Object(&'static Object),
}

/// An object with a fixed set of fields.
#[derive(Debug)]
pub struct Object {
    pub fields: &'static [(&'static str, Shape)],
    /// Fields that must be there, and not null.
    pub required: &'static [&'static str],
    /// Null elements in lists of it are left to validation, which has Istio's words for them.
    pub nullable: bool,
}

impl Object {
    /// No required fields.
    pub const fn open(fields: &'static [(&'static str, Shape)]) -> Self {
        Self { fields, required: &[], nullable: false }
    }

    fn field(&self, name: &str) -> Option<&Shape> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, shape)| shape)
    }
}

/// Holds `node` against `shape`; reports every difference. Returns whether there was none.
pub fn check(report: &mut Report<'_>, node: &Node, shape: &Shape) -> bool {
    let before = report.errors();
    Walk { report, root: *shape }.value(node, shape, &mut String::new());
    report.errors() == before
}

struct Walk<'r, 'f> {
    report: &'r mut Report<'f>,
    root: Shape,
}

impl Walk<'_, '_> {
    fn value(&mut self, node: &Node, shape: &Shape, path: &mut String) {
        if node.is_null() {
            return; // as good as absent; lists look at their elements themselves
        }
        match (shape, &node.value) {
            (Shape::Any, _) => {}
            (Shape::Object(object), Value::Map(_)) => self.object(node, object, path),
            (Shape::MapOf(inner), Value::Map(entries)) => {
                for (key, child) in entries {
                    let length = descend(path, &key.text);
                    self.value(child, inner, path);
                    path.truncate(length);
                }
            }
            (Shape::List(inner), Value::List(items)) => {
                for (i, item) in items.iter().enumerate() {
                    let length = path.len();
                    path.push_str(&format!("[{i}]"));
                    let nullable = matches!(inner, Shape::Object(object) if object.nullable);
                    if item.is_null() && !nullable && !matches!(inner, Shape::Any) {
                        self.wrong_type(item, inner, path);
                    }
                    self.value(item, inner, path);
                    path.truncate(length);
                }
            }
            (_, Value::Scalar(scalar)) => self.scalar(node, scalar, shape, path),
            _ => self.wrong_type(node, shape, path),
        }
    }

    fn object(&mut self, node: &Node, object: &'static Object, path: &mut String) {
        for (key, child) in node.entries() {
            match object.field(&key.text) {
                Some(shape) => {
                    let length = descend(path, &key.text);
                    self.value(child, shape, path);
                    path.truncate(length);
                }
                None => self.unknown_field(key, object, path),
            }
        }
        for name in object.required {
            if node.get(name).is_none() {
                let at = node.entry(name).map_or_else(|| first_place(node), |(key, _)| key.place);
                let place = place_name(path);
                self.report.error(
                    problem::MISSING_FIELD,
                    at,
                    format!("{place} has no `{name}`"),
                    format!("add `{name}:`"),
                );
            }
        }
    }

    fn scalar(&mut self, node: &Node, scalar: &Scalar, shape: &Shape, path: &str) {
        let fits = match shape {
            Shape::Text => scalar.plain() == Plain::String,
            Shape::Integer => scalar.style == Style::Plain && integer(&scalar.text).is_some(),
            Shape::Number => scalar.plain() == Plain::Number,
            Shape::Boolean => scalar.style == Style::Plain && boolean(&scalar.text).is_some(),
            Shape::IntOrText => scalar.plain() != Plain::Boolean,
            Shape::Word(words) => return self.word(node, scalar, words, path),
            Shape::Any => true,
            Shape::List(_) | Shape::MapOf(_) | Shape::Object(_) => false,
        };
        if !fits {
            self.wrong_type(node, shape, path);
        }
    }

    fn word(&mut self, node: &Node, scalar: &Scalar, words: &[&str], path: &str) {
        if words.contains(&scalar.text.as_str()) {
            return;
        }
        let hint = match nearest(&scalar.text, words.iter().copied()) {
            Some(word) => format!("did you mean `{word}`? Known values: {}", words.join(", ")),
            None => format!("known values: {}", words.join(", ")),
        };
        let reason = format!("Unsupported value: \"{}\" in {}", shorten(&scalar.text), place_name(path));
        self.report.error(problem::UNKNOWN_VALUE, node.place, reason, hint);
    }

    fn wrong_type(&mut self, node: &Node, shape: &Shape, path: &str) {
        let found = node.describe();
        let (wanted, hint) = match (shape, &node.value) {
            (Shape::Text, Value::Scalar(s)) if !node.is_null() => {
                ("a string", format!("write \"{}\", with the quotes", shorten(&s.text)))
            }
            (Shape::Text, _) => ("a string", "write one value".to_owned()),
            (Shape::Integer, Value::Scalar(s)) if integer(&s.text).is_some() => {
                ("a whole number", "remove the quotes".to_owned())
            }
            (Shape::Integer, _) => ("a whole number", "write digits, without quotes".to_owned()),
            (Shape::Number, _) => ("a number", "write digits, without quotes".to_owned()),
            (Shape::Boolean, _) => ("true or false", "write `true` or `false`, without quotes".to_owned()),
            (Shape::IntOrText, _) => ("a number or a name", "write a number or a name".to_owned()),
            (Shape::Word(words), _) => ("one word", format!("known values: {}", words.join(", "))),
            (Shape::List(_), Value::Scalar(_)) => {
                ("a list", format!("write [{}], or one `- ` line for each value", flow(node)))
            }
            (Shape::List(_), _) => ("a list", "begin each element with `- `".to_owned()),
            (Shape::Object(object), Value::List(_)) => {
                ("a mapping", format!("remove the `- `; fields here: {}", names(object)))
            }
            (Shape::Object(object), _) => ("a mapping", format!("fields here: {}", names(object))),
            (Shape::MapOf(_) | Shape::Any, _) => ("a mapping", "write `key: value` lines".to_owned()),
        };
        let reason = format!("{} must be {wanted}, found {found}", place_name(path));
        self.report.error(problem::WRONG_TYPE, node.place, reason, hint);
    }

    fn unknown_field(&mut self, key: &Key, object: &'static Object, path: &str) {
        let reason = if path.is_empty() {
            format!("unknown field `{}`", shorten(&key.text))
        } else {
            format!("unknown field `{}` in {path}", shorten(&key.text))
        };
        let hint = if self.report.is_full() {
            String::new()
        } else if let Some(name) = nearest(&key.text, object.fields.iter().map(|(name, _)| *name)) {
            format!("did you mean `{name}`?")
        } else if let Some(place) = find_field(&self.root, &key.text) {
            format!("`{}` belongs in {place}", key.text)
        } else {
            format!("fields here: {}", names(object))
        };
        self.report.error(problem::UNKNOWN_FIELD, key.place, reason, hint);
    }
}

/// Appends a key to a path, returns the length to cut back to.
fn descend(path: &mut String, key: &str) -> usize {
    let length = path.len();
    if !path.is_empty() {
        path.push('.');
    }
    path.push_str(&shorten(key));
    length
}

fn place_name(path: &str) -> &str {
    if path.is_empty() { "the document" } else { path }
}

fn first_place(node: &Node) -> Place {
    node.entries().first().map_or(node.place, |(key, _)| key.place)
}

fn flow(node: &Node) -> String {
    node.text().map_or_else(String::new, |text| format!("\"{}\"", shorten(text)))
}

fn names(object: &Object) -> String {
    let shown: Vec<&str> = object.fields.iter().map(|(name, _)| *name).take(12).collect();
    let more = if object.fields.len() > shown.len() { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

/// A whole number as Kubernetes writes it.
pub fn integer(text: &str) -> Option<i64> {
    text.parse().ok()
}

/// YAML 1.2's booleans only: `yes` and `on` are refused, since readers disagree on them.
pub fn boolean(text: &str) -> Option<bool> {
    match text {
        "true" | "True" | "TRUE" => Some(true),
        "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

/// The known name that a misspelt one most likely means.
pub fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let wanted = name.to_lowercase();
    let length = wanted.chars().count();
    if length > 80 {
        return None;
    }
    let distance = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        if candidate.strip_suffix('s') == Some(&wanted) || wanted.strip_suffix('s') == Some(&candidate) {
            return 0;
        }
        strsim::damerau_levenshtein(&wanted, &candidate)
    };
    known
        .map(|k| (distance(k), k))
        .filter(|(d, k)| *d <= (length.max(k.len()) / 3).max(1))
        .min()
        .map(|(_, k)| k)
}

/// Where else in the document the field would be right, nearest to the top.
fn find_field(root: &Shape, name: &str) -> Option<String> {
    let mut level = vec![(String::new(), *root)];
    for _ in 0..10 {
        let mut below = Vec::new();
        for (path, shape) in level {
            match shape {
                Shape::List(inner) => below.push((format!("{path}[]"), *inner)),
                Shape::Object(object) => {
                    if object.field(name).is_some() {
                        return Some(if path.is_empty() { "the top level".into() } else { path });
                    }
                    let dot = if path.is_empty() { "" } else { "." };
                    below.extend(
                        object.fields.iter().map(|(field, shape)| (format!("{path}{dot}{field}"), *shape)),
                    );
                }
                _ => {}
            }
        }
        level = below;
    }
    None
}
