//! The usual cast: `payments-api` is called; `checkout-api` and `reports` call, each with an identity of its own;
//! `legacy` calls from outside the mesh.

/// The cast with these policies added. Services: payments-api 80 (http), 81 (undeclared), 9000 (tcp), 9001 (tcp, server
/// speaks first).
pub fn payments(policies: &str) -> String {
    let pod = |namespace: &str, name: &str, ports: &str| {
        format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
             spec:\n  serviceAccountName: {name}\n  containers:\n  - name: app\n    command: [none]\n    ports: [{ports}]\n"
        )
    };
    let web = "{name: http, containerPort: 8080}";
    let all = "{name: http, containerPort: 8080}, {name: web, containerPort: 8081}, \
               {name: tcp-echo, containerPort: 9000}, {name: first, containerPort: 9001}";
    [
        namespace("payments", true),
        namespace("checkout", true),
        namespace("outside", false),
        pod("payments", "payments-api", all),
        pod("checkout", "checkout-api", web),
        pod("checkout", "reports", web),
        pod("outside", "legacy", web),
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: payments-api, namespace: payments}\nspec:\n  \
         selector: {app: payments-api}\n  ports:\n  - {name: http, port: 80, targetPort: 8080}\n  \
         - {name: web, port: 81, targetPort: 8081}\n  - {name: tcp-echo, port: 9000, targetPort: 9000}\n  \
         - {name: tcp-first, port: 9001, targetPort: 9001}\n"
            .into(),
        policies.to_owned(),
    ]
    .concat()
}

/// One namespace, marked for injection or not.
pub fn namespace(name: &str, is_injected: bool) -> String {
    let labels = if is_injected { ", labels: {istio-injection: enabled}" } else { "" };
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}{labels}}}\n")
}

/// A PeerAuthentication for a whole namespace.
pub fn mode(namespace: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// An AuthorizationPolicy on payments-api; `spec` in YAML flow style without the selector, such as
/// `action: DENY, rules: [{}]`.
pub fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: payments}}\n\
         spec: {{selector: {{matchLabels: {{app: payments-api}}}}, {spec}}}\n"
    )
}
