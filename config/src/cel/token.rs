//! Text to tokens, each with its place.

use super::Mistake;

/// The smallest parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Int(i64),
    Text(String),
    /// An operator or a bracket.
    Sign(&'static str),
}

/// Of two characters before those of one.
const SIGNS: [&str; 22] = [
    "&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ",", ".", "-", "+", "*", "/", "%",
    "?", ":",
];

/// All tokens with the number of characters before each.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Mistake> {
    let mut rest = text.chars().enumerate().peekable();
    let mut all = Vec::new();
    while let Some((at, first)) = rest.next() {
        let token = if first.is_ascii_whitespace() {
            continue;
        } else if first == '\'' || first == '"' {
            Token::Text(quoted(at, first, &mut rest)?)
        } else if first.is_ascii_digit() {
            let mut digits = String::from(first);
            while let Some((_, next)) = rest.next_if(|(_, next)| next.is_ascii_alphanumeric() || *next == '.')
            {
                digits.push(next);
            }
            match digits.parse() {
                Ok(number) => Token::Int(number),
                Err(_) => {
                    let reason = format!("`{digits}` is no whole decimal number");
                    return Err(mistake(at, reason, "write digits alone, such as 400"));
                }
            }
        } else if first.is_ascii_alphabetic() || first == '_' {
            let mut name = String::from(first);
            while let Some((_, next)) = rest.next_if(|(_, next)| next.is_ascii_alphanumeric() || *next == '_')
            {
                name.push(next);
            }
            if rest.peek().is_some_and(|(_, next)| matches!(next, '\'' | '"')) {
                let reason = format!("`{name}` before a quote: raw texts and bytes are not supported");
                return Err(mistake(at, reason, "write a text in quotes alone"));
            }
            Token::Name(name)
        } else {
            let second = rest.peek().map(|(_, next)| *next);
            let is = |sign: &&&str| {
                let mut of = sign.chars();
                of.next() == Some(first) && of.next().is_none_or(|of| Some(of) == second)
            };
            let Some(sign) = SIGNS.iter().find(is) else {
                let hint = match first {
                    '&' => "write `&&`",
                    '|' => "write `||`",
                    '=' => "write `==`",
                    _ => "operators are == != < <= > >= && || ! in",
                };
                return Err(mistake(at, format!("`{first}` has no meaning here"), hint));
            };
            if sign.len() == 2 {
                rest.next();
            }
            Token::Sign(sign)
        };
        all.push((at, token));
    }
    Ok(all)
}

fn quoted(at: usize, quote: char, rest: &mut impl Iterator<Item = (usize, char)>) -> Result<String, Mistake> {
    let mut text = String::new();
    while let Some((here, next)) = rest.next() {
        match next {
            '\\' => match rest.next().map(|(_, escaped)| escaped) {
                Some(same @ ('\\' | '\'' | '"' | '?' | '`')) => text.push(same),
                Some('n') => text.push('\n'),
                Some('r') => text.push('\r'),
                Some('t') => text.push('\t'),
                _ => {
                    let hint = "write `\\\\` for a backslash; beside it there are \\' \\\" \\n \\r \\t";
                    return Err(mistake(here, "this escape is not supported".into(), hint));
                }
            },
            next if next == quote => return Ok(text),
            next => text.push(next),
        }
    }
    Err(mistake(at, "the text does not end".into(), "add the quote at its end"))
}

pub(super) fn mistake(at: usize, reason: String, hint: &str) -> Mistake {
    Mistake { at, reason, hint: hint.to_owned() }
}
