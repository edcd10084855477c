//! The last step before a program runs in a pod: enter the pod's namespaces, give up rights, become the program.
//!
//! A process of its own does this, because a mount namespace can be entered by a single-threaded process only.
use super::kernel;
use clap::Args;
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
    unistd,
};
use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Exit code when the program cannot be started, as shells have it.
const NOT_STARTED: u8 = 127;

/// How to become the program.
#[derive(Args, Debug, Clone, Default)]
pub struct LaunchArgs {
    /// Network namespace to enter
    #[arg(long)]
    pub network: Option<PathBuf>,
    /// Mount namespace to enter
    #[arg(long)]
    pub mounts: Option<PathBuf>,
    /// Host name namespace to enter
    #[arg(long)]
    pub names: Option<PathBuf>,
    /// User and group to become
    #[arg(long)]
    pub user: Option<u32>,
    /// Bound what the program may have to these capabilities, which it keeps as another user; `none` for none
    #[arg(long, value_parser = bounds)]
    pub capabilities: Option<Bounds>,
    /// End when the process that started this one ends
    #[arg(long)]
    pub die_with_parent: bool,
    /// Folder to run in
    #[arg(long)]
    pub directory: Option<PathBuf>,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

/// Numbers of capabilities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bounds(pub Vec<i32>);

fn bounds(text: &str) -> Result<Bounds, String> {
    if text == "none" {
        return Ok(Bounds::default());
    }
    let numbers: Result<_, _> = text.split(',').map(str::parse).collect();
    numbers.map(Bounds).map_err(|e| format!("not a list of numbers: {e}"))
}

impl LaunchArgs {
    /// The command that does all this, by the program at `executable`.
    pub fn command(&self, executable: &Path) -> Command {
        let mut command = Command::new(executable);
        command.args(["internal-launch"]);
        for (flag, value) in [
            ("--network", &self.network),
            ("--mounts", &self.mounts),
            ("--names", &self.names),
            ("--directory", &self.directory),
        ] {
            if let Some(value) = value {
                command.arg(flag).arg(value);
            }
        }
        if let Some(user) = self.user {
            command.arg("--user").arg(user.to_string());
        }
        if let Some(Bounds(numbers)) = &self.capabilities {
            let list: Vec<String> = numbers.iter().map(i32::to_string).collect();
            let list = if list.is_empty() { "none".to_owned() } else { list.join(",") };
            command.arg("--capabilities").arg(list);
        }
        if self.die_with_parent {
            command.arg("--die-with-parent");
        }
        command.arg("--").args(&self.command);
        command
    }
}

/// Becomes the program; comes back only when that failed.
pub fn run(args: &LaunchArgs) -> ExitCode {
    let Some((program, arguments)) = args.command.split_first() else { return ExitCode::from(NOT_STARTED) };
    if let Err(why) = prepare(args) {
        eprintln!("postern: `{program}` cannot enter its pod: {why}");
        return ExitCode::from(NOT_STARTED);
    }
    let e = Command::new(program).args(arguments).exec();
    eprintln!("postern: `{program}` cannot be started: {e}");
    ExitCode::from(NOT_STARTED)
}

fn prepare(args: &LaunchArgs) -> Result<(), String> {
    // A session of its own: signals of the terminal go to `postern up` alone, which then stops all in order.
    let _ = unistd::setsid();
    // All are opened before the first is entered, for the paths lead through the /proc of here.
    let mut spaces = Vec::new();
    for (path, kind) in [
        (&args.network, CloneFlags::CLONE_NEWNET),
        (&args.names, CloneFlags::CLONE_NEWUTS),
        (&args.mounts, CloneFlags::CLONE_NEWNS),
    ] {
        if let Some(path) = path {
            spaces.push((File::open(path).map_err(|e| format!("{}: {e}", path.display()))?, kind));
        }
    }
    for (file, kind) in spaces {
        setns(file, kind).map_err(|e| format!("setns: {e}"))?;
    }
    if let Some(directory) = &args.directory {
        unistd::chdir(directory.as_path()).map_err(|e| format!("{}: {e}", directory.display()))?;
    }
    if let Some(Bounds(capabilities)) = &args.capabilities {
        kernel::bound_capabilities(capabilities).map_err(|e| format!("capabilities: {e}"))?;
    }
    // Whoever becomes another user loses what it may do, but for what it was given by name.
    let kept =
        args.capabilities.as_ref().filter(|Bounds(numbers)| args.user.is_some() && !numbers.is_empty());
    if kept.is_some() {
        prctl::set_keepcaps(true).map_err(|e| format!("capabilities: {e}"))?;
    }
    if let Some(user) = args.user {
        unistd::setgroups(&[]).map_err(|e| format!("setgroups: {e}"))?;
        unistd::setgid(user.into()).map_err(|e| format!("setgid: {e}"))?;
        unistd::setuid(user.into()).map_err(|e| format!("setuid: {e}"))?;
    }
    if let Some(Bounds(numbers)) = kept {
        kernel::hold_capabilities(numbers).map_err(|e| format!("capabilities: {e}"))?;
    }
    prctl::set_no_new_privs().map_err(|e| format!("no_new_privs: {e}"))?;
    if args.die_with_parent {
        // After the change of user, which clears it.
        prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| format!("parent death signal: {e}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: LaunchArgs,
    }

    #[test]
    fn what_is_asked_for_is_understood_again() {
        for capabilities in [None, Some(Bounds(vec![])), Some(Bounds(vec![12, 13]))] {
            let asked = LaunchArgs {
                network: Some("/proc/7/fd/9".into()),
                user: Some(1337),
                capabilities,
                die_with_parent: true,
                directory: Some("/a folder".into()),
                command: vec!["sh".into(), "-c".into(), "exit --user 3".into()],
                ..LaunchArgs::default()
            };
            let command = asked.command(Path::new("postern"));
            // The subcommand's name stands where clap expects the program's.
            let understood = Cli::try_parse_from(command.get_args()).unwrap().args;
            assert_eq!(understood.network, asked.network);
            assert_eq!(understood.capabilities, asked.capabilities);
            assert_eq!((understood.user, understood.die_with_parent), (asked.user, asked.die_with_parent));
            assert_eq!((understood.directory, understood.command), (asked.directory, asked.command));
        }
    }
}
