//! The tree of a YAML document: values and keys with their places, and the questions that readers ask them.
use std::rc::Rc;

/// 1-based line and column (in characters) in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

/// A value and where it was written.
#[derive(Debug)]
pub struct Node {
    pub place: Place,
    pub value: Value,
    /// Values in it, aliases followed.
    pub nodes: usize,
    /// Levels in it, aliases followed.
    pub depth: usize,
}

#[derive(Debug)]
pub enum Value {
    Scalar(Scalar),
    List(Vec<Rc<Node>>),
    Map(Vec<(Key, Rc<Node>)>),
}

/// A scalar as written; what a plain one means depends on the field that holds it.
#[derive(Debug)]
pub struct Scalar {
    pub text: String,
    pub style: Style,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// No quotes: may be a number, boolean or null.
    Plain,
    /// Quoted, folded or tagged `!!str`: a string.
    Quoted,
    /// `|`: a string whose lines are the file's lines, from this place on.
    Literal(Place),
}

#[derive(Clone, Debug)]
pub struct Key {
    pub text: String,
    pub place: Place,
}

/// What a plain scalar is in YAML 1.1's reading, which is the one Kubernetes has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    Null,
    Boolean,
    Number,
    String,
}

impl Scalar {
    /// What the scalar is when nobody says what it should be.
    pub fn plain(&self) -> Plain {
        if self.style != Style::Plain {
            return Plain::String;
        }
        match self.text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => Plain::Null,
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" | "yes" | "Yes" | "YES" | "no" | "No"
            | "NO" | "on" | "On" | "ON" | "off" | "Off" | "OFF" | "y" | "Y" | "n" | "N" => Plain::Boolean,
            text if is_number(text) => Plain::Number,
            _ => Plain::String,
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_start_matches(['-', '+']);
    if let Some(hex) = digits.strip_prefix("0x") {
        return !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
    }
    if let Some(octal) = digits.strip_prefix("0o") {
        return !octal.is_empty() && octal.bytes().all(|b| (b'0'..=b'7').contains(&b));
    }
    matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN")
        || digits.bytes().next().is_some_and(|b| b.is_ascii_digit() || b == b'.')
            && digits.parse::<f64>().is_ok()
}

impl Node {
    /// `null`, `~` or nothing at all.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.plain() == Plain::Null)
    }

    /// The value of a key; a null is as good as absent, as in Kubernetes.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, node)| node).filter(|node| !node.is_null())
    }

    /// Key and value, null or not.
    pub fn entry(&self, key: &str) -> Option<(&Key, &Node)> {
        self.entries().iter().find(|(k, _)| k.text == key).map(|(k, node)| (k, &**node))
    }

    /// The value at a dotted path of keys, e.g. `spec.selector.matchLabels`.
    pub fn at(&self, path: &str) -> Option<&Node> {
        path.split('.').try_fold(self, |node, key| node.get(key))
    }

    /// Entries of a mapping; none for anything else.
    pub fn entries(&self) -> &[(Key, Rc<Node>)] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// Elements of a list; none for anything else.
    pub fn items(&self) -> impl Iterator<Item = &Node> {
        let items: &[Rc<Node>] = match &self.value {
            Value::List(items) => items,
            _ => &[],
        };
        items.iter().map(|node| &**node)
    }

    /// The elements of the list under `key`; none when absent.
    pub fn list(&self, key: &str) -> impl Iterator<Item = &Node> {
        self.get(key).into_iter().flat_map(Node::items)
    }

    /// A scalar's text.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(s) => Some(&s.text),
            _ => None,
        }
    }

    /// The text of the scalar under `key`, empty when absent.
    pub fn string(&self, key: &str) -> String {
        self.get(key).and_then(Node::text).unwrap_or_default().to_owned()
    }

    /// What the node is, for messages.
    pub fn describe(&self) -> String {
        match &self.value {
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
            Value::Scalar(s) => match s.plain() {
                Plain::Null => "nothing".into(),
                Plain::Boolean => format!("the boolean `{}`", shorten(&s.text)),
                Plain::Number => format!("the number `{}`", shorten(&s.text)),
                Plain::String => format!("the string \"{}\"", shorten(&s.text)),
            },
        }
    }

    /// Counts what hangs below, so that aliases cost what they stand for.
    pub fn new(place: Place, value: Value) -> Self {
        let (mut nodes, mut depth) = (1_usize, 0);
        let mut add = |child: &Node| {
            nodes = nodes.saturating_add(child.nodes);
            depth = depth.max(child.depth);
        };
        match &value {
            Value::Scalar(_) => {}
            Value::List(items) => items.iter().for_each(|child| add(child)),
            Value::Map(entries) => entries.iter().for_each(|(_, child)| add(child)),
        }
        Self { place, value, nodes, depth: depth + 1 }
    }
}

/// At most 60 characters of a text that somebody else wrote.
pub fn shorten(text: &str) -> String {
    if text.chars().count() <= 60 {
        return text.to_owned();
    }
    text.chars().take(57).chain("...".chars()).collect()
}
