//! The slim binary that the sidecar image ships: the same as `postern proxy`.

use clap::Parser;
use postern_proxy::Flags;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The sidecar of the Postern mesh
#[derive(Parser)]
#[command(name = "postern-proxy", version)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

/// Wrong usage, as all our programs say it (sysexits).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    postern_proxy::avoid_huge_pages();
    match Cli::try_parse() {
        Ok(cli) => postern_proxy::run(cli.flags),
        Err(error) => {
            let is_wrong = error.use_stderr();
            // When even that cannot be printed there is nobody to tell.
            let _ = error.print();
            if is_wrong { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
        }
    }
}
