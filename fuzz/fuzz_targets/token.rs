//! Whatever is shown as a JWT-SVID.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/identity_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::token(text));
