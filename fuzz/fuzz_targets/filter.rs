//! Whatever stands in a filter of the access log.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::filter(text));
