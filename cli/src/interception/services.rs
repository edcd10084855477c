//! Service addresses where no sidecar answers for them: the rules that kube-proxy would make. Pure text.
use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

/// The name of our nft table (family `inet`).
pub const TABLE: &str = "postern-services";

/// One port of one service address, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualAddress {
    /// The address and port that apps dial.
    pub address: SocketAddr,
    /// UDP instead of TCP.
    pub udp: bool,
    /// Endpoints of any family; those of the other family are left out.
    pub endpoints: Vec<SocketAddr>,
}

impl VirtualAddress {
    fn protocol(&self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }

    fn reachable(&self) -> Vec<SocketAddr> {
        self.endpoints.iter().filter(|e| e.is_ipv4() == self.address.is_ipv4()).copied().collect()
    }
}

/// One transaction that replaces our table whole. Each new connection goes to a random endpoint; an address without
/// endpoints gets no rule (the hub then answers that it is unreachable).
pub fn nft(addresses: &[VirtualAddress]) -> String {
    let mut text = format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    text.push_str("\tchain outbound {\n\t\ttype nat hook output priority -100; policy accept;\n");
    for virtual_address in addresses {
        let endpoints = virtual_address.reachable();
        let family = if virtual_address.address.is_ipv4() { "ip" } else { "ip6" };
        let to = match endpoints.as_slice() {
            [] => continue,
            [one] => one.to_string(),
            many => {
                let choices: Vec<_> = many
                    .iter()
                    .enumerate()
                    .map(|(i, e)| format!("{i} : {} . {}", e.ip(), e.port()))
                    .collect();
                format!("numgen random mod {} map {{ {} }}", many.len(), choices.join(", "))
            }
        };
        let _ = writeln!(
            text,
            "\t\t{family} daddr {} {} dport {} dnat {family} to {to}",
            virtual_address.address.ip(),
            virtual_address.protocol(),
            virtual_address.address.port(),
        );
    }
    text.push_str("\t}\n}\n");
    text
}

/// Replaces the content of our chain, for `iptables-restore --noflush` (v4) and `ip6tables-restore --noflush` (v6).
/// `first` adds the jump into it.
pub fn iptables(addresses: &[VirtualAddress], v4: bool, first: bool) -> String {
    let mut text = String::from("*nat\n:POSTERN_SERVICES - [0:0]\n");
    if first {
        text.push_str("-A OUTPUT -j POSTERN_SERVICES\n");
    }
    for virtual_address in addresses.iter().filter(|a| a.address.is_ipv4() == v4) {
        let endpoints = virtual_address.reachable();
        let prefix = if v4 { 32 } else { 128 };
        for (i, endpoint) in endpoints.iter().enumerate() {
            let left = endpoints.len() - i;
            let chance = if left > 1 {
                format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64)
            } else {
                String::new()
            };
            let _ = writeln!(
                text,
                "-A POSTERN_SERVICES -d {}/{prefix} -p {} --dport {}{chance} -j DNAT --to-destination {endpoint}",
                virtual_address.address.ip(),
                virtual_address.protocol(),
                virtual_address.address.port(),
            );
        }
    }
    text.push_str("COMMIT\n");
    text
}

/// Whether the address is one that a pod could reach over the mesh's bridge at all.
pub fn is_routable(address: IpAddr) -> bool {
    !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn sample() -> Vec<VirtualAddress> {
        let at = |s: &str| s.parse::<SocketAddr>().unwrap();
        vec![
            VirtualAddress {
                address: at("10.96.0.1:80"),
                udp: false,
                endpoints: vec![at("10.244.0.2:8080"), at("10.244.0.3:8080"), at("[fd00:244::2]:8080")],
            },
            VirtualAddress {
                address: at("[fd00:96::1]:80"),
                udp: false,
                endpoints: vec![at("[fd00:244::2]:8080")],
            },
            VirtualAddress { address: at("10.96.0.2:53"), udp: true, endpoints: vec![at("10.244.0.4:53")] },
            VirtualAddress { address: at("10.96.0.3:80"), udp: false, endpoints: vec![] },
        ]
    }

    #[test]
    fn nft_spreads_over_endpoints_of_the_same_family() {
        let expected = "\
table inet postern-services {
}
delete table inet postern-services
table inet postern-services {
\tchain outbound {
\t\ttype nat hook output priority -100; policy accept;
\t\tip daddr 10.96.0.1 tcp dport 80 dnat ip to numgen random mod 2 map { 0 : 10.244.0.2 . 8080, 1 : 10.244.0.3 . 8080 }
\t\tip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [fd00:244::2]:8080
\t\tip daddr 10.96.0.2 udp dport 53 dnat ip to 10.244.0.4:53
\t}
}
";
        assert_eq!(nft(&sample()), expected);
    }

    #[test]
    fn iptables_spreads_with_equal_chances() {
        let expected = "\
*nat
:POSTERN_SERVICES - [0:0]
-A OUTPUT -j POSTERN_SERVICES
-A POSTERN_SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -m statistic --mode random --probability 0.5000000000 -j DNAT --to-destination 10.244.0.2:8080
-A POSTERN_SERVICES -d 10.96.0.1/32 -p tcp --dport 80 -j DNAT --to-destination 10.244.0.3:8080
-A POSTERN_SERVICES -d 10.96.0.2/32 -p udp --dport 53 -j DNAT --to-destination 10.244.0.4:53
COMMIT
";
        assert_eq!(iptables(&sample(), true, true), expected);
        let v6 = iptables(&sample(), false, false);
        assert!(
            v6.contains("-d fd00:96::1/128 -p tcp --dport 80 -j DNAT --to-destination [fd00:244::2]:8080"),
            "{v6}"
        );
        assert!(!v6.contains("-A OUTPUT"), "{v6}");
    }
}
