//! The small grammars: names, labels, ports, addresses, trust domains, service accounts, path templates.
//! Each check says what is wrong, or nothing.
use crate::documents::parse::{Node, Plain, Value};
use std::net::IpAddr;

/// A share in percent. That it is a number is the schema's business; `.nan` and `0x1` are numbers for YAML.
pub fn percent(value: &Node) -> Option<&'static str> {
    let is_number = matches!(&value.value, Value::Scalar(scalar) if scalar.plain() == Plain::Number);
    let percent = value.text().and_then(|text| text.parse::<f64>().ok());
    let is_in_range = percent.is_some_and(|percent| (0.0..=100.0).contains(&percent));
    (is_number && !is_in_range).then_some("must be between 0 and 100")
}

/// RFC 1123 label: what Namespaces and containers are called.
pub fn dns_label(name: &str) -> Option<String> {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    if name.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    if !name.chars().all(inner) || !edge(name.chars().next()) || !edge(name.chars().next_back()) {
        return Some(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character"
                .into(),
        );
    }
    None
}

/// RFC 1035 label: what Services are called.
pub fn service_name(name: &str) -> Option<String> {
    let starts = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    dns_label(name).or_else(|| (!starts).then(|| "a service name must start with a letter (RFC 1035)".into()))
}

/// RFC 1123 subdomain: what everything else is called.
pub fn dns_subdomain(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 characters".into());
    }
    if name
        .split('.')
        .any(|label| label.is_empty() || dns_label(label).is_some_and(|why| !why.contains("63")))
    {
        return Some(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
                .into(),
        );
    }
    None
}

/// IANA service name: what ports of containers are called.
pub fn port_name(name: &str) -> Option<String> {
    let letters = name.chars().any(|c| c.is_ascii_lowercase());
    if name.len() > 15 {
        return Some("must be no more than 15 characters".into());
    }
    if !letters || dns_label(name).is_some() || name.contains("--") {
        return Some(
            "must consist of lower case alphanumeric characters or '-', with at least one letter".into(),
        );
    }
    None
}

/// `[prefix/]name`.
pub fn label_key(key: &str) -> Option<String> {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if let Some(why) = prefix.and_then(dns_subdomain) {
        return Some(format!("the prefix is malformed: {why}"));
    }
    if name.is_empty() {
        return Some("the name part must not be empty".into());
    }
    qualified(name)
}

/// At most 63 characters, may be empty.
pub fn label_value(value: &str) -> Option<String> {
    if value.is_empty() { None } else { qualified(value) }
}

fn qualified(text: &str) -> Option<String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.len() > 63 {
        return Some("must be no more than 63 characters".into());
    }
    if !text.chars().all(inner) || !edge(text.chars().next()) || !edge(text.chars().next_back()) {
        return Some(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character"
                .into(),
        );
    }
    None
}

/// A decimal port of a policy, 0 to 65535 as in Istio.
pub fn policy_port(text: &str) -> Option<String> {
    let decimal = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if decimal && text.parse::<u16>().is_ok() {
        return None;
    }
    Some(format!("bad port ({text}): ports are decimal numbers of 0 to 65535"))
}

/// An address or a CIDR range.
pub fn ip_block(text: &str) -> Option<String> {
    match text.split_once('/') {
        Some((address, length)) => {
            let bits = address.parse::<IpAddr>().ok().map(|ip| if ip.is_ipv4() { 32 } else { 128 });
            let length = length.parse::<u8>().ok().filter(|_| length.bytes().all(|b| b.is_ascii_digit()));
            match (bits, length) {
                (Some(bits), Some(length)) if length <= bits => None,
                (None, _) => Some(format!("bad CIDR range ({text}): `{address}` is no IP address")),
                _ => Some(format!(
                    "bad CIDR range ({text}): the prefix length must be 0 to {}",
                    bits.unwrap_or(32)
                )),
            }
        }
        None if text.parse::<IpAddr>().is_ok() => None,
        None => Some(format!("bad IP address ({text})")),
    }
}

/// A trust domain pattern of `trustDomains`.
pub fn trust_domain_pattern(text: &str, field: &str) -> Option<String> {
    let stars = text.matches('*').count();
    if text.contains('/') {
        Some(format!("trust domain must not contain '/', found in {field}"))
    } else if stars > 1 {
        Some(format!("at most one wildcard is allowed, found in {field}"))
    } else if stars == 1 && !text.starts_with('*') && !text.ends_with('*') {
        Some(format!("wildcard is only allowed at the start or end, found in {field}"))
    } else {
        None
    }
}

/// A trust domain itself (SPIFFE-ID 2.1).
pub fn trust_domain(text: &str) -> Option<String> {
    let known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
    if text.is_empty() {
        Some("a trust domain must not be empty".into())
    } else if text.len() > 255 {
        Some("a trust domain has at most 255 characters".into())
    } else if !text.chars().all(known) {
        Some("a trust domain has only lower-case letters, digits, `.`, `-` and `_`".into())
    } else {
        None
    }
}

/// `serviceAccount` or `namespace/serviceAccount`.
pub fn service_account(text: &str, field: &str) -> Option<String> {
    let form = "expected format 'serviceAccount' or 'namespace/serviceAccount'";
    if text.contains('*') {
        return Some(format!("wildcard not allowed, found in {field}"));
    }
    if text.chars().count() > 320 {
        return Some(format!("value cannot exceed 320 characters, found \"{text}\" in {field}"));
    }
    match text.split_once('/') {
        None => None,
        Some((_, name)) if name.contains('/') => Some(format!("{form}, found \"{text}\" in {field}")),
        Some(("", _)) => Some(format!("{form}, found empty namespace in \"{text}\" in {field}")),
        Some((_, "")) => Some(format!("{form}, found empty serviceAccount in \"{text}\" in {field}")),
        Some(_) => None,
    }
}

/// Whether Istio reads the value as a template.
pub fn is_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// Istio's check of path templates (also of plain paths, which may not hold braces).
pub fn path_template(path: &str, field: &str) -> Option<String> {
    let trimmed = path.trim_matches('/');
    let refuse =
        |why: String| Some(format!("invalid or unsupported path {trimmed}, found in {field}. {why}"));
    let template = is_template(path);
    let mut last_operator = false;
    for segment in trimmed.split('/') {
        match segment {
            "{*}" | "{**}" if last_operator => return refuse("{**} is not the last operator".into()),
            "{*}" => {}
            "{**}" => last_operator = true,
            _ if segment.contains(['{', '}']) => {
                return refuse("Contains '{' or '}' beyond a supported path template".into());
            }
            _ if template && !literal(segment) => {
                return refuse(format!("Contains segment {segment} with invalid string literal"));
            }
            _ => {}
        }
    }
    None
}

/// RFC 3986 pchar, without `*`.
fn literal(segment: &str) -> bool {
    !segment.is_empty()
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn path_templates_are_istios() {
        for good in ["/{*}/foo", "/{*}/foo/", "/foo/{**}/bar", "/foo/bar/{**}", "/plain", "/pre*", "*.txt"] {
            assert_eq!(path_template(good, "Paths"), None, "{good}");
        }
        for bad in [
            "/foo/{**}buzz/bar",
            "/{*}/foo/{}/bar",
            "/foo/{*}/bar/*",
            "/foo/{*}/bar/**/buzz",
            "/foo/{buzz}/bar",
            "/{buzz}",
            "/foo/{buzz}/bar/{**}",
            "/foo/{buzz=*}/bar/{**}",
            "/{*}/foo/{buzz=**}/bar",
            "/{*}/foo/{**}bar",
            "/{*}/foo/{*}.txt",
            "/{*}/foo/{temp",
            "/{*}/foo/temp}/bar",
            "/{*}/foo/temp}/*",
            "/{**}/foo/temp/{*}/bar",
            "/{**}/{**}",
            "/{**}/foo/temp/{**}/bar",
            "/{*}/foo/?abc",
        ] {
            assert!(path_template(bad, "Paths").is_some(), "{bad}");
        }
        assert_eq!(
            path_template("/foo/{**}/{*}", "Paths").unwrap(),
            "invalid or unsupported path foo/{**}/{*}, found in Paths. {**} is not the last operator"
        );
    }

    #[test]
    fn small_grammars() {
        type Check = fn(&str) -> Option<String>;
        let cases: &[(Check, &[&str], &[&str])] = &[
            (dns_label, &["a", "a-1", "1a"], &["", "-a", "a-", "A", "a.b", "a_b"]),
            (service_name, &["api", "a1"], &["1a", "Api", ""]),
            (dns_subdomain, &["a", "a.b-c"], &["", "a..b", ".a", "a_b", "A"]),
            (port_name, &["http", "grpc-web", "8x"], &["", "8080", "http--x", "a-name-with-16-ch", "Http"]),
            (label_key, &["app", "app.kubernetes.io/name", "A_b"], &["", "/x", "a/", "a b", "UP/x", "a/b/c"]),
            (label_value, &["", "a", "A.b_c"], &["-a", "a b", "a*"]),
            (policy_port, &["0", "80", "65535"], &["", "65536", "-1", "+1", "0x50", "http"]),
            (
                ip_block,
                &["1.2.3.4", "10.0.0.0/8", "::1", "fd00::/8"],
                &["a.b.c.d", "1.2.3.4/33", "1.2.3/8", "::/129", "", "1.2.3.4/+8"],
            ),
            (trust_domain, &["cluster.local", "a_b-c.d"], &["", "Cluster.local", "a/b", "spiffe://a"]),
            (
                |t| trust_domain_pattern(t, "x"),
                &["cluster.local", "*", "foo*", "*bar"],
                &["fo*-bar", "fo*bar*", "a/b"],
            ),
            (
                |t| service_account(t, "x"),
                &["sa", "ns/sa"],
                &["too/many/slashes", "/emptyns", "emptysa/", "a*"],
            ),
        ];
        for (i, (check, good, bad)) in cases.iter().enumerate() {
            for text in *good {
                assert_eq!(check(text), None, "case {i}: {text}");
            }
            for text in *bad {
                assert!(check(text).is_some(), "case {i}: {text}");
            }
        }
    }
}
