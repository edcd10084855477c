//! The part of CEL in which filters of the access log are written: read once, checked for its types, bounded, and evaluated
//! against what a finished call is known to have been.
//!
//! Source: the Common Expression Language's definition, sections "Syntax" and "Runtime Errors"; names of attributes are Envoy's
//! ("Attributes"). What is outside of the part is refused with its place: an expression is never understood half.

mod attribute;
mod parse;
mod token;

pub use attribute::{ATTRIBUTES, Attribute, Kind};

use http::HeaderName;
use std::{borrow::Cow, cmp::Ordering, time::Duration};

/// Longest expression, in bytes.
pub const LONGEST: usize = 4096;
/// Headers that one expression may look at.
pub const HEADERS: usize = 16;
/// Deepest nesting.
const DEEPEST: usize = 32;
/// Headers whose values nobody but the app shall learn.
const SECRET: [&str; 4] = ["authorization", "proxy-authorization", "cookie", "set-cookie"];

/// Whether a header may hold secrets: none of its values is logged, sent with a span, or looked at by a filter, which would tell
/// it bit by bit.
pub fn is_secret(header: &str) -> bool {
    SECRET.iter().any(|secret| secret.eq_ignore_ascii_case(header))
}

/// What a term is in one evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value<'v> {
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A text.
    Text(Cow<'v, str>),
    /// A length of time.
    Duration(Duration),
}

/// What is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Characters before it, from 0.
    pub at: usize,
    /// What is wrong, in a few words.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

/// The expression looked at something that the call does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Absent;

/// A checked expression that is true or false of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    root: Node,
    headers: Vec<HeaderName>,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Value(Value<'static>),
    Attribute(Attribute),
    Header(HeaderName),
    Not(Box<Node>),
    /// All of them; none of these is an `And`.
    And(Vec<Node>),
    /// One of them.
    Or(Vec<Node>),
    Compare(Relation, Box<Node>, Box<Node>),
    Within(Box<Node>, Vec<Node>),
    /// Whether it is there.
    Has(Box<Node>),
    Text(Test, Box<Node>, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    StartsWith,
    EndsWith,
    Contains,
}

impl Filter {
    /// Reads and checks an expression. Total on any text.
    ///
    /// # Errors
    /// The first mistake, with its place.
    pub fn parse(text: &str) -> Result<Self, Mistake> {
        parse::filter(text)
    }

    /// The request headers that it looks at, each once.
    pub fn headers(&self) -> &[HeaderName] {
        &self.headers
    }

    /// Whether it is true of a call, of which the two functions know attributes and headers.
    ///
    /// # Errors
    /// [`Absent`] when it depends on something that the call does not have. As in CEL, `&&` and `||` do not where the other side
    /// decides.
    pub fn matches<'v>(
        &self,
        attribute: impl Fn(Attribute) -> Option<Value<'v>>,
        header: impl Fn(&HeaderName) -> Option<&'v str>,
    ) -> Result<bool, Absent> {
        Call { attribute, header }.is(&self.root)
    }
}

struct Call<A, H> {
    attribute: A,
    header: H,
}

impl<'v, A: Fn(Attribute) -> Option<Value<'v>>, H: Fn(&HeaderName) -> Option<&'v str>> Call<A, H> {
    fn is(&self, node: &Node) -> Result<bool, Absent> {
        match node {
            Node::Not(inner) => Ok(!self.is(inner)?),
            Node::And(all) => self.until(false, all),
            Node::Or(all) => self.until(true, all),
            Node::Compare(relation, left, right) => {
                Ok(relation.holds(order(&self.value(left)?, &self.value(right)?)))
            }
            Node::Within(term, list) => {
                let term = self.value(term)?;
                // The first error does not matter where another one is equal, as with `||`.
                let mut outcome = Ok(false);
                for one in list {
                    match self.value(one) {
                        Ok(one) if one == term => return Ok(true),
                        Ok(_) => {}
                        Err(absent) => outcome = Err(absent),
                    }
                }
                outcome
            }
            Node::Has(term) => Ok(self.value(term).is_ok()),
            Node::Text(test, term, part) => match (self.value(term)?, self.value(part)?) {
                (Value::Text(term), Value::Text(part)) => Ok(match test {
                    Test::StartsWith => term.starts_with(&*part),
                    Test::EndsWith => term.ends_with(&*part),
                    Test::Contains => term.contains(&*part),
                }),
                // Types are checked when it is read.
                _ => Err(Absent),
            },
            Node::Value(_) | Node::Attribute(_) | Node::Header(_) => match self.value(node)? {
                Value::Bool(is) => Ok(is),
                _ => Err(Absent),
            },
        }
    }

    /// The first that is `deciding` decides, also behind one that cannot be told.
    fn until(&self, deciding: bool, all: &[Node]) -> Result<bool, Absent> {
        let mut outcome = Ok(!deciding);
        for one in all {
            match self.is(one) {
                Ok(is) if is == deciding => return Ok(is),
                Ok(_) => {}
                Err(absent) => outcome = Err(absent),
            }
        }
        outcome
    }

    fn value<'n>(&self, node: &'n Node) -> Result<Value<'n>, Absent>
    where
        'v: 'n,
    {
        match node {
            Node::Value(value) => Ok(value.clone()),
            Node::Attribute(attribute) => (self.attribute)(*attribute).ok_or(Absent),
            Node::Header(name) => {
                (self.header)(name).map(|text| Value::Text(Cow::Borrowed(text))).ok_or(Absent)
            }
            test => self.is(test).map(Value::Bool),
        }
    }
}

/// `None` for two of different kinds, which reading refuses.
fn order(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    match (left, right) {
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Int(left), Value::Int(right)) => Some(left.cmp(right)),
        (Value::Text(left), Value::Text(right)) => Some(left.cmp(right)),
        (Value::Duration(left), Value::Duration(right)) => Some(left.cmp(right)),
        _ => None,
    }
}

impl Relation {
    fn holds(self, order: Option<Ordering>) -> bool {
        order.is_some_and(|order| match self {
            Self::Equal => order.is_eq(),
            Self::Unequal => order.is_ne(),
            Self::Less => order.is_lt(),
            Self::AtMost => order.is_le(),
            Self::Greater => order.is_gt(),
            Self::AtLeast => order.is_ge(),
        })
    }
}

#[cfg(test)]
mod tests;
