//! Millions of random policies and calls: the index against the plain scan. The argument is the number of cases.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, dead_code)] // tests' own modules

#[path = "../../config/tests/policy/given.rs"]
mod given;
#[path = "../../config/tests/policy/random.rs"]
mod random;

use postern_config::{Reason, Snapshot, Verdict, authorize::judge, snapshot::linear};
use random::{Random, any_call, any_spec};
use std::{process::ExitCode, thread};

const CALLS_PER_POLICY: u64 = 50;

fn main() -> ExitCode {
    let cases = match std::env::args().nth(1).map(|text| text.parse::<u64>()) {
        None => 5_000_000,
        Some(Ok(cases)) => cases,
        Some(Err(_)) => {
            eprintln!("error: the argument is the number of cases, such as 5000000");
            return ExitCode::from(64);
        }
    };
    let threads = thread::available_parallelism().map_or(1, |threads| threads.get() as u64);
    let seeds = cases.div_ceil(CALLS_PER_POLICY);
    let totals = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || run((first..seeds).step_by(threads as usize))))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no difference"))
            .fold([0; 6], |sum, one| std::array::from_fn(|kind| sum[kind] + one[kind]))
    });
    let [allowed, default, ruled, no_policy, tried, audited] = totals;
    println!("{} cases, {seeds} sets of policies, no difference", allowed + default + ruled + no_policy);
    println!(
        "allowed by a rule {allowed}, denied by a rule {ruled}, denied by default {default}, no policy {no_policy}"
    );
    println!("a dry run would differ {tried}, audited {audited}");
    ExitCode::SUCCESS
}

fn run(seeds: impl Iterator<Item = u64>) -> [u64; 6] {
    let mut totals = [0; 6];
    for seed in seeds {
        // Other seeds than the tests'.
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0xa5a5);
        let snapshot = Snapshot::compile(any_spec(&mut random)).expect("random policies are valid");
        for _ in 0..CALLS_PER_POLICY {
            let call = any_call(&mut random);
            let facts = call.facts();
            let (index, scan) = (judge(&snapshot, &facts), linear::judge(&snapshot, &facts));
            assert_eq!(index, scan, "seed {seed}: {call:#?}\n{:#?}", snapshot.spec().authorization_policies);
            let kind = match (index.decision.verdict, index.decision.reason) {
                (_, Reason::DefaultDeny) => 1,
                (_, Reason::NoPolicy) => 3,
                (Verdict::Allow, Reason::Rule(_)) => 0,
                (Verdict::Deny, Reason::Rule(_)) => 2,
            };
            totals[kind] += 1;
            totals[4] += u64::from(index.dry_run.is_some());
            totals[5] += u64::from(index.audit.is_some());
        }
    }
    totals
}
