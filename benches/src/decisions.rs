//! What a decision costs, by the number of rules: the index beside a plain scan of the same rules. Prints tables, judges
//! them against `budgets.toml`, and ends with exit code 2 when a promise is broken. Run it in a release build.
#![allow(clippy::expect_used, clippy::indexing_slicing)] // benches stop at what should not be

use postern_benches::{Call, Mix, budgets, heap, process::thread_cpu};
use postern_config::{Facts, Judgement, Snapshot, authorize::judge, snapshot::linear};
use std::{
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

#[global_allocator]
static ALLOCATOR: heap::Counting = heap::Counting;

const SIZES: [usize; 5] = [1, 10, 100, 1_000, 10_000];
/// Decisions between two looks at the clock.
const BATCH: usize = 64;
/// Looks at the clock.
const SAMPLES: usize = 1_500;

fn main() -> ExitCode {
    if cfg!(debug_assertions) {
        eprintln!(
            "error: a debug build says nothing about speed\n  help: cargo run --release -p postern-benches --bin decisions"
        );
        return ExitCode::FAILURE;
    }
    let mut measured = budgets::Measured::new();
    for mix in Mix::ALL {
        decide(mix, &mut measured);
    }
    compile(&mut measured);
    budgets::judge(&["decisions", "compile"], &measured)
}

/// Medians in nanoseconds for one mix, by size.
fn decide(mix: Mix, measured: &mut budgets::Measured) {
    println!("\n{:<12} {:>8} {:>10} {:>10} {:>10}", mix.name(), "rules", "index ns", "p99 ns", "scan ns");
    let mut at_ten = 0.0;
    for rules in SIZES {
        let snapshot = Snapshot::compile(mix.spec(rules)).expect("valid policies");
        let calls = mix.calls(rules);
        let before = heap::calls();
        for call in &calls {
            black_box(judge(&snapshot, &call.facts()));
        }
        assert_eq!(heap::calls(), before, "a decision allocates");
        for call in &calls {
            assert_eq!(judge(&snapshot, &call.facts()), linear::judge(&snapshot, &call.facts()), "{call:?}");
        }
        let (median, p99) = time(&snapshot, &calls, SAMPLES, BATCH, judge);
        let (scan, _) = time(&snapshot, &calls, SAMPLES.min(4_000_000 / rules / 8).max(24), 8, linear::judge);
        println!("{:<12} {rules:>8} {median:>10.0} {p99:>10.0} {scan:>10.0}", "");
        measured.insert(format!("{}/{rules}/nanoseconds", mix.name()), median);
        if rules == 10 {
            at_ten = median;
        }
        if rules == 10_000 {
            measured.insert(format!("{}/ratio", mix.name()), median / at_ten);
            println!("{:<12} 10,000 rules cost {:.1} times what 10 cost", "", median / at_ten);
        }
    }
}

/// Median and 99th percentile of a batch, by decision. Every decision is about another call.
fn time(
    snapshot: &Snapshot,
    calls: &[Call],
    samples: usize,
    batch: usize,
    decide: impl for<'s> Fn(&'s Snapshot, &Facts<'_>) -> Judgement<'s>,
) -> (f64, f64) {
    let facts: Vec<Facts<'_>> = calls.iter().map(Call::facts).collect();
    let mut around = facts.iter().cycle();
    let mut run = || {
        let start = Instant::now();
        for _ in 0..batch {
            black_box(decide(black_box(snapshot), black_box(around.next().expect("there are calls"))));
        }
        start.elapsed()
    };
    (0..samples / 10).for_each(|_| {
        run();
    });
    let mut times: Vec<Duration> = (0..samples).map(|_| run()).collect();
    times.sort_unstable();
    let per_decision = |time: Duration| time.as_nanos() as f64 / batch as f64;
    (per_decision(times[times.len() / 2]), per_decision(times[times.len() * 99 / 100]))
}

/// Milliseconds on a core and bytes for 10,000 rules of each mix.
fn compile(measured: &mut budgets::Measured) {
    println!(
        "\n{:<12} {:>12} {:>14} {:>14} {:>14}",
        "compile", "median ms", "documents MiB", "snapshot MiB", "peak MiB"
    );
    for mix in Mix::ALL {
        let mut times = Vec::new();
        let (mut documents, mut kept, mut peak) = (0, 0, 0);
        for _ in 0..7 {
            let before = heap::live();
            let spec = mix.spec(10_000);
            documents = heap::live() - before;
            heap::forget_peak();
            let before = heap::live();
            let start = thread_cpu();
            let snapshot = Snapshot::compile(spec).expect("valid policies");
            times.push(thread_cpu() - start);
            // The documents stay, as a part of the snapshot.
            kept = heap::live() - before;
            peak = heap::peak() - before;
            drop(black_box(snapshot));
        }
        times.sort_unstable();
        let median = times[times.len() / 2].as_secs_f64() * 1e3;
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        println!(
            "{:<12} {median:>12.1} {:>14.1} {:>14.1} {:>14.1}",
            mix.name(),
            mib(documents),
            mib(kept),
            mib(peak)
        );
        measured.insert(format!("{}/compile/milliseconds", mix.name()), median);
        measured.insert(format!("{}/compile/mebibytes", mix.name()), mib(peak));
    }
}
