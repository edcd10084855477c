//! What is wrong with a document, where, why, and what to do; and the one table of codes.
use std::fmt;

mod codes;
pub use codes::*;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a look; the documents are used.
    Warning,
    /// The folder is rejected.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding. `Display` prints it as rustc would: message, `--> file:line:column`, the line, carets, `help:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Stable code, e.g. `PST0101`.
    pub code: &'static str,
    /// File as the user named it.
    pub file: String,
    /// 1-based; 0 when unknown.
    pub line: usize,
    /// 1-based, in characters; 0 when unknown.
    pub column: usize,
    /// What is wrong and why, one sentence.
    pub reason: String,
    /// What to do, one sentence.
    pub hint: String,
    /// The source line, when there is one.
    pub source_line: Option<String>,
}

/// Longest excerpt of a source line that is printed, in characters.
const EXCERPT: usize = 160;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}", self.severity, self.code, printable(&self.reason))?;
        let gutter = if self.line == 0 { 1 } else { self.line.to_string().len() };
        if !self.file.is_empty() {
            write!(f, "\n{:gutter$}--> {}", "", printable(&self.file))?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
                if self.column > 0 {
                    write!(f, ":{}", self.column)?;
                }
            }
        }
        if let Some(source) = self.source_line.as_deref().filter(|_| self.line > 0) {
            let skip = if self.column > EXCERPT - 20 { self.column - 40 } else { 0 };
            let excerpt: String = printable(source).chars().skip(skip).take(EXCERPT).collect();
            write!(f, "\n{:gutter$} |\n{} | {}", "", self.line, excerpt.trim_end())?;
            if self.column > 0 {
                let before = self.column - 1 - skip;
                let carets = token_width(&excerpt, before);
                write!(f, "\n{:gutter$} | {:before$}{}", "", "", "^".repeat(carets))?;
            }
        }
        if !self.hint.is_empty() {
            write!(f, "\n{:gutter$} = help: {}", "", printable(&self.hint))?;
        }
        Ok(())
    }
}

/// Control characters could drive the reader's terminal; tabs would shift the carets.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Width in characters of the YAML token that begins after `before` characters; at least one.
fn token_width(line: &str, before: usize) -> usize {
    let rest: Vec<char> = line.chars().skip(before).collect();
    let Some(&first) = rest.first() else { return 1 };
    if first == '"' || first == '\'' {
        let close = rest.iter().skip(1).position(|&c| c == first);
        return close.map_or(rest.len(), |at| at + 2);
    }
    let mut width = 0;
    for (i, &c) in rest.iter().enumerate() {
        let next = rest.get(i + 1).copied().unwrap_or(' ');
        let ends = match c {
            ',' | ']' | '}' | '[' | '{' => true,
            ':' => next == ' ',
            ' ' => next == ' ' || next == '#' || first == '-',
            _ => false,
        };
        if ends {
            break;
        }
        width = i + 1;
    }
    width.max(1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        assert!(CODES.windows(2).all(|w| w[0].code < w[1].code));
        assert_eq!(explain("pst0102").unwrap().title, "unknown field");
    }

    #[test]
    fn a_problem_reads_like_a_compiler_error() {
        let problem = Problem {
            severity: Severity::Error,
            code: UNKNOWN_FIELD,
            file: "payments.yaml".into(),
            line: 14,
            column: 11,
            reason: "unknown field `princpals` in spec.rules[0].from[0].source".into(),
            hint: "did you mean `principals`?".into(),
            source_line: Some("          princpals: [\"a\"]".into()),
        };
        assert_eq!(
            problem.to_string(),
            "error[PST0102]: unknown field `princpals` in spec.rules[0].from[0].source\n  --> payments.yaml:14:11\n   |\n14 |           princpals: [\"a\"]\n   |           ^^^^^^^^^\n   = help: did you mean `principals`?"
        );
    }

    #[test]
    fn control_characters_of_a_file_do_not_reach_the_terminal() {
        let problem = Problem {
            severity: Severity::Warning,
            code: SYNTAX,
            file: "a\u{1b}[2J.yaml".into(),
            line: 1,
            column: 5000,
            reason: "\u{7}".into(),
            hint: String::new(),
            source_line: Some("\u{1b}".repeat(6000)),
        };
        assert!(!problem.to_string().contains(['\u{1b}', '\u{7}']));
    }
}
