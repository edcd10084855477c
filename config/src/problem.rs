//! What is wrong with a document, where, why, and what to do; and the one table of codes.
use std::fmt;

/// How bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth a look; the documents are used.
    Warning,
    /// The folder is rejected.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding. `Display` prints it as rustc would: message, `--> file:line:column`, the line, carets, `help:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Stable code, e.g. `PST0101`.
    pub code: &'static str,
    /// File as the user named it.
    pub file: String,
    /// 1-based; 0 when unknown.
    pub line: usize,
    /// 1-based, in characters; 0 when unknown.
    pub column: usize,
    /// What is wrong and why, one sentence.
    pub reason: String,
    /// What to do, one sentence.
    pub hint: String,
    /// The source line, when there is one.
    pub source_line: Option<String>,
}

/// Longest excerpt of a source line that is printed, in characters.
const EXCERPT: usize = 160;

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]: {}", self.severity, self.code, printable(&self.reason))?;
        let gutter = if self.line == 0 { 1 } else { self.line.to_string().len() };
        if !self.file.is_empty() {
            write!(f, "\n{:gutter$}--> {}", "", printable(&self.file))?;
            if self.line > 0 {
                write!(f, ":{}", self.line)?;
                if self.column > 0 {
                    write!(f, ":{}", self.column)?;
                }
            }
        }
        if let Some(source) = self.source_line.as_deref().filter(|_| self.line > 0) {
            let skip = if self.column > EXCERPT - 20 { self.column - 40 } else { 0 };
            let excerpt: String = printable(source).chars().skip(skip).take(EXCERPT).collect();
            write!(f, "\n{:gutter$} |\n{} | {}", "", self.line, excerpt.trim_end())?;
            if self.column > 0 {
                let before = self.column - 1 - skip;
                let carets = token_width(&excerpt, before);
                write!(f, "\n{:gutter$} | {:before$}{}", "", "", "^".repeat(carets))?;
            }
        }
        if !self.hint.is_empty() {
            write!(f, "\n{:gutter$} = help: {}", "", printable(&self.hint))?;
        }
        Ok(())
    }
}

/// Control characters could drive the reader's terminal; tabs would shift the carets.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Width in characters of the YAML token that begins after `before` characters; at least one.
fn token_width(line: &str, before: usize) -> usize {
    let rest: Vec<char> = line.chars().skip(before).collect();
    let Some(&first) = rest.first() else { return 1 };
    if first == '"' || first == '\'' {
        let close = rest.iter().skip(1).position(|&c| c == first);
        return close.map_or(rest.len(), |at| at + 2);
    }
    let mut width = 0;
    for (i, &c) in rest.iter().enumerate() {
        let next = rest.get(i + 1).copied().unwrap_or(' ');
        let ends = match c {
            ',' | ']' | '}' | '[' | '{' => true,
            ':' => next == ' ',
            ' ' => next == ' ' || next == '#' || first == '-',
            _ => false,
        };
        if ends {
            break;
        }
        width = i + 1;
    }
    width.max(1)
}

/// One stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    /// E.g. `PST0102`; never reused for another meaning.
    pub code: &'static str,
    /// A few words.
    pub title: &'static str,
    /// What it means and what to do, for the documentation.
    pub explanation: &'static str,
}

/// The explanation of a code such as `PST0102`.
pub fn explain(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|c| c.code.eq_ignore_ascii_case(code))
}

macro_rules! codes {
    ($($name:ident $code:literal $title:literal $explanation:literal;)*) => {
        $(#[doc = $title] pub const $name: &str = $code;)*
        /// Every code, in order; the documentation is printed from it.
        pub const CODES: &[Code] = &[$(Code { code: $code, title: $title, explanation: $explanation }),*];
    };
}

codes! {
    SYNTAX "PST0101" "not YAML" "The text is not YAML. Only the document (between two `---` lines) that holds the error is skipped; the others are still checked.";
    UNKNOWN_FIELD "PST0102" "unknown field" "The object has no field of this name. Unknown fields are refused since a misspelt field of a policy would otherwise widen it in silence.";
    WRONG_TYPE "PST0103" "wrong type" "The field holds another kind of value than its schema says, for example a number where a string is wanted. Numbers, true, false, yes, no, on and off must be quoted to be strings.";
    DUPLICATE_KEY "PST0104" "duplicate key" "One mapping has the same key twice; which one counts would depend on the reader.";
    MISSING_FIELD "PST0105" "missing field" "A required field is absent or empty.";
    TOO_LARGE "PST0106" "too large" "A file is above 4 MiB, a document has more nodes (after aliases are followed) or deeper nesting than any real one, or a file has more findings than are worth printing.";
    UNKNOWN_KIND "PST0107" "unknown kind" "The API group is one whose kinds Postern knows, and it has no such kind.";
    WRONG_API_VERSION "PST0108" "wrong apiVersion" "The kind exists, under another apiVersion.";
    IGNORED_KIND "PST0109" "kind ignored" "Postern has no use for objects of this kind; the document changes nothing.";
    NOT_A_DOCUMENT "PST0110" "not a Kubernetes document" "A document must be a mapping with apiVersion, kind and metadata.";
    UNSUPPORTED_YAML "PST0111" "YAML that Kubernetes cannot hold" "Custom tags, keys that are not scalars and the like have no JSON form.";
    UNKNOWN_VALUE "PST0112" "unknown value" "The field takes one of a fixed set of words.";
    KIND_NOT_ENFORCED "PST0201" "kind not enforced yet" "Postern knows the kind and does not act on it yet. It is refused, never ignored, so that nobody relies on a protection that is not there.";
    FIELD_NOT_ENFORCED "PST0202" "not enforced yet" "The field, action or condition parses and is not evaluated yet; the policy is refused instead of being applied in part.";
    MESH_KEY_NOT_ENFORCED "PST0203" "mesh setting not enforced yet" "A real MeshConfig key that Postern does not act on yet.";
    NOT_HONOURED "PST0204" "not honoured by postern up" "The field changes what a cluster would run, and `postern up`, which runs host processes, cannot do the same.";
    NOT_APPLICABLE "PST0205" "not applicable to sidecars" "A policy with targetRef or targetRefs is for gateways and waypoints; on sidecars it enforces nothing, as in Istio.";
    BAD_NAME "PST0301" "malformed name" "Names follow RFC 1123 (lower-case letters, digits, `-`, and `.` where a subdomain is allowed).";
    BAD_LABEL "PST0302" "malformed label" "Label keys are `[prefix/]name`, label values at most 63 characters of letters, digits, `-`, `_`, `.`, beginning and ending with a letter or digit.";
    BAD_PORT "PST0303" "bad port" "Ports are decimal numbers in their range.";
    BAD_ADDRESS "PST0304" "bad IP address or CIDR" "Addresses are IPv4, IPv6, or a CIDR range of one of them.";
    BAD_SELECTOR "PST0305" "bad selector" "A selector is a map of labels without wildcards and with non-empty keys.";
    EMPTY_RULE "PST0306" "empty part of a rule" "A rule, source, operation or condition that says nothing; Istio refuses it, too.";
    BAD_CONDITION "PST0307" "bad condition" "A `when` entry needs a known key, and values or notValues of the form that the key takes.";
    BAD_SERVICE_ACCOUNT "PST0308" "bad serviceAccounts" "At most 16 values `serviceAccount` or `namespace/serviceAccount`, without wildcards, not beside principals or namespaces.";
    BAD_TRUST_DOMAIN "PST0309" "bad trust domain" "A trust domain has no slash; a pattern has at most one wildcard, at its start or end.";
    BAD_TEMPLATE "PST0310" "bad path template" "`{*}` is one segment, `{**}` the rest and only once as the last operator; a segment is an operator or a literal.";
    EMPTY_VALUE "PST0311" "empty value" "An empty string never matches; Istio refuses it, too.";
    BAD_PORT_LEVEL "PST0312" "bad portLevelMtls" "Port level mutual TLS needs a selector, at least one entry, and ports of 1 to 65535.";
    BAD_ACTION "PST0313" "bad action" "The action does not fit the rest of the policy.";
    OUT_OF_RANGE "PST0314" "out of range" "The number or list is outside its limits.";
    BAD_TARGET_REF "PST0315" "bad targetRefs" "At most one of selector, targetRef and targetRefs, and a reference that names a kind that policies attach to.";
    DUPLICATE_OBJECT "PST0401" "two objects with one name" "Two documents have the same kind, namespace and name.";
    SELECTOR_MISMATCH "PST0402" "selector does not match its template" "A Deployment must select the pods that it makes.";
    DUPLICATE_PORT "PST0403" "one port twice" "Two entries claim the same port or port name.";
    PORT_NOT_FOUND "PST0404" "targetPort not found" "No selected pod has a container port of that name.";
    NO_SERVICE_ACCOUNT "PST0405" "missing ServiceAccount" "The folder declares service accounts and not this one.";
    NO_COMMAND "PST0406" "container without command" "`postern up` runs container commands as host processes and pulls no images.";
    SELECTS_NOTHING "PST0407" "selector matches nothing" "No pod of the folder has these labels.";
    NO_EFFECT "PST0408" "no effect" "The document is valid and changes nothing, for example a PeerAuthentication with a selector in the root namespace.";
    SPIFFE_PREFIX "PST0501" "spiffe:// in a principal" "Istio adds `spiffe://` itself, so that a value that has it never matches.";
    METHOD_CASE "PST0502" "lower-case method" "Methods are case-sensitive; HTTP's are upper-case.";
    MIDDLE_WILDCARD "PST0503" "wildcard in the middle" "`*` is a wildcard only as the first or the last character; elsewhere it is a literal asterisk.";
    RELATIVE_PATH "PST0504" "path without leading slash" "Request paths begin with `/`, so that this value never matches.";
    DENIES_TCP "PST0505" "DENY widens on TCP" "On TCP ports the HTTP attributes of a DENY rule are dropped and the rest of the rule stays: it denies more.";
    EMPTY_LIST "PST0506" "empty list" "An empty list is the same as an absent one: it matches anything.";
    EMPTY_SELECTOR "PST0507" "selector without labels" "An empty selector selects everything in its scope.";
    DUPLICATE_CONDITION "PST0508" "condition key twice" "Two conditions with one key are ANDed.";
    HOST_PATTERN "PST0509" "host pattern that never matches" "`*` is a wildcard only as the first or last character of a host, and one pattern has one wildcard.";
    NOT_SELECTED "PST0601" "policy for another workload" "A workload was sent a policy whose namespace or selector does not concern it; the whole update is refused and the last good one stays.";
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn codes_are_unique_and_in_order() {
        assert!(CODES.windows(2).all(|w| w[0].code < w[1].code));
        assert_eq!(explain("pst0102").unwrap().title, "unknown field");
    }

    #[test]
    fn a_problem_reads_like_a_compiler_error() {
        let problem = Problem {
            severity: Severity::Error,
            code: UNKNOWN_FIELD,
            file: "payments.yaml".into(),
            line: 14,
            column: 11,
            reason: "unknown field `princpals` in spec.rules[0].from[0].source".into(),
            hint: "did you mean `principals`?".into(),
            source_line: Some("          princpals: [\"a\"]".into()),
        };
        assert_eq!(
            problem.to_string(),
            "error[PST0102]: unknown field `princpals` in spec.rules[0].from[0].source\n  --> payments.yaml:14:11\n   |\n14 |           princpals: [\"a\"]\n   |           ^^^^^^^^^\n   = help: did you mean `principals`?"
        );
    }

    #[test]
    fn control_characters_of_a_file_do_not_reach_the_terminal() {
        let problem = Problem {
            severity: Severity::Warning,
            code: SYNTAX,
            file: "a\u{1b}[2J.yaml".into(),
            line: 1,
            column: 5000,
            reason: "\u{7}".into(),
            hint: String::new(),
            source_line: Some("\u{1b}".repeat(6000)),
        };
        assert!(!problem.to_string().contains(['\u{1b}', '\u{7}']));
    }
}
