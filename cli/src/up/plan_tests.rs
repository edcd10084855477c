//! Tables of plans: addresses, endpoints, differences, and which pod a person means.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;
use postern_config::documents::{Deployment, Origin, kubernetes::ContainerPort};

fn located<T>(value: T) -> Located<T> {
    Located { origin: Origin::default(), value }
}

fn metadata(namespace: &str, name: &str) -> Metadata {
    Metadata { name: name.into(), namespace: namespace.into(), ..Metadata::default() }
}

fn deployment(namespace: &str, name: &str, replicas: u32) -> Deployment {
    let mut template = kubernetes::Pod::default();
    template.metadata.labels.insert("app".into(), name.into());
    template.spec.containers.push(Container {
        name: "app".into(),
        command: vec!["sleep".into(), "1000".into()],
        ports: vec![ContainerPort { name: "http".into(), port: 8080 }],
        ..Container::default()
    });
    Deployment { metadata: metadata(namespace, name), replicas, template }
}

fn service(namespace: &str, name: &str, target: TargetPort) -> kubernetes::Service {
    kubernetes::Service {
        metadata: metadata(namespace, name),
        selector: [("app".to_owned(), name.to_owned())].into(),
        ports: vec![kubernetes::ServicePort { port: 80, target, ..Default::default() }],
        ..Default::default()
    }
}

fn sample() -> Documents {
    Documents {
        deployments: vec![located(deployment("shop", "web", 2)), located(deployment("pay", "api", 1))],
        services: vec![
            located(service("shop", "web", TargetPort::Name("http".into()))),
            located(service("pay", "api", TargetPort::Number(0))),
        ],
        ..Documents::default()
    }
}

fn make(documents: &Documents, previous: &Plan) -> Plan {
    Plan::make(documents, previous).unwrap()
}

fn addresses(plan: &Plan) -> Vec<String> {
    plan.pods.values().map(|p| format!("{} {}", p.key, p.addresses().0)).collect()
}

#[test]
fn replicas_become_numbered_pods_in_sorted_order() {
    let plan = make(&sample(), &Plan::default());
    assert_eq!(addresses(&plan), ["pay/api-0 10.244.0.2", "shop/web-0 10.244.0.3", "shop/web-1 10.244.0.4"]);
    assert_eq!(plan.pods.values().next().unwrap().service_account, "default");
    assert_eq!(plan.documents.pods.len(), 3);
    assert!(plan.documents.deployments.is_empty());
}

#[test]
fn whoever_stays_keeps_the_address() {
    let first = make(&sample(), &Plan::default());
    let mut documents = sample();
    documents.deployments.remove(1);
    documents.deployments.push(located(deployment("alpha", "new", 2)));
    let second = make(&documents, &first);
    assert_eq!(
        addresses(&second),
        [
            "alpha/new-0 10.244.0.2",
            "alpha/new-1 10.244.0.5",
            "shop/web-0 10.244.0.3",
            "shop/web-1 10.244.0.4"
        ]
    );
}

#[test]
fn the_last_octet_is_never_a_broadcast_look_alike() {
    let mut documents = Documents::default();
    documents.deployments.push(located(deployment("a", "many", 300)));
    let plan = make(&documents, &Plan::default());
    assert_eq!(plan.pods.len(), 300);
    assert!(plan.pods.values().all(|p| p.addresses().0.octets()[3] != 255));
}

#[test]
fn services_get_both_families_and_their_endpoints() {
    let plan = make(&sample(), &Plan::default());
    let web = &plan.services[&Key::new("shop", "web")];
    assert_eq!(
        web.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.96.0.2", "fd00:96::2"]
    );
    assert_eq!(
        web.ports[0].endpoints,
        [(Key::new("shop", "web-0"), 8080), (Key::new("shop", "web-1"), 8080)]
    );
    assert_eq!(plan.services[&Key::new("pay", "api")].ports[0].endpoints, [(Key::new("pay", "api-0"), 80)]);
}

#[test]
fn an_explicit_cluster_ip_is_honoured_and_not_given_twice() {
    let mut documents = sample();
    documents.services[0].value.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
    let plan = make(&documents, &Plan::default());
    assert_eq!(plan.services[&Key::new("shop", "web")].addresses, ["10.96.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(plan.services[&Key::new("pay", "api")].addresses[0].to_string(), "10.96.0.2");
    documents.services[1].value.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
    assert!(Plan::make(&documents, &Plan::default()).unwrap_err().cause.contains("both claim"));
}

#[test]
fn a_headless_service_has_no_address_of_its_own() {
    let mut documents = sample();
    documents.services[0].value.headless = true;
    let plan = make(&documents, &Plan::default());
    assert!(plan.services[&Key::new("shop", "web")].addresses.is_empty());
    assert!(plan.virtual_addresses(true).iter().all(|v| v.endpoints.iter().all(|e| e.port() == 80)));
}

#[test]
fn a_service_without_selector_has_no_endpoints() {
    let mut documents = sample();
    documents.services[0].value.selector.clear();
    let plan = make(&documents, &Plan::default());
    assert!(plan.services[&Key::new("shop", "web")].ports[0].endpoints.is_empty());
}

#[test]
fn only_udp_is_left_where_a_sidecar_answers_for_tcp() {
    let mut documents = sample();
    documents.services[0].value.ports[0].udp = true;
    let plan = make(&documents, &Plan::default());
    assert_eq!(plan.virtual_addresses(true).len(), 4);
    assert!(plan.virtual_addresses(false).iter().all(|v| v.udp));
    assert_eq!(plan.virtual_addresses(false).len(), 2);
}

fn check_difference(edit: impl FnOnce(&mut Documents), expected: Difference) {
    let before = make(&sample(), &Plan::default());
    let mut documents = sample();
    edit(&mut documents);
    assert_eq!(before.difference(&make(&documents, &before)), expected);
}

#[test]
fn the_same_documents_make_no_difference() {
    check_difference(|_| {}, Difference::default());
}

#[test]
fn more_replicas_only_add() {
    check_difference(
        |d| d.deployments[0].value.replicas = 3,
        Difference { added: vec![Key::new("shop", "web-2")], services: true, ..Difference::default() },
    );
}

#[test]
fn fewer_replicas_only_remove() {
    check_difference(
        |d| d.deployments[0].value.replicas = 1,
        Difference { removed: vec![Key::new("shop", "web-1")], services: true, ..Difference::default() },
    );
}

#[test]
fn another_command_restarts_the_pods_of_that_deployment_only() {
    check_difference(
        |d| d.deployments[1].value.template.spec.containers[0].args = vec!["x".into()],
        Difference { changed: vec![Key::new("pay", "api-0")], ..Difference::default() },
    );
}

#[test]
fn another_service_account_restarts_the_pod() {
    check_difference(
        |d| d.deployments[1].value.template.spec.service_account = "other".into(),
        Difference { changed: vec![Key::new("pay", "api-0")], ..Difference::default() },
    );
}

#[test]
fn another_label_changes_services_but_restarts_nothing() {
    check_difference(
        |d| {
            d.deployments[1].value.template.metadata.labels.insert("app".into(), "x".into());
        },
        Difference { services: true, ..Difference::default() },
    );
}

#[test]
fn a_new_service_restarts_nothing() {
    check_difference(
        |d| d.services.push(located(service("shop", "more", TargetPort::Number(9)))),
        Difference { services: true, ..Difference::default() },
    );
}

#[test]
fn a_person_may_name_a_pod_in_many_ways() {
    let plan = make(&sample(), &Plan::default());
    for (said, means) in [
        ("web-1", "shop/web-1"),
        ("shop/web-1", "shop/web-1"),
        ("web", "shop/web-0"),
        ("shop/web", "shop/web-0"),
        ("api", "pay/api-0"),
        ("pay/", "pay/api-0"),
        ("ap", "pay/api-0"),
    ] {
        assert_eq!(plan.pod(said).unwrap().key.to_string(), means, "{said}");
    }
    assert!(plan.pod("we").unwrap_err().cause.contains("several"));
    let none = plan.pod("nothing").unwrap_err();
    assert!(none.cause.contains("no pod") && none.remedy.contains("pay/api-0"), "{none}");
}

#[test]
fn exclusions_are_read_from_istio_annotations() {
    let mut documents = sample();
    let annotations = &mut documents.deployments[1].value.template.metadata.annotations;
    annotations.insert("traffic.sidecar.istio.io/excludeOutboundPorts".into(), "3306, 22".into());
    annotations.insert("traffic.sidecar.istio.io/excludeOutboundIPRanges".into(), "10.0.0.0/8".into());
    let plan = make(&documents, &Plan::default());
    let exclusions = &plan.pods[&Key::new("pay", "api-0")].exclusions;
    assert_eq!(exclusions.outbound_ports, [3306, 22]);
    assert_eq!(exclusions.outbound_ranges[0].to_string(), "10.0.0.0/8");
    let annotations = &mut documents.deployments[1].value.template.metadata.annotations;
    annotations.insert("traffic.sidecar.istio.io/excludeInboundPorts".into(), "ssh".into());
    assert!(Plan::make(&documents, &Plan::default()).unwrap_err().cause.contains("`ssh`"));
}

#[test]
fn the_apps_own_metrics_are_read_from_the_annotations_of_prometheus() {
    let mut documents = sample();
    let mut with = |scrape: &str, port: &str| {
        let annotations = &mut documents.deployments[1].value.template.metadata.annotations;
        annotations.insert("prometheus.io/scrape".into(), scrape.into());
        annotations.insert("prometheus.io/port".into(), port.into());
        annotations.insert("prometheus.io/path".into(), "/m".into());
        Plan::make(&documents, &Plan::default())
    };
    let of = |plan: &Plan| plan.pods[&Key::new("pay", "api-0")].app_metrics.clone();
    assert_eq!(of(&make(&sample(), &Plan::default())), None);
    let page = of(&with("true", "9102").unwrap()).unwrap();
    assert_eq!((page.address.port(), page.path.as_str()), (9102, "/m"));
    assert_eq!(of(&with("false", "9102").unwrap()), None);
    // Written for Istio after its injector was there: the sidecar's own.
    assert_eq!(of(&with("true", "15020").unwrap()), None);
    assert!(with("true", "http").unwrap_err().cause.contains("`http`"));
}

#[test]
fn the_interception_mode_is_read_from_istios_annotation_and_none_is_refused() {
    let mut documents = sample();
    let mut with = |mode: &str| {
        let annotations = &mut documents.deployments[1].value.template.metadata.annotations;
        annotations.insert("sidecar.istio.io/interceptionMode".into(), mode.into());
        Plan::make(&documents, &Plan::default())
    };
    let of = |plan: &Plan| plan.pods[&Key::new("pay", "api-0")].interception;
    assert_eq!(of(&make(&sample(), &Plan::default())), InterceptionMode::Redirect);
    assert_eq!(of(&with("REDIRECT").unwrap()), InterceptionMode::Redirect);
    let mut plan = with("TPROXY").unwrap();
    assert_eq!(of(&plan), InterceptionMode::Tproxy);
    let layout = super::super::loopback::Layout::new(0);
    layout.admit(&plan).expect("without a sidecar nothing is intercepted");
    plan.pods.values_mut().for_each(|pod| pod.injected = true);
    let refused = layout.admit(&plan).unwrap_err();
    assert!(refused.cause.contains("pay/api-0 wants TPROXY"), "{refused:?}");
    for wrong in ["NONE", "tproxy", ""] {
        assert!(with(wrong).unwrap_err().cause.contains("interceptionMode"), "{wrong}");
    }
}

#[test]
fn published_pods_and_services_carry_their_addresses() {
    let plan = make(&sample(), &Plan::default());
    let documents = plan.published(|pod| (vec![pod.addresses().0.into()], [("a".into(), "b".into())].into()));
    assert!(
        documents.pods.iter().all(|p| p.value.pod_ips.len() == 1 && p.value.metadata.annotations["a"] == "b")
    );
    assert!(documents.services.iter().all(|s| s.value.cluster_ips.len() == 2));
}
