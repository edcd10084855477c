//! How a command fails: one sentence of cause, one of remedy, and an exit code.
use std::fmt;

/// Exit code of success, or of "yes".
pub const OK: u8 = 0;
/// Exit code of an operational error.
pub const ERROR: u8 = 1;
/// Exit code of a negative answer: findings, denied, a failed test.
pub const NEGATIVE: u8 = 2;
/// Exit code of a wrong command line (`EX_USAGE` of sysexits.h).
pub const USAGE: u8 = 64;

/// Why a command could not do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened, one sentence.
    pub cause: String,
    /// What to do, one sentence.
    pub remedy: String,
    /// The process exit code.
    pub code: u8,
}

impl Failure {
    /// An operational error (exit code 1).
    pub fn new(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into(), code: ERROR }
    }

    /// A wrong command line (exit code 64).
    pub fn usage(cause: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { cause: cause.into(), remedy: remedy.into(), code: USAGE }
    }

    /// Prints cause and remedy on standard error and hands back the exit code.
    pub fn report(&self) -> u8 {
        eprintln!("{self}");
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}\nhelp:  {}", self.cause, self.remedy)
    }
}

impl std::error::Error for Failure {}

impl From<Failure> for std::io::Error {
    fn from(failure: Failure) -> Self {
        Self::other(failure.to_string())
    }
}
