//! Names inside a pod: the `/etc/hosts` that answers as Kubernetes' search rules would. Pure.
use super::plan::{Key, Plan, Pod};
use postern_config::documents::service_host;
use std::{fmt::Write, net::IpAddr};

/// RFC 6724, section 2.1, ranks unique local IPv6 addresses (`fc00::/7`, which pods and services have) below IPv4; the table that
/// glibc has built in is an older one without them. So IPv4 is tried first, and apps that listen on IPv4 alone are reached.
pub const ADDRESS_ORDER: &str = "\
precedence ::1/128 50
precedence ::/0 40
precedence ::ffff:0:0/96 35
precedence 2002::/16 30
precedence 2001::/32 5
precedence fc00::/7 3
";

/// No name server: none can be reached from a pod, and an unknown name shall fail at once instead of after its deadline.
/// (Without a line of its own glibc asks the pod's loopback, where nobody answers.)
pub const RESOLVER: &str = "# Written by postern: every name that a pod can use is in /etc/hosts.\n";

/// The file for one pod. A service is known by `name.ns.svc.cluster.local`, `name.ns.svc`, `name.ns`, and in its own
/// namespace by `name`; a headless one by the addresses of its pods.
pub fn hosts(plan: &Plan, pod: &Pod) -> String {
    let mut text = String::from("# Written by postern; changes with the mesh.\n");
    text.push_str("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    let (v4, v6) = pod.addresses();
    let _ = writeln!(text, "{v4}\t{name}\n{v6}\t{name}", name = pod.key.name);
    for service in plan.services.values() {
        let names = names(&service.key, &pod.key.namespace).join(" ");
        let addresses = if service.addresses.is_empty() {
            pod_addresses(plan, service)
        } else {
            service.addresses.clone()
        };
        for address in addresses {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

/// All names of a service that resolve in a pod of `namespace`.
pub fn names(service: &Key, namespace: &str) -> Vec<String> {
    let Key { namespace: of, name } = service;
    let mut names = vec![service_host(name, of), format!("{name}.{of}.svc"), format!("{name}.{of}")];
    if of == namespace {
        names.push(name.clone());
    }
    names
}

fn pod_addresses(plan: &Plan, service: &super::plan::Service) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (key, _) in service.ports.iter().flat_map(|p| &p.endpoints) {
        if let Some(pod) = plan.pods.get(key) {
            let (v4, v6) = pod.addresses();
            for address in [IpAddr::V4(v4), IpAddr::V6(v6)] {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
    }
    addresses.sort_by_key(|a| a.is_ipv6());
    addresses
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::{
        super::plan::{Exclusions, Service, ServicePort},
        *,
    };
    use postern_proxy::bootstrap::InterceptionMode;

    fn pod(namespace: &str, name: &str, number: u16) -> Pod {
        Pod {
            key: Key::new(namespace, name),
            deployment: None,
            service_account: "default".into(),
            injected: true,
            number,
            containers: vec![],
            interception: InterceptionMode::default(),
            exclusions: Exclusions::default(),
            app_metrics: None,
        }
    }

    fn sample() -> Plan {
        let mut plan = Plan::default();
        for p in [pod("pay", "api-0", 2), pod("shop", "web-0", 3)] {
            plan.pods.insert(p.key.clone(), p);
        }
        let key = Key::new("pay", "api");
        let addresses = vec!["10.96.0.1".parse().unwrap(), "fd00:96::1".parse().unwrap()];
        plan.services.insert(key.clone(), Service { key, addresses, number: 1, ports: vec![] });
        let key = Key::new("pay", "db");
        let ports =
            vec![ServicePort { port: 5432, udp: false, endpoints: vec![(Key::new("pay", "api-0"), 5432)] }];
        plan.services.insert(key.clone(), Service { key, addresses: vec![], number: 2, ports });
        plan
    }

    fn check(namespace: &str, name: &str, expected: &str) {
        let plan = sample();
        let text = hosts(&plan, &plan.pods[&Key::new(namespace, name)]);
        let services: String = text
            .lines()
            .filter(|l| l.contains(".svc"))
            .map(|l| format!("{}\n", l.replace('\t', " ")))
            .collect();
        assert_eq!(services, expected);
    }

    #[test]
    fn the_short_name_works_in_the_own_namespace() {
        check(
            "pay",
            "api-0",
            "10.96.0.1 api.pay.svc.cluster.local api.pay.svc api.pay api\n\
             fd00:96::1 api.pay.svc.cluster.local api.pay.svc api.pay api\n\
             10.244.0.2 db.pay.svc.cluster.local db.pay.svc db.pay db\n\
             fd00:244::2 db.pay.svc.cluster.local db.pay.svc db.pay db\n",
        );
    }

    #[test]
    fn the_short_name_is_unknown_elsewhere() {
        check(
            "shop",
            "web-0",
            "10.96.0.1 api.pay.svc.cluster.local api.pay.svc api.pay\n\
             fd00:96::1 api.pay.svc.cluster.local api.pay.svc api.pay\n\
             10.244.0.2 db.pay.svc.cluster.local db.pay.svc db.pay\n\
             fd00:244::2 db.pay.svc.cluster.local db.pay.svc db.pay\n",
        );
    }

    #[test]
    fn a_pod_knows_itself_and_localhost() {
        let plan = sample();
        let text = hosts(&plan, &plan.pods[&Key::new("shop", "web-0")]);
        assert!(text.contains("10.244.0.3\tweb-0\n") && text.contains("fd00:244::3\tweb-0\n"), "{text}");
        assert!(text.contains("127.0.0.1\tlocalhost\n") && text.contains("::1\tlocalhost"), "{text}");
    }
}
