//! Providers of telemetry: declared in the mesh configuration, named by a Telemetry, and nothing else.
use super::*;

/// The mesh configuration with these providers, one on a line from line 7 on.
fn mesh(providers: &[&str]) -> String {
    let lines: String = providers.iter().map(|provider| format!("    - {{{provider}}}\n")).collect();
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    extensionProviders:\n{lines}---\n"
    )
}

/// A Telemetry whose second entry of a signal names a provider, on its fifth line.
fn telemetry(signal: &str, provider: &str) -> String {
    let (server, client) = match signal {
        "accessLogging" => ("match: {mode: SERVER}", "match: {mode: CLIENT}, "),
        _ => ("", ""),
    };
    format!(
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: t, namespace: a}}\nspec:\n  {signal}: [{{{server}}}, {{{client}providers: [{{name: {provider}}}]}}]\n---\n"
    )
}

const SPANS: &str = "name: spans, opentelemetry: {service: otel.obs.svc.cluster.local, port: 4317, http: {path: /v1/traces, timeout: 5s, headers: [{name: a, value: b}]}}";
const RECORDS: &str = "name: records, envoyOtelAls: {service: otel.obs.svc.cluster.local, port: 4317}";
const LINES: &str = "name: lines, envoyFileAccessLog: {path: /dev/stdout}";
const NUMBERS: &str = "name: numbers, prometheus: {}";
const ALL: &[&str] = &[SPANS, RECORDS, LINES, NUMBERS];

#[test]
fn a_telemetry_may_name_what_is_declared_for_its_signal_and_nothing_else() {
    const SIGNALS: [&str; 3] = ["accessLogging", "tracing", "metrics"];
    let of = [
        ("lines", "accessLogging"),
        ("records", "accessLogging"),
        ("envoy", "accessLogging"),
        ("spans", "tracing"),
        ("numbers", "metrics"),
        ("prometheus", "metrics"),
    ];
    for (provider, own) in of {
        for signal in SIGNALS {
            let (_, problems) = read(&(mesh(ALL) + &telemetry(signal, provider)));
            let errors: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
            if signal == own {
                assert!(errors.is_empty(), "{provider} of {signal}: {}", show(&problems));
                continue;
            }
            let [found] = errors[..] else { panic!("{provider} of {signal}: {}", show(&problems)) };
            assert_eq!((found.code, found.line), ("PST0322", 16), "{found}");
            let reason = format!("no provider `{provider}` of {signal}, it is one of {own}: ");
            assert!(found.reason.starts_with(&reason), "{found}");
        }
    }
    for (signal, names) in [
        ("accessLogging", "there are `envoy`, `lines`, `records`"),
        ("tracing", "there is `spans`"),
        ("metrics", "there are `prometheus`, `numbers`"),
    ] {
        let reason = format!("no provider `other` of {signal}: {names}");
        let (_, problems) = read(&(mesh(ALL) + &telemetry(signal, "other")));
        let found = problems.iter().find(|p| p.severity == Severity::Error).unwrap();
        assert_eq!((found.line, found.reason.as_str()), (16, reason.as_str()), "{found}");
    }
    // A declaration comes before what there is without one.
    let taken = mesh(&["name: envoy, prometheus: {}"]);
    clean(&(taken.clone() + &telemetry("metrics", "envoy")));
    told(
        &(taken + &telemetry("accessLogging", "envoy")),
        "PST0322",
        13,
        "it is one of metrics: none",
        "`envoy`",
    );
}

#[test]
fn the_files_may_stand_in_any_order_and_sidecars_are_told_nothing_of_providers() {
    let files = |first: &str, second: &str| {
        let (documents, problems) = documents::read(&[file("a.yaml", first), file("b.yaml", second)]);
        assert!(problems.is_empty(), "{}", show(&problems));
        documents
    };
    let (mesh, named) = (mesh(&[LINES, NUMBERS]), telemetry("accessLogging", "lines"));
    for documents in [files(&mesh, &named), files(&named, &mesh)] {
        assert_eq!(documents.mesh, documents::MeshConfig::default());
        let json = serde_json::to_string(&documents.telemetries[0].value).unwrap();
        assert!(!json.contains("lines"), "{json}");
    }
    let (_, problems) = documents::read(&[file("b.yaml", &named)]);
    assert_eq!(problems[0].code, "PST0322", "{}", show(&problems));
}

#[test]
fn what_would_not_be_done_is_told_once_and_can_be_wanted() {
    let text = mesh(&[SPANS]) + &telemetry("tracing", "spans");
    let (_, problems) = read(&text);
    let [found] = &problems[..] else { panic!("{}", show(&problems)) };
    assert_eq!((found.code, found.severity, found.line), ("PST0322", Severity::Warning, 7), "{found}");
    assert!(found.reason.contains("not to `otel.obs.svc.cluster.local`"), "{found}");
    clean(&text.replace(
        "namespace: istio-system",
        "namespace: istio-system, annotations: {postern.dev/suppress: PST0322}",
    ));
    // Filters of one hold for both.
    let (_, problems) = read(&(mesh(&[RECORDS]) + &telemetry("accessLogging", "records")));
    let [_, found] = &problems[..] else { panic!("{}", show(&problems)) };
    assert_eq!((found.code, found.severity, found.line), ("PST0322", Severity::Warning, 13), "{found}");
    assert!(found.reason.contains("its lines are the same"), "{found}");
}

#[test]
fn what_of_a_provider_is_not_done_has_its_code_place_and_remedy() {
    let with = |one: &str, more: &str| format!("{}, {more}}}", one.strip_suffix('}').unwrap());
    for (provider, code, reason, hint) in [
        (
            with(SPANS, "maxTagLength: 8"),
            "PST0203",
            "extensionProviders[].opentelemetry.maxTagLength",
            "service, port, http",
        ),
        (with(SPANS, "dynatraceSampler: {}"), "PST0203", "dynatraceSampler", "remove"),
        (with(RECORDS, "logFormat: {labels: {a: b}}"), "PST0203", "envoyOtelAls.logFormat", "service, port"),
        (with(LINES, "logFormat: {text: a}"), "PST0203", "envoyFileAccessLog.logFormat", "path"),
        (
            LINES.replace("/dev/stdout", "/var/log/x"),
            "PST0408",
            "nothing is written to `/var/log/x`",
            "--access-log",
        ),
        (RECORDS.replace("4317", "65536"), "PST0314", "port must be between", "choose"),
        (RECORDS.replace("4317", "0"), "PST0314", "port must be between", "choose"),
        (RECORDS.replace(", port: 4317", ""), "PST0105", "`port`", "add"),
        (SPANS.replace("port: 4317", "prt: 4317"), "PST0102", "unknown field", "`port`"),
        (
            "name: x, zipkin: {service: a, port: 1}".into(),
            "PST0203",
            "extensionProviders[].zipkin",
            "opentelemetry",
        ),
        (
            "name: x, envoyExtAuthzGrpc: {service: a, port: 1}".into(),
            "PST0203",
            "envoyExtAuthzGrpc",
            "remove",
        ),
        ("name: x".into(), "PST0322", "exactly one of", "a name of its own"),
        (format!("{NUMBERS}, envoyFileAccessLog: {{}}"), "PST0322", "exactly one of", "a name of its own"),
        ("name: '', prometheus: {}".into(), "PST0322", "without a name", "give"),
        ("prometheus: {}".into(), "PST0105", "`name`", "add"),
    ] {
        told(&mesh(&[&provider]), code, 7, reason, hint);
    }
    told(&mesh(&[NUMBERS, NUMBERS]), "PST0322", 8, "`numbers` is already declared", "rename");
    // The twins, with as little as there may be.
    clean(&mesh(&[LINES, NUMBERS, "name: empty, envoyFileAccessLog: {}"]));
    clean(&mesh(&[]));
}
