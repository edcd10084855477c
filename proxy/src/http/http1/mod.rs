//! HTTP/1.1 itself. Whoever waits for a message drives its connection himself: no task of its own runs for it, no channel leads to it,
//! and an idle one holds no buffer.

pub mod body;
pub mod client;
pub mod downstream_heads;
mod line;
mod lines;
pub mod server;
pub mod upstream_heads;

use super::body::BoxError;
use std::io;

/// Why there is no message, or no whole one.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum Lost {
    #[error("the connection closed before any answer")]
    Closed,
    #[error("the connection closed before the message was complete")]
    Incomplete,
    #[error("connection error: {0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the peer is not trusted any more")]
    Distrusted,
    #[error("the request was not complete: {0}")]
    Upload(#[from] BoxError),
    #[error("{}", super::describe(.0))]
    Http2(#[from] hyper::Error),
}
