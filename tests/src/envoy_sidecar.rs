//! Envoy in the place of a sidecar: certificate and trust by SDS from the socket of a pod, and the protocols in the handshake that
//! Istio's sidecars offer and choose by.

use serde_json::{Value, json};
use std::path::Path;

const TYPE: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";

/// What no sidecar offers.
pub const PLAIN: &[&str] = &["http/1.1"];
/// What Istio's sidecars offer for HTTP/1.1, HTTP/2 and TCP (reference 4.4).
pub const HTTP1: &[&str] = &["istio-http/1.1", "istio", "http/1.1"];
pub const HTTP2: &[&str] = &["istio-h2", "istio", "h2"];
pub const TCP: &[&str] = &["istio-peer-exchange", "istio"];

/// TLS with the identity of the socket's pod, and with a peer of one identity, or of one below a name that ends with a slash; `kind` is
/// Upstream or Downstream, `alpn` what is offered, or chosen from.
pub fn tls(kind: &str, peer: &str, alpn: &[&str]) -> Value {
    let source = json!({"resource_api_version": "V3", "api_config_source": {
        "api_type": "GRPC", "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "workload-api"}}],
    }});
    let secret = |name: &str| json!({"name": name, "sds_config": source});
    let matcher = if peer.ends_with('/') { json!({"prefix": peer}) } else { json!({"exact": peer}) };
    let mut context = json!({
        "@type": format!("{TYPE}.{kind}TlsContext"),
        "common_tls_context": {
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "alpn_protocols": alpn,
            "tls_certificate_sds_secret_configs": [secret("default")],
            "combined_validation_context": {
                "default_validation_context": {
                    "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}],
                },
                "validation_context_sds_secret_config": secret("ROOTCA"),
            },
        },
    });
    if kind == "Downstream" {
        context["require_client_certificate"] = json!(true);
    }
    json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
}

/// The cluster that [`tls`] takes its secrets from: the socket of a pod.
pub fn workload_api(socket: &Path) -> Value {
    let mut cluster = cluster("workload-api", &json!({"pipe": {"path": socket}}), None);
    http2(&mut cluster);
    cluster
}

/// A cluster with one endpoint.
pub fn cluster(name: &str, address: &Value, secured: Option<Value>) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment(name, address),
    });
    if let Some(socket) = secured {
        cluster["transport_socket"] = socket;
    }
    cluster
}

/// From now on it is spoken to by HTTP/2.
pub fn http2(cluster: &mut Value) {
    let options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    cluster["typed_extension_protocol_options"] = json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": options, "explicit_http_config": {"http2_protocol_options": {}},
    }});
}

/// Where a cluster is.
pub fn assignment(name: &str, address: &Value) -> Value {
    json!({"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]})
}

/// Bytes to a cluster and back.
pub fn tcp_proxy(cluster: &str) -> Value {
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster, "cluster": cluster,
    }})
}

/// A filter that lets pass what this one rule allows: a principal, and what it may do there. `place` is `http` or `network`.
pub fn allows_only(place: &str, principal: &str, permission: &Value) -> Value {
    let mut config = json!({
        "@type": format!("type.googleapis.com/envoy.extensions.filters.{place}.rbac.v3.RBAC"),
        "rules": {"action": "ALLOW", "policies": {"only": {
            "permissions": [permission],
            "principals": [{"authenticated": {"principal_name": {"exact": principal}}}],
        }}},
    });
    if place == "network" {
        config["stat_prefix"] = json!("tcp");
    }
    json!({"name": format!("envoy.filters.{place}.rbac"), "typed_config": config})
}
