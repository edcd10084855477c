//! Ports as Services expose them, held against what policies say: HTTP fields on TCP ports, and Service ports where
//! the workload's are wanted.
use super::relations::Relations;
use crate::{
    documents::{
        Located, Pod, Service,
        authorization_policy::{Action, AuthorizationPolicy, Rule},
        kubernetes::{ServicePort, TargetPort},
    },
    problem,
    snapshot::Protocol,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A port of a Service on one pod that it selects.
struct Exposure<'d> {
    service: &'d Service,
    port: &'d ServicePort,
    /// The workload's port.
    target: u16,
    tcp: bool,
}

/// By pod (its address in the documents).
type Exposures<'d> = HashMap<*const Pod, Vec<Exposure<'d>>>;

/// All policies against all Services.
pub fn check(found: &mut Relations<'_>) {
    let Some(exposures) = exposures(found) else { return };
    if !exposures.is_empty() {
        service_ports(found, &exposures);
        http_on_tcp(found, &exposures);
    }
}

fn exposures<'d>(found: &mut Relations<'d>) -> Option<Exposures<'d>> {
    let mut exposures = Exposures::new();
    for service in &found.documents.services {
        let service = &service.value;
        if service.selector.is_empty() {
            continue;
        }
        for pod in found.pods.selected(Some(&service.metadata.namespace), &service.selector)?.iter() {
            found.pods.spend(service.ports.len())?;
            for port in service.ports.iter().filter(|port| !port.udp) {
                let target = match &port.target {
                    TargetPort::Number(number) => Some(*number),
                    TargetPort::Name(name) => {
                        let containers = pod.spec.containers.iter();
                        containers.flat_map(|c| &c.ports).find(|p| p.name == *name).map(|p| p.port)
                    }
                };
                let Some(target) = target else { continue };
                let tcp =
                    Protocol::declared(port.app_protocol.as_deref(), &port.name, port.port) == Protocol::Tcp;
                exposures.entry(std::ptr::from_ref(*pod)).or_default().push(Exposure {
                    service,
                    port,
                    target,
                    tcp,
                });
            }
        }
    }
    Some(exposures)
}

/// A number that is a Service's port and not the workload's.
fn service_ports(found: &mut Relations<'_>, exposures: &Exposures<'_>) {
    let documents = found.documents;
    for policy in &documents.authorization_policies {
        let numbers = numbers(&policy.value);
        if numbers.is_empty() {
            continue;
        }
        let everywhere = policy.value.metadata.namespace == documents.mesh.root_namespace;
        let namespace = (!everywhere).then_some(policy.value.metadata.namespace.as_str());
        let Some(wrong) = wrong_numbers(found, exposures, namespace, &policy.value.selector) else { return };
        for (path, number) in numbers {
            if let Some((reason, hint)) = wrong.get(&number) {
                found.warning(problem::SERVICE_PORT, (&policy.origin, &path), reason.clone(), hint.clone());
            }
        }
    }
    for peer in &documents.peer_authentications {
        let meta = &peer.value.metadata;
        if peer.value.port_level.is_empty() || peer.value.selector.is_empty() {
            continue;
        }
        let Some(wrong) = wrong_numbers(found, exposures, Some(&meta.namespace), &peer.value.selector) else {
            return;
        };
        for number in peer.value.port_level.keys() {
            if let Some((reason, hint)) = wrong.get(number) {
                let at = format!("spec.portLevelMtls.{number}");
                found.warning(problem::SERVICE_PORT, (&peer.origin, &at), reason.clone(), hint.clone());
            }
        }
    }
}

/// Numbers that mean nothing on the selected pods and something on their Services, with reason and remedy.
fn wrong_numbers(
    found: &mut Relations<'_>,
    exposures: &Exposures<'_>,
    namespace: Option<&str>,
    selector: &BTreeMap<String, String>,
) -> Option<BTreeMap<u16, (String, String)>> {
    let (mut right, mut wrong) = (BTreeSet::new(), BTreeMap::new());
    for pod in found.pods.selected(namespace, selector)?.iter() {
        right.extend(pod.spec.containers.iter().flat_map(|c| &c.ports).map(|port| port.port));
        for e in exposures.get(&std::ptr::from_ref(*pod)).into_iter().flatten() {
            found.pods.spend(1)?;
            right.insert(e.target);
            let meta = &e.service.metadata;
            wrong.entry(e.port.port).or_insert_with(|| {
                let reason = format!(
                    "{} is the port of Service {}/{}; the workload listens on {}, and policies look at the workload's port",
                    e.port.port, meta.namespace, meta.name, e.target
                );
                (reason, format!("write {}", e.target))
            });
        }
    }
    wrong.retain(|number, _| !right.contains(number));
    Some(wrong)
}

/// Port numbers of a policy with their paths.
fn numbers(policy: &AuthorizationPolicy) -> Vec<(String, u16)> {
    let mut numbers = Vec::new();
    let mut add = |path: &dyn Fn() -> String, values: &[String]| {
        for (v, value) in values.iter().enumerate() {
            if let Ok(number) = value.parse() {
                numbers.push((format!("{}[{v}]", path()), number));
            }
        }
    };
    for (r, rule) in policy.rules.iter().take(512).enumerate() {
        for (t, to) in rule.to.iter().enumerate() {
            add(&|| format!("spec.rules[{r}].to[{t}].operation.ports"), &to.operation.ports);
            add(&|| format!("spec.rules[{r}].to[{t}].operation.notPorts"), &to.operation.not_ports);
        }
        for (w, when) in rule.when.iter().enumerate().filter(|(_, when)| when.key == "destination.port") {
            add(&|| format!("spec.rules[{r}].when[{w}].values"), &when.values);
            add(&|| format!("spec.rules[{r}].when[{w}].notValues"), &when.not_values);
        }
    }
    numbers
}

/// The HTTP-only fields and conditions of a rule (reference 2.4), each once.
pub fn http_fields(rule: &Rule) -> Vec<String> {
    let mut fields: Vec<String> = Vec::new();
    let mut add = |name: &str, used: bool| {
        if used && !fields.iter().any(|field| field == name) {
            fields.push(name.to_owned());
        }
    };
    for from in &rule.from {
        add("requestPrincipals", !from.source.request_principals.is_empty());
        add("notRequestPrincipals", !from.source.not_request_principals.is_empty());
    }
    for to in &rule.to {
        let o = &to.operation;
        let used = [
            ("hosts", &o.hosts),
            ("notHosts", &o.not_hosts),
            ("methods", &o.methods),
            ("notMethods", &o.not_methods),
            ("paths", &o.paths),
            ("notPaths", &o.not_paths),
        ];
        used.iter().for_each(|(name, values)| add(name, !values.is_empty()));
    }
    for when in rule.when.iter().filter(|when| when.key.starts_with("request.")).take(8) {
        add(&crate::documents::parse::shorten(&when.key), true);
    }
    fields
}

/// Whether a rule, its HTTP fields left aside, may match on a port.
fn covers(rule: &Rule, port: u16) -> bool {
    let port = port.to_string();
    let open = |wanted: &[String], unwanted: &[String]| {
        (wanted.is_empty() || wanted.contains(&port)) && !unwanted.contains(&port)
    };
    let to =
        rule.to.is_empty() || rule.to.iter().any(|to| open(&to.operation.ports, &to.operation.not_ports));
    let mut conditions = rule.when.iter().filter(|when| when.key == "destination.port");
    to && conditions.all(|when| open(&when.values, &when.not_values))
}

fn names_port(rule: &Rule, port: u16) -> bool {
    let port = port.to_string();
    rule.to.iter().any(|to| to.operation.ports.contains(&port))
        || rule.when.iter().any(|when| when.key == "destination.port" && when.values.contains(&port))
}

fn http_on_tcp(found: &mut Relations<'_>, exposures: &Exposures<'_>) {
    let documents = found.documents;
    let policies: Vec<&Located<AuthorizationPolicy>> =
        documents.authorization_policies.iter().filter(|p| !p.value.has_target_refs).collect();
    // What some ALLOW rule may allow there.
    let mut allowed: BTreeSet<(*const Pod, u16)> = BTreeSet::new();
    for policy in policies.iter().filter(|p| p.value.action == Action::Allow && !p.value.dry_run) {
        let plain: Vec<&Rule> =
            policy.value.rules.iter().filter(|rule| http_fields(rule).is_empty()).collect();
        let Some(sites) = tcp_sites(found, exposures, &policy.value) else { return };
        if found.pods.spend(plain.len().saturating_mul(sites.len())).is_none() {
            return;
        }
        let open = sites.iter().filter(|(_, e)| plain.iter().any(|rule| covers(rule, e.target)));
        allowed.extend(open.map(|(pod, e)| (*pod, e.target)));
    }
    for policy in policies {
        let Some(sites) = tcp_sites(found, exposures, &policy.value) else { return };
        let allow = policy.value.action == Action::Allow;
        let mut said = false;
        for (index, rule) in policy.value.rules.iter().enumerate().take(512) {
            let fields = http_fields(rule);
            if fields.is_empty() || sites.is_empty() || allow && said {
                continue;
            }
            if found.pods.spend(sites.len()).is_none() {
                return;
            }
            let concerned = |(pod, e): &&(*const Pod, &Exposure<'_>)| {
                let shut = !allow || names_port(rule, e.target) || !allowed.contains(&(*pod, e.target));
                shut && covers(rule, e.target)
            };
            let ports: BTreeSet<String> = sites.iter().filter(concerned).map(|(_, e)| told(e)).collect();
            if ports.is_empty() {
                continue;
            }
            said = true;
            tell(found, policy, index, &fields, &ports);
        }
    }
}

fn tell(
    found: &mut Relations<'_>,
    policy: &Located<AuthorizationPolicy>,
    index: usize,
    fields: &[String],
    ports: &BTreeSet<String>,
) {
    let shown: Vec<&str> = ports.iter().map(String::as_str).take(4).collect();
    let more = ports.len().saturating_sub(shown.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let (ports, fields) = (format!("{}{more}", shown.join(", ")), format!("`{}`", fields.join("`, `")));
    let at = format!("spec.rules[{index}]");
    let meta = &policy.value.metadata;
    let name = format!("AuthorizationPolicy {}/{} rule {index}", meta.namespace, meta.name);
    match policy.value.action {
        Action::Allow => {
            let reason =
                format!("{name} uses {fields}, which TCP does not have: it allows nothing on {ports}");
            let hint = "add a rule with `from` and `ports` only for that port, or declare the port as HTTP (`appProtocol: http`)";
            found.warning(problem::ALLOW_HTTP_ON_TCP, (&policy.origin, &at), reason, hint);
        }
        action => {
            let does = if action == Action::Audit { "marks" } else { "denies" };
            let reason = format!(
                "{name} uses {fields}, which TCP does not have: there they are dropped, and the rule {does} more than it says on {ports}"
            );
            let hint = "add `ports:` with the HTTP ports that are meant, or declare the port as HTTP (`appProtocol: http`)";
            found.warning(problem::DENY_HTTP_ON_TCP, (&policy.origin, &at), reason, hint);
        }
    }
}

/// The ports declared as TCP of the pods that a policy selects.
fn tcp_sites<'e, 'd>(
    found: &mut Relations<'_>,
    exposures: &'e Exposures<'d>,
    policy: &AuthorizationPolicy,
) -> Option<Vec<(*const Pod, &'e Exposure<'d>)>> {
    let everywhere = policy.metadata.namespace == found.documents.mesh.root_namespace;
    let namespace = (!everywhere).then_some(policy.metadata.namespace.as_str());
    let mut sites = Vec::new();
    for pod in found.pods.selected(namespace, &policy.selector)?.iter() {
        let pod = std::ptr::from_ref(*pod);
        let all = exposures.get(&pod).map(Vec::as_slice).unwrap_or_default();
        found.pods.spend(all.len())?;
        sites.extend(all.iter().filter(|e| e.tcp).map(|e| (pod, e)));
    }
    Some(sites)
}

fn told(e: &Exposure<'_>) -> String {
    let meta = &e.service.metadata;
    let name = if e.port.name.is_empty() { String::new() } else { format!(" `{}`", e.port.name) };
    format!("port {}{name} of Service {}/{}", e.target, meta.namespace, meta.name)
}
