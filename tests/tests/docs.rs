//! The documents tell the truth: links lead somewhere, functions that are named exist, and every command block is either
//! run here or listed with the reason why not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::tree::{self, Source};
use std::path::Path;

/// First words of commands that are not ours. Everything else in a block marked `sh` must be checked below.
const FOREIGN: &[(&str, &str)] = &[
    ("git", "clones this repository"),
    ("cd", "enters it"),
    ("curl", "calls a running mesh; the demo makes the same calls"),
    ("openssl", "looks at a running mesh; tests/tests/peers.rs does the same"),
    ("cargo", "installs a tool or runs one test"),
    ("rustup", "installs a toolchain"),
    ("sudo", "changes the machine"),
    ("sysctl", "changes the machine"),
    ("nft", "looks at the machine"),
    (".ci/run", "runs all the rest"),
    ("jq", "filters the access log"),
    ("export", "sets a variable for the command after it"),
];

fn documents() -> Vec<Source> {
    tree::files(&[".md"])
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let mut broken = Vec::new();
    for document in documents() {
        let folder = Path::new(&document.path).parent().unwrap();
        for (_, target) in links(&document.text) {
            if target.contains("://") || target.starts_with('#') || target.starts_with("mailto:") {
                continue;
            }
            let file = target.split('#').next().unwrap();
            if !tree::root().join(folder).join(file).exists() {
                broken.push(format!("{} links to {target}, which is not there", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_function_that_a_link_names_is_in_the_file_it_leads_to() {
    let mut broken = Vec::new();
    for document in documents() {
        let folder = Path::new(&document.path).parent().unwrap();
        for (text, target) in links(&document.text) {
            if !target.ends_with(".rs") || !text.starts_with('`') {
                continue;
            }
            let name = text.trim_matches('`').rsplit("::").next().unwrap().trim_end_matches("()").to_owned();
            let Ok(code) = std::fs::read_to_string(tree::root().join(folder).join(&target)) else { continue };
            let is_there = ["fn", "struct", "enum", "trait", "type", "const", "static", "mod"]
                .iter()
                .any(|kind| code.contains(&format!("{kind} {name}")));
            if !is_there && !target.ends_with(&format!("{name}.rs")) && !target.contains(&format!("{name}/"))
            {
                broken.push(format!("{}: {text} is not in {target}", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_command_of_a_document_exists() {
    let makefile = std::fs::read_to_string(tree::root().join("Makefile")).unwrap();
    let mut broken = Vec::new();
    for document in documents() {
        for command in commands(&document.text) {
            let mut words = command.split_whitespace().filter(|w| !is_assignment(w));
            let known = match words.next() {
                None => true,
                Some("make") => words
                    .filter(|w| !is_assignment(w))
                    .all(|target| makefile.lines().any(|l| l.starts_with(&format!("{target}:")))),
                Some("postern" | "./target/debug/postern" | "target/debug/postern") => {
                    is_subcommand(&command)
                }
                Some(other) => FOREIGN.iter().any(|(name, _)| *name == other),
            };
            if !known {
                broken.push(format!("{}: `{command}` is neither checked nor listed", document.path));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_script_of_a_document_is_run() {
    let run = std::fs::read_to_string(tree::root().join("tests/tests/operations.rs")).unwrap();
    for document in documents() {
        for name in document.text.lines().filter_map(|line| script(line.trim())) {
            let is_run = document.path == "docs/operations.md" && run.contains(&format!("\"{name}\""));
            assert!(is_run, "{}: nobody runs the script {name}", document.path);
        }
    }
}

#[test]
fn every_manifest_that_a_document_names_is_there() {
    let mut broken = Vec::new();
    for document in documents() {
        for command in commands(&document.text) {
            for word in command.split_whitespace().filter(|w| w.starts_with("manifests/")) {
                if !tree::root().join(word).exists() {
                    broken.push(format!("{} names {word}", document.path));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// The subcommand, and each long flag, as the sources of the program spell them.
fn is_subcommand(command: &str) -> bool {
    let sources: String = tree::rust()
        .into_iter()
        .filter(|f| {
            !f.is_test()
                && (f.path.starts_with("cli/")
                    || f.path.ends_with("bootstrap.rs")
                    || f.path.starts_with("proxy/src/bootstrap/")
                    || f.path.ends_with("run.rs"))
        })
        .map(|f| f.text)
        .collect();
    let mut words =
        command.split_whitespace().skip(1).take_while(|w| !["|", "#", "--", "&"].contains(w)).peekable();
    let Some(subcommand) = words.peek().filter(|w| !w.starts_with('-')) else { return true };
    let variant: String = subcommand.split('-').map(|w| w[..1].to_uppercase() + &w[1..]).collect();
    let is_known = [" {", "(", ","].iter().any(|after| sources.contains(&format!("    {variant}{after}")));
    is_known
        && words.filter_map(|w| w.strip_prefix("--")).all(|flag| {
            let name = flag.split('=').next().unwrap();
            let field = format!("{}:", name.replace('-', "_"));
            sources.contains(&format!(" {field}")) || sources.contains(&format!("long = \"{name}\""))
        })
}

#[test]
fn the_error_page_is_what_the_proxy_knows() {
    let page = error_page();
    let path = tree::root().join("docs/errors.md");
    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == page,
        "docs/errors.md is not what the table in proxy/src/error.rs says; write it again with:\n  \
         POSTERN_WRITE_DOCS=1 cargo test -p postern-tests --test docs"
    );
}

/// Between its two marks, so that the page has room for the rest of what can be observed.
#[test]
fn the_page_of_what_is_observed_has_every_field_of_the_access_log() {
    const MARKS: [&str; 2] =
        ["<!-- access log: fields, printed by a test -->\n", "<!-- access log: end of fields -->\n"];
    let path = tree::root().join("docs/observability.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(MARKS[0]).expect("the first mark");
    let (written, after) = rest.split_once(MARKS[1]).expect("the second mark");
    let fields = access_log_fields();
    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{}{fields}{}{after}", MARKS[0], MARKS[1])).unwrap();
        return;
    }
    assert!(
        written == fields,
        "docs/observability.md is not what proxy/src/telemetry/access_log/fields.rs says; write it again with:\n  \
         POSTERN_WRITE_DOCS=1 cargo test -p postern-tests --test docs"
    );
}

fn access_log_fields() -> String {
    use postern_proxy::telemetry::access_log::fields;
    let mut text = String::from("\n| `json` | what |\n|---|---|\n");
    for (name, what) in fields::JSON {
        text.push_str(&format!("| `{name}` | {what} |\n"));
    }
    text.push_str(&format!("| `{}NAME` | each header that was named |\n", fields::HEADER_PREFIX));
    text.push_str("\n| `istio-json` | operator in `istio-text` | what |\n|---|---|---|\n");
    for (key, operator, what) in fields::ISTIO {
        text.push_str(&format!("| `{key}` | `{operator}` | {} |\n", what.replace('|', "\\|")));
    }
    text.push('\n');
    text
}

fn error_page() -> String {
    let mut page = String::from(
        "# Errors of traffic\n\n\
         Printed from the table in [`table`](../proxy/src/error.rs) by a test; do not edit. The code is the `code` of a\n\
         `problem+json` answer, the `reason` label of metrics, and the anchor here. The flag is Envoy's, in the access log.\n\
         A connection that cannot be answered in its own language is reset instead.\n",
    );
    for row in postern_proxy::error::table() {
        let retry = if row.retryable { "yes" } else { "no" };
        page.push_str(&format!(
            "\n## {}\n\n{}\n\n| whose fault | HTTP | gRPC | flag | safe to try again | the caller reads |\n\
             |---|---|---|---|---|---|\n| {:?} | {} | {} | `{}` | {retry} | {} |\n",
            row.code, row.help, row.fault, row.http_status, row.grpc_status, row.flag, row.public_text
        ));
    }
    // The findings of documents follow on the same page.
    page.push('\n');
    page.push_str(&postern_config::problem::page());
    page
}

fn is_assignment(word: &str) -> bool {
    word.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
}

/// Every line of every block marked `sh`, without comments and prompts; continued lines joined.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut inside, mut is_run, mut joined) = (false, false, String::new());
    for line in text.lines() {
        let trimmed = line.trim();
        is_run |= script(trimmed).is_some();
        if let Some(language) = trimmed.strip_prefix("```") {
            inside = !inside && language == "sh" && !std::mem::take(&mut is_run);
            continue;
        }
        if !inside || trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        joined.push_str(trimmed.trim_end_matches('\\'));
        if trimmed.ends_with('\\') {
            joined.push(' ');
        } else {
            let line = std::mem::take(&mut joined);
            let line = line.split(" #").next().unwrap();
            found.extend(line.split("&&").map(|part| part.trim().to_owned()));
        }
    }
    found
}

/// `<!-- script: NAME -->`: the next block is run by `operations.rs`.
fn script(line: &str) -> Option<&str> {
    line.strip_prefix("<!-- script: ")?.strip_suffix(" -->")
}

/// `[text](target)` outside code blocks.
fn links(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut inside_code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside_code = !inside_code;
        }
        if inside_code {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target: String = line[at + 2..].chars().take_while(|c| *c != ')').collect();
            if let Some(open) = line[..at].rfind('[') {
                found.push((line[open + 1..at].to_owned(), target));
            }
        }
    }
    found
}
