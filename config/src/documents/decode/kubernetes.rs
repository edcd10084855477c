//! Trees to Kubernetes objects.
use super::{flag, number, optional, string_map, strings};
use crate::documents::{
    kubernetes::{
        Container, ContainerPort, Deployment, Metadata, Namespace, Pod, PodField, PodSpec, Service,
        ServiceAccount, ServicePort, TargetPort,
    },
    parse::{Node, Style, Value},
};
use std::net::IpAddr;

/// `metadata`; the namespace is `default` when unset.
pub fn metadata(node: &Node) -> Metadata {
    let Some(meta) = node.get("metadata") else {
        return Metadata { namespace: "default".into(), ..Metadata::default() };
    };
    Metadata {
        name: meta.string("name"),
        namespace: optional(meta, "namespace")
            .filter(|ns| !ns.is_empty())
            .unwrap_or_else(|| "default".into()),
        labels: string_map(meta.get("labels")),
        annotations: string_map(meta.get("annotations")),
        creation_timestamp: optional(meta, "creationTimestamp"),
    }
}

pub fn namespace(node: &Node) -> Namespace {
    Namespace { metadata: Metadata { namespace: String::new(), ..metadata(node) } }
}

pub fn service_account(node: &Node) -> ServiceAccount {
    ServiceAccount { metadata: metadata(node) }
}

pub fn service(node: &Node) -> Service {
    let cluster_ip = node.at("spec.clusterIP").and_then(Node::text).unwrap_or_default();
    let mut addresses = strings(node.at("spec.clusterIPs"));
    if addresses.is_empty() {
        addresses.push(cluster_ip.to_owned());
    }
    Service {
        metadata: metadata(node),
        selector: string_map(node.at("spec.selector")),
        headless: addresses.iter().any(|address| address == "None"),
        cluster_ips: addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        ports: node.get("spec").into_iter().flat_map(|spec| spec.list("ports")).map(service_port).collect(),
    }
}

fn service_port(node: &Node) -> ServicePort {
    let port = number(node, "port").unwrap_or(0);
    ServicePort {
        name: node.string("name"),
        port,
        target: target_port(node, port),
        app_protocol: optional(node, "appProtocol"),
        udp: node.string("protocol") == "UDP",
    }
}

fn target_port(node: &Node, port: u16) -> TargetPort {
    match node.get("targetPort").map(|target| &target.value) {
        Some(Value::Scalar(scalar)) => match scalar.text.parse() {
            Ok(0) if scalar.style == Style::Plain => TargetPort::Number(port),
            Ok(number) if scalar.style == Style::Plain => TargetPort::Number(number),
            _ => TargetPort::Name(scalar.text.clone()),
        },
        _ => TargetPort::Number(port),
    }
}

pub fn deployment(node: &Node) -> Deployment {
    let own = metadata(node);
    let mut template = node.at("spec.template").map(pod).unwrap_or_default();
    template.metadata.name.clone_from(&own.name);
    template.metadata.namespace.clone_from(&own.namespace);
    Deployment {
        replicas: node.get("spec").and_then(|spec| number(spec, "replicas")).unwrap_or(1),
        template,
        metadata: own,
    }
}

pub fn pod(node: &Node) -> Pod {
    Pod { metadata: metadata(node), spec: pod_spec(node.get("spec")), pod_ips: pod_ips(node) }
}

fn pod_ips(node: &Node) -> Vec<IpAddr> {
    let Some(status) = node.get("status") else { return Vec::new() };
    let mut texts: Vec<String> = status.list("podIPs").map(|entry| entry.string("ip")).collect();
    if texts.is_empty() {
        texts.extend(optional(status, "podIP"));
    }
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn pod_spec(spec: Option<&Node>) -> PodSpec {
    let default = || "default".to_owned();
    let Some(spec) = spec else { return PodSpec { service_account: default(), ..PodSpec::default() } };
    let account = optional(spec, "serviceAccountName").or_else(|| optional(spec, "serviceAccount"));
    PodSpec {
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(default),
        containers: spec.list("containers").map(container).collect(),
        host_network: flag(spec, "hostNetwork"),
    }
}

fn container(node: &Node) -> Container {
    let field = |entry: &Node| {
        let path = entry.at("valueFrom.fieldRef.fieldPath").and_then(Node::text)?;
        Some((entry.string("name"), pod_field(path)?))
    };
    Container {
        name: node.string("name"),
        command: strings(node.get("command")),
        args: strings(node.get("args")),
        env: node
            .list("env")
            .filter(|entry| entry.get("valueFrom").is_none())
            .map(|entry| (entry.string("name"), entry.string("value")))
            .collect(),
        field_env: node.list("env").filter_map(field).collect(),
        ports: node
            .list("ports")
            .map(|entry| ContainerPort {
                name: entry.string("name"),
                port: number(entry, "containerPort").unwrap_or(0),
            })
            .collect(),
        working_dir: optional(node, "workingDir"),
    }
}

/// Field paths that are known when a pod runs.
pub fn pod_field(path: &str) -> Option<PodField> {
    match path {
        "metadata.name" => Some(PodField::Name),
        "metadata.namespace" => Some(PodField::Namespace),
        "status.podIP" => Some(PodField::PodIp),
        "spec.serviceAccountName" => Some(PodField::ServiceAccount),
        _ => None,
    }
}
