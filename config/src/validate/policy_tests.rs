//! Rows of a PolicyTest: whatever could make a row ask another question than its author meant.
use crate::{
    documents::{
        parse::{Node, shorten},
        report::Report,
        schema::boolean,
    },
    problem,
};

/// The rows of one document.
pub fn policy_test(report: &mut Report<'_>, node: &Node) {
    for row in node.list("tests") {
        let at = row.entries().first().map_or(row.place, |(key, _)| key.place);
        let tcp = row.get("tcp").and_then(Node::text).and_then(boolean).unwrap_or(false);
        for field in ["method", "path", "headers", "host", "claims"] {
            match (tcp, row.entry(field).filter(|(_, value)| !value.is_null())) {
                (true, Some((key, _))) => report.error(
                    problem::OUT_OF_RANGE,
                    key.place,
                    format!("`{field}` beside `tcp: true`: a connection has no request"),
                    "remove one of the two",
                ),
                (false, None) if matches!(field, "method" | "path") => report.error(
                    problem::MISSING_FIELD,
                    at,
                    format!("the test has no `{field}`"),
                    format!("add `{field}:`, or `tcp: true` for a connection without a request"),
                ),
                _ => {}
            }
        }
        if let Some(path) = row.get("path")
            && path.text().is_some_and(|text| !text.starts_with('/') && text != "*")
        {
            report.error(
                problem::RELATIVE_PATH,
                path.place,
                "the path of a request begins with `/`",
                "write the slash",
            );
        }
        if let Some(port) = row.get("port")
            && port
                .text()
                .is_some_and(|text| text.parse::<u16>().is_ok_and(|n| n == 0) || text.parse::<u16>().is_err())
        {
            let found = shorten(port.text().unwrap_or_default());
            report.error(
                problem::BAD_PORT,
                port.place,
                format!("`{found}` is no port"),
                "write a number of 1 to 65535",
            );
        }
        for (name, value) in row.get("headers").map(Node::entries).unwrap_or_default() {
            let is_name = http::HeaderName::try_from(name.text.as_str()).is_ok();
            let is_value = value.text().is_some_and(|text| http::HeaderValue::try_from(text).is_ok());
            if !is_name || !is_value {
                let reason = format!("`{}` is no header that HTTP can carry", shorten(&name.text));
                report.error(
                    problem::OUT_OF_RANGE,
                    name.place,
                    reason,
                    "write `name: value` in visible ASCII",
                );
            }
        }
    }
}
