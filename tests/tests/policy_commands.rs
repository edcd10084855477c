//! The questions about policy as a stranger types them: the real program on the example of the tour, every form of the
//! answer with its exit code. `POSTERN_GOLDEN=write` writes the expected outputs anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{tree, up};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

const EXAMPLE: &str = "manifests/examples/payments";
const FLOWS: &str = "tests/tests/policy_commands/flows.jsonl";

struct Said {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program in the root of the repository, `{example}` and `{flows}` standing for the files.
fn run(line: &str) -> Said {
    run_with(line, "")
}

fn run_with(line: &str, input: &str) -> Said {
    let arguments =
        line.split_whitespace().map(|word| word.replace("{example}", EXAMPLE).replace("{flows}", FLOWS));
    let mut child = Command::new(up::built())
        .args(arguments)
        .current_dir(tree::root())
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    Said {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

fn golden(name: &str, line: &str) {
    let said = run(line);
    let mut text =
        format!("$ postern {}\n{}", line.replace("{example}", EXAMPLE).replace("{flows}", FLOWS), said.out);
    if !said.err.is_empty() {
        text += &format!("--- standard error\n{}", said.err);
    }
    text += &format!("--- exit code {}\n", said.code);
    let path = tree::root().join("tests/tests/policy_commands").join(name).with_extension("txt");
    if std::env::var_os("POSTERN_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{}", path.display());
}

#[test]
fn answers_for_people_stay_as_they_are_documented() {
    for (name, line) in [
        ("check", "check {example}"),
        ("why-allowed", "why checkout/checkout-api payments/payments-api POST /v1/charges -f {example}"),
        ("why-denied", "why reports payments-api POST /v1/charges -f {example}"),
        ("why-explained", "why reports payments-api POST /v1/charges -f {example} --explain"),
        ("why-plaintext", "why outside/legacy payments-api POST /v1/charges -f {example}"),
        ("why-tcp", "why checkout-api payments-api --tcp -f {example} --explain"),
        ("why-json", "why reports payments-api POST /v1/charges -f {example} -o json"),
        ("why-nobody", "why nobody payments-api GET / -f {example}"),
        ("test", "test {example}"),
        ("test-junit", "test {example} -o junit"),
        ("impact", "impact -f tests/tests/policy_commands/tighter --against {example} --flows {flows}"),
        ("generate", "generate --flows {flows} -f {example}"),
        ("generate-without-folder", "generate --flows {flows}"),
    ] {
        golden(name, line);
    }
}

#[test]
fn the_exit_code_is_the_same_in_every_form_of_the_answer() {
    let answers = ["table", "json", "yaml"];
    let listings = ["table", "json", "yaml", "github", "sarif", "junit"];
    let bad = "tests/tests/policy_commands/wrong";
    let impact = "impact --flows {flows} --against {example} -f";
    for (line, forms, code) in [
        ("why checkout-api payments-api POST /v1/charges -f {example}", &answers[..], 0),
        ("why reports payments-api POST /v1/charges -f {example}", &answers, 2),
        ("why nobody payments-api GET / -f {example}", &answers, 1),
        ("why reports payments-api POST -f {example}", &answers, 64),
        ("why reports payments-api GET / -f /no/such/folder", &answers, 1),
        (&format!("{impact} {{example}}"), &answers, 0),
        (&format!("{impact} tests/tests/policy_commands/tighter"), &answers, 2),
        (&format!("{impact} {{example}} --flows /no/such/file"), &answers, 64),
        ("check {example}", &listings, 0),
        (&format!("check {bad}"), &listings, 2),
        ("check /no/such/folder", &listings, 1),
        ("test {example}", &listings, 0),
        ("test tests/tests/policy_commands/failing", &listings, 2),
        (&format!("test {bad}"), &listings, 1),
        ("test tests/tests/policy_commands/tighter", &listings, 1),
        ("test {example} --coverage-threshold 101", &listings, 64),
    ] {
        for form in forms {
            let said = run(&format!("{line} -o {form}"));
            assert_eq!(said.code, code, "{line} -o {form}\n{}{}", said.out, said.err);
            assert!(!said.out.contains('\u{1b}'), "colour where there is no terminal: {line}");
            if code == 1 || code == 64 {
                assert!(said.out.is_empty() && !said.err.is_empty(), "{line} -o {form}");
            } else {
                is_in_form(form, &said.out, line);
            }
        }
        let said = run(&format!("{line} -o nonsense"));
        assert_eq!(said.code, 64, "{line}");
    }
}

fn is_in_form(form: &str, text: &str, line: &str) {
    match form {
        "json" => drop(serde_json::from_str::<serde_json::Value>(text).unwrap()),
        "sarif" => {
            let value: serde_json::Value = serde_json::from_str(text).unwrap();
            assert_eq!(value["version"], "2.1.0", "{line}");
            assert!(value["runs"][0]["results"].is_array(), "{line}");
        }
        "yaml" => assert!(serde_yaml::from_str::<serde_yaml::Value>(text).unwrap().is_mapping(), "{line}"),
        "github" => {
            assert!(text.lines().all(|l| l.starts_with("::error ") || l.starts_with("::warning ")), "{line}")
        }
        "junit" => {
            let (opened, closed) = (text.matches("<testcase").count(), text.matches("</testcase>").count());
            assert!(text.starts_with("<?xml") && text.ends_with("</testsuites>\n"), "{line}");
            assert_eq!(opened, closed + text.matches("\"/>").count(), "{line}: {text}");
        }
        _ => assert!(!text.is_empty(), "{line}"),
    }
}

#[test]
fn a_wrong_row_of_a_test_is_shown_with_its_line_and_the_nearest_field() {
    let said = run("test tests/tests/policy_commands/wrong");
    for part in ["unknown field `too`", "wrong_test.yaml:7:5", "did you mean `to`?", "did you mean `allow`?"]
    {
        assert!(said.err.contains(part), "{part}: {}", said.err);
    }
}

#[test]
fn a_failed_test_is_shown_with_the_closest_rule_and_the_rules_without_a_test_are_listed() {
    let said = run("test tests/tests/policy_commands/failing --coverage-threshold 100");
    for part in [
        "✗ reports may charge",
        "expected allow, got deny",
        "Closest: payments/charges rule 0",
        "rule coverage 0 %",
        "the threshold is 100 %",
    ] {
        assert!(said.out.contains(part), "{part}: {}", said.out);
    }
    let said = run("test tests/tests/policy_commands/failing -o github --coverage-threshold 100");
    assert!(
        said.out.contains("::error file=tests/tests/policy_commands/failing/case_test.yaml,line="),
        "{}",
        said.out
    );
    assert!(said.out.contains("no test matches payments/charges rule 0"), "{}", said.out);
}

#[test]
fn flows_are_read_from_standard_input_as_from_a_file() {
    let log = std::fs::read_to_string(tree::root().join(FLOWS)).unwrap();
    for line in ["generate", "impact -f {example} --against {example}"] {
        let (piped, named) =
            (run_with(&format!("{line} --flows -"), &log), run(&format!("{line} --flows {{flows}}")));
        assert_eq!((piped.code, piped.out), (named.code, named.out), "{line}");
    }
    assert_eq!(run_with("generate --flows -", "").code, 1, "nothing to write is no success");
}

#[test]
fn what_is_generated_is_accepted_and_denies_nothing_that_was_observed_as_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let copies = [("old", ""), ("tried", "dry"), ("enforced", "")].map(|(name, _)| folder.path().join(name));
    for copy in &copies {
        copy_without_policy(copy);
    }
    let generated = run(&format!("generate --flows {{flows}} -f {}", copies[0].display()));
    assert_eq!(generated.code, 0, "{}", generated.err);
    std::fs::write(copies[1].join("observed.yaml"), &generated.out).unwrap();
    let enforced = generated.out.replace("istio.io/dry-run: \"true\"", "istio.io/dry-run: \"false\"");
    std::fs::write(copies[2].join("observed.yaml"), enforced).unwrap();
    for new in &copies[1..] {
        assert_eq!(run(&format!("check {}", new.display())).code, 0);
    }
    let impact = |new: &Path| {
        let said = run(&format!("impact -f {} --against {EXAMPLE} --flows {{flows}} -o json", new.display()));
        serde_json::from_str::<serde_json::Value>(&said.out).unwrap()
    };
    // In dry run nothing is enforced, so that everybody may call; what the example denies stays denied once enforced.
    assert_eq!(impact(&copies[1])["becomes_denied"].as_array().unwrap().len(), 0);
    assert_eq!(impact(&copies[1])["would_change"][0]["from"], "checkout/reports");
    assert_eq!(impact(&copies[2])["becomes_denied"].as_array().unwrap().len(), 0);
    assert_eq!(impact(&copies[2])["becomes_allowed"].as_array().unwrap().len(), 0);
}

fn copy_without_policy(target: &PathBuf) {
    std::fs::create_dir(target).unwrap();
    for entry in std::fs::read_dir(tree::root().join(EXAMPLE)).unwrap().flatten() {
        if entry.file_name() != "policy.yaml" {
            std::fs::copy(entry.path(), target.join(entry.file_name())).unwrap();
        }
    }
}
