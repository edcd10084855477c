//! Judges the last run of the benches against `budgets.toml`: prints a table, exit code 2 when a promise is broken.

use std::{path::PathBuf, process::ExitCode};

fn main() -> ExitCode {
    match judge() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(cause) => {
            eprintln!("error: {cause}\n  help: run `make bench`, which measures first");
            ExitCode::FAILURE
        }
    }
}

fn judge() -> Result<bool, String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let budgets =
        std::fs::read_to_string(root.join("budgets.toml")).map_err(|e| format!("budgets.toml: {e}"))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("../target"), PathBuf::from);
    let mut kept = true;
    println!("{:<28} {:>12} {:>12}", "median, nanoseconds", "measured", "budget");
    for line in budgets.lines().map(str::trim).filter(|l| l.starts_with('"')) {
        let (name, budget) =
            line.split_once('=').ok_or_else(|| format!("budgets.toml: `{line}` has no ="))?;
        let name = name.trim().trim_matches('"');
        let budget: f64 =
            budget.trim().parse().map_err(|_| format!("budgets.toml: `{line}` has no number"))?;
        let file = target.join("criterion").join(name).join("new/estimates.json");
        let text = std::fs::read_to_string(&file).map_err(|_| format!("{name} has not been measured"))?;
        let estimates: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{name}: {e}"))?;
        let median = estimates
            .pointer("/median/point_estimate")
            .and_then(serde_json::Value::as_f64)
            .ok_or_else(|| format!("{name}: no median"))?;
        let verdict = if median <= budget { "" } else { "  BROKEN" };
        kept &= median <= budget;
        println!("{name:<28} {median:>12.0} {budget:>12.0}{verdict}");
    }
    Ok(kept)
}
