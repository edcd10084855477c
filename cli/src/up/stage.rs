//! From the host into namespaces of our own, in processes that each do one step while they have a single thread.
use super::{Options, Story, supervisor};
use crate::{failure::Failure, interception::rules::PROXY_UID};
use clap::{Args, ValueEnum};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        signal::Signal,
        wait::{WaitStatus, waitpid},
    },
    unistd::{self, Pid},
};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

/// Where a stage stands and what it was told.
#[derive(Args, Debug, Clone)]
pub struct StageArgs {
    /// Which step this process does
    #[arg(value_enum)]
    stage: Stage,
    /// The runtime folder of this mesh
    #[arg(long)]
    runtime: PathBuf,
    /// The process that must be alive for this one to live
    #[arg(long)]
    parent: Option<i32>,
    /// The namespaces belong to a user namespace with one user
    #[arg(long)]
    user_namespace: bool,
    /// What `postern up` was asked, as JSON
    #[arg(long, default_value = "")]
    options: String,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Try whether namespaces may be made, and end
    Probe,
    /// Leave the host's namespaces and start init
    Leave,
    /// Be process 1: mount what is needed, start the supervisor, reap
    Init,
    /// Run the mesh
    Supervise,
}

/// The folder below the runtime folder that is a file system of its own while the mesh runs.
pub const MESH: &str = "mesh";
const SPACES: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWPID)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWIPC);

/// Runs one stage.
pub fn run(args: &StageArgs, story: Option<Story>) -> ExitCode {
    let done = match args.stage {
        Stage::Probe => probe(args),
        Stage::Leave => leave(args),
        Stage::Init => init(args),
        Stage::Supervise => supervise(args, story),
    };
    done.unwrap_or_else(|failure| ExitCode::from(failure.report()))
}

/// The command for a try whether namespaces may be made; it says why not on standard error.
pub fn probe_command(executable: &Path, runtime: &Path) -> Command {
    stage_command(executable, "probe", runtime)
}

/// The command that runs the mesh: in namespaces, or right here on loopback.
///
/// # Errors
/// Never in practice: the options are plain data.
pub fn mesh_command(executable: &Path, runtime: &Path, options: &Options) -> Result<Command, Failure> {
    let stage = if options.loopback { "supervise" } else { "leave" };
    let mut command = stage_command(executable, stage, runtime);
    let json = serde_json::to_string(options)
        .map_err(|e| Failure::new(format!("the options cannot be handed on: {e}."), "Report this."))?;
    command.arg("--options").arg(json).arg("--parent").arg(std::process::id().to_string());
    Ok(command)
}

fn stage_command(executable: &Path, stage: &str, runtime: &Path) -> Command {
    let mut command = Command::new(executable);
    command.arg("internal-stage").arg(stage).arg("--runtime").arg(runtime);
    command
}

fn probe(args: &StageArgs) -> Result<ExitCode, Failure> {
    enter_namespaces()?;
    keep_mounts_private()?;
    mount_files(&args.runtime)?;
    Ok(ExitCode::SUCCESS)
}

fn leave(args: &StageArgs) -> Result<ExitCode, Failure> {
    // No terminal: Ctrl-C reaches the outer process alone, which tells us through our standard input.
    let _ = unistd::setsid();
    let user_namespace = enter_namespaces()?;
    // After that, for becoming another user clears it.
    die_with_parent(args.parent)?;
    let mut command = stage_command(&executable()?, "init", &args.runtime);
    command.arg("--options").arg(&args.options);
    if user_namespace {
        command.arg("--user-namespace");
    }
    let status = command.status().map_err(|e| refused("starting init", &e))?;
    Ok(super::outer::exit_code(status))
}

fn init(args: &StageArgs) -> Result<ExitCode, Failure> {
    // The parent is outside of our namespace, so its number cannot be compared; should it be dead already, then our
    // standard input is at its end, and the supervisor stops.
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| refused("following the parent", &e))?;
    let executable = executable()?;
    keep_mounts_private()?;
    mount_files(&args.runtime)?;
    // A /proc that shows these processes only; where it is refused, the old one serves.
    let _ = mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        None::<&str>,
    );
    let own = pin_executable(&executable, &args.runtime.join(MESH)).unwrap_or(executable);
    let mut command = stage_command(&own, "supervise", &args.runtime);
    command.arg("--options").arg(&args.options);
    if args.user_namespace {
        command.arg("--user-namespace");
    }
    let supervisor = command.spawn().map_err(|e| refused("starting the supervisor", &e))?;
    let supervisor = Pid::from_raw(i32::try_from(supervisor.id()).unwrap_or_default());
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == supervisor => {
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == supervisor => {
                return Ok(ExitCode::from(128 + u8::try_from(signal as i32).unwrap_or_default()));
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(refused("waiting for the supervisor", &e)),
        }
    }
}

fn supervise(args: &StageArgs, story: Option<Story>) -> Result<ExitCode, Failure> {
    if args.parent.is_some() {
        let _ = unistd::setsid();
        die_with_parent(args.parent)?;
    }
    let options: Options = serde_json::from_str(&args.options)
        .map_err(|e| Failure::usage(format!("these are no options: {e}."), "Use `postern up`."))?;
    let story = if options.story { story } else { None };
    supervisor::run(options, &args.runtime, args.user_namespace, story)
}

/// Leaves the host's namespaces. Whether a user namespace was needed for it.
fn enter_namespaces() -> Result<bool, Failure> {
    let (user, group) = (unistd::geteuid(), unistd::getegid());
    if user.is_root() {
        match unshare(SPACES) {
            // Inside somebody's user namespace root may be the only user there is: then nobody can become the sidecar's.
            Ok(()) => return Ok(!is_mapped(PROXY_UID)),
            // Root in a container: a user namespace may still be allowed.
            Err(Errno::EPERM) => {}
            Err(e) => return Err(refused("making namespaces", &e)),
        }
    }
    unshare(SPACES | CloneFlags::CLONE_NEWUSER).map_err(|e| refused("making a user namespace", &e))?;
    // Without this the kernel lets nobody but root map groups.
    fs::write("/proc/self/setgroups", "deny").map_err(|e| refused("mapping groups", &e))?;
    fs::write("/proc/self/uid_map", format!("0 {user} 1")).map_err(|e| refused("mapping the user", &e))?;
    fs::write("/proc/self/gid_map", format!("0 {group} 1")).map_err(|e| refused("mapping the group", &e))?;
    Ok(true)
}

/// Whether a user exists in our user namespace.
fn is_mapped(user: u32) -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| maps(&map, user))
}

/// Lines of `first-inside first-outside count` (user_namespaces(7)).
fn maps(map: &str, user: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => user >= first && user - first < count,
            _ => false,
        }
    })
}

fn keep_mounts_private() -> Result<(), Failure> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|e| refused("keeping mounts to ourselves", &e))
}

fn mount_files(runtime: &Path) -> Result<(), Failure> {
    let at = runtime.join(MESH);
    fs::create_dir_all(&at).map_err(|e| refused("making the run folder", &e))?;
    mount(
        Some("postern"),
        &at,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0711,size=256m"),
    )
    .map_err(|e| refused("mounting the run folder", &e))
}

/// The program at a path that every user of the mesh may follow, and that stays when the file is built anew.
fn pin_executable(executable: &Path, mesh: &Path) -> Option<PathBuf> {
    let pinned = mesh.join("postern");
    File::create(&pinned).ok()?;
    mount(Some(executable), &pinned, None::<&str>, MsFlags::MS_BIND, None::<&str>).ok()?;
    Some(pinned)
}

fn die_with_parent(parent: Option<i32>) -> Result<(), Failure> {
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| refused("following the parent", &e))?;
    // It may have died just before.
    if parent.is_some_and(|p| unistd::getppid() != Pid::from_raw(p)) {
        return Err(Failure::new("the process that started this one is gone.", "Start `postern up` again."));
    }
    Ok(())
}

/// This program.
///
/// # Errors
/// /proc is missing.
pub fn executable() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| refused("finding our own program", &e))
}

fn refused(doing: &str, e: &dyn std::fmt::Display) -> Failure {
    Failure::new(format!("{doing} failed: {e}."), enabling())
}

/// What to change so that an ordinary user may make namespaces, as far as the kernel's settings tell.
pub fn enabling() -> String {
    let setting = |path: &str| fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
    let command = if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "sysctl -w kernel.unprivileged_userns_clone=1"
    } else if setting("/proc/sys/user/max_user_namespaces") == "0" {
        "sysctl -w user.max_user_namespaces=10000"
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    } else {
        return "Run it as root, or in a container that may make namespaces (--privileged).".to_owned();
    };
    format!("Enable user namespaces (as root: {command}), or run it as root.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_exists_where_a_line_of_the_map_covers_it() {
        for (map, exists) in [
            ("         0          0 4294967295\n", true),
            ("0 1000 1\n", false),
            ("0 1000 1\n1 100000 65536\n", true),
            ("0 100000 1337\n", false),
            ("0 100000 1338\n", true),
            ("", false),
        ] {
            assert_eq!(maps(map, 1337), exists, "{map}");
        }
    }
}
