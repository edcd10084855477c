//! Tokens to a checked expression. What each part is stands beside it, so that a wrong type is told where it is written.

use super::{
    ATTRIBUTES, DEEPEST, Filter, HEADERS, Kind, LONGEST, Mistake, Node, Relation, Test, Value, attribute,
    is_secret,
    token::{Token, mistake, tokens},
};
use http::HeaderName;
use std::{borrow::Cow, time::Duration};

pub(super) fn filter(text: &str) -> Result<Filter, Mistake> {
    if text.len() > LONGEST {
        let reason = format!("the expression has {} bytes, the limit is {LONGEST}", text.len());
        return Err(mistake(0, reason, "say it in fewer conditions"));
    }
    let end = text.chars().count();
    let mut parser = Parser { tokens: tokens(text)?, next: 0, end, headers: Vec::new() };
    let root = parser.test(0)?;
    match parser.tokens.get(parser.next) {
        None => Ok(Filter { root, headers: parser.headers }),
        Some((at, token)) => Err(unexpected(*at, Some(token))),
    }
}

/// A part, what it is, and where it begins.
struct Term {
    node: Node,
    kind: Kind,
    at: usize,
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    /// Characters of the whole text.
    end: usize,
    headers: Vec<HeaderName>,
}

impl Parser {
    /// Something that is true or false.
    fn test(&mut self, depth: usize) -> Result<Node, Mistake> {
        let term = self.either(depth)?;
        match term.kind {
            Kind::Bool => Ok(term.node),
            kind => Err(mistake(
                term.at,
                format!("this is {}, not true or false", kind.name()),
                "compare it, for example `response.code >= 400`",
            )),
        }
    }

    fn either(&mut self, depth: usize) -> Result<Term, Mistake> {
        let first = self.both(depth)?;
        self.joined(first, "||", Node::Or, |parser| parser.both(depth))
    }

    fn both(&mut self, depth: usize) -> Result<Term, Mistake> {
        let first = self.comparison(depth)?;
        self.joined(first, "&&", Node::And, |parser| parser.comparison(depth))
    }

    /// As many as there are signs between them, in one list: how many they are makes nothing deeper.
    fn joined(
        &mut self,
        first: Term,
        sign: &str,
        node: fn(Vec<Node>) -> Node,
        next: impl Fn(&mut Self) -> Result<Term, Mistake>,
    ) -> Result<Term, Mistake> {
        if !self.is_next(sign) {
            return Ok(first);
        }
        let at = first.at;
        let mut all = vec![decided(first, sign)?];
        while self.takes(sign) {
            let one = next(self)?;
            all.push(decided(one, sign)?);
        }
        Ok(Term { node: node(all), kind: Kind::Bool, at })
    }

    fn comparison(&mut self, depth: usize) -> Result<Term, Mistake> {
        let left = self.unary(depth)?;
        if self.takes_name("in") {
            return self.within(left, depth);
        }
        let relation = [
            ("==", Relation::Equal),
            ("!=", Relation::Unequal),
            ("<=", Relation::AtMost),
            (">=", Relation::AtLeast),
            ("<", Relation::Less),
            (">", Relation::Greater),
        ]
        .into_iter()
        .find(|(sign, _)| self.takes(sign));
        let Some((sign, relation)) = relation else { return Ok(left) };
        let right = self.unary(depth)?;
        let is_ordering = !matches!(relation, Relation::Equal | Relation::Unequal);
        if left.kind != right.kind {
            let reason = format!("`{sign}` compares {} with {}", left.kind.name(), right.kind.name());
            let hint = match (left.kind, right.kind) {
                (Kind::Int, Kind::Text) => "write the number without quotes",
                (Kind::Text, Kind::Int) => "write the text in quotes",
                (Kind::Duration, _) | (_, Kind::Duration) => "write `duration('250ms')`",
                _ => "both sides must be of one type",
            };
            return Err(mistake(right.at, reason, hint));
        }
        if is_ordering && left.kind == Kind::Bool {
            let hint = "use == or !=";
            return Err(mistake(left.at, format!("`{sign}` does not order true and false"), hint));
        }
        let node = Node::Compare(relation, Box::new(left.node), Box::new(right.node));
        Ok(Term { node, kind: Kind::Bool, at: left.at })
    }

    /// What stands behind `in`: a list, or the headers.
    fn within(&mut self, left: Term, depth: usize) -> Result<Term, Mistake> {
        let at = self.at();
        if self.takes("[") {
            let mut list = Vec::new();
            while !self.takes("]") {
                let one = self.unary(depth)?;
                if one.kind != left.kind {
                    let reason =
                        format!("the list has {} where {} is looked for", one.kind.name(), left.kind.name());
                    return Err(mistake(one.at, reason, "all must be of one type"));
                }
                list.push(one.node);
                if !self.takes(",") && !self.is_next("]") {
                    return Err(self.unexpected());
                }
            }
            let node = Node::Within(Box::new(left.node), list);
            return Ok(Term { node, kind: Kind::Bool, at: left.at });
        }
        match (self.path(), &left.node) {
            (Some(path), Node::Value(Value::Text(name))) if path == "request.headers" => {
                let header = self.header(left.at, &name.clone())?;
                Ok(Term { node: Node::Has(Box::new(header)), kind: Kind::Bool, at: left.at })
            }
            _ => Err(mistake(
                at,
                "`in` needs a list, or a header's name before it and `request.headers` behind it".into(),
                "for example `response.code in [404, 503]` or `'x-debug' in request.headers`",
            )),
        }
    }

    fn unary(&mut self, depth: usize) -> Result<Term, Mistake> {
        let at = self.at();
        if depth >= DEEPEST {
            return Err(mistake(at, format!("more than {DEEPEST} levels"), "use fewer brackets"));
        }
        if self.takes("!") {
            let term = self.unary(depth + 1)?;
            if term.kind != Kind::Bool {
                let reason = format!("`!` before {}", term.kind.name());
                return Err(mistake(term.at, reason, "put brackets around the comparison: `!(a == b)`"));
            }
            return Ok(Term { node: Node::Not(Box::new(term.node)), kind: Kind::Bool, at });
        }
        if self.takes("-") {
            return match self.advance() {
                Some((_, Token::Int(number))) => Ok(Term { node: int(-number), kind: Kind::Int, at }),
                _ => Err(mistake(at, "`-` before something that is no number".into(), "do not calculate")),
            };
        }
        let mut term = self.primary(depth)?;
        while self.is_next(".") {
            term = self.method(term, depth)?;
        }
        Ok(term)
    }

    fn primary(&mut self, depth: usize) -> Result<Term, Mistake> {
        let at = self.at();
        if self.takes("(") {
            let term = self.either(depth + 1)?;
            self.expect(")")?;
            return Ok(Term { at, ..term });
        }
        if let Some(path) = self.path() {
            return self.named(at, &path);
        }
        let (node, kind) = match self.advance() {
            Some((_, Token::Int(number))) => (int(number), Kind::Int),
            Some((_, Token::Text(text))) => (Node::Value(Value::Text(Cow::Owned(text))), Kind::Text),
            other => return Err(unexpected(at, other.map(|(_, token)| token).as_ref())),
        };
        Ok(Term { node, kind, at })
    }

    /// Names with dots between them, up to a function or a method.
    fn path(&mut self) -> Option<String> {
        let Some((_, Token::Name(first))) = self.tokens.get(self.next) else { return None };
        let mut path = first.clone();
        self.next += 1;
        while let [(_, Token::Sign(".")), (_, Token::Name(name)), rest @ ..] =
            self.tokens.get(self.next..).unwrap_or_default()
        {
            if matches!(rest.first(), Some((_, Token::Sign("(")))) {
                break;
            }
            path.push('.');
            path.push_str(name);
            self.next += 2;
        }
        Some(path)
    }

    fn named(&mut self, at: usize, path: &str) -> Result<Term, Mistake> {
        if let Some((_, kind, attribute)) = ATTRIBUTES.iter().find(|(name, ..)| *name == path) {
            return Ok(Term { node: Node::Attribute(*attribute), kind: *kind, at });
        }
        let text = |node| Ok(Term { node, kind: Kind::Text, at });
        match path {
            "true" | "false" => {
                Ok(Term { node: Node::Value(Value::Bool(path == "true")), kind: Kind::Bool, at })
            }
            "request.useragent" => text(self.header(at, "user-agent")?),
            "request.referer" => text(self.header(at, "referer")?),
            "request.headers" if self.takes("[") => {
                let Some((_, Token::Text(name))) = self.advance() else {
                    let hint = "write `request.headers['x-name']`";
                    return Err(mistake(at, "a header is named by a text in quotes".into(), hint));
                };
                self.expect("]")?;
                text(self.header(at, &name)?)
            }
            "request.headers" => {
                let hint = "write `request.headers['x-name']` or `'x-name' in request.headers`";
                Err(mistake(at, "all headers at once cannot be looked at".into(), hint))
            }
            "has" if self.takes("(") => {
                let here = self.at();
                let Some(path) = self.path() else { return Err(self.unexpected()) };
                let term = self.named(here, &path)?;
                if !matches!(term.node, Node::Attribute(_) | Node::Header(_)) {
                    let hint = "for example `has(response.code)`";
                    return Err(mistake(here, "`has` asks for an attribute".into(), hint));
                }
                self.expect(")")?;
                Ok(Term { node: Node::Has(Box::new(term.node)), kind: Kind::Bool, at })
            }
            "duration" if self.takes("(") => {
                let here = self.at();
                let length = match self.advance() {
                    Some((_, Token::Text(text))) => duration(&text),
                    _ => None,
                };
                let Some(length) = length else {
                    let reason = "a duration is a text such as '250ms', '1.5s' or '1m30s'";
                    return Err(mistake(here, reason.into(), "write `duration('250ms')`"));
                };
                self.expect(")")?;
                Ok(Term { node: Node::Value(Value::Duration(length)), kind: Kind::Duration, at })
            }
            _ if self.is_next("(") => {
                let hint =
                    "functions are has() and duration(), of texts startsWith(), endsWith() and contains()";
                Err(mistake(at, format!("no function `{path}`"), hint))
            }
            _ => match path.strip_prefix("request.headers.") {
                Some(name) if !name.contains('.') => text(self.header(at, name)?),
                _ => Err(mistake(at, format!("no attribute `{path}`"), &attribute::hint(path))),
            },
        }
    }

    fn header(&mut self, at: usize, name: &str) -> Result<Node, Mistake> {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let hint = format!("write `{}`", name.to_ascii_lowercase());
            return Err(mistake(at, format!("the header `{name}`: names are lower case"), &hint));
        }
        let Ok(name) = name.parse::<HeaderName>() else {
            return Err(mistake(at, format!("`{name}` is no name of a header"), "for example 'x-name'"));
        };
        if is_secret(name.as_str()) {
            let reason =
                format!("the header `{name}` may hold secrets, which a filter would tell bit by bit");
            return Err(mistake(at, reason, "look at another one"));
        }
        if !self.headers.contains(&name) {
            if self.headers.len() >= HEADERS {
                let reason = format!("more than {HEADERS} headers");
                return Err(mistake(at, reason, "look at fewer"));
            }
            self.headers.push(name.clone());
        }
        Ok(Node::Header(name))
    }

    /// `.name(part)` behind a term.
    fn method(&mut self, term: Term, depth: usize) -> Result<Term, Mistake> {
        self.expect(".")?;
        let at = self.at();
        let Some((_, Token::Name(name))) = self.advance() else { return Err(self.unexpected()) };
        let test = match name.as_str() {
            "startsWith" => Test::StartsWith,
            "endsWith" => Test::EndsWith,
            "contains" => Test::Contains,
            _ => {
                let hint = "of texts there are startsWith(), endsWith() and contains()";
                let hint = if name == "matches" {
                    "regular expressions are not supported; of texts there are startsWith(), endsWith() and contains()"
                } else {
                    hint
                };
                return Err(mistake(at, format!("no function `{name}`"), hint));
            }
        };
        self.expect("(")?;
        let part = self.unary(depth + 1)?;
        self.expect(")")?;
        for side in [&term, &part] {
            if side.kind != Kind::Text {
                let reason = format!("`{name}` of {}", side.kind.name());
                return Err(mistake(side.at, reason, "both must be texts"));
            }
        }
        let node = Node::Text(test, Box::new(term.node), Box::new(part.node));
        Ok(Term { node, kind: Kind::Bool, at: term.at })
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn advance(&mut self) -> Option<(usize, Token)> {
        let token = self.tokens.get(self.next).cloned();
        self.next += 1;
        token
    }

    fn is_next(&self, sign: &str) -> bool {
        matches!(self.tokens.get(self.next), Some((_, Token::Sign(next))) if *next == sign)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let is_next = self.is_next(sign);
        self.next += usize::from(is_next);
        is_next
    }

    fn takes_name(&mut self, name: &str) -> bool {
        let is_next = matches!(self.tokens.get(self.next), Some((_, Token::Name(next))) if next == name);
        self.next += usize::from(is_next);
        is_next
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Mistake> {
        if self.takes(sign) {
            return Ok(());
        }
        let what = format!("`{sign}` is missing");
        Err(mistake(self.at(), what, "close the bracket, or look for a missing operator"))
    }

    fn unexpected(&self) -> Mistake {
        unexpected(self.at(), self.tokens.get(self.next).map(|(_, token)| token))
    }
}

/// One side of `&&` or `||`.
fn decided(side: Term, sign: &str) -> Result<Node, Mistake> {
    if side.kind == Kind::Bool {
        return Ok(side.node);
    }
    let reason = format!("`{sign}` takes what is true or false, and this is {}", side.kind.name());
    Err(mistake(side.at, reason, "compare it, for example `response.code >= 400`"))
}

fn int(number: i64) -> Node {
    Node::Value(Value::Int(number))
}

fn unexpected(at: usize, token: Option<&Token>) -> Mistake {
    let (reason, hint) = match token {
        None => ("the expression ends too early".to_owned(), "write what is compared"),
        Some(Token::Sign(sign @ ("?" | ":" | "+" | "-" | "*" | "/" | "%"))) => {
            (format!("`{sign}`: no choices, no sums"), "use == != < <= > >= && || ! in")
        }
        Some(Token::Sign(sign)) => {
            (format!("`{sign}` is not expected here"), "look at what stands before it")
        }
        Some(Token::Name(name)) => (format!("`{name}` is not expected here"), "add && or || before it"),
        Some(Token::Int(number)) => (format!("`{number}` is not expected here"), "add an operator before it"),
        Some(Token::Text(_)) => ("a text is not expected here".to_owned(), "add an operator before it"),
    };
    mistake(at, reason, hint)
}

/// CEL's form: decimal numbers with a unit, one behind the other. `None` for anything else, and above a year.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let (unit, behind) = unit.split_at(end);
        let unit = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    (!text.is_empty() && seconds <= 366.0 * 86_400.0).then(|| Duration::from_secs_f64(seconds))
}
