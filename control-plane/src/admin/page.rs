//! The page: the live views for a browser on this machine. One file, nothing from elsewhere, and nothing that can be changed.
//!
//! Whoever may connect may read it, so it is on loopback only. A web site that a person has open may not: a name that is made to
//! resolve to us is refused by `Host`, and another origin by `Origin` and by what browsers say of where a request comes from.

use super::server::{Answer, Flow, Long, accept, converse, text, typed, whole};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const PAGE: &str = concat!(
    include_str!("page/head.html"),
    "<style>\n",
    include_str!("page/style.css"),
    "</style>\n</head>\n",
    include_str!("page/body.html"),
    "<script>\n",
    include_str!("page/words.js"),
    include_str!("page/map.js"),
    include_str!("page/decisions.js"),
    include_str!("page/panels.js"),
    "</script>\n</body>\n</html>\n",
);
/// What the page asks for.
const DATA: [&str; 7] =
    ["/status", "/flows", "/denials", "/policies", "/topology", "/authorities", "/events"];

/// A port on loopback that shows the page.
pub struct PagePort {
    listener: TcpListener,
    address: SocketAddr,
}

impl PagePort {
    /// Binds it.
    ///
    /// # Errors
    /// The address is not on loopback, or cannot be listened on.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        anyhow::ensure!(
            address.ip().is_loopback(),
            "the page cannot be served on {address}, which others can reach: choose an address like 127.0.0.1:15013"
        );
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("the page cannot be served on {address}: choose another port"))?;
        let address = listener.local_addr().context("the address of the page is not known")?;
        Ok(Self { listener, address })
    }

    /// Where it is; with the real port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves it until `stop`. `source` gives the data: it is asked with path and query, the path being one of those that the page
    /// asks for.
    pub async fn serve<S, F>(self, source: S, stop: CancellationToken)
    where
        S: Fn(String) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Flow> + Send,
    {
        let port = self.address.port();
        let policy = policy();
        let next = || async { self.listener.accept().await.map(|(stream, _)| stream) };
        accept(&stop, next, |stream, place| {
            let (source, policy, long) = (source.clone(), policy.clone(), Arc::new(OnceLock::new()));
            let told = Arc::clone(&long);
            let service = move |request: Request<Incoming>| {
                let (source, policy, long) = (source.clone(), policy.clone(), Arc::clone(&told));
                async move {
                    let answer = match asked(port, &request) {
                        Ok(data) => {
                            if data == "/events" {
                                long.get_or_init(|| Long::Events);
                            }
                            source(data).await
                        }
                        Err(answer) => whole(*answer),
                    };
                    guarded(answer, policy)
                }
            };
            tokio::spawn(converse(stream, service, long, stop.clone(), place));
        })
        .await;
    }
}

/// Path and query of the data that is asked for; or the answer.
fn asked<B>(port: u16, request: &Request<B>) -> Result<String, Box<Answer>> {
    let answer = if !is_from_here(request.headers(), port) {
        text(StatusCode::FORBIDDEN, "this page is for browsers on this machine, under its own address\n")
    } else if !matches!(*request.method(), Method::GET | Method::HEAD) {
        text(StatusCode::METHOD_NOT_ALLOWED, "nothing can be changed here\n")
    } else {
        match request.uri().path() {
            "/" => typed(StatusCode::OK, "text/html; charset=utf-8", PAGE),
            path if DATA.contains(&path) => {
                return Ok(request
                    .uri()
                    .query()
                    .map_or_else(|| path.to_owned(), |query| format!("{path}?{query}")));
            }
            _ => text(
                StatusCode::NOT_FOUND,
                "GET / is the page; /status, /topology, /events, /denials, /policies and /authorities are what it shows\n",
            ),
        }
    };
    Err(Box::new(answer))
}

/// Asked under our own address, and not by another site. A missing `Host` is no browser's, and nobody's that we know.
fn is_from_here(headers: &HeaderMap, port: u16) -> bool {
    let own = ["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{host}:{port}"));
    let is_own = |name: &str| own.iter().any(|own| own.eq_ignore_ascii_case(name));
    let one = |name: header::HeaderName| {
        let mut all = headers.get_all(name).iter();
        (all.next().map(|value| value.to_str().unwrap_or_default()), all.next().is_some())
    };
    let is_host = matches!(one(header::HOST), (Some(host), false) if is_own(host));
    let is_origin = match one(header::ORIGIN) {
        (None, _) => true,
        (Some(origin), false) => origin.strip_prefix("http://").is_some_and(is_own),
        (Some(_), true) => false,
    };
    // What the browser itself says; `none` is a person who typed the address. Others do not send it.
    let is_site = match one(header::HeaderName::from_static("sec-fetch-site")) {
        (None, _) => true,
        (Some(site), false) => matches!(site, "same-origin" | "none"),
        (Some(_), true) => false,
    };
    is_host && is_origin && is_site
}

fn guarded(mut answer: Flow, policy: HeaderValue) -> Flow {
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// Our own script and style by their hashes, our own answers, and nothing else.
fn policy() -> HeaderValue {
    let allowed = |tag: &str| {
        let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
        let inside =
            PAGE.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map(|(inside, _)| inside);
        let digest =
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, inside.unwrap_or_default().as_bytes());
        format!("'sha256-{}'", STANDARD.encode(digest))
    };
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        allowed("script"),
        allowed("style")
    );
    // Names, quotes and base64: always a header. If it were not, nothing is allowed.
    HeaderValue::try_from(policy).unwrap_or_else(|_| HeaderValue::from_static("default-src 'none'"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_page_is_for_its_own_address_and_no_other_site() {
        let check = |headers: &[(&'static str, &str)], expected: bool| {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            assert_eq!(is_from_here(&map, 15013), expected, "{headers:?}");
        };
        let own = ("host", "127.0.0.1:15013");
        check(&[own], true);
        check(&[("host", "LocalHost:15013")], true);
        check(&[("host", "[::1]:15013")], true);
        check(&[], false);
        check(&[("host", "127.0.0.1")], false);
        check(&[("host", "127.0.0.1:15014")], false);
        check(&[("host", "evil.example:15013")], false);
        check(&[own, ("host", "evil.example")], false);
        check(&[own, ("origin", "http://127.0.0.1:15013")], true);
        check(&[own, ("origin", "https://127.0.0.1:15013")], false);
        check(&[own, ("origin", "http://evil.example")], false);
        check(&[own, ("origin", "null")], false);
        check(&[own, ("sec-fetch-site", "same-origin")], true);
        check(&[own, ("sec-fetch-site", "none")], true);
        check(&[own, ("sec-fetch-site", "cross-site")], false);
        check(&[own, ("sec-fetch-site", "same-site")], false);
    }

    #[test]
    fn the_page_is_whole_small_and_makes_no_markup_of_what_it_is_told() {
        assert!(PAGE.len() < 60_000);
        assert_eq!((PAGE.matches("<script").count(), PAGE.matches("<style").count()), (1, 1));
        for never in [
            "://",
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "Function(",
            " style=",
            "onclick=",
            "src=",
            "href=",
            "@import",
            "url(",
        ] {
            let found = PAGE.replace("spiffe://", "");
            assert!(!found.contains(never), "{never}");
        }
        let policy = policy();
        let policy = policy.to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}
