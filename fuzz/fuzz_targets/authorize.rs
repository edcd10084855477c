//! Whatever policy validates compiles, and the index and the plain scan give the same answer.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::authorize(text));
