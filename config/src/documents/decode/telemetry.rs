//! Trees to Telemetry.
use super::{flag, kubernetes::metadata, number, optional, string_map};
use crate::documents::{
    parse::{Node, Place},
    schema::boolean,
    telemetry::{
        AccessLogging, CustomTag, Metric, MetricOverride, Mode, NamedProvider, Signal, Telemetry, Tracing,
    },
};

pub fn telemetry(node: &Node) -> Telemetry {
    let own = metadata(node);
    let Some(spec) = node.get("spec") else { return Telemetry { metadata: own, ..Telemetry::default() } };
    Telemetry {
        metadata: own,
        selector: string_map(spec.at("selector.matchLabels")),
        has_target_refs: spec.get("targetRef").is_some() || spec.list("targetRefs").next().is_some(),
        access_logging: spec.list("accessLogging").map(access_logging).collect(),
        tracing: spec.list("tracing").map(tracing).collect(),
        metrics: spec
            .list("metrics")
            .flat_map(|metrics| metrics.list("overrides"))
            .filter_map(metric_override)
            .collect(),
    }
}

/// All `providers[]` of all entries that have a name, and the places of these.
pub fn named_providers(node: &Node) -> impl Iterator<Item = (NamedProvider, Place)> {
    let signals = Signal::ALL.into_iter().flat_map(move |(field, signal)| {
        let entries = node.get("spec").into_iter().flat_map(move |spec| spec.list(field)).enumerate();
        entries.map(move |(number, entry)| (format!("spec.{field}[{number}]"), signal, entry))
    });
    signals.flat_map(|(path, signal, entry)| {
        entry.list("providers").enumerate().filter_map(move |(number, provider)| {
            let name = provider.get("name")?;
            let path = format!("{path}.providers[{number}]");
            Some((NamedProvider { signal, name: name.text()?.to_owned(), path }, name.place))
        })
    })
}

fn mode(node: &Node) -> Mode {
    match node.at("match.mode").and_then(Node::text) {
        Some("CLIENT") => Mode::Client,
        Some("SERVER") => Mode::Server,
        _ => Mode::ClientAndServer,
    }
}

fn access_logging(node: &Node) -> AccessLogging {
    let filter = node.at("filter.expression").and_then(Node::text).map(str::to_owned);
    AccessLogging { mode: mode(node), disabled: flag(node, "disabled"), filter }
}

fn tracing(node: &Node) -> Tracing {
    let tags = node.get("customTags").filter(|tags| !tags.is_null()).map(|tags| {
        tags.entries().iter().filter_map(|(name, tag)| Some((name.text.clone(), custom_tag(tag)?))).collect()
    });
    Tracing {
        mode: mode(node),
        random_sampling_percentage: number(node, "randomSamplingPercentage"),
        disable_span_reporting: node.get("disableSpanReporting").and_then(Node::text).and_then(boolean),
        custom_tags: tags,
    }
}

/// `None` for what validation refuses.
pub fn custom_tag(node: &Node) -> Option<CustomTag> {
    if let Some(literal) = node.get("literal") {
        return Some(CustomTag::Literal(literal.string("value")));
    }
    let header = node.get("header")?;
    let name = header.string("name").to_ascii_lowercase();
    Some(CustomTag::Header { name, default: optional(header, "defaultValue") })
}

/// `None` for one that switches nothing.
fn metric_override(node: &Node) -> Option<MetricOverride> {
    let name = node.at("match.metric").and_then(Node::text);
    let metric = Metric::ALL.iter().find(|(known, _)| Some(*known) == name).map(|(_, metric)| *metric);
    let disabled = node.get("disabled").and_then(Node::text).and_then(boolean)?;
    Some(MetricOverride { mode: mode(node), metric, disabled })
}
