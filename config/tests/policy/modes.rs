//! PeerAuthentication: scope, precedence, ports (reference 1.2, 1.9), and the declared protocol of a port (1.4).

use super::given::{documents, labels, peer_authentication, workload};
use postern_config::Snapshot;
use postern_config::documents::peer_authentication::MtlsMode::{self, Disable, Permissive, Strict, Unset};
use postern_config::documents::{Documents, PeerAuthentication};
use postern_config::select::{effective_mode, inbound_spec};
use postern_config::snapshot::{DeclaredPort, Protocol, Workload};

const APP: &[(&str, &str)] = &[("app", "payments-api")];

/// `expected`: the mode of port 8080, and of port 9999, which nothing declares. The client side, which asks per
/// endpoint, has to come to the same.
fn check(input: Vec<PeerAuthentication>, expected: (MtlsMode, MtlsMode)) {
    check_workload(workload(), input, expected);
}

fn check_workload(workload: Workload, mut input: Vec<PeerAuthentication>, expected: (MtlsMode, MtlsMode)) {
    for _ in 0..2 {
        let documents = documents(input.clone(), Vec::new());
        let snapshot = Snapshot::compile(inbound_spec(&documents, workload.clone(), Vec::new())).unwrap();
        assert_eq!((snapshot.mtls_mode(8080), snapshot.mtls_mode(9999)), expected, "{input:?}");
        let asked = |port| effective_mode(&documents, &workload.namespace, &workload.labels, port);
        assert_eq!((asked(8080), asked(9999)), expected, "client side: {input:?}");
        // The order of documents must not count.
        input.reverse();
    }
}

fn mesh(mode: MtlsMode) -> PeerAuthentication {
    peer_authentication("istio-system", "default", &[], mode)
}

fn namespace(mode: MtlsMode) -> PeerAuthentication {
    peer_authentication("payments", "default", &[], mode)
}

fn app(mode: MtlsMode) -> PeerAuthentication {
    peer_authentication("payments", "app", APP, mode)
}

fn named(mut document: PeerAuthentication, name: &str, created: Option<&str>) -> PeerAuthentication {
    document.metadata.name = name.into();
    document.metadata.creation_timestamp = created.map(Into::into);
    document
}

fn with_port(mut document: PeerAuthentication, port: u16, mode: MtlsMode) -> PeerAuthentication {
    document.port_level.insert(port, mode);
    document
}

#[test]
fn without_any_document_the_mode_is_permissive() {
    check(vec![], (Permissive, Permissive));
}

#[test]
fn the_nearer_level_wins() {
    check(vec![mesh(Strict)], (Strict, Strict));
    check(vec![mesh(Strict), namespace(Disable)], (Disable, Disable));
    check(vec![namespace(Strict), app(Disable)], (Disable, Disable));
    check(vec![mesh(Strict), app(Disable)], (Disable, Disable));
    check(vec![mesh(Disable), namespace(Permissive), app(Strict)], (Strict, Strict));
}

#[test]
fn a_selector_in_the_root_namespace_disables_the_document() {
    let ignored = peer_authentication("istio-system", "ignored", APP, Strict);
    check(vec![ignored.clone()], (Permissive, Permissive));
    check(vec![mesh(Disable), with_port(ignored.clone(), 8080, Strict)], (Disable, Disable));
    let in_root = Workload { namespace: "istio-system".into(), ..workload() };
    check_workload(in_root, vec![ignored], (Permissive, Permissive));
}

#[test]
fn a_workload_in_the_root_namespace_gets_only_the_mesh_policy() {
    let in_root = Workload { namespace: "istio-system".into(), ..workload() };
    check_workload(in_root, vec![mesh(Strict), namespace(Disable), app(Disable)], (Strict, Strict));
}

#[test]
fn documents_of_other_namespaces_and_other_labels_do_not_count() {
    check(vec![peer_authentication("other", "default", &[], Strict)], (Permissive, Permissive));
    check(vec![peer_authentication("other", "app", APP, Strict)], (Permissive, Permissive));
    let two = &[("app", "payments-api"), ("version", "v2")];
    check(vec![peer_authentication("payments", "app", two, Strict)], (Permissive, Permissive));
    check(vec![peer_authentication("payments", "app", APP, Strict)], (Strict, Strict));
}

#[test]
fn the_oldest_of_a_level_wins() {
    let (older, younger) = (Some("2026-01-01T00:00:00Z"), Some("2026-01-02T00:00:00Z"));
    for level in [mesh, namespace, app] {
        let pair = vec![named(level(Strict), "z", older), named(level(Disable), "a", younger)];
        check(pair, (Strict, Strict));
    }
}

#[test]
fn time_is_compared_as_time_and_ties_go_by_name() {
    let zoned = Some("2026-01-01T02:00:00+02:00");
    let pair = vec![
        named(namespace(Strict), "z", zoned),
        named(namespace(Disable), "a", Some("2026-01-01T00:00:01Z")),
    ];
    check(pair, (Strict, Strict));
    let tie = Some("2026-01-01T00:00:00Z");
    check(vec![named(namespace(Disable), "b", tie), named(namespace(Strict), "a", tie)], (Strict, Strict));
    check(vec![named(namespace(Disable), "b", None), named(namespace(Strict), "a", None)], (Strict, Strict));
    check(vec![named(namespace(Disable), "a", tie), named(namespace(Strict), "b", None)], (Strict, Strict));
}

#[test]
fn ports_of_several_workload_documents_are_not_merged() {
    let older = with_port(named(app(Permissive), "z", Some("2026-01-01T00:00:00Z")), 8080, Strict);
    let younger = with_port(named(app(Disable), "a", Some("2026-01-02T00:00:00Z")), 9999, Disable);
    check(vec![older, younger], (Strict, Permissive));
}

#[test]
fn unset_inherits_from_the_level_above() {
    check(vec![mesh(Unset)], (Permissive, Permissive));
    check(vec![mesh(Strict), app(Unset)], (Strict, Strict));
    check(vec![namespace(Strict), app(Unset)], (Strict, Strict));
    check(vec![mesh(Strict), namespace(Unset), app(Unset)], (Strict, Strict));
    check(vec![mesh(Disable), namespace(Strict), app(Unset)], (Strict, Strict));
}

#[test]
fn a_port_has_its_own_mode_or_the_resolved_one() {
    check(vec![with_port(app(Strict), 8080, Disable)], (Disable, Strict));
    check(vec![with_port(app(Unset), 8080, Strict)], (Strict, Permissive));
    check(vec![mesh(Strict), with_port(app(Disable), 8080, Unset)], (Disable, Disable));
    check(vec![mesh(Strict), with_port(app(Unset), 8080, Unset)], (Strict, Strict));
    check(vec![mesh(Strict), with_port(app(Unset), 9999, Permissive)], (Strict, Permissive));
    check(vec![with_port(namespace(Strict), 8080, Disable)], (Strict, Strict));
}

#[test]
fn strict_covers_ports_that_nothing_declares() {
    check(vec![namespace(Strict)], (Strict, Strict));
}

#[test]
fn a_spec_carries_only_the_documents_that_count() {
    let all = vec![
        mesh(Strict),
        namespace(Strict),
        named(namespace(Disable), "later", None),
        peer_authentication("other", "default", &[], Strict),
        peer_authentication("payments", "x", &[("app", "x")], Strict),
    ];
    let spec = inbound_spec(&documents(all, Vec::new()), workload(), Vec::new());
    let names: Vec<_> = spec.peer_authentications.iter().map(|one| one.metadata.name.as_str()).collect();
    assert_eq!(names, ["default", "default"]);
    assert_eq!(spec.workload, workload());
}

#[test]
fn client_side_asks_for_labels_of_the_endpoint() {
    let documents: Documents = documents(vec![namespace(Disable), app(Strict)], Vec::new());
    assert_eq!(effective_mode(&documents, "payments", &labels(APP), 8080), Strict);
    assert_eq!(effective_mode(&documents, "payments", &labels(&[("app", "x")]), 8080), Disable);
}

#[test]
fn a_port_speaks_what_app_protocol_name_or_number_declare() {
    #[rustfmt::skip]
    let table = [
        ((None, "http", 80), Protocol::Http),
        ((None, "HTTP-web", 80), Protocol::Http),
        ((None, "http_proxy", 80), Protocol::Http),
        ((None, "http2-x", 80), Protocol::Http2),
        ((None, "grpc", 80), Protocol::Http2),
        ((None, "grpc-web", 80), Protocol::Http),
        ((None, "grpc-web-x", 80), Protocol::Http),
        ((None, "grpc-x", 80), Protocol::Http2),
        ((None, "tcp-x", 80), Protocol::Tcp),
        ((None, "https", 443), Protocol::Tcp),
        ((None, "tls", 443), Protocol::Tcp),
        ((None, "mongo", 1), Protocol::Tcp),
        ((None, "redis", 1), Protocol::Tcp),
        ((None, "mysql", 1), Protocol::Tcp),
        ((None, "web", 80), Protocol::Auto),
        ((None, "httpx", 80), Protocol::Auto),
        ((None, "", 80), Protocol::Auto),
        ((None, "", 25), Protocol::Tcp),
        ((None, "dns", 53), Protocol::Tcp),
        ((None, "", 3306), Protocol::Tcp),
        ((None, "", 27017), Protocol::Tcp),
        ((None, "http", 3306), Protocol::Http),
        ((Some("kubernetes.io/h2c"), "tcp", 80), Protocol::Http2),
        ((Some("kubernetes.io/ws"), "tcp", 80), Protocol::Http),
        ((Some("kubernetes.io/wss"), "http", 80), Protocol::Tcp),
        ((Some("http"), "tcp", 80), Protocol::Http),
        ((Some("unknown"), "http", 80), Protocol::Auto),
        ((Some("unknown"), "http", 53), Protocol::Tcp),
        ((None, "kubernetes.io/h2c", 80), Protocol::Auto),
    ];
    for ((app_protocol, name, port), expected) in table {
        assert_eq!(
            Protocol::declared(app_protocol, name, port),
            expected,
            "{app_protocol:?} {name:?} {port}"
        );
    }
}

#[test]
fn of_two_declarations_of_a_port_the_first_counts() {
    let ports = [(80, Protocol::Http), (80, Protocol::Tcp), (81, Protocol::Tcp)];
    let ports = ports.map(|(port, protocol)| DeclaredPort { port, protocol }).to_vec();
    let snapshot = Snapshot::compile(inbound_spec(&documents(vec![], vec![]), workload(), ports)).unwrap();
    let actual = [80, 81, 82].map(|port| snapshot.protocol(port));
    assert_eq!(actual, [Protocol::Http, Protocol::Tcp, Protocol::Auto]);
}
