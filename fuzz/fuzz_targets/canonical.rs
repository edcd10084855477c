//! Whatever is asked for, and of whom.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::canonical_request(text));
