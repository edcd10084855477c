//! Trees to Istio's security objects.
use super::{kubernetes::metadata, optional, string_map, strings};
use crate::documents::{
    authorization_policy::{Action, AuthorizationPolicy, Condition, From, Operation, Rule, Source, To},
    parse::Node,
    peer_authentication::{MtlsMode, PeerAuthentication},
};

/// Annotation of a policy that is only evaluated (reference 2.12).
pub const DRY_RUN: &str = "istio.io/dry-run";

pub fn peer_authentication(node: &Node) -> PeerAuthentication {
    let ports = node.at("spec.portLevelMtls").map(Node::entries).unwrap_or_default();
    PeerAuthentication {
        metadata: metadata(node),
        selector: string_map(node.at("spec.selector.matchLabels")),
        mode: node.at("spec.mtls").map(mode).unwrap_or_default(),
        port_level: ports
            .iter()
            .filter_map(|(port, node)| Some((port.text.parse().ok()?, mode(node))))
            .collect(),
    }
}

fn mode(mtls: &Node) -> MtlsMode {
    match mtls.get("mode").and_then(Node::text) {
        Some("DISABLE") => MtlsMode::Disable,
        Some("PERMISSIVE") => MtlsMode::Permissive,
        Some("STRICT") => MtlsMode::Strict,
        _ => MtlsMode::Unset,
    }
}

pub fn authorization_policy(node: &Node) -> AuthorizationPolicy {
    let metadata = metadata(node);
    let dry_run = metadata.annotations.get(DRY_RUN).and_then(|text| go_bool(text)).unwrap_or(false);
    let Some(spec) = node.get("spec") else {
        return AuthorizationPolicy { metadata, dry_run, ..AuthorizationPolicy::default() };
    };
    AuthorizationPolicy {
        selector: string_map(spec.at("selector.matchLabels")),
        has_target_refs: spec.get("targetRef").is_some() || spec.list("targetRefs").next().is_some(),
        action: action(spec.get("action").and_then(Node::text)),
        provider: spec.get("provider").and_then(|provider| optional(provider, "name")),
        dry_run,
        rules: spec.list("rules").map(rule).collect(),
        metadata,
    }
}

fn action(text: Option<&str>) -> Action {
    match text {
        Some("DENY") => Action::Deny,
        Some("AUDIT") => Action::Audit,
        Some("CUSTOM") => Action::Custom,
        _ => Action::Allow,
    }
}

/// What Go's `strconv.ParseBool` takes.
pub fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

fn rule(node: &Node) -> Rule {
    Rule {
        from: node
            .list("from")
            .map(|from| From { source: from.get("source").map(source).unwrap_or_default() })
            .collect(),
        to: node
            .list("to")
            .map(|to| To { operation: to.get("operation").map(operation).unwrap_or_default() })
            .collect(),
        when: node
            .list("when")
            .map(|when| Condition {
                key: when.string("key"),
                values: strings(when.get("values")),
                not_values: strings(when.get("notValues")),
            })
            .collect(),
    }
}

fn source(node: &Node) -> Source {
    let list = |key: &str| strings(node.get(key));
    Source {
        principals: list("principals"),
        not_principals: list("notPrincipals"),
        request_principals: list("requestPrincipals"),
        not_request_principals: list("notRequestPrincipals"),
        namespaces: list("namespaces"),
        not_namespaces: list("notNamespaces"),
        service_accounts: list("serviceAccounts"),
        not_service_accounts: list("notServiceAccounts"),
        trust_domains: list("trustDomains"),
        not_trust_domains: list("notTrustDomains"),
        ip_blocks: list("ipBlocks"),
        not_ip_blocks: list("notIpBlocks"),
        remote_ip_blocks: list("remoteIpBlocks"),
        not_remote_ip_blocks: list("notRemoteIpBlocks"),
    }
}

fn operation(node: &Node) -> Operation {
    let list = |key: &str| strings(node.get(key));
    Operation {
        hosts: list("hosts"),
        not_hosts: list("notHosts"),
        ports: list("ports"),
        not_ports: list("notPorts"),
        methods: list("methods"),
        not_methods: list("notMethods"),
        paths: list("paths"),
        not_paths: list("notPaths"),
    }
}
