//! Where findings about one file are collected, with their source lines; bounded.
use super::parse::Place;
use crate::problem::{self, Problem, Severity};
use std::sync::Arc;

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
    suppressed: Vec<&'static str>,
    last_line: Option<(usize, Arc<str>)>,
}

impl<'f> Report<'f> {
    /// For a file and its text.
    pub fn new(file: &'f str, text: &'f str) -> Self {
        let lines = text.lines().collect();
        Self {
            file,
            lines,
            problems: Vec::new(),
            errors: 0,
            dropped: 0,
            dropped_error: false,
            suppressed: Vec::new(),
            last_line: None,
        }
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

    /// From now on warnings of these codes are not wanted; returns those that were not wanted before.
    pub fn suppress(&mut self, codes: Vec<&'static str>) -> Vec<&'static str> {
        std::mem::replace(&mut self.suppressed, codes)
    }

    /// The codes whose warnings are not wanted now.
    pub fn suppressed(&self) -> &[&'static str] {
        &self.suppressed
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
        if !self.suppressed.contains(&code) {
            self.add(Severity::Warning, code, at, reason.into(), hint.into());
        }
    }

    /// The text of a line, cut where no person reads on.
    pub fn source_line(&self, line: usize) -> Option<String> {
        let text = self.lines.get(line.checked_sub(1)?)?;
        Some(text.chars().take(4096).collect())
    }

    /// As [`Report::source_line`], shared by those who ask for the same line one after the other: a document on one
    /// line has many places and one text.
    pub fn shared_line(&mut self, line: usize) -> Option<Arc<str>> {
        if self.last_line.as_ref().is_none_or(|(last, _)| *last != line) {
            self.last_line = Some((line, self.source_line(line)?.into()));
        }
        self.last_line.as_ref().map(|(_, text)| Arc::clone(text))
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
