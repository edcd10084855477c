//! `postern test DIR`: the rows of all PolicyTest documents of a folder, put to the policies beside them.
use super::{
    answer::{Answer, ask},
    formats::{self, Finding, Level, Listing, Paint, TestCase},
    mesh::Mesh,
    question::Question,
};
use crate::failure::{ERROR, Failure, NEGATIVE, OK};
use clap::Args;
use postern_config::documents::policy_test::Case;
use postern_control_plane::registry::from_files;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

/// Flags of `postern test`.
#[derive(Args, Debug, Clone)]
pub struct TestArgs {
    /// The folder of YAML files, policies and PolicyTest documents
    dir: PathBuf,
    /// Run again whenever a file changes, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Fail when fewer rules than this are matched by a test
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    coverage_threshold: Option<u8>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Listing,
}

/// What all tests of a folder gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Every test passed, and enough rules were matched.
    pub ok: bool,
    /// How many passed.
    pub passed: usize,
    /// How many did not.
    pub failed: usize,
    /// Every test.
    pub tests: Vec<Row>,
    /// Which rules were matched.
    pub coverage: Coverage,
}

/// One test and its answer.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name of its document.
    pub suite: String,
    /// Its own name, or the question.
    pub name: String,
    /// Where it was written.
    pub file: String,
    /// Line of the row.
    pub line: usize,
    /// What was expected.
    pub expected: &'static str,
    /// What came.
    pub actual: Option<&'static str>,
    /// Why it is so.
    pub reason: String,
    /// What is wrong; absent when the test passed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Rules that some test matched, of all rules.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Coverage {
    /// Rules that a test matched.
    pub matched: usize,
    /// All rules.
    pub rules: usize,
    /// Percent, rounded down; 100 when there are no rules.
    pub percent: usize,
    /// What was asked for.
    pub threshold: Option<u8>,
    /// Rules that no test matched.
    pub unmatched: Vec<Unmatched>,
}

/// A rule that no test matched.
#[derive(Clone, Debug, Serialize)]
pub struct Unmatched {
    /// `namespace/name`.
    pub policy: String,
    /// From 0.
    pub rule: usize,
    /// Where the policy was written.
    pub file: String,
    /// Line of the policy.
    pub line: usize,
}

/// Runs the command: 0 when all tests pass, 2 when one fails or too few rules are matched, 1 when they cannot be run.
pub fn run(args: &TestArgs) -> u8 {
    if !args.watch {
        return once(args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(watch(args)),
        Err(e) => Failure::new(format!("no runtime: {e}."), "Try again without --watch.").report(),
    }
}

fn once(args: &TestArgs) -> u8 {
    let outcome = Mesh::load(&args.dir).and_then(|mesh| outcome(&mesh, args.coverage_threshold));
    match outcome {
        Ok(outcome) => {
            formats::print(&printed(&outcome, args.output));
            if outcome.ok { OK } else { NEGATIVE }
        }
        Err(failure) => failure.report(),
    }
}

async fn watch(args: &TestArgs) -> u8 {
    // Watched before it is read, so that no change falls between the two.
    let mut changes = match from_files::watch(&args.dir) {
        Ok(changes) => changes,
        Err(e) => {
            let failure = Failure::new(
                format!("the folder `{}` cannot be watched: {e}.", args.dir.display()),
                "Name a folder that can be read.",
            );
            return failure.report();
        }
    };
    let mut code;
    loop {
        code = once(args);
        eprintln!("watching {}; Ctrl-C ends it", args.dir.display());
        tokio::select! {
            () = changes.changed() => {}
            ended = tokio::signal::ctrl_c() => return if ended.is_ok() { code } else { ERROR },
        }
    }
}

/// Puts all rows of all tests.
///
/// # Errors
/// There is no test, or a policy cannot be compiled.
pub fn outcome(mesh: &Mesh, threshold: Option<u8>) -> Result<Outcome, Failure> {
    let mut rows = Vec::new();
    let mut matched: BTreeSet<(String, usize)> = BTreeSet::new();
    for document in &mesh.documents().policy_tests {
        for case in &document.value.tests {
            let answer = ask(mesh, &question(case), true);
            if let Ok(answer) = &answer {
                let rules = answer.policies.iter().flatten().flat_map(|policy| &policy.rules);
                for rule in rules.filter(|rule| rule.matched).map(|rule| &rule.rule) {
                    matched.insert((format!("{}/{}", rule.namespace, rule.policy), rule.rule));
                }
            }
            rows.push(row(&document.value.metadata.name, case, answer));
        }
    }
    if rows.is_empty() {
        return Err(Failure::new(
            "the folder holds no tests.".to_owned(),
            "Write a document of `apiVersion: postern.dev/v1`, `kind: PolicyTest` with `tests:`; see docs/policy.md.",
        ));
    }
    let coverage = coverage(mesh, &matched, threshold);
    let failed = rows.iter().filter(|row| row.failure.is_some()).count();
    let is_covered = threshold.is_none_or(|wanted| coverage.percent >= usize::from(wanted));
    Ok(Outcome { ok: failed == 0 && is_covered, passed: rows.len() - failed, failed, tests: rows, coverage })
}

fn question(case: &Case) -> Question {
    Question {
        from: case.from.clone(),
        to: case.to.clone(),
        request: case.method.clone().zip(case.path.clone()).filter(|_| !case.tcp),
        headers: case.headers.clone().into_iter().collect(),
        host: case.host.clone(),
        port: case.port,
        claims: case.claims.clone(),
        plaintext: case.plaintext,
    }
}

fn row(suite: &str, case: &Case, answer: Result<Answer, Failure>) -> Row {
    let word = |allowed: bool| if allowed { "allow" } else { "deny" };
    let expected = word(case.expect_allow);
    let asked = match (&case.method, &case.path) {
        (Some(method), Some(path)) => format!("{method} {path} from {} to {}", case.from, case.to),
        _ => format!("TCP from {} to {}", case.from, case.to),
    };
    let name = if case.name.is_empty() { asked } else { case.name.clone() };
    let (actual, reason, failure) = match answer {
        Err(failure) => (None, failure.cause.clone(), Some(format!("{}\n{}", failure.cause, failure.remedy))),
        Ok(answer) => {
            let reason = answer.reason.clone();
            let failure = if answer.allowed != case.expect_allow {
                Some(format!("expected {expected}, got {}\n{}", word(answer.allowed), described(&answer)))
            } else {
                case.because.as_ref().filter(|because| !reason.contains(because.as_str())).map(|because| {
                    format!("{expected} as expected, but not because of `{because}`\n{}", described(&answer))
                })
            };
            (Some(word(answer.allowed)), reason, failure)
        }
    };
    Row {
        suite: suite.to_owned(),
        name,
        file: case.origin.file.clone(),
        line: case.origin.line,
        expected,
        actual,
        reason,
        failure,
    }
}

fn described(answer: &Answer) -> String {
    let mut text = answer.reason.clone();
    for note in &answer.notes {
        let _ = write!(text, "\nnote: {note}");
    }
    text
}

fn coverage(mesh: &Mesh, matched: &BTreeSet<(String, usize)>, threshold: Option<u8>) -> Coverage {
    let mut coverage = Coverage { threshold, ..Coverage::default() };
    for located in &mesh.documents().authorization_policies {
        let metadata = &located.value.metadata;
        let policy = format!("{}/{}", metadata.namespace, metadata.name);
        for rule in 0..located.value.rules.len() {
            coverage.rules += 1;
            if matched.contains(&(policy.clone(), rule)) {
                coverage.matched += 1;
            } else {
                coverage.unmatched.push(Unmatched {
                    policy: policy.clone(),
                    rule,
                    file: located.origin.file.clone(),
                    line: located.origin.line,
                });
            }
        }
    }
    coverage.percent = (coverage.matched * 100).checked_div(coverage.rules).unwrap_or(100);
    coverage
}

fn printed(outcome: &Outcome, output: Listing) -> String {
    match output {
        Listing::Table => table(outcome, Paint::of_stdout()),
        Listing::Json => formats::to_json(outcome),
        Listing::Yaml => formats::to_yaml(outcome),
        Listing::Github => formats::github(&findings(outcome)),
        Listing::Sarif => formats::sarif(&findings(outcome)),
        Listing::Junit => {
            let covered = outcome.coverage.threshold.map(|threshold| coverage_case(outcome, threshold));
            formats::junit(&outcome.tests.iter().map(test_case).chain(covered).collect::<Vec<_>>())
        }
    }
}

/// The outcome for people.
pub fn table(outcome: &Outcome, paint: Paint) -> String {
    let mut out = String::new();
    let mut suites: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in &outcome.tests {
        suites.entry(&row.suite).or_default().push(row);
    }
    for (suite, rows) in suites {
        let _ = writeln!(out, "{suite}");
        for row in rows {
            let _ = writeln!(out, "  {} {}", paint.mark(row.failure.is_none()), row.name);
            if let Some(failure) = &row.failure {
                let _ = writeln!(out, "      at {}:{}", row.file, row.line);
                for line in failure.lines() {
                    let _ = writeln!(out, "      {line}");
                }
            }
        }
    }
    let coverage = &outcome.coverage;
    let failed = format!("{} failed", outcome.failed);
    let failed = if outcome.failed > 0 { paint.bad(&failed) } else { failed };
    let _ = writeln!(
        out,
        "\n{} passed, {failed}; rule coverage {} % ({} of {})",
        outcome.passed, coverage.percent, coverage.matched, coverage.rules
    );
    for rule in &coverage.unmatched {
        let _ = writeln!(
            out,
            "  no test matches {} rule {} ({}:{})",
            rule.policy, rule.rule, rule.file, rule.line
        );
    }
    if let Some(threshold) = coverage.threshold.filter(|wanted| coverage.percent < usize::from(*wanted)) {
        let _ = writeln!(out, "{}", paint.bad(&format!("the threshold is {threshold} %")));
    }
    out
}

fn findings(outcome: &Outcome) -> Vec<Finding> {
    let failed = outcome.tests.iter().filter_map(|row| {
        let failure = row.failure.as_ref()?;
        Some(Finding {
            level: Level::Error,
            code: "policy-test".into(),
            title: "policy test failed".into(),
            file: row.file.clone(),
            line: row.line,
            column: 0,
            message: format!("{}: {failure}", row.name),
        })
    });
    let is_short = outcome.coverage.threshold.is_some_and(|t| outcome.coverage.percent < usize::from(t));
    let unmatched = outcome.coverage.unmatched.iter().map(move |rule| Finding {
        level: if is_short { Level::Error } else { Level::Warning },
        code: "policy-coverage".into(),
        title: "rule without a test".into(),
        file: rule.file.clone(),
        line: rule.line,
        column: 0,
        message: format!("no test matches {} rule {}", rule.policy, rule.rule),
    });
    failed.chain(unmatched).collect()
}

/// The threshold as a test of its own.
fn coverage_case(outcome: &Outcome, threshold: u8) -> TestCase {
    let coverage = &outcome.coverage;
    let mut said = format!("rule coverage {} %, the threshold is {threshold} %", coverage.percent);
    for rule in &coverage.unmatched {
        let _ = write!(
            said,
            "\nno test matches {} rule {} ({}:{})",
            rule.policy, rule.rule, rule.file, rule.line
        );
    }
    let is_short = coverage.percent < usize::from(threshold);
    TestCase {
        suite: "rule coverage".into(),
        name: "enough rules are matched by a test".into(),
        file: String::new(),
        line: 0,
        failure: is_short.then(|| said.clone()),
        remark: Some(said),
    }
}

fn test_case(row: &Row) -> TestCase {
    TestCase {
        suite: row.suite.clone(),
        name: row.name.clone(),
        file: row.file.clone(),
        line: row.line,
        failure: row.failure.clone(),
        remark: Some(row.reason.clone()),
    }
}
