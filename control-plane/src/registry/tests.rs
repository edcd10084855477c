//! Tables of the registry: documents in, answers to sidecars out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use super::{Index, destination::Asked};
use postern_api::v1::{self, destination::Kind};
use postern_config::{
    InboundSpec, Severity,
    documents::{self, SourceFile},
    snapshot::Protocol,
};

/// A mesh with everything once: a service with one endpoint in the mesh and one outside it, IPv4 and IPv6.
const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: payments, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: legacy}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: payments, labels: {app: api}}
spec:
  serviceAccountName: api
  containers: [{name: api, command: [serve], ports: [{name: web, containerPort: 8080}, {name: db, containerPort: 5432}]}]
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-2, namespace: payments, labels: {app: api, sidecar.istio.io/inject: 'false'}}
spec:
  serviceAccountName: api
  containers: [{name: api, command: [serve], ports: [{name: web, containerPort: 9090}]}]
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: legacy, labels: {app: api}}
spec: {containers: [{name: old, command: [serve]}]}
status: {podIP: 10.0.0.3}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: payments}
spec:
  clusterIPs: [10.1.0.1, 'fd01::1']
  selector: {app: api}
  ports:
  - {name: http-web, port: 80, targetPort: web}
  - {name: db, port: 5432, appProtocol: tcp}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: payments}
spec:
  clusterIP: 10.1.0.2
  selector: {app: nobody}
  ports: [{name: grpc, port: 90}]
";

const WEB: &str = "service payments/api api.payments.svc.cluster.local:80 http";

fn try_index(yaml: &str) -> Index {
    let (documents, problems) =
        documents::read(&[SourceFile { name: "mesh.yaml".into(), text: yaml.into() }]);
    let errors: Vec<_> =
        problems.iter().filter(|p| p.severity == Severity::Error).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    Index::build(documents, &"cluster.local".parse().unwrap())
}

fn with(more: &str) -> Index {
    try_index(&format!("{MESH}---\n{more}"))
}

fn protocol(number: i32) -> &'static str {
    match v1::Protocol::try_from(number).unwrap() {
        v1::Protocol::Auto => "auto",
        v1::Protocol::Http => "http",
        v1::Protocol::Http2 => "http2",
        v1::Protocol::Tcp => "tcp",
    }
}

fn endpoint(endpoint: &v1::Endpoint) -> String {
    let identity = match endpoint.identity.strip_prefix("spiffe://cluster.local") {
        Some(path) => path,
        None if endpoint.identity.is_empty() => "plain",
        None => panic!("{}", endpoint.identity),
    };
    let v1::Endpoint { workload, dial, port, .. } = endpoint;
    format!("{workload} {dial} port {port} {} {identity}", protocol(endpoint.protocol))
}

/// The answer in words, an endpoint a line.
fn resolve(index: &Index, address: &str) -> String {
    let answer = index.destination(address, &Asked::parse(address).unwrap(), "shop").destination;
    assert_eq!(answer.address, address, "the answer repeats the question");
    match answer.kind.unwrap() {
        Kind::Service(service) => {
            let v1::Service { namespace, name, host, port, .. } = &service;
            let head = format!("service {namespace}/{name} {host}:{port} {}", protocol(service.protocol));
            let lines = service.endpoints.iter().map(endpoint);
            std::iter::once(head).chain(lines).collect::<Vec<_>>().join("\n")
        }
        Kind::Workload(workload) => format!("workload {}", endpoint(&workload)),
        Kind::Outside(outside) => (if outside.blocked { "blocked" } else { "outside" }).to_owned(),
    }
}

fn check(index: &Index, address: &str, expected: &[&str]) {
    assert_eq!(resolve(index, address), expected.join("\n"), "{address}");
}

fn spec(index: &Index, pod: &str) -> InboundSpec {
    serde_json::from_slice(&index.policy("payments", "api", pod).unwrap().spec).unwrap()
}

#[test]
fn a_service_address_leads_to_the_pods_it_selects_with_their_own_ports_and_identities() {
    let index = with("{apiVersion: v1, kind: Namespace, metadata: {name: other}}");
    check(
        &index,
        "10.1.0.1:80",
        &[
            WEB,
            "payments/api-1 10.0.0.1:8080 port 8080 http /ns/payments/sa/api",
            "payments/api-2 10.0.0.2:9090 port 9090 http plain",
        ],
    );
    // IPv6: only the pod that has such an address.
    check(&index, "[fd01::1]:80", &[WEB, "payments/api-1 [fd00::1]:8080 port 8080 http /ns/payments/sa/api"]);
    // The same address in IPv6 clothes.
    assert!(resolve(&index, "[::ffff:10.1.0.1]:80").starts_with(WEB));
    // A number is the target when none is named.
    check(
        &index,
        "10.1.0.1:5432",
        &[
            "service payments/api api.payments.svc.cluster.local:5432 tcp",
            "payments/api-1 10.0.0.1:5432 port 5432 tcp /ns/payments/sa/api",
            "payments/api-2 10.0.0.2:5432 port 5432 tcp plain",
        ],
    );
    // No endpoints is an answer, too.
    let empty = resolve(&index, "10.1.0.2:90");
    assert!(empty.starts_with("service payments/empty ") && !empty.contains('\n'), "{empty}");
}

#[test]
fn a_pod_address_leads_to_that_workload_whatever_the_port() {
    let index = try_index(MESH);
    check(
        &index,
        "10.0.0.1:8080",
        &["workload payments/api-1 10.0.0.1:8080 port 8080 http /ns/payments/sa/api"],
    );
    check(
        &index,
        "[fd00::1]:7777",
        &["workload payments/api-1 [fd00::1]:7777 port 7777 auto /ns/payments/sa/api"],
    );
    check(&index, "10.0.0.3:8080", &["workload legacy/old 10.0.0.3:8080 port 8080 auto plain"]);
}

#[test]
fn any_other_address_is_outside_and_blocked_when_the_mesh_says_registry_only() {
    let open = try_index(MESH);
    check(&open, "192.0.2.1:443", &["outside"]);
    check(&open, "10.1.0.1:81", &["outside"]);
    let closed = with(
        "apiVersion: v1
kind: ConfigMap
metadata: {name: istio, namespace: istio-system}
data:
  mesh: |
    outboundTrafficPolicy: {mode: REGISTRY_ONLY}
",
    );
    check(&closed, "192.0.2.1:443", &["blocked"]);
    check(&closed, "10.0.0.3:8080", &["workload legacy/old 10.0.0.3:8080 port 8080 auto plain"]);
}

#[test]
fn an_identity_is_expected_exactly_where_the_effective_mode_is_not_disable() {
    let peer_authentication = |spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: payments}}\nspec: {spec}\n"
        )
    };
    let identity = |spec: &str, address: &str| {
        let answer = resolve(&with(&peer_authentication(spec)), address);
        answer.rsplit(' ').next().unwrap().to_owned()
    };
    let disabled = "{mtls: {mode: DISABLE}}";
    let strict = "{mtls: {mode: STRICT}}";
    let one_port =
        "{selector: {matchLabels: {app: api}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: DISABLE}}}";
    for (spec, address, expected) in [
        (strict, "10.0.0.1:8080", "/ns/payments/sa/api"),
        (disabled, "10.0.0.1:8080", "plain"),
        (one_port, "10.0.0.1:8080", "plain"),
        (one_port, "10.0.0.1:8081", "/ns/payments/sa/api"),
        // Without a sidecar, never.
        (strict, "10.0.0.2:9090", "plain"),
    ] {
        assert_eq!(identity(spec, address), expected, "{spec} {address}");
    }
}

const EXPLICIT: &str = "apiVersion: v1
kind: Pod
metadata:
  name: local
  namespace: payments
  labels: {app: local}
  annotations: {postern.dev/inbound: '8080=127.0.0.1:34567'}
spec: {containers: [{name: c, command: [serve], ports: [{containerPort: 8080}]}]}
status: {podIP: 10.0.0.9}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: payments}
spec: {clusterIP: 'fd01::9', selector: {app: local}, ports: [{name: http, port: 80, targetPort: 8080}]}
";

#[test]
fn a_sidecar_without_redirect_rules_is_dialled_where_its_annotation_says() {
    let index = with(EXPLICIT);
    let expected = "payments/local 127.0.0.1:34567 port 8080 http /ns/payments/sa/default";
    check(&index, "10.0.0.9:8080", &[&format!("workload {expected}")]);
    // The address family of the pod does not matter then.
    check(
        &index,
        "[fd01::9]:80",
        &["service payments/local local.payments.svc.cluster.local:80 http", expected],
    );
    check(
        &index,
        "10.0.0.9:8081",
        &["workload payments/local 10.0.0.9:8081 port 8081 auto /ns/payments/sa/default"],
    );
}

#[test]
fn a_pod_whose_annotation_cannot_be_read_is_not_called_in_the_clear() {
    let index = with(&EXPLICIT.replace("8080=127", "8080:127"));
    check(&index, "10.0.0.9:8080", &["blocked"]);
    check(&index, "[fd01::9]:80", &["service payments/local local.payments.svc.cluster.local:80 http"]);
    assert!(
        index.warnings().iter().any(|warning| warning.contains("PORT=IP:PORT")),
        "{:?}",
        index.warnings()
    );
}

#[test]
fn pods_that_share_an_address_are_told_apart_by_their_ports_or_not_at_all() {
    let other = EXPLICIT.split("---").next().unwrap().replace("local", "twin").replace("8080", "7070");
    let index = with(&format!("{EXPLICIT}---\n{other}"));
    assert!(resolve(&index, "10.0.0.9:8080").starts_with("workload payments/local "));
    assert!(resolve(&index, "10.0.0.9:7070").starts_with("workload payments/twin "));
    check(&index, "10.0.0.9:6060", &["blocked"]);
}

#[test]
fn a_pod_gets_the_ports_that_services_declare_for_it() {
    let ports =
        |pod| spec(&try_index(MESH), pod).ports.iter().map(|p| (p.port, p.protocol)).collect::<Vec<_>>();
    assert_eq!(ports("api-1"), [(5432, Protocol::Tcp), (8080, Protocol::Http)]);
    assert_eq!(ports("api-2"), [(5432, Protocol::Tcp), (9090, Protocol::Http)]);
}

#[test]
fn a_pod_is_told_the_upgrades_that_it_names_and_no_other() {
    let annotated = MESH.replace(
        "{name: api-1, namespace: payments,",
        "{name: api-1, namespace: payments, annotations: {postern.dev/upgrades: 'spdy/3.1, tcp'},",
    );
    let (before, index) = (try_index(MESH), try_index(&annotated));
    let names = |index: &Index, pod: &str| Vec::<String>::from(spec(index, pod).upgrades);
    assert_eq!(names(&index, "api-1"), ["spdy/3.1", "tcp"]);
    assert!(names(&index, "api-2").is_empty() && names(&before, "api-1").is_empty());
    // Who names none gets what a sidecar without upgrades understands.
    let wire = before.policy("payments", "api", "api-1").unwrap().spec;
    assert!(!String::from_utf8(wire).unwrap().contains("upgrades"));
}

#[test]
fn policy_is_only_for_a_pod_of_the_callers_own_identity() {
    let index = try_index(MESH);
    for (namespace, account, pod, found) in [
        ("payments", "api", "api-1", true),
        ("payments", "default", "api-1", false),
        ("legacy", "api", "api-1", false),
        ("payments", "api", "api-9", false),
        ("payments", "api", "", false),
        ("legacy", "default", "old", true),
    ] {
        assert_eq!(index.policy(namespace, account, pod).is_some(), found, "{namespace} {account} {pod}");
    }
}

#[test]
fn equal_content_has_an_equal_version_and_a_change_elsewhere_changes_nothing() {
    let policy = |namespace: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: nothing, namespace: {namespace}}}\nspec: {{}}\n"
        )
    };
    let version = |index: &Index| index.policy("payments", "api", "api-1").unwrap().version;
    let destination = |index: &Index| {
        index.destination("10.1.0.1:80", &Asked::parse("10.1.0.1:80").unwrap(), "shop").version
    };
    let before = try_index(MESH);
    let elsewhere = with(&policy("legacy"));
    assert_eq!(version(&before), version(&try_index(MESH)));
    assert_eq!(version(&before), version(&elsewhere));
    let here = with(&policy("payments"));
    assert_ne!(version(&before), version(&here));
    assert_eq!(destination(&before), destination(&here), "a policy for callers does not move endpoints");
}

#[test]
fn the_authoritys_trust_domain_counts_and_a_difference_is_told() {
    let (documents, _) = documents::read(&[SourceFile { name: "mesh.yaml".into(), text: MESH.into() }]);
    let index = Index::build(documents, &"example.org".parse().unwrap());
    assert_eq!(spec(&index, "api-1").mesh.trust_domain, "example.org");
    assert!(index.warnings()[0].contains("trustDomain cluster.local"), "{:?}", index.warnings());
}

#[test]
fn only_pods_with_a_sidecar_are_listed_as_sidecars() {
    let index = try_index(MESH);
    assert_eq!(index.sidecars().collect::<Vec<_>>(), [("payments", "api", "api-1")]);
    assert!(index.runs("payments", "api") && !index.runs("payments", "default"));
}
