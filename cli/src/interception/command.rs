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

/// Flags of `postern redirect`.
#[derive(Args, Debug, Clone)]
pub struct RedirectArgs {
    #[command(flatten)]
    action: Action,
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
    let redirect = Redirect {
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
            Choice::Auto | Choice::Nft => print!("{}", rules::nft(&redirect)),
            Choice::Iptables => {
                println!("# iptables-restore --noflush\n{}", rules::iptables(&redirect, Family::V4));
                print!("# ip6tables-restore --noflush\n{}", rules::iptables(&redirect, Family::V6));
            }
        }
        return Ok(());
    }
    let tools = Tools::from_environment();
    let backend = match args.backend {
        Choice::Nft => Backend::Nft,
        Choice::Iptables => Backend::Iptables,
        Choice::Auto => tools.backend()?,
    };
    if args.action.apply { apply::install(&tools, backend, &redirect) } else { apply::remove(&tools, backend) }
}
