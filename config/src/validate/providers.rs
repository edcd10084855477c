//! Providers of telemetry: what the mesh configuration declares, and what a Telemetry names.
//!
//! Where telemetry goes is said by the sidecars' own settings. So a declaration gives a name a meaning, and is told where it would
//! lead to something that does not happen.
use super::{
    mesh::{WHERE_LINES_GO, field, refuse_others},
    relations::Relations,
};
use crate::{
    documents::{
        Documents, ExtensionProvider,
        parse::{Key, Node, Value, shorten},
        report::Report,
        schema::{Shape, istio},
        telemetry::Signal,
    },
    problem::{self, TELEMETRY_PROVIDER},
};
use std::collections::BTreeSet;

/// Names that a finding lists.
const LISTED: usize = 8;
const WHERE_OTLP_GOES: &str =
    "set OTEL_EXPORTER_OTLP_ENDPOINT of the sidecars; suppress the warning where that is done";

/// `extensionProviders` of the mesh configuration.
pub fn declared(report: &mut Report<'_>, mesh: &Node) {
    let mut names = BTreeSet::new();
    for provider in mesh.list("extensionProviders") {
        let Some(name) = provider.get("name").filter(|name| !name.is_null()) else { continue };
        let text = name.text().unwrap_or_default();
        if text.is_empty() {
            let reason = "a provider without a name can be named by nobody";
            report.error(TELEMETRY_PROVIDER, name.place, reason, "give it one");
        } else if !names.insert(text) {
            let reason = format!("a provider `{}` is already declared", shorten(text));
            report.error(TELEMETRY_PROVIDER, name.place, reason, "rename one of the two");
        }
        kind(report, provider);
    }
}

fn kind(report: &mut Report<'_>, provider: &Node) {
    let shape = Shape::Object(&istio::EXTENSION_PROVIDER);
    let words = ExtensionProvider::ALL.map(|(word, _)| word);
    let enforced: Vec<&str> = std::iter::once("name").chain(words).collect();
    refuse_others(report, provider, shape, &enforced, "extensionProviders[].");
    let all: Vec<(&Key, &Node)> = provider
        .entries()
        .iter()
        .filter(|(key, value)| key.text != "name" && !value.is_null() && field(shape, &key.text).is_some())
        .map(|(key, value)| (key, &**value))
        .collect();
    let [(key, value)] = all[..] else {
        let reason = format!("a provider is exactly one of {}", words.join(", "));
        let at = all.get(1).map_or(provider.place, |(key, _)| key.place);
        return report.error(TELEMETRY_PROVIDER, at, reason, "declare each with a name of its own");
    };
    let kind = ExtensionProvider::ALL.iter().find(|(word, _)| *word == key.text);
    let (Some((word, kind)), Value::Map(_)) = (kind, &value.value) else { return };
    let Some(shape) = field(shape, word) else { return };
    let path = format!("extensionProviders[].{word}.");
    match kind {
        ExtensionProvider::EnvoyFileAccessLog => {
            refuse_others(report, value, shape, &["path"], &path);
            let file = value.get("path");
            if let Some(file) = file.filter(|file| !matches!(file.text(), None | Some("" | "/dev/stdout"))) {
                let reason = format!(
                    "nothing is written to `{}` by this provider, which stands for the sidecar's access log",
                    shorten(file.text().unwrap_or_default())
                );
                report.warning(problem::NO_EFFECT, file.place, reason, WHERE_LINES_GO);
            }
        }
        ExtensionProvider::EnvoyOtelAls => {
            refuse_others(report, value, shape, &["service", "port"], &path);
            collector(report, value, "records of the access log");
        }
        ExtensionProvider::OpenTelemetry => {
            refuse_others(report, value, shape, &["service", "port", "http"], &path);
            collector(report, value, "spans");
        }
        ExtensionProvider::Prometheus => {}
    }
}

/// An address to which nothing is sent.
fn collector(report: &mut Report<'_>, provider: &Node, what: &str) {
    if let Some(port) = provider.get("port").filter(|port| !port.is_null())
        && port.text().and_then(|text| text.parse::<u16>().ok()).is_none_or(|port| port == 0)
    {
        report.error(
            problem::OUT_OF_RANGE,
            port.place,
            "port must be between 1 and 65535",
            "choose one of them",
        );
    }
    if let Some(service) = provider.get("service").filter(|service| !service.is_null()) {
        let service_name = shorten(service.text().unwrap_or_default());
        let reason =
            format!("{what} go where the OTEL_* variables of the sidecars say, not to `{service_name}`");
        report.warning(TELEMETRY_PROVIDER, service.place, reason, WHERE_OTLP_GOES);
    }
}

/// What Telemetries name has to be declared, and for what it is named for.
pub(super) fn relations(found: &mut Relations<'_>) {
    let documents = found.documents;
    let known = Signal::ALL.map(|(field, signal)| (signal, field, listed(documents, signal)));
    for named in &documents.named_providers {
        let (name, at) = (shorten(&named.value.name), (&named.origin, named.value.path.as_str()));
        let provider = provider(documents, &named.value.name);
        let signal = named.value.signal;
        let Some((_, field, names)) = known.iter().find(|(of, ..)| *of == signal) else { continue };
        match provider.map(|provider| (provider, provider.signal())) {
            Some((ExtensionProvider::EnvoyOtelAls, Signal::AccessLogging))
                if signal == Signal::AccessLogging =>
            {
                let reason = format!(
                    "what is said of `{name}` holds for all of the access log: its records by OTLP and its lines are the same"
                );
                let hint = "suppress the warning where this is wanted";
                found.warning(TELEMETRY_PROVIDER, at, reason, hint);
            }
            Some((_, of)) if of == signal => {}
            other => {
                let other = other.and_then(|(_, of)| known.iter().find(|(signal, ..)| *signal == of));
                let but = other.map_or(String::new(), |(_, field, _)| format!(", it is one of {field}"));
                let reason = format!("no provider `{name}` of {field}{but}: {names}");
                found.error(TELEMETRY_PROVIDER, at, reason, remedy(signal));
            }
        }
    }
}

/// A declaration comes before what Istio has without one.
fn provider(documents: &Documents, name: &str) -> Option<ExtensionProvider> {
    let built_in = || ExtensionProvider::BUILT_IN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    documents.extension_providers.get(name).copied().or_else(|| built_in().map(|(_, provider)| *provider))
}

/// The names that there are for a signal, as a sentence.
fn listed(documents: &Documents, signal: Signal) -> String {
    let declared = documents.extension_providers.iter().map(|(name, provider)| (name.as_str(), *provider));
    let built_in = ExtensionProvider::BUILT_IN.into_iter();
    let built_in = built_in.filter(|(name, _)| !documents.extension_providers.contains_key(*name));
    let mut names = built_in.chain(declared).filter(|(_, provider)| provider.signal() == signal);
    let mut told: Vec<String> =
        names.by_ref().take(LISTED).map(|(name, _)| format!("`{}`", shorten(name))).collect();
    let more = names.count();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    match told.len() {
        0 => "none is declared".into(),
        1 => format!("there is {}", told.join("")),
        _ => format!("there are {}", told.join(", ")),
    }
}

fn remedy(signal: Signal) -> &'static str {
    match signal {
        Signal::AccessLogging => {
            "write `envoy`, or leave `providers` out; the sidecars' own settings say where it goes"
        }
        Signal::Metrics => {
            "write `prometheus`, or leave `providers` out; the sidecars' own settings say where it goes"
        }
        Signal::Tracing => {
            "declare it as `opentelemetry` in `extensionProviders` of the mesh configuration, or leave `providers` out; spans go \
             where OTEL_EXPORTER_OTLP_ENDPOINT of the sidecars says"
        }
    }
}
