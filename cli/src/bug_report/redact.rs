//! What is taken out before anything is written: keys, tokens, values of headers, queries. In doubt it is taken out.

use serde_json::Value;

/// What stands instead.
pub const REDACTED: &str = "[redacted]";
/// A name with one of these in it has a secret as its value.
const SECRET_NAMES: &[&str] = &[
    "authorization",
    "bearer",
    "basic ",
    "cookie",
    "credential",
    "passwd",
    "password",
    "secret",
    "token",
    "api-key",
    "api_key",
    "apikey",
    "private",
    "signature",
    "x-auth",
];
/// Fields of documents and log lines whose values nobody needs, whatever they are.
const SECRET_FIELDS: &[&str] =
    &["args", "binarydata", "command", "data", "env", "envfrom", "headers", "jwks", "stringdata"];
/// Random texts shorter than this are no keys.
const SHORT: usize = 20;
const SHORT_HEX: usize = 32;

/// Redacts a page or a document in place. `has_ids`: hex of up to 64 digits names something (a key, a version, a decision).
pub fn value(value: &mut Value, has_ids: bool) {
    match value {
        Value::String(text) if has_ids && is_id(text) => {}
        Value::String(text) => *text = self::text(text),
        Value::Array(all) => all.iter_mut().for_each(|one| self::value(one, has_ids)),
        Value::Object(fields) => {
            // A condition on a header or a claim: its name may stay, what is wanted of it may not.
            let is_condition = fields
                .get("key")
                .and_then(Value::as_str)
                .is_some_and(|key| key.starts_with("request.headers") || key.starts_with("request.auth"));
            for (name, field) in fields.iter_mut() {
                let lower = name.to_ascii_lowercase();
                let is_secret = SECRET_FIELDS.contains(&lower.as_str())
                    || lower.contains("header.")
                    || SECRET_NAMES.iter().any(|secret| lower.contains(secret))
                    || (is_condition && name != "key");
                let is_foreign_note =
                    lower.contains('/') && !lower.contains("postern.dev/") && !lower.contains("istio.io/");
                match field {
                    Value::Null | Value::Bool(_) | Value::Number(_) => {}
                    field if is_secret || is_foreign_note => *field = Value::String(REDACTED.to_owned()),
                    field => self::value(field, has_ids),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Redacts lines of text; a line of JSON is read as such.
pub fn text(text: &str) -> String {
    let (mut out, mut in_key) = (Vec::new(), false);
    for line in text.split('\n') {
        let (begins, was_in_key) = (line.contains("PRIVATE KEY"), in_key);
        if begins || in_key {
            in_key = if begins {
                line.contains("BEGIN") && !line.contains("END")
            } else {
                !line.contains("-----END")
            };
            if !was_in_key {
                out.push(REDACTED.to_owned());
            }
            continue;
        }
        out.push(match serde_json::from_str::<Value>(line) {
            Ok(mut object @ Value::Object(_)) => {
                value(&mut object, false);
                object.to_string()
            }
            _ => self::line(line),
        });
    }
    out.join("\n")
}

fn line(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    // After the name of a secret everything goes, up to the end of the line.
    let named = SECRET_NAMES.iter().filter_map(|name| {
        let after = lower.find(name)? + name.len();
        let rest = lower.get(after..)?;
        let is_value = matches!(*name, "bearer" | "basic ") || rest.contains([':', '=']);
        is_value.then_some(after)
    });
    match named.min().and_then(|after| line.get(..after)) {
        Some(kept) => words(kept) + REDACTED,
        None => words(line),
    }
}

/// Queries, and whatever looks random.
fn words(line: &str) -> String {
    let is_inside = |c: char| c.is_ascii_alphanumeric() || "+/_=-.".contains(c);
    let (mut out, mut rest) = (String::new(), line);
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| !is_inside(c)).unwrap_or(rest.len());
        if end > 0 {
            let (word, after) = rest.split_at(end);
            out.push_str(if looks_secret(word) { REDACTED } else { word });
            rest = after;
            continue;
        }
        out.push(first);
        rest = rest.get(first.len_utf8()..).unwrap_or_default();
        if first == '?' {
            let end = rest.find(|c: char| c.is_whitespace() || c == '"' || c == '\'').unwrap_or(rest.len());
            if end > 0 {
                out.push_str(REDACTED);
            }
            rest = rest.get(end..).unwrap_or_default();
        }
    }
    out
}

/// A token (of JWT or ours), or a long run of letters, digits and nothing that a person would write.
fn looks_secret(word: &str) -> bool {
    word.contains("pjt1.")
        || word.split(['.', '=']).any(|part| part.starts_with("eyJ"))
        || word.split('.').any(|part| {
            let has = |kind: fn(&u8) -> bool| part.as_bytes().iter().any(kind);
            let is_mixed =
                has(u8::is_ascii_uppercase) && has(u8::is_ascii_lowercase) && has(u8::is_ascii_digit);
            let is_hex = part.bytes().all(|byte| byte.is_ascii_hexdigit());
            (part.len() >= SHORT && is_mixed) || (part.len() >= SHORT_HEX && is_hex)
        })
}

/// What our own pages name keys, versions and decisions by.
fn is_id(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use serde_json::json;

    fn check(given: &str, expected: &str) {
        assert_eq!(text(given), expected);
    }

    #[test]
    fn lines_lose_their_secrets_and_keep_what_helps() {
        check("GET /v1/charges?card=4111 HTTP/1.1", "GET /v1/charges?[redacted] HTTP/1.1");
        check("Authorization: Bearer abc", "Authorization[redacted]");
        check("sent Bearer abc.def", "sent Bearer[redacted]");
        check("x eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.x y", "x [redacted] y");
        check("used pjt1.00ff", "used [redacted]");
        check("a\n-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\nb", "a\n[redacted]\nb");
        check("key MIGHAgEAMBMGByqGSM49AgEGCCqGSM49Aw", "key [redacted]");
        check("password=hunter2 x", "password[redacted]");
        check(&"0f".repeat(16), "[redacted]");
        for kept in [
            "2026-11-27T21:08:04.123456Z the stream ended: spiffe://cluster.local/ns/checkout/sa/checkout-api",
            "connect to 10.0.0.1:8080 failed",
            "a token is missing",
        ] {
            check(kept, kept);
        }
        check(
            r#"{"url.path":"/a?b=c","http.request.header.x-tenant":"blue","http.response.status_code":200}"#,
            r#"{"http.request.header.x-tenant":"[redacted]","http.response.status_code":200,"url.path":"/a?[redacted]"}"#,
        );
    }

    #[test]
    fn documents_lose_values_of_headers_and_of_processes() {
        let mut document = json!({
            "metadata": {"name": "web", "annotations": {"postern.dev/inbound": "80=1", "kubectl.kubernetes.io/last": "x"}},
            "spec": {"containers": [{"name": "app", "env": [{"name": "A", "value": "b"}], "command": ["x"]}],
                     "when": [{"key": "request.headers[x-tenant]", "values": ["blue"]}, {"key": "source.ip", "values": ["10.0.0.1"]}]},
        });
        value(&mut document, false);
        let told = document.to_string();
        for gone in ["blue", "\"b\"", "kubectl.kubernetes.io/last\":\"x"] {
            assert!(!told.contains(gone), "{gone}: {told}");
        }
        for kept in ["web", "80=1", "10.0.0.1", "x-tenant"] {
            assert!(told.contains(kept), "{kept}: {told}");
        }
    }
}
