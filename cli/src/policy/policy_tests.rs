//! Questions about a small mesh, as tables: names, ports, modes, dry run, replay, and the round trip of generated policy.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{
    answer::{Answer, Stage, ask},
    flows::Flows,
    generate::generate,
    impact::{Impact, measure},
    mesh::Mesh,
    question::Question,
    test::outcome,
};
use crate::failure::Failure;

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: old}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart-api, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}}
    spec:
      serviceAccountName: cart
      containers: [{name: c, image: x, ports: [{containerPort: 8080}, {containerPort: 9000}, {containerPort: 9100}]}]
---
apiVersion: v1
kind: Service
metadata: {name: cart-api, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-raw, port: 9000}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: c, image: x, ports: [{containerPort: 7000}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: old, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: c, image: x, ports: [{containerPort: 7000}]}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: shop}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  mtls: {mode: STRICT}
  portLevelMtls: {9100: {mode: DISABLE}}
";
const ALLOW_WEB: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules:
    - from: [{source: {principals: [cluster.local/ns/shop/sa/web]}}]
      to: [{operation: {methods: [GET], paths: [/items, '/items/{*}']}}]
    - to: [{operation: {ports: ['9000']}}]
";

fn mesh(extra: &str) -> Mesh {
    Mesh::parse("mesh.yaml", &format!("{MESH}{extra}")).unwrap()
}

fn question(from: &str, to: &str) -> Question {
    Question {
        from: from.into(),
        to: to.into(),
        request: Some(("GET".into(), "/items".into())),
        port: Some(80),
        ..Question::default()
    }
}

fn answered(mesh: &Mesh, question: &Question) -> Result<Answer, Failure> {
    ask(mesh, question, false)
}

#[test]
fn callers_are_found_by_every_name_they_have_and_no_other() {
    let mesh = mesh(ALLOW_WEB);
    let web = Some("spiffe://cluster.local/ns/shop/sa/web");
    for (said, expected) in [
        ("shop/web", Ok(web)),
        ("web.shop", Ok(web)),
        ("spiffe://cluster.local/ns/shop/sa/web", Ok(web)),
        ("spiffe://other.example/ns/a/sa/b", Ok(Some("spiffe://other.example/ns/a/sa/b"))),
        ("shop/cart-api-1", Ok(Some("spiffe://cluster.local/ns/shop/sa/cart"))),
        ("cart-api", Ok(Some("spiffe://cluster.local/ns/shop/sa/cart"))),
        ("api", Ok(Some("spiffe://cluster.local/ns/shop/sa/cart"))),
        ("cart", Ok(Some("spiffe://cluster.local/ns/shop/sa/cart"))),
        ("robot", Ok(Some("spiffe://cluster.local/ns/shop/sa/robot"))),
        ("old/web", Ok(None)),
        ("web", Err("may mean several things")),
        ("nobody", Err("no workload, service or service account")),
        ("", Err("no workload")),
        ("spiffe://UPPER/ns/a", Err("SPIFFE ID")),
    ] {
        let answer = answered(&mesh, &Question { plaintext: false, ..question(said, "shop/cart-api") });
        match (answer, expected) {
            (Ok(answer), Ok(identity)) => assert_eq!(answer.from_identity.as_deref(), identity, "{said}"),
            (Err(failure), Err(part)) => assert!(failure.cause.contains(part), "{said}: {failure}"),
            (answer, expected) => panic!("{said}: {answer:?}, expected {expected:?}"),
        }
    }
}

#[test]
fn a_caller_of_another_trust_domain_reaches_policy_only_when_that_domain_is_federated() {
    const ALLOW_OTHER: &str = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  rules: [{from: [{source: {principals: [other.example/ns/a/sa/b]}}]}]
";
    const FEDERATED: &str = "
---
apiVersion: spire.spiffe.io/v1alpha1
kind: ClusterFederatedTrustDomain
metadata: {name: other}
spec:
  trustDomain: other.example
  bundleEndpointURL: https://bundles.other.example/
  bundleEndpointProfile: {type: https_web}
";
    let (with, without) = (mesh(&format!("{ALLOW_OTHER}{FEDERATED}")), mesh(ALLOW_OTHER));
    for (mesh, caller, allowed, stage) in [
        (&with, "spiffe://other.example/ns/a/sa/b", true, Stage::Policy),
        (&with, "spiffe://other.example/ns/a/sa/c", false, Stage::Policy),
        (&with, "spiffe://third.example/ns/a/sa/b", false, Stage::MutualTls),
        (&with, "spiffe://cluster.local/ns/a/sa/b", false, Stage::Policy),
        (&without, "spiffe://other.example/ns/a/sa/b", false, Stage::MutualTls),
    ] {
        let answer = answered(mesh, &question(caller, "shop/cart-api")).unwrap();
        assert_eq!((answer.allowed, answer.stage), (allowed, stage), "{caller}: {}", answer.reason);
        assert!(stage == Stage::Policy || answer.reason.contains("nor federated"), "{}", answer.reason);
    }
}

#[test]
fn a_service_port_becomes_the_port_that_policy_sees_and_it_is_said() {
    let mesh = mesh(ALLOW_WEB);
    let check = |to: &str, port: Option<u16>, expected: Result<(Option<u16>, u16), &str>| {
        let answer = answered(&mesh, &Question { port, ..question("shop/web", to) });
        match (answer, expected) {
            (Ok(answer), Ok(ports)) => {
                assert_eq!((answer.service_port, answer.port), ports, "{to} {port:?}");
                let is_translated = ports.0.is_some_and(|from| from != ports.1);
                assert_eq!(
                    answer.notes.iter().any(|note| note.contains("of the workload, which")),
                    is_translated
                );
            }
            (Err(failure), Err(part)) => assert!(failure.remedy.contains(part), "{to}: {failure}"),
            (answer, expected) => panic!("{to} {port:?}: {answer:?}, expected {expected:?}"),
        }
    };
    check("shop/cart-api", Some(80), Ok((Some(80), 8080)));
    check("shop/cart-api", Some(8080), Ok((None, 8080)));
    check("shop/cart-api", None, Err("80, 9000"));
    check("shop/cart-api-0", Some(80), Ok((None, 80)));
    check("shop/cart-api-0", None, Err("8080, 9000, 9100"));
    check("shop/web", None, Ok((None, 7000)));
}

#[test]
fn what_stands_before_policy_is_told_apart_from_policy() {
    let mesh = mesh(ALLOW_WEB);
    let base = question("shop/web", "shop/cart-api");
    let get = |path: &str| Some(("GET".to_owned(), path.to_owned()));
    for (question, allowed, stage) in [
        (base.clone(), true, Stage::Policy),
        (Question { plaintext: true, ..base.clone() }, false, Stage::MutualTls),
        (Question { from: "old/web".into(), ..base.clone() }, false, Stage::MutualTls),
        (Question { request: get("/a/%00"), ..base.clone() }, false, Stage::Request),
        (Question { request: get("/x/../items?q=1"), ..base.clone() }, true, Stage::Policy),
        (Question { request: get("/items/7"), ..base.clone() }, true, Stage::Policy),
        (Question { request: get("/items/7/8"), ..base.clone() }, false, Stage::Policy),
        (Question { request: None, ..base.clone() }, false, Stage::Policy),
        (Question { port: Some(9000), request: None, ..base.clone() }, true, Stage::Policy),
        // Declared as TCP: the request is not seen.
        (Question { port: Some(9000), request: get("/anything"), ..base.clone() }, true, Stage::Policy),
        // DISABLE: no identity to match.
        (Question { port: Some(9100), ..base.clone() }, false, Stage::Policy),
        (Question { to: "old/web".into(), port: None, ..base.clone() }, true, Stage::NoSidecar),
    ] {
        let answer = answered(&mesh, &question).unwrap();
        assert_eq!((answer.allowed, answer.stage), (allowed, stage), "{question:?}: {answer:?}");
    }
}

#[test]
fn headers_host_and_claims_are_facts_like_any_other() {
    let condition = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: cart, namespace: shop}
spec:
  rules:
    - to: [{operation: {hosts: [cart.example]}}]
    - when: [{key: 'request.headers[x-tenant]', values: [blue]}]
    - when: [{key: 'request.auth.claims[group]', values: [admin]}]
";
    let mesh = mesh(condition);
    let base = question("shop/web", "shop/cart-api");
    let claims = |group: &str| Some(serde_json::from_str(&format!("{{\"group\":[\"{group}\"]}}")).unwrap());
    for (question, allowed) in [
        (base.clone(), false),
        (Question { host: Some("Cart.Example".into()), ..base.clone() }, true),
        (Question { headers: vec![("X-Tenant".into(), "blue".into())], ..base.clone() }, true),
        (Question { headers: vec![("X-Tenant".into(), "red".into())], ..base.clone() }, false),
        (Question { claims: claims("admin"), ..base.clone() }, true),
        (Question { claims: claims("user"), ..base.clone() }, false),
    ] {
        assert_eq!(answered(&mesh, &question).unwrap().allowed, allowed, "{question:?}");
    }
}

#[test]
fn a_dry_run_policy_changes_nothing_and_says_what_it_would() {
    let dry = "
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: tried, namespace: shop, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
";
    let mesh = mesh(dry);
    let answer = answered(&mesh, &question("shop/web", "shop/cart-api")).unwrap();
    assert!(answer.allowed);
    let would = answer.would.unwrap();
    assert_eq!((would.allowed, would.policy.as_str(), would.rule), (false, "shop/tried", Some(0)));
    let post =
        Question { request: Some(("POST".into(), "/".into())), ..question("shop/web", "shop/cart-api") };
    assert_eq!(answered(&mesh, &post).unwrap().would, None);
}

#[test]
fn the_tree_shows_every_rule_and_agrees_with_the_verdict() {
    let mesh = mesh(ALLOW_WEB);
    for (path, allowed) in [("/items", true), ("/other", false)] {
        let question =
            Question { request: Some(("GET".into(), path.into())), ..question("shop/web", "shop/cart-api") };
        let answer = ask(&mesh, &question, true).unwrap();
        let policies = answer.policies.unwrap();
        assert_eq!(policies[0].rules.len(), 2);
        assert_eq!(policies[0].rules.iter().any(|rule| rule.matched), allowed);
        let path_condition = &policies[0].rules[0].to[0][1];
        assert_eq!((path_condition.holds, path_condition.saw.as_str()), (allowed, path));
        assert_eq!(policies[0].rules[1].to[0][0].saw, "8080");
    }
}

#[test]
fn tests_say_what_failed_and_which_rules_nobody_tried() {
    let rows = "
---
apiVersion: postern.dev/v1
kind: PolicyTest
metadata: {name: cart}
tests:
  - {from: shop/web, to: shop/cart-api, port: 80, method: GET, path: /items, expect: allow, because: rule 0}
  - {from: shop/web, to: shop/cart-api, port: 80, method: GET, path: /items, expect: deny}
  - {from: shop/web, to: shop/cart-api, port: 80, method: PUT, path: /items, expect: deny, because: paths}
  - {from: nobody, to: shop/cart-api, port: 80, method: PUT, path: /items, expect: deny}
";
    let outcome = outcome(&mesh(&format!("{ALLOW_WEB}{rows}")), Some(60)).unwrap();
    let failures: Vec<Option<&str>> =
        outcome.tests.iter().map(|row| row.failure.as_deref().and_then(|text| text.lines().next())).collect();
    assert_eq!(
        failures,
        [
            None,
            Some("expected deny, got allow"),
            Some("deny as expected, but not because of `paths`"),
            Some("the folder has no workload, service or service account `nobody`."),
        ]
    );
    assert!(!outcome.ok);
    assert_eq!((outcome.coverage.percent, outcome.coverage.unmatched[0].rule), (50, 1));
    assert!(outcome.tests[0].line > 40);
}

fn line(
    source: Option<&str>,
    address: &str,
    port: u16,
    request: Option<(&str, &str)>,
    decision: &str,
) -> String {
    let mut line = serde_json::json!({
        "timestamp": "2026-03-04T05:06:07.000Z", "postern.direction": "inbound", "postern.decision": decision,
        "postern.destination.id": "spiffe://cluster.local/ns/shop/sa/cart",
        "network.peer.address": address, "network.local.address": "10.9.9.9", "network.local.port": port,
    });
    if let Some(source) = source {
        line["postern.source.id"] = format!("spiffe://cluster.local/ns/shop/sa/{source}").into();
    }
    if let Some((method, path)) = request {
        line["http.request.method"] = method.into();
        line["url.path"] = path.into();
        line["server.address"] = "cart-api".into();
    }
    format!("{line}\n")
}

/// A sidecar sees requests on a port declared as TCP only when the declaration is newer than the log.
fn flows(declared_since: bool) -> Flows {
    let mut log = String::new();
    for number in 0..20 {
        log += &line(Some("web"), "10.0.0.1", 8080, Some(("GET", &format!("/items/{number}"))), "allow");
        log +=
            &line(Some("web"), "10.0.0.1", 8080, Some(("GET", &format!("/items/{number}/photo"))), "allow");
    }
    for path in ["/", "/items", "/items/", "/a//b", "/star*", "*", "/a|b", "/quote\"\\", "/tail/{x}", "/ü"] {
        log += &line(Some("web"), "10.0.0.1", 8080, Some(("GET", path)), "allow");
        log += &line(Some("robot"), "10.0.0.2", 8080, Some(("M-SEARCH", path)), "allow");
    }
    log += &line(Some("web"), "10.0.0.1", 8080, Some(("POST", "/items")), "allow");
    log += &line(Some("web"), "10.0.0.1", 8080, None, "allow");
    let request = declared_since.then_some(("GET", "/on-a-tcp-port"));
    log += &line(Some("web"), "10.0.0.1", 9000, request, "allow");
    log += &line(None, "10.0.0.3", 9100, Some(("GET", "/metrics")), "allow");
    log += &line(None, "fd00::3", 9100, None, "allow");
    log += &line(Some("thief"), "10.0.0.4", 8080, Some(("GET", "/items")), "deny");
    Flows::read(log.as_bytes()).unwrap()
}

#[test]
fn generated_policy_allows_all_that_was_observed_as_allowed_and_nothing_that_was_denied() {
    let plain = mesh("");
    for with_folder in [true, false] {
        let flows = flows(with_folder);
        for threshold in [0, 3, 10, 1000] {
            let generated = generate(&flows, with_folder.then_some(&plain), threshold).unwrap();
            let enforced = generated.replace("istio.io/dry-run: \"true\"", "example.org/was: \"dry run\"");
            let in_dry_run = measure(&plain, &mesh(&format!("\n{generated}")), &flows, 10);
            let in_force = measure(&plain, &mesh(&format!("\n{enforced}")), &flows, 10);
            let place = format!("folder {with_folder}, threshold {threshold}");
            assert!(in_dry_run.becomes_denied.is_empty(), "{place}: {in_dry_run:#?}");
            let only_thief = |changes: &[super::impact::Change]| {
                !changes.is_empty() && changes.iter().all(|change| change.from == "shop/thief")
            };
            assert!(
                only_thief(&in_dry_run.would_change),
                "{place}: {:#?}\n{generated}",
                in_dry_run.would_change
            );
            assert!(
                only_thief(&in_force.becomes_denied),
                "{place}: {:#?}\n{generated}",
                in_force.becomes_denied
            );
        }
    }
}

#[test]
fn generated_policy_says_what_it_is_worth() {
    let text = generate(&flows(false), Some(&mesh("")), 10).unwrap();
    for part in [
        "OBSERVED IS NOT INTENDED",
        "app: \"cart\"",
        "\"/items/{*}\" # 20 calls",
        "\"/items/{*}/photo\"",
        "PLAINTEXT",
        "WIDER",
        "Left out: 1: policy denied it",
        "istio.io/dry-run: \"true\"",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(generate(&flows(false), None, 10).unwrap().contains("WHOLE NAMESPACE"));
}

#[test]
fn impact_counts_both_directions_and_names_what_it_cannot_judge() {
    let mut log = String::new();
    for _ in 0..3 {
        log += &line(Some("web"), "10.0.0.1", 8080, Some(("POST", "/items")), "allow");
    }
    log += &line(Some("web"), "10.0.0.1", 8080, Some(("GET", "/items")), "allow");
    log +=
        &line(Some("web"), "10.0.0.1", 8080, Some(("GET", "/gone")), "deny").replace("sa/cart", "sa/unknown");
    log += "noise\n";
    let flows = Flows::read(log.as_bytes()).unwrap();
    let (open, closed) = (mesh(""), mesh(ALLOW_WEB));
    let measured = |old: &Mesh, new: &Mesh| -> Impact { measure(old, new, &flows, 10) };
    let tighter = measured(&open, &closed);
    assert_eq!(tighter.becomes_denied.len(), 1);
    assert_eq!(tighter.becomes_denied[0].seen.count, 3);
    assert_eq!(tighter.becomes_denied[0].method.as_deref(), Some("POST"));
    assert_eq!(tighter.not_judged.values().sum::<u64>(), 2);
    let wider = measured(&closed, &open);
    assert_eq!((wider.becomes_denied.len(), wider.becomes_allowed.len()), (0, 1));
    assert_eq!(wider.recorded_otherwise, 3);
    let same = measured(&open, &open);
    assert!(same.becomes_denied.is_empty() && same.becomes_allowed.is_empty());
}
