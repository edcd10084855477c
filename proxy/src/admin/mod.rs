//! What people and machines may ask a running sidecar: admin (loopback only), probes, metrics, and metrics with the app's
//! own, each on its own port.
//!
//! State changes by POST only. Nothing here shows a secret.

pub mod answers;
pub mod merged;
pub mod server;

pub use server::{Door, serve};

use crate::{
    bootstrap::app_metrics::AppMetrics, control::Destinations, drain, ready, state::Store,
    telemetry::Telemetry, workload_identity,
};
use std::{sync::Arc, time::Duration};

/// What the answers are made of.
pub struct Admin {
    /// Policy and credentials in force.
    pub store: Arc<Store>,
    /// The cache of destinations.
    pub destinations: Destinations,
    /// Metrics and remembered denials.
    pub telemetry: Telemetry,
    /// What is missing.
    pub ready: ready::Ready,
    /// Renewal on demand.
    pub identity: workload_identity::Handle,
    /// The way down.
    pub drain: Arc<drain::Trigger>,
    /// Seen by the answers: a draining sidecar is not ready.
    pub draining: drain::Watch,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// For the front page.
    pub instance: String,
    /// The app's own page for Prometheus.
    pub app_metrics: Option<AppMetrics>,
    /// Of our own connections, when the redirect rules exempt by mark.
    pub mark: Option<u32>,
}
