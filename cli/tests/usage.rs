//! The program as a whole: what every command line has in common. (That this file needs the binary also makes
//! `cargo test --workspace` build it for the whole-mesh tests.)
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn postern(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_postern")).args(arguments).output().unwrap()
}

fn check(arguments: &[&str], code: i32, says: &str) {
    let output = postern(arguments);
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?} said: {said}");
    assert!(said.contains(says), "`{says}` is missing in what {arguments:?} said: {said}");
}

#[test]
fn asking_for_help_or_the_version_is_no_mistake() {
    check(&["--help"], 0, "Usage: postern");
    check(&["--version"], 0, env!("CARGO_PKG_VERSION"));
    for command in [
        "demo",
        "up",
        "exec",
        "check",
        "proxy",
        "control-plane",
        "redirect",
        "app",
        "why",
        "test",
        "impact",
        "generate",
        "ca",
        "certs",
        "status",
        "top",
        "denials",
        "dashboard",
    ] {
        check(&[command, "--help"], 0, "Usage: postern");
    }
}

#[test]
fn a_wrong_command_line_ends_with_64_and_names_the_mistake() {
    check(&[], 64, "Usage: postern");
    check(&["upp"], 64, "unrecognized subcommand 'upp'");
    check(&["up"], 64, "<DIR>");
    check(&["proxy", "--control-plane", "127.0.0.1:15012"], 64, "--trust-bundle");
    check(&["up", "somewhere", "--certificate-lifetime", "7200"], 64, "7200");
    check(&["check"], 64, "<DIR>");
    check(&["check", "--expires-within", "soon"], 64, "soon");
    check(&["check", "--expires-within", "30d", "-o", "sarif"], 64, "json");
    check(&["ca", "rotate", "--force"], 64, "--step");
    check(&["ca", "revoke"], 64, "<ID>");
    check(&["why"], 64, "<FROM>");
    check(&["why", "a", "b", "GET", "/"], 64, "--filename");
    check(&["why", "a", "--id", "0a"], 64, "--id");
    check(&["denials", "--since", "2h"], 64, "the last hour");
    check(&["top", "--since", "soon"], 64, "soon");
}

#[test]
fn a_folder_that_is_not_there_is_an_operational_error() {
    check(&["up", "no-such-folder"], 1, "no-such-folder");
    check(&["check", "no-such-folder"], 1, "no-such-folder");
    check(&["certs", "--socket", "no-such.sock"], 1, "no-such.sock");
    check(&["dashboard", "--listen", "0.0.0.0:0", "--socket", "no-such.sock"], 64, "others can reach");
    for command in ["status", "top", "denials", "dashboard"] {
        check(&[command, "--socket", "no-such.sock"], 1, "does not answer");
    }
    check(&["why", "--id", "0a", "--socket", "no-such.sock"], 1, "does not answer");
    check(&["ca", "status", "--socket", "no-such.sock"], 1, "does not answer");
}
