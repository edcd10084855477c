//! What the `OTEL_*` environment variables say, read once at the start.
//!
//! Source: OpenTelemetry specification, "Environment Variable Specification", "SDK exporter" and "Sampling". Empty is unset; a
//! value that is not understood is told and the default stands in for it, but an exporter that cannot work ends the start: a
//! mesh that believes to be traced and is not would be worse. As the specification has it, `OTEL_EXPORTER_OTLP_ENDPOINT` alone
//! sends all three signals, and `OTEL_TRACES_EXPORTER`, `OTEL_METRICS_EXPORTER` and `OTEL_LOGS_EXPORTER` switch each off.

use super::Failure;
use http::{HeaderName, HeaderValue, Uri};
use std::{path::PathBuf, time::Duration};

/// The ports of OTLP over gRPC and over HTTP.
const GRPC_PORT: u16 = 4317;
const HTTP_PORT: u16 = 4318;
const METRIC_INTERVAL: Duration = Duration::from_secs(60);

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// What a scrape has.
    Metrics,
    /// The access log.
    Logs,
}

impl Signal {
    /// As it stands in names of variables.
    fn infix(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
            Self::Logs => "/v1/logs",
        }
    }
}

/// How spans are made, and where they, the metrics and the access log go.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// `None`: no span is made, and what callers send of their traces passes unchanged.
    pub exporter: Option<Exporter>,
    /// Metrics; `None`: they are only scraped.
    pub metrics: Option<Periodic>,
    /// The access log, beside where its lines go; `None`: it is not sent.
    pub logs: Option<Exporter>,
    /// `OTEL_TRACES_SAMPLER` and its argument; the default is `parentbased_always_on`.
    pub sampler: Sampler,
    /// `OTEL_PROPAGATORS`.
    pub propagators: Propagators,
    /// `OTEL_SERVICE_NAME`, or `service.name` of `OTEL_RESOURCE_ATTRIBUTES`; `None`: the workload's name.
    pub service: Option<String>,
    /// The rest of `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource: Vec<(String, String)>,
    /// `OTEL_BSP_*`.
    pub batch: Batch,
    /// `OTEL_BLRP_*`.
    pub log_batch: Batch,
}

/// Metrics on their way to a collector.
#[derive(Clone, Debug)]
pub struct Periodic {
    /// To whom.
    pub exporter: Exporter,
    /// From one export to the next; `OTEL_METRIC_EXPORT_INTERVAL`, by default a minute.
    pub interval: Duration,
}

/// An OTLP collector.
#[derive(Clone, Debug)]
pub struct Exporter {
    /// What it takes.
    pub signal: Signal,
    /// For HTTP with the path, as it is asked; for gRPC scheme, host and port.
    pub endpoint: Uri,
    /// `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub protocol: Protocol,
    /// Sent along, for authentication. Secrets: `Debug` shows no values.
    pub headers: Headers,
    /// The longest that one call may take.
    pub timeout: Duration,
    /// `OTEL_EXPORTER_OTLP_COMPRESSION` is `gzip`.
    pub is_compressed: bool,
    /// PEM file of the authorities of the collector's certificate; `None`: those of the system.
    pub authorities: Option<PathBuf>,
    /// PEM files of our own certificate and key, for a collector that wants one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// What OTLP travels over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `grpc`
    Grpc,
    /// `http/protobuf`, the default.
    Http,
}

/// Names and values of headers.
#[derive(Clone, Default)]
pub struct Headers(pub Vec<(HeaderName, HeaderValue)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// How many spans, or records of the log, wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many may wait; more are counted and dropped. `…_MAX_QUEUE_SIZE`, 1 to 65,536.
    pub queue: usize,
    /// How many are sent in one call. `…_MAX_EXPORT_BATCH_SIZE`, not more than `queue`.
    pub most: usize,
    /// The longest that a finished one waits before it is sent. `…_SCHEDULE_DELAY`.
    pub delay: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { queue: 4096, most: 512, delay: Duration::from_millis(500) }
    }
}

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// What the caller says of its trace is followed.
    pub is_parent_based: bool,
    /// The part of all other traces that is recorded, 0 to 1.
    pub ratio: f64,
}

impl Default for Sampler {
    /// `parentbased_always_on`
    fn default() -> Self {
        Self { is_parent_based: true, ratio: 1.0 }
    }
}

impl Sampler {
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`; what is not understood is added to `doubts`, and the default stands.
    pub fn read(name: &str, argument: Option<&str>, doubts: &mut Vec<String>) -> Self {
        let (is_parent_based, base) = match name.strip_prefix("parentbased_") {
            Some(base) => (true, base),
            None => (false, name),
        };
        let ratio = match base {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => match argument.map(str::parse::<f64>) {
                None => 1.0,
                Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
                Some(_) => {
                    let argument = argument.unwrap_or_default();
                    doubts.push(format!("OTEL_TRACES_SAMPLER_ARG is `{argument}`; a number from 0 to 1 is wanted, and 1 is used"));
                    1.0
                }
            },
            _ => {
                doubts.push(format!("OTEL_TRACES_SAMPLER is `{name}`; always_on, always_off and traceidratio are known, each also behind parentbased_, and parentbased_always_on is used"));
                return Self::default();
            }
        };
        Self { is_parent_based, ratio }
    }
}

/// What callers' traces are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagators {
    /// `traceparent` and `tracestate`.
    pub trace_context: bool,
    /// `b3` and `X-B3-*`, both forms. Read where there is no `traceparent`, and continued in the form that came.
    pub b3: bool,
}

impl Default for Propagators {
    fn default() -> Self {
        Self { trace_context: true, b3: true }
    }
}

impl Propagators {
    /// `OTEL_PROPAGATORS`: from the default, which reads both, to those that are named. `baggage` passes in any case.
    pub fn read(names: &str, doubts: &mut Vec<String>) -> Self {
        let mut wanted = Self { trace_context: false, b3: false };
        for name in names.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "tracecontext" => wanted.trace_context = true,
                "b3" | "b3multi" => wanted.b3 = true,
                "baggage" | "none" => {}
                other => doubts.push(format!("OTEL_PROPAGATORS names `{other}`; tracecontext, baggage, b3, b3multi and none are known, and it is left out")),
            }
        }
        wanted
    }
}

impl Exporter {
    /// A collector that is spoken to in the clear, with the defaults of everything else.
    ///
    /// # Errors
    /// `endpoint` is no `http://` or `https://` URL; the message says what to write.
    pub fn new(signal: Signal, endpoint: &str, protocol: Protocol) -> Result<Self, String> {
        Ok(Self {
            signal,
            endpoint: url(signal, endpoint, protocol, false)?,
            protocol,
            headers: Headers::default(),
            timeout: Duration::from_secs(10),
            is_compressed: false,
            authorities: None,
            certificate: None,
        })
    }
}

/// What the environment says. What is not understood is told, and the default stands in for it.
///
/// # Errors
/// An endpoint is named that cannot be used.
pub fn of_environment() -> anyhow::Result<Settings> {
    let (settings, doubts) = read(|name| std::env::var(name).ok())
        .map_err(|cause| Failure::error(&cause, "Or unset it, to send nothing."))?;
    for doubt in doubts {
        tracing::warn!("{doubt}");
    }
    Ok(settings)
}

/// Reads the variables. The second part is what was not understood, a sentence each.
///
/// # Errors
/// An endpoint is named that cannot be used.
pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<(Settings, Vec<String>), String> {
    let set =
        |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    let mut doubts = Vec::new();
    let (named, resource) = resource(set("OTEL_RESOURCE_ATTRIBUTES").as_deref(), &mut doubts);
    let mut settings =
        Settings { service: set("OTEL_SERVICE_NAME").or(named), resource, ..Settings::default() };
    if set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Ok((settings, doubts));
    }
    if let Some(names) = set("OTEL_PROPAGATORS") {
        settings.propagators = Propagators::read(&names, &mut doubts);
    }
    if let Some(name) = set("OTEL_TRACES_SAMPLER") {
        let argument = set("OTEL_TRACES_SAMPLER_ARG");
        settings.sampler = Sampler::read(&name, argument.as_deref(), &mut doubts);
    }
    settings.batch = batch("BSP", &set, &mut doubts);
    settings.log_batch = batch("BLRP", &set, &mut doubts);
    settings.exporter = exporter(Signal::Traces, &set, &mut doubts)?;
    settings.logs = exporter(Signal::Logs, &set, &mut doubts)?;
    let interval = "OTEL_METRIC_EXPORT_INTERVAL";
    let interval = set(interval).and_then(|text| number(interval, &text, 100..=86_400_000, &mut doubts));
    let interval = interval.map_or(METRIC_INTERVAL, Duration::from_millis);
    settings.metrics =
        exporter(Signal::Metrics, &set, &mut doubts)?.map(|exporter| Periodic { exporter, interval });
    // What is wrong in a variable that all signals have is told once.
    let mut told = std::collections::HashSet::new();
    doubts.retain(|doubt| told.insert(doubt.clone()));
    Ok((settings, doubts))
}

/// Whether `OTEL_…_EXPORTER` leaves this signal on. Prometheus is served in any case.
fn is_wanted(signal: Signal, set: &impl Fn(&str) -> Option<String>, doubts: &mut Vec<String>) -> bool {
    let variable = format!("OTEL_{}_EXPORTER", signal.infix());
    let Some(names) = set(&variable) else { return true };
    let names: Vec<_> = names.split(',').map(str::trim).collect();
    if names.contains(&"otlp") {
        return true;
    }
    let is_off =
        names.iter().all(|name| *name == "none" || (signal == Signal::Metrics && *name == "prometheus"));
    if !is_off {
        doubts
            .push(format!("{variable} is `{}`; otlp and none are known, and otlp is used", names.join(",")));
    }
    !is_off
}

fn exporter(
    signal: Signal,
    set: &impl Fn(&str) -> Option<String>,
    doubts: &mut Vec<String>,
) -> Result<Option<Exporter>, String> {
    if !is_wanted(signal, set, doubts) {
        return Ok(None);
    }
    // The signal's own variable beats the common one.
    let own = |what: &str| set(&format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.infix()));
    let of = |what: &str| own(what).or_else(|| set(&format!("OTEL_EXPORTER_OTLP_{what}")));
    let (own, common) = (own("ENDPOINT"), set("OTEL_EXPORTER_OTLP_ENDPOINT"));
    let Some(endpoint) = own.clone().or(common) else { return Ok(None) };
    let protocol = match of("PROTOCOL").as_deref() {
        Some("grpc") => Protocol::Grpc,
        None | Some("http/protobuf") => Protocol::Http,
        Some(other) => {
            doubts.push(format!("OTEL_EXPORTER_OTLP_PROTOCOL is `{other}`; grpc and http/protobuf are known, and http/protobuf is used"));
            Protocol::Http
        }
    };
    let endpoint = url(signal, &endpoint, protocol, own.is_some())?;
    if protocol == Protocol::Http && endpoint.port_u16() == Some(GRPC_PORT) {
        doubts.push(format!("the collector {} is asked over HTTP, but {GRPC_PORT} is the port of OTLP over gRPC: set OTEL_EXPORTER_OTLP_PROTOCOL=grpc, or name port {HTTP_PORT}", endpoint.authority().map_or("", |authority| authority.as_str())));
    }
    let timeout =
        of("TIMEOUT").and_then(|text| number("OTEL_EXPORTER_OTLP_TIMEOUT", &text, 1..=600_000, doubts));
    let is_compressed = match of("COMPRESSION").as_deref() {
        None | Some("none") => false,
        Some("gzip") => true,
        Some(other) => {
            doubts.push(format!(
                "OTEL_EXPORTER_OTLP_COMPRESSION is `{other}`; gzip and none are known, and none is used"
            ));
            false
        }
    };
    let certificate = match (of("CLIENT_CERTIFICATE"), of("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => return Err(
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY go together: set both"
                .into(),
        ),
    };
    Ok(Some(Exporter {
        signal,
        endpoint,
        protocol,
        headers: of("HEADERS").map(|text| headers(&text, doubts)).unwrap_or_default(),
        timeout: Duration::from_millis(timeout.unwrap_or(10_000)),
        is_compressed,
        authorities: of("CERTIFICATE").map(Into::into),
        certificate,
    }))
}

/// The URL to ask. A base (`OTEL_EXPORTER_OTLP_ENDPOINT`) gets `v1/traces` and so on behind its path, one of a signal is used as it is.
fn url(signal: Signal, endpoint: &str, protocol: Protocol, is_whole: bool) -> Result<Uri, String> {
    let wrong = || {
        format!(
            "the OTLP endpoint `{endpoint}` cannot be used; write e.g. http://127.0.0.1:{HTTP_PORT} (with OTEL_EXPORTER_OTLP_PROTOCOL=grpc http://127.0.0.1:{GRPC_PORT})"
        )
    };
    let has_scheme = endpoint.contains("://");
    let uri: Uri = if has_scheme { endpoint.to_owned() } else { format!("http://{endpoint}") }
        .parse()
        .map_err(|_| wrong())?;
    let scheme = uri.scheme_str().filter(|scheme| matches!(*scheme, "http" | "https")).ok_or_else(wrong)?;
    let authority = uri.authority().filter(|authority| !authority.host().is_empty()).ok_or_else(wrong)?;
    let port = match (authority.port_u16(), protocol) {
        (Some(port), _) => port,
        (None, Protocol::Grpc) => GRPC_PORT,
        (None, Protocol::Http) => HTTP_PORT,
    };
    let path = match (protocol, is_whole) {
        (Protocol::Grpc, _) => "/".to_owned(),
        (Protocol::Http, true) => uri.path().to_owned(),
        (Protocol::Http, false) => format!("{}{}", uri.path().trim_end_matches('/'), signal.path()),
    };
    Uri::builder()
        .scheme(scheme)
        .authority(format!("{}:{port}", authority.host()))
        .path_and_query(path)
        .build()
        .map_err(|_| wrong())
}

fn batch(kind: &str, set: &impl Fn(&str) -> Option<String>, doubts: &mut Vec<String>) -> Batch {
    let standard = Batch::default();
    let mut value = |what: &str, range| {
        let name = format!("OTEL_{kind}_{what}");
        set(&name).and_then(|text| number(&name, &text, range, doubts))
    };
    let queue = value("MAX_QUEUE_SIZE", 1..=65_536);
    let most = value("MAX_EXPORT_BATCH_SIZE", 1..=65_536);
    let delay = value("SCHEDULE_DELAY", 0..=600_000);
    let size = |value: u64| usize::try_from(value).unwrap_or(standard.queue);
    let queue = queue.map_or(standard.queue, size);
    Batch {
        queue,
        most: most.map_or(standard.most, size).min(queue),
        delay: delay.map_or(standard.delay, Duration::from_millis),
    }
}

fn number(
    name: &str,
    text: &str,
    range: std::ops::RangeInclusive<u64>,
    doubts: &mut Vec<String>,
) -> Option<u64> {
    let value = text.parse().ok().filter(|value| range.contains(value));
    if value.is_none() {
        let (least, most) = range.into_inner();
        doubts.push(format!(
            "{name} is `{text}`; a whole number from {least} to {most} is wanted, and the default is used"
        ));
    }
    value
}

/// `name=value,name=value`, percent-encoded (W3C Baggage). The value of `service.name` stands apart.
fn resource(text: Option<&str>, doubts: &mut Vec<String>) -> (Option<String>, Vec<(String, String)>) {
    let mut service = None;
    let mut all = Vec::new();
    for (name, value) in pairs(text.unwrap_or_default(), "OTEL_RESOURCE_ATTRIBUTES", doubts) {
        if name == "service.name" { service = Some(value) } else { all.push((name, value)) }
    }
    (service, all)
}

fn headers(text: &str, doubts: &mut Vec<String>) -> Headers {
    let mut all = Vec::new();
    for (name, value) in pairs(text, "OTEL_EXPORTER_OTLP_HEADERS", doubts) {
        match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value)) {
            (Ok(name), Ok(mut value)) => {
                value.set_sensitive(true);
                all.push((name, value));
            }
            // Not the value: it may be a secret.
            _ => doubts.push(format!(
                "OTEL_EXPORTER_OTLP_HEADERS: `{name}` cannot be sent as a header, and is left out"
            )),
        }
    }
    Headers(all)
}

fn pairs(text: &str, variable: &str, doubts: &mut Vec<String>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for (place, pair) in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).enumerate() {
        match pair.split_once('=').map(|(name, value)| (name.trim(), decoded(value.trim()))) {
            Some((name, Some(value))) if !name.is_empty() => all.push((name.to_owned(), value)),
            _ => doubts.push(format!(
                "{variable}: part {} is no `name=value`, percent-encoded, and is left out",
                place + 1
            )),
        }
    }
    all
}

/// Percent-decoded; `None` for what is no UTF-8 then.
fn decoded(text: &str) -> Option<String> {
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(Into::into)
}

#[cfg(test)]
#[path = "otel_tests.rs"]
mod tests;
