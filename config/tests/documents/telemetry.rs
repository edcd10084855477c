//! Telemetry: read as Istio's users write it, refused with place and remedy where it cannot be enforced, and chosen by scope.
use super::*;
use postern_config::{
    documents::telemetry::{AccessLogging, CustomTag, Metric, MetricOverride, Mode, Tracing},
    select,
    snapshot::Workload,
};
use std::collections::BTreeMap;

fn telemetry(spec: &str) -> String {
    document("name: t, namespace: a", &format!("\n  {spec}"))
}

/// `spec` with what stands before it on the line of `spec:`.
fn document(metadata: &str, spec: &str) -> String {
    format!("apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{{metadata}}}\nspec:{spec}\n")
}

/// One that says for whom it is and little else, with the line before the next.
fn for_pods(metadata: &str, labels: &str) -> String {
    document(metadata, &format!(" {{selector: {{matchLabels: {{{labels}}}}}, tracing: [{{}}]}}")) + "---\n"
}

#[test]
fn every_field_that_is_enforced_is_read() {
    let read = |spec: &str| clean(&telemetry(spec)).telemetries.remove(0).value;
    let all = read(
        "selector: {matchLabels: {app: x}}\n  accessLogging:\n  - {match: {mode: CLIENT}, providers: [{name: envoy}], disabled: true}\n  - match: {mode: SERVER}\n    filter: {expression: \"response.code >= 400\"}\n  tracing:\n  - {match: {mode: SERVER}, randomSamplingPercentage: 12.5, disableSpanReporting: false, useRequestIdForTraceSampling: false, enableIstioTags: false}\n  - customTags: {a: {literal: {value: b}}, c: {header: {name: X-Tenant, defaultValue: d}}}\n  metrics:\n  - providers: [{name: prometheus}]\n    overrides:\n    - {match: {metric: REQUEST_COUNT, mode: CLIENT}, disabled: true}\n    - {match: {metric: ALL_METRICS}, disabled: false}\n    - {disabled: true}\n",
    );
    assert_eq!(all.selector, [("app".to_owned(), "x".to_owned())].into());
    assert_eq!(
        all.access_logging,
        [
            AccessLogging { mode: Mode::Client, disabled: true, filter: None },
            AccessLogging {
                mode: Mode::Server,
                disabled: false,
                filter: Some("response.code >= 400".into())
            },
        ]
    );
    let tags = BTreeMap::from([
        ("a".to_owned(), CustomTag::Literal("b".into())),
        ("c".to_owned(), CustomTag::Header { name: "x-tenant".into(), default: Some("d".into()) }),
    ]);
    assert_eq!(
        all.tracing,
        [
            Tracing {
                mode: Mode::Server,
                random_sampling_percentage: Some(12.5),
                disable_span_reporting: Some(false),
                custom_tags: None
            },
            Tracing { custom_tags: Some(tags), ..Tracing::default() },
        ]
    );
    let metric = |mode, metric, disabled| MetricOverride { mode, metric, disabled };
    assert_eq!(
        all.metrics,
        [
            metric(Mode::Client, Some(Metric::RequestCount), true),
            metric(Mode::ClientAndServer, None, false),
            metric(Mode::ClientAndServer, None, true),
        ]
    );
    assert!(read("accessLogging: [{}]").selector.is_empty());
    let old = telemetry("tracing: [{randomSamplingPercentage: 100}]").replace("/v1\n", "/v1alpha1\n");
    assert_eq!(clean(&old).telemetries.len(), 1);
    // The wire has the same form.
    let json = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<documents::Telemetry>(&json).unwrap(), all);
}

#[test]
fn what_cannot_be_enforced_has_its_code_place_and_remedy() {
    let log = |entry: &str| telemetry(&format!("accessLogging:\n  - {entry}"));
    let trace = |entry: &str| telemetry(&format!("tracing:\n  - {entry}"));
    let tag = |tag: &str| trace(&format!("customTags: {{t: {tag}}}"));
    let metrics = |entry: &str| telemetry(&format!("metrics:\n  - {entry}"));
    for (text, code, line, reason, hint) in [
        (
            log("filter: {expression: \"response.code >= '400'\"}"),
            "PST0320",
            6,
            "at character 18, `'400'`",
            "without quotes",
        ),
        (log("filter: {expression: \"\"}"), "PST0320", 6, "at its end", "compared"),
        (log("filter: {}"), "PST0105", 6, "`expression`", "add `expression:`"),
        (log("filter: {expresion: a}"), "PST0102", 6, "unknown field", "did you mean `expression`?"),
        (
            log("providers: [{name: otel}]"),
            "PST0322",
            6,
            "no provider `otel` of accessLogging: there is `envoy`",
            "write `envoy`",
        ),
        (log("disabled: {value: true}"), "PST0103", 6, "true or false", "true"),
        (log("match: {mode: BOTH}"), "PST0112", 6, "Unsupported value", "CLIENT_AND_SERVER"),
        (log("{disabled: true, filter: {expression: \"true\"}}"), "PST0408", 6, "never asked", "remove one"),
        (log("disabled: true\n  - filter: {expression: \"true\"}"), "PST0408", 6, "last one counts", "join"),
        (trace("randomSamplingPercentage: 101"), "PST0314", 6, "between 0 and 100", "range"),
        (trace("randomSamplingPercentage: .nan"), "PST0314", 6, "between 0 and 100", "range"),
        (
            trace("disableContextPropagation: true"),
            "PST0202",
            6,
            "disableContextPropagation",
            "disableSpanReporting",
        ),
        (trace("useRequestIdForTraceSampling: true"), "PST0408", 6, "trace's own ID", "false"),
        (trace("enableIstioTags: true"), "PST0408", 6, "SPIFFE IDs", "false"),
        (
            trace("providers: [{name: jaeger}]"),
            "PST0322",
            6,
            "no provider `jaeger` of tracing: none is declared",
            "OTEL_EXPORTER_OTLP_ENDPOINT",
        ),
        (
            tag("{environment: {name: HOME}}"),
            "PST0321",
            6,
            "`environment` is not supported",
            "OTEL_RESOURCE_ATTRIBUTES",
        ),
        (tag("{formatter: {value: x}}"), "PST0321", 6, "`formatter` is not supported", "literal"),
        (tag("{}"), "PST0321", 6, "exactly one", "literal"),
        (tag("{literal: {value: a}, header: {name: b}}"), "PST0321", 6, "exactly one", "literal"),
        (tag("{header: {name: cookie}}"), "PST0321", 6, "may hold secrets", "another"),
        (
            trace("customTags: {postern.peer.id: {literal: {value: a}}}"),
            "PST0321",
            6,
            "the sidecar's own",
            "another",
        ),
        (metrics("reportingInterval: 5s"), "PST0202", 6, "reportingInterval", "OTEL_METRIC_EXPORT_INTERVAL"),
        (metrics("providers: [{name: stackdriver}]"), "PST0322", 6, "stackdriver", "write `prometheus`"),
        (
            metrics("overrides: [{tagOverrides: {a: {operation: REMOVE}}}]"),
            "PST0202",
            6,
            "tagOverrides",
            "metric_relabel_configs",
        ),
        (
            metrics("overrides: [{match: {customMetric: mine}, disabled: true}]"),
            "PST0202",
            6,
            "customMetric",
            "standard metrics",
        ),
        (
            metrics("overrides: [{match: {metric: REQUESTS}}]"),
            "PST0112",
            6,
            "Unsupported value",
            "REQUEST_COUNT",
        ),
        (telemetry("{}"), "PST0408", 4, "changes nothing", "add one"),
        (
            telemetry("{targetRefs: [{kind: Gateway, name: g}], tracing: [{}]}"),
            "PST0205",
            5,
            "gateways",
            "selector",
        ),
        (
            [telemetry("tracing: [{}]"), telemetry("tracing: [{}]").replace("name: t", "name: u")]
                .join("---\n"),
            "PST0521",
            9,
            "`t` is for the whole namespace",
            "one document",
        ),
        (
            [telemetry("tracing: [{}]"), telemetry("accessLogging: [{}]")].join("---\n"),
            "PST0401",
            9,
            "Telemetry a/t is already in",
            "rename",
        ),
    ] {
        told(&text, code, line, reason, hint);
    }
    // Twins: other scopes are no conflict, and joined filters are one entry.
    let other = telemetry("tracing: [{}]").replace("namespace: a", "namespace: b");
    clean(&[telemetry("tracing: [{}]"), other].join("---\n"));
    clean(&log("match: {mode: CLIENT}\n  - {match: {mode: SERVER}, disabled: true}"));
}

#[test]
fn two_that_select_one_pod_are_a_conflict_and_the_oldest_counts() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: a, labels: {app: x, tier: z}}\nspec: {containers: [{name: c}]}\n---\n";
    let one = |name: &str, label: &str, created: &str| {
        for_pods(&format!("name: {name}, namespace: a, creationTimestamp: \"{created}\""), label)
    };
    let younger = one("m", "app: x", "2026-02-01T00:00:00Z");
    let older = one("z", "tier: z", "2026-01-01T00:00:00Z");
    let (documents, problems) = read(&format!("{pod}{younger}{older}"));
    let [found] = &problems[..] else { panic!("{}", show(&problems)) };
    assert_eq!((found.code, found.line), ("PST0521", 9), "{found}");
    assert!(found.reason.contains("Telemetry a/m does not count for `p`: `z`"), "{found}");
    assert_eq!(chosen(&documents, "a", &[("app", "x"), ("tier", "z")]), ["a/z"]);
    let (_, problems) = read(&format!("{pod}{younger}{}", one("z", "tier: other", "2026-01-01T00:00:00Z")));
    assert_eq!(problems.iter().map(|p| p.code).collect::<Vec<_>>(), ["PST0407"], "{}", show(&problems));
}

/// `namespace/name` of those that count, in order.
fn chosen(documents: &Documents, namespace: &str, labels: &[(&str, &str)]) -> Vec<String> {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let workload = Workload { namespace: namespace.into(), name: "p".into(), labels, ..Workload::default() };
    let spec = select::inbound_spec(documents, workload, vec![]);
    let names =
        spec.telemetries.iter().map(|one| format!("{}/{}", one.metadata.namespace, one.metadata.name));
    let names = names.collect();
    let mut snapshot = spec.clone();
    assert!(postern_config::Snapshot::compile(spec).is_ok());
    // A sidecar refuses what is for another workload.
    if let Some(one) = snapshot.telemetries.first_mut() {
        one.metadata.namespace = "elsewhere".into();
        let problems = postern_config::Snapshot::compile(snapshot).unwrap_err();
        assert_eq!(problems[0].code, problem::NOT_SELECTED);
    }
    names
}

#[test]
fn mesh_namespace_and_workload_are_merged_in_this_order() {
    let one = |name: &str, namespace: &str, labels: &str| {
        for_pods(&format!("name: {name}, namespace: {namespace}"), labels)
    };
    let text = [
        one("own", "a", "app: x"),
        one("whole", "a", ""),
        one("mesh", "istio-system", ""),
        one("root-only", "istio-system", "app: x"),
        one("other", "b", ""),
        one("gateway", "a", "").replace("spec: {", "spec: {targetRefs: [{kind: Gateway, name: g}], "),
    ]
    .concat();
    let (documents, problems) = read(&text);
    assert!(problems.iter().all(|p| p.severity == Severity::Warning), "{}", show(&problems));
    assert_eq!(chosen(&documents, "a", &[("app", "x")]), ["istio-system/mesh", "a/whole", "a/own"]);
    assert_eq!(chosen(&documents, "a", &[("app", "y")]), ["istio-system/mesh", "a/whole"]);
    assert_eq!(chosen(&documents, "b", &[("app", "x")]), ["istio-system/mesh", "b/other"]);
    assert_eq!(chosen(&documents, "c", &[]), ["istio-system/mesh"]);
    let in_root = ["istio-system/mesh", "istio-system/root-only"];
    assert_eq!(chosen(&documents, "istio-system", &[("app", "x")]), in_root);
}
