//! Rules that an earlier rule of the same policy covers, and what is written twice. Sound and simple: a rule is called
//! covered only where each part of it obviously is, so that a warning is always true.
use super::ports::http_fields;
use crate::{
    documents::{
        authorization_policy::{Action, AuthorizationPolicy, Condition, Operation, Rule, Source},
        parse::{Node, Place},
        report::Report,
    },
    problem,
};
use ipnet::IpNet;
use std::{collections::HashMap, net::IpAddr};

/// Comparisons of single values for one policy; after these nothing more is looked for.
const STEPS: usize = 500_000;

/// All rules of a policy of which at most 512 are looked at (more are an error).
pub fn check(report: &mut Report<'_>, spec: &Node, policy: &AuthorizationPolicy) {
    let rules = &policy.rules;
    let nodes: Vec<&Node> = spec.list("rules").collect();
    let place = |index: usize| nodes.get(index).map_or(spec.place, |node| first_place(node));
    let mut written: HashMap<String, usize> = HashMap::new();
    let mut scale = Scale { steps: STEPS };
    for (index, rule) in rules.iter().enumerate().take(512) {
        for (side, part) in [("from", "source"), ("to", "operation")] {
            if let Some(node) = nodes.get(index) {
                entries(report, node, side, part);
            }
        }
        let text = serde_json::to_string(rule).unwrap_or_default();
        if let Some(first) = written.get(&text) {
            let reason = format!("rule {index} is the same as rule {first}");
            report.warning(problem::IDENTICAL_RULE, place(index), reason, "remove one of the two");
            continue;
        }
        // On TCP an ALLOW rule with any HTTP field is gone, so that it covers none that has no such field.
        let stays = |earlier: &Rule| {
            policy.action != Action::Allow || http_fields(earlier).is_empty() || !http_fields(rule).is_empty()
        };
        let covering =
            |(at, earlier): (usize, &Rule)| (scale.rule(earlier, rule) && stays(earlier)).then_some(at);
        let earlier = rules.iter().enumerate().take(index).find_map(covering);
        if let Some(earlier) = earlier {
            let reason = format!(
                "rule {index} changes nothing: rule {earlier} (line {}) matches everything that it matches",
                place(earlier).line
            );
            report.warning(
                problem::UNREACHABLE_RULE,
                place(index),
                reason,
                "remove it, or narrow the earlier rule",
            );
        }
        written.insert(text, index);
    }
}

/// Identical entries of one list.
fn entries(report: &mut Report<'_>, rule: &Node, side: &str, part: &str) {
    let mut seen: HashMap<String, usize> = HashMap::new();
    for (index, entry) in rule.list(side).enumerate() {
        let Some(fields) = entry.get(part) else { continue };
        let text = canonical(fields);
        if let Some(first) = seen.get(&text) {
            let reason = format!("`{side}` {index} is the same as `{side}` {first}");
            report.warning(problem::IDENTICAL_RULE, first_place(entry), reason, "remove one of the two");
        } else {
            seen.insert(text, index);
        }
    }
}

fn canonical(fields: &Node) -> String {
    let mut lines: Vec<String> = fields
        .entries()
        .iter()
        .map(|(key, list)| {
            let values: Vec<&str> = list.items().filter_map(Node::text).collect();
            format!("{}={values:?}", key.text)
        })
        .collect();
    lines.sort_unstable();
    lines.join("\n")
}

fn first_place(node: &Node) -> Place {
    node.entries().first().map_or(node.place, |(key, _)| key.place)
}

/// How the values of a field are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Exact, `prefix*`, `*suffix`, `*`.
    Text,
    /// The same without case.
    Host,
    /// The same, or a template.
    Path,
    /// Addresses and ranges.
    Address,
    /// Only equal ones are compared.
    Exact,
}

struct Scale {
    steps: usize,
}

impl Scale {
    /// Whether everything that `b` matches is matched by `a`.
    fn rule(&mut self, a: &Rule, b: &Rule) -> bool {
        let from = a.from.is_empty()
            || !b.from.is_empty()
                && b.from.iter().all(|b| a.from.iter().any(|a| self.source(&a.source, &b.source)));
        let to = from
            && (a.to.is_empty()
                || !b.to.is_empty()
                    && b.to.iter().all(|b| a.to.iter().any(|a| self.operation(&a.operation, &b.operation))));
        to && a.when.iter().all(|a| b.when.iter().any(|b| self.condition(a, b)))
    }

    fn source(&mut self, a: &Source, b: &Source) -> bool {
        use Form::{Address, Exact, Text};
        self.field(Text, &a.principals, &b.principals, &a.not_principals, &b.not_principals)
            && self.field(
                Exact,
                &a.request_principals,
                &b.request_principals,
                &a.not_request_principals,
                &b.not_request_principals,
            )
            && self.field(Exact, &a.namespaces, &b.namespaces, &a.not_namespaces, &b.not_namespaces)
            && self.field(
                Exact,
                &a.service_accounts,
                &b.service_accounts,
                &a.not_service_accounts,
                &b.not_service_accounts,
            )
            && self.field(
                Exact,
                &a.trust_domains,
                &b.trust_domains,
                &a.not_trust_domains,
                &b.not_trust_domains,
            )
            && self.field(Address, &a.ip_blocks, &b.ip_blocks, &a.not_ip_blocks, &b.not_ip_blocks)
            && self.field(
                Address,
                &a.remote_ip_blocks,
                &b.remote_ip_blocks,
                &a.not_remote_ip_blocks,
                &b.not_remote_ip_blocks,
            )
    }

    fn operation(&mut self, a: &Operation, b: &Operation) -> bool {
        self.field(Form::Host, &a.hosts, &b.hosts, &a.not_hosts, &b.not_hosts)
            && self.field(Form::Exact, &a.ports, &b.ports, &a.not_ports, &b.not_ports)
            && self.field(Form::Text, &a.methods, &b.methods, &a.not_methods, &b.not_methods)
            && self.field(Form::Path, &a.paths, &b.paths, &a.not_paths, &b.not_paths)
    }

    /// Of one key; values that look like patterns are compared as equal ones only.
    fn condition(&mut self, a: &Condition, b: &Condition) -> bool {
        a.key == b.key && self.field(Form::Exact, &a.values, &b.values, &a.not_values, &b.not_values)
    }

    fn field(&mut self, form: Form, a: &[String], b: &[String], a_not: &[String], b_not: &[String]) -> bool {
        let positive =
            a.is_empty() || !b.is_empty() && b.iter().all(|b| a.iter().any(|a| self.value(form, a, b)));
        // What `a` excludes must be excluded by `b`, too.
        positive && a_not.iter().all(|a| b_not.iter().any(|b| self.value(form, b, a)))
    }

    /// Whether the pattern `a` matches whatever the pattern `b` matches.
    fn value(&mut self, form: Form, a: &str, b: &str) -> bool {
        let Some(left) = self.steps.checked_sub(1) else { return false };
        self.steps = left;
        match form {
            _ if a == b => true,
            Form::Exact => false,
            Form::Address => network(a).zip(network(b)).is_some_and(|(a, b)| a.contains(&b)),
            Form::Text => pattern(a, b),
            Form::Host => pattern(&a.to_ascii_lowercase(), &b.to_ascii_lowercase()),
            Form::Path if a.contains('{') || b.contains('{') => a == "*",
            Form::Path => pattern(a, b),
        }
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// Reference 2.6: `*` alone, suffix before prefix, everything else exact.
fn pattern(a: &str, b: &str) -> bool {
    if a == "*" {
        return true;
    }
    if let Some(suffix) = a.strip_prefix('*') {
        return match b.strip_prefix('*') {
            Some(other) => other.ends_with(suffix),
            None => !b.ends_with('*') && b.ends_with(suffix),
        };
    }
    match a.strip_suffix('*') {
        Some(prefix) => !b.starts_with('*') && b.strip_suffix('*').unwrap_or(b).starts_with(prefix),
        None => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_cover_what_they_obviously_cover() {
        for (a, b) in [
            ("*", "x"),
            ("*", "x*"),
            ("/a*", "/a"),
            ("/a*", "/ab*"),
            ("*.b", "a.b"),
            ("*.b", "*.a.b"),
            ("x", "x"),
        ] {
            assert!(pattern(a, b), "{a} covers {b}");
        }
        for (a, b) in
            [("x", "x*"), ("/ab*", "/a*"), ("/a*", "*a"), ("*b", "b*"), ("*.a.b", "*.b"), ("a*", "*")]
        {
            assert!(!pattern(a, b), "{a} does not cover {b}");
        }
        assert!(Scale { steps: 9 }.value(Form::Address, "10.0.0.0/8", "10.1.2.3"));
        assert!(!Scale { steps: 9 }.value(Form::Address, "10.1.0.0/16", "10.0.0.0/8"));
        assert!(!Scale { steps: 9 }.value(Form::Path, "/a*", "/a/{*}"));
        assert!(Scale { steps: 9 }.value(Form::Host, "*.EXAMPLE.com", "a.example.com"));
    }
}
