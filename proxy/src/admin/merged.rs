//! Our metrics and the app's own on one page (port 15020), as Istio has it. The app's page is fetched within a time and up to a size, and
//! added when Prometheus would take it: what the app does or says never spoils what we say.

use crate::{bootstrap::app_metrics::AppMetrics, net, telemetry::AppScrape};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::MetricFamily;
use std::{collections::HashSet, time::Duration};
use tokio_util::task::AbortOnDropHandle;

/// The longest that the app may take; Prometheus gives up after ten seconds, if it is not told otherwise.
const PATIENCE: Duration = Duration::from_secs(4);
/// The largest page of an app, in bytes.
pub const LARGEST_PAGE: usize = 4 * 1024 * 1024;
const LARGEST_HEAD: usize = 64 * 1024;
const ACCEPT: &str = "text/plain;version=0.0.4,*/*;q=0.1";

/// What the app says, in lines that Prometheus takes, without families of ours.
///
/// # Errors
/// Why there is nothing to add.
pub async fn fetch(app: &AppMetrics, mark: Option<u32>, ours: &[MetricFamily]) -> Result<String, AppScrape> {
    let page = tokio::time::timeout(PATIENCE, ask(app, mark)).await.map_err(|_| AppScrape::Late)??;
    lines(&page, ours).ok_or(AppScrape::Broken)
}

async fn ask(app: &AppMetrics, mark: Option<u32>) -> Result<Page, AppScrape> {
    let lost = |_| AppScrape::Unreachable;
    let stream =
        net::dial::connect(app.address, mark, None, PATIENCE).await.map_err(|_| AppScrape::Unreachable)?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(lost)?;
    let _driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // The request that it serves says how it failed.
        let _ = connection.await;
    }));
    let request = Request::get(app.path.as_str())
        .header(header::HOST, app.address.to_string())
        .header(header::ACCEPT, ACCEPT)
        .header(header::USER_AGENT, concat!("postern/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| AppScrape::Unreachable)?;
    let answer = sender.send_request(request).await.map_err(lost)?;
    if answer.status() != StatusCode::OK {
        return Err(AppScrape::Refused);
    }
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_open = kind.is_some_and(|kind| kind.starts_with("application/openmetrics-text"));
    let body = Limited::new(answer.into_body(), LARGEST_PAGE).collect().await.map_err(|cause| {
        if cause.is::<http_body_util::LengthLimitError>() {
            AppScrape::TooLarge
        } else {
            AppScrape::Unreachable
        }
    })?;
    Ok(Page { text: body.to_bytes(), is_open })
}

struct Page {
    text: Bytes,
    /// OpenMetrics, which some write whoever asks.
    is_open: bool,
}

/// `None` when Prometheus would refuse it.
fn lines(page: &Page, ours: &[MetricFamily]) -> Option<String> {
    let text = std::str::from_utf8(&page.text).ok()?;
    let ours = names(ours);
    let mut all = String::with_capacity(text.len());
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            if comment.trim() == "EOF" {
                break;
            }
            add_comment(&mut all, comment, page.is_open, &ours)?;
        } else if !line.is_empty() {
            let sample = Sample::read(line, page.is_open)?;
            if !ours.contains(sample.name) {
                all.push_str(sample.series);
                all.push(' ');
                all.push_str(sample.value);
                if let Some(at) = sample.timestamp {
                    all.push(' ');
                    all.push_str(at);
                }
                all.push('\n');
            }
        }
    }
    Some(all)
}

/// All that a sample of ours may be called.
fn names(families: &[MetricFamily]) -> HashSet<String> {
    let ends = ["", "_bucket", "_sum", "_count"];
    let named = |family: &MetricFamily| {
        let base = family.name.trim_end_matches("_total").to_owned();
        ends.map(|end| format!("{}{end}", family.name)).into_iter().chain([base]).collect::<Vec<_>>()
    };
    families.iter().flat_map(named).collect()
}

/// What a family is and means; other comments are left out. `None` when its name is none.
fn add_comment(all: &mut String, comment: &str, is_open: bool, ours: &HashSet<String>) -> Option<()> {
    let mut parts = comment.trim_start().splitn(3, [' ', '\t']);
    let (Some(what @ ("HELP" | "TYPE")), Some(name)) = (parts.next(), parts.next()) else { return Some(()) };
    let rest = parts.next().unwrap_or_default().trim();
    if name_length(name) != name.len() || name.is_empty() {
        return None;
    }
    if ours.contains(name) {
        return Some(());
    }
    let end = if what == "TYPE" && rest == "counter" && is_open { "_total" } else { "" };
    let rest = match (what, rest) {
        ("HELP", text) => text,
        (_, kind @ ("counter" | "gauge" | "histogram" | "summary")) => kind,
        // Of OpenMetrics, which the plain format does not know.
        _ => "untyped",
    };
    all.push_str(&format!("# {what} {name}{end} {rest}\n"));
    Some(())
}

/// One line with a number.
struct Sample<'l> {
    name: &'l str,
    /// The name with its labels.
    series: &'l str,
    value: &'l str,
    timestamp: Option<&'l str>,
}

impl<'l> Sample<'l> {
    /// `None` when it is none. Exemplars and the timestamps of OpenMetrics, which are in another unit, are left out.
    fn read(line: &'l str, is_open: bool) -> Option<Self> {
        let (name, rest) = line.split_at_checked(name_length(line))?;
        if name.is_empty() {
            return None;
        }
        let rest = rest.trim_start();
        let rest = if rest.starts_with('{') { rest.get(labels_length(rest)?..)? } else { rest };
        let series = line.get(..line.len() - rest.len())?.trim_end();
        let rest = if is_open { rest.split(" # ").next()? } else { rest };
        let mut parts = rest.split_ascii_whitespace();
        let value = parts.next()?;
        value.parse::<f64>().ok()?;
        let timestamp = parts.next();
        let is_time =
            |text: &str| if is_open { text.parse::<f64>().is_ok() } else { text.parse::<i64>().is_ok() };
        if !timestamp.is_none_or(is_time) || parts.next().is_some() {
            return None;
        }
        Some(Self { name, series, value, timestamp: timestamp.filter(|_| !is_open) })
    }
}

fn name_length(text: &str) -> usize {
    let is_of_name = |at: usize, byte: u8| {
        byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':') || (at > 0 && byte.is_ascii_digit())
    };
    text.bytes().enumerate().take_while(|(at, byte)| is_of_name(*at, *byte)).count()
}

/// Of `{name="value",…}`, both braces included; `None` when they are not that.
fn labels_length(text: &str) -> Option<usize> {
    let mut rest = text.strip_prefix('{')?.trim_start();
    loop {
        if let Some(after) = rest.strip_prefix('}') {
            return Some(text.len() - after.len());
        }
        let length = name_length(rest);
        let value = rest.get(length..)?.trim_start().strip_prefix('=')?.trim_start().strip_prefix('"')?;
        let mut is_escaped = false;
        let end = value.bytes().position(|byte| {
            let is_end = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        })?;
        rest = value.get(end + 1..)?.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if rest.starts_with('}') => rest,
            None => return None,
        };
        if length == 0 {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(text: &str, is_open: bool, expected: Option<&str>) {
        let ours = ["istio_requests_total", "postern_proxy_seconds"]
            .map(|name| MetricFamily { name: name.into(), ..MetricFamily::default() });
        let page = Page { text: Bytes::copy_from_slice(text.as_bytes()), is_open };
        assert_eq!(lines(&page, &ours).as_deref(), expected, "{text}");
    }

    #[test]
    fn what_prometheus_takes_is_kept_as_it_is() {
        let plain = "# HELP a What \\\\ is\n# TYPE a histogram\na_bucket{le=\"+Inf\"} 1\na_sum 2.5e-3\n\
            b{x=\"}\\\" # {\",y=\"\"} NaN 1700000000000\nc{} -Inf\n";
        check(plain, false, Some(plain));
        check("", false, Some(""));
        check("\n# a remark\n  a {x=\"1\",}  3 \r\n", false, Some("a {x=\"1\",} 3\n"));
    }

    #[test]
    fn families_of_ours_are_left_out() {
        let theirs = "# HELP istio_requests_total Theirs\n# TYPE istio_requests_total counter\nistio_requests_total{a=\"b\"} 7\n\
            postern_proxy_seconds_bucket{le=\"1\"} 3\npostern_proxy_seconds_sum 3\nistio_requests_total_of_mine 1\n";
        check(theirs, false, Some("istio_requests_total_of_mine 1\n"));
        check("# TYPE istio_requests counter\nistio_requests_total 1\n", true, Some(""));
    }

    #[test]
    fn openmetrics_becomes_plain() {
        check(
            "# TYPE calls counter\n# UNIT calls s\ncalls_total{a=\"b\"} 3 1700000000.5 # {trace_id=\"1\"} 0.5 17\n# TYPE build info\nbuild_info 1\n# EOF\nrest",
            true,
            Some("# TYPE calls_total counter\ncalls_total{a=\"b\"} 3\n# TYPE build untyped\nbuild_info 1\n"),
        );
    }

    #[test]
    fn what_prometheus_refuses_is_not_added() {
        for wrong in [
            "<html>",
            "a",
            "a b",
            "a 1 2 3",
            "a 1 1.5",
            "1a 1",
            "a{x} 1",
            "a{x=\"1} 1",
            "a{x=\"1\" y=\"2\"} 1",
            "a{=\"1\"} 1",
            "a{x=\"1\"",
            "a 1 # {trace_id=\"1\"} 1",
            "# TYPE 1a counter",
            "good 1\nbad",
        ] {
            check(wrong, false, None);
        }
        let page = Page { text: Bytes::from_static(b"a{x=\"\xff\"} 1"), is_open: false };
        assert_eq!(lines(&page, &[]), None);
    }
}
