//! What the windows say: medians, and ratios of windows of the same round.

use crate::{Load, load::Outcome, pairs::Pair};
use postern_benches::budgets::{Measured, median};

/// All windows.
#[derive(Default)]
pub struct Results {
    windows: Vec<(&'static str, Pair, Outcome)>,
    /// Resident KiB of both halves after their first requests.
    pub idle: Vec<(Pair, [u64; 2])>,
    /// And at the end.
    pub loaded: Vec<(Pair, [u64; 2])>,
}

/// What is compared, of one window.
#[derive(Clone, Copy)]
enum Figure {
    Cpu,
    PerSecond,
    Percentile(usize),
}

impl Figure {
    fn of(self, outcome: &Outcome) -> f64 {
        match self {
            Self::Cpu => outcome.cpu.iter().sum(),
            Self::PerSecond => outcome.requests as f64 / outcome.seconds,
            Self::Percentile(which) => outcome.percentiles[which],
        }
    }
}

impl Results {
    /// A window of this round.
    pub fn add(&mut self, load: &'static str, pair: Pair, outcome: Outcome) {
        assert_eq!(outcome.errors, 0, "{load}, {}: {outcome:?}", pair.name());
        self.windows.push((load, pair, outcome));
    }

    fn all(&self, load: &str, pair: Pair, figure: Figure) -> Vec<f64> {
        let windows = self.windows.iter().filter(|(its, of, _)| *its == load && *of == pair);
        windows.map(|(.., outcome)| figure.of(outcome)).collect()
    }

    /// Prints everything; the promises by their names.
    pub fn print(&self, loads: &[Load]) -> Measured {
        let mut measured = Measured::new();
        for &Load { name: load, .. } in loads {
            println!(
                "\n{load}\n| pair | p50 µs | p90 | p99 (best) | p99.9 (best) | per second | CPU ms per 1,000: client + server |"
            );
            println!("|---|---|---|---|---|---|---|");
            let mut pairs: Vec<Pair> = Vec::new();
            for (its, pair, _) in &self.windows {
                if *its == load && !pairs.contains(pair) {
                    pairs.push(*pair);
                }
            }
            for pair in &pairs {
                let middle = |figure| median(&self.all(load, *pair, figure));
                let best = |which| {
                    self.all(load, *pair, Figure::Percentile(which)).into_iter().fold(f64::INFINITY, f64::min)
                };
                let cpu = self.all(load, *pair, Figure::Cpu);
                let halves: Vec<String> = [0, 1]
                    .iter()
                    .filter_map(|half| {
                        let windows = self.windows.iter().filter(|(its, of, _)| *its == load && of == pair);
                        let times: Vec<f64> =
                            windows.filter_map(|(.., outcome)| outcome.cpu.get(*half).copied()).collect();
                        (!times.is_empty()).then(|| format!("{:.1}", median(&times)))
                    })
                    .collect();
                let [least, most] = [
                    cpu.iter().copied().fold(f64::INFINITY, f64::min),
                    cpu.iter().copied().fold(0.0, f64::max),
                ];
                println!(
                    "| {} | {:.0} | {:.0} | {:.0} ({:.0}) | {:.0} ({:.0}) | {:.0} | {:.1} [{least:.1}..{most:.1}]: {} |",
                    pair.name(),
                    middle(Figure::Percentile(0)),
                    middle(Figure::Percentile(1)),
                    middle(Figure::Percentile(2)),
                    best(2),
                    middle(Figure::Percentile(3)),
                    best(3),
                    middle(Figure::PerSecond),
                    median(&cpu),
                    halves.join(" + "),
                );
            }
            self.ratios(load, &pairs, &mut measured);
        }
        self.growth(loads, &mut measured);
        println!("\n| pair | idle RSS, MiB: client + server | after load |\n|---|---|---|");
        for (pair, idle) in &self.idle {
            let mib =
                |kib: &[u64; 2]| format!("{:.1} + {:.1}", kib[0] as f64 / 1024.0, kib[1] as f64 / 1024.0);
            let loaded =
                self.loaded.iter().find(|(of, _)| of == pair).map(|(_, kib)| mib(kib)).unwrap_or_default();
            println!("| {} | {} | {loaded} |", pair.name(), mib(idle));
        }
        let idle = |wanted: Pair| {
            self.idle.iter().find(|(pair, _)| *pair == wanted).map(|(_, kib)| (kib[0] + kib[1]) as f64)
        };
        if let (Some(ours), Some(theirs)) = (idle(Pair::Postern), idle(Pair::EnvoyHttp1)) {
            measured.insert("idle/RSS to Envoy's".into(), ours / theirs);
            println!("\nidle RSS to Envoy's: {:.2}", ours / theirs);
        }
        measured
    }

    /// What a request costs with many connections, against few, and what each of them holds.
    fn growth(&self, loads: &[Load], measured: &mut Measured) {
        const FEW: &str = "1,000 rps, 16 connections";
        for pair in [Pair::Postern, Pair::EnvoyHttp1] {
            for &Load { name: load, connections, .. } in
                loads.iter().filter(|load| load.rate > 0 && load.connections >= 1000)
            {
                let [few, many] = [FEW, load].map(|load| self.all(load, pair, Figure::Cpu));
                if few.is_empty() || many.is_empty() {
                    continue;
                }
                let ratio = median(&many) / median(&few);
                let resident = |load| {
                    let windows = self.windows.iter().filter(|(its, of, _)| *its == load && *of == pair);
                    median(&windows.map(|(.., outcome)| outcome.resident[0] as f64).collect::<Vec<_>>())
                };
                let each = (resident(load) - resident(FEW)) / f64::from(connections);
                println!(
                    "\n{}: CPU with {connections} connections to that with 16: {ratio:.2}; {each:.1} KiB of the client's half for each that is idle",
                    pair.name()
                );
                if pair == Pair::Postern {
                    measured.insert(format!("{load}/CPU to 16 connections'"), ratio);
                }
            }
        }
    }

    fn ratios(&self, load: &str, pairs: &[Pair], measured: &mut Measured) {
        let mut say = |name: &str, what: &str, ratios: Vec<f64>| {
            if ratios.is_empty() {
                return;
            }
            let value = median(&ratios);
            println!("{name}: {value:.2}");
            measured.insert(format!("{load}/{what}"), value);
        };
        let ratio = |ours: Pair,
                     others: &[Pair],
                     figure: Figure,
                     least_is_best: bool,
                     minus_direct: bool|
         -> Vec<f64> {
            let direct = self.all(load, Pair::Direct, figure);
            let ours = self.all(load, ours, figure);
            let others: Vec<Vec<f64>> = others
                .iter()
                .map(|pair| self.all(load, *pair, figure))
                .filter(|all| !all.is_empty())
                .collect();
            if others.is_empty() || (minus_direct && direct.is_empty()) {
                return Vec::new();
            }
            let at = |all: &[f64], round: usize| {
                if minus_direct { all[round] - direct[round] } else { all[round] }
            };
            (0..ours.len())
                .map(|round| {
                    let theirs = others.iter().map(|all| at(all, round));
                    let best = if least_is_best {
                        theirs.fold(f64::INFINITY, f64::min)
                    } else {
                        theirs.fold(0.0, f64::max)
                    };
                    at(&ours, round) / best
                })
                .collect()
        };
        let envoy = [Pair::EnvoyHttp1, Pair::EnvoyHttp2];
        let floor = [Pair::FloorHttp1, Pair::FloorHttp2];
        if pairs.contains(&Pair::Postern) {
            say(
                "CPU to Envoy's better",
                "CPU to Envoy's",
                ratio(Pair::Postern, &envoy, Figure::Cpu, true, false),
            );
            say(
                "CPU to the floor's better",
                "CPU to the floor's",
                ratio(Pair::Postern, &floor, Figure::Cpu, true, false),
            );
            say(
                "added p50 to Envoy's better",
                "added p50 to Envoy's",
                ratio(Pair::Postern, &envoy, Figure::Percentile(0), true, true),
            );
            say(
                "per second to Envoy's better",
                "per second to Envoy's",
                ratio(Pair::Postern, &envoy, Figure::PerSecond, false, false),
            );
            let best = |pair: Pair| {
                self.all(load, pair, Figure::Percentile(2)).into_iter().fold(f64::INFINITY, f64::min)
            };
            let direct = best(Pair::Direct);
            let theirs = envoy.iter().map(|pair| best(*pair)).fold(f64::INFINITY, f64::min);
            if theirs.is_finite() && direct.is_finite() {
                say(
                    "added p99 to Envoy's better, best windows",
                    "added p99 to Envoy's",
                    vec![(best(Pair::Postern) - direct) / (theirs - direct)],
                );
            }
        }
        if pairs.contains(&Pair::PosternGrpc) {
            let theirs = [Pair::EnvoyHttp2];
            let figures = [("CPU", Figure::Cpu, true), ("per second", Figure::PerSecond, false)];
            for (what, figure, least_is_best) in figures {
                let ratios = ratio(Pair::PosternGrpc, &theirs, figure, least_is_best, false);
                say(&format!("gRPC: {what} to Envoy's"), &format!("{what} to Envoy's"), ratios);
            }
            let added = ratio(Pair::PosternGrpc, &theirs, Figure::Percentile(0), true, true);
            say("gRPC: added p50 to Envoy's", "added p50 to Envoy's", added);
        }
        if pairs.contains(&Pair::PosternTcp) {
            say(
                "TCP: CPU to Envoy's",
                "TCP CPU to Envoy's",
                ratio(Pair::PosternTcp, &[Pair::EnvoyTcp], Figure::Cpu, true, false),
            );
            say(
                "TCP: per second to Envoy's",
                "TCP per second to Envoy's",
                ratio(Pair::PosternTcp, &[Pair::EnvoyTcp], Figure::PerSecond, false, false),
            );
        }
    }
}
