//! The small words of all rules: exact, prefix, suffix, presence, CIDR, identity, path template.
//!
//! What users write never becomes a regular expression: every form that Istio compiles to one has an exact matcher
//! here, so that no value can mean more than it says and none can be slow.

pub mod address;
pub mod claims;
pub mod identity;
pub mod template;

pub use address::AddressBlock;
pub use claims::{ClaimPath, RequestPrincipal};
pub use identity::{Principal, ServiceAccount, TrustDomainPattern};
pub use template::PathTemplate;

/// A text pattern of reference 2.6.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Text {
    /// `*`: anything but the empty text.
    Present,
    /// Literally this; an asterisk in the middle is an asterisk.
    Exact(Box<str>),
    /// `v*`.
    Prefix(Box<str>),
    /// `*v`.
    Suffix(Box<str>),
}

impl Text {
    /// Reads a pattern; every text is one. The forms are tried in Istio's order, so `*abc*` is the suffix `abc*`.
    pub fn parse(value: &str) -> Self {
        if value == "*" {
            Self::Present
        } else if let Some(suffix) = value.strip_prefix('*') {
            Self::Suffix(suffix.into())
        } else if let Some(prefix) = value.strip_suffix('*') {
            Self::Prefix(prefix.into())
        } else {
            Self::Exact(value.into())
        }
    }

    /// Case-sensitive, on bytes.
    pub fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Present => !value.is_empty(),
            Self::Exact(wanted) => value == wanted.as_bytes(),
            Self::Prefix(wanted) => value.starts_with(wanted.as_bytes()),
            Self::Suffix(wanted) => value.ends_with(wanted.as_bytes()),
        }
    }

    /// Ignores the case of ASCII letters, as `hosts` do.
    pub fn matches_ignore_case(&self, value: &str) -> bool {
        let value = value.as_bytes();
        let (wanted, part) = match self {
            Self::Present => return !value.is_empty(),
            Self::Exact(wanted) => (wanted, Some(value)),
            Self::Prefix(wanted) => (wanted, value.get(..wanted.len())),
            Self::Suffix(wanted) => {
                (wanted, value.len().checked_sub(wanted.len()).and_then(|start| value.get(start..)))
            }
        };
        part.is_some_and(|part| part.eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

/// One value of `paths`: a text pattern, or a template when it holds `{*}` or `{**}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Reference 2.6.
    Text(Text),
    /// Reference 2.8.
    Template(PathTemplate),
}

impl Path {
    /// Reads one value of `paths`.
    ///
    /// # Errors
    /// Braces that do not form a supported template.
    pub fn parse(value: &str) -> Result<Self, String> {
        if value.contains(['{', '}']) {
            PathTemplate::parse(value).map(Self::Template)
        } else {
            Ok(Self::Text(Text::parse(value)))
        }
    }

    /// `path` is normalized and carries no query.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Text(text) => text.matches(path.as_bytes()),
            Self::Template(template) => template.matches(path),
        }
    }
}

/// A port as policies write it: decimal digits, 0 to 65535.
///
/// # Errors
/// Istio's words for a bad port.
pub fn parse_port(value: &str) -> Result<u16, String> {
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    value
        .parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| format!("bad port ({value}): must be 0 to 65535, decimal"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check((pattern, value): (&str, &str), expected: bool) {
        assert_eq!(Text::parse(pattern).matches(value.as_bytes()), expected, "{pattern:?} on {value:?}");
    }

    #[test]
    fn the_four_forms_match_as_istio_reads_them() {
        for (input, expected) in [
            (("*", "x"), true),
            (("*", ""), false),
            (("GET", "GET"), true),
            (("GET", "get"), false),
            (("GET", "GETS"), false),
            (("G*", "GET"), true),
            (("G*", "G"), true),
            (("G*", "PG"), false),
            (("*T", "GET"), true),
            (("*T", "T"), true),
            (("*T", "TE"), false),
            (("*/productpage*", "/a/productpage*"), true),
            (("*/productpage*", "/a/productpage"), false),
            (("*/productpage*", "/a/productpage/b"), false),
            (("/service/*health", "/service/*health"), true),
            (("/service/*health", "/service/my/health"), false),
            (("**", "*"), true),
            (("**", "a*"), true),
            (("**", "a"), false),
        ] {
            check(input, expected);
        }
    }

    #[test]
    fn hosts_ignore_case_and_keep_the_port() {
        for (pattern, host, expected) in [
            ("Ex.com", "ex.COM", true),
            ("ex.com", "ex.com:8080", false),
            ("ex.com:*", "EX.com:8080", true),
            ("*.Example.com", "a.example.COM", true),
            ("*.example.com", "example.com", false),
            ("*.example.com:*", "a.example.com:80", false),
            ("*", "a", true),
            ("*", "", false),
            ("longer.example.com*", "short", false),
            ("*longer.example.com", "short", false),
        ] {
            assert_eq!(Text::parse(pattern).matches_ignore_case(host), expected, "{pattern:?} on {host:?}");
        }
    }

    #[test]
    fn a_port_is_decimal_digits_up_to_65535() {
        for (value, expected) in
            [("0", Some(0)), ("8080", Some(8080)), ("65535", Some(65535)), ("65536", None), ("-1", None)]
        {
            assert_eq!(parse_port(value).ok(), expected, "{value:?}");
        }
        for value in ["", "x", "+80", " 80", "80 ", "8 0", "http"] {
            assert!(parse_port(value).is_err(), "{value:?}");
        }
    }
}
