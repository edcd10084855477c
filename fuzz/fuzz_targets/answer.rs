//! Whatever an upstream answers.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/proxy_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|bytes: &[u8]| {
    checks::answer(bytes);
});
