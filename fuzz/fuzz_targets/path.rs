//! Whatever is asked for: a normalized path is normal, so that policy and app cannot read it in two ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use postern_config::path::{Normalization, normalize};

fuzz_target!(|path: &str| {
    for mode in [Normalization::Base, Normalization::MergeSlashes, Normalization::DecodeAndMergeSlashes] {
        let Ok(once) = normalize(path, mode) else { continue };
        assert!(!once.split('/').any(|part| part == ".."), "{path:?} -> {once:?}");
        if mode != Normalization::DecodeAndMergeSlashes {
            let twice = normalize(&once, mode).expect("a normal path has a reading");
            assert_eq!(once, twice, "{path:?} in {mode:?}");
        }
    }
});
