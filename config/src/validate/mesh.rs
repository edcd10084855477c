//! MeshConfig: keys that are real and not enforced are refused, values of the others are checked.
use super::{providers, values};
use crate::{
    documents::{
        parse::{Key, Node, shorten},
        report::Report,
        schema::{Shape, istio},
    },
    problem,
};

/// What says it instead of a path.
pub(super) const WHERE_LINES_GO: &str = "say where lines go with `--access-log` of each sidecar";

/// The mesh configuration.
pub fn mesh_config(report: &mut Report<'_>, node: &Node) {
    refuse_others(report, node, istio::MESH_CONFIG, istio::ENFORCED_MESH_KEYS, "");
    if let (Some(config), Some(shape)) =
        (node.get("defaultConfig"), field(istio::MESH_CONFIG, "defaultConfig"))
    {
        refuse_others(report, config, shape, &["tracing"], "defaultConfig.");
        if let (Some(tracing), Some(shape)) = (config.get("tracing"), field(shape, "tracing")) {
            refuse_others(report, tracing, shape, &["sampling"], "defaultConfig.tracing.");
        }
    }
    if let (Some(mesh_mtls), Some(shape)) = (node.get("meshMTLS"), field(istio::MESH_CONFIG, "meshMTLS")) {
        refuse_others(report, mesh_mtls, shape, &["minProtocolVersion"], "meshMTLS.");
    }
    providers::declared(report, node);
    for domain in node.get("trustDomain").into_iter().chain(node.list("trustDomainAliases")) {
        let text = domain.text().unwrap_or_default();
        if let Some(why) = values::trust_domain(text) {
            let reason = format!("trust domain `{}`: {why}", shorten(text));
            report.error(problem::BAD_TRUST_DOMAIN, domain.place, reason, "for example `cluster.local`");
        }
    }
    if let Some(namespace) = node.get("rootNamespace") {
        super::objects::named(report, namespace, "rootNamespace", values::dns_label);
    }
    if let Some(file) = node.get("accessLogFile") {
        let text = file.text().unwrap_or_default();
        if !matches!(text, "" | "/dev/stdout") {
            let reason = format!(
                "accessLogFile `{}`: of it only whether it is empty counts, which switches the access log off",
                shorten(text)
            );
            report.warning(problem::NO_EFFECT, file.place, reason, WHERE_LINES_GO);
        }
    }
    if let Some(sampling) = node.at("defaultConfig.tracing.sampling")
        && let Some(why) = values::percent(sampling)
    {
        let reason = format!("sampling {why}");
        report.error(problem::OUT_OF_RANGE, sampling.place, reason, "choose a number in that range");
    }
}

/// Keys that Istio has and that would be ignored are errors; keys that Istio does not have are the schema's business.
pub(super) fn refuse_others(
    report: &mut Report<'_>,
    node: &Node,
    shape: Shape,
    enforced: &[&str],
    path: &str,
) {
    let refused = |key: &Key| !enforced.contains(&key.text.as_str()) && field(shape, &key.text).is_some();
    for (key, _) in node.entries().iter().filter(|(key, _)| refused(key)) {
        let reason = format!(
            "mesh setting `{path}{}` is not enforced yet, so that it is refused rather than ignored",
            key.text
        );
        let hint = format!("remove it; enforced here: {}", enforced.join(", "));
        report.error(problem::MESH_KEY_NOT_ENFORCED, key.place, reason, hint);
    }
}

pub(super) fn field(shape: Shape, name: &str) -> Option<Shape> {
    let Shape::Object(object) = shape else { return None };
    object.fields.iter().find(|(field, _)| *field == name).map(|(_, shape)| *shape)
}
