//! Advice on what is legal and rarely meant: each lint with an example that has it, and a twin one fact away that has
//! not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use postern_config::{
    Problem, Severity,
    documents::{self, SourceFile},
};

fn read(text: &str) -> Vec<Problem> {
    documents::read(&[SourceFile { name: "t.yaml".into(), text: text.into() }]).1
}

fn codes(text: &str) -> Vec<&'static str> {
    let problems = read(text);
    let errors: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
    assert!(errors.is_empty(), "{text}\n{}", errors[0]);
    problems.iter().map(|p| p.code).collect()
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: db}}\nspec: {{{spec}}}\n"
    )
}

/// `(has the finding, has not, code)`
fn twins(table: &[(&str, &str, &str)], around: &str) {
    for (bad, good, code) in table {
        let (with, without) = (format!("{around}{}", policy(bad)), format!("{around}{}", policy(good)));
        assert_eq!(codes(&with), [*code], "{bad}");
        assert!(!codes(&without).contains(code), "{good}: {:?}", codes(&without));
    }
}

#[test]
fn names_that_a_federated_domain_has_too() {
    let federated = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: other}\n\
        spec: {trustDomain: x.org, bundleEndpointURL: 'https://x.org/', bundleEndpointProfile: {type: https_web}}\n---\n";
    let source = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let table = [
        (source("namespaces: [a]"), source("namespaces: [a], trustDomains: [cluster.local]")),
        (source("serviceAccounts: [a/b]"), source("principals: [x.org/ns/a/sa/b]")),
        (source("namespaces: [a]"), format!("action: DENY, {}", source("namespaces: [a]"))),
    ];
    for (bad, good) in &table {
        twins(&[(bad.as_str(), good.as_str(), "PST0417")], federated);
        assert!(!codes(&policy(bad)).contains(&"PST0417"), "without federation there are no others");
    }
}

#[test]
fn values_that_never_match() {
    let source = |source: &str| format!("rules: [{{from: [{{source: {{{source}}}}}]}}]");
    let operation = |operation: &str| format!("rules: [{{to: [{{operation: {{{operation}}}}}]}}]");
    let table = [
        (
            source("principals: ['spiffe://cluster.local/ns/a/sa/b']"),
            source("principals: [cluster.local/ns/a/sa/b]"),
            "PST0501",
        ),
        (source("principals: [ns/a/sa/b]"), source("principals: ['*/ns/a/sa/b']"), "PST0517"),
        (
            source("principals: ['cluster.local/ns/*/sa/b']"),
            source("principals: ['cluster.local/ns/*']"),
            "PST0503",
        ),
        (source("principals: [x.org/ns/a/sa/b]"), source("principals: [cluster.local/ns/a/sa/b]"), "PST0411"),
        (source("requestPrincipals: ['*']"), source("principals: ['*']"), "PST0206"),
        (
            source("namespaces: [a], notNamespaces: [a, b]"),
            source("namespaces: [a, c], notNamespaces: [a, b]"),
            "PST0518",
        ),
        (operation("methods: [Get]"), operation("methods: [GET]"), "PST0502"),
        (operation("paths: [v1]"), operation("paths: [/v1]"), "PST0504"),
        (operation("paths: ['/a*b']"), operation("paths: ['/a*']"), "PST0503"),
        (operation("paths: ['/a/../b']"), operation("paths: ['/a/..b']"), "PST0515"),
        (operation("paths: ['/%61']"), operation("paths: ['/%2F']"), "PST0515"),
        (operation("paths: ['/a?x=1']"), operation("paths: ['/a']"), "PST0515"),
        (operation("paths: ['/a/:id']"), operation("paths: ['/a/b:id']"), "PST0516"),
        (operation("paths: ['/a/**']"), operation("paths: ['/a/{**}']"), "PST0516"),
        (operation("hosts: ['a.b:80']"), operation("hosts: [a.b, 'a.b:80']"), "PST0513"),
        (operation("hosts: ['*.b:*']"), operation("hosts: ['*.b']"), "PST0509"),
        (
            format!("action: DENY, {}", operation("hosts: [a.b], ports: ['80']")),
            operation("hosts: [a.b], ports: ['80']"),
            "PST0514",
        ),
        (operation("notHosts: [a.b]"), operation("notHosts: [a.b, 'a.b:*']"), "PST0514"),
        (
            operation("ports: ['80']")
                .replace("}]}]", "}], when: [{key: destination.port, values: ['81']}]}]"),
            operation("ports: ['80']"),
            "PST0520",
        ),
        (
            "rules: [{when: [{key: source.ip, values: [10.0.0.1]}, {key: source.ip, values: [10.0.0.2]}]}]"
                .into(),
            "rules: [{when: [{key: source.ip, values: [10.0.0.1, 10.0.0.2]}]}]".into(),
            "PST0508",
        ),
        ("rules: [{from: []}]".into(), "rules: [{}]".into(), "PST0506"),
        (
            "selector: {}".into(),
            "{}".replace("{}", "rules: []").replace("rules: []", "action: ALLOW"),
            "PST0507",
        ),
    ];
    for (bad, good, code) in &table {
        twins(&[(bad, good, code)], "");
    }
}

#[test]
fn the_hyphen_trap_is_seen_in_rules_sources_and_operations() {
    twins(
        &[
            (
                "rules: [{from: [{source: {namespaces: [a]}}]}, {to: [{operation: {methods: [GET]}}]}]",
                "rules: [{from: [{source: {namespaces: [a]}}], to: [{operation: {methods: [GET]}}]}]",
                "PST0510",
            ),
            (
                "rules: [{from: [{source: {namespaces: [a]}}]}, {when: [{key: source.ip, values: [10.0.0.1]}]}]",
                "rules: [{from: [{source: {namespaces: [a]}}]}, {from: [{source: {namespaces: [b]}}]}]",
                "PST0510",
            ),
            (
                "rules: [{from: [{source: {namespaces: [a]}}, {source: {notIpBlocks: [10.0.0.1]}}]}]",
                "rules: [{from: [{source: {namespaces: [a], notIpBlocks: [10.0.0.1]}}]}]",
                "PST0510",
            ),
            (
                "rules: [{to: [{operation: {methods: [GET]}}, {operation: {paths: [/a]}}]}]",
                "rules: [{to: [{operation: {paths: [/b]}}, {operation: {paths: [/a]}}]}]",
                "PST0510",
            ),
            (
                "rules: [{from: [{source: {serviceAccounts: [a]}}, {source: {ipBlocks: [10.0.0.1]}}]}]",
                // These two cannot stand in one source.
                "rules: [{from: [{source: {serviceAccounts: [a]}}, {source: {namespaces: [b]}}]}]",
                "PST0510",
            ),
        ],
        "",
    );
}

#[test]
fn rules_that_an_earlier_one_covers_are_found_and_no_others() {
    let get = "{to: [{operation: {methods: [GET]}}]}";
    let both = |a: &str, b: &str| format!("rules: [{a}, {b}]");
    let covered = [
        both("{}", get),
        both(get, "{to: [{operation: {methods: [GET], paths: [/a]}}]}"),
        both("{to: [{operation: {paths: ['/a*']}}]}", "{to: [{operation: {paths: [/a/b, /ab]}}]}"),
        both("{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}", "{from: [{source: {ipBlocks: [10.1.0.0/16]}}]}"),
        both(
            "{from: [{source: {namespaces: [a], notPrincipals: ['*/sa/x']}}]}",
            "{from: [{source: {namespaces: [a], notPrincipals: ['*/sa/x', '*/sa/y']}}]}",
        ),
    ];
    for rules in covered {
        assert_eq!(codes(&policy(&rules)), ["PST0512"], "{rules}");
    }
    let open = [
        both(get, "{to: [{operation: {methods: [POST]}}]}"),
        both("{to: [{operation: {paths: ['/a*']}}]}", "{to: [{operation: {paths: ['*a']}}]}"),
        both("{to: [{operation: {paths: ['/a*']}}]}", "{to: [{operation: {paths: ['/a/{*}']}}]}"),
        both("{from: [{source: {namespaces: [a, b]}}]}", "{from: [{source: {namespaces: [c]}}]}"),
        both(
            "{from: [{source: {namespaces: [a], notPrincipals: ['*/sa/x', '*/sa/y']}}]}",
            "{from: [{source: {namespaces: [a], notPrincipals: ['*/sa/x']}}]}",
        ),
        // On TCP the first is dropped as a whole.
        both(
            "{to: [{operation: {methods: [GET]}}, {operation: {ports: ['80', '81']}}]}",
            "{to: [{operation: {ports: ['80']}}]}",
        ),
    ];
    for rules in open {
        assert!(!codes(&policy(&rules)).contains(&"PST0512"), "{rules}");
    }
    assert_eq!(codes(&policy(&both(get, get))), ["PST0511"]);
}

const WORKLOAD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: db, labels: {app: db, sidecar.istio.io/inject: 'true'}}
spec: {serviceAccountName: db, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: db}
spec: {selector: {app: db}, ports: [{name: mysql, port: 3306}, {name: http, port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: db}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: db, namespace: db}
---
";

#[test]
fn what_services_declare_decides_about_http_fields_and_ports() {
    twins(
        &[
            (
                "rules: [{to: [{operation: {methods: [GET]}}]}]",
                "rules: [{to: [{operation: {methods: [GET], ports: ['8080']}}]}]",
                "PST0413",
            ),
            (
                "rules: [{to: [{operation: {paths: [/a]}}]}, {to: [{operation: {ports: ['8080']}}]}]",
                "rules: [{to: [{operation: {paths: [/a]}}]}, {to: [{operation: {ports: ['3306']}}]}]",
                "PST0413",
            ),
            (
                "action: DENY, rules: [{to: [{operation: {methods: [GET], notPorts: ['9']}}]}]",
                "action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['8080']}}]}]",
                "PST0414",
            ),
            (
                "rules: [{to: [{operation: {ports: ['80']}}]}]",
                "rules: [{to: [{operation: {ports: ['8080']}}]}]",
                "PST0412",
            ),
            (
                "rules: [{when: [{key: destination.port, notValues: ['80']}]}]",
                "rules: [{when: [{key: destination.port, notValues: ['3306']}]}]",
                "PST0412",
            ),
            ("selector: {matchLabels: {app: dbx}}", "selector: {matchLabels: {app: db}}", "PST0407"),
            (
                "rules: [{from: [{source: {namespaces: [dbs]}}]}]",
                "rules: [{from: [{source: {namespaces: ['d*']}}]}]",
                "PST0409",
            ),
            (
                "rules: [{from: [{source: {serviceAccounts: [dbs]}}]}]",
                "rules: [{from: [{source: {serviceAccounts: [db/db]}}]}]",
                "PST0410",
            ),
            (
                "rules: [{when: [{key: source.principal, values: [cluster.local/ns/db/sa/x]}]}]",
                "rules: [{when: [{key: source.principal, values: [cluster.local/ns/db/sa/db]}]}]",
                "PST0410",
            ),
        ],
        WORKLOAD,
    );
    let problems = read(&format!("{WORKLOAD}{}", policy("rules: [{to: [{operation: {ports: ['80']}}]}]")));
    assert!(
        problems[0].reason.contains("Service db/db") && problems[0].hint == "write 8080",
        "{}",
        problems[0]
    );
    let problems = read(&format!("{WORKLOAD}{}", policy("rules: [{to: [{operation: {methods: [GET]}}]}]")));
    assert!(problems[0].reason.contains("port 3306 `mysql` of Service db/db"), "{}", problems[0]);
    let peer = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p, namespace: db}\nspec: {selector: {matchLabels: {app: db}}, portLevelMtls: {PORT: {mode: STRICT}}}\n";
    assert_eq!(codes(&format!("{WORKLOAD}{}", peer.replace("PORT", "80"))), ["PST0412"]);
    assert!(codes(&format!("{WORKLOAD}{}", peer.replace("PORT", "8080"))).is_empty());
    let other = peer.replace("PORT", "3306").replace("name: p,", "name: q,");
    assert_eq!(codes(&format!("{WORKLOAD}{}---\n{other}", peer.replace("PORT", "8080"))), ["PST0408"]);
}

#[test]
fn a_suppression_counts_for_its_document_only() {
    let rule =
        policy("rules: [{from: [{source: {namespaces: [a]}}]}, {to: [{operation: {methods: [get]}}]}]");
    assert_eq!(codes(&rule), ["PST0510", "PST0502"]);
    let quiet = |list: &str| {
        rule.replace("{name: p,", &format!("{{name: p, annotations: {{postern.dev/suppress: '{list}'}},"))
    };
    assert!(codes(&quiet("PST0502,PST0510")).is_empty());
    assert_eq!(codes(&quiet("pst0510")), ["PST0502"]);
    assert_eq!(codes(&quiet("PST0510, PST0500")), ["PST0519", "PST0502"]);
    let second = rule.replace("name: p", "name: q").replace("[get]", "[put]");
    assert_eq!(codes(&format!("{}---\n{second}", quiet("PST0502,PST0510"))), ["PST0510", "PST0502"]);
    // Findings between documents, too.
    let mut text = format!("{WORKLOAD}{}", policy("selector: {matchLabels: {app: x}}"));
    assert_eq!(codes(&text), ["PST0407"]);
    text = text.replace("{name: p,", "{name: p, annotations: {postern.dev/suppress: PST0407},");
    assert!(codes(&text).is_empty());
}
