//! What a request costs when the mesh knows more: endpoints of the service that is called, and services that are not.

use crate::{
    USUAL,
    documents::Size,
    load,
    pairs::Pair,
    stage::{Stage, Told},
};
use postern_benches::budgets::{Measured, median};
use std::process::Command;

const SIZES: [usize; 3] = [10, 100, 1000];
const ROUNDS: usize = 3;

/// Measures one mesh, in a network namespace of its own: milliseconds on cores per 1,000 requests at 1,000 a second.
pub fn one(size: Size, seconds: f64) -> f64 {
    let stage = Stage::new(&[Pair::Postern], Vec::new(), size);
    let halves = stage.start(Pair::Postern, None, &Told::log(true));
    let asked = |seconds| load::Arguments {
        path: USUAL.into(),
        rate: 1000,
        connections: 16,
        seconds,
        ..stage.arguments(Pair::Postern, halves.as_ref())
    };
    // Ten requests for each endpoint: a window in which connections are still being made says what handshakes cost.
    stage.load(&asked(2.0 + size.endpoints as f64 / 100.0));
    let outcome = stage.load(&asked(seconds));
    assert_eq!(outcome.errors, 0, "{size:?}: {outcome:?}");
    outcome.cpu.iter().sum()
}

/// All sizes, in turns, each in a process of its own.
pub fn all(seconds: f64, measured: &mut Measured) {
    let exe = std::env::current_exe().expect("we run");
    for what in ["endpoints", "services"] {
        let mut costs = SIZES.map(|size| (size, Vec::new()));
        for _ in 0..ROUNDS {
            for (size, costs) in &mut costs {
                let mut command = Command::new(&exe);
                command.args(["growth", &format!("--{what}"), &size.to_string()]);
                let output = command.args(["--seconds", &seconds.to_string()]).output().expect("it runs");
                let text = String::from_utf8_lossy(&output.stdout);
                costs.push(text.trim().parse().unwrap_or_else(|_| panic!("{size} {what}: {output:?}")));
            }
        }
        println!("\n| {what} | CPU ms per 1,000 at 1,000 rps | to the least |\n|---|---|---|");
        let medians = costs.map(|(size, costs)| (size, median(&costs)));
        let least = medians.iter().map(|(_, cost)| *cost).fold(f64::INFINITY, f64::min);
        for (size, cost) in medians {
            println!("| {size} | {cost:.1} | {:.2} |", cost / least);
            measured.insert(format!("{size} {what} to 10/CPU"), cost / medians[0].1);
        }
    }
}
