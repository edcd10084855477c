//! How answers are printed: for people, for programs, and for the tools that show findings beside a change.
//!
//! Standard output carries the answer and nothing else; hints and progress go to standard error. Colour is for terminals
//! only, and not where `NO_COLOR` is set.
use clap::ValueEnum;
use owo_colors::OwoColorize;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
};

/// Forms of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// The same as YAML
    Yaml,
}

/// Forms of a list of findings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Listing {
    /// For people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// The same as YAML
    Yaml,
    /// Workflow commands of GitHub Actions, which annotate the change
    Github,
    /// SARIF 2.1.0, for code scanning
    Sarif,
    /// JUnit XML, for test reports
    Junit,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The answer is negative.
    Error,
    /// Worth a look.
    Warning,
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something at a place in a file.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// Stable, e.g. `PST0102`.
    pub code: String,
    /// The code in a few words.
    pub title: String,
    /// As the user named it.
    pub file: String,
    /// From 1; 0 = unknown.
    pub line: usize,
    /// From 1; 0 = unknown.
    pub column: usize,
    /// What is wrong; the remedy on a line of its own.
    pub message: String,
}

/// One test of a report; `failure` is what went wrong.
#[derive(Clone, Debug)]
pub struct TestCase {
    /// What it belongs to.
    pub suite: String,
    /// Its name.
    pub name: String,
    /// As the user named it.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// `None` = passed.
    pub failure: Option<String>,
    /// Said beside a test that passed.
    pub remark: Option<String>,
}

/// Words in colour, or not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Paint(pub bool);

impl Paint {
    /// Colour when standard output is a terminal and `NO_COLOR` is unset.
    pub fn of_stdout() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()))
    }

    /// Good news.
    pub fn good(self, text: &str) -> String {
        if self.0 { text.green().to_string() } else { text.to_owned() }
    }

    /// Bad news.
    pub fn bad(self, text: &str) -> String {
        if self.0 { text.red().to_string() } else { text.to_owned() }
    }

    /// Worth a look.
    pub fn odd(self, text: &str) -> String {
        if self.0 { text.yellow().to_string() } else { text.to_owned() }
    }

    /// `allowed` or `denied`.
    pub fn verdict(self, allowed: bool) -> String {
        if allowed { self.good("allowed") } else { self.bad("denied") }
    }

    /// A tick or a cross.
    pub fn mark(self, is_good: bool) -> String {
        if is_good { self.good("✓") } else { self.bad("✗") }
    }
}

/// An answer in the form that was asked for. `table` is only called for people.
pub fn answer<T: Serialize>(output: Output, value: &T, table: impl FnOnce(Paint) -> String) -> String {
    match output {
        Output::Table => table(Paint::of_stdout()),
        Output::Json => to_json(value),
        Output::Yaml => to_yaml(value),
    }
}

/// Writes to standard output; a reader that has gone away (`| head`) is no error.
pub fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') && !text.is_empty() {
        let _ = out.write_all(b"\n");
    }
    let _ = out.flush();
}

/// Pretty JSON.
pub fn to_json<T: Serialize>(value: &T) -> String {
    // Texts, numbers and maps with text keys have no way to fail.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// YAML.
pub fn to_yaml<T: Serialize>(value: &T) -> String {
    serde_yaml::to_string(value).unwrap_or_default()
}

/// `::error file=…,line=…,title=…::message`, one a line.
pub fn github(findings: &[Finding]) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut out = String::new();
    for finding in findings {
        let mut place = format!("file={}", property(&finding.file));
        if finding.line > 0 {
            let _ = write!(place, ",line={}", finding.line);
        }
        if finding.column > 0 {
            let _ = write!(place, ",col={}", finding.column);
        }
        let title = property(&format!("{} {}", finding.code, finding.title));
        let _ =
            writeln!(out, "::{} {place},title={title}::{}", finding.level.as_str(), data(&finding.message));
    }
    out
}

/// One run of SARIF 2.1.0.
pub fn sarif(findings: &[Finding]) -> String {
    let mut rules: Vec<Value> = Vec::new();
    let mut known: Vec<&str> = Vec::new();
    for finding in findings {
        if !known.contains(&finding.code.as_str()) {
            known.push(&finding.code);
            let full = postern_config::problem::explain(&finding.code)
                .map_or(finding.title.as_str(), |c| c.explanation);
            rules.push(json!({
                "id": finding.code,
                "shortDescription": {"text": finding.title},
                "fullDescription": {"text": full},
            }));
        }
    }
    let results: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut physical = json!({"artifactLocation": {"uri": finding.file}});
            if finding.line > 0
                && let Some(place) = physical.as_object_mut()
            {
                let mut region = json!({"startLine": finding.line});
                if finding.column > 0
                    && let Some(region) = region.as_object_mut()
                {
                    region.insert("startColumn".into(), finding.column.into());
                }
                place.insert("region".into(), region);
            }
            json!({
                "ruleId": finding.code,
                "level": finding.level.as_str(),
                "message": {"text": finding.message},
                "locations": [{"physicalLocation": physical}],
            })
        })
        .collect();
    to_json(&json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "postern", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "results": results,
        }],
    }))
}

/// JUnit XML, one suite for each name of a suite in the order of their first test.
pub fn junit(tests: &[TestCase]) -> String {
    let failed = |tests: &[&TestCase]| tests.iter().filter(|test| test.failure.is_some()).count();
    let all: Vec<&TestCase> = tests.iter().collect();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ =
        writeln!(out, "<testsuites name=\"postern\" tests=\"{}\" failures=\"{}\">", all.len(), failed(&all));
    let mut suites: Vec<&str> = Vec::new();
    for test in tests {
        if !suites.contains(&test.suite.as_str()) {
            suites.push(&test.suite);
        }
    }
    for suite in suites {
        let of: Vec<&TestCase> = tests.iter().filter(|test| test.suite == suite).collect();
        let _ = writeln!(
            out,
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{}\">",
            xml(suite),
            of.len(),
            failed(&of)
        );
        for test in of {
            let _ = write!(
                out,
                "    <testcase classname=\"{}\" name=\"{}\" file=\"{}\" line=\"{}\"",
                xml(suite),
                xml(&test.name),
                xml(&test.file),
                test.line
            );
            let _ = match (&test.failure, &test.remark) {
                (Some(failure), _) => {
                    let first = failure.lines().next().unwrap_or_default();
                    writeln!(
                        out,
                        ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>",
                        xml(first),
                        xml(failure)
                    )
                }
                (None, Some(remark)) => {
                    writeln!(out, ">\n      <system-out>{}</system-out>\n    </testcase>", xml(remark))
                }
                (None, None) => writeln!(out, "/>"),
            };
        }
        out.push_str("  </testsuite>\n");
    }
    out.push_str("</testsuites>\n");
    out
}

/// Text inside XML 1.0, which has no control characters.
fn xml(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Columns as wide as their longest entry, two spaces between; the last one is not padded.
pub fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| visible(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', (width + 2).saturating_sub(visible(cell))));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Characters that take room: colours do not.
fn visible(cell: &str) -> usize {
    let (mut count, mut in_colour) = (0, false);
    for c in cell.chars() {
        match c {
            '\u{1b}' => in_colour = true,
            'm' if in_colour => in_colour = false,
            _ if in_colour => {}
            _ => count += 1,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn finding() -> Finding {
        Finding {
            level: Level::Error,
            code: "PST0102".into(),
            title: "unknown field".into(),
            file: "a,b:c.yaml".into(),
            line: 3,
            column: 0,
            message: "100 % wrong\nhelp: <mend> it".into(),
        }
    }

    #[test]
    fn a_workflow_command_stays_one_line() {
        let line = "::error file=a%2Cb%3Ac.yaml,line=3,title=PST0102 unknown field::100 %25 wrong%0Ahelp: <mend> it\n";
        assert_eq!(github(&[finding()]), line);
    }

    #[test]
    fn sarif_names_rule_and_place() {
        let value: Value = serde_json::from_str(&sarif(&[finding(), finding()])).unwrap();
        let run = &value["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"].as_array().unwrap().len(), 1);
        let place = &run["results"][1]["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "a,b:c.yaml");
        assert_eq!(place["region"], json!({"startLine": 3}));
    }

    #[test]
    fn junit_counts_and_escapes() {
        let case = |name: &str, failure: Option<&str>| TestCase {
            suite: "s".into(),
            name: name.into(),
            file: "f".into(),
            line: 1,
            failure: failure.map(Into::into),
            remark: None,
        };
        let text = junit(&[case("a<b", Some("\"x\" & \u{1b}\nmore")), case("c", None)]);
        assert!(text.contains("tests=\"2\" failures=\"1\""), "{text}");
        assert!(text.contains("name=\"a&lt;b\""), "{text}");
        assert!(text.contains("message=\"&quot;x&quot; &amp; \u{fffd}\""), "{text}");
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let paint = Paint(true);
        let text = columns(&[vec![paint.good("ok"), "x".into()], vec!["long".into(), "y".into()]]);
        assert!(text.lines().all(|line| line.ends_with('x') || line.ends_with('y')), "{text}");
        assert!(text.contains("    x"), "{text}");
    }
}
