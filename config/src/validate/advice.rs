//! Values that are legal and never match, or match something else than they seem to (reference 2.13, last paragraph).
use crate::{
    documents::{
        parse::{Key, Node, shorten},
        report::Report,
    },
    path::{Normalization, normalize},
    problem,
};

/// A value of `principals`, or of a condition on `source.principal`.
pub fn principal(report: &mut Report<'_>, value: &Node, text: &str) {
    if let Some(rest) = text.strip_prefix("spiffe://") {
        let reason = "a principal is written without `spiffe://`; with it, it never matches";
        report.warning(problem::SPIFFE_PREFIX, value.place, reason, format!("write \"{}\"", shorten(rest)));
        return;
    }
    if text.contains('*') {
        return middle_wildcard(report, value, text);
    }
    let parts: Vec<&str> = text.splitn(6, '/').collect();
    let is_workload = matches!(parts.as_slice(), [domain, "ns", namespace, "sa", account] if ![domain, namespace, account].iter().any(|part| part.is_empty()));
    if !is_workload {
        let reason = format!(
            "`{}` is not TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT, so that no certificate has it",
            shorten(text)
        );
        let hint = if text.contains('/') {
            "write the five parts, for example \"cluster.local/ns/checkout/sa/checkout-api\""
        } else {
            "write the five parts, or use `serviceAccounts` (one account) or `namespaces` (a whole namespace)"
        };
        report.warning(problem::PRINCIPAL_FORM, value.place, reason, hint);
    }
}

/// A path that is no error.
pub fn path(report: &mut Report<'_>, value: &Node, text: &str, template: bool) {
    if !text.starts_with(['/', '*']) {
        let reason = format!("path `{}` does not begin with `/`, so that it never matches", shorten(text));
        return report.warning(
            problem::RELATIVE_PATH,
            value.place,
            reason,
            format!("write \"/{}\"", shorten(text)),
        );
    }
    if let Some(at) = text.find(['?', '#']) {
        let (before, _) = text.split_at(at);
        let reason =
            format!("path `{}` has a query or fragment, which is cut off before matching", shorten(text));
        return report.warning(
            problem::NOT_NORMAL,
            value.place,
            reason,
            format!("write \"{}\"", shorten(before)),
        );
    }
    if template {
        return;
    }
    if let Some(foreign) = text.split('/').find(|segment| is_foreign(segment)) {
        let reason = format!("`{}` in a path is literal text, no template", shorten(foreign));
        let hint = "write `{*}` for one segment, `{**}` for the rest of the path, or one `*` at the end";
        return report.warning(problem::TEMPLATE_STYLE, value.place, reason, hint);
    }
    middle_wildcard(report, value, text);
    if !text.contains('*') && text.len() <= 8192 {
        match normalize(text, Normalization::Base) {
            Ok(normal) if normal != text => {
                let reason = format!(
                    "requests to `{0}` are matched as `{1}` (normalization BASE), so that `{0}` never matches",
                    shorten(text),
                    shorten(&normal)
                );
                report.warning(
                    problem::NOT_NORMAL,
                    value.place,
                    reason,
                    format!("write \"{}\"", shorten(&normal)),
                );
            }
            Ok(_) => {}
            Err(why) => report.warning(
                problem::NOT_NORMAL,
                value.place,
                format!("a request to this path is answered 400 before any rule: {why}"),
                "remove it",
            ),
        }
    }
}

/// Segments that are operators in other languages.
fn is_foreign(segment: &str) -> bool {
    let word = |text: &str| text.starts_with(|c: char| c.is_ascii_alphabetic());
    let angle = segment.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    segment == "**" || segment.strip_prefix(':').is_some_and(word) || angle.is_some_and(word)
}

/// A method.
pub fn method(report: &mut Report<'_>, value: &Node, text: &str) {
    if text.chars().any(|c| c.is_ascii_lowercase()) {
        let reason = format!(
            "method `{}` is not in upper case; methods are case-sensitive, so that it never matches",
            shorten(text)
        );
        let hint = format!("write \"{}\"", shorten(&text.to_uppercase()));
        report.warning(problem::METHOD_CASE, value.place, reason, hint);
    }
    middle_wildcard(report, value, text);
}

/// All hosts of one field: their ports, and the forms without.
pub fn hosts(report: &mut Report<'_>, key: &Key, list: &Node, action: &str) {
    let texts: std::collections::HashSet<&str> = list.items().filter_map(Node::text).collect();
    let guards = matches!((action, key.text.as_str()), ("DENY", "hosts") | ("ALLOW", "notHosts"));
    for value in list.items() {
        let Some(text) = value.text().filter(|text| !text.is_empty() && *text != "*") else { continue };
        let inner = text.strip_prefix('*').unwrap_or(text);
        let inner = inner.strip_suffix('*').unwrap_or(inner);
        if inner.contains('*') || text.starts_with('*') && text.ends_with('*') {
            let reason = format!(
                "host `{}` has more than one wildcard, or one in the middle; the others are literal asterisks",
                shorten(text)
            );
            report.warning(
                problem::HOST_PATTERN,
                value.place,
                reason,
                "list the hosts, with and without the port",
            );
        } else if let Some(name) = without_port(text) {
            if !texts.contains(name) {
                let reason = format!(
                    "host `{}` matches only requests that write the port, which clients leave out when it is the default",
                    shorten(text)
                );
                let hint = format!("list \"{0}\" and \"{0}:*\"", shorten(name));
                report.warning(problem::HOST_PORT, value.place, reason, hint);
            }
        } else if guards && !text.ends_with('*') && !texts.contains(format!("{text}:*").as_str()) {
            let reason = format!(
                "a request with Host `{0}:80` is not matched by `{0}`, and so walks around the rule",
                shorten(text)
            );
            let hint = match text.strip_prefix('*') {
                Some(_) => "no pattern has both a subdomain and a port: list the hosts with `:*`, or protect the workload by `selector`".to_owned(),
                None => format!("list \"{}:*\", too", shorten(text)),
            };
            report.warning(problem::HOST_BYPASS, value.place, reason, hint);
        }
    }
}

/// The name before `:443` or `:*`.
fn without_port(host: &str) -> Option<&str> {
    let (name, port) = host.rsplit_once(':')?;
    let is_port = port == "*" || !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let is_name = !name.is_empty() && (!name.contains(':') || name.ends_with(']'));
    (is_port && is_name).then_some(name)
}

/// `*` counts only as the first or the last character.
pub fn middle_wildcard(report: &mut Report<'_>, value: &Node, text: &str) {
    let inner = match text.strip_prefix('*') {
        Some(rest) => rest,
        None => text.strip_suffix('*').unwrap_or(text),
    };
    if inner.contains('*') {
        let reason = format!(
            "`{}`: a `*` that is not the first or the last character is a literal asterisk",
            shorten(text)
        );
        report.warning(
            problem::MIDDLE_WILDCARD,
            value.place,
            reason,
            "use one prefix or suffix pattern, or a path template such as /a/{*}/b",
        );
    }
}

/// A field whose every value its `not` form excludes.
pub fn contradiction(report: &mut Report<'_>, fields: &Node, field: &str, negated: &str) {
    let Some((key, wanted)) = fields.entry(field) else { return };
    let excluded: std::collections::HashSet<&str> = fields.list(negated).filter_map(Node::text).collect();
    let mut values = wanted.items().filter_map(Node::text).peekable();
    if excluded.is_empty() || values.peek().is_none() {
        return;
    }
    if excluded.contains("*") || values.all(|value| excluded.contains(value)) {
        let reason = format!("`{negated}` excludes every value of `{field}`, so that nothing matches");
        report.warning(problem::CONTRADICTION, key.place, reason, "remove the value from one of the two");
    }
}

/// Fields and conditions that only a validated token can satisfy.
pub fn needs_token(report: &mut Report<'_>, at: crate::documents::parse::Place, what: &str, negated: bool) {
    let what = shorten(what);
    let reason = if negated {
        format!("no sidecar validates tokens yet: `{what}` holds for every request")
    } else {
        format!("no sidecar validates tokens yet: `{what}` never matches")
    };
    let hint = "use `principals` or `serviceAccounts` until tokens are validated; suppress this to keep the policy ready";
    report.warning(problem::NEEDS_TOKENS, at, reason, hint);
}
