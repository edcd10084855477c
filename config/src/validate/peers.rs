//! PeerAuthentication (reference 1.8).
use super::objects;
use crate::{
    documents::{
        parse::{Node, Value, shorten},
        report::Report,
    },
    problem,
};

/// `PeerAuthentication`.
pub fn peer_authentication(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else {
        let reason = "a PeerAuthentication without mode changes nothing";
        return report.warning(problem::NO_EFFECT, node.place, reason, "add `spec: {mtls: {mode: STRICT}}`");
    };
    objects::istio_selector(report, spec);
    let Some((key, ports)) =
        spec.entry("portLevelMtls").filter(|(_, ports)| matches!(ports.value, Value::Map(_)))
    else {
        return;
    };
    if spec.at("selector.matchLabels").is_none_or(|labels| labels.entries().is_empty()) {
        let reason = "mesh/namespace peer authentication cannot have port level mTLS (portLevelMtls requires selector)";
        report.error(
            problem::BAD_PORT_LEVEL,
            key.place,
            reason,
            "add `selector: {matchLabels: {...}}`, or use `mtls:`",
        );
    }
    if ports.entries().is_empty() {
        let reason = "port level mTLS, if defined, must have at least one element";
        report.error(
            problem::BAD_PORT_LEVEL,
            key.place,
            reason,
            "add `\"8080\": {mode: STRICT}`, or remove portLevelMtls",
        );
    }
    for (port, _) in ports.entries() {
        if !port.text.parse::<u16>().is_ok_and(|number| number > 0) {
            let reason = format!(
                "port must be in range 1..65535, found `{}` (port must be between 1-65535)",
                shorten(&port.text)
            );
            report.error(
                problem::BAD_PORT_LEVEL,
                port.place,
                reason,
                "write the number of the workload's port",
            );
        }
    }
}
