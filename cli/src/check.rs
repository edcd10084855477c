//! `postern check DIR`: everything that is wrong with a folder, without starting anything.
use crate::{
    failure::{NEGATIVE, OK},
    folder,
    up::plan::Plan,
};
use clap::Args;
use std::path::PathBuf;

/// Flags of `postern check`.
#[derive(Args, Debug, Clone)]
pub struct CheckArgs {
    /// The folder of YAML files
    dir: PathBuf,
}

/// Runs the command: 0 when all is well (warnings allowed), 2 when the folder would be rejected, 1 when it cannot be read.
pub fn run(args: &CheckArgs) -> u8 {
    let folder = match folder::locate(&args.dir).and_then(|_| folder::examine(&args.dir)) {
        Ok(folder) => folder,
        Err(failure) => return failure.report(),
    };
    folder.print_problems();
    let shown = args.dir.display();
    if folder.has_errors() {
        println!("`{shown}`: {}.", folder.tally());
        return NEGATIVE;
    }
    match Plan::make(&folder.documents, &Plan::default()) {
        Ok(plan) => {
            let findings = if folder.problems.is_empty() { "no problems".to_owned() } else { folder.tally() };
            println!("`{shown}`: {} pods, {} services, {findings}.", plan.pods.len(), plan.services.len());
            OK
        }
        Err(failure) => {
            failure.report();
            NEGATIVE
        }
    }
}
