//! The wires: a bridge in the hub's network, and from it one pair of virtual cables for each pod.
use super::{
    namespaces::{Dressing, Namespaces, own_proc},
    plan::{HUB_V4, HUB_V6, Pod},
};
use crate::{
    failure::Failure,
    interception::{Exemption, Redirect, apply, services::VirtualAddress},
    tools::{Backend, Tools},
};
use postern_proxy::bootstrap::InterceptionMode;
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
};

/// The bridge in the hub; what crosses between pods crosses here.
pub const BRIDGE: &str = "postern0";
/// The bridge's own hardware address. Without one it takes the lowest of its cables, and changes it as pods come and go:
/// then what pods send to the hub is lost until their neighbour tables notice, seconds later.
const HUB_HARDWARE: &str = "02:00:0a:f4:00:01";

/// The names of a pod, in its folder.
pub const HOSTS: &str = "hosts";
/// Which family a pod's programs try first, in its folder.
pub const ADDRESS_ORDER: &str = "gai.conf";
/// The name of the file with the name servers.
pub const RESOLVER: &str = "resolv.conf";

/// The network of one mesh.
#[derive(Debug)]
pub struct Network {
    tools: Tools,
    backend: Backend,
    exemption: Exemption,
    ipv6: bool,
    cables: AtomicU32,
}

/// One pod's end of it.
#[derive(Debug)]
pub struct Wired {
    /// Its namespaces.
    pub namespaces: Namespaces,
    /// The name of its cable in the hub.
    pub cable: String,
}

impl Network {
    /// Builds the hub in the network namespace of this process.
    ///
    /// # Errors
    /// A tool is missing or the kernel refuses.
    pub fn build(tools: Tools, exemption: Exemption) -> Result<Self, Failure> {
        let backend = tools.require_network()?;
        let ipv6 = Path::new("/proc/sys/net/ipv6").is_dir();
        // The hub routes nothing to anywhere, but as a router it tells senders so at once, instead of silence.
        set("net/ipv4/ip_forward", "1");
        let mut batch = format!(
            "link set lo up\nlink add {BRIDGE} address {HUB_HARDWARE} type bridge\naddr add {HUB_V4}/16 dev {BRIDGE}\n"
        );
        if ipv6 {
            prepare_ipv6();
            set("net/ipv6/conf/all/forwarding", "1");
            batch.push_str(&format!("addr add {HUB_V6}/64 dev {BRIDGE} nodad\n"));
        }
        batch.push_str(&format!("link set {BRIDGE} up\n"));
        apply::feed(tools.command("ip").args(["-batch", "-"]), &batch)?;
        Ok(Self { tools, backend, exemption, ipv6, cables: AtomicU32::new(0) })
    }

    /// Makes a pod's namespaces with addresses, routes and all rules in place, so that no program of the pod ever runs without them.
    /// `folder` is the pod's own, with `HOSTS`, `ADDRESS_ORDER` and `RESOLVER` in it. Its programs find `shown` where `hidden` is.
    ///
    /// # Errors
    /// A tool or the kernel refuses; the pod's namespaces are gone then.
    pub fn wire(
        &self,
        pod: &Pod,
        folder: &Path,
        hidden: &Path,
        shown: Option<&Path>,
        services: Vec<VirtualAddress>,
    ) -> Result<Wired, Failure> {
        let number = self.cables.fetch_add(1, Ordering::Relaxed);
        let cable = format!("pst{number}");
        let batch = self.batch(pod, &cable);
        let dressing = Dressing {
            host_name: pod.key.name.chars().take(63).collect(),
            hosts: folder.join(HOSTS),
            address_order: folder.join(ADDRESS_ORDER),
            resolver: folder.join(RESOLVER),
            hidden: hidden.to_owned(),
            shown: shown.map(Path::to_owned),
        };
        let redirect = pod.injected.then(|| Redirect {
            mode: pod.interception,
            exemption: self.exemption,
            free_inbound_ports: pod.exclusions.inbound_ports.clone(),
            free_outbound_ports: pod.exclusions.outbound_ports.clone(),
            free_outbound_ranges: pod.exclusions.outbound_ranges.clone(),
        });
        let (tools, backend, ipv6) = (self.tools.clone(), self.backend, self.ipv6);
        let namespaces = Namespaces::make(dressing, move || {
            if ipv6 {
                prepare_ipv6();
            }
            // Rules first: nothing in here ever has a network without them.
            if let Some(redirect) = &redirect {
                apply::install(&tools, backend, redirect)?;
            }
            apply::install_services(&tools, backend, &services, true)?;
            apply::feed(tools.command("ip").args(["-batch", "-"]), &batch)?;
            match redirect {
                Some(Redirect { mode: InterceptionMode::Tproxy, .. }) => apply::route_back(&tools, ipv6),
                _ => Ok(()),
            }
        })?;
        let plug = format!("link set dev {cable} master {BRIDGE} up\n");
        apply::feed(self.tools.command("ip").args(["-batch", "-"]), &plug)?;
        Ok(Wired { namespaces, cable })
    }

    /// Replaces the rules of service addresses in one pod.
    ///
    /// # Errors
    /// The tool refuses; the old rules stay.
    pub fn update_services(&self, wired: &Wired, services: Vec<VirtualAddress>) -> Result<(), Failure> {
        let (tools, backend) = (self.tools.clone(), self.backend);
        wired
            .namespaces
            .within(move || Ok(apply::install_services(&tools, backend, &services, false)))
            .map_err(|e| {
                Failure::new(format!("the pod's network cannot be entered: {e}."), "Restart the mesh.")
            })?
    }

    /// Pulls a pod's cable, so that its address is free before the kernel has tidied up.
    pub fn unplug(&self, cable: &str) {
        let _ = apply::feed(self.tools.command("ip").args(["-batch", "-"]), &format!("link del {cable}\n"));
    }

    fn batch(&self, pod: &Pod, cable: &str) -> String {
        let (v4, v6) = pod.addresses();
        let hub = own_proc().join("ns/net");
        let [high, low] = pod.number.to_be_bytes();
        // The same hardware address whenever the same address comes back, so that nobody's neighbour table is wrong.
        let hardware = format!("02:00:0a:f4:{high:02x}:{low:02x}");
        let mut batch = format!(
            "link set lo up\n\
             link add eth0 address {hardware} type veth peer name {cable} netns {}\n\
             addr add {v4}/16 dev eth0\n",
            hub.display()
        );
        if self.ipv6 {
            // ::6 is the source of what a sidecar hands to its app (127.0.0.6 is on every loopback interface already).
            batch.push_str(&format!("addr add ::6/128 dev lo nodad\naddr add {v6}/64 dev eth0 nodad\n"));
        }
        batch.push_str(&format!("link set eth0 up\nroute add default via {HUB_V4}\n"));
        if self.ipv6 {
            batch.push_str(&format!("route add default via {HUB_V6} dev eth0\n"));
        }
        batch
    }
}

/// Addresses work at once: nobody else can have them, so nobody needs to be asked.
fn prepare_ipv6() {
    for scope in ["all", "default"] {
        set(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0");
        set(&format!("net/ipv6/conf/{scope}/accept_dad"), "0");
        set(&format!("net/ipv6/conf/{scope}/accept_ra"), "0");
    }
}

fn set(key: &str, value: &str) {
    // A comfort only: without it the mesh works, with a second more here or there.
    let _ = std::fs::write(Path::new("/proc/sys").join(key), value);
}
