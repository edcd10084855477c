//! What is wrong between documents: names used twice, references that lead nowhere, scopes that overlap.
use super::{destination_rules, federation, ports, providers, references, telemetries};
use crate::{
    documents::{
        AuthorizationPolicy, Documents, Located, Metadata, Origin, Pod,
        kubernetes::{ATTEST_UID, TargetPort, attest_uid, injected},
    },
    problem::{self, Problem, Severity},
    select::by_age,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    rc::Rc,
};

/// Every finding that needs more than one document, over all files.
pub fn relations(documents: &Documents) -> Vec<Problem> {
    let mut found =
        Relations { documents, pods: Pods::of(documents), problems: Vec::new(), kept: HashMap::new() };
    found.twice("Namespace", &documents.namespaces, |d| &d.metadata);
    found.twice("ServiceAccount", &documents.service_accounts, |d| &d.metadata);
    found.twice("Service", &documents.services, |d| &d.metadata);
    found.twice("Deployment", &documents.deployments, |d| &d.metadata);
    found.twice("Pod", &documents.pods, |d| &d.metadata);
    found.twice("PeerAuthentication", &documents.peer_authentications, |d| &d.metadata);
    found.twice("AuthorizationPolicy", &documents.authorization_policies, |d| &d.metadata);
    found.twice("ServiceEntry", &documents.service_entries, |d| &d.metadata);
    found.twice("DestinationRule", &documents.destination_rules, |d| &d.metadata);
    found.twice("Telemetry", &documents.telemetries, |d| &d.metadata);
    found.attest_uids();
    found.twice("ClusterFederatedTrustDomain", &documents.federated_trust_domains, |d| &d.metadata);
    found.service_accounts();
    found.services();
    found.peer_authentications();
    found.authorization_policies();
    found.same_policies();
    references::check(&mut found);
    federation::relations(&mut found);
    destination_rules::relations(&mut found);
    telemetries::relations(&mut found);
    providers::relations(&mut found);
    ports::check(&mut found);
    found.finish()
}

type Labels = BTreeMap<String, String>;

/// Findings of one file that are kept.
const MAX_FINDINGS: usize = 200;
/// Pods, ports and rules that are looked at, over all documents; far above any real folder.
const STEPS: usize = 3_000_000;

/// Pods that a selector selects, in a fixed order.
pub(super) type Selected<'d> = Rc<Vec<&'d Pod>>;

/// All pods by namespace, and by one of their labels, so that ten thousand selectors do not scan ten thousand pods.
pub(super) struct Pods<'d> {
    by_namespace: BTreeMap<&'d str, Vec<&'d Pod>>,
    by_label: HashMap<(&'d str, &'d str), Vec<&'d Pod>>,
    known: HashMap<(Option<String>, Labels), Selected<'d>>,
    steps: usize,
}

impl<'d> Pods<'d> {
    fn of(documents: &'d Documents) -> Self {
        let mut pods = Self {
            by_namespace: BTreeMap::new(),
            by_label: HashMap::new(),
            known: HashMap::new(),
            steps: STEPS,
        };
        let templates = documents.deployments.iter().map(|d| &d.value.template);
        for pod in templates.chain(documents.pods.iter().map(|p| &p.value)) {
            pods.by_namespace.entry(&pod.metadata.namespace).or_default().push(pod);
            for (key, value) in &pod.metadata.labels {
                pods.by_label.entry((key, value)).or_default().push(pod);
            }
        }
        pods
    }

    /// Takes `steps` of what may be looked at; `None` when that is used up.
    pub(super) fn spend(&mut self, steps: usize) -> Option<()> {
        match self.steps.checked_sub(steps.max(1)) {
            Some(left) => self.steps = left,
            None => self.steps = 0,
        }
        (self.steps > 0).then_some(())
    }

    /// Pods of `namespace` (of all when `None`) with all of these labels; `None` when too much was looked at already.
    pub(super) fn selected(&mut self, namespace: Option<&str>, selector: &Labels) -> Option<Selected<'d>> {
        let key = (namespace.map(str::to_owned), selector.clone());
        if let Some(known) = self.known.get(&key) {
            let known = Rc::clone(known);
            self.spend(known.len())?;
            return Some(known);
        }
        let empty = Vec::new();
        let rarest = selector
            .iter()
            .map(|(key, value)| self.by_label.get(&(key.as_str(), value.as_str())).unwrap_or(&empty))
            .min_by_key(|pods| pods.len());
        let matches = |pod: &&&'d Pod| {
            namespace.is_none_or(|namespace| pod.metadata.namespace == namespace)
                && selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value))
        };
        let (looked, found): (usize, Vec<&'d Pod>) = match (rarest, namespace) {
            (Some(pods), _) => (pods.len(), pods.iter().filter(matches).copied().collect()),
            (None, Some(namespace)) => {
                let pods = self.by_namespace.get(namespace).unwrap_or(&empty);
                (pods.len(), pods.clone())
            }
            (None, None) => {
                let all: Vec<&'d Pod> = self.by_namespace.values().flatten().copied().collect();
                (all.len(), all)
            }
        };
        let found = Rc::new(found);
        self.known.insert(key, Rc::clone(&found));
        self.spend(looked)?;
        Some(found)
    }
}

pub(super) struct Relations<'d> {
    pub(super) documents: &'d Documents,
    pub(super) pods: Pods<'d>,
    problems: Vec<Problem>,
    kept: HashMap<String, usize>,
}

impl<'d> Relations<'d> {
    pub(super) fn error(
        &mut self,
        code: &'static str,
        at: (&Origin, &str),
        reason: String,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Error, code, at, reason, hint.into());
    }

    pub(super) fn warning(
        &mut self,
        code: &'static str,
        at: (&Origin, &str),
        reason: String,
        hint: impl Into<String>,
    ) {
        if !self.documents.places.is_suppressed(at.0, code) {
            self.add(Severity::Warning, code, at, reason, hint.into());
        }
    }

    /// Errors are always kept once, so that a refused folder never looks accepted.
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        at: (&Origin, &str),
        reason: String,
        hint: String,
    ) {
        let kept = self.kept.entry(at.0.file.clone()).or_default();
        *kept += 1;
        let (severity, code, reason, hint) =
            match *kept {
                0..=MAX_FINDINGS => (severity, code, reason, hint),
                _ if severity == Severity::Error || *kept == MAX_FINDINGS + 1 => {
                    if self.problems.iter().rev().any(|p| {
                        p.code == problem::TOO_LARGE && p.file == at.0.file && p.severity == severity
                    }) {
                        return;
                    }
                    let reason =
                        "there are more findings between this file and the others, which are not shown";
                    (severity, problem::TOO_LARGE, reason.into(), "repair the ones above first".into())
                }
                _ => return,
            };
        self.problems.push(self.documents.places.problem(severity, code, at, reason, hint));
    }

    /// What was not looked for since the folder is too large is said.
    fn finish(mut self) -> Vec<Problem> {
        if self.pods.steps == 0 {
            let origin = self.documents.authorization_policies.first().map(|p| &p.origin);
            let origin =
                origin.or(self.documents.services.first().map(|s| &s.origin)).cloned().unwrap_or_default();
            let reason =
                "the folder has so many pods, services and policies that some advice was not looked for";
            self.warning(problem::TOO_LARGE, (&origin, ""), reason.into(), "check it in parts");
        }
        self.problems
    }

    /// A user is one pod: otherwise its processes could choose between identities.
    fn attest_uids(&mut self) {
        let mut seen: HashMap<u32, &Located<Pod>> = HashMap::new();
        for pod in &self.documents.pods {
            let meta = &pod.value.metadata;
            let Some(Ok(uid)) = meta.annotations.get(ATTEST_UID).map(|value| attest_uid(value)) else {
                continue;
            };
            match seen.get(&uid) {
                Some(first) => {
                    let other = &first.value.metadata;
                    let reason = format!(
                        "`{ATTEST_UID}: {uid}` is already on the pod {}/{} in {}:{}",
                        other.namespace, other.name, first.origin.file, first.origin.line
                    );
                    let at = (&pod.origin, "metadata.name");
                    let hint = "run each pod's sidecar as a user of its own";
                    self.error(problem::SHARED_ATTEST_UID, at, reason, hint);
                }
                None => {
                    seen.insert(uid, pod);
                }
            }
        }
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
            let Some(pods) = self.pods.selected(Some(&meta.namespace), &service.selector) else { return };
            if pods.is_empty() {
                self.selects_nothing(origin, "Service", meta);
                continue;
            }
            for (i, port) in service.ports.iter().enumerate() {
                let TargetPort::Name(name) = &port.target else { continue };
                if self.pods.spend(pods.len()).is_none() {
                    return;
                }
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
            } else {
                let Some(pods) = self.pods.selected(Some(&meta.namespace), &policy.selector) else { return };
                if pods.is_empty() {
                    self.selects_nothing(origin, "PeerAuthentication", meta);
                }
            }
        }
        self.shadowed();
    }

    /// Of several PeerAuthentications that select one pod, only the oldest counts; their ports are not merged.
    fn shadowed(&mut self) {
        let documents = self.documents;
        let mut policies: Vec<_> = documents
            .peer_authentications
            .iter()
            .filter(|p| {
                !p.value.selector.is_empty() && p.value.metadata.namespace != documents.mesh.root_namespace
            })
            .collect();
        policies.sort_by(|a, b| by_age(&a.value.metadata, &b.value.metadata));
        let mut oldest: HashMap<*const Pod, &str> = HashMap::new();
        for policy in policies {
            let meta = &policy.value.metadata;
            let Some(pods) = self.pods.selected(Some(&meta.namespace), &policy.value.selector) else {
                return;
            };
            let mut older = None;
            for pod in pods.iter() {
                let chosen = oldest.entry(std::ptr::from_ref(*pod)).or_insert(&meta.name);
                if *chosen != meta.name {
                    older = older.or(Some((*chosen, pod.metadata.name.as_str())));
                }
            }
            if let Some((older, pod)) = older {
                let reason = format!(
                    "PeerAuthentication {}/{} does not count for `{pod}`: `{older}` selects it, too, and is older (or first by name)",
                    meta.namespace, meta.name
                );
                let hint = "put both into one document: modes and ports of several are not merged";
                self.warning(problem::NO_EFFECT, (&policy.origin, "spec.selector"), reason, hint);
            }
        }
    }

    /// Policies that differ in nothing but their names.
    fn same_policies(&mut self) {
        let mut first: HashMap<String, &AuthorizationPolicy> = HashMap::new();
        for document in &self.documents.authorization_policies {
            let policy = &document.value;
            let what = (
                &policy.metadata.namespace,
                &policy.selector,
                policy.action,
                policy.dry_run,
                policy.has_target_refs,
                &policy.rules,
            );
            let text = serde_json::to_string(&what).unwrap_or_default();
            let Some(first) = first.get(&text) else {
                first.insert(text, policy);
                continue;
            };
            if first.metadata.name != policy.metadata.name {
                let reason = format!(
                    "AuthorizationPolicy {}/{} says the same as {}/{}",
                    policy.metadata.namespace,
                    policy.metadata.name,
                    first.metadata.namespace,
                    first.metadata.name
                );
                let at = (&document.origin, "metadata.name");
                self.warning(problem::SAME_POLICY, at, reason, "remove one of the two");
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
            let Some(pods) = self.pods.selected(namespace, &policy.selector) else { return };
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
    pub(super) fn selects_nothing(&mut self, origin: &Origin, kind: &str, meta: &Metadata) {
        if self.documents.pods.is_empty() && self.documents.deployments.is_empty() {
            return;
        }
        let reason = format!("{kind} {}/{} selects no pod of these files", meta.namespace, meta.name);
        let hint = "compare its selector and namespace with the labels of the pods";
        self.warning(problem::SELECTS_NOTHING, (origin, "spec.selector"), reason, hint);
    }
}
