//! `postern redirect`: the rules by themselves, for init containers and for people who want to read them.
use super::{
    apply,
    rules::{self, Exemption, Family, Redirect},
};
use crate::{
    failure::{Failure, OK},
    tools::{Backend, Tools},
};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use postern_proxy::bootstrap::{InterceptionMode, TPROXY_MARK};

/// Flags of `postern redirect`.
#[derive(Args, Debug, Clone)]
pub struct RedirectArgs {
    #[command(flatten)]
    action: Action,
    /// How inbound connections are taken; with `tproxy` the app sees the address of its caller, and the sidecar needs
    /// `--interception-mode tproxy` and CAP_NET_ADMIN
    #[arg(long, value_enum, ignore_case = true, default_value_t)]
    mode: InterceptionMode,
    /// User and group of the sidecar, whose own traffic is left alone
    #[arg(long, default_value_t = rules::PROXY_UID, conflicts_with = "mark")]
    uid: u32,
    /// Tell the sidecar's traffic by this socket mark instead of its user
    #[arg(long)]
    mark: Option<u32>,
    /// Inbound ports that do not go through the sidecar
    #[arg(long, value_delimiter = ',', value_name = "PORT,…")]
    exclude_inbound_ports: Vec<u16>,
    /// Outbound ports that do not go through the sidecar
    #[arg(long, value_delimiter = ',', value_name = "PORT,…")]
    exclude_outbound_ports: Vec<u16>,
    /// Destinations that do not go through the sidecar
    #[arg(long, value_delimiter = ',', value_name = "CIDR,…")]
    exclude_outbound_ranges: Vec<IpNet>,
    /// Apply even in the machine's own network, whose whole TCP traffic then goes to the sidecar's ports
    #[arg(long, requires = "apply")]
    host_network: bool,
    /// Which tool to use
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    backend: Choice,
}

#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
struct Action {
    /// Print the rules and change nothing
    #[arg(long)]
    print: bool,
    /// Install the rules in the network namespace this runs in (replaces earlier ones)
    #[arg(long)]
    apply: bool,
    /// Remove the rules
    #[arg(long)]
    remove: bool,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Auto,
    Nft,
    Iptables,
}

/// Runs the command; the exit code.
pub fn run(args: &RedirectArgs) -> u8 {
    match redirect(args) {
        Ok(()) => OK,
        Err(failure) => failure.report(),
    }
}

fn redirect(args: &RedirectArgs) -> Result<(), Failure> {
    if args.mark == Some(TPROXY_MARK) {
        return Err(Failure::new(
            format!("the mark {TPROXY_MARK} is that of TPROXY's connections to the app."),
            "Choose another one for the sidecar's traffic.",
        ));
    }
    let redirect = Redirect {
        mode: args.mode,
        exemption: match args.mark {
            Some(mark) => Exemption::Mark(mark),
            None => Exemption::User { uid: args.uid, gid: args.uid },
        },
        free_inbound_ports: args.exclude_inbound_ports.clone(),
        free_outbound_ports: args.exclude_outbound_ports.clone(),
        free_outbound_ranges: args.exclude_outbound_ranges.clone(),
    };
    if args.action.print {
        // Printing needs no tool, so that the rules can be read on any machine.
        match args.backend {
            Choice::Auto | Choice::Nft => {
                if args.mode == InterceptionMode::Tproxy {
                    for (flag, family) in [("-4", Family::V4), ("-6", Family::V6)] {
                        for line in rules::routes(family).lines() {
                            println!("# ip {flag} {line}");
                        }
                    }
                }
                print!("{}", rules::nft(&redirect));
            }
            Choice::Iptables if args.mode == InterceptionMode::Tproxy => {
                return Err(Failure::new(
                    "there are iptables rules for redirect only.",
                    "Leave out --backend, or --mode.",
                ));
            }
            Choice::Iptables => {
                println!("# iptables-restore --noflush\n{}", rules::iptables(&redirect, Family::V4));
                print!("# ip6tables-restore --noflush\n{}", rules::iptables(&redirect, Family::V6));
            }
        }
        return Ok(());
    }
    if args.action.apply && !args.host_network && is_host_network() {
        return Err(Failure::new(
            "this is the machine's own network, and the rules would send all its TCP traffic to ports where no sidecar listens.",
            "Run it inside the pod's network (`nsenter --net=…`, an init container); --host-network insists.",
        ));
    }
    let tools = Tools::from_environment();
    let backend = match args.backend {
        Choice::Nft => Backend::Nft,
        Choice::Iptables => Backend::Iptables,
        Choice::Auto => tools.backend()?,
    };
    let ipv6 = std::path::Path::new("/proc/sys/net/ipv6").is_dir();
    if args.action.apply && args.mode == InterceptionMode::Tproxy {
        // Rules first: without routes nothing gets through, without rules everything does.
        apply::install(&tools, backend, &redirect)?;
        return apply::route_back(&tools, ipv6);
    }
    if args.action.apply {
        apply::install(&tools, backend, &redirect)?;
    } else {
        apply::remove(&tools, backend)?;
    }
    // Where there is no `ip` there are no routes of ours.
    if tools.find("ip").is_some() { apply::unroute(&tools, ipv6) } else { Ok(()) }
}

fn is_host_network() -> bool {
    is_first_network(|process, kind| {
        let link = std::fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?;
        Some(link.to_string_lossy().into_owned())
    })
}

/// Whether this is the network that the machine started with: by its number, fixed since Linux 6.17 (`NET_NS_INIT_INO`), else
/// by the first process being in it, as far as that is the machine's own (`PROC_PID_INIT_INO`) and may be looked at.
fn is_first_network(space: impl Fn(&str, &str) -> Option<String>) -> bool {
    let Some(own) = space("self", "net") else { return false };
    let outside = space("self", "pid").is_some_and(|link| link == "pid:[4026531836]");
    own == "net:[4026531833]" || (outside && space("1", "net").is_some_and(|first| first == own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn check(own_net: &str, own_pid: &str, first_net: Option<&str>, expected: bool) {
        let known = is_first_network(|process, kind| match (process, kind) {
            ("self", "net") => Some(own_net.to_owned()),
            ("self", "pid") => Some(own_pid.to_owned()),
            _ => first_net.map(str::to_owned),
        });
        assert_eq!(known, expected, "{own_net} {own_pid} {first_net:?}");
    }

    #[test]
    fn the_machines_own_network_is_recognised() {
        let (machine, container) = ("pid:[4026531836]", "pid:[4026532300]");
        check("net:[4026531833]", container, None, true);
        check("net:[4026531840]", machine, Some("net:[4026531840]"), true);
        check("net:[4026532200]", machine, Some("net:[4026531840]"), false);
        check("net:[4026532200]", machine, None, false);
        // In a container the first process is the container's own, and shares its network.
        check("net:[4026532200]", container, Some("net:[4026532200]"), false);
    }
}
