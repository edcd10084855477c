//! The corpora of the fuzz targets as plain tests: what was once found, and what is worth starting from. Each check is
//! the one of the target of the same name in `fuzz/fuzz_targets`, which need nightly Rust; this needs nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{fs, path::Path};

#[path = "../../fuzz/src/checks.rs"]
mod checks;

fn each(target: &str, check: impl Fn(&str)) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        check(&String::from_utf8_lossy(&bytes));
        seen += 1;
    }
    assert!(seen >= 4, "{target}: {seen} files");
}

#[test]
fn documents() {
    each("documents", checks::documents);
}

#[test]
fn path() {
    each("path", checks::path);
}

#[test]
fn template() {
    each("template", checks::template);
}

#[test]
fn filter() {
    each("filter", checks::filter);
}

#[test]
fn authorize() {
    each("authorize", checks::authorize);
}
