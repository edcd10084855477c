//! What variables say, and what is told of those that say nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;

fn of(variables: &[(&str, &str)]) -> Result<(Settings, Vec<String>), String> {
    read(|name| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned()))
}

fn exporter_of(variables: &[(&str, &str)]) -> Exporter {
    let (settings, doubts) = of(variables).unwrap();
    assert!(doubts.is_empty(), "{doubts:?}");
    settings.exporter.expect("an exporter")
}

/// Where spans go, of the variables without their common begin.
fn check(variables: &[(&str, &str)], expected: &str) {
    let long: Vec<_> =
        variables.iter().map(|(name, value)| (format!("OTEL_EXPORTER_OTLP_{name}"), *value)).collect();
    let all: Vec<_> = long.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    assert_eq!(exporter_of(&all).endpoint.to_string(), expected, "{variables:?}");
}

#[test]
fn the_path_is_added_to_a_base_and_an_endpoint_of_its_own_is_asked_as_it_is() {
    check(&[("ENDPOINT", "http://collector:4318")], "http://collector:4318/v1/traces");
    check(&[("ENDPOINT", "http://collector:4318/otlp/")], "http://collector:4318/otlp/v1/traces");
    check(&[("ENDPOINT", "collector")], "http://collector:4318/v1/traces");
    check(&[("ENDPOINT", "https://[2001:db8::1]")], "https://[2001:db8::1]:4318/v1/traces");
    check(&[("TRACES_ENDPOINT", "http://collector:9")], "http://collector:9/");
    check(&[("TRACES_ENDPOINT", "http://a:9/x"), ("ENDPOINT", "http://b")], "http://a:9/x");
    check(&[("ENDPOINT", "http://collector"), ("PROTOCOL", "grpc")], "http://collector:4317/");
    check(
        &[("ENDPOINT", "http://c:1"), ("PROTOCOL", "grpc"), ("TRACES_PROTOCOL", "http/protobuf")],
        "http://c:1/v1/traces",
    );
    // Empty is unset.
    check(&[("ENDPOINT", "http://c"), ("TRACES_ENDPOINT", " "), ("PROTOCOL", "")], "http://c:4318/v1/traces");
}

/// The endpoints of spans, metrics and the access log; `-` for what is not sent.
fn endpoints(variables: &[(&str, &str)]) -> [String; 3] {
    let (settings, doubts) = of(variables).unwrap();
    assert!(doubts.is_empty(), "{doubts:?}");
    let metrics = settings.metrics.map(|periodic| periodic.exporter);
    [settings.exporter, metrics, settings.logs]
        .map(|exporter| exporter.map_or("-".into(), |exporter| exporter.endpoint.to_string()))
}

#[test]
fn a_base_alone_takes_all_signals_and_each_is_switched_off_or_sent_elsewhere_by_its_own_variables() {
    let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
    let [traces, metrics, logs] =
        ["http://c:4318/v1/traces", "http://c:4318/v1/metrics", "http://c:4318/v1/logs"];
    assert_eq!(endpoints(&[base]), [traces, metrics, logs]);
    assert_eq!(endpoints(&[base, ("OTEL_METRICS_EXPORTER", "none")]), [traces, "-", logs]);
    assert_eq!(endpoints(&[base, ("OTEL_METRICS_EXPORTER", "prometheus")]), [traces, "-", logs]);
    assert_eq!(endpoints(&[base, ("OTEL_METRICS_EXPORTER", "otlp, prometheus")]), [traces, metrics, logs]);
    assert_eq!(endpoints(&[base, ("OTEL_LOGS_EXPORTER", "none")]), [traces, metrics, "-"]);
    assert_eq!(endpoints(&[base, ("OTEL_TRACES_EXPORTER", "none")]), ["-", metrics, logs]);
    assert_eq!(endpoints(&[base, ("OTEL_SDK_DISABLED", "true")]), ["-", "-", "-"]);
    let own = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:9/x");
    assert_eq!(endpoints(&[base, own]), [traces, "http://m:9/x", logs]);
    assert_eq!(endpoints(&[own]), ["-", "http://m:9/x", "-"]);
    assert_eq!(
        endpoints(&[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://l:9/y")]),
        ["-", "-", "http://l:9/y"]
    );
}

#[test]
fn each_signal_has_headers_batches_and_an_interval_of_its_own() {
    let (settings, doubts) = of(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
        ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "b=2"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "5000"),
        ("OTEL_BLRP_MAX_QUEUE_SIZE", "7"),
    ])
    .unwrap();
    assert!(doubts.is_empty(), "{doubts:?}");
    let named = |exporter: &Exporter| exporter.headers.0[0].0.to_string();
    assert_eq!(named(settings.exporter.as_ref().unwrap()), "a");
    assert_eq!(named(settings.logs.as_ref().unwrap()), "b");
    let metrics = settings.metrics.unwrap();
    assert_eq!((metrics.exporter.protocol, metrics.interval), (Protocol::Grpc, Duration::from_secs(5)));
    assert_eq!((settings.log_batch.queue, settings.log_batch.most), (7, 7));
    assert_eq!(settings.batch, Batch::default());
}

#[test]
fn without_an_endpoint_or_when_it_is_said_no_spans_are_made() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
    assert!(of(&[]).unwrap().0.exporter.is_none());
    assert!(of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap().0.exporter.is_none());
    assert!(of(&[endpoint, ("OTEL_SDK_DISABLED", "TRUE")]).unwrap().0.exporter.is_none());
    assert!(of(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]).unwrap().0.exporter.is_none());
    assert!(of(&[endpoint, ("OTEL_SDK_DISABLED", "1")]).unwrap().0.exporter.is_some(), "only `true` is true");
}

#[test]
fn an_endpoint_that_cannot_work_ends_the_start() {
    for wrong in ["ftp://collector", "http://", "not a url", "http://a b"] {
        let why = of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", wrong)]).unwrap_err();
        assert!(why.contains(wrong) && why.contains("http://127.0.0.1:4318"), "{why}");
    }
    let half = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"), ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "k.pem")];
    assert!(of(&half).unwrap_err().contains("set both"));
}

#[test]
fn the_rest_is_read_as_the_specification_says() {
    let exporter = exporter_of(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://c"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "Authorization=Bearer%20abc, x-tenant = blue"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
    ]);
    let sent: Vec<_> =
        exporter.headers.0.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(sent, [("authorization", "Bearer abc"), ("x-tenant", "blue")]);
    assert_eq!(exporter.timeout, Duration::from_millis(2500));
    assert!(exporter.is_compressed);
    assert_eq!(exporter.authorities, Some("/ca.pem".into()));
    assert!(!format!("{exporter:?}").contains("abc"), "no secret in Debug: {exporter:?}");

    let (settings, doubts) = of(&[
        ("OTEL_SERVICE_NAME", "shop"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment.name=test,a=%C3%A9"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
    ])
    .unwrap();
    assert!(doubts.is_empty(), "{doubts:?}");
    assert_eq!(settings.service.as_deref(), Some("shop"), "the variable of its own beats the attribute");
    let attribute = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(settings.resource, [attribute("deployment.environment.name", "test"), attribute("a", "é")]);
    assert_eq!(settings.batch, Batch { queue: 100, most: 100, delay: Duration::from_millis(50) });
}

#[test]
fn what_is_not_understood_is_told_and_the_default_stands() {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
    for (name, value, told) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/json"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "zstd"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "10s"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "part 1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a b=secret", "`a b`"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "from 1"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=1,=2", "part 2"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "jaeger_remote"),
        ("OTEL_PROPAGATORS", "xray", "xray"),
        ("OTEL_LOGS_EXPORTER", "console", "OTEL_LOGS_EXPORTER is `console`"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1s", "OTEL_METRIC_EXPORT_INTERVAL"),
    ] {
        let (settings, doubts) = of(&[endpoint, (name, value)]).unwrap();
        assert!(doubts.len() == 1 && doubts[0].contains(told), "{name}={value}: {doubts:?}");
        assert!(!doubts[0].contains("secret"), "{doubts:?}");
        let exporter = settings.exporter.unwrap();
        assert_eq!((exporter.protocol, exporter.timeout), (Protocol::Http, Duration::from_secs(10)));
    }
    let (_, doubts) = of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4317")]).unwrap();
    assert!(doubts[0].contains("OTEL_EXPORTER_OTLP_PROTOCOL=grpc"), "{doubts:?}");
}
