//! Whatever is asked for: a normalized path is normal, so that policy and app cannot read it in two ways.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::path(text));
