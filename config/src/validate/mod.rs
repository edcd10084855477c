//! Every problem of every document at once, with a stable code, place, reason and remedy.
//!
//! `document` sees one tree (places are exact), [`relations`] and [`runnable`] see what all files say together.
//! Istio's own messages are contained in the reasons, since people search for them.
use crate::{
    documents::{
        AuthorizationPolicy, Documents,
        authorization_policy::Action,
        parse::{Node, Place},
        report::Report,
    },
    problem::{self, Problem, Severity},
};

mod conditions;
mod mesh;
mod objects;
mod peers;
mod pods;
mod policies;
mod relations;
mod values;

pub use relations::relations;

/// Values of one document.
pub(crate) fn document(report: &mut Report<'_>, kind: &str, node: &Node) {
    objects::metadata(report, kind, node);
    match kind {
        "Service" => objects::service(report, node),
        "Deployment" => pods::deployment(report, node),
        "Pod" => pods::pod(report, node),
        "PeerAuthentication" => peers::peer_authentication(report, node),
        "AuthorizationPolicy" => policies::authorization_policy(report, node),
        _ => {}
    }
}

/// Values of the mesh configuration.
pub(crate) fn mesh_config(report: &mut Report<'_>, node: &Node) {
    mesh::mesh_config(report, node);
}

/// What `postern up` needs beyond what the control plane needs: each container must have a command to run.
pub fn runnable(documents: &Documents) -> Vec<Problem> {
    let mut problems = Vec::new();
    let deployments =
        documents.deployments.iter().map(|d| (&d.origin, "spec.template.spec.containers", &d.value.template));
    let pods = documents.pods.iter().map(|p| (&p.origin, "spec.containers", &p.value));
    for (origin, path, pod) in deployments.chain(pods) {
        for (i, container) in pod.spec.containers.iter().enumerate() {
            if container.command.first().is_some_and(|program| !program.is_empty()) {
                continue;
            }
            let reason = format!(
                "container `{}` of {}/{} has no command; postern up runs host processes and does not pull images",
                container.name, pod.metadata.namespace, pod.metadata.name
            );
            let hint = "add `command: [\"/path/to/program\"]`; the program must be on this machine";
            let at = format!("{path}[{i}]");
            problems.push(documents.places.problem(
                Severity::Error,
                problem::NO_COMMAND,
                (origin, &at),
                reason,
                hint,
            ));
        }
    }
    problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    problems
}

/// What a policy asks for and Postern does not enforce yet, as (field, reason). A policy with any of these must be
/// refused: applied in part it would protect less than it says.
pub fn not_enforced(policy: &AuthorizationPolicy) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut refuse = |field: String, what: &str| found.push((field, format!("{what} is not enforced yet")));
    match policy.action {
        Action::Custom => refuse("spec.action".into(), "action CUSTOM"),
        Action::Audit => refuse("spec.action".into(), "action AUDIT"),
        Action::Allow | Action::Deny => {}
    }
    if policy.dry_run {
        refuse(format!("metadata.annotations.{}", crate::documents::DRY_RUN), "dry run");
    }
    for (r, rule) in policy.rules.iter().enumerate() {
        for (f, from) in rule.from.iter().enumerate() {
            let at = |field: &str| format!("spec.rules[{r}].from[{f}].source.{field}");
            if !from.source.request_principals.is_empty() {
                refuse(at("requestPrincipals"), "requestPrincipals (tokens)");
            }
            if !from.source.not_request_principals.is_empty() {
                refuse(at("notRequestPrincipals"), "notRequestPrincipals (tokens)");
            }
        }
        for (w, when) in rule.when.iter().enumerate() {
            let field = || format!("spec.rules[{r}].when[{w}].key");
            if when.key.starts_with("request.auth.") {
                refuse(field(), "a condition on request.auth.* (tokens)");
            } else if when.key.starts_with("experimental.envoy.") {
                refuse(field(), "a condition on experimental.envoy.* (Envoy's filter metadata)");
            }
        }
    }
    found
}

/// The place of a path such as `spec.rules[0].when[1].key`: its key, or as deep as the path leads.
fn place_of(node: &Node, path: &str) -> Place {
    if let Some(annotation) = path.strip_prefix("metadata.annotations.") {
        let found = node.at("metadata.annotations").and_then(|annotations| annotations.entry(annotation));
        return found.map_or(node.place, |(key, _)| key.place);
    }
    let (mut here, mut place) = (node, node.place);
    for step in path.split('.') {
        let (name, index) = match step.split_once('[') {
            Some((name, index)) => (name, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        let Some((key, value)) = here.entry(name) else { break };
        (here, place) = (value, key.place);
        if let Some(item) = index.and_then(|index| value.items().nth(index)) {
            (here, place) = (item, item.place);
        }
    }
    place
}
