//! Which path templates a path fits: a tree of segments, walked along the path.

use super::{
    atoms::{Atom, Found},
    table::{Table, hash_bytes, hash_pair},
    texts::Texts,
};
use crate::matchers::{
    PathTemplate, Text,
    template::{Segment, is_variable},
};
use std::collections::HashMap;

/// Templates with more segments before `{**}` are compared one by one; none that people write has.
pub(super) const MAX_DEPTH: usize = 32;
/// The tail of a template that ends with `{**}`; other tails are counted from 1.
const NO_TAIL: Atom = 0;

/// Distinct templates of at most [`MAX_DEPTH`].
#[derive(Debug, Default)]
pub(super) struct Templates {
    nodes: Box<[Node]>,
    children: Table<(u32, Box<str>)>,
    /// Literal tails behind `{**}`, as suffix patterns.
    tails: Texts,
    /// By tail.
    tail_lengths: Box<[usize]>,
    /// A node and a tail.
    open: Table<(u32, Atom)>,
}

#[derive(Debug, Default)]
struct Node {
    /// Behind `{*}`.
    one: Option<u32>,
    /// A template without `{**}` ends here.
    end: Option<Atom>,
    /// `{**}` follows.
    open: bool,
}

impl Templates {
    pub fn build(templates: Vec<(PathTemplate, Atom)>) -> Self {
        if templates.is_empty() {
            return Self::default();
        }
        let mut nodes = vec![Node::default()];
        let mut children: HashMap<(u32, &str), u32> = HashMap::new();
        let mut tails: HashMap<&str, Atom> = HashMap::new();
        let mut open = Vec::new();
        for (template, atom) in &templates {
            let mut at = 0_u32;
            for segment in template.head() {
                let fresh = nodes.len() as u32;
                let next = match segment {
                    Segment::Literal(text) => *children.entry((at, text)).or_insert(fresh),
                    Segment::One => nodes.get(at as usize).and_then(|node| node.one).unwrap_or(fresh),
                };
                if next == fresh {
                    nodes.push(Node::default());
                }
                if let (Segment::One, Some(node)) = (segment, nodes.get_mut(at as usize)) {
                    node.one = Some(next);
                }
                at = next;
            }
            let Some(node) = nodes.get_mut(at as usize) else { continue };
            match template.tail() {
                None => node.end = Some(*atom),
                Some(tail) => {
                    node.open = true;
                    let fresh = tails.len() as Atom + 1;
                    let tail = if tail.is_empty() { NO_TAIL } else { *tails.entry(tail).or_insert(fresh) };
                    open.push(((at, tail), *atom));
                }
            }
        }
        let mut tail_lengths = vec![0; tails.len() + 1];
        for (tail, id) in &tails {
            tail_lengths.get_mut(*id as usize).into_iter().for_each(|length| *length = tail.len());
        }
        let tails = tails.into_iter().map(|(tail, id)| (Text::Suffix(tail.into()), id)).collect();
        let children =
            children.into_iter().map(|((node, text), child)| ((node, text.into()), child)).collect();
        Self {
            nodes: nodes.into(),
            children: Table::build(children, |(node, text): &(u32, Box<str>)| hash_child(*node, text)),
            tails: Texts::build(tails, false),
            open: Table::build(open, |(node, tail)| hash_pair(u64::from(*node), u64::from(*tail))),
            tail_lengths: tail_lengths.into(),
        }
    }

    /// All templates that `path` fits.
    #[inline]
    pub fn find(&self, path: &str, found: &mut Found) {
        if self.nodes.is_empty() {
            return;
        }
        let mut tails = Found::default();
        tails.add(NO_TAIL);
        self.tails.find(path.as_bytes(), &mut tails);
        if tails.overflowed() {
            found.overflow();
        }
        self.walk(0, Some(path), &tails, found);
    }

    /// `rest` begins with a slash, or the path has ended. As deep as the deepest template at most.
    fn walk(&self, at: u32, rest: Option<&str>, tails: &Found, found: &mut Found) {
        let Some(node) = self.nodes.get(at as usize) else { return };
        let Some(rest) = rest else {
            node.end.into_iter().for_each(|atom| found.add(atom));
            return;
        };
        let Some(inner) = rest.strip_prefix('/') else { return };
        if node.open {
            self.find_open(at, inner, tails, found);
        }
        let (segment, after) = inner.split_at(inner.find('/').unwrap_or(inner.len()));
        let after = (!after.is_empty()).then_some(after);
        let child =
            self.children.find(hash_child(at, segment), |(node, text)| *node == at && **text == *segment);
        if let Some(child) = child {
            self.walk(child, after, tails, found);
        }
        if let Some(one) = node.one
            && !segment.is_empty()
            && segment.bytes().all(is_variable)
        {
            self.walk(one, after, tails, found);
        }
    }

    /// `{**}` stands for what is left between here and one of the tails that the path has.
    fn find_open(&self, at: u32, inner: &str, tails: &Found, found: &mut Found) {
        for tail in tails.all() {
            let hash = hash_pair(u64::from(at), u64::from(*tail));
            let Some(atom) = self.open.find(hash, |key| *key == (at, *tail)) else { continue };
            let length = self.tail_lengths.get(*tail as usize).copied().unwrap_or_default();
            let middle = inner.len().checked_sub(length).and_then(|end| inner.as_bytes().get(..end));
            if middle.is_some_and(|middle| middle.iter().all(|byte| *byte == b'/' || is_variable(*byte))) {
                found.add(atom);
            }
        }
    }
}

fn hash_child(node: u32, segment: &str) -> u64 {
    hash_pair(u64::from(node), hash_bytes(segment.as_bytes(), false))
}
