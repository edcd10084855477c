//! Telemetry: what is enforced, what is refused, and several for one place.
use super::{objects, relations::Relations, values};
use crate::{
    cel::{self, Filter},
    documents::{
        Located, Pod, Telemetry, decode_custom_tag,
        parse::{Key, Node, Place, Value, shorten},
        report::Report,
        schema::boolean,
        telemetry::Signal,
    },
    problem::{self, BAD_LOG_FILTER, BAD_TRACE_TAG, FIELD_NOT_ENFORCED, NO_EFFECT, TELEMETRY_CONFLICT},
    select::by_age,
    telemetry::{TAGS, wrong_tag},
};
use std::collections::{BTreeSet, HashMap};

/// `Telemetry`.
pub fn telemetry(report: &mut Report<'_>, node: &Node) {
    let signals = Signal::ALL.map(|(field, _)| field);
    let spec =
        node.get("spec").filter(|spec| signals.iter().any(|signal| spec.list(signal).next().is_some()));
    let Some(spec) = spec else {
        let at = node.entry("spec").map_or(node.place, |(key, _)| key.place);
        let reason = "a Telemetry without accessLogging, tracing and metrics changes nothing";
        return report.warning(NO_EFFECT, at, reason, "add one of them, or remove the document");
    };
    objects::istio_selector(report, spec);
    for name in ["targetRef", "targetRefs"] {
        if let Some((key, _)) = spec.entry(name).filter(|(_, value)| !value.is_null()) {
            let reason = format!("`{name}` is for gateways and waypoints: no sidecar looks at this document");
            report.warning(problem::NOT_APPLICABLE, key.place, reason, "use `selector`");
        }
    }
    for logging in spec.list("accessLogging") {
        if let Some(expression) = logging.at("filter.expression") {
            filter(report, expression);
        }
        let is_off = logging.get("disabled").and_then(Node::text).and_then(boolean) == Some(true);
        if let Some((key, _)) = logging.entry("filter").filter(|_| is_off) {
            let reason = "a filter beside `disabled: true` is never asked";
            report.warning(NO_EFFECT, key.place, reason, "remove one of the two");
        }
    }
    overridden(report, spec);
    for tracing in spec.list("tracing") {
        traces(report, tracing);
    }
    for metrics in spec.list("metrics") {
        not_enforced(
            report,
            metrics,
            "metrics[].reportingInterval",
            "Prometheus and OTEL_METRIC_EXPORT_INTERVAL say when metrics are asked for or sent",
        );
        for one in metrics.list("overrides") {
            not_enforced(
                report,
                one,
                "metrics[].overrides[].tagOverrides",
                "remove it; labels can be dropped and renamed where metrics are scraped (`metric_relabel_configs`)",
            );
            if let Some(of) = one.get("match") {
                not_enforced(
                    report,
                    of,
                    "metrics[].overrides[].match.customMetric",
                    "name one of Istio's standard metrics",
                );
            }
        }
    }
}

fn filter(report: &mut Report<'_>, expression: &Node) {
    let Some(text) = expression.text() else { return };
    if let Err(mistake) = Filter::parse(text) {
        let rest: String = text.chars().skip(mistake.at).collect();
        let place = if rest.is_empty() {
            "at its end".to_owned()
        } else {
            format!("at character {}, `{}`", mistake.at + 1, shorten(&rest))
        };
        let reason = format!("filter of the access log: {}; {place}", mistake.reason);
        report.error(BAD_LOG_FILTER, expression.place, reason, mistake.hint);
    }
}

/// An entry that a later one of the same document takes the place of.
fn overridden(report: &mut Report<'_>, spec: &Node) {
    let sides = |entry: &Node| match entry.at("match.mode").and_then(Node::text) {
        Some("CLIENT") => [true, false],
        Some("SERVER") => [false, true],
        _ => [true, true],
    };
    let all: Vec<(&Node, [bool; 2])> =
        spec.list("accessLogging").map(|entry| (entry, sides(entry))).collect();
    for (number, (entry, own)) in all.iter().enumerate() {
        let later = all.iter().skip(number + 1);
        let covered = later.fold([false; 2], |[a, b], (_, [c, d])| [a || *c, b || *d]);
        if own.iter().zip(covered).all(|(own, covered)| !own || covered) {
            let reason = "later entries say something else of the same sides, and the last one counts";
            let hint = "join two filters with && or || in one entry";
            report.warning(NO_EFFECT, first_place(entry), reason, hint);
        }
    }
}

fn traces(report: &mut Report<'_>, tracing: &Node) {
    if let Some(sampling) = tracing.get("randomSamplingPercentage")
        && let Some(why) = values::percent(sampling)
    {
        let reason = format!("randomSamplingPercentage {why}");
        report.error(problem::OUT_OF_RANGE, sampling.place, reason, "choose a number in that range");
    }
    let wish = |name: &str| {
        let (key, value) = tracing.entry(name)?;
        (value.text().and_then(boolean) == Some(true)).then_some(key.place)
    };
    if let Some(at) = wish("disableContextPropagation") {
        let reason =
            "`disableContextPropagation: true` is not enforced yet: spans are always passed on as parents";
        let hint = "remove it; `disableSpanReporting: true` leaves headers as they are";
        report.error(FIELD_NOT_ENFORCED, at, reason, hint);
    }
    for (name, reason) in [
        ("useRequestIdForTraceSampling", "sampling is decided by the trace's own ID, never by x-request-id"),
        ("enableIstioTags", "`istio.*` attributes are not made: spans name both ends by their SPIFFE IDs"),
    ] {
        if let Some(at) = wish(name) {
            let hint = format!("remove it, or write `{name}: false`");
            report.warning(NO_EFFECT, at, format!("`{name}: true` has no effect: {reason}"), hint);
        }
    }
    let Some((key, tags)) = tracing.entry("customTags") else { return };
    custom_tags(report, key, tags);
}

fn custom_tags(report: &mut Report<'_>, key: &Key, tags: &Node) {
    let mut headers = BTreeSet::new();
    for (name, tag) in tags.entries() {
        if !matches!(tag.value, Value::Map(_)) && !tag.is_null() {
            continue; // the schema has said so
        }
        for (kind, why) in [
            (
                "environment",
                "would tell of the sidecar's own environment, secrets and all; set OTEL_RESOURCE_ATTRIBUTES of the sidecar",
            ),
            ("formatter", "is Envoy's own language; use `literal` or `header`"),
        ] {
            if let Some((key, _)) = tag.entry(kind) {
                let reason = format!("customTags `{}`: `{kind}` is not supported", shorten(&name.text));
                report.error(BAD_TRACE_TAG, key.place, reason, format!("it {why}"));
            }
        }
        let kinds = tag.entries().len();
        match decode_custom_tag(tag) {
            Some(decoded) if kinds == 1 => {
                if let crate::documents::telemetry::CustomTag::Header { name, .. } = &decoded {
                    headers.insert(name.clone());
                }
                if let Some(why) = wrong_tag(&name.text, &decoded) {
                    let reason = format!("customTags `{}`: {why}", shorten(&name.text));
                    report.error(BAD_TRACE_TAG, name.place, reason, "choose another one");
                }
            }
            None if tag.get("environment").or(tag.get("formatter")).is_some() => {}
            _ => {
                let reason =
                    format!("customTags `{}` needs exactly one of literal and header", shorten(&name.text));
                report.error(
                    BAD_TRACE_TAG,
                    name.place,
                    reason,
                    "write `literal: {value: ...}` or `header: {name: ...}`",
                );
            }
        }
    }
    for (what, count, most) in
        [("customTags", tags.entries().len(), TAGS), ("headers in customTags", headers.len(), cel::HEADERS)]
    {
        if count > most {
            report.error(problem::OUT_OF_RANGE, key.place, format!("more than {most} {what}"), "name fewer");
        }
    }
}

fn not_enforced(report: &mut Report<'_>, node: &Node, path: &str, hint: &str) {
    let name = path.rsplit('.').next().unwrap_or(path);
    if let Some((key, _)) = node.entry(name).filter(|(_, value)| !value.is_null()) {
        let reason = format!("`{path}` of a Telemetry is not enforced yet");
        report.error(FIELD_NOT_ENFORCED, key.place, reason, hint);
    }
}

/// Of a mapping, its first key.
fn first_place(node: &Node) -> Place {
    node.entries().first().map_or(node.place, |(key, _)| key.place)
}

/// What is wrong between Telemetries: of one scope, only the oldest counts.
pub(super) fn relations(found: &mut Relations<'_>) {
    let documents = found.documents;
    let mut all: Vec<&Located<Telemetry>> =
        documents.telemetries.iter().filter(|one| !one.value.has_target_refs).collect();
    all.sort_by(|a, b| by_age(&a.value.metadata, &b.value.metadata));
    let mut whole: HashMap<&str, &str> = HashMap::new();
    let mut of_pod: HashMap<*const Pod, &str> = HashMap::new();
    let hint = "put all of it into one document: several of one scope are not merged";
    for one in all {
        let meta = &one.value.metadata;
        if one.value.selector.is_empty() {
            let first = whole.entry(&meta.namespace).or_insert(&meta.name);
            if *first != meta.name {
                let reason = format!(
                    "Telemetry {}/{} does not count: `{first}` is for the whole namespace, too, and is older (or first by name)",
                    meta.namespace, meta.name
                );
                found.warning(TELEMETRY_CONFLICT, (&one.origin, "metadata.name"), reason, hint);
            }
            continue;
        }
        let Some(pods) = found.pods.selected(Some(&meta.namespace), &one.value.selector) else { return };
        if pods.is_empty() {
            found.selects_nothing(&one.origin, "Telemetry", meta);
        }
        let mut older = None;
        for pod in pods.iter() {
            let chosen = of_pod.entry(std::ptr::from_ref(*pod)).or_insert(&meta.name);
            if *chosen != meta.name {
                older = older.or(Some((*chosen, pod.metadata.name.as_str())));
            }
        }
        if let Some((older, pod)) = older {
            let reason = format!(
                "Telemetry {}/{} does not count for `{pod}`: `{older}` selects it, too, and is older (or first by name)",
                meta.namespace, meta.name
            );
            found.warning(TELEMETRY_CONFLICT, (&one.origin, "spec.selector"), reason, hint);
        }
    }
}
