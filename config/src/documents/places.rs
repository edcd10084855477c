//! Where single fields were written, and which warnings their documents do not want: for findings that are made
//! between documents, after the trees are gone.
use super::{
    Origin, named_providers,
    parse::{Node, Place},
};
use crate::problem::{Problem, Severity};
use std::{collections::BTreeMap, sync::Arc};

/// Rules of a policy whose places are remembered: as many as a policy may have.
const MAX_RULES: usize = 512;
/// Fields of a source or operation that name things of other documents.
const SOURCES: &[&str] =
    &["namespaces", "notNamespaces", "principals", "notPrincipals", "serviceAccounts", "notServiceAccounts"];
const OPERATIONS: &[&str] = &["ports", "notPorts"];
/// Conditions that do.
const KEYS: &[&str] = &["source.namespace", "source.principal", "source.serviceAccount", "destination.port"];

/// Places of fields inside documents, for findings that are made after the trees are gone.
#[derive(Clone, Debug, Default)]
pub struct Places {
    fields: BTreeMap<Document, BTreeMap<String, Noted>>,
    suppressed: BTreeMap<Document, Vec<&'static str>>,
}

/// File and first line.
type Document = (String, usize);
/// Where, and the line's text.
type Noted = (Place, Option<Arc<str>>);

impl Places {
    pub(super) fn note(&mut self, origin: &Origin, path: &str, place: Place, source_line: Option<Arc<str>>) {
        let fields = self.fields.entry((origin.file.clone(), origin.line)).or_default();
        fields.insert(path.to_owned(), (place, source_line));
    }

    pub(super) fn suppress(&mut self, origin: &Origin, codes: &[&'static str]) {
        if !codes.is_empty() {
            self.suppressed.insert((origin.file.clone(), origin.line), codes.to_vec());
        }
    }

    /// Whether the document at `origin` does not want warnings of this code.
    pub(crate) fn is_suppressed(&self, origin: &Origin, code: &str) -> bool {
        !self.suppressed.is_empty()
            && self
                .suppressed
                .get(&(origin.file.clone(), origin.line))
                .is_some_and(|codes| codes.contains(&code))
    }

    /// A problem at `path` of the document at `origin`; at the document itself when the path was not noted.
    pub(crate) fn problem(
        &self,
        severity: Severity,
        code: &'static str,
        (origin, path): (&Origin, &str),
        reason: String,
        hint: impl Into<String>,
    ) -> Problem {
        let known = self.fields.get(&(origin.file.clone(), origin.line)).and_then(|fields| fields.get(path));
        let (place, source_line) = known.cloned().unwrap_or((Place { line: origin.line, column: 0 }, None));
        Problem {
            severity,
            code,
            file: origin.file.clone(),
            line: place.line,
            column: place.column,
            reason,
            hint: hint.into(),
            source_line: source_line.map(|line| line.to_string()),
        }
    }
}

/// The paths of a document that a finding may point at, with their places; at most `limit`.
pub fn of_interest(node: &Node, limit: usize) -> Vec<(String, Place)> {
    let mut found = Found { limit, places: Vec::new() };
    found.add(|| "metadata.name".into(), node.at("metadata.name").map_or(node.place, |name| name.place));
    if let Some(namespace) = node.at("metadata.namespace") {
        found.add(|| "metadata.namespace".into(), namespace.place);
    }
    for name in ["selector", "trafficPolicy"] {
        if let Some((key, _)) = node.get("spec").and_then(|spec| spec.entry(name)) {
            found.add(|| format!("spec.{name}"), key.place);
        }
    }
    for path in [
        "spec.serviceAccountName",
        "spec.template.spec.serviceAccountName",
        "spec.trustDomain",
        "spec.bundleEndpointProfile.endpointSPIFFEID",
    ] {
        if let Some(value) = node.at(path) {
            found.add(|| path.into(), value.place);
        }
    }
    for path in ["spec.containers", "spec.template.spec.containers", "spec.ports"] {
        for (i, item) in node.at(path).into_iter().flat_map(Node::items).enumerate() {
            let shown = item.get("targetPort").or(item.get("name")).unwrap_or(item);
            found.add(|| format!("{path}[{i}]"), shown.place);
        }
    }
    for (provider, place) in named_providers(node) {
        found.add(|| provider.path, place);
    }
    for (port, _) in node.at("spec.portLevelMtls").map(Node::entries).unwrap_or_default() {
        found.add(|| format!("spec.portLevelMtls.{}", super::parse::shorten(&port.text)), port.place);
    }
    for (r, rule) in node.at("spec.rules").into_iter().flat_map(Node::items).take(MAX_RULES).enumerate() {
        found.rule(r, rule);
    }
    found.places
}

struct Found {
    limit: usize,
    places: Vec<(String, Place)>,
}

impl Found {
    fn add(&mut self, path: impl FnOnce() -> String, place: Place) {
        if self.places.len() < self.limit {
            self.places.push((path(), place));
        }
    }

    fn rule(&mut self, r: usize, rule: &Node) {
        self.add(|| format!("spec.rules[{r}]"), first_place(rule));
        for (side, part, fields) in [("from", "source", SOURCES), ("to", "operation", OPERATIONS)] {
            for (i, entry) in rule.list(side).enumerate() {
                let Some(entry) = entry.get(part) else { continue };
                for field in fields {
                    self.values(entry, field, || format!("spec.rules[{r}].{side}[{i}].{part}.{field}"));
                }
            }
        }
        for (w, condition) in rule.list("when").enumerate() {
            if !condition.get("key").and_then(Node::text).is_some_and(|key| KEYS.contains(&key)) {
                continue;
            }
            for field in ["values", "notValues"] {
                self.values(condition, field, || format!("spec.rules[{r}].when[{w}].{field}"));
            }
        }
    }

    fn values(&mut self, node: &Node, field: &str, path: impl Fn() -> String) {
        for (i, value) in node.list(field).enumerate() {
            self.add(|| format!("{}[{i}]", path()), value.place);
        }
    }
}

/// Of a mapping, its first key.
fn first_place(node: &Node) -> Place {
    node.entries().first().map_or(node.place, |(key, _)| key.place)
}
