//! `postern why FROM TO METHOD PATH -f DIR`: one question, answered from the files alone.
use super::{
    answer::{Answer, ask},
    formats::{self, Output, Paint},
    mesh::Mesh,
    question::Question,
};
use crate::failure::{NEGATIVE, OK};
use clap::Args;
use postern_config::explain::{ConditionTrace, PolicyTrace, RuleTrace};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// Flags of `postern why` about a folder; without `--id` the first are needed.
#[derive(Args, Debug, Clone)]
pub struct QuestionArgs {
    /// Who calls: namespace/workload, pod, deployment, service, service account, or a spiffe:// ID
    #[arg(required_unless_present = "id")]
    from: Option<String>,
    /// Who is called: namespace/workload, pod, deployment or service
    #[arg(required_unless_present = "id")]
    to: Option<String>,
    /// Method of the request
    #[arg(required_unless_present_any = ["tcp", "id"], conflicts_with = "tcp")]
    method: Option<String>,
    /// Path of the request
    #[arg(required_unless_present_any = ["tcp", "id"], conflicts_with = "tcp")]
    path: Option<String>,
    /// The folder of YAML files
    #[arg(short = 'f', long = "filename", value_name = "DIR", required_unless_present = "id")]
    folder: Option<PathBuf>,
    /// Host that the caller names
    #[arg(long)]
    host: Option<String>,
    /// Port of the service when TO is one, else of the workload
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// A header of the request; may be repeated
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Payload of a verified token, a JSON object
    #[arg(long, value_name = "JSON", value_parser = claims)]
    claims: Option<serde_json::Map<String, serde_json::Value>>,
    /// Ask about a connection without a request
    #[arg(long, conflicts_with_all = ["host", "headers", "claims"])]
    tcp: bool,
    /// The caller shows no certificate
    #[arg(long)]
    plaintext: bool,
    /// Show every policy that applies, each rule and each condition
    #[arg(long)]
    explain: bool,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME:VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

fn claims(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(claims)) => Ok(claims),
        Ok(_) => Err("it is JSON, but no object".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the command: 0 allowed, 2 denied, 1 when the question cannot be answered.
pub fn run(args: &QuestionArgs, output: Output) -> u8 {
    let folder = args.folder.as_deref().unwrap_or_else(|| Path::new("."));
    match Mesh::load(folder).and_then(|mesh| ask(&mesh, &question(args), args.explain)) {
        Ok(answer) => {
            formats::print(&formats::answer(output, &answer, |paint| table(&answer, paint)));
            if answer.allowed { OK } else { NEGATIVE }
        }
        Err(failure) => failure.report(),
    }
}

fn question(args: &QuestionArgs) -> Question {
    Question {
        from: args.from.clone().unwrap_or_default(),
        to: args.to.clone().unwrap_or_default(),
        request: args.method.clone().zip(args.path.clone()),
        headers: args.headers.clone(),
        host: args.host.clone(),
        port: args.port,
        claims: args.claims.clone(),
        plaintext: args.plaintext,
    }
}

/// The answer for people.
pub fn table(answer: &Answer, paint: Paint) -> String {
    let mut out = format!("{}: {}\n\n", paint.verdict(answer.allowed), answer.question());
    let mut rows: Vec<(&str, String)> = Vec::new();
    let reason = answer.reason.split_once(": ").map_or(answer.reason.as_str(), |(_, why)| why);
    match &answer.explanation {
        Some(explanation) => {
            let summary = &explanation.summary;
            rows.push((
                "because",
                summary.split_once(": ").map_or(summary.as_str(), |(_, why)| why).to_owned(),
            ));
            if let Some((rule, failed)) = &explanation.closest {
                rows.push(("closest", rule.to_string()));
                rows.push(("failed at", failed.field.clone()));
                rows.push(("  saw", failed.saw.clone()));
                let wanted = if failed.negated { "  wanted none of" } else { "  wanted one of" };
                rows.push((wanted, failed.wanted.join(", ")));
            }
        }
        None => rows.push(("because", reason.to_owned())),
    }
    let identity = answer.from_identity.as_deref().unwrap_or("no verified identity (plaintext)");
    rows.push(("caller", format!("{identity} at {}", answer.from_address)));
    let port = match answer.service_port {
        Some(service) if service != answer.port => format!("{} (service port {service})", answer.port),
        _ => answer.port.to_string(),
    };
    rows.push(("port", format!("{port}, mutual TLS {}", answer.mtls)));
    if let Some(host) = &answer.host {
        rows.push(("host", host.clone()));
    }
    if let Some(would) = &answer.would {
        rows.push(("dry run", paint.odd(&format!("would be {}", would.in_words()))));
    }
    if let Some(audit) = &answer.audit {
        rows.push(("audit", audit.to_string()));
    }
    for note in &answer.notes {
        rows.push(("note", note.clone()));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, value) in rows {
        let _ = writeln!(out, "  {name:width$}  {value}");
    }
    if let Some(policies) = &answer.policies {
        out.push_str(&explained(policies, paint));
    }
    out
}

fn explained(policies: &[PolicyTrace], paint: Paint) -> String {
    if policies.is_empty() {
        return "\nno policy applies to this workload\n".into();
    }
    let mut out = String::new();
    for policy in policies {
        let dry_run = if policy.dry_run { " (dry run)" } else { "" };
        let _ = writeln!(out, "\n{} {}/{}{dry_run}", policy.action, policy.namespace, policy.policy);
        if policy.rules.is_empty() {
            let _ = writeln!(out, "  has no rules, so that nothing matches");
        }
        for rule in &policy.rules {
            explained_rule(rule, paint, &mut out);
        }
    }
    out
}

fn explained_rule(rule: &RuleTrace, paint: Paint, out: &mut String) {
    let state = match (rule.matched, rule.dropped_on_tcp) {
        (true, _) => "matches",
        (false, true) => "does not exist on TCP, since it needs a request",
        (false, false) => "does not match",
    };
    let _ = writeln!(out, "  {} rule {} {state}", paint.mark(rule.matched), rule.rule.rule);
    for (part, anything, alternatives) in [("from", "anyone", &rule.from), ("to", "anything", &rule.to)] {
        if alternatives.is_empty() {
            let _ = writeln!(out, "    {} {part}: {anything}", paint.mark(true));
        }
        for conditions in alternatives {
            for one in conditions {
                condition(one, paint, out);
            }
        }
    }
    for one in &rule.when {
        condition(one, paint, out);
    }
}

fn condition(one: &ConditionTrace, paint: Paint, out: &mut String) {
    let wanted = if one.negated { "wants none of" } else { "wants one of" };
    let counts = if one.counts { "" } else { " (does not count on TCP)" };
    let _ = writeln!(
        out,
        "    {} {}: saw {}, {wanted} {}{counts}",
        paint.mark(one.holds),
        one.field,
        one.saw,
        one.wanted.join(", ")
    );
}
