//! The wire between sidecar and control plane. Generated from `proto/postern.proto`; read the comments there.
#![allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used)]

/// Messages and services of `postern.v1`.
pub mod v1 {
    tonic::include_proto!("postern.v1");
}
