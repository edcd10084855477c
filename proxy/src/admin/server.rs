//! A small HTTP/1.1 server for questions about the sidecar: bounded in connections, bytes and time.

use super::{Admin, answers};
use crate::{log, telemetry::exposition::Format};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

/// Connections at once on one port; more wait in the kernel.
const CONNECTIONS: usize = 64;
/// The same of merged metrics, each of which may hold a large page of the app.
const MERGED_CONNECTIONS: usize = 8;
const HEAD_DEADLINE: Duration = Duration::from_secs(5);
/// One connection, everything included (a renewal may take two attempts of ten seconds and more).
const CONNECTION_DEADLINE: Duration = Duration::from_secs(60);
const HEAD_BYTES: usize = 16 * 1024;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(50);

/// Which port was knocked at: each answers its own questions only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Everything, on loopback.
    Admin,
    /// `/healthz/ready` and `/healthz/live`.
    Probes,
    /// `/metrics` and `/stats/prometheus`.
    Metrics,
    /// `/stats/prometheus` with the app's own metrics, and `/healthz/ready`.
    Merged,
}

/// Serves one port until stopped.
pub async fn serve(listener: TcpListener, door: Door, admin: Arc<Admin>, stop: CancellationToken) {
    let places = if door == Door::Merged { MERGED_CONNECTIONS } else { CONNECTIONS };
    let places = Arc::new(Semaphore::new(places));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = async {
                let place = places.clone().acquire_owned().await;
                (listener.accept().await, place)
            } => accepted,
        };
        match accepted {
            (Ok((stream, _)), Ok(place)) => {
                let (admin, stop) = (admin.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        _ = tokio::time::timeout(CONNECTION_DEADLINE, converse(stream, door, admin)) => {}
                    }
                });
            }
            // Out of descriptors, most likely: going on at once would only burn a core.
            _ => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
        }
    }
}

async fn converse(stream: TcpStream, door: Door, admin: Arc<Admin>) {
    let service = service_fn(move |request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(answer(door, &admin, request).await) }
    });
    // What goes wrong here is the asker's business.
    let _ = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(door: Door, admin: &Admin, request: Request<Incoming>) -> Response<Full<Bytes>> {
    if door == Door::Admin
        && let Err(reason) = local_only(&request)
    {
        return text(StatusCode::FORBIDDEN, reason);
    }
    let path = request.uri().path();
    match (door, path) {
        (Door::Probes | Door::Merged, "/healthz/ready") | (Door::Admin, "/ready") => {
            on_get(&request, || answers::ready(admin))
        }
        (Door::Probes, "/healthz/live") | (Door::Admin, "/live") => {
            on_get(&request, || text(StatusCode::OK, "live\n"))
        }
        (Door::Metrics, "/metrics" | "/stats/prometheus") => {
            on_get(&request, || answers::metrics(admin, format(request.headers())))
        }
        (Door::Merged, "/stats/prometheus") => match *request.method() {
            Method::GET => answers::merged_metrics(admin).await,
            // Not worth asking the app.
            Method::HEAD => answers::metrics(admin, Format::Plain),
            _ => only("GET, HEAD"),
        },
        (Door::Admin, "/") => on_get(&request, || answers::front(admin)),
        (Door::Admin, "/config") => on_get(&request, || answers::config(admin)),
        (Door::Admin, "/certificates") => on_get(&request, || answers::certificates(admin)),
        (Door::Admin, "/destinations") => on_get(&request, || answers::destinations(admin)),
        (Door::Admin, "/connections") => on_get(&request, || answers::connections(admin)),
        (Door::Admin, "/ejections") => on_get(&request, || answers::ejections(admin)),
        (Door::Admin, "/decisions") => on_get(&request, || answers::decisions(admin)),
        (Door::Admin, "/certificates/renew") if request.method() == Method::POST => {
            answers::renew(admin).await
        }
        (Door::Admin, "/drain") if request.method() == Method::POST => answers::drain(admin),
        (Door::Admin, "/log-level") if request.method() == Method::POST => {
            match Limited::new(request.into_body(), log::LARGEST_FILTER).collect().await {
                Ok(filter) => answers::set_log_level(&filter.to_bytes()),
                Err(_) => text(StatusCode::PAYLOAD_TOO_LARGE, "a filter has 4,096 bytes at most\n"),
            }
        }
        (Door::Admin, "/log-level") => on_get(&request, answers::log_level),
        (Door::Admin, "/certificates/renew" | "/drain") => only("POST"),
        (Door::Admin, path) => match path.strip_prefix("/decisions/") {
            Some(id) => on_get(&request, || answers::decision(admin, id)),
            None => text(StatusCode::NOT_FOUND, "no such page; GET / lists what there is\n"),
        },
        _ => text(StatusCode::NOT_FOUND, "no such page on this port\n"),
    }
}

/// A browser must not be talked into asking us: the name asked for has to be loopback (DNS rebinding), and a state
/// change must not come from a web page.
fn local_only(request: &Request<Incoming>) -> Result<(), &'static str> {
    let hosts: Vec<_> = request.headers().get_all(header::HOST).iter().collect();
    let is_local = match hosts.as_slice() {
        [host] => host.to_str().is_ok_and(is_loopback_host),
        _ => false,
    };
    if !is_local {
        return Err("the admin port answers to the names localhost, 127.0.0.1 and [::1] only\n");
    }
    if request.method() != Method::GET && request.headers().contains_key(header::ORIGIN) {
        return Err("requests from web pages may not change anything here\n");
    }
    Ok(())
}

fn is_loopback_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Only who asks for OpenMetrics gets it.
fn format(headers: &HeaderMap) -> Format {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let wants_open = accepted.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_open =
            parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        let is_refused = |parameter: &str| {
            let weight = parameter.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
            weight == Some(0.0) || (parameter.starts_with("version=") && parameter != "version=1.0.0")
        };
        is_open && !parts.any(is_refused)
    });
    if wants_open { Format::Open } else { Format::Plain }
}

fn on_get(
    request: &Request<Incoming>,
    answer: impl FnOnce() -> Response<Full<Bytes>>,
) -> Response<Full<Bytes>> {
    match *request.method() {
        Method::GET => answer(),
        // hyper leaves the body of the answer to HEAD out by itself.
        Method::HEAD => answer(),
        _ => only("GET, HEAD"),
    }
}

fn only(methods: &'static str) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "this page does not take that method\n");
    response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(methods));
    response
}

/// A plain answer.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

/// An answer with its content type.
pub(super) fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, true),
            ("application/openmetrics-text; version=1.0.0", true),
            ("application/openmetrics-text", true),
            ("application/openmetrics-text;version=0.0.1", false),
            ("application/openmetrics-text;q=0", false),
            ("text/plain;version=0.0.4", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(format(&headers) == Format::Open, expected, "{accept}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Plain);
    }

    #[test]
    fn the_admin_port_answers_to_loopback_names_only() {
        for (host, expected) in [
            ("localhost", true),
            ("localhost:15000", true),
            ("LOCALHOST:15000", true),
            ("127.0.0.1:15000", true),
            ("127.9.9.9", true),
            ("[::1]:15000", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example:15000", false),
            ("10.0.0.1:15000", false),
            ("[::]", false),
            ("", false),
        ] {
            assert_eq!(is_loopback_host(host), expected, "{host}");
        }
    }
}
