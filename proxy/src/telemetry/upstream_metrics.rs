//! Counters of what the sidecar does about services that fail: ejections, repeats, open circuits. The services are named by
//! configuration; their number is bounded, and what comes after the bound is counted under `other`.

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use std::{collections::BTreeSet, sync::Arc};

/// Services with series of their own.
pub const SERVICES: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EjectionLabels {
    destination_service: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepeatLabels {
    destination_service: Arc<str>,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CircuitLabels {
    destination_service: Arc<str>,
    limit: &'static str,
}

/// The counters.
#[derive(Debug, Default)]
pub struct UpstreamMetrics {
    services: Mutex<BTreeSet<Arc<str>>>,
    ejections: Family<EjectionLabels, Counter>,
    repeats: Family<RepeatLabels, Counter>,
    open_circuits: Family<CircuitLabels, Counter>,
}

/// What became of the wish to send a request again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// Sent again.
    Sent,
    /// The budget of 20 % is used up.
    OverBudget,
    /// `maxRetries` are under way.
    OverLimit,
}

impl UpstreamMetrics {
    /// An endpoint was ejected.
    pub fn ejected(&self, service: &Arc<str>, reason: &'static str) {
        let labels = EjectionLabels { destination_service: self.bounded(service), reason };
        self.ejections.get_or_create(&labels).inc();
    }

    /// A request was lost and may be sent again.
    pub fn repeated(&self, service: &Arc<str>, repeat: Repeat, times: u32) {
        let result = match repeat {
            Repeat::Sent => "sent",
            Repeat::OverBudget => "over_budget",
            Repeat::OverLimit => "over_limit",
        };
        let labels = RepeatLabels { destination_service: self.bounded(service), result };
        self.repeats.get_or_create(&labels).inc_by(times.into());
    }

    /// A request or connection was refused since too much is under way.
    pub fn circuit_open(&self, service: &Arc<str>, limit: &'static str) {
        let labels = CircuitLabels { destination_service: self.bounded(service), limit };
        self.open_circuits.get_or_create(&labels).inc();
    }

    fn bounded(&self, service: &Arc<str>) -> Arc<str> {
        let mut services = self.services.lock();
        if services.contains(service) || services.len() < SERVICES {
            services.insert(service.clone());
            return service.clone();
        }
        Arc::from("other")
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "postern_endpoint_ejections",
            "Endpoints left out for a time since they failed",
            self.ejections.clone(),
        );
        registry.register(
            "postern_repeats",
            "Requests and connections that were lost and may go again, by what became of that",
            self.repeats.clone(),
        );
        registry.register(
            "postern_circuit_open",
            "Requests and connections refused since too much is under way, by the limit of connectionPool",
            self.open_circuits.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_number_of_series_is_bounded() {
        let metrics = UpstreamMetrics::default();
        for number in 0..SERVICES + 50 {
            metrics.ejected(&format!("service-{number}:80").into(), "5xx-errors");
        }
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), SERVICES + 1);
        assert!(text.contains("destination_service=\"other\",reason=\"5xx-errors\"} 50"), "{text}");
    }
}
