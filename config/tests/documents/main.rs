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

mod mesh;
mod mistakes;
mod providers;
mod telemetry;

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: name.into(), text: text.into() }
}

fn read(text: &str) -> (Documents, Vec<Problem>) {
    documents::read(&[file("t.yaml", text)])
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  {spec}\n"
    )
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

/// The first problem with this code has to be in this line, and to name this reason and this remedy.
fn told(text: &str, code: &str, line: usize, reason: &str, hint: &str) {
    let (_, problems) = read(text);
    let found = problems.iter().find(|p| p.code == code);
    let found = found.unwrap_or_else(|| panic!("no {code} in\n{text}\nbut\n{}", show(&problems)));
    assert!(found.reason.contains(reason), "{reason}: {found}\n{text}");
    assert!(found.hint.contains(hint), "{hint}: {found}\n{text}");
    assert_eq!(found.line, line, "{found}\n{text}");
    assert!(found.column > 0, "{found}\n{text}");
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
