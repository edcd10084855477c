//! Who is meant by the name of a service or a workload, as people write it.

use super::Index;
use postern_config::documents::service_host;
use std::collections::BTreeSet;

/// The pods and the hosts that a name means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Named {
    /// By namespace and name.
    pub pods: BTreeSet<(String, String)>,
    /// Hosts of services, whole or up to a dot.
    pub hosts: BTreeSet<String>,
}

impl Index {
    /// `NAME`, `NAMESPACE/NAME`, `NAME.NAMESPACE` or a whole host; of a service, of a pod, or of what a pod belongs to (its canonical
    /// service). A service means its pods, and a pod the services that lead to it.
    pub(crate) fn named(&self, name: &str) -> Named {
        let host = match name.split_once('/') {
            Some((namespace, name)) => format!("{name}.{namespace}"),
            None => name.to_owned(),
        };
        let is = |namespace: &str, name: &str| {
            let whole = service_host(name, namespace);
            whole.strip_prefix(&host).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let mut found = Named::default();
        for backed in &self.services {
            let service = &backed.service.metadata;
            let members = backed.members.iter().filter_map(|number| self.members.get(*number));
            let is_meant = is(&service.namespace, &service.name);
            for member in members {
                let pod = &member.workload;
                if is_meant || is(&pod.namespace, &pod.name) || is(&pod.namespace, pod.canonical_service()) {
                    found.pods.insert((pod.namespace.clone(), pod.name.clone()));
                    found.hosts.insert(format!("{}.{}", service.name, service.namespace));
                }
            }
        }
        for pod in self.members.iter().map(|member| &member.workload) {
            if is(&pod.namespace, &pod.name) || is(&pod.namespace, pod.canonical_service()) {
                found.pods.insert((pod.namespace.clone(), pod.name.clone()));
            }
        }
        // Also what is called outside the mesh has a host.
        found.hosts.insert(host);
        found
    }
}
