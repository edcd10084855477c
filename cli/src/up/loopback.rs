//! Without namespaces: every pod is a loopback address, and every way in or out of it is a listener of its own. Pure.
use super::{
    hosts,
    plan::{Plan, Pod, Service, ServicePort},
};
use crate::failure::Failure;
use postern_proxy::bootstrap::InterceptionMode;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

/// Unprivileged users cannot listen below this port.
const FIRST_FREE_PORT: u16 = 1024;
/// Added to ports below that.
const RAISED: u16 = 20_000;

/// Which part of 127.0.0.0/8 a mesh uses; drawn from its folder, so that several can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    first: u8,
}

/// A listener of a sidecar and the destination that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub bind: SocketAddr,
    /// What it stands for.
    pub destination: SocketAddr,
}

impl Layout {
    /// From the fingerprint of the folder.
    pub fn new(fingerprint: u64) -> Self {
        // 127.16 to 127.243, three at a time.
        Self { first: 16 + u8::try_from(fingerprint % 76).unwrap_or_default() * 3 }
    }

    /// Whether all pods and services fit.
    ///
    /// # Errors
    /// More than 254 of either, or a pod that shall see the addresses of its callers.
    pub fn admit(self, plan: &Plan) -> Result<(), Failure> {
        let most = plan.pods.values().map(|p| p.number).chain(plan.services.values().map(|s| s.number)).max();
        if most.is_some_and(|n| n > 254) {
            return Err(Failure::new(
                "without namespaces a mesh has at most 250 pods and services.",
                "Run as root or enable user namespaces.",
            ));
        }
        let tproxy = plan.pods.values().find(|p| p.injected && p.interception == InterceptionMode::Tproxy);
        if let Some(pod) = tproxy {
            return Err(Failure::new(
                format!("{} wants TPROXY, which nothing but a network of its own can give it.", pod.key),
                "Run as root or enable user namespaces, or take the annotation away.",
            ));
        }
        Ok(())
    }

    /// Where the pod's app listens (`POD_IP`).
    pub fn app(self, pod: &Pod) -> Ipv4Addr {
        self.address(0, pod.number)
    }

    /// Where the pod's sidecar listens.
    pub fn sidecar(self, pod: &Pod) -> Ipv4Addr {
        self.address(1, pod.number)
    }

    /// The sidecar's inbound listeners: one for each declared port.
    pub fn inbound(self, pod: &Pod) -> Vec<Listener> {
        let (here, app) = (self.sidecar(pod), self.app(pod));
        pod.ports()
            .into_iter()
            .map(|port| Listener {
                bind: SocketAddr::new(here.into(), raised(port)),
                destination: SocketAddr::new(app.into(), port),
            })
            .collect()
    }

    /// The sidecar's outbound listeners: one for each port of each service with a virtual address.
    pub fn outbound(self, pod: &Pod, plan: &Plan) -> Vec<Listener> {
        let mut all = Vec::new();
        for service in plan.services.values() {
            let Some(virtual_address) = service.addresses.first() else { continue };
            for port in service.ports.iter().filter(|p| !p.udp) {
                all.push(Listener {
                    bind: SocketAddr::new(self.door(pod, service).into(), raised(port.port)),
                    destination: SocketAddr::new(*virtual_address, port.port),
                });
            }
        }
        all
    }

    /// The annotation that tells the control plane where the sidecar listens.
    pub fn annotations(self, pod: &Pod) -> BTreeMap<String, String> {
        if !pod.injected {
            return BTreeMap::new();
        }
        let listeners: Vec<String> =
            self.inbound(pod).iter().map(|l| format!("{}={}", l.destination.port(), l.bind)).collect();
        [(postern_control_plane::registry::interception::ANNOTATION.to_owned(), listeners.join(","))].into()
    }

    /// What stands in for names: `<NAME>_<NAMESPACE>_URL` of every service, as this pod reaches it, an `_ADDRESS` for each
    /// of its ports, and `POSTERN_HOSTS` (`name:port=address,…`) for programs that heed it, as `postern app` does.
    pub fn variables(self, pod: &Pod, plan: &Plan) -> Vec<(String, String)> {
        let mut all = Vec::new();
        let mut named = Vec::new();
        for service in plan.services.values() {
            for (n, port) in service.ports.iter().filter(|p| !p.udp).enumerate() {
                let Some(reached) = self.reached(pod, plan, service, port) else { continue };
                let name = variable(&service.key.name, &service.key.namespace);
                if n == 0 {
                    all.push((format!("{name}_URL"), format!("http://{reached}")));
                }
                all.push((format!("{name}_{}_ADDRESS", port.port), reached.to_string()));
                let names = hosts::names(&service.key, &pod.key.namespace);
                named.extend(names.iter().map(|name| format!("{name}:{}={reached}", port.port)));
            }
        }
        all.push(("POSTERN_HOSTS".to_owned(), named.join(",")));
        all
    }

    fn reached(self, pod: &Pod, plan: &Plan, service: &Service, port: &ServicePort) -> Option<SocketAddr> {
        if pod.injected && !service.addresses.is_empty() {
            return Some(SocketAddr::new(self.door(pod, service).into(), raised(port.port)));
        }
        let (key, target) = port.endpoints.first()?;
        Some(self.entrance(plan.pods.get(key)?, *target))
    }

    /// All addresses that the mesh will listen on, to look whether they are free.
    pub fn listeners(self, plan: &Plan) -> Vec<SocketAddr> {
        let mut all = Vec::new();
        for pod in plan.pods.values().filter(|p| p.injected) {
            all.extend(self.inbound(pod).iter().map(|l| l.bind));
            all.extend(self.outbound(pod, plan).iter().map(|l| l.bind));
        }
        for pod in plan.pods.values() {
            all.extend(pod.ports().into_iter().map(|port| SocketAddr::new(IpAddr::V4(self.app(pod)), port)));
        }
        all
    }

    fn entrance(self, pod: &Pod, port: u16) -> SocketAddr {
        if pod.injected {
            SocketAddr::new(self.sidecar(pod).into(), raised(port))
        } else {
            SocketAddr::new(self.app(pod).into(), port)
        }
    }

    fn door(self, pod: &Pod, service: &Service) -> Ipv4Addr {
        let low = |n: u16| u8::try_from(n).unwrap_or(u8::MAX);
        Ipv4Addr::new(127, self.first + 2, low(pod.number), low(service.number))
    }

    fn address(self, part: u8, number: u16) -> Ipv4Addr {
        let [high, low] = number.to_be_bytes();
        Ipv4Addr::new(127, self.first + part, high, low)
    }
}

fn raised(port: u16) -> u16 {
    if port < FIRST_FREE_PORT { port + RAISED } else { port }
}

fn variable(name: &str, namespace: &str) -> String {
    format!("{name}_{namespace}").to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::{
        super::plan::{Exclusions, Key},
        *,
    };
    use postern_config::documents::kubernetes::{Container, ContainerPort};

    fn pod(name: &str, number: u16, injected: bool) -> Pod {
        let ports = vec![ContainerPort { name: "http".into(), port: 8080 }];
        Pod {
            key: Key::new("pay", name),
            deployment: None,
            service_account: "default".into(),
            injected,
            number,
            containers: vec![Container { name: "app".into(), ports, ..Container::default() }],
            interception: InterceptionMode::default(),
            exclusions: Exclusions::default(),
            app_metrics: None,
        }
    }

    fn sample() -> Plan {
        let mut plan = Plan::default();
        for p in [pod("api-0", 2, true), pod("old-0", 3, false)] {
            plan.pods.insert(p.key.clone(), p);
        }
        let key = Key::new("pay", "my-api");
        let ports =
            vec![ServicePort { port: 80, udp: false, endpoints: vec![(Key::new("pay", "api-0"), 8080)] }];
        let addresses = vec!["10.96.0.1".parse().unwrap()];
        plan.services.insert(key.clone(), Service { key, addresses, number: 1, ports });
        plan
    }

    #[test]
    fn a_pod_in_the_mesh_goes_through_its_own_doors() {
        let (layout, plan) = (Layout::new(0), sample());
        let api = &plan.pods[&Key::new("pay", "api-0")];
        let at = |s: &str| s.parse::<SocketAddr>().unwrap();
        assert_eq!(layout.app(api).to_string(), "127.16.0.2");
        assert_eq!(
            layout.inbound(api),
            [Listener { bind: at("127.17.0.2:8080"), destination: at("127.16.0.2:8080") }]
        );
        assert_eq!(
            layout.outbound(api, &plan),
            [Listener { bind: at("127.18.2.1:20080"), destination: at("10.96.0.1:80") }]
        );
        assert_eq!(layout.annotations(api)["postern.dev/inbound"], "8080=127.17.0.2:8080");
        assert_eq!(
            layout.variables(api, &plan)[0],
            ("MY_API_PAY_URL".into(), "http://127.18.2.1:20080".into())
        );
    }

    #[test]
    fn a_pod_outside_the_mesh_knocks_at_the_sidecar() {
        let (layout, plan) = (Layout::new(0), sample());
        let old = &plan.pods[&Key::new("pay", "old-0")];
        assert!(layout.annotations(old).is_empty());
        assert_eq!(
            layout.variables(old, &plan)[0],
            ("MY_API_PAY_URL".into(), "http://127.17.0.2:8080".into())
        );
    }

    #[test]
    fn addresses_stay_within_loopback_for_every_folder() {
        for fingerprint in 0..1000 {
            let layout = Layout::new(fingerprint);
            assert!((16..=241).contains(&layout.first), "{layout:?}");
        }
    }
}
