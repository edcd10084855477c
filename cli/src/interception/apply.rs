//! Hands rules to the kernel in one transaction, through `nft` or the iptables tools.
use super::{
    rules::{self, Family, Redirect},
    services::{self, VirtualAddress},
};
use crate::{
    failure::Failure,
    tools::{Backend, Tools},
};
use postern_proxy::bootstrap::InterceptionMode;
use std::{
    io::Write,
    process::{Command, Stdio},
};

/// Sends the app's answers back to the sidecar, for TPROXY, in the network namespace of the calling thread. Its loopback interface must
/// be up.
///
/// # Errors
/// `ip` is missing or refuses.
pub fn route_back(tools: &Tools, ipv6: bool) -> Result<(), Failure> {
    for (flag, family) in families(ipv6) {
        if !is_routed(tools, flag)? {
            feed(tools.command("ip").args([flag, "-batch", "-"]), &rules::routes(family))?;
        }
    }
    Ok(())
}

/// Takes those routes out again, where they are.
///
/// # Errors
/// As `route_back`.
pub fn unroute(tools: &Tools, ipv6: bool) -> Result<(), Failure> {
    for (flag, _) in families(ipv6) {
        if is_routed(tools, flag)? {
            feed(tools.command("ip").args([flag, "-batch", "-"]), &rules::routes_removal())?;
        }
    }
    Ok(())
}

fn families(ipv6: bool) -> impl Iterator<Item = (&'static str, Family)> {
    [("-4", Family::V4)].into_iter().chain(ipv6.then_some(("-6", Family::V6)))
}

fn is_routed(tools: &Tools, family: &str) -> Result<bool, Failure> {
    let list = tools.command("ip").args([family, "rule", "list"]).stdin(Stdio::null()).output();
    let list = list.map_err(|e| unstartable("ip", &e))?;
    Ok(rules::routed_in(&String::from_utf8_lossy(&list.stdout)))
}

/// Installs the redirect rules in the network namespace of the calling thread, both families, in place of earlier ones of ours.
///
/// # Errors
/// The tool is missing or refuses; with nft nothing has changed then. TPROXY is made with nft alone.
pub fn install(tools: &Tools, backend: Backend, redirect: &Redirect) -> Result<(), Failure> {
    match backend {
        Backend::Iptables if redirect.mode == InterceptionMode::Tproxy => Err(Failure::new(
            "TPROXY needs `nft`; there are iptables rules for redirect only.",
            crate::tools::package_hint("nft"),
        )),
        Backend::Nft => feed(tools.command("nft").args(["-f", "-"]), &rules::nft(redirect)),
        Backend::Iptables => {
            remove(tools, backend)?;
            for (program, family) in [("iptables-restore", Family::V4), ("ip6tables-restore", Family::V6)] {
                feed(tools.command(program).arg("--noflush"), &rules::iptables(redirect, family))?;
            }
            Ok(())
        }
    }
}

/// Removes our redirect rules, when they are there.
///
/// # Errors
/// As `install`.
pub fn remove(tools: &Tools, backend: Backend) -> Result<(), Failure> {
    match backend {
        Backend::Nft => feed(tools.command("nft").args(["-f", "-"]), &rules::nft_removal()),
        Backend::Iptables => {
            for (save, restore) in
                [("iptables-save", "iptables-restore"), ("ip6tables-save", "ip6tables-restore")]
            {
                let saved = tools
                    .command(save)
                    .args(["-t", "nat"])
                    .stdin(Stdio::null())
                    .output()
                    .map_err(|e| unstartable(save, &e))?;
                if rules::present_in(&String::from_utf8_lossy(&saved.stdout)) {
                    feed(tools.command(restore).arg("--noflush"), &rules::iptables_removal())?;
                }
            }
            Ok(())
        }
    }
}

/// Installs or replaces the rules of service addresses in the network namespace of the calling thread.
///
/// # Errors
/// As `install`.
pub fn install_services(
    tools: &Tools,
    backend: Backend,
    addresses: &[VirtualAddress],
    first: bool,
) -> Result<(), Failure> {
    match backend {
        Backend::Nft => feed(tools.command("nft").args(["-f", "-"]), &services::nft(addresses)),
        Backend::Iptables => {
            for (program, v4) in [("iptables-restore", true), ("ip6tables-restore", false)] {
                feed(tools.command(program).arg("--noflush"), &services::iptables(addresses, v4, first))?;
            }
            Ok(())
        }
    }
}

/// Runs a tool with `text` on its standard input.
///
/// # Errors
/// It cannot be started, or says no; what it said is part of the cause.
pub fn feed(command: &mut Command, text: &str) -> Result<(), Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| unstartable(&program, &e))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that stops reading early tells why on its standard error, which is read below.
        let _ = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| unstartable(&program, &e))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|l| !l.is_empty()).take(3).collect::<Vec<_>>().join("; ");
    Err(Failure::new(
        format!("`{program}` failed ({}): {said}.", output.status),
        "Run as root, or where user namespaces are allowed; the kernel must support nat for inet (nf_tables).",
    ))
}

fn unstartable(program: &str, e: &std::io::Error) -> Failure {
    Failure::new(format!("`{program}` could not be started: {e}."), crate::tools::package_hint(program))
}
