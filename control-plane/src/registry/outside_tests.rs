//! Tables of ServiceEntry and DestinationRule: documents in, answers to sidecars out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{Index, destination::Asked};
use postern_api::v1::{self, destination::Kind};
use postern_config::documents::{self, SourceFile, destination_rule::Traffic};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio-injection: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: api-1, namespace: shop, labels: {app: api}}
spec: {serviceAccountName: api, containers: [{name: app, ports: [{containerPort: 80}]}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: old-1, namespace: legacy, labels: {app: old}}
spec: {containers: [{name: app, ports: [{containerPort: 80}]}]}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.1.0.1, selector: {app: api}, ports: [{name: http, port: 80}, {name: web, port: 81, targetPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: old, namespace: legacy}
spec: {clusterIP: 10.1.0.2, selector: {app: old}, ports: [{name: http, port: 80}]}
";

fn index(more: &str) -> Index {
    let file = SourceFile { name: "mesh.yaml".into(), text: format!("{MESH}{more}") };
    let (documents, problems) = documents::read(&[file]);
    let errors: Vec<String> = problems
        .iter()
        .filter(|p| p.severity == postern_config::Severity::Error)
        .map(ToString::to_string)
        .collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
    Index::build(documents, &"cluster.local".parse().unwrap())
}

fn document(kind: &str, name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{{spec}}}\n"
    )
}

fn ask(index: &Index, asked: &str, namespace: &str) -> Kind {
    index.destination(asked, &Asked::parse(asked).unwrap(), namespace).destination.kind.unwrap()
}

/// Where a call goes, in words.
fn leads(index: &Index, asked: &str, namespace: &str) -> String {
    match ask(index, asked, namespace) {
        Kind::Service(service) => {
            let dials = service.endpoints.iter().map(|endpoint| match endpoint.identity.as_str() {
                "" => endpoint.dial.clone(),
                identity => format!("{} as {identity}", endpoint.dial),
            });
            let lookups = service.lookups.iter().map(|lookup| format!("?{}:{}", lookup.name, lookup.port));
            let within = service.original_within.iter().map(|block| format!("={block}"));
            let all: Vec<String> = dials.chain(lookups).chain(within).collect();
            format!("{} {}", service.host, all.join(" "))
        }
        Kind::Outside(v1::Outside { by_name: true, .. }) => "by name".into(),
        Kind::Outside(_) => "outside".into(),
        Kind::Workload(workload) => workload.workload,
    }
}

#[test]
fn what_is_asked_has_one_spelling() {
    assert_eq!(Asked::parse("//api.example.com:443"), Some(Asked::Name("api.example.com".into(), 443)));
    assert!(matches!(Asked::parse("[fd00::1]:80"), Some(Asked::Address(_))));
    for bad in [
        "api.example.com:443",
        "//:443",
        "//a b:443",
        "//API.example.com:443",
        "//a:",
        "//a:99999",
        "//a",
        "",
    ] {
        assert_eq!(Asked::parse(bad), None, "{bad}");
    }
}

#[test]
fn an_entry_is_found_by_name_where_calls_carry_one_and_by_address_where_they_do_not() {
    let entry = |spec: &str| index(&document("ServiceEntry", "e", "shop", spec));
    let https = "ports: [{number: 443, name: https, protocol: TLS}]";
    let dns = entry(&format!("hosts: [api.example.com], resolution: DNS, {https}"));
    assert_eq!(leads(&dns, "192.0.2.1:443", "shop"), "by name");
    assert_eq!(leads(&dns, "192.0.2.1:80", "shop"), "outside");
    assert_eq!(leads(&dns, "//api.example.com:443", "shop"), "api.example.com ?api.example.com:443");
    assert_eq!(leads(&dns, "//api.example.com:80", "shop"), "outside");
    assert_eq!(leads(&dns, "//x.api.example.com:443", "shop"), "outside");

    let wild = entry(&format!(
        "hosts: ['*.example.com', a.example.com], resolution: NONE, addresses: [192.0.2.0/24], {https}"
    ));
    assert_eq!(leads(&wild, "//b.c.example.com:443", "shop"), "*.example.com =192.0.2.0/24");
    assert_eq!(leads(&wild, "//a.example.com:443", "shop"), "a.example.com =192.0.2.0/24");
    assert_eq!(leads(&wild, "//example.com:443", "shop"), "outside");

    let tcp = "ports: [{number: 5432, name: tcp, protocol: TCP, targetPort: 15432}]";
    let database = entry(&format!(
        "hosts: [db.example.com], addresses: [192.0.2.9, 198.51.100.0/24], resolution: STATIC, \
         endpoints: [{{address: 203.0.113.1}}, {{address: 203.0.113.2, ports: {{tcp: 7}}}}], {tcp}"
    ));
    let expected = "db.example.com 203.0.113.1:15432 203.0.113.2:7";
    assert_eq!(leads(&database, "192.0.2.9:5432", "shop"), expected);
    assert_eq!(leads(&database, "198.51.100.77:5432", "shop"), expected);
    assert_eq!(
        leads(&database, "203.0.113.1:5432", "shop"),
        "outside",
        "endpoints count only without addresses"
    );
    assert_eq!(leads(&database, "//db.example.com:5432", "shop"), "outside", "bytes carry no name");

    // A Host that is an address is one of the entry's.
    let literal = entry(
        "hosts: [x.example.com], addresses: [192.0.2.9], resolution: NONE, ports: [{number: 80, name: http}]",
    );
    assert_eq!(leads(&literal, "//192.0.2.9:80", "shop"), "x.example.com =192.0.2.9/32");
    assert_eq!(leads(&literal, "//192.0.2.8:80", "shop"), "outside");
}

#[test]
fn a_pod_of_the_mesh_is_never_plain_because_an_entry_lists_its_address() {
    let index = index(&document(
        "ServiceEntry",
        "e",
        "shop",
        "hosts: [api.example.com], resolution: STATIC, endpoints: [{address: 10.0.0.1}, {address: 192.0.2.1}], \
         ports: [{number: 80, name: http}]",
    ));
    assert_eq!(
        leads(&index, "//api.example.com:80", "shop"),
        "api.example.com 10.0.0.1:80 as spiffe://cluster.local/ns/shop/sa/api 192.0.2.1:80"
    );
    // Nor does an entry take a service's or a pod's own address away.
    assert!(leads(&index, "10.1.0.1:80", "shop").starts_with("api.shop.svc.cluster.local "));
    assert_eq!(leads(&index, "10.0.0.1:80", "shop"), "shop/api-1");
}

#[test]
fn an_entry_of_the_callers_own_namespace_comes_first_and_others_only_where_they_are_exported() {
    let entry = |name: &str, namespace: &str, to: &str, address: &str| {
        document(
            "ServiceEntry",
            name,
            namespace,
            &format!(
                "hosts: [api.example.com], exportTo: [{to}], resolution: STATIC, endpoints: [{{address: {address}}}], \
                 ports: [{{number: 80, name: http}}]"
            ),
        )
    };
    let index = index(&(entry("a", "bank", "'*'", "192.0.2.1") + &entry("b", "shop", "'.'", "192.0.2.2")));
    assert_eq!(leads(&index, "//api.example.com:80", "shop"), "api.example.com 192.0.2.2:80");
    assert_eq!(leads(&index, "//api.example.com:80", "bank"), "api.example.com 192.0.2.1:80");
    assert_eq!(leads(&index, "//api.example.com:80", "legacy"), "api.example.com 192.0.2.1:80");
}

/// `maxConnections` that holds for a call to a service.
fn limit(index: &Index, address: &str, namespace: &str) -> Option<u32> {
    let Kind::Service(service) = ask(index, address, namespace) else { panic!() };
    if service.traffic.is_empty() {
        return None;
    }
    serde_json::from_slice::<Traffic>(&service.traffic).unwrap().max_connections
}

#[test]
fn the_rule_of_the_caller_comes_before_the_services_and_the_roots_and_the_host_itself_before_wildcards() {
    let rule = |namespace: &str, host: &str, most: u32, more: &str| {
        document(
            "DestinationRule",
            &format!("r{most}"),
            namespace,
            &format!(
                "host: '{host}', {more} trafficPolicy: {{connectionPool: {{tcp: {{maxConnections: {most}}}}}}}"
            ),
        )
    };
    let api = "api.shop.svc.cluster.local";
    for (rules, expected) in [
        (rule("shop", "api", 1, ""), Some(1)),
        (rule("bank", "api", 1, ""), None),
        (rule("bank", api, 1, ""), Some(1)),
        (rule("shop", api, 1, "") + &rule("bank", "*", 2, ""), Some(2)),
        (rule("istio-system", api, 1, "") + &rule("shop", "*.cluster.local", 2, ""), Some(2)),
        (rule("istio-system", "*.local", 1, ""), Some(1)),
        (rule("legacy", api, 1, ""), None),
        (rule("shop", api, 1, "exportTo: ['.'],"), None),
        (rule("shop", api, 1, "exportTo: [bank],"), Some(1)),
        (
            rule("shop", "*.svc.cluster.local", 1, "") + &rule("shop", "*.shop.svc.cluster.local", 2, ""),
            Some(2),
        ),
        (rule("shop", "*.shop.svc.cluster.local", 1, "") + &rule("shop", api, 2, ""), Some(2)),
    ] {
        assert_eq!(limit(&index(&rules), "10.1.0.1:80", "bank"), expected, "{rules}");
    }
}

#[test]
fn settings_of_a_port_are_that_ports_alone() {
    let index = index(&document(
        "DestinationRule",
        "r",
        "shop",
        "host: api, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}, \
         portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 2}}}]}",
    ));
    assert_eq!(limit(&index, "10.1.0.1:80", "shop"), Some(1));
    assert_eq!(limit(&index, "10.1.0.1:81", "shop"), Some(2));
}

#[test]
fn tls_disable_takes_the_identity_and_istio_mutual_whoever_has_none() {
    let rule = |host: &str, mode: &str| {
        index(&document(
            "DestinationRule",
            "r",
            "shop",
            &format!("host: {host}, trafficPolicy: {{tls: {{mode: {mode}}}}}"),
        ))
    };
    let (api, old) = ("api.shop.svc.cluster.local", "old.legacy.svc.cluster.local");
    let encrypted = format!("{api} 10.0.0.1:80 as spiffe://cluster.local/ns/shop/sa/api");
    assert_eq!(leads(&rule(api, "DISABLE"), "10.1.0.1:80", "shop"), format!("{api} 10.0.0.1:80"));
    assert_eq!(leads(&rule(api, "ISTIO_MUTUAL"), "10.1.0.1:80", "shop"), encrypted);
    assert_eq!(leads(&rule(old, "DISABLE"), "10.1.0.1:80", "shop"), encrypted);
    assert_eq!(leads(&rule(old, "ISTIO_MUTUAL"), "10.1.0.2:80", "shop"), format!("{old} "));
}

#[test]
fn the_rule_of_a_headless_service_holds_for_its_pods_which_are_called_by_their_own_addresses() {
    let service = |address: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: pods, namespace: shop}}\n\
             spec: {{clusterIP: {address}, selector: {{app: api}}, ports: [{{name: http, port: 8080, targetPort: 80}}]}}\n"
        )
    };
    let rule = |mode: &str| {
        document(
            "DestinationRule",
            "r",
            "shop",
            &format!(
                "host: pods, trafficPolicy: {{tls: {{mode: {mode}}}, connectionPool: {{tcp: {{maxConnections: 7}}}}}}"
            ),
        )
    };
    let headless = index(&(service("None") + &rule("ISTIO_MUTUAL")));
    assert_eq!(limit(&headless, "10.0.0.1:80", "bank"), Some(7));
    let identity = "spiffe://cluster.local/ns/shop/sa/api";
    let expected = format!("api-1.pods.shop.svc.cluster.local 10.0.0.1:80 as {identity}");
    assert_eq!(leads(&headless, "10.0.0.1:80", "bank"), expected);
    let plain = index(&(service("None") + &rule("DISABLE")));
    assert_eq!(leads(&plain, "10.0.0.1:80", "bank"), "api-1.pods.shop.svc.cluster.local 10.0.0.1:80");
    // Another port, another pod, a service that has an address, no service: the pod as it is.
    for (index, address) in [
        (&headless, "10.0.0.1:81"),
        (&headless, "10.0.0.2:80"),
        (&index(&(service("10.1.0.9") + &rule("DISABLE"))), "10.0.0.1:80"),
        (&index(&rule("DISABLE")), "10.0.0.1:80"),
    ] {
        assert!(matches!(ask(index, address, "bank"), Kind::Workload(_)), "{address}");
    }
}
