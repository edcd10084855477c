//! HTTP as both journeys need it: one safe reading of a request, clean headers, the server, the pool, bodies, replies, upgrades.

pub mod body;
pub mod budget;
pub mod canonical;
pub mod deadline;
pub mod flood;
pub mod framing;
pub mod gather;
pub mod handshake;
pub mod headers;
pub mod headroom;
pub mod http1;
pub mod message;
pub mod opening;
pub mod pool;
pub mod repeat;
pub mod reply;
pub mod serve;
pub mod upgrade;

pub use body::Body;

/// Runs futures on the worker's own thread.
#[derive(Clone, Copy, Debug)]
pub struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        // The output of a connection's own task is of no use to anyone; its requests carry their errors themselves.
        drop(tokio::task::spawn_local(async move {
            future.await;
        }));
    }
}

/// An error of hyper with its nearest cause, which it does not tell by itself.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// What lies below an error of hyper, from the nearest cause to the first.
pub fn causes(error: &hyper::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(error), |cause| cause.source())
}

/// What kind of IO error lies below an error of hyper, if any does.
pub fn io_kind(error: &hyper::Error) -> Option<std::io::ErrorKind> {
    causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind))
}

/// Whether the content type is gRPC's (`application/grpc`, `application/grpc+proto`, not `application/grpc-web`).
pub fn is_grpc(headers: &::http::HeaderMap) -> bool {
    headers.get(::http::header::CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| rest.is_empty() || matches!(rest.first(), Some(b'+' | b';')))
    })
}

/// The protocol's name in records: `grpc`, `http/2` or `http/1.1`.
pub fn protocol_name(parts: &::http::request::Parts, grpc: bool) -> &'static str {
    if grpc {
        "grpc"
    } else if parts.version == ::http::Version::HTTP_2 {
        "http/2"
    } else {
        "http/1.1"
    }
}
