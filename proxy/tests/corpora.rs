//! The corpora of the fuzz targets as plain tests: what was once found, and what is worth starting from. Each check is the one of
//! the target of the same name in `fuzz/fuzz_targets`, which need nightly Rust; this needs nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use std::{fs, path::Path};

#[path = "../../fuzz/src/proxy_checks.rs"]
mod checks;

fn each(target: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut seen: u64 = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        check(&bytes);
        // And neighbours of each: one octet changed, drawn from a sequence that is always the same.
        let mut random = seen.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for _ in 0..if bytes.is_empty() { 0 } else { 200 } {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let mut changed = bytes.clone();
            let at = usize::try_from(random % bytes.len() as u64).unwrap();
            changed[at] =
                b"\r\n\0 :;/%.AaGf0_-,#?@\x7f\xff\t\\"[usize::try_from((random >> 32) % 24).unwrap()];
            check(&changed);
        }
        seen += 1;
    }
    assert!(seen >= 4, "{target}: {seen} files");
}

#[test]
fn sniff() {
    each("sniff", checks::sniff);
}

#[test]
fn canonical() {
    each("canonical", |bytes| checks::canonical_request(&String::from_utf8_lossy(bytes)));
}

#[test]
fn headers() {
    each("headers", |bytes| checks::header_rules(&String::from_utf8_lossy(bytes)));
}

#[test]
fn chunked() {
    each("chunked", |bytes| {
        checks::chunked(bytes);
        checks::chunked_through_a_pair(bytes);
    });
}

#[test]
fn answer() {
    each("answer", checks::answer);
}
