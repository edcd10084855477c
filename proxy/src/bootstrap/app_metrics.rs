//! Where the app's own metrics are, to be merged with ours.

use super::Failure;
use http::{Uri, uri::PathAndQuery};
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};

/// Istio's injector says in it what the pod's `prometheus.io/…` annotations say.
const ISTIO: &str = "ISTIO_PROMETHEUS_ANNOTATIONS";

/// A page that the app serves to Prometheus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppMetrics {
    /// Of the app, on this machine or in this pod.
    pub address: SocketAddr,
    /// `/metrics`
    pub path: PathAndQuery,
}

/// As Istio writes them: all are texts.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotations {
    scrape: String,
    path: String,
    port: String,
}

impl AppMetrics {
    /// What the pod's `prometheus.io/scrape`, `prometheus.io/port` (80) and `prometheus.io/path` (`/metrics`) name; `None` when they do
    /// not ask for it.
    ///
    /// # Errors
    /// The port is none, or the path is none of a URL.
    pub fn of_annotations(scrape: &str, port: &str, path: &str) -> Result<Option<Self>, String> {
        if scrape != "true" {
            return Ok(None);
        }
        let or = |text: &str, standard: &str| if text.is_empty() { standard } else { text }.to_owned();
        let port = or(port, "80");
        let port: u16 =
            port.parse().map_err(|_| format!("prometheus.io/port is `{port}`, which is no port"))?;
        let path = or(path, "/metrics");
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let path = path.parse().map_err(|_| format!("prometheus.io/path is `{path}`, which is no path"))?;
        Ok(Some(Self { address: (Ipv4Addr::LOCALHOST, port).into(), path }))
    }

    /// What Istio's injector has put into the environment.
    ///
    /// # Errors
    /// A [`Failure`] when it says something that cannot be meant.
    pub fn of_environment() -> anyhow::Result<Option<Self>> {
        let text = std::env::var(ISTIO).unwrap_or_default();
        Self::of_istio(&text).map_err(|cause| {
            Failure::error(
                format!("{ISTIO} cannot be used: {cause}."),
                "Correct the pod's prometheus.io annotations, or unset it.",
            )
        })
    }

    fn of_istio(text: &str) -> Result<Option<Self>, String> {
        if text.trim().is_empty() {
            return Ok(None);
        }
        let all: Annotations = serde_json::from_str(text).map_err(|cause| cause.to_string())?;
        Self::of_annotations(&all.scrape, &all.port, &all.path)
    }
}

/// `http://IP:PORT/PATH`
///
/// # Errors
/// It is something else.
pub(super) fn url(text: &str) -> Result<AppMetrics, String> {
    let wrong = || format!("`{text}` is not a page of the app; write `http://127.0.0.1:PORT/metrics`");
    let uri: Uri = text.parse().map_err(|_| wrong())?;
    let parts = uri.into_parts();
    let is_http = parts.scheme.as_ref().is_some_and(|scheme| scheme.as_str() == "http");
    let address = parts.authority.and_then(|authority| authority.as_str().parse().ok());
    match (is_http, address, parts.path_and_query) {
        (true, Some(address), Some(path)) => Ok(AppMetrics { address, path }),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(text: &str, expected: Result<Option<&str>, &str>) {
        let found = AppMetrics::of_istio(text);
        match (found, expected) {
            (Ok(None), Ok(None)) => {}
            (Ok(Some(found)), Ok(Some(expected))) => assert_eq!(found, url(expected).unwrap(), "{text}"),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
            (found, expected) => panic!("{text}: {found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn annotations_are_read_as_istio_passes_them_on() {
        check("", Ok(None));
        check("{}", Ok(None));
        check(r#"{"scrape":"false","path":"/m","port":"9"}"#, Ok(None));
        check(r#"{"scrape":"true","path":"/m?a=b","port":"9"}"#, Ok(Some("http://127.0.0.1:9/m?a=b")));
        check(r#"{"scrape":"true","path":"","port":""}"#, Ok(Some("http://127.0.0.1:80/metrics")));
        check(r#"{"scrape":"true","path":"m"}"#, Ok(Some("http://127.0.0.1:80/m")));
        check(r#"{"scrape":"true","port":"http"}"#, Err("no port"));
        check("scrape", Err("expected"));
    }

    #[test]
    fn a_page_is_named_by_a_whole_url_on_an_address() {
        assert_eq!(url("http://[::1]:9/m").unwrap().address, "[::1]:9".parse().unwrap());
        for wrong in ["127.0.0.1:9/m", "https://127.0.0.1:9/m", "http://app:9/m", "http://127.0.0.1/m", ""] {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }
}
