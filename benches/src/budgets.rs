//! Promises: what was measured, held against `budgets.toml`.

use std::{collections::BTreeMap, process::ExitCode};

/// What was measured, by the name of its promise. Everything is an upper bound.
pub type Measured = BTreeMap<String, f64>;

/// Prints each promise of these sections beside what was measured. Exit code 0 when all are kept, 2 when one is broken, 1
/// when the file cannot be read or promises what was not measured.
pub fn judge(sections: &[&str], measured: &Measured) -> ExitCode {
    match kept(sections, measured) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(cause) => {
            eprintln!("error: {cause}");
            ExitCode::FAILURE
        }
    }
}

fn kept(sections: &[&str], measured: &Measured) -> Result<bool, String> {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/budgets.toml");
    let budgets = std::fs::read_to_string(file).map_err(|cause| format!("budgets.toml: {cause}"))?;
    let (mut kept, mut ours) = (true, false);
    println!("\n{:<36} {:>10} {:>10}", "promise", "measured", "budget");
    for line in budgets.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            ours = sections.contains(&section);
        }
        if !ours || !line.starts_with('"') {
            continue;
        }
        let bad = || format!("budgets.toml: `{line}` is not \"name\" = number");
        let (name, budget) = line.split_once('=').ok_or_else(bad)?;
        let name = name.trim().trim_matches('"');
        let budget: f64 = budget.trim().parse().map_err(|_| bad())?;
        let value = measured.get(name).ok_or_else(|| format!("budgets.toml: {name} is not measured"))?;
        let broken = *value > budget;
        kept &= !broken;
        println!("{name:<36} {value:>10.2} {budget:>10.2}{}", if broken { "  BROKEN" } else { "" });
    }
    Ok(kept)
}

/// Says so and ends a bench that runs in a debug build, unless it is only asked whether it still works.
pub fn refuse_debug_build(smoke: bool) {
    if cfg!(debug_assertions) && !smoke {
        eprintln!(
            "error: a debug build says nothing about speed\n  help: cargo run --release -p postern-benches --bin NAME"
        );
        std::process::exit(1);
    }
}

/// The one in the middle.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
