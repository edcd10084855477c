//! Claims of a verified token: `requestPrincipals` and `request.auth.*` (reference 2.7, 2.10, Appendix B.3).
//!
//! Only text and lists of texts ever match; numbers, booleans, null and objects do not.

use super::Text;
use serde_json::{Map, Value};

/// One value of `requestPrincipals`: a pattern on `iss` and one on `sub`, split at the last slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestPrincipal {
    issuer: Text,
    subject: Text,
}

impl RequestPrincipal {
    /// Reads a value; every text is one. Only the issuer can be a suffix pattern beside an exact subject, and only the
    /// subject a prefix pattern beside an exact issuer, as in Istio.
    pub fn parse(value: &str) -> Self {
        let exact = |text: &str| Text::Exact(text.into());
        let (issuer, subject) = match value.rsplit_once('/') {
            _ if value == "*" => (Text::Present, Text::Present),
            Some((issuer, subject)) if value.starts_with('*') => (Text::parse(issuer), exact(subject)),
            Some((issuer, subject)) if value.ends_with('*') => (exact(issuer), Text::parse(subject)),
            Some((issuer, subject)) => (exact(issuer), exact(subject)),
            None if value.starts_with('*') => (Text::Present, Text::parse(value)),
            None if value.ends_with('*') => (Text::parse(value), Text::Present),
            None => (exact(value), exact("")),
        };
        Self { issuer, subject }
    }

    /// Both claims have to be texts and to fit.
    pub fn matches(&self, claims: &Map<String, Value>) -> bool {
        let fits = |name: &str, wanted: &Text| {
            claims.get(name).and_then(Value::as_str).is_some_and(|text| wanted.matches(text.as_bytes()))
        };
        fits("iss", &self.issuer) && fits("sub", &self.subject)
    }

    /// The pattern on `iss`.
    pub(crate) fn issuer(&self) -> &Text {
        &self.issuer
    }

    /// The pattern on `sub`.
    pub(crate) fn subject(&self) -> &Text {
        &self.subject
    }
}

/// Where a claim is, and which of its forms count.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimPath {
    /// Names from the outside in; never empty.
    names: Box<[Box<str>]>,
    form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Form {
    /// A text.
    Text,
    /// A text, or a list with texts.
    List,
    /// A text of words, each of which counts for itself, or a list with texts.
    Words,
}

impl ClaimPath {
    /// `request.auth.audiences`.
    pub fn audiences() -> Self {
        Self { names: ["aud".into()].into(), form: Form::List }
    }

    /// `request.auth.presenter`.
    pub fn presenter() -> Self {
        Self { names: ["azp".into()].into(), form: Form::Text }
    }

    /// Reads what follows `request.auth.claims`: `[a]`, `[a][b]`. What nests badly, such as `[a]x[b]`, is one name.
    pub fn parse(bracketed: &str) -> Option<Self> {
        let inner = bracketed.strip_prefix('[')?.strip_suffix(']')?;
        let names: Box<[Box<str>]> = inner.split("][").map(Into::into).collect();
        if names.iter().any(|name| name.is_empty()) {
            return None;
        }
        let form = match &*names {
            [only] if matches!(&**only, "scope" | "permission") => Form::Words,
            _ => Form::List,
        };
        Some(Self { names, form })
    }

    /// The outermost name.
    pub(crate) fn first(&self) -> &str {
        self.names.first().map(|name| &**name).unwrap_or_default()
    }

    /// What stands there, in whatever form.
    pub fn find<'c>(&self, claims: &'c Map<String, Value>) -> Option<&'c Value> {
        let (first, rest) = self.names.split_first()?;
        rest.iter().try_fold(claims.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }

    /// Every text that counts, until `wanted` takes one.
    pub fn any(&self, claims: &Map<String, Value>, mut wanted: impl FnMut(&str) -> bool) -> bool {
        match self.find(claims) {
            Some(Value::String(text)) if self.form == Form::Words => {
                text.split(' ').filter(|word| !word.is_empty()).any(wanted)
            }
            Some(Value::String(text)) => wanted(text),
            Some(Value::Array(list)) if self.form != Form::Text => {
                list.iter().filter_map(Value::as_str).any(wanted)
            }
            _ => false,
        }
    }
}

impl std::fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names.join("."))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn check((pattern, issuer, subject): (&str, &str, &str), expected: bool) {
        let token = claims(serde_json::json!({"iss": issuer, "sub": subject}));
        assert_eq!(
            RequestPrincipal::parse(pattern).matches(&token),
            expected,
            "{pattern} on {issuer} {subject}"
        );
    }

    #[test]
    fn request_principals_split_at_the_last_slash() {
        for (input, expected) in [
            (("*", "i", "s"), true),
            (("*", "i", ""), false),
            (("*", "", "s"), false),
            (("*/s", "i", "s"), true),
            (("*/s", "", "s"), false),
            (("*/s*", "i", "s*"), true),
            (("*/s*", "i", "st"), false),
            (("*bar/foo", "foobar", "foo"), true),
            (("*bar/foo", "barfoo", "foo"), false),
            (("*foo", "i", "a-foo"), true),
            (("*foo", "", "a-foo"), false),
            (("iss/*", "iss", "x"), true),
            (("iss/*", "iss", ""), false),
            (("iss/*", "is", "x"), false),
            (("iss/pre*", "iss", "prefix"), true),
            (("iss/pre*", "iss", "pr"), false),
            (("foo*", "foobar", "x"), true),
            (("foo*", "foobar", ""), false),
            (("foo*", "afoo", "x"), false),
            (("foo/bar", "foo", "bar"), true),
            (("foo/bar", "foo", "baz"), false),
            (("abc", "abc", ""), true),
            (("abc", "abc", "x"), false),
            (("https://issuer//sub", "https://issuer/", "sub"), true),
            (("https://host/tenant/*", "https://host/tenant/v2.0", "x"), false),
            (("https://host/tenant/*", "https://host/tenant", "x"), true),
        ] {
            check(input, expected);
        }
        let any = RequestPrincipal::parse("*");
        assert!(!any.matches(&claims(serde_json::json!({"iss": "i"}))));
        assert!(!any.matches(&claims(serde_json::json!({"iss": "i", "sub": 7}))));
        assert!(!RequestPrincipal::parse("abc").matches(&claims(serde_json::json!({"iss": "abc"}))));
    }

    #[test]
    fn claims_are_texts_or_lists_of_texts() {
        let token = claims(serde_json::json!({
            "id": "a", "groups": ["g1", 2, "g3"], "admin": true, "level": 7, "none": null,
            "nested": {"key": "v", "deep": {"key": ["w"]}}, "a.b": "dotted", "a]x[b": "odd",
            "scope": "read write", "permission": ["x y"], "aud": "me", "azp": ["p"]
        }));
        for (path, text, expected) in [
            ("[id]", "a", true),
            ("[id]", "b", false),
            ("[groups]", "g3", true),
            ("[groups]", "2", false),
            ("[admin]", "true", false),
            ("[level]", "7", false),
            ("[none]", "null", false),
            ("[nested][key]", "v", true),
            ("[nested]", "v", false),
            ("[nested][deep][key]", "w", true),
            ("[nested][none]", "v", false),
            ("[id][a]", "a", false),
            ("[a.b]", "dotted", true),
            ("[a]x[b]", "odd", true),
            ("[scope]", "write", true),
            ("[scope]", "read write", false),
            ("[permission]", "x y", true),
        ] {
            let path = ClaimPath::parse(path).unwrap();
            assert_eq!(path.any(&token, |value| value == text), expected, "{path} {text}");
        }
        assert!(ClaimPath::audiences().any(&token, |value| value == "me"));
        assert!(!ClaimPath::presenter().any(&token, |value| value == "p"));
    }

    #[test]
    fn names_in_brackets_follow_the_reference_table() {
        for (key, expected) in
            [("[a][b][c]", "a.b.c"), ("[[good]", "[good"), ("[good]]", "good]"), ("[a] [b]", "a] [b")]
        {
            assert_eq!(ClaimPath::parse(key).unwrap().to_string(), expected);
        }
        for bad in ["", "[]", "x[bad]", "[bad", "bad]", "bad", "[a][]"] {
            assert!(ClaimPath::parse(bad).is_none(), "{bad}");
        }
    }
}
