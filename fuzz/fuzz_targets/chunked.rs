//! Whatever comes as a chunked body.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|bytes: &[u8]| {
    checks::chunked(bytes);
    checks::chunked_through_a_pair(bytes);
});
