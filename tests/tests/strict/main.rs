//! Strict by default: the checklists of requests, framing, HTTP/2, upstreams and interception, with exact bytes against running
//! sidecars, in both directions: our own app as the hostile client on the way out, a mesh peer on the way in, and a
//! hostile upstream behind both. The numbers are those of the project's checklist (S-PATH, S-HOST, S-HDR, S-H1, S-H2, S-ICPT).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod arena;
mod floods;
mod frames;
mod framing;
mod goaway;
mod headers;
mod host;
mod hpack;
mod http2;
mod interception;
mod log;
mod path;
mod streams;
mod upgrade;
mod upstream;
