//! `postern`: the command line. Every command is a room of the library; here is only who asked for which.

use clap::{Args, Parser, Subcommand, error::ErrorKind};
use postern::{
    app, authority, bug_report, check, demo,
    failure::{OK, USAGE},
    interception::command as redirect,
    live, policy, up, why,
};
use std::{io::IsTerminal, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

// The data path allocates small and often; so does everything else in this binary, then.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A service mesh: mutual TLS, identity and policy for every call, from a folder of YAML.
///
/// Exit codes: 0 ok or yes, 1 an error, 2 a negative answer (findings, denied), 64 a wrong command line.
#[derive(Parser)]
#[command(name = "postern", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the whole mesh at work: an example, with every claim tried on real traffic
    Demo(DemoArgs),
    /// Run a folder of Kubernetes YAML as a mesh on this machine
    Up(UpArgs),
    /// Run a command in a pod of a running mesh
    Exec(up::attach::ExecArgs),
    /// Show everything that is wrong with a folder of YAML, or what of a running mesh ends soon
    Check(check::CheckArgs),
    /// Answer one question: may FROM call TO, and why; or why a call of a running mesh was denied
    Why(Box<why::WhyArgs>),
    /// Run the policy tests of a folder
    Test(policy::test::TestArgs),
    /// Replay recorded traffic through two sets of policies and list what would change
    Impact(policy::impact::ImpactArgs),
    /// Write the least policy for recorded traffic
    Generate(policy::generate::GenerateArgs),
    /// Show and rotate the authorities of a mesh
    Ca(authority::ca::CaArgs),
    /// Show who holds a certificate, until when, by which authority
    Certs(authority::certs::CertsArgs),
    /// Show how every sidecar stands: policy, certificate, connection
    Status(live::status::StatusArgs),
    /// Show who calls whom: rate, errors, denials, mutual TLS, durations; and which rules are in use
    Top(live::top::TopArgs),
    /// Show what was denied lately, and the closest rule
    Denials(live::denials::DenialsArgs),
    /// Show every policy: how many sidecars enforce it, what it matched, what a dry run would deny
    Policies(live::policies::PoliciesArgs),
    /// Show calls of the whole mesh as they pass, filtered and sampled
    Tap(live::tap::TapArgs),
    /// Show status, top and denials in a browser, for as long as it runs
    Dashboard(live::dashboard::DashboardArgs),
    /// Write one file to attach to an issue; it lists first what is in it, and nothing secret is
    BugReport(bug_report::BugReportArgs),
    /// Run a sidecar
    Proxy(Box<postern_proxy::Flags>),
    /// Run the control plane alone
    ControlPlane(Box<postern_control_plane::run::Flags>),
    /// Print, apply or remove the rules that bring a pod's traffic to its sidecar
    Redirect(redirect::RedirectArgs),
    /// Small servers and clients to try a mesh with
    App(app::AppArgs),
    #[command(hide = true)]
    InternalStage(up::StageArgs),
    #[command(hide = true)]
    InternalLaunch(up::launch::LaunchArgs),
}

#[derive(Args)]
struct UpArgs {
    /// The folder of YAML files
    dir: PathBuf,
    #[command(flatten)]
    mesh: MeshArgs,
    /// Do not print what apps and sidecars say
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Args)]
struct DemoArgs {
    /// The folder of YAML files that the story is about
    #[arg(default_value = "manifests/examples/payments")]
    dir: PathBuf,
    #[command(flatten)]
    mesh: MeshArgs,
    /// End after the story instead of staying up (also when standard input is no terminal)
    #[arg(long)]
    once: bool,
}

#[derive(Args)]
struct MeshArgs {
    /// Do without network namespaces: loopback addresses with explicit ports
    #[arg(long)]
    no_namespaces: bool,
    /// Lifetime of workload certificates, at most one hour
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    certificate_lifetime: Option<u64>,
    /// Where a browser finds the page of the mesh: an address of this machine's own, or `off`. Default: 127.0.0.1:15013, or any other port when that is taken
    #[arg(long, value_name = "IP:PORT", value_parser = page)]
    page: Option<up::Page>,
}

fn page(text: &str) -> Result<up::Page, String> {
    match text.parse::<SocketAddr>() {
        _ if text == "off" => Ok(up::Page::Off),
        Ok(address) if address.ip().is_loopback() => Ok(up::Page::At(address)),
        Ok(_) => Err("others can reach that: choose an address like 127.0.0.1:15013".to_owned()),
        Err(_) => Err("it is an address and a port, or `off`".to_owned()),
    }
}

fn main() -> ExitCode {
    postern_proxy::avoid_huge_pages();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if asked { OK } else { USAGE });
        }
    };
    match cli.command {
        Command::Demo(args) => {
            let once = args.once || !std::io::stdin().is_terminal();
            let asked = options(args.dir, &args.mesh, false);
            // Nobody looks at a mesh that ends by itself, unless he has said so.
            let page = if once && args.mesh.page.is_none() { up::Page::Off } else { asked.page };
            up::run(up::Options { story: true, once, page, ..asked })
        }
        Command::Up(args) => up::run(options(args.dir, &args.mesh, !args.quiet)),
        Command::Exec(args) => up::attach::run(&args),
        Command::Check(args) => ExitCode::from(check::run(&args)),
        Command::Why(args) => ExitCode::from(why::run(&args)),
        Command::Test(args) => ExitCode::from(policy::test::run(&args)),
        Command::Impact(args) => ExitCode::from(policy::impact::run(&args)),
        Command::Generate(args) => ExitCode::from(policy::generate::run(&args)),
        Command::Ca(args) => ExitCode::from(authority::ca::run(&args)),
        Command::Certs(args) => ExitCode::from(authority::certs::run(&args)),
        Command::Status(args) => ExitCode::from(live::status::run(&args)),
        Command::Top(args) => ExitCode::from(live::top::run(&args)),
        Command::Denials(args) => ExitCode::from(live::denials::run(&args)),
        Command::Policies(args) => ExitCode::from(live::policies::run(&args)),
        Command::Tap(args) => ExitCode::from(live::tap::run(&args)),
        Command::Dashboard(args) => ExitCode::from(live::dashboard::run(&args)),
        Command::BugReport(args) => ExitCode::from(bug_report::run(&args)),
        Command::Proxy(flags) => postern_proxy::run(*flags),
        Command::ControlPlane(flags) => postern_control_plane::run::run(*flags),
        Command::Redirect(args) => ExitCode::from(redirect::run(&args)),
        Command::App(args) => app::run(args),
        Command::InternalStage(args) => up::run_stage(&args, Some(demo::story)),
        Command::InternalLaunch(args) => up::launch::run(&args),
    }
}

fn options(directory: PathBuf, mesh: &MeshArgs, echo: bool) -> up::Options {
    up::Options {
        directory,
        loopback: mesh.no_namespaces,
        echo,
        story: false,
        once: false,
        certificate_lifetime: mesh.certificate_lifetime.map(Duration::from_secs),
        telemetry_endpoint: up::telemetry_relay::Endpoint::read(|name| std::env::var(name).ok()),
        page: mesh.page.unwrap_or(up::Page::Anywhere),
        program: std::env::current_exe().unwrap_or_default(),
    }
}
