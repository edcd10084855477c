//! The two Envoys of a pair, configured as Istio configures its sidecars.

use crate::{
    pairs::{APP_GRPC_PORT, APP_PORT, APP_TCP_PORT, Pair, SERVER_IP},
    stage::{caller_id, server_id},
};
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path};

const TYPES: &str = "type.googleapis.com/envoy.extensions";
/// What Istio sets on listeners and clusters.
const BUFFER: u32 = 32 * 1024;

/// The half beside the caller.
pub fn client(pair: Pair, identity: &Path, access_log: Option<&Path>) -> Value {
    let filter = match pair {
        Pair::EnvoyTcp => tcp_proxy(access_log),
        _ => http_manager(json!({}), &[], access_log, "next"),
    };
    let mut context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
        "sni": "outbound_.80_._.app.mesh.svc.cluster.local",
        "common_tls_context": common(identity, alpn(pair)),
    });
    context["common_tls_context"]["validation_context"] = json!({
        "trusted_ca": {"filename": identity.join("roots.pem")},
        "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": server_id()}}],
    });
    let upstream = cluster(pair, SocketAddr::from((SERVER_IP, pair.wire_port())), Some(&context));
    bootstrap(pair.outbound_port(), &json!([filter]), None, &upstream)
}

/// The half beside the app.
pub fn server(pair: Pair, identity: &Path, access_log: Option<&Path>) -> Value {
    let caller = json!({"authenticated": {"principal_name": {"exact": caller_id()}}});
    let path = |matcher: Value| json!({"url_path": {"path": matcher}});
    let post = json!({"header": {"name": ":method", "string_match": {"exact": "POST"}}});
    let get = json!({"header": {"name": ":method", "string_match": {"exact": "GET"}}});
    let filters = match pair {
        Pair::EnvoyTcp => {
            let policies = json!({"tcp": {"permissions": [{"any": true}], "principals": [caller]}});
            let rbac = json!({
                "@type": format!("{TYPES}.filters.network.rbac.v3.RBAC"),
                "stat_prefix": "rbac",
                "rules": {"action": "ALLOW", "policies": policies},
            });
            json!([{"name": "envoy.filters.network.rbac", "typed_config": rbac}, tcp_proxy(access_log)])
        }
        _ => {
            let allow = |matcher: Value| json!({"permissions": [{"and_rules": {"rules": [get, path(matcher)]}}], "principals": [caller]});
            let deny = json!({"deny": {"permissions": [path(json!({"prefix": "/admin"}))], "principals": [{"any": true}]}});
            let allowed = json!({
                "a": allow(json!({"exact": "/health"})),
                "b": allow(json!({"exact": "/large"})),
                "c": allow(json!({"prefix": "/api/"})),
                "d": {"permissions": [{"and_rules": {"rules": [post, path(json!({"prefix": "/bench.Echo/"}))]}}], "principals": [caller]},
            });
            let rbac = |action: &str, policies: Value| {
                let config = json!({"@type": format!("{TYPES}.filters.http.rbac.v3.RBAC"), "rules": {"action": action, "policies": policies}});
                json!({"name": "envoy.filters.http.rbac", "typed_config": config})
            };
            let settings = json!({
                "normalize_path": true,
                "forward_client_cert_details": "APPEND_FORWARD",
                "set_current_client_cert_details": {"subject": true, "dns": true, "uri": true},
            });
            json!([http_manager(settings, &[rbac("DENY", deny), rbac("ALLOW", allowed)], access_log, "grpc")])
        }
    };
    let mut context = json!({
        "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
        "require_client_certificate": true,
        "disable_stateless_session_resumption": true,
        "disable_stateful_session_resumption": true,
        "common_tls_context": common(identity, &["h2", "http/1.1"]),
    });
    let domains =
        json!([{"name": "cluster.local", "trust_bundle": {"filename": identity.join("roots.pem")}}]);
    context["common_tls_context"]["validation_context"] = json!({"custom_validator_config": {
        "name": "envoy.tls.cert_validator.spiffe",
        "typed_config": {"@type": format!("{TYPES}.transport_sockets.tls.v3.SPIFFECertValidatorConfig"), "trust_domains": domains},
    }});
    let port = if pair == Pair::EnvoyTcp { APP_TCP_PORT } else { APP_PORT };
    let app = cluster(pair, SocketAddr::from(([127, 0, 0, 1], port)), None);
    let mut config = bootstrap(pair.inbound_port(), &filters, Some(&context), &app);
    let mut grpc = cluster(pair, SocketAddr::from(([127, 0, 0, 1], APP_GRPC_PORT)), None);
    grpc["name"] = "grpc".into();
    grpc["typed_extension_protocol_options"] = http2();
    config["static_resources"]["clusters"].as_array_mut().unwrap().push(grpc);
    config
}

fn alpn(pair: Pair) -> &'static [&'static str] {
    match pair {
        Pair::EnvoyHttp2 => &["h2"],
        _ => &["http/1.1"],
    }
}

fn common(identity: &Path, alpn: &[&str]) -> Value {
    json!({
        "alpn_protocols": alpn,
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519MLKEM768", "X25519", "P-256"],
        },
        "tls_certificates": [{
            "certificate_chain": {"filename": identity.join("chain.pem")},
            "private_key": {"filename": identity.join("key.pem")},
        }],
    })
}

fn bootstrap(port: u16, filters: &Value, tls: Option<&Value>, cluster: &Value) -> Value {
    let inspector = |name: &str, kind: &str| {
        json!({"name": format!("envoy.filters.listener.{name}"),
            "typed_config": {"@type": format!("{TYPES}.filters.listener.{name}.v3.{kind}")}})
    };
    let mut chain = json!({"filters": filters});
    let mut inspectors = vec![inspector("original_dst", "OriginalDst")];
    if let Some(context) = tls {
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
        inspectors.push(inspector("tls_inspector", "TlsInspector"));
    }
    json!({
        "node": {"id": "pair", "cluster": "pair"},
        "static_resources": {
            "listeners": [{
                "name": "all",
                "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
                "per_connection_buffer_limit_bytes": BUFFER,
                "listener_filters": inspectors,
                "filter_chains": [chain],
            }],
            "clusters": [cluster],
        },
    })
}

fn cluster(pair: Pair, address: SocketAddr, tls: Option<&Value>) -> Value {
    let socket = json!({"address": address.ip(), "port_value": address.port()});
    let endpoint = json!({"endpoint": {"address": {"socket_address": socket}}});
    let most = u32::MAX;
    let mut cluster = json!({
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "10s",
        "per_connection_buffer_limit_bytes": BUFFER,
        "circuit_breakers": {"thresholds": [{
            "max_connections": most, "max_pending_requests": most, "max_requests": most, "max_retries": most,
        }]},
        "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(context) = tls {
        cluster["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": context});
        if pair == Pair::EnvoyHttp2 {
            cluster["typed_extension_protocol_options"] = http2();
        }
    }
    cluster
}

fn http2() -> Value {
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions"),
        "explicit_http_config": {"http2_protocol_options": {}},
    }})
}

fn tcp_proxy(access_log: Option<&Path>) -> Value {
    let config = json!({
        "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "tcp",
        "cluster": "next",
        "access_log": log(access_log),
    });
    json!({"name": "envoy.filters.network.tcp_proxy", "typed_config": config})
}

fn http_manager(settings: Value, filters: &[Value], access_log: Option<&Path>, grpc: &str) -> Value {
    let mut all = filters.to_vec();
    all.push(json!({"name": "envoy.filters.http.router", "typed_config": {"@type": format!("{TYPES}.filters.http.router.v3.Router")}}));
    let calls = json!({"match": {"prefix": "/bench.Echo/"}, "route": {"cluster": grpc, "timeout": "0s"}});
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": "next", "timeout": "0s"}});
    let mut config = json!({
        "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "http",
        "use_remote_address": false,
        "generate_request_id": true,
        "route_config": {"name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [calls, route]}]},
        "http_filters": all,
        "access_log": log(access_log),
    });
    for (name, value) in settings.as_object().unwrap() {
        config[name] = value.clone();
    }
    json!({"name": "envoy.filters.network.http_connection_manager", "typed_config": config})
}

/// Fourteen fields, buffered as Envoy does.
fn log(path: Option<&Path>) -> Value {
    let Some(path) = path else { return json!([]) };
    let format = json!({
        "start_time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "protocol": "%PROTOCOL%",
        "response_code": "%RESPONSE_CODE%",
        "response_flags": "%RESPONSE_FLAGS%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "duration": "%DURATION%",
        "upstream_host": "%UPSTREAM_HOST%",
        "downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        "authority": "%REQ(:AUTHORITY)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
    });
    let config = json!({
        "@type": format!("{TYPES}.access_loggers.file.v3.FileAccessLog"),
        "path": path,
        "log_format": {"json_format": format},
    });
    json!([{"name": "envoy.access_loggers.file", "typed_config": config}])
}
