//! `postern check DIR`: everything that is wrong with a folder, without starting anything.
use crate::{
    authority::{Where, expiry},
    failure::{Failure, NEGATIVE, OK},
    folder::{self, Folder},
    policy::formats::{self, Finding, Level, Listing, Output, TestCase},
    up::plan::Plan,
};
use clap::Args;
use postern_config::{Problem, Severity, problem, validate};
use serde::Serialize;
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// Flags of `postern check`.
#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    /// The folder of YAML files
    #[arg(value_name = "DIR", required_unless_present = "expires_within", conflicts_with = "expires_within")]
    folder: Option<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Listing,
    /// Ask a running mesh instead for what ends in this time and is not renewed, e.g. 30d, 12h; exit code 2 when something is
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    expires_within: Option<Duration>,
    #[command(flatten)]
    place: Where,
}

/// All findings, as programs read them.
#[derive(Serialize)]
struct Findings<'a> {
    ok: bool,
    errors: usize,
    warnings: usize,
    problems: Vec<Shown<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    severity: String,
    code: &'a str,
    title: &'a str,
    file: &'a str,
    line: usize,
    column: usize,
    reason: &'a str,
    hint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_line: Option<&'a str>,
}

/// Runs the command: 0 when all is well (warnings allowed), 2 when the folder would be rejected, 1 when it cannot be read.
pub fn run(args: &CheckArgs) -> u8 {
    match (&args.folder, args.expires_within) {
        (_, Some(within)) => expire(args, within),
        (dir, None) => examine(args, dir.as_deref().unwrap_or_else(|| Path::new("."))),
    }
}

fn expire(args: &CheckArgs, within: Duration) -> u8 {
    let output = match args.output {
        Listing::Table => Output::Table,
        Listing::Json => Output::Json,
        Listing::Yaml => Output::Yaml,
        Listing::Github | Listing::Sarif | Listing::Junit => {
            let only = "--expires-within answers in the forms table, json and yaml.";
            return Failure::usage(only, "These have places in files, which certificates have not.").report();
        }
    };
    expiry::run(within, output, &args.place)
}

fn examine(args: &CheckArgs, dir: &Path) -> u8 {
    let mut folder = match folder::locate(dir).and_then(|_| folder::study(dir)) {
        Ok(folder) => folder,
        Err(failure) => return failure.report(),
    };
    if !folder.has_errors() {
        folder.problems.extend(only_for_up(&folder));
    }
    let planned = (!folder.has_errors()).then(|| Plan::make(&folder.documents, &Plan::default()));
    formats::print(&printed(args.output, dir, &folder, planned.as_ref().and_then(|plan| plan.as_ref().ok())));
    match planned {
        None => NEGATIVE,
        Some(Ok(_)) => OK,
        Some(Err(failure)) => {
            failure.report();
            NEGATIVE
        }
    }
}

/// A folder for a cluster needs no commands; `postern up` does.
fn only_for_up(folder: &Folder) -> Vec<Problem> {
    let mut problems = validate::runnable(&folder.documents);
    for problem in &mut problems {
        problem.severity = Severity::Warning;
    }
    problems
}

fn printed(output: Listing, dir: &Path, folder: &Folder, plan: Option<&Plan>) -> String {
    match output {
        Listing::Table => table(dir, folder, plan),
        Listing::Json => formats::to_json(&shown(folder)),
        Listing::Yaml => formats::to_yaml(&shown(folder)),
        Listing::Github => formats::github(&findings(folder)),
        Listing::Sarif => formats::sarif(&findings(folder)),
        Listing::Junit => formats::junit(&test_cases(dir, folder)),
    }
}

fn table(dir: &Path, folder: &Folder, plan: Option<&Plan>) -> String {
    let mut out = String::new();
    for problem in &folder.problems {
        let _ = writeln!(out, "{problem}\n");
    }
    let shown = dir.display();
    let findings = if folder.problems.is_empty() { "no problems".to_owned() } else { folder.tally() };
    let _ = match plan {
        Some(plan) => {
            writeln!(
                out,
                "`{shown}`: {} pods, {} services, {findings}.",
                plan.pods.len(),
                plan.services.len()
            )
        }
        None => writeln!(out, "`{shown}`: {findings}."),
    };
    out
}

fn title(problem: &Problem) -> &'static str {
    problem::explain(problem.code).map_or("", |code| code.title)
}

fn shown(folder: &Folder) -> Findings<'_> {
    let errors = folder.problems.iter().filter(|p| p.severity == Severity::Error).count();
    Findings {
        ok: errors == 0,
        errors,
        warnings: folder.problems.len() - errors,
        problems: folder.problems.iter().map(one).collect(),
    }
}

fn one(problem: &Problem) -> Shown<'_> {
    Shown {
        severity: problem.severity.to_string(),
        code: problem.code,
        title: title(problem),
        file: &problem.file,
        line: problem.line,
        column: problem.column,
        reason: &problem.reason,
        hint: &problem.hint,
        source_line: problem.source_line.as_deref(),
    }
}

fn findings(folder: &Folder) -> Vec<Finding> {
    let one = |problem: &Problem| Finding {
        level: if problem.severity == Severity::Error { Level::Error } else { Level::Warning },
        code: problem.code.to_owned(),
        title: title(problem).to_owned(),
        file: problem.file.clone(),
        line: problem.line,
        column: problem.column,
        message: said(problem),
    };
    folder.problems.iter().map(one).collect()
}

/// One test case a finding: an error fails, a warning passes with a remark. Without findings, one that passes.
fn test_cases(dir: &Path, folder: &Folder) -> Vec<TestCase> {
    let case = |name: String, file: String, line, failure, remark| TestCase {
        suite: "postern check".into(),
        name,
        file,
        line,
        failure,
        remark,
    };
    if folder.problems.is_empty() {
        return vec![case("no problems".into(), dir.display().to_string(), 0, None, None)];
    }
    let one = |problem: &Problem| {
        let name = format!("{} {} ({}:{})", problem.code, title(problem), problem.file, problem.line);
        let (failure, remark) = match problem.severity {
            Severity::Error => (Some(said(problem)), None),
            Severity::Warning => (None, Some(said(problem))),
        };
        case(name, problem.file.clone(), problem.line, failure, remark)
    };
    folder.problems.iter().map(one).collect()
}

fn said(problem: &Problem) -> String {
    match problem.hint.as_str() {
        "" => problem.reason.clone(),
        hint => format!("{}\nhelp: {hint}", problem.reason),
    }
}
