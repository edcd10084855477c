//! Where findings about one file are collected, with their source lines; bounded.
use super::parse::Place;
use crate::problem::{self, Problem, Severity};

/// Findings of one file that are worth printing.
const MAX_PROBLEMS: usize = 200;

/// Collects the problems of one file.
#[derive(Debug)]
pub struct Report<'f> {
    file: &'f str,
    lines: Vec<&'f str>,
    problems: Vec<Problem>,
    errors: usize,
    dropped: usize,
    dropped_error: bool,
}

impl<'f> Report<'f> {
    /// For a file and its text.
    pub fn new(file: &'f str, text: &'f str) -> Self {
        let lines = text.lines().collect();
        Self { file, lines, problems: Vec::new(), errors: 0, dropped: 0, dropped_error: false }
    }

    /// The file as the user named it.
    pub fn file(&self) -> &'f str {
        self.file
    }

    /// Errors so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// No more findings are kept, so that no more hints need to be looked for.
    pub fn is_full(&self) -> bool {
        self.problems.len() >= MAX_PROBLEMS
    }

    /// Adds an error.
    pub fn error(
        &mut self,
        code: &'static str,
        at: Place,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.errors += 1;
        self.add(Severity::Error, code, at, reason.into(), hint.into());
    }

    /// Adds a warning.
    pub fn warning(
        &mut self,
        code: &'static str,
        at: Place,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Warning, code, at, reason.into(), hint.into());
    }

    /// The text of a line, cut where no person reads on.
    pub fn source_line(&self, line: usize) -> Option<String> {
        let text = self.lines.get(line.checked_sub(1)?)?;
        Some(text.chars().take(4096).collect())
    }

    fn add(&mut self, severity: Severity, code: &'static str, at: Place, reason: String, hint: String) {
        if self.problems.len() >= MAX_PROBLEMS {
            self.dropped += 1;
            self.dropped_error |= severity == Severity::Error;
            return;
        }
        let Place { line, column } = at;
        let source_line = self.source_line(line);
        self.problems.push(Problem {
            severity,
            code,
            file: self.file.to_owned(),
            line,
            column,
            reason,
            hint,
            source_line,
        });
    }

    /// All findings; says so when there were too many to keep.
    pub fn finish(mut self) -> Vec<Problem> {
        if self.dropped > 0 {
            self.problems.push(Problem {
                severity: if self.dropped_error { Severity::Error } else { Severity::Warning },
                code: problem::TOO_LARGE,
                file: self.file.to_owned(),
                line: self.lines.len(),
                column: 0,
                reason: format!("{} more findings in this file are not shown", self.dropped),
                hint: "repair the ones above first".into(),
                source_line: None,
            });
        }
        self.problems
    }
}
