//! YAML text to trees: one tree a document, every node and key with its place, bounded in size and depth.
//!
//! The tree is ours (over the events of the parser that serde-saphyr is made of), since a typed deserializer
//! stops at its first error and people want all of them at once.
use crate::problem;
use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};
use std::{collections::HashMap, rc::Rc};

pub use super::tree::{Key, Node, Place, Plain, Scalar, Style, Value, shorten};

/// Largest file that is read, in bytes.
pub const MAX_FILE: usize = 4 << 20;
/// Deepest nesting of one document, aliases followed. Kubernetes' deepest real objects have about 20 levels.
const MAX_DEPTH: usize = 64;
/// Most nodes of one document, aliases followed.
const MAX_NODES: usize = 200_000;

/// A finding of the parser itself.
#[derive(Debug)]
pub struct Trouble {
    pub code: &'static str,
    pub place: Place,
    pub reason: String,
    pub hint: String,
}

/// One document's text and where in the file it begins.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub text: &'a str,
    /// Lines before it.
    pub line: usize,
    /// Characters cut from the left of each of its lines (embedded documents).
    pub column: usize,
}

/// Splits a file at its document markers, so that a syntax error in one document leaves the others readable.
/// (A line that begins with `---` is always a marker, in block and quoted scalars too: YAML 1.2, 9.1.2.)
pub fn split(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
        };
        let cut = match (is_marker("---"), is_marker("...")) {
            (true, _) => Some((offset, number)),
            (_, true) => Some((offset + line.len(), number + 1)),
            _ => None,
        };
        if let Some((at, line)) = cut {
            pieces.push(Piece { text: text.get(start..at).unwrap_or_default(), line: start_line, column: 0 });
            (start, start_line) = (at, line);
        }
        offset += line.len();
    }
    pieces.push(Piece { text: text.get(start..).unwrap_or_default(), line: start_line, column: 0 });
    pieces.retain(|piece| !piece.is_blank());
    pieces
}

impl Piece<'_> {
    /// Only comments, directives and markers.
    fn is_blank(&self) -> bool {
        self.text.lines().all(|line| {
            let line = line.strip_prefix("---").unwrap_or(line).trim();
            line.is_empty() || line == "..." || line.starts_with(['#', '%'])
        })
    }
}

/// The tree of one document; `None` when it says nothing. Everything that is wrong goes to `troubles`; a document
/// with a syntax error has no tree, duplicate keys leave one.
pub fn parse(piece: Piece<'_>, troubles: &mut Vec<Trouble>) -> Option<Rc<Node>> {
    let mut options =
        granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    options.set_emit_comments(false);
    let mut builder = Builder {
        piece,
        troubles,
        stack: Vec::new(),
        anchors: HashMap::new(),
        root: None,
        nodes: 0,
        lines: piece.text.lines().collect(),
    };
    for event in Parser::new_from_str_with_options(piece.text, options) {
        let outcome = match event {
            Ok((event, span)) => builder.take(event, span),
            Err(error) => {
                let place = builder.place(error.marker().line(), error.marker().col());
                Err(syntax(piece, place, &error.kind().to_string()))
            }
        };
        if let Err(trouble) = outcome {
            troubles.push(trouble);
            return None;
        }
    }
    builder.root.take()
}

/// The parser's words, with a remedy for the mistakes that people make.
fn syntax(piece: Piece<'_>, place: Place, message: &str) -> Trouble {
    let line = piece.text.lines().nth(place.line.saturating_sub(piece.line + 1)).unwrap_or_default();
    let indent: String = line.chars().take_while(|c| c.is_whitespace()).collect();
    let deep = message.contains("nesting") || message.contains("recursion") || message.contains("limit");
    let hint = if indent.contains('\t') {
        "indent with spaces; YAML does not take tabs"
    } else if line.matches(": ").count() > 1 && !line.contains(['"', '\'', '{']) {
        "put a value that holds `: ` in quotes"
    } else if line.trim_start().starts_with(['*', '%', '@', '`'])
        || line.contains(": *")
        || line.contains("- *")
        || line.contains("[*")
    {
        "put a value that begins with `*`, `%`, `@` or a backtick in quotes"
    } else if message.contains("flow") {
        "close the bracket, separate by commas, and put a value that holds `[`, `]`, `{`, `}` or `,` in quotes"
    } else if deep {
        "no Kubernetes object nests that deeply; look for a bracket that is never closed"
    } else {
        "check the indentation, the quotes and the brackets of this line and of the one before"
    };
    let code = if deep { problem::TOO_LARGE } else { problem::SYNTAX };
    Trouble { code, place, reason: format!("not valid YAML: {message}"), hint: hint.into() }
}

/// A collection that is still open.
enum Open {
    List(Vec<Rc<Node>>),
    Map {
        entries: Vec<(Key, Rc<Node>)>,
        seen: HashMap<String, usize>,
        key: Option<Key>,
        merges: Vec<Rc<Node>>,
    },
}

struct Builder<'a, 't> {
    piece: Piece<'a>,
    lines: Vec<&'a str>,
    troubles: &'t mut Vec<Trouble>,
    stack: Vec<(Open, Place, usize)>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
    nodes: usize,
}

impl Builder<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Trouble> {
        let place = self.place(span.start.line(), span.start.col());
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(self.too_large(place));
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                let mut style = match style {
                    ScalarStyle::Plain => Style::Plain,
                    ScalarStyle::Literal => Style::Literal(self.literal_start(place)),
                    _ => Style::Quoted,
                };
                match core_tag(tag.as_deref()) {
                    Ok(Some("str")) if style == Style::Plain => style = Style::Quoted,
                    Ok(_) => {}
                    Err(name) => self.foreign_tag(place, &name),
                }
                self.add(Node::new(place, Value::Scalar(Scalar { text, style })), anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if let Err(name) = core_tag(tag.as_deref()) {
                    self.foreign_tag(place, &name);
                }
                self.stack.push((Open::List(Vec::new()), place, anchor));
                Ok(())
            }
            Event::MappingStart(_, anchor, tag) => {
                if let Err(name) = core_tag(tag.as_deref()) {
                    self.foreign_tag(place, &name);
                }
                let open =
                    Open::Map { entries: Vec::new(), seen: HashMap::new(), key: None, merges: Vec::new() };
                self.stack.push((open, place, anchor));
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop() {
                Some((Open::List(items), place, anchor)) => {
                    self.add(Node::new(place, Value::List(items)), anchor)
                }
                Some((Open::Map { entries, seen, merges, .. }, place, anchor)) => {
                    let entries = merged(entries, seen, merges);
                    self.add(Node::new(place, Value::Map(entries)), anchor)
                }
                None => Ok(()),
            },
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => self.attach(node, place),
                None => Err(Trouble {
                    code: problem::SYNTAX,
                    place,
                    reason: "the alias stands inside the value that it names".into(),
                    hint: "write the value out".into(),
                }),
            },
            _ => Ok(()),
        }
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), Trouble> {
        let place = node.place;
        let node = Rc::new(node);
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        self.attach(node, place)
    }

    /// Puts a finished node where it belongs. `place` is that of an alias when it came through one.
    fn attach(&mut self, node: Rc<Node>, place: Place) -> Result<(), Trouble> {
        if node.nodes > MAX_NODES || node.depth + self.stack.len() > MAX_DEPTH {
            return Err(self.too_large(place));
        }
        let Some((open, ..)) = self.stack.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match open {
            Open::List(items) => items.push(node),
            Open::Map { entries, seen, key, merges } => match key.take() {
                None => {
                    let text = match &node.value {
                        Value::Scalar(s) => s.text.clone(),
                        _ => {
                            self.troubles.push(Trouble {
                                code: problem::UNSUPPORTED_YAML,
                                place,
                                reason: format!("a key must be a scalar, found {}", node.describe()),
                                hint: "put a value that begins with `{` or `[` in quotes".into(),
                            });
                            String::new()
                        }
                    };
                    *key = Some(Key { text, place });
                }
                Some(key) if key.text == "<<" => {
                    // Merging copies entries, so that it must count as much as writing them would.
                    self.nodes = self.nodes.saturating_add(node.nodes);
                    merges.push(node);
                }
                Some(key) => match seen.get(&key.text) {
                    Some(first) => self.troubles.push(Trouble {
                        code: problem::DUPLICATE_KEY,
                        place: key.place,
                        reason: format!("key `{}` is already set on line {first}", shorten(&key.text)),
                        hint: "keep one of the two".into(),
                    }),
                    None => {
                        seen.insert(key.text.clone(), key.place.line);
                        entries.push((key, node));
                    }
                },
            },
        }
        Ok(())
    }

    fn place(&self, line: usize, column: usize) -> Place {
        Place { line: line + self.piece.line, column: column + 1 + self.piece.column }
    }

    /// Where the first content line of a `|` scalar begins, after its indentation. The parser may point at the header
    /// or at the content.
    fn literal_start(&self, at: Place) -> Place {
        let row = at.line.saturating_sub(self.piece.line + 1);
        let header =
            |line: &&str| line.chars().nth(at.column.saturating_sub(self.piece.column + 1)) == Some('|');
        let skip = row + usize::from(self.lines.get(row).is_some_and(header));
        let body = self.lines.iter().skip(skip).take(100).find(|line| !line.trim().is_empty());
        let body = body.copied().unwrap_or_default();
        let indent = body.chars().take_while(|&c| c == ' ').count();
        Place { line: self.piece.line + skip + 1, column: self.piece.column + indent + 1 }
    }

    fn foreign_tag(&mut self, place: Place, name: &str) {
        self.troubles.push(Trouble {
            code: problem::UNSUPPORTED_YAML,
            place,
            reason: format!("the tag `{}` means nothing in a Kubernetes document", shorten(name)),
            hint: "remove the tag".into(),
        });
    }

    fn too_large(&self, place: Place) -> Trouble {
        Trouble {
            code: problem::TOO_LARGE,
            place,
            reason: format!(
                "the document has more than {MAX_NODES} values or {MAX_DEPTH} levels once its aliases are followed"
            ),
            hint: "split it, and write aliases out".into(),
        }
    }
}

/// The name of a tag of YAML's own schema, or the whole tag when it is another's.
fn core_tag(tag: Option<&Tag>) -> Result<Option<&str>, String> {
    match tag {
        None => Ok(None),
        Some(tag) => match tag.core_suffix() {
            Some(name @ ("str" | "int" | "float" | "bool" | "null" | "seq" | "map")) => Ok(Some(name)),
            _ => Err(tag.original()),
        },
    }
}

/// `<<`: entries of the merged mappings that are not set beside it (YAML 1.1 merge keys, which Kubernetes reads).
fn merged(
    mut entries: Vec<(Key, Rc<Node>)>,
    mut seen: HashMap<String, usize>,
    merges: Vec<Rc<Node>>,
) -> Vec<(Key, Rc<Node>)> {
    let sources = merges.iter().flat_map(|node| match &node.value {
        Value::List(items) => items.clone(),
        _ => vec![Rc::clone(node)],
    });
    for source in sources {
        for (key, node) in source.entries() {
            if seen.insert(key.text.clone(), key.place.line).is_none() {
                entries.push((key.clone(), Rc::clone(node)));
            }
        }
    }
    entries
}
