//! The control plane alone, as its image ships it. `postern control-plane` is the same.

use clap::Parser as _;
use std::process::ExitCode;

/// The control plane of a Postern mesh: certificates, policy and destinations for sidecars.
#[derive(clap::Parser)]
#[command(name = "postern-control-plane", version)]
struct Program {
    #[command(flatten)]
    flags: postern_control_plane::Flags,
}

/// Exit code of wrong usage (sysexits.h, EX_USAGE).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    match Program::try_parse() {
        Ok(program) => postern_control_plane::run(program.flags),
        Err(error) => {
            let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
            let _ = error.print();
            code
        }
    }
}
