//! Whatever a certificate claims: an ID is accepted exactly when the grammar has it, and reading it again gives the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../src/identity_checks.rs"]
#[allow(dead_code)]
mod checks;

fuzz_target!(|text: &str| checks::identity(text));
