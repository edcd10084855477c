//! Whatever people write: reading never panics, never hangs, and every problem says what to do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_config::documents::{SourceFile, read};

fuzz_target!(|text: &str| {
    let (_, problems) = read(&[SourceFile { name: "fuzz.yaml".into(), text: text.to_owned() }]);
    for problem in problems {
        assert!(!problem.reason.is_empty() && !problem.hint.is_empty(), "{problem:?}");
        assert!(problem.line <= text.lines().count() + 1, "{problem:?}");
    }
});
