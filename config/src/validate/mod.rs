//! Every problem of every document at once, with a stable code, place, reason and remedy.
//!
//! `document` sees one tree (places are exact), [`relations`] and [`runnable`] see what all files say together.
//! Istio's own messages are contained in the reasons, since people search for them.
use crate::{
    documents::{
        Documents,
        parse::{Node, Place},
        report::Report,
    },
    problem::{self, Problem, Severity},
};

mod advice;
mod conditions;
mod coverage;
mod destination_rules;
mod federation;
mod hyphens;
mod mesh;
mod objects;
mod peers;
mod pods;
mod policies;
mod policy_tests;
mod ports;
mod providers;
mod references;
mod relations;
mod service_entries;
mod suppressions;
mod telemetries;
mod values;

pub use relations::relations;
pub(crate) use suppressions::suppressed;

/// Values of one document.
pub(crate) fn document(report: &mut Report<'_>, kind: &str, node: &Node) {
    objects::metadata(report, kind, node);
    match kind {
        "Service" => objects::service(report, node),
        "Deployment" => pods::deployment(report, node),
        "Pod" => pods::pod(report, node),
        "PolicyTest" => policy_tests::policy_test(report, node),
        "PeerAuthentication" => peers::peer_authentication(report, node),
        "AuthorizationPolicy" => policies::authorization_policy(report, node),
        "ServiceEntry" => service_entries::service_entry(report, node),
        "DestinationRule" => destination_rules::destination_rule(report, node),
        "Telemetry" => telemetries::telemetry(report, node),
        "ClusterFederatedTrustDomain" => federation::federated_trust_domain(report, node),
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
