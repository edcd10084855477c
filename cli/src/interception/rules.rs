//! The redirect rules of a pod with a sidecar, as text for `nft -f -` or `iptables-restore`. Pure.
//!
//! The meaning is that of Istio's rules (REDIRECT mode), in this order:
//! inbound TCP goes to the sidecar, but for the ports that are the sidecar's own;
//! the passthrough source (127.0.0.6, ::6) is left alone;
//! what the sidecar sends to its own pod's address comes in again through inbound, everything else it sends is free;
//! the app talking to itself is free; the rest goes out through the sidecar.
//!
//! With TPROXY inbound connections keep their addresses, and the sidecar calls the app from the caller's. Between those two the mark
//! `TPROXY_MARK` tells what belongs together: the app's answers, which are addressed to another machine, turn back to the
//! sidecar by it and by a route of their own ([`routes`]). What comes from the network as if it were part of such a connection is dropped,
//! and what nobody takes is refused: without its sidecar a pod is closed.
use ipnet::IpNet;
use postern_proxy::bootstrap::{InterceptionMode, TPROXY_MARK};
use std::fmt::Write;

/// Where the sidecar takes inbound traffic.
pub const INBOUND_PORT: u16 = 15006;
/// Where the sidecar takes outbound traffic.
pub const OUTBOUND_PORT: u16 = 15001;
/// The ports of the pod that are never redirected inbound: HBONE, merged metrics, probes, metrics.
pub const FREE_INBOUND_PORTS: [u16; 4] = [15008, 15020, 15021, 15090];
/// User and group of the sidecar.
pub const PROXY_UID: u32 = 1337;
/// The socket mark of a sidecar that has no user of its own.
pub const PROXY_MARK: u32 = 1337;
/// The name of our nft table (family `inet`).
pub const TABLE: &str = "postern";

/// How the sidecar's own traffic is told from the app's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exemption {
    /// The sidecar runs as this user and group.
    User {
        /// user
        uid: u32,
        /// group
        gid: u32,
    },
    /// The sidecar marks its sockets (`SO_MARK`; the app lacks the capability to do so).
    Mark(u32),
}

impl Default for Exemption {
    fn default() -> Self {
        Self::User { uid: PROXY_UID, gid: PROXY_UID }
    }
}

/// What to redirect in one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// How inbound connections are taken: `sidecar.istio.io/interceptionMode`.
    pub mode: InterceptionMode,
    /// The sidecar's own traffic.
    pub exemption: Exemption,
    /// `traffic.sidecar.istio.io/excludeInboundPorts`.
    pub free_inbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/excludeOutboundPorts`.
    pub free_outbound_ports: Vec<u16>,
    /// `traffic.sidecar.istio.io/excludeOutboundIPRanges`.
    pub free_outbound_ranges: Vec<IpNet>,
}

/// An address family of iptables, which keeps two rule sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `iptables-restore`
    V4,
    /// `ip6tables-restore`
    V6,
}

/// One transaction for both families: replaces our table whole, so that it may be applied again at any time.
pub fn nft(redirect: &Redirect) -> String {
    let mut text = nft_removal();
    let mut line = |s: &str| {
        text.push_str(s);
        text.push('\n');
    };
    line(&format!("table inet {TABLE} {{"));
    let free = joined(&inbound_ports(redirect), ", ");
    line("\tchain inbound {");
    match redirect.mode {
        InterceptionMode::Redirect => {
            line("\t\ttype nat hook prerouting priority -100; policy accept;");
            line("\t\tmeta l4proto != tcp return");
            line(&format!("\t\ttcp dport {{ {free} }} return"));
            line(&format!("\t\tmeta l4proto tcp redirect to :{INBOUND_PORT}"));
        }
        InterceptionMode::Tproxy => {
            line("\t\ttype filter hook prerouting priority -150; policy accept;");
            line("\t\tmeta l4proto != tcp return");
            line("\t\tiifname \"lo\" return");
            line(&format!("\t\tct mark {TPROXY_MARK:#x} drop"));
            line("\t\tct direction reply return");
            line(&format!("\t\ttcp dport {{ {free} }} return"));
            line("\t\tfib daddr type != local return");
            line("\t\tsocket transparent 1 return");
            line(&format!("\t\tmeta l4proto tcp tproxy to :{INBOUND_PORT} return"));
            line("\t\treject with tcp reset");
            line("\t}");
            line("\tchain answers {");
            line("\t\ttype route hook output priority -150; policy accept;");
            line("\t\tmeta l4proto != tcp return");
            line(&format!("\t\tmeta mark {TPROXY_MARK:#x} ct state new ct mark set {TPROXY_MARK:#x} return"));
            line(&format!("\t\tct direction reply ct mark {TPROXY_MARK:#x} meta mark set {TPROXY_MARK:#x}"));
        }
    }
    line("\t}");
    line("\tchain outbound {");
    line("\t\ttype nat hook output priority -100; policy accept;");
    line("\t\tmeta l4proto != tcp return");
    if redirect.mode == InterceptionMode::Tproxy {
        line(&format!("\t\tmeta mark {TPROXY_MARK:#x} return"));
    }
    line("\t\toifname \"lo\" ip saddr 127.0.0.6 return");
    line("\t\toifname \"lo\" ip6 saddr ::6 return");
    match redirect.exemption {
        Exemption::User { uid, gid } => {
            line(&format!("\t\tmeta skuid {uid} goto sidecar"));
            line(&format!("\t\tmeta skgid {gid} goto sidecar"));
        }
        Exemption::Mark(mark) => line(&format!("\t\tmeta mark {mark:#x} goto sidecar")),
    }
    line("\t\toifname \"lo\" return");
    line("\t\tip daddr 127.0.0.0/8 return");
    line("\t\tip6 daddr ::1 return");
    if !redirect.free_outbound_ports.is_empty() {
        line(&format!("\t\ttcp dport {{ {} }} return", joined(&redirect.free_outbound_ports, ", ")));
    }
    for range in &redirect.free_outbound_ranges {
        let family = if matches!(range, IpNet::V4(_)) { "ip" } else { "ip6" };
        line(&format!("\t\t{family} daddr {} return", range.trunc()));
    }
    line(&format!("\t\tmeta l4proto tcp redirect to :{OUTBOUND_PORT}"));
    line("\t}");
    line("\tchain sidecar {");
    for (family, loopback) in [("ip", "127.0.0.0/8"), ("ip6", "::1")] {
        line(&format!(
            "\t\toifname \"lo\" {family} daddr != {loopback} tcp dport != 15008 redirect to :{INBOUND_PORT}"
        ));
    }
    line("\t\treturn");
    line("\t}");
    line("}");
    text
}

/// The routing table of TPROXY; Istio's number.
pub const ROUTES: u32 = 133;

/// What `ip -batch` is told for TPROXY in one family, without which the app's answers leave for the network.
pub fn routes(family: Family) -> String {
    let all = match family {
        Family::V4 => "0.0.0.0/0",
        Family::V6 => "::/0",
    };
    format!(
        "rule add fwmark {TPROXY_MARK:#x} lookup {ROUTES}\nroute replace local {all} dev lo table {ROUTES}\n"
    )
}

/// Takes `routes` out again; only valid while `routed_in` says that they are there.
pub fn routes_removal() -> String {
    format!("rule del fwmark {TPROXY_MARK:#x} lookup {ROUTES}\nroute flush table {ROUTES}\n")
}

/// Whether the output of `ip rule` shows ours.
pub fn routed_in(rules: &str) -> bool {
    rules.contains(&format!("fwmark {TPROXY_MARK:#x} lookup {ROUTES}"))
}

/// Removes our table, whether or not it is there.
pub fn nft_removal() -> String {
    format!("table inet {TABLE} {{\n}}\ndelete table inet {TABLE}\n")
}

/// Rules of one family for `iptables-restore --noflush`. Our chains are replaced; the two jumps into them are added, so
/// apply `iptables_removal` first when they may be there.
pub fn iptables(redirect: &Redirect, family: Family) -> String {
    let (passthrough, loopback) = match family {
        Family::V4 => ("127.0.0.6/32", "127.0.0.0/8"),
        Family::V6 => ("::6/128", "::1/128"),
    };
    let mut text = String::from("*nat\n");
    let mut rule = |chain: &str, what: &str| {
        let _ = writeln!(text, "-A {chain} {what}");
    };
    rule("PREROUTING", "-p tcp -j POSTERN_INBOUND");
    rule("OUTPUT", "-p tcp -j POSTERN_OUTBOUND");
    for port in inbound_ports(redirect) {
        rule("POSTERN_INBOUND", &format!("-p tcp --dport {port} -j RETURN"));
    }
    rule("POSTERN_INBOUND", &format!("-p tcp -j REDIRECT --to-ports {INBOUND_PORT}"));
    rule("POSTERN_OUTBOUND", &format!("-o lo -s {passthrough} -j RETURN"));
    match redirect.exemption {
        Exemption::User { uid, gid } => {
            rule("POSTERN_OUTBOUND", &format!("-m owner --uid-owner {uid} -g POSTERN_SIDECAR"));
            rule("POSTERN_OUTBOUND", &format!("-m owner --gid-owner {gid} -g POSTERN_SIDECAR"));
        }
        Exemption::Mark(mark) => {
            rule("POSTERN_OUTBOUND", &format!("-m mark --mark {mark:#x} -g POSTERN_SIDECAR"));
        }
    }
    rule("POSTERN_OUTBOUND", "-o lo -j RETURN");
    rule("POSTERN_OUTBOUND", &format!("-d {loopback} -j RETURN"));
    for port in &redirect.free_outbound_ports {
        rule("POSTERN_OUTBOUND", &format!("-p tcp --dport {port} -j RETURN"));
    }
    for range in &redirect.free_outbound_ranges {
        if matches!(range, IpNet::V4(_)) == (family == Family::V4) {
            rule("POSTERN_OUTBOUND", &format!("-d {} -j RETURN", range.trunc()));
        }
    }
    rule("POSTERN_OUTBOUND", &format!("-p tcp -j REDIRECT --to-ports {OUTBOUND_PORT}"));
    let own = format!("-o lo ! -d {loopback} -p tcp ! --dport 15008 -j REDIRECT --to-ports {INBOUND_PORT}");
    rule("POSTERN_SIDECAR", &own);
    rule("POSTERN_SIDECAR", "-j RETURN");
    text.push_str("COMMIT\n");
    text.replacen("*nat\n", &format!("*nat\n{}", declared_chains()), 1)
}

/// Takes our jumps and chains out again; only valid while `present_in` says that they are there.
pub fn iptables_removal() -> String {
    let mut text = String::from("*nat\n");
    text.push_str(&declared_chains());
    text.push_str("-D PREROUTING -p tcp -j POSTERN_INBOUND\n");
    text.push_str("-D OUTPUT -p tcp -j POSTERN_OUTBOUND\n");
    for chain in CHAINS {
        let _ = writeln!(text, "-X {chain}");
    }
    text.push_str("COMMIT\n");
    text
}

/// Whether the output of `iptables-save -t nat` shows our rules.
pub fn present_in(saved: &str) -> bool {
    saved.lines().any(|line| line.trim() == "-A OUTPUT -p tcp -j POSTERN_OUTBOUND")
}

const CHAINS: [&str; 3] = ["POSTERN_INBOUND", "POSTERN_OUTBOUND", "POSTERN_SIDECAR"];

fn declared_chains() -> String {
    CHAINS.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect()
}

fn inbound_ports(redirect: &Redirect) -> Vec<u16> {
    let mut ports: Vec<u16> =
        FREE_INBOUND_PORTS.iter().chain(&redirect.free_inbound_ports).copied().collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn joined(ports: &[u16], by: &str) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(by)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn the_nft_rules_of_an_ordinary_pod() {
        let expected = "\
table inet postern {
}
delete table inet postern
table inet postern {
\tchain inbound {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\ttcp dport { 15008, 15020, 15021, 15090 } return
\t\tmeta l4proto tcp redirect to :15006
\t}
\tchain outbound {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\toifname \"lo\" ip saddr 127.0.0.6 return
\t\toifname \"lo\" ip6 saddr ::6 return
\t\tmeta skuid 1337 goto sidecar
\t\tmeta skgid 1337 goto sidecar
\t\toifname \"lo\" return
\t\tip daddr 127.0.0.0/8 return
\t\tip6 daddr ::1 return
\t\tmeta l4proto tcp redirect to :15001
\t}
\tchain sidecar {
\t\toifname \"lo\" ip daddr != 127.0.0.0/8 tcp dport != 15008 redirect to :15006
\t\toifname \"lo\" ip6 daddr != ::1 tcp dport != 15008 redirect to :15006
\t\treturn
\t}
}
";
        assert_eq!(nft(&Redirect::default()), expected);
    }

    #[test]
    fn the_nft_rules_of_tproxy_differ_on_the_way_in_alone() {
        let text = nft(&Redirect { mode: InterceptionMode::Tproxy, ..Redirect::default() });
        let inbound = "\
\tchain inbound {
\t\ttype filter hook prerouting priority -150; policy accept;
\t\tmeta l4proto != tcp return
\t\tiifname \"lo\" return
\t\tct mark 0x53a drop
\t\tct direction reply return
\t\ttcp dport { 15008, 15020, 15021, 15090 } return
\t\tfib daddr type != local return
\t\tsocket transparent 1 return
\t\tmeta l4proto tcp tproxy to :15006 return
\t\treject with tcp reset
\t}
\tchain answers {
\t\ttype route hook output priority -150; policy accept;
\t\tmeta l4proto != tcp return
\t\tmeta mark 0x53a ct state new ct mark set 0x53a return
\t\tct direction reply ct mark 0x53a meta mark set 0x53a
\t}
";
        assert!(text.contains(inbound), "{text}");
        let after = |text: &str| text.split_once("\tchain outbound {").unwrap().1.to_owned();
        let exempt = "\t\tmeta mark 0x53a return\n";
        assert_eq!(after(&text).replacen(exempt, "", 1), after(&nft(&Redirect::default())));
        assert!(after(&text).find(exempt) < after(&text).find("goto sidecar"), "{text}");
    }

    #[test]
    fn the_routes_of_tproxy_are_recognised() {
        let rules = "0:\tfrom all lookup local\n32765:\tfrom all fwmark 0x53a lookup 133\n";
        assert!(routed_in(rules) && !routed_in("0:\tfrom all lookup local\n"));
        assert!(routes(Family::V6).ends_with("route replace local ::/0 dev lo table 133\n"));
    }

    #[test]
    fn a_marked_sidecar_is_exempt_by_mark_alone() {
        let text = nft(&Redirect { exemption: Exemption::Mark(PROXY_MARK), ..Redirect::default() });
        assert!(text.contains("\t\tmeta mark 0x539 goto sidecar\n"), "{text}");
        assert!(!text.contains("skuid") && !text.contains("skgid"), "{text}");
    }

    #[test]
    fn exclusions_come_before_the_redirect_and_in_their_family_only() {
        let redirect = Redirect {
            free_inbound_ports: vec![22],
            free_outbound_ports: vec![3306, 6379],
            free_outbound_ranges: vec!["10.1.2.3/8".parse().unwrap(), "fd01::/16".parse().unwrap()],
            ..Redirect::default()
        };
        let text = nft(&redirect);
        assert!(text.contains("tcp dport { 22, 15008, 15020, 15021, 15090 } return"), "{text}");
        let redirected = text.find("redirect to :15001").unwrap();
        for free in
            ["tcp dport { 3306, 6379 } return", "ip daddr 10.0.0.0/8 return", "ip6 daddr fd01::/16 return"]
        {
            assert!(text.find(free).unwrap() < redirected, "{free} in {text}");
        }
        let (v4, v6) = (iptables(&redirect, Family::V4), iptables(&redirect, Family::V6));
        assert!(v4.contains("-d 10.0.0.0/8 -j RETURN") && !v4.contains("fd01"), "{v4}");
        assert!(v6.contains("-d fd01::/16 -j RETURN") && !v6.contains("10.0.0.0"), "{v6}");
    }

    #[test]
    fn the_iptables_rules_of_an_ordinary_pod() {
        let expected = "\
*nat
:POSTERN_INBOUND - [0:0]
:POSTERN_OUTBOUND - [0:0]
:POSTERN_SIDECAR - [0:0]
-A PREROUTING -p tcp -j POSTERN_INBOUND
-A OUTPUT -p tcp -j POSTERN_OUTBOUND
-A POSTERN_INBOUND -p tcp --dport 15008 -j RETURN
-A POSTERN_INBOUND -p tcp --dport 15020 -j RETURN
-A POSTERN_INBOUND -p tcp --dport 15021 -j RETURN
-A POSTERN_INBOUND -p tcp --dport 15090 -j RETURN
-A POSTERN_INBOUND -p tcp -j REDIRECT --to-ports 15006
-A POSTERN_OUTBOUND -o lo -s 127.0.0.6/32 -j RETURN
-A POSTERN_OUTBOUND -m owner --uid-owner 1337 -g POSTERN_SIDECAR
-A POSTERN_OUTBOUND -m owner --gid-owner 1337 -g POSTERN_SIDECAR
-A POSTERN_OUTBOUND -o lo -j RETURN
-A POSTERN_OUTBOUND -d 127.0.0.0/8 -j RETURN
-A POSTERN_OUTBOUND -p tcp -j REDIRECT --to-ports 15001
-A POSTERN_SIDECAR -o lo ! -d 127.0.0.0/8 -p tcp ! --dport 15008 -j REDIRECT --to-ports 15006
-A POSTERN_SIDECAR -j RETURN
COMMIT
";
        assert_eq!(iptables(&Redirect::default(), Family::V4), expected);
        let v6 = expected.replace("127.0.0.6/32", "::6/128").replace("127.0.0.0/8", "::1/128");
        assert_eq!(iptables(&Redirect::default(), Family::V6), v6);
    }

    #[test]
    fn our_rules_are_recognised_in_a_saved_table() {
        assert!(present_in("*nat\n-A OUTPUT -p tcp -j POSTERN_OUTBOUND\nCOMMIT\n"));
        assert!(!present_in("*nat\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\nCOMMIT\n"));
    }
}
