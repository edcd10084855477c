//! What is wrong between documents: names used twice, references that lead nowhere, scopes that overlap.
use crate::{
    documents::{
        Documents, Located, Metadata, Origin, Pod,
        kubernetes::{TargetPort, injected},
    },
    problem::{self, Problem, Severity},
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Every finding that needs more than one document, over all files.
pub fn relations(documents: &Documents) -> Vec<Problem> {
    let mut found = Relations { documents, problems: Vec::new(), pods: Pods::of(documents) };
    found.twice("Namespace", &documents.namespaces, |d| &d.metadata);
    found.twice("ServiceAccount", &documents.service_accounts, |d| &d.metadata);
    found.twice("Service", &documents.services, |d| &d.metadata);
    found.twice("Deployment", &documents.deployments, |d| &d.metadata);
    found.twice("Pod", &documents.pods, |d| &d.metadata);
    found.twice("PeerAuthentication", &documents.peer_authentications, |d| &d.metadata);
    found.twice("AuthorizationPolicy", &documents.authorization_policies, |d| &d.metadata);
    found.service_accounts();
    found.services();
    found.peer_authentications();
    found.authorization_policies();
    found.problems
}

type Labels = BTreeMap<String, String>;

/// All pods by namespace, and by one of their labels, so that ten thousand selectors do not scan ten thousand pods.
struct Pods<'d> {
    by_namespace: HashMap<&'d str, Vec<&'d Pod>>,
    by_label: HashMap<(&'d str, &'d str), Vec<&'d Pod>>,
}

impl<'d> Pods<'d> {
    fn of(documents: &'d Documents) -> Self {
        let mut pods = Self { by_namespace: HashMap::new(), by_label: HashMap::new() };
        let templates = documents.deployments.iter().map(|d| &d.value.template);
        for pod in templates.chain(documents.pods.iter().map(|p| &p.value)) {
            pods.by_namespace.entry(&pod.metadata.namespace).or_default().push(pod);
            for (key, value) in &pod.metadata.labels {
                pods.by_label.entry((key, value)).or_default().push(pod);
            }
        }
        pods
    }

    /// Pods of `namespace` (of all when `None`) with all of these labels.
    fn selected(&self, namespace: Option<&str>, selector: &Labels) -> Vec<&'d Pod> {
        let empty = Vec::new();
        let rarest = selector
            .iter()
            .map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())).unwrap_or(&empty))
            .min_by_key(|pods| pods.len());
        let candidates = match (rarest, namespace) {
            (Some(pods), _) => pods.clone(),
            (None, Some(namespace)) => self.by_namespace.get(namespace).cloned().unwrap_or_default(),
            (None, None) => self.by_namespace.values().flatten().copied().collect(),
        };
        let matches = |pod: &&Pod| {
            namespace.is_none_or(|namespace| pod.metadata.namespace == namespace)
                && selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
        };
        candidates.into_iter().filter(matches).collect()
    }
}

struct Relations<'d> {
    documents: &'d Documents,
    problems: Vec<Problem>,
    pods: Pods<'d>,
}

impl<'d> Relations<'d> {
    fn error(&mut self, code: &'static str, at: (&Origin, &str), reason: String, hint: impl Into<String>) {
        self.problems.push(self.documents.places.problem(Severity::Error, code, at, reason, hint));
    }

    fn warning(&mut self, code: &'static str, at: (&Origin, &str), reason: String, hint: impl Into<String>) {
        self.problems.push(self.documents.places.problem(Severity::Warning, code, at, reason, hint));
    }

    fn twice<T>(&mut self, kind: &str, list: &'d [Located<T>], metadata: impl Fn(&T) -> &Metadata) {
        let mut seen: HashMap<(&str, &str), &Origin> = HashMap::new();
        for document in list {
            let meta = metadata(&document.value);
            if meta.name.is_empty() {
                continue; // the schema has said so
            }
            match seen.get(&(meta.namespace.as_str(), meta.name.as_str())) {
                Some(first) => {
                    let place = if meta.namespace.is_empty() {
                        String::new()
                    } else {
                        format!("{}/", meta.namespace)
                    };
                    let reason =
                        format!("{kind} {place}{} is already in {}:{}", meta.name, first.file, first.line);
                    let at = (&document.origin, "metadata.name");
                    self.error(problem::DUPLICATE_OBJECT, at, reason, "rename one of the two, or remove it");
                }
                None => {
                    seen.insert((&meta.namespace, &meta.name), &document.origin);
                }
            }
        }
    }

    /// Only when the folder declares service accounts at all; `default` always exists.
    fn service_accounts(&mut self) {
        let documents = self.documents;
        if documents.service_accounts.is_empty() {
            return;
        }
        let known: BTreeSet<(&str, &str)> = documents
            .service_accounts
            .iter()
            .map(|sa| (sa.value.metadata.namespace.as_str(), sa.value.metadata.name.as_str()))
            .collect();
        let templates = documents
            .deployments
            .iter()
            .map(|d| (&d.origin, "spec.template.spec.serviceAccountName", &d.value.template));
        let pods = documents.pods.iter().map(|p| (&p.origin, "spec.serviceAccountName", &p.value));
        for (origin, path, pod) in templates.chain(pods) {
            let (namespace, name) = (pod.metadata.namespace.as_str(), pod.spec.service_account.as_str());
            if name == "default" || known.contains(&(namespace, name)) {
                continue;
            }
            let near = crate::documents::schema::nearest(
                name,
                known.iter().filter(|(ns, _)| *ns == namespace).map(|(_, name)| *name),
            );
            let hint = match near {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("add a ServiceAccount `{name}` in namespace `{namespace}`"),
            };
            let reason = format!("no ServiceAccount {namespace}/{name} in these files");
            self.warning(problem::NO_SERVICE_ACCOUNT, (origin, path), reason, hint);
        }
    }

    fn services(&mut self) {
        let documents = self.documents;
        for service in &documents.services {
            let (origin, service) = (&service.origin, &service.value);
            if service.selector.is_empty() {
                continue;
            }
            let meta = &service.metadata;
            let pods = self.pods.selected(Some(&meta.namespace), &service.selector);
            if pods.is_empty() {
                self.selects_nothing(origin, "Service", meta);
                continue;
            }
            for (i, port) in service.ports.iter().enumerate() {
                let TargetPort::Name(name) = &port.target else { continue };
                let names: BTreeSet<&str> = pods
                    .iter()
                    .flat_map(|pod| &pod.spec.containers)
                    .flat_map(|container| &container.ports)
                    .map(|port| port.name.as_str())
                    .filter(|name| !name.is_empty())
                    .collect();
                if names.contains(name.as_str()) || name.parse::<u16>().is_ok() {
                    continue; // a number in quotes has its own error
                }
                let reason = format!(
                    "no pod that Service {}/{} selects has a container port named `{name}`",
                    meta.namespace, meta.name
                );
                let hint = match crate::documents::schema::nearest(name, names.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if names.is_empty() => {
                        "name the port in the container's `ports:`, or write its number".to_owned()
                    }
                    None => format!(
                        "named ports of these pods: {}",
                        names.iter().copied().collect::<Vec<_>>().join(", ")
                    ),
                };
                self.warning(problem::PORT_NOT_FOUND, (origin, &format!("spec.ports[{i}]")), reason, hint);
            }
        }
    }

    fn peer_authentications(&mut self) {
        let documents = self.documents;
        let root = &documents.mesh.root_namespace;
        let mut scopes: HashMap<&str, &Origin> = HashMap::new();
        for document in &documents.peer_authentications {
            let (origin, policy) = (&document.origin, &document.value);
            let meta = &policy.metadata;
            if policy.selector.is_empty() {
                if let Some(first) = scopes.get(meta.namespace.as_str()) {
                    let reason = format!(
                        "namespace `{}` already has a PeerAuthentication without selector in {}:{}; only the oldest counts",
                        meta.namespace, first.file, first.line
                    );
                    self.warning(
                        problem::NO_EFFECT,
                        (origin, "metadata.name"),
                        reason,
                        "keep one of the two",
                    );
                } else {
                    scopes.insert(&meta.namespace, origin);
                }
            } else if &meta.namespace == root {
                let reason = format!(
                    "a PeerAuthentication with a selector in the root namespace `{root}` is ignored, as in Istio"
                );
                let hint =
                    "put it into the workload's namespace, or remove the selector to set the mesh's mode";
                self.warning(problem::NO_EFFECT, (origin, "spec.selector"), reason, hint);
            } else if self.pods.selected(Some(&meta.namespace), &policy.selector).is_empty() {
                self.selects_nothing(origin, "PeerAuthentication", meta);
            }
        }
    }

    fn authorization_policies(&mut self) {
        let documents = self.documents;
        let namespaces: HashMap<&str, &_> =
            documents.namespaces.iter().map(|ns| (ns.value.metadata.name.as_str(), &ns.value)).collect();
        for document in &documents.authorization_policies {
            let (origin, policy) = (&document.origin, &document.value);
            if policy.has_target_refs {
                continue;
            }
            let meta = &policy.metadata;
            let everywhere = meta.namespace == documents.mesh.root_namespace;
            let namespace = (!everywhere).then_some(meta.namespace.as_str());
            if policy.selector.is_empty() {
                continue; // also for pods that come later
            }
            let pods = self.pods.selected(namespace, &policy.selector);
            if pods.is_empty() {
                self.selects_nothing(origin, "AuthorizationPolicy", meta);
            } else if !pods
                .iter()
                .any(|pod| injected(namespaces.get(pod.metadata.namespace.as_str()).copied(), pod))
            {
                let reason = format!(
                    "AuthorizationPolicy {}/{} selects only pods without a sidecar: nothing enforces it",
                    meta.namespace, meta.name
                );
                let hint = "label the namespace `istio-injection: enabled`";
                self.warning(problem::NO_EFFECT, (origin, "spec.selector"), reason, hint);
            }
        }
    }

    /// Not said in a folder without pods: policies alone may be checked, too.
    fn selects_nothing(&mut self, origin: &Origin, kind: &str, meta: &Metadata) {
        if self.documents.pods.is_empty() && self.documents.deployments.is_empty() {
            return;
        }
        let reason = format!("{kind} {}/{} selects no pod of these files", meta.namespace, meta.name);
        let hint = "compare its selector and namespace with the labels of the pods";
        self.warning(problem::SELECTS_NOTHING, (origin, "spec.selector"), reason, hint);
    }
}
