//! The hyphen trap: two alternatives where one was probably meant. Each `-` is an OR; only what stands below one `-`
//! is ANDed.
use crate::{
    documents::{
        parse::{Node, Place},
        report::Report,
    },
    problem,
};

/// Fields that cannot stand in one source, so that two sources are the only way to write them.
const APART: [(&str, &[&str]); 2] = [
    ("serviceAccounts", &["principals", "notPrincipals", "namespaces", "notNamespaces"]),
    ("notServiceAccounts", &["principals", "notPrincipals", "namespaces", "notNamespaces"]),
];

/// Neighbours among the rules of a policy, and among the sources and operations of each rule.
pub fn check(report: &mut Report<'_>, spec: &Node) {
    let rules: Vec<&Node> = spec.list("rules").collect();
    for (index, pair) in rules.windows(2).enumerate() {
        if let [first, second] = pair {
            rule_pair(report, spec, index, first, second);
        }
    }
    for rule in rules {
        for (side, part) in [("from", "source"), ("to", "operation")] {
            let entries: Vec<&Node> = rule.list(side).collect();
            for pair in entries.windows(2) {
                if let [first, second] = pair {
                    entry_pair(report, side, part, first, second);
                }
            }
        }
    }
}

fn rule_pair(report: &mut Report<'_>, spec: &Node, index: usize, first: &Node, second: &Node) {
    let (before, after) = (parts(first), parts(second));
    let [(only, place)] = after.as_slice() else { return };
    if before.is_empty() || before.iter().any(|(part, _)| part == only) {
        return;
    }
    let has: Vec<String> = before.iter().map(|(part, _)| format!("`{part}`")).collect();
    let does = match spec.string("action").as_str() {
        "DENY" => "denied",
        "AUDIT" => "audited",
        _ => "allowed",
    };
    let reason = format!(
        "rules {index} and {} are alternatives: rule {index} has only {}, rule {} only `{only}`, so that what matches either of them is {does}",
        index + 1,
        has.join(" and "),
        index + 1
    );
    let hint = format!(
        "if both are meant to hold, remove the `- ` before `{only}:` (and indent it as deep as {})",
        has.first().map_or("`from`", String::as_str)
    );
    report.warning(problem::SPLIT_RULE, *place, reason, hint);
}

fn entry_pair(report: &mut Report<'_>, side: &str, part: &str, first: &Node, second: &Node) {
    let (Some((one, _)), Some((other, place))) = (single(first, part), single(second, part)) else { return };
    let apart = |a: &str, b: &str| APART.iter().any(|(field, others)| *field == a && others.contains(&b));
    if one == other || apart(one, other) || apart(other, one) {
        return;
    }
    let reason = format!(
        "two entries of `{side}` with one field each are alternatives: `{one}` or `{other}`, not `{one}` and `{other}`"
    );
    let hint = format!("if both are meant to hold, write both fields below one `- {part}:`");
    report.warning(problem::SPLIT_RULE, place, reason, hint);
}

/// The parts of a rule that say something.
fn parts(rule: &Node) -> Vec<(&str, Place)> {
    let says = |(_, list): &(&str, &Node)| list.items().next().is_some();
    let written = rule.entries().iter().map(|(key, list)| (key, &**list));
    written.filter(|(key, list)| says(&(&key.text, list))).map(|(key, _)| (&*key.text, key.place)).collect()
}

/// The only field of a source or operation.
fn single<'n>(entry: &'n Node, part: &str) -> Option<(&'n str, Place)> {
    match parts(entry.get(part)?).as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}
