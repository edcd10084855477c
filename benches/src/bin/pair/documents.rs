//! The mesh that the pairs stand in: two workloads, their policies, and as many others as are asked for.

use crate::pairs::{APP_GRPC_PORT, APP_PORT, APP_TCP_PORT, CLIENT_IP, SERVER_IP};
use std::net::Ipv4Addr;

/// Where everything is.
pub const NAMESPACE: &str = "mesh";
/// The pod that is called, and its service account.
pub const SERVER: &str = "app";
/// The pod that calls.
pub const CALLER: &str = "caller";
/// The network of the app's other endpoints, a /17.
pub const ENDPOINTS: Ipv4Addr = Ipv4Addr::new(10, 9, 128, 0);

/// How much the mesh knows.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Endpoints of the service that is called, at least one.
    pub endpoints: usize,
    /// Services that nobody calls, each with a pod.
    pub services: usize,
}

/// The usual: what is called and nothing else.
pub const SMALL: Size = Size { endpoints: 1, services: 0 };

/// The documents of a mesh of this size: STRICT, a DENY policy that does not concern the calls, and an ALLOW policy whose third rule
/// allows them.
pub fn of(size: Size) -> String {
    let pod = |name: &str, app: &str, ip: Ipv4Addr| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{app: {app}}}}}\n\
             spec: {{serviceAccountName: {app}, containers: [{{name: app, ports: [{{name: http, containerPort: {APP_PORT}}}, \
             {{name: tcp, containerPort: {APP_TCP_PORT}}}, {{name: grpc, containerPort: {APP_GRPC_PORT}}}]}}]}}\nstatus: {{podIP: {ip}}}\n"
        )
    };
    let allow = |method: &str, path: &str| {
        format!(
            "  - from: [{{source: {{principals: [cluster.local/ns/{NAMESPACE}/sa/{CALLER}]}}}}]\n    \
             to: [{{operation: {{methods: [{method}], paths: [{path}]}}}}]\n"
        )
    };
    let numbered = |base: Ipv4Addr, number: usize| Ipv4Addr::from(u32::from(base) + number as u32);
    let endpoints = (1..size.endpoints)
        .map(|number| pod(&format!("{SERVER}-{number}"), SERVER, numbered(ENDPOINTS, number)));
    let services = (0..size.services).map(|number| {
        let (name, ip) = (format!("other-{number}"), numbered(Ipv4Addr::new(10, 97, 0, 0), number));
        let service = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\n\
             spec: {{selector: {{app: {name}}}, clusterIP: {ip}, ports: [{{name: http, port: 80, targetPort: {APP_PORT}}}]}}\n"
        );
        service + &pod(&name, &name, numbered(Ipv4Addr::new(10, 98, 0, 0), number))
    });
    let more: String = endpoints.chain(services).collect();
    let mesh = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{istio-injection: enabled}}}}\n\
         ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {NAMESPACE}}}\n\
         spec: {{mtls: {{mode: STRICT}}}}\n{}{}\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: {SERVER}, namespace: {NAMESPACE}}}\n\
         spec: {{selector: {{app: {SERVER}}}, clusterIP: 10.96.0.1, ports: [{{name: http, port: 80, targetPort: {APP_PORT}}}, \
         {{name: tcp, port: {APP_TCP_PORT}, targetPort: {APP_TCP_PORT}}}, {{name: grpc, port: {APP_GRPC_PORT}, targetPort: {APP_GRPC_PORT}}}]}}\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: over-http2, namespace: {NAMESPACE}}}\n\
         spec: {{selector: {{app: {SERVER}}}, clusterIP: 10.96.0.2, ports: [{{name: http, port: 80, targetPort: {APP_PORT}}}]}}\n\
         ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: over-http2, namespace: {NAMESPACE}}}\n\
         spec: {{host: over-http2, trafficPolicy: {{connectionPool: {{http: {{h2UpgradePolicy: UPGRADE}}}}}}}}\n\
         ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: {NAMESPACE}}}\n\
         spec:\n  selector: {{matchLabels: {{app: {SERVER}}}}}\n  action: DENY\n  rules:\n  - to: [{{operation: {{ports: [\"{APP_PORT}\"], paths: [/admin*]}}}}]\n\
         ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: allow, namespace: {NAMESPACE}}}\n\
         spec:\n  selector: {{matchLabels: {{app: {SERVER}}}}}\n  action: ALLOW\n  rules:\n{}{}{}  \
         - from: [{{source: {{principals: [cluster.local/ns/{NAMESPACE}/sa/{CALLER}]}}}}]\n    to: [{{operation: {{ports: [\"{APP_TCP_PORT}\"]}}}}]\n",
        pod(SERVER, SERVER, SERVER_IP),
        pod(CALLER, CALLER, CLIENT_IP),
        allow("GET", "/health"),
        allow("GET", "/large"),
        allow("GET", "/api/*") + &allow("POST", "/bench.Echo/*"),
    );
    mesh + &more
}
