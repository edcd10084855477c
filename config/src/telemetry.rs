//! What a workload tells of the traffic: the `Telemetry` documents that concern it, merged into one answer for each side.
//!
//! Source: Istio, "Telemetry API"; the order of precedence is that of `applicableTelemetries`
//! (istio/pilot/pkg/model/telemetry.go): mesh, namespace, workload, and in one document later entries before earlier ones.

use crate::{
    cel::{self, Filter},
    documents::{
        MeshConfig, Metadata, Telemetry,
        telemetry::{CustomTag, Metric, Mode},
    },
    problem::{self, Problem, Severity},
};
use http::HeaderName;
use std::collections::{BTreeMap, BTreeSet};

/// Attributes of spans that one side may have by `customTags`.
pub const TAGS: usize = 64;
/// Longest name or fixed value of such an attribute, in bytes.
pub const TAG: usize = 256;

/// The answer for both sides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sides {
    /// Of calls that come in (`SERVER`).
    pub inbound: Side,
    /// Of calls that go out (`CLIENT`).
    pub outbound: Side,
}

/// The answer for one side; the default is what holds when nobody says anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Side {
    /// Which lines the access log has.
    pub log: Log,
    /// The part of the traces begun here that is recorded, 0 to 1; `None`: the sidecar's own sampler decides.
    pub sampling: Option<f64>,
    /// No spans are made, and callers' headers pass as they are.
    pub is_silent: bool,
    /// Further attributes of spans, by name.
    pub tags: BTreeMap<String, CustomTag>,
    /// Metrics that are not told.
    pub metrics_off: BTreeSet<Metric>,
}

/// Which lines the access log has. Denials, refused connections and what an AUDIT policy matched are in it in any case.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Log {
    /// All.
    #[default]
    All,
    /// None.
    Off,
    /// Where it is true, and where it cannot be told.
    Where(Filter),
}

impl Side {
    /// The request headers that filter and tags look at, each once.
    pub fn headers(&self) -> Vec<HeaderName> {
        let mut all = match &self.log {
            Log::Where(filter) => filter.headers().to_vec(),
            Log::All | Log::Off => vec![],
        };
        for tag in self.tags.values() {
            if let CustomTag::Header { name, .. } = tag
                && let Ok(name) = name.parse()
                && !all.contains(&name)
            {
                all.push(name);
            }
        }
        all
    }
}

impl Sides {
    /// Merges documents, the widest scope first. What holds before the first one is the mesh's: its access log, its sampling.
    ///
    /// # Errors
    /// All that cannot be done as it is written, for documents that were not validated.
    pub fn merge<'d>(
        mesh: &MeshConfig,
        documents: impl IntoIterator<Item = &'d Telemetry>,
    ) -> Result<Self, Vec<Problem>> {
        let mut sides = Self::default();
        let mut problems = Vec::new();
        for side in [&mut sides.inbound, &mut sides.outbound] {
            side.log = if mesh.access_log_file.is_empty() { Log::Off } else { Log::All };
            side.sampling = mesh.tracing_sampling.and_then(ratio);
        }
        for document in documents {
            sides.add(document, &mut problems);
        }
        if problems.is_empty() { Ok(sides) } else { Err(problems) }
    }

    fn of(&mut self, mode: Mode) -> Vec<&mut Side> {
        let (inbound, outbound) = (&mut self.inbound, &mut self.outbound);
        match mode {
            Mode::Server => vec![inbound],
            Mode::Client => vec![outbound],
            Mode::ClientAndServer => vec![inbound, outbound],
        }
    }

    fn add(&mut self, document: &Telemetry, problems: &mut Vec<Problem>) {
        let mut refuse = |code, reason: String, hint: &str| {
            problems.push(refused(&document.metadata, code, reason, hint));
        };
        for logging in &document.access_logging {
            let log = match (&logging.filter, logging.disabled) {
                (_, true) => Log::Off,
                (None, false) => Log::All,
                (Some(text), false) => match Filter::parse(text) {
                    Ok(filter) => Log::Where(filter),
                    Err(mistake) => {
                        let reason = format!("filter `{text}`: {}", mistake.reason);
                        refuse(problem::BAD_LOG_FILTER, reason, &mistake.hint);
                        continue;
                    }
                },
            };
            self.of(logging.mode).into_iter().for_each(|side| side.log = log.clone());
        }
        for tracing in &document.tracing {
            let sampling = match tracing.random_sampling_percentage.map(|percent| (percent, ratio(percent))) {
                Some((percent, None)) => {
                    let reason = format!("randomSamplingPercentage {percent} is not from 0 to 100");
                    refuse(problem::OUT_OF_RANGE, reason, "choose a number in that range");
                    continue;
                }
                Some((_, sampling)) => sampling,
                None => None,
            };
            if let Some((code, reason)) = tracing.custom_tags.as_ref().and_then(wrong_tags) {
                refuse(code, reason, "correct customTags");
                continue;
            }
            for side in self.of(tracing.mode) {
                side.sampling = sampling.or(side.sampling);
                side.is_silent = tracing.disable_span_reporting.unwrap_or(side.is_silent);
                if let Some(tags) = &tracing.custom_tags {
                    side.tags.clone_from(tags);
                }
            }
        }
        for metric in &document.metrics {
            let meant: Vec<Metric> =
                metric.metric.map_or_else(|| Metric::ALL.map(|(_, metric)| metric).to_vec(), |one| vec![one]);
            for side in self.of(metric.mode) {
                for one in &meant {
                    if metric.disabled {
                        side.metrics_off.insert(*one);
                    } else {
                        side.metrics_off.remove(one);
                    }
                }
            }
        }
    }
}

/// `None` for what is no percentage.
fn ratio(percent: f64) -> Option<f64> {
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

/// What is wrong with tags; the same rules as those of validation, which has the places.
fn wrong_tags(tags: &BTreeMap<String, CustomTag>) -> Option<(&'static str, String)> {
    if tags.len() > TAGS {
        return Some((problem::OUT_OF_RANGE, format!("more than {TAGS} customTags")));
    }
    let headers: BTreeSet<&str> = tags.values().filter_map(CustomTag::header).collect();
    if headers.len() > cel::HEADERS {
        return Some((problem::OUT_OF_RANGE, format!("customTags of more than {} headers", cel::HEADERS)));
    }
    tags.iter().find_map(|(name, tag)| {
        let why = wrong_tag(name, tag)?;
        Some((problem::BAD_TRACE_TAG, format!("customTags `{name}`: {why}")))
    })
}

/// Why a tag cannot be; `None` when it can.
pub(crate) fn wrong_tag(name: &str, tag: &CustomTag) -> Option<String> {
    if name.is_empty() || name.len() > TAG {
        return Some(format!("a name has 1 to {TAG} bytes"));
    }
    if name.starts_with("postern.") {
        return Some("names that begin with `postern.` are the sidecar's own".to_owned());
    }
    match tag {
        CustomTag::Literal(value) if value.is_empty() => Some("the value is empty".to_owned()),
        CustomTag::Literal(value) if value.len() > TAG => {
            Some(format!("the value has more than {TAG} bytes"))
        }
        CustomTag::Header { default: Some(default), .. } if default.len() > TAG => {
            Some(format!("the default has more than {TAG} bytes"))
        }
        CustomTag::Header { name, .. } if cel::is_secret(name) => {
            Some(format!("the header `{name}` may hold secrets, which no span has"))
        }
        CustomTag::Header { name, .. } if name.parse::<HeaderName>().is_err() => {
            Some(format!("`{name}` is no name of a header"))
        }
        CustomTag::Literal(_) | CustomTag::Header { .. } => None,
    }
}

impl CustomTag {
    fn header(&self) -> Option<&str> {
        match self {
            Self::Header { name, .. } => Some(name),
            Self::Literal(_) => None,
        }
    }
}

fn refused(metadata: &Metadata, code: &'static str, reason: String, hint: &str) -> Problem {
    Problem {
        severity: Severity::Error,
        code,
        file: String::new(),
        line: 0,
        column: 0,
        reason: format!("Telemetry {}/{}: {reason}", metadata.namespace, metadata.name),
        hint: hint.to_owned(),
        source_line: None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use crate::documents::telemetry::{AccessLogging, MetricOverride, Tracing};

    fn logging(mode: Mode, disabled: bool, filter: Option<&str>) -> Telemetry {
        let filter = filter.map(str::to_owned);
        Telemetry { access_logging: vec![AccessLogging { mode, disabled, filter }], ..Telemetry::default() }
    }

    fn tracing(tracing: Tracing) -> Telemetry {
        Telemetry { tracing: vec![tracing], ..Telemetry::default() }
    }

    fn merged(documents: &[Telemetry]) -> Sides {
        Sides::merge(&MeshConfig::default(), documents).unwrap()
    }

    /// `a`: all, `o`: off, `f`: where a filter says so.
    fn letters(documents: &[Telemetry], mesh: &MeshConfig) -> String {
        let sides = Sides::merge(mesh, documents).unwrap();
        let letter = |log: &Log| match log {
            Log::All => 'a',
            Log::Off => 'o',
            Log::Where(_) => 'f',
        };
        [letter(&sides.inbound.log), letter(&sides.outbound.log)].iter().collect()
    }

    #[test]
    fn of_the_log_the_nearest_word_for_a_side_counts_whole() {
        use Mode::{Client, ClientAndServer as Both, Server};
        let on = |mode| logging(mode, false, None);
        let off = |mode| logging(mode, true, None);
        let filtered = |mode| logging(mode, false, Some("response.code >= 400"));
        for (documents, expected) in [
            (vec![], "aa"),
            (vec![Telemetry::default()], "aa"),
            (vec![off(Both)], "oo"),
            (vec![off(Client)], "ao"),
            (vec![filtered(Server)], "fa"),
            (vec![off(Both), on(Client)], "oa"),
            // A nearer word without a filter is a word without a filter.
            (vec![filtered(Both), on(Server)], "af"),
            (vec![on(Both), filtered(Both), off(Server)], "of"),
            // What a nearer document says of traces says nothing of the log.
            (vec![off(Both), tracing(Tracing::default())], "oo"),
        ] {
            assert_eq!(letters(&documents, &MeshConfig::default()), expected, "{documents:?}");
        }
        let mut both = off(Both);
        both.access_logging.extend(on(Server).access_logging);
        assert_eq!(letters(&[both], &MeshConfig::default()), "ao", "later entries count");
        // Off in the mesh configuration, and on by a document.
        let silent = MeshConfig { access_log_file: String::new(), ..MeshConfig::default() };
        assert_eq!(letters(&[], &silent), "oo");
        assert_eq!(letters(&[on(Server)], &silent), "ao");
    }

    #[test]
    fn of_traces_each_field_is_inherited_by_itself() {
        let half = Tracing { random_sampling_percentage: Some(50.0), ..Tracing::default() };
        let quiet = Tracing { mode: Mode::Client, disable_span_reporting: Some(true), ..Tracing::default() };
        let literal = |value: &str| CustomTag::Literal(value.into());
        let tags = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), literal("x"))).collect();
        let two = Tracing { custom_tags: Some(tags(&["a", "b"])), ..Tracing::default() };
        let one = Tracing { custom_tags: Some(tags(&["c"])), mode: Mode::Server, ..Tracing::default() };
        let sides = merged(&[half, two, quiet, one].map(tracing));
        assert_eq!((sides.inbound.sampling, sides.outbound.sampling), (Some(0.5), Some(0.5)));
        assert_eq!((sides.inbound.is_silent, sides.outbound.is_silent), (false, true));
        assert_eq!(sides.inbound.tags, tags(&["c"]), "tags are one thing, as in Istio");
        assert_eq!(sides.outbound.tags, tags(&["a", "b"]));
        let mesh = MeshConfig { tracing_sampling: Some(1.0), ..MeshConfig::default() };
        assert_eq!(Sides::merge(&mesh, []).unwrap().inbound.sampling, Some(0.01));
        let all = Tracing { random_sampling_percentage: Some(100.0), ..Tracing::default() };
        assert_eq!(Sides::merge(&mesh, &[tracing(all)]).unwrap().inbound.sampling, Some(1.0));
        let loud = Tracing { disable_span_reporting: Some(false), ..Tracing::default() };
        let quiet = Tracing { disable_span_reporting: Some(true), ..Tracing::default() };
        assert!(!merged(&[tracing(quiet), tracing(loud)]).inbound.is_silent);
    }

    #[test]
    fn metrics_are_switched_one_by_one_and_by_side() {
        let metric = |mode, metric, disabled| Telemetry {
            metrics: vec![MetricOverride { mode, metric, disabled }],
            ..Telemetry::default()
        };
        let sides = merged(&[
            metric(Mode::Client, None, true),
            metric(Mode::ClientAndServer, Some(Metric::RequestCount), false),
            metric(Mode::Server, Some(Metric::RequestSize), true),
        ]);
        assert_eq!(sides.outbound.metrics_off.len(), Metric::ALL.len() - 1);
        assert!(!sides.outbound.metrics_off.contains(&Metric::RequestCount));
        assert_eq!(sides.inbound.metrics_off, [Metric::RequestSize].into());
    }

    #[test]
    fn what_was_not_validated_is_refused_whole() {
        let header = |name: &str| CustomTag::Header { name: name.into(), default: None };
        let tag = |name: &str, tag: CustomTag| {
            tracing(Tracing { custom_tags: Some([(name.to_owned(), tag)].into()), ..Tracing::default() })
        };
        let percent =
            |percent| tracing(Tracing { random_sampling_percentage: Some(percent), ..Tracing::default() });
        let many = (0..cel::HEADERS + 1).map(|n| (format!("t{n}"), header(&format!("x-{n}")))).collect();
        for (document, code) in [
            (logging(Mode::Client, false, Some("response.code")), problem::BAD_LOG_FILTER),
            (percent(-1.0), problem::OUT_OF_RANGE),
            (percent(100.1), problem::OUT_OF_RANGE),
            (percent(f64::NAN), problem::OUT_OF_RANGE),
            (tag("", CustomTag::Literal("a".into())), problem::BAD_TRACE_TAG),
            (tag("postern.peer.id", CustomTag::Literal("a".into())), problem::BAD_TRACE_TAG),
            (tag("a", CustomTag::Literal(String::new())), problem::BAD_TRACE_TAG),
            (tag("a", CustomTag::Literal("x".repeat(TAG + 1))), problem::BAD_TRACE_TAG),
            (tag("a", header("a b")), problem::BAD_TRACE_TAG),
            (tag("a", header("Cookie")), problem::BAD_TRACE_TAG),
            (tracing(Tracing { custom_tags: Some(many), ..Tracing::default() }), problem::OUT_OF_RANGE),
        ] {
            let problems = Sides::merge(&MeshConfig::default(), [&document]).unwrap_err();
            assert_eq!(problems[0].code, code, "{problems:?}");
        }
        assert!(Sides::merge(&MeshConfig::default(), [&percent(0.0), &percent(100.0)]).is_ok());
    }

    #[test]
    fn headers_are_those_of_the_filter_and_of_the_tags_each_once() {
        let tags = ["x-a", "x-b"]
            .map(|name| (name.to_owned(), CustomTag::Header { name: name.to_owned(), default: None }));
        let sides = merged(&[
            logging(Mode::Server, false, Some("'x-b' in request.headers")),
            tracing(Tracing { custom_tags: Some(tags.into()), ..Tracing::default() }),
        ]);
        assert_eq!(sides.inbound.headers(), ["x-b", "x-a"]);
        assert_eq!(sides.outbound.headers(), ["x-a", "x-b"]);
    }
}
