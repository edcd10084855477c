//! The table of codes and the page that is printed from it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use postern_config::{
    Severity,
    documents::{self, SourceFile},
    problem::{self, CODES, Levels},
    validate,
};
use std::{fs, path::Path};

/// Findings that no file can have: who makes them.
const ELSEWHERE: &[(&str, &str)] =
    &[(problem::NOT_SELECTED, "the compiler, about what a control plane sent")];

#[test]
fn each_example_has_the_finding_that_it_stands_under() {
    for code in CODES {
        if ELSEWHERE.iter().any(|(other, _)| *other == code.code) {
            continue;
        }
        let file = SourceFile { name: "example.yaml".into(), text: code.example.into() };
        let (documents, mut problems) = documents::read(&[file]);
        problems.extend(validate::runnable(&documents));
        let shown: String = problems.iter().map(|p| format!("{p}\n\n")).collect();
        let found: Vec<_> = problems.iter().filter(|p| p.code == code.code).collect();
        assert!(!found.is_empty(), "{} is not found in\n{}\nbut\n{shown}", code.code, code.example);
        for problem in found {
            assert!(!problem.reason.is_empty() && !problem.hint.is_empty(), "{problem}");
            assert!(problem.line > 0 && problem.column > 0, "no place: {problem}");
            assert!(problem.source_line.is_some(), "no line: {problem}");
            match code.levels {
                Levels::Error => assert_eq!(problem.severity, Severity::Error, "{problem}"),
                Levels::Warning => assert_eq!(problem.severity, Severity::Warning, "{problem}"),
                Levels::Both => {}
            }
        }
    }
}

#[test]
fn an_example_of_a_warning_has_no_errors_so_that_it_can_be_tried() {
    for code in CODES.iter().filter(|code| code.levels == Levels::Warning) {
        let file = SourceFile { name: "example.yaml".into(), text: code.example.into() };
        let (_, problems) = documents::read(&[file]);
        let error = problems.iter().find(|p| p.severity == Severity::Error);
        assert!(error.is_none(), "{}: {}", code.code, error.unwrap());
    }
}

#[test]
fn every_code_says_what_why_and_what_to_do() {
    assert!(CODES.windows(2).all(|pair| pair[0].code < pair[1].code), "unique and in order");
    for code in CODES {
        assert!(code.title.len() < 70 && !code.title.ends_with('.'), "{code:?}");
        assert!(code.explanation.ends_with('.') && code.remedy.ends_with('.'), "{code:?}");
    }
    assert_eq!(problem::explain("pst0102").unwrap().title, "unknown field");
}

#[test]
fn every_warning_can_be_suppressed_on_its_document_and_no_error_can() {
    for code in CODES.iter().filter(|code| code.levels != Levels::Both) {
        // On the last document, which is the one with the finding in all examples but these.
        let elsewhere = [problem::NO_SERVICE_ACCOUNT, problem::BAD_SUPPRESSION, problem::NO_COMMAND];
        if elsewhere.contains(&code.code) || !code.example.contains("metadata: {name: example") {
            continue;
        }
        let annotation = format!("annotations: {{postern.dev/suppress: \"{}\"}}", code.code);
        let text = code
            .example
            .replace("metadata: {name: example", &format!("metadata: {{{annotation}, name: example"));
        let (_, problems) = documents::read(&[SourceFile { name: "t.yaml".into(), text }]);
        let found = problems.iter().any(|p| p.code == code.code);
        assert_eq!(found, code.levels == Levels::Error, "{}: {problems:?}", code.code);
        if code.levels == Levels::Error && !matches!(code.code, "PST0101" | "PST0107" | "PST0110" | "PST0201")
        {
            assert!(
                problems
                    .iter()
                    .any(|p| p.code == problem::BAD_SUPPRESSION && p.reason.contains("cannot be suppressed")),
                "{}: {problems:?}",
                code.code
            );
        }
    }
}

#[test]
fn the_page_of_codes_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/errors.md");
    let written = fs::read_to_string(&path).unwrap_or_default();
    let page = problem::page();
    let head = page.lines().next().unwrap();
    // Above stands the page of traffic, which its own test (tests/tests/docs.rs) prints.
    let above = written.split(&format!("{head}\n")).next().unwrap().trim_end();
    let wanted = format!("{above}\n\n{page}");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).unwrap();
        return;
    }
    assert!(
        written == wanted,
        "docs/errors.md is not what config/src/problem/codes.rs says; write it again with:\n  \
         UPDATE_DOCS=1 cargo test -p postern-config --test codes"
    );
}
