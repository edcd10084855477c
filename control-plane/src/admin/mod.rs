//! What operators ask of the control plane and tell it: authorities, certificates, rotation; over HTTP on a unix socket.
//!
//! [`pages`] is what is said on the wire, `server` carries it, `answers` makes it, `metrics` writes numbers for Prometheus.

mod answers;
mod live;
mod metrics;
pub mod pages;
mod server;

pub(crate) use server::{MetricsPort, Socket};
