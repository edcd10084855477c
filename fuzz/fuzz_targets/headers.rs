//! Whatever header and trailer lines come.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::header_rules(text));
