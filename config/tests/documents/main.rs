//! Documents as people write them, and what they are told about them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use postern_config::{
    Documents, Problem, Severity,
    documents::{
        self, AuthorizationPolicy, PeerAuthentication, SourceFile,
        authorization_policy::Action,
        kubernetes::{PodField, TargetPort},
        peer_authentication::MtlsMode,
    },
    path::Normalization,
    problem, validate,
};
use postern_identity::tls::Versions;
use std::{fs, path::Path};

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), text: text.into() }
}

fn read(text: &str) -> (Documents, Vec<Problem>) {
    documents::read(&[file("t.yaml", text)])
}

/// Reads what must have nothing wrong with it.
fn clean(text: &str) -> Documents {
    let (documents, problems) = read(text);
    assert!(problems.is_empty(), "{}", show(&problems));
    documents
}

fn show(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{p}\n\n")).collect()
}

#[test]
fn typical_mistakes_are_told_as_in_the_golden_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        seen += 1;
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let (_, problems) = documents::read(&[file(name, &text)]);
        let shown = show(&problems);
        let golden = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &shown).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(shown, expected, "{name} (UPDATE_GOLDEN=1 rewrites the file)");
        assert!(
            problems.iter().all(|p| problem::explain(p.code).is_some()),
            "a code is missing in the table"
        );
        assert!(problems.iter().all(|p| !p.reason.is_empty() && !p.hint.is_empty()), "cause and remedy");
    }
    assert!(seen >= 10, "{seen} golden files");
}

const WHOLE: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: payments-api, namespace: payments}
- apiVersion: v1
  kind: ServiceAccount
  metadata: {name: checkout-api, namespace: checkout}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: app-settings}
  data: {mesh: "not: [yaml"}
---
apiVersion: v1
kind: Service
metadata: {name: payments-api, namespace: payments}
spec:
  type: ClusterIP
  clusterIPs: [10.96.0.7, "fd00::7"]
  selector: {app: payments-api}
  ports:
  - {name: http, port: 80, targetPort: web, appProtocol: http}
  - {name: metrics, port: 9090}
  - {name: dns, port: 53, protocol: UDP, targetPort: 5353}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: payments-api, namespace: payments, creationTimestamp: 2026-01-02T03:04:05Z}
spec:
  replicas: 2
  selector: {matchLabels: {app: payments-api}}
  template:
    metadata: {labels: {app: payments-api, version: "1"}}
    spec:
      serviceAccountName: payments-api
      securityContext: {runAsNonRoot: true}
      volumes: [{name: tmp, emptyDir: {}}]
      containers:
      - name: api
        image: example.com/payments-api:1
        command: [payments-api]
        args: ["--port", "8080"]
        workingDir: /tmp
        resources: {requests: {cpu: 0.5, memory: 64Mi}}
        livenessProbe: {httpGet: {path: /, port: web}, periodSeconds: 5}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
        env:
        - {name: A, value: "1"}
        - name: POD
          valueFrom: {fieldRef: {fieldPath: metadata.name}}
        ports: [{name: web, containerPort: 8080}, {containerPort: 9090}]
---
apiVersion: v1
kind: Pod
metadata: {name: tool, namespace: payments, annotations: {postern.dev/inbound: "8080=127.0.0.1:34567"}}
spec: {containers: [{name: tool, command: [sleep, "1"]}]}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: api, namespace: payments}
spec:
  selector: {matchLabels: {app: payments-api}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: PERMISSIVE}
    "9090": {mode: DISABLE}
    9091: null
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: payments-api, namespace: payments}
spec:
  selector: {matchLabels: {app: payments-api}}
  action: ALLOW
  rules:
  - from:
    - source: {principals: [cluster.local/ns/checkout/sa/checkout-api], notIpBlocks: [10.0.0.0/8]}
    to:
    - operation: {methods: [POST], paths: [/v1/charges, "/v1/{*}/x"], ports: ["8080"], notHosts: [a.test, "a.test:*"]}
    when:
    - {key: "request.headers[x-team]", values: ["*"], notValues: [b]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    trustDomain: example.org
    trustDomainAliases: [old.example.org]
    pathNormalization: {normalization: MERGE_SLASHES}
    accessLogFile: ""
    accessLogEncoding: JSON
    enableTracing: true
    defaultConfig: {tracing: {sampling: 12.5}}
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
"#;

#[test]
fn every_kind_is_read_with_its_values() {
    let d = clean(WHOLE);
    assert_eq!((d.namespaces.len(), d.service_accounts.len(), d.pods.len()), (1, 2, 1));
    let service = &d.services[0].value;
    assert_eq!(service.cluster_ips.len(), 2);
    assert!(!service.headless && service.ports[2].udp);
    assert_eq!(service.ports[0].target, TargetPort::Name("web".into()));
    assert_eq!(service.ports[1].target, TargetPort::Number(9090));
    assert_eq!(service.ports[2].target, TargetPort::Number(5353));
    let deployment = &d.deployments[0].value;
    assert_eq!((deployment.replicas, deployment.template.spec.service_account.as_str()), (2, "payments-api"));
    assert_eq!(deployment.metadata.creation_timestamp.as_deref(), Some("2026-01-02T03:04:05Z"));
    assert_eq!(deployment.template.metadata.namespace, "payments");
    let container = &deployment.template.spec.containers[0];
    assert_eq!((container.command.len(), container.args.len(), container.ports.len()), (1, 2, 2));
    assert_eq!(container.env, [("A".to_owned(), "1".to_owned())]);
    assert_eq!(container.field_env, [("POD".to_owned(), PodField::Name)]);
    assert_eq!(d.pods[0].value.pod_ips.len(), 2);
    assert_eq!(d.pods[0].value.spec.service_account, "default");
    assert_eq!(d.pods[0].value.metadata.annotations["postern.dev/inbound"], "8080=127.0.0.1:34567");
    let peer = &d.peer_authentications[0].value;
    assert_eq!(peer.mode, MtlsMode::Strict);
    assert_eq!(peer.port_level[&8080], MtlsMode::Permissive);
    assert_eq!(peer.port_level[&9090], MtlsMode::Disable);
    assert_eq!(peer.port_level[&9091], MtlsMode::Unset);
    let policy = &d.authorization_policies[0];
    assert_eq!(policy.value.action, Action::Allow);
    assert_eq!(policy.value.rules[0].to[0].operation.paths.len(), 2);
    assert_eq!(WHOLE.lines().nth(policy.origin.line - 1), Some("apiVersion: security.istio.io/v1beta1"));
    assert_eq!(d.mesh.trust_domain, "example.org");
    assert_eq!(d.mesh.trust_domain_aliases, ["old.example.org"]);
    assert_eq!(d.mesh.path_normalization, Normalization::MergeSlashes);
    assert_eq!((d.mesh.access_log_file.as_str(), d.mesh.tracing_sampling), ("", Some(12.5)));
    assert!(d.mesh.outbound_registry_only);
    assert!(validate::runnable(&d).is_empty());
}

#[test]
fn policies_travel_as_json_and_come_back_the_same() {
    let d = clean(WHOLE);
    let policy = &d.authorization_policies[0].value;
    let text = serde_json::to_string(policy).unwrap();
    assert_eq!(&serde_json::from_str::<AuthorizationPolicy>(&text).unwrap(), policy);
    let peer = &d.peer_authentications[0].value;
    let text = serde_json::to_string(peer).unwrap();
    assert_eq!(&serde_json::from_str::<PeerAuthentication>(&text).unwrap(), peer);
    let text = serde_json::to_string(&d.mesh).unwrap();
    assert_eq!(serde_json::from_str::<documents::MeshConfig>(&text).unwrap(), d.mesh);
}

/// A policy with one line of its spec given, to try spellings on.
fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  {spec}\n"
    )
}

#[test]
fn each_mistake_has_its_code_place_and_remedy() {
    let ns = |meta: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  {meta}\n");
    let peer = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p}}\nspec:\n  {spec}\n"
        )
    };
    let rule = |rule: &str| policy(&format!("rules: [{rule}]"));
    let source = |source: &str| rule(&format!("{{from: [{{source: {{{source}}}}}]}}"));
    let operation = |operation: &str| rule(&format!("{{to: [{{operation: {{{operation}}}}}]}}"));
    let when = |when: &str| rule(&format!("{{when: [{{{when}}}]}}"));
    let cases: Vec<(String, &str, usize, &str, &str)> = vec![
        (ns("name: UPPER"), "PST0301", 4, "RFC 1123", "`upper`"),
        (ns("nam: a"), "PST0102", 4, "unknown field `nam` in metadata", "did you mean `name`?"),
        (ns("labels: {}"), "PST0105", 4, "metadata has no `name`", "add `name:`"),
        (ns("name: a\n  labels: {\"a b\": c}"), "PST0302", 5, "label key `a b`", "prefix"),
        (ns("name: a\n  labels: {a: -c}"), "PST0302", 5, "label value `-c`", "63"),
        (ns("name: !custom a"), "PST0111", 4, "tag", "remove"),
        (ns("name: a\n  ? [x]\n  : y"), "PST0111", 5, "a key must be a scalar", "quotes"),
        (ns("name: *a"), "PST0101", 4, "not valid YAML", "quotes"),
        (ns("name: &a {x: *a}"), "PST0101", 4, "alias", "write the value out"),
        ("kind: Pod".into(), "PST0110", 1, "no `apiVersion`", "add `apiVersion:`"),
        ("apiVersion: v1\nkin: Pod".into(), "PST0110", 1, "no `kind`", "`kin` should be `kind`"),
        (
            "apiVersion: networking.istio.io/v1\nkind: VirtualService".into(),
            "PST0201",
            2,
            "not enforced yet",
            "take it out",
        ),
        (
            "apiVersion: postern.dev/v1\nkind: Thing".into(),
            "PST0107",
            2,
            "unknown kind",
            "kinds that Postern reads",
        ),
        (
            "apiVersion: telemetry.istio.io/v1\nkind: Telemetri".into(),
            "PST0107",
            2,
            "unknown kind",
            "`Telemetry`",
        ),
        (
            "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec: {}"
                .into(),
            "PST0108",
            1,
            "is not in apiVersion",
            "apiVersion: security.istio.io/v1",
        ),
        (peer("mtls: {mode: BLAH}"), "PST0112", 5, "Unsupported value: \"BLAH\"", "STRICT"),
        (
            peer("portLevelMtls: {80: {mode: STRICT}}"),
            "PST0312",
            5,
            "mesh/namespace peer authentication cannot have port level mTLS",
            "selector",
        ),
        (
            peer("selector: {matchLabels: {a: b}}\n  portLevelMtls: {}"),
            "PST0312",
            6,
            "port level mTLS, if defined, must have at least one element",
            "remove",
        ),
        (
            peer("selector: {matchLabels: {a: b}}\n  portLevelMtls: {65536: {}}"),
            "PST0312",
            6,
            "port must be in range 1..65535",
            "number",
        ),
        (
            peer("selector: {matchLabels: {\"\": b}}"),
            "PST0305",
            5,
            "empty key is not supported in selector: \"=b\"",
            "name",
        ),
        (
            peer("selector: {matchLabels: {\"a*\": b}}"),
            "PST0305",
            5,
            "wildcard is not supported in selector: \"a*=b\"",
            "label",
        ),
        (peer("targetRefs: []"), "PST0102", 5, "unknown field `targetRefs`", "fields here"),
        (
            policy("action: DENY"),
            "PST0313",
            5,
            "DENY action without `rules` is meaningless as it will never be triggered, add an empty rule `{}`",
            "rules",
        ),
        (
            policy("provider: {name: a}"),
            "PST0313",
            5,
            "`provider` must not be with non CUSTOM action, found ALLOW",
            "remove",
        ),
        (
            policy("{action: CUSTOM, rules: [{}]}"),
            "PST0313",
            5,
            "`provider.name` must not be empty",
            "provider",
        ),
        (
            policy("{action: CUSTOM, provider: {name: a}, rules: [{}]}"),
            "PST0202",
            5,
            "action CUSTOM is not enforced yet",
            "refuses",
        ),
        (
            policy("{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}"),
            "PST0315",
            5,
            "only one of targetRefs or workloadSelector can be set",
            "selector",
        ),
        (policy("{targetRefs: [{kind: Service}]}"), "PST0315", 5, "targetRef name must be set", "name"),
        (
            policy("{targetRefs: [{kind: Service, name: a, namespace: b}]}"),
            "PST0315",
            5,
            "targetRef namespace must not be set; cross namespace referencing is not supported",
            "remove",
        ),
        (
            policy("{targetRefs: [{kind: Pod, name: a}]}"),
            "PST0315",
            5,
            "targetRef must be to one of [",
            "selector",
        ),
        (rule("null"), "PST0306", 5, "`rule` must not be nil, found at rule 0", "{}"),
        (rule("{from: [null]}"), "PST0306", 5, "`from` must not be nil, found at rule 0", "source"),
        (rule("{from: [{}]}"), "PST0306", 5, "`from.source` must not be nil, found at rule 0", "source"),
        (
            rule("{to: [{operation: {}}]}"),
            "PST0306",
            5,
            "`to.operation` must not be empty, found at rule 0",
            "operation",
        ),
        (
            source("principals: [\"\"]"),
            "PST0311",
            5,
            "empty value not allowed, found in Principals",
            "remove",
        ),
        (
            source("notNamespaces: [\"\"]"),
            "PST0311",
            5,
            "empty value not allowed, found in NotNamespaces",
            "remove",
        ),
        (
            source("serviceAccounts: [a], principals: [b]"),
            "PST0308",
            5,
            "cannot set serviceAccounts with namespaces or principals, found at rule 0",
            "alone",
        ),
        (source("serviceAccounts: [/a]"), "PST0308", 5, "found empty namespace", "checkout"),
        (
            source("trustDomains: [a/b]"),
            "PST0309",
            5,
            "trust domain must not contain '/', found in TrustDomains",
            "cluster.local",
        ),
        (source("notRemoteIpBlocks: [1.2.3.4/x]"), "PST0304", 5, "bad CIDR range (1.2.3.4/x)", "10.0.0.0/8"),
        (
            source("methods: [GET]"),
            "PST0102",
            5,
            "unknown field `methods` in spec.rules[0].from[0].source",
            "`methods` belongs in spec.rules[].to[].operation",
        ),
        (operation("ports: [\"1e3\"]"), "PST0303", 5, "bad port (1e3)", "8080"),
        (operation("paths: [\"a/{*}\"]"), "PST0310", 5, "does not begin with `/`", "/a/{*}"),
        (operation("notPaths: [\"/{*}.txt\"]"), "PST0310", 5, "found in NotPaths", "segment"),
        (when("values: [a]"), "PST0307", 5, "`key` must not be empty", "source.ip"),
        (
            when("key: source.ip"),
            "PST0307",
            5,
            "at least one of `values` or `notValues` must be set for key source.ip",
            "values",
        ),
        (
            when("key: source.ip, notValues: [x]"),
            "PST0304",
            5,
            "invalid `notValue` for `key` source.ip: bad IP address (x)",
            "10.0.0.0/8",
        ),
        (
            when("key: \"destination.labels[app]\", values: [x]"),
            "PST0307",
            5,
            "attribute destination.labels[app] is replaced by the workload selector",
            "selector",
        ),
        (
            when("key: destination.user, values: [x]"),
            "PST0307",
            5,
            "deprecated attribute destination.user: only supported in v1alpha1",
            "selector",
        ),
        (
            when("key: experimental.envoy.filters.a.b.x, values: [x]"),
            "PST0307",
            5,
            "should have format a[b]",
            "[x]",
        ),
        (
            when("key: \"experimental.envoy.filters.a.b[c]\", values: [x]"),
            "PST0202",
            5,
            "not enforced yet",
            "refuses",
        ),
        (
            when("key: \"request.headers[:path]\", values: [/x]"),
            "PST0202",
            5,
            "pseudo header",
            "to.operation.paths",
        ),
        (
            policy("{action: AUDIT, rules: [{}]}")
                .replace("{name: p}", "{name: p, annotations: {istio.io/dry-run: \"true\"}}"),
            "PST0313",
            5,
            "does not go with action AUDIT",
            "only ALLOW and DENY",
        ),
        (
            peer("mtls: {mode: STRICT}")
                .replace("{name: p}", "{name: p, annotations: {istio.io/dry-run: \"true\"}}"),
            "PST0313",
            3,
            "on a PeerAuthentication",
            "remove the annotation",
        ),
        (rule("{when: [null]}"), "PST0307", 5, "when field cannot be nil", "remove"),
    ];
    for (text, code, line, reason, hint) in cases {
        let (_, problems) = read(&text);
        let found = problems.iter().find(|p| p.code == code && p.reason.contains(reason));
        let Some(found) = found else { panic!("{code} {reason}\nin\n{text}\nfound\n{}", show(&problems)) };
        assert_eq!(found.severity, Severity::Error, "{found}");
        assert_eq!(found.line, line, "{found}");
        assert!(found.column > 0 && found.hint.contains(hint), "{hint}\n{found}");
        assert_eq!(found.source_line.as_deref(), text.lines().nth(line - 1), "{found}");
    }
}

#[test]
fn federation_is_read_whole_or_refused_with_code_place_and_remedy() {
    const PEM: &str = include_str!("golden/federation.pem");
    let pem: String = PEM.lines().map(|line| format!("    {line}\n")).collect();
    let document = |spec: &str| {
        format!(
            "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {{name: other}}\nspec:\n{spec}"
        )
    };
    let web = "  trustDomain: other.example\n  bundleEndpointURL: https://b.example:8443/x?y\n  bundleEndpointProfile: {type: https_web}\n";
    let spiffe = |id: &str| {
        web.replace("{type: https_web}", &format!("{{type: https_spiffe, endpointSPIFFEID: '{id}'}}"))
    };
    let own = spiffe("spiffe://other.example/endpoint");
    let keys = "  trustDomainBundle: '{\"keys\": [], \"spiffe_sequence\": 3}'\n";
    let mesh = |text: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |\n    {text}\n---\n"
        )
    };

    let federated = clean(&document(web)).federated_trust_domains.remove(0).value;
    assert_eq!((federated.trust_domain.as_str(), federated.bundle), ("other.example", None));
    assert_eq!(federated.url.to_string(), "https://b.example:8443/x?y");
    let with_keys = clean(&document(&format!("{own}{keys}"))).federated_trust_domains.remove(0).value;
    assert_eq!(with_keys.bundle.unwrap().sequence, Some(3));
    let with_pem = format!("{own}  trustDomainBundle: |\n{pem}");
    let with_pem = clean(&document(&with_pem)).federated_trust_domains.remove(0).value;
    assert_eq!(with_pem.bundle.unwrap().anchors.len(), 1);
    // An endpoint of ours may serve it, too.
    clean(&document(&spiffe("spiffe://cluster.local/ns/a/sa/b")));

    for (text, code, line, reason, hint) in [
        (
            document(&web.replace("https://", "http://")),
            "PST0317",
            6,
            "does not begin with https://",
            "https://",
        ),
        (document(&web.replace("b.example", "u:p@b.example")), "PST0317", 6, "user information", "https://"),
        (document(&web.replace("?y", "#y")), "PST0317", 6, "fragment", "https://"),
        (document(&web.replace(":8443", ":0")), "PST0317", 6, "port", "https://"),
        (document(&web.replace("b.example:8443", "")), "PST0317", 6, "cannot be used", "https://"),
        (
            document(&web.replace("other.example", "Other")),
            "PST0309",
            5,
            "trust domain `Other`",
            "other.example",
        ),
        (document(&web.replace("https_web", "https_wb")), "PST0112", 7, "https_wb", "`https_web`"),
        (
            document(&web.replace("bundleEndpointURL", "bundleEndpointUrl")),
            "PST0102",
            6,
            "unknown field",
            "`bundleEndpointURL`",
        ),
        (
            document(&web.replace("{type: https_web}", "{type: https_spiffe}")),
            "PST0317",
            7,
            "without endpointSPIFFEID",
            "add",
        ),
        (
            document(&web.replace("https_web}", "https_web, endpointSPIFFEID: 'spiffe://a/b'}")),
            "PST0317",
            7,
            "host name",
            "https_spiffe",
        ),
        (document(&own), "PST0317", 7, "without trustDomainBundle", "bundle"),
        (
            document(&spiffe("other.example/x")),
            "PST0317",
            7,
            "endpointSPIFFEID `other.example/x`",
            "spiffe://",
        ),
        (
            document(&spiffe("spiffe://third.example/x")),
            "PST0317",
            7,
            "authorities nothing here names",
            "ClusterFederatedTrustDomain",
        ),
        (document(&format!("{own}  trustDomainBundle: '{{}}'\n")), "PST0317", 8, "no `keys` array", "PEM"),
        (
            document(&format!("{own}  trustDomainBundle: '{{\"keys\": [], \"keys\": []}}'\n")),
            "PST0317",
            8,
            "occurs twice",
            "PEM",
        ),
        (document(&format!("{web}  className: x\n")), "PST0408", 8, "className", "remove"),
        (document(&web.replace("other.example", "cluster.local")), "PST0317", 5, "of this mesh", "other"),
        (
            format!("{}---\n{}", document(web), document(web).replace("name: other", "name: o2")),
            "PST0317",
            13,
            "already federated",
            "keep",
        ),
        (
            format!("{}{}", mesh("trustDomainAliases: [other.example]"), document(web)),
            "PST0317",
            12,
            "all the rights of ours",
            "alias",
        ),
        (
            format!(
                "{}{}",
                mesh("trustDomain: our.example"),
                document(&web.replace("other.example", "cluster.local"))
            ),
            "PST0317",
            12,
            "stands for the mesh's own",
            "names of their own",
        ),
    ] {
        let (_, problems) = read(&text);
        let found = problems.iter().find(|p| p.code == code && p.reason.contains(reason));
        let found =
            found.unwrap_or_else(|| panic!("no {code} `{reason}` for\n{text}\nbut {}", show(&problems)));
        assert_eq!(found.line, line, "{found}");
        assert!(found.hint.contains(hint), "{found}");
    }
}

#[test]
fn what_is_right_stays_without_a_word() {
    let clean_policies = [
        "{}",
        "action: ALLOW",
        "rules: [{}]",
        "{action: DENY, rules: [{}]}",
        "{rules: [{from: [{source: {notPrincipals: [\"*\"], namespaces: [\"a*b\"]}}]}]}",
        "{rules: [{from: [{source: {serviceAccounts: [ns/sa, sa], trustDomains: [\"foo*\"]}}]}]}",
        "{rules: [{when: [{key: source.trustDomain, values: [cluster.local, \"*\", foo*, \"*bar\"]}]}]}",
        "{rules: [{when: [{key: \"request.headers[:authority]\", values: [a]}, {key: destination.port, values: [\"80\"]}]}]}",
        "{rules: [{to: [{operation: {paths: [\"*\", \"/a*\", \"*.txt\", \"/{*}/b/{**}\"], hosts: [\"*.a.b\", a.b, \"a.b:*\"]}}]}]}",
    ];
    for spec in clean_policies {
        clean(&policy(spec));
    }
    clean("");
    clean("# nothing\n---\n---\n...\n%YAML 1.2\n---\n# nothing\n");
    clean("\u{feff}apiVersion: v1\r\nkind: Namespace\r\nmetadata:\r\n  name: a\r\n");
    clean("base: &b {app: x}\n---\n".replace("base", "#").as_str());
    let d = clean(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: &l {app: x}\n  annotations: {<<: *l, b: c}\nspec: {containers: [{name: a}]}\n",
    );
    assert_eq!(d.pods[0].value.metadata.annotations.len(), 2);
    // JSON is YAML.
    clean("{\"apiVersion\":\"v1\",\"kind\":\"Namespace\",\"metadata\":{\"name\":\"a\"}}");
}

#[test]
fn all_errors_of_a_folder_are_shown_and_the_good_documents_are_read() {
    let files = [
        file(
            "b.yaml",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: B}\n---\nx: [\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: ok}\n",
        ),
        file("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: ok, lables: {}}\n"),
        file("c.yaml", &policy("rules: [{form: []}]")),
    ];
    let (documents, problems) = documents::read(&files);
    assert_eq!(documents.namespaces.len(), 3);
    let places: Vec<(&str, usize, &str)> =
        problems.iter().map(|p| (p.file.as_str(), p.line, p.code)).collect();
    assert_eq!(
        places,
        [
            ("a.yaml", 3, "PST0102"),
            ("b.yaml", 3, "PST0301"),
            ("b.yaml", 5, "PST0101"),
            ("b.yaml", 9, "PST0401"),
            ("c.yaml", 5, "PST0102"),
        ],
        "{}",
        show(&problems)
    );
}

#[test]
fn a_container_without_command_matters_to_up_only() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {a: b}}\n  template:\n    metadata: {labels: {a: b}}\n    spec:\n      containers:\n      - name: web\n        image: nginx\n";
    let problems = validate::runnable(&clean(text));
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].code, problems[0].line, problems[0].column), (problem::NO_COMMAND, 10, 15));
    assert!(problems[0].to_string().contains("does not pull images"));
}

#[test]
fn the_mesh_configuration_is_the_one_of_the_root_namespace() {
    let map = |namespace: &str, mesh: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: {namespace}}}\ndata:\n  mesh: |\n    {mesh}\n"
        )
    };
    assert_eq!(clean(&map("mesh", "rootNamespace: mesh")).mesh.root_namespace, "mesh");
    assert_eq!(clean(&map("istio-system", "rootNamespace: mesh")).mesh.root_namespace, "mesh");
    let (d, problems) = read(&map("other", "trustDomain: x"));
    assert_eq!((d.mesh.trust_domain.as_str(), problems[0].code), ("cluster.local", problem::NO_EFFECT));
    assert_eq!(clean(&map("istio-system", "enableTracing: false")).mesh.tracing_sampling, Some(0.0));
    let (_, problems) = read(&map("istio-system", "\n    # c\n\n    tlsDefaults: {}"));
    assert_eq!(
        (problems[0].code, problems[0].line, problems[0].column),
        (problem::MESH_KEY_NOT_ENFORCED, 9, 5),
        "{}",
        show(&problems)
    );
    for (mesh, versions) in [
        ("{}", Versions::Tls13),
        ("meshMTLS: {}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLS_AUTO}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLSV1_3}", Versions::Tls13),
        ("meshMTLS: {minProtocolVersion: TLSV1_2}", Versions::Tls12And13),
    ] {
        assert_eq!(clean(&map("istio-system", mesh)).mesh.tls_versions, versions, "{mesh}");
    }
    for (mesh, code) in [
        ("meshMTLS: {minProtocolVersion: TLSV1_1}", problem::UNKNOWN_VALUE),
        ("meshMTLS: {cipherSuites: [a]}", problem::MESH_KEY_NOT_ENFORCED),
        ("meshMTLS: {minProtocolVersio: TLSV1_2}", problem::UNKNOWN_FIELD),
    ] {
        let (_, problems) = read(&map("istio-system", mesh));
        assert_eq!(problems[0].code, code, "{}", show(&problems));
    }
    let (_, problems) = read(&map("istio-system", "trustDomain: [a"));
    assert_eq!(problems[0].code, problem::SYNTAX);
    assert!(problems[0].line >= 6, "{}", problems[0]);
}

mod never_panics {
    use super::*;
    use proptest::prelude::*;

    /// Pieces that meet in real files, glued at random.
    fn pieces() -> impl Strategy<Value = String> {
        let words = prop::sample::select(vec![
            "apiVersion: v1\n",
            "kind: Service\n",
            "kind: Pod\n",
            "kind: AuthorizationPolicy\n",
            "apiVersion: security.istio.io/v1\n",
            "metadata:\n",
            "  name: a\n",
            "spec:\n",
            "  rules:\n",
            "  - from:\n",
            "    - source:\n",
            "        principals: [a]\n",
            "---\n",
            "...\n",
            "- ",
            "  ",
            "\t",
            ": ",
            "? ",
            "{",
            "}",
            "[",
            "]",
            ",",
            "&a ",
            "*a ",
            "<<: ",
            "|\n",
            ">-\n",
            "\"",
            "'",
            "#",
            "!!str ",
            "!x ",
            "\u{e9}",
            "\u{0}",
            "\r",
            "null",
            "~",
            "%TAG ! x\n",
            "data:\n",
            "  mesh: |\n    ",
            "name: istio\n",
            "{}",
            "1e999",
        ]);
        prop::collection::vec(words, 0..60).prop_map(|words| words.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]
        #[test]
        fn on_any_text(text in any::<String>()) {
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
        #[test]
        fn on_yaml_like_text(text in pieces()) {
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
        #[test]
        fn on_a_damaged_real_file(at in 0..WHOLE.len(), insert in "[\\PC\\n\\t]{0,4}", cut in 0usize..40) {
            let start = (0..=at).rev().find(|i| WHOLE.is_char_boundary(*i)).unwrap();
            let end = (start + cut).min(WHOLE.len());
            let text = format!("{}{insert}{}", &WHOLE[..start], WHOLE.get(end..).unwrap_or_default());
            let (documents, problems) = read(&text);
            let _ = (show(&problems), validate::runnable(&documents));
        }
    }
}

#[test]
fn the_examples_of_the_repository_have_nothing_wrong_with_them() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples");
    for folder in fs::read_dir(&examples).into_iter().flatten().flatten() {
        let entries = fs::read_dir(folder.path()).into_iter().flatten().flatten();
        let yaml = entries.filter(|e| e.path().extension().is_some_and(|x| x == "yaml"));
        let files: Vec<SourceFile> = yaml
            .map(|e| file(&e.file_name().to_string_lossy(), &fs::read_to_string(e.path()).unwrap()))
            .collect();
        let (documents, problems) = documents::read(&files);
        assert!(problems.is_empty(), "{:?}\n{}", folder.file_name(), show(&problems));
        assert!(validate::runnable(&documents).is_empty(), "{:?}", folder.file_name());
    }
}
