//! Whole pairs of sidecars beside each other: client, its proxy, mutual TLS, the other proxy, app.
//!
//! Ours, Envoy's (configured as Istio does, with HTTP/1.1 and with HTTP/2 between) and the floor (hyper and rustls with nothing in
//! between) stand in the same two network namespaces before the same app, one worker each, with the same certificates, policy and a JSON access
//! log; the floor has neither policy nor log. Windows are short and interleaved, of each round the ratio to Envoy's better variant is taken, and of all
//! ratios the median. CPU is the kernel's accounting of both processes of a pair over exactly the window.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

mod app;
mod documents;
mod envoy_pair;
mod evidence;
mod floor;
mod growth;
mod grpc;
mod load;
mod pairs;
mod report;
mod stage;

use clap::{Parser, Subcommand};
use documents::Size;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use pairs::{APP_GRPC_PORT, Pair, SERVER_IP};
use postern_benches::{beside, budgets, envoy};
use stage::{Halves, Stage, Told};
use std::{net::SocketAddr, process::ExitCode};

// As in the program that the sidecar's image ships.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
struct Arguments {
    /// Rounds
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Length of each window in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Only pairs whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only loads whose name contains one of these, with semicolons between, since names have commas
    #[arg(long, value_delimiter = ';')]
    loads: Vec<String>,
    /// Also by the number of endpoints and services, where that is not done anyway
    #[arg(long)]
    growth: bool,
    /// Without access logs
    #[arg(long)]
    no_access_log: bool,
    /// Run our halves and the floor's under this program, e.g. valgrind, which may have arguments
    #[arg(long, value_name = "PROGRAM", value_delimiter = ' ')]
    under: Vec<String>,
    /// One short round, in a debug build too, to see that the bench works
    #[arg(long)]
    smoke: bool,
    /// Compare ours with itself instead: without access log, with it, with spans, scraped
    #[arg(long)]
    evidence: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

/// What else this program is.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    Hold,
    App {
        addresses: Vec<SocketAddr>,
    },
    Floor(floor::Arguments),
    Load(load::Arguments),
    Growth {
        #[arg(long, default_value_t = 1)]
        endpoints: usize,
        #[arg(long, default_value_t = 0)]
        services: usize,
        #[arg(long)]
        seconds: f64,
    },
}

/// One way to ask.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    name: &'static str,
    rate: u32,
    connections: u32,
    path: &'static str,
    fresh: bool,
    /// Of whom it is asked.
    of: Of,
}

/// Of whom a load is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    All,
    /// Ours over HTTP.
    Ours,
    /// Who carries gRPC with HTTP/2 all the way.
    Grpc,
}

impl Of {
    fn includes(self, pair: Pair) -> bool {
        match self {
            Self::All => pair != Pair::PosternGrpc,
            Self::Ours => pair == Pair::Postern,
            Self::Grpc => matches!(pair, Pair::Direct | Pair::PosternGrpc | Pair::EnvoyHttp2),
        }
    }
}

fn is_ours(pair: Pair) -> bool {
    matches!(pair, Pair::Postern | Pair::PosternHttp2 | Pair::PosternTcp | Pair::PosternGrpc)
}

const USUAL: &str = "/api/items";
const MOST_CONNECTIONS: u32 = 10_000;
/// With [`MOST_CONNECTIONS`], or as many as files can be opened for.
const MOST: &str = "1,000 rps, most connections";
const LOADS: [Load; 10] = [
    Load::new("1,000 rps, 16 connections", 1000, 16, USUAL),
    Load::new("1,000 rps, 64 connections", 1000, 64, USUAL),
    Load::new("1,000 rps, 1,000 connections", 1000, 1000, USUAL),
    Load { of: Of::Ours, ..Load::new(MOST, 1000, MOST_CONNECTIONS, USUAL) },
    Load::new("saturated, 64 connections", 0, 64, USUAL),
    Load::new("1 MiB, 4 connections", 0, 4, app::LARGE),
    Load { fresh: true, ..Load::new("fresh client connections, 8", 0, 8, USUAL) },
    Load { of: Of::Grpc, ..Load::new("gRPC unary, 1,000 rps, 16 streams", 1000, 16, grpc::UNARY) },
    Load { of: Of::Grpc, ..Load::new("gRPC unary, saturated, 64 streams", 0, 64, grpc::UNARY) },
    Load { of: Of::Grpc, ..Load::new("gRPC streams of 100 messages, 8 at a time", 0, 8, grpc::STREAM) },
];

impl Load {
    const fn new(name: &'static str, rate: u32, connections: u32, path: &'static str) -> Self {
        Self { name, rate, connections, path, fresh: false, of: Of::All }
    }
}

fn main() -> ExitCode {
    if let Some(code) = beside::run_if_sidecar() {
        return code;
    }
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Hold) => stage::hold(),
        Some(Role::App { addresses }) => app::run(addresses),
        Some(Role::Floor(floor)) => floor::run(floor),
        Some(Role::Load(load)) => println!("{}", serde_json::to_string(&load::run(load)).unwrap()),
        Some(Role::Growth { endpoints, services, seconds }) => {
            if let Some(code) = stage::enter() {
                return code;
            }
            println!("{}", growth::one(Size { endpoints: *endpoints, services: *services }, *seconds));
        }
        None => return bench(&arguments),
    }
    ExitCode::SUCCESS
}

/// [`MOST_CONNECTIONS`] where this process and those it starts may open enough files, else as many as they may: a sidecar takes two
/// connections for each five files.
fn most_connections() -> u32 {
    let enough = 3 * u64::from(MOST_CONNECTIONS);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("every process has limits");
    if setrlimit(Resource::RLIMIT_NOFILE, enough, hard.max(enough)).is_ok() {
        return MOST_CONNECTIONS;
    }
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    u32::try_from(hard * 3 / 8).unwrap_or(MOST_CONNECTIONS)
}

fn bench(arguments: &Arguments) -> ExitCode {
    budgets::refuse_debug_build(arguments.smoke);
    let envoy = envoy::program();
    if let Some(code) = stage::enter() {
        return code;
    }
    let (rounds, seconds) = if arguments.smoke { (1, 0.3) } else { (arguments.rounds, arguments.seconds) };
    if arguments.evidence {
        let measured = evidence::all(rounds, seconds);
        return if arguments.smoke { ExitCode::SUCCESS } else { budgets::judge(&["evidence"], &measured) };
    }
    let wanted =
        |name: &str, only: &[String]| only.is_empty() || only.iter().any(|part| name.contains(part.as_str()));
    let all = [
        Pair::Direct,
        Pair::Postern,
        Pair::EnvoyHttp1,
        Pair::EnvoyHttp2,
        Pair::FloorHttp1,
        Pair::FloorHttp2,
        Pair::PosternHttp2,
        Pair::PosternTcp,
        Pair::PosternGrpc,
        Pair::EnvoyTcp,
    ];
    let is_there = |pair: &Pair| envoy.is_some() || !pair.name().starts_with("Envoy");
    let pairs: Vec<Pair> =
        all.into_iter().filter(|pair| wanted(pair.name(), &arguments.only) && is_there(pair)).collect();
    let most_connections = most_connections();
    let loads = LOADS.into_iter().filter(|load| wanted(load.name, &arguments.loads));
    let loads: Vec<Load> =
        loads.map(|load| Load { connections: load.connections.min(most_connections), ..load }).collect();
    let stage = Stage::new(&all, arguments.under.clone(), documents::SMALL);
    let mut results = report::Results::default();
    let mut running: Vec<(Pair, Option<Halves>)> = Vec::new();
    for pair in &pairs {
        // One sidecar carries all protocols.
        let shares = is_ours(*pair) && running.iter().any(|(other, _)| is_ours(*other));
        let halves = if shares {
            None
        } else {
            stage.start(*pair, envoy.as_deref(), &Told::log(!arguments.no_access_log))
        };
        if let Some(halves) = &halves {
            results.idle.push((*pair, halves.resident()));
        }
        running.push((*pair, halves));
    }
    for round in 0..=rounds {
        for load in &loads {
            for (pair, halves) in &running {
                if !load.of.includes(*pair) {
                    continue;
                }
                let halves = halves.as_ref().or_else(|| {
                    let sidecars = running.iter().find(|(other, halves)| is_ours(*other) && halves.is_some());
                    sidecars.filter(|_| is_ours(*pair)).and_then(|(_, halves)| halves.as_ref())
                });
                let target = match load.of {
                    Of::Grpc if *pair == Pair::Direct => (SERVER_IP, APP_GRPC_PORT + 1).into(),
                    _ => pair.target(),
                };
                let asked = load::Arguments {
                    target,
                    path: load.path.into(),
                    rate: load.rate,
                    connections: load.connections,
                    fresh: load.fresh,
                    grpc: load.of == Of::Grpc,
                    seconds: if round == 0 { seconds.min(0.5) } else { seconds },
                    ..stage.arguments(*pair, halves)
                };
                let outcome = stage.load(&asked);
                // The first round warms up.
                if round > 0 {
                    results.add(load.name, *pair, outcome);
                }
            }
        }
    }
    for (pair, halves) in &running {
        results.loaded.extend(halves.as_ref().map(|halves| (*pair, halves.resident())));
    }
    let mut measured = results.print(&loads);
    if arguments.growth || (!arguments.smoke && arguments.only.is_empty() && arguments.loads.is_empty()) {
        drop((running, stage));
        growth::all(seconds, &mut measured);
    }
    if arguments.smoke || !arguments.only.is_empty() || !arguments.loads.is_empty() || envoy.is_none() {
        return ExitCode::SUCCESS;
    }
    budgets::judge(&["pair"], &measured)
}
