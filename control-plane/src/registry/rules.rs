//! Which DestinationRule holds for a call: the caller's namespace first, then the service's, then the root namespace.

use postern_api::v1;
use postern_config::{
    Documents,
    documents::{
        DestinationRule,
        destination_rule::{TlsMode, Traffic},
    },
    select::by_age,
};
use std::collections::HashMap;

/// All rules by host and namespace, oldest first.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// By host as written and the namespace of the rule.
    by_host: HashMap<(String, String), Vec<DestinationRule>>,
    root_namespace: String,
}

impl Rules {
    pub(super) fn of(documents: &Documents) -> Self {
        let mut rules: Vec<&DestinationRule> =
            documents.destination_rules.iter().map(|located| &located.value).collect();
        rules.sort_by(|a, b| by_age(&a.metadata, &b.metadata));
        let mut by_host: HashMap<_, Vec<_>> = HashMap::new();
        for rule in rules {
            let key = (rule.host.clone(), rule.metadata.namespace.clone());
            by_host.entry(key).or_default().push(rule.clone());
        }
        Self { by_host, root_namespace: documents.mesh.root_namespace.clone() }
    }

    /// Puts the rule for calls from `namespace` in force on a service.
    pub(super) fn apply(&self, service: &mut v1::Service, namespace: &str) {
        let Some(rule) = self.rule(&service.host, &service.namespace, namespace) else { return };
        let (traffic, tls) = rule.for_port(u16::try_from(service.port).unwrap_or(0));
        if *traffic != Traffic::default() {
            // Numbers and words have no way to fail.
            service.traffic = serde_json::to_vec(traffic).unwrap_or_default();
        }
        match tls {
            None => {}
            Some(TlsMode::Disable) => {
                service.endpoints.iter_mut().for_each(|endpoint| endpoint.identity.clear());
            }
            // Mutual TLS or no call: who has no identity cannot be called.
            Some(TlsMode::IstioMutual) => {
                service.endpoints.retain(|endpoint| !endpoint.identity.is_empty());
                service.lookups.clear();
                service.original_within.clear();
            }
        }
    }

    fn rule(&self, host: &str, own: &str, namespace: &str) -> Option<&DestinationRule> {
        [namespace, own, &self.root_namespace]
            .into_iter()
            .find_map(|place| self.within(host, place, namespace))
    }

    /// The rule for a host that is written in `place`: the host itself before wildcards, the longest of those first.
    fn within(&self, host: &str, place: &str, namespace: &str) -> Option<&DestinationRule> {
        let seen = |host: &str| {
            let rules = self.by_host.get(&(host.to_owned(), place.to_owned()))?;
            rules.iter().find(|rule| rule.is_visible_in(namespace))
        };
        let name = host.strip_prefix('*').unwrap_or(host);
        let wildcards = name.match_indices('.').filter_map(|(at, _)| name.get(at..));
        seen(host)
            .or_else(|| wildcards.map(|suffix| format!("*{suffix}")).find_map(|wildcard| seen(&wildcard)))
            .or_else(|| seen("*"))
    }
}
