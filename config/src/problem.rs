//! What is wrong with a document, where, why, and what to do.
use std::fmt;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity { /** worth a look */ Warning, /** the folder is rejected */ Error }
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
    /// 1-based; 0 when unknown.
    pub column: usize,
    /// What is wrong and why, one sentence.
    pub reason: String,
    /// What to do, one sentence.
    pub hint: String,
    /// The source line, when there is one.
    pub source_line: Option<String>,
}
impl fmt::Display for Problem { fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}", self.reason) } }
