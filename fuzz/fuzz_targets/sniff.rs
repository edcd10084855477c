//! Whatever a connection begins with.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|bytes: &[u8]| checks::sniff(bytes));
