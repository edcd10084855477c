//! Path templates: `{*}` for one segment, `{**}` for any number of them (reference 2.8, Appendix B.4).
//!
//! `{*}` stands for a whole segment and `{**}` is the last operator, so a match needs no backtracking.

/// A parsed template over a whole path, without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathTemplate {
    head: Vec<Segment>,
    /// What follows `{**}` literally, with its leading slash; `None` when there is no `{**}`.
    tail: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Segment {
    Literal(Box<str>),
    /// `{*}`
    One,
}

impl PathTemplate {
    /// Reads a template.
    ///
    /// # Errors
    /// Istio's words for what is wrong with it, plus a missing leading slash, which Istio lets through and Envoy
    /// then rejects together with the whole listener.
    pub fn parse(value: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("invalid or unsupported path {value}, found in Paths. {why}"));
        let Some(inner) = value.strip_prefix('/') else {
            return bad("A path template has to start with '/'");
        };
        let segments: Vec<&str> = inner.split('/').collect();
        let last = segments.len().saturating_sub(1);
        let mut head = Vec::new();
        let mut tail: Option<String> = None;
        for (index, segment) in segments.into_iter().enumerate() {
            match segment {
                "{*}" | "{**}" if tail.is_some() => return bad("{**} is not the last operator"),
                "{**}" => tail = Some(String::new()),
                "{*}" => head.push(Segment::One),
                _ if segment.contains(['{', '}']) => {
                    return bad("Contains '{' or '}' beyond a supported path template");
                }
                _ if segment.is_empty() && index != last => return bad("Contains an empty segment"),
                _ if !segment.bytes().all(is_literal) => {
                    return bad(&format!("Contains segment {segment} with invalid string literal"));
                }
                _ => match &mut tail {
                    Some(tail) => {
                        tail.push('/');
                        tail.push_str(segment);
                    }
                    None => head.push(Segment::Literal(segment.into())),
                },
            }
        }
        Ok(Self { head, tail: tail.map(String::into_boxed_str) })
    }

    /// What stands before `{**}`, or all of it.
    pub(crate) fn head(&self) -> &[Segment] {
        &self.head
    }

    /// What follows `{**}` literally; `None` when there is no `{**}`.
    pub(crate) fn tail(&self) -> Option<&str> {
        self.tail.as_deref()
    }

    /// Whether the whole of `path` fits. A trailing slash is significant.
    pub fn matches(&self, path: &str) -> bool {
        let mut rest = Some(path);
        for wanted in &self.head {
            let Some(inner) = rest.and_then(|rest| rest.strip_prefix('/')) else { return false };
            let end = inner.find('/').unwrap_or(inner.len());
            let (segment, after) = inner.split_at(end);
            let fits = match wanted {
                Segment::Literal(literal) => segment == &**literal,
                Segment::One => !segment.is_empty() && segment.bytes().all(is_variable),
            };
            if !fits {
                return false;
            }
            rest = (!after.is_empty()).then_some(after);
        }
        match (&self.tail, rest) {
            (None, rest) => rest.is_none(),
            (Some(_), None) => false,
            (Some(tail), Some(rest)) => rest
                .strip_prefix('/')
                .and_then(|inner| inner.strip_suffix(&**tail))
                .is_some_and(|middle| middle.bytes().all(|byte| byte == b'/' || is_variable(byte))),
        }
    }
}

/// A character that a template may contain literally.
fn is_literal(byte: u8) -> bool {
    byte != b'*' && is_variable(byte)
}

/// A character that an operator stands for.
pub(crate) fn is_variable(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=*".contains(&byte)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check((template, path): (&str, &str), expected: bool) {
        assert_eq!(PathTemplate::parse(template).unwrap().matches(path), expected, "{template} on {path}");
    }

    #[test]
    fn templates_match_whole_segments() {
        for (input, expected) in [
            (("/foo/{*}", "/foo/a"), true),
            (("/foo/{*}", "/foo/"), false),
            (("/foo/{*}", "/foo/a/"), false),
            (("/foo/{*}", "/foo/a/b"), false),
            (("/{*}/foo/", "/a/foo/"), true),
            (("/{*}/foo/", "/a/foo"), false),
            (("/{*}", "/a%20b"), true),
            (("/{*}", "/a|b"), false),
            (("/{*}", "/a[b]"), false),
            (("/{*}", "/\u{e9}"), false),
            (("/{**}", "/"), true),
            (("/{**}", "/a//b"), true),
            (("/{**}", "/a|b"), false),
            (("/{**}", ""), false),
            (("/foo/{**}", "/foo/"), true),
            (("/foo/{**}", "/foo/a/b"), true),
            (("/foo/{**}", "/foo"), false),
            (("/foo/{**}", "/food/a"), false),
            (("/store/{**}/cart", "/store//cart"), true),
            (("/store/{**}/cart", "/store/a/b/cart"), true),
            (("/store/{**}/cart", "/store/cart"), false),
            (("/store/{**}/cart", "/store/a/cart/"), false),
            (("/store/{**}/cart/", "/store/a/cart/"), true),
            (("/store/{**}/cart/x", "/store/a/cart/x"), true),
        ] {
            check(input, expected);
        }
    }

    #[test]
    fn the_integration_table_of_istio_holds() {
        let templates = ["/allow/admin/{**}", "/foo/{*}/bar/{**}", "/store/{**}/cart"]
            .map(|template| PathTemplate::parse(template).unwrap());
        let any = |path: &str| templates.iter().any(|template| template.matches(path));
        for path in [
            "/allow/admin/",
            "/allow/admin/temp",
            "/allow/admin/temp.txt",
            "/allow/admin/foo/temp.txt",
            "/foo/buzz/bar/bat.txt",
            "/foo/buzz/bar/bat.temp.txt",
            "/foo/buzz/bar/bat/fuzz.txt",
            "/foo/buzz/bar/bat",
            "/store//cart",
            "/store/foo/cart",
            "/store/foo/bar/cart",
        ] {
            assert!(any(path), "{path}");
        }
        for path in
            ["/allow/admin", "/allow/user/", "/allow", "/foo/bar/bat.txt", "/foo//bar/bat.txt", "/store/cart"]
        {
            assert!(!any(path), "{path}");
        }
    }

    #[test]
    fn validation_follows_the_reference_table() {
        for good in ["/{*}/foo", "/{*}/foo/", "/foo/{**}/bar", "/foo/bar/{**}"] {
            assert!(PathTemplate::parse(good).is_ok(), "{good}");
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
            "foo/{*}",
            "/a//{*}",
        ] {
            assert!(PathTemplate::parse(bad).is_err(), "{bad}");
        }
    }
}
