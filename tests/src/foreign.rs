//! Programs of others that a test goes on without where they cannot be had, and says so.
#![allow(clippy::expect_used)]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What one of the scripts in `scripts/` prints: where a program is, fetched by it if need be. `missed` is what is not tried without
/// it.
///
/// `None` when there is none to be had, which is said on stderr; with `required=1` in the environment that is a failure.
pub fn by_script(script: &str, required: &str, missed: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(script);
    let output = Command::new(path).output().expect("a script of the repository can be run");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    without(required, missed, String::from_utf8_lossy(&output.stderr).trim())
}

/// Goes on without a program, for this reason.
pub fn without<T>(required: &str, missed: &str, reason: &str) -> Option<T> {
    assert!(std::env::var_os(required).is_none_or(|value| value != "1"), "{reason}");
    eprintln!("SKIPPED, {missed}: {reason}");
    None
}
