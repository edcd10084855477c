//! Whatever people write: reading never panics, never hangs, and every problem says what to do.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::documents(text));
