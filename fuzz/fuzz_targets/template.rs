//! Whatever stands in a path template, and whatever path it is asked about.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::template(text));
