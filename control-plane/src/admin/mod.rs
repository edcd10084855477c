//! What operators ask of the control plane and tell it: authorities, certificates, rotation; over HTTP on a unix socket.
//!
//! [`pages`] is what is said on the wire, `server` carries it, `answers` makes it, `metrics` writes numbers for Prometheus,
//! `live` is what the mesh does now, `policies` who enforces what, `topology` who calls whom, `events` what is decided as
//! sidecars tell it, `tap` shows calls as they pass, `page` shows it in a browser, and `patient` lets go of readers that stopped.

mod answers;
mod events;
mod live;
mod metrics;
pub mod page;
pub mod pages;
mod patient;
mod policies;
mod server;
mod tap;
mod topology;

pub(crate) use live::browsed;
pub(crate) use page::PagePort;
pub use server::Flow;
pub(crate) use server::{MetricsPort, Socket};
