//! The normalization table of reference appendix A, row by row, and what has to hold for any path.

use postern_config::path::Normalization::{self, Base, DecodeAndMergeSlashes, MergeSlashes, None as Off};
use postern_config::path::normalize;
use proptest::prelude::*;
use std::borrow::Cow;

const MODES: [Normalization; 4] = [Off, Base, MergeSlashes, DecodeAndMergeSlashes];

/// `expected`: the path that the application receives, or an error.
fn check(input: &str, mode: Normalization, expected: Result<&str, ()>) {
    let actual = normalize(input, mode);
    assert_eq!(actual.as_deref().map_err(|_| ()), expected, "{input:?} in mode {mode:?}");
    if let Ok(Cow::Owned(changed)) = &actual {
        assert_ne!(changed, input, "an unchanged path must be borrowed");
    }
}

#[rustfmt::skip]
const TABLE: &[(&str, [&str; 4])] = &[
    ("/", ["/", "/", "/", "/"]),
    ("/app/", ["/app/", "/app/", "/app/", "/app/"]),
    ("/app/../admin", ["/app/../admin", "/admin", "/admin", "/admin"]),
    ("/app", ["/app", "/app", "/app", "/app"]),
    ("/app//", ["/app//", "/app//", "/app/", "/app/"]),
    ("/app/%2f", ["/app/%2f", "/app/%2f", "/app/%2f", "/app/"]),
    ("/app%2f/", ["/app%2f/", "/app%2f/", "/app%2f/", "/app/"]),
    ("/xyz%30..//abc", ["/xyz%30..//abc", "/xyz0..//abc", "/xyz0../abc", "/xyz0../abc"]),
    ("/app/%2E./admin", ["/app/%2E./admin", "/admin", "/admin", "/admin"]),
    (r"/app\admin", [r"/app\admin", "/app/admin", "/app/admin", "/app/admin"]),
    (r"/app/\/\/\admin", [r"/app/\/\/\admin", "/app//////admin", "/app/admin", "/app/admin"]),
    ("/%2Fapp%5cadmin%5Cabc", ["/%2Fapp%5cadmin%5Cabc", "/%2Fapp%5cadmin%5Cabc", "/%2Fapp%5cadmin%5Cabc", "/app/admin/abc"]),
    (r"/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\abc", [r"/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\abc", "/%5Capp%2f%5c%2F..%2fadmin%5c/abc", "/%5Capp%2f%5c%2F..%2fadmin%5c/abc", "/app/admin/abc"]),
    ("/app//../admin", ["/app//../admin", "/app/admin", "/app/admin", "/app/admin"]),
    ("/app//../../admin", ["/app//../../admin", "/admin", "/admin", "/admin"]),
];

const UNCHANGED: &[&str] = &[
    "/0x2e0x2e/admin",
    "/0x2e0x2e0x2fadmin",
    "/0x2e0x2e0x5cadmin",
    "/0x2f0x2fadmin",
    "/0x5c0x5cadmin",
    "/%25c0%25ae%25c1%259cadmin",
    "/%25c0%25ae%25c0%25ae/admin",
    "/%25c0%25afadmin",
    "/%25c1%259cadmin",
    "/%252e%252e/admin",
    "/%252e%252e%252fadmin",
    "/%c1%9cadmin",
    "/%c0%ae%c0%ae/admin",
    "/%c0%afadmin",
    "/.../admin",
    "/..../admin",
    "/..;/admin",
    "/;/admin",
    "/admin;a=b",
    "/admin;a=b/xyz",
    "/admin,a=b/xyz",
    "/Admin",
    "/ADMIN",
];

#[test]
fn the_four_modes_give_what_the_reference_table_says() {
    for (input, expected) in TABLE {
        for (mode, expected) in MODES.into_iter().zip(expected) {
            check(input, mode, Ok(expected));
        }
    }
    check("/%c0%2e%c0%2e/admin", DecodeAndMergeSlashes, Ok("/%c0.%c0./admin"));
    check("/%c0%2fadmin", DecodeAndMergeSlashes, Ok("/%c0/admin"));
    for path in UNCHANGED {
        check(path, DecodeAndMergeSlashes, Ok(path));
    }
}

#[test]
fn of_255_encoded_bytes_only_the_unreserved_ones_and_slashes_are_decoded() {
    for byte in 1..=255u8 {
        let input = format!("/admin%{byte:02x}");
        let expected = match byte {
            b'/' | b'\\' => "/admin/".to_string(),
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                format!("/admin{}", char::from(byte))
            }
            _ => input.clone(),
        };
        check(&input, DecodeAndMergeSlashes, Ok(&expected));
    }
    check("/admin%00", DecodeAndMergeSlashes, Err(()));
}

#[test]
fn a_raw_fragment_has_no_safe_reading_in_any_mode() {
    for mode in MODES {
        check("/app#foo", mode, Err(()));
        check("/app", mode, Ok("/app"));
        check("/a?b#c", mode, Err(()));
    }
}

#[test]
fn an_encoded_nul_is_refused_by_every_mode_that_decodes() {
    check("/a%00", Off, Ok("/a%00"));
    for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
        check("/a%00", mode, Err(()));
        check("/a\0", mode, Err(()));
        check("/a%01", mode, Ok("/a%01"));
    }
}

#[test]
fn raw_characters_outside_the_path_alphabet_are_escaped() {
    check("/a b\"<>`{|}^\u{7f}\u{e9}", Base, Ok("/a%20b%22%3C%3E%60%7B%7C%7D%5E%7F%C3%A9"));
    check("/!$&'()*+,:;=@[]-._~", Base, Ok("/!$&'()*+,:;=@[]-._~"));
}

#[test]
fn dot_segments_never_climb_above_the_root() {
    for (input, expected) in [
        ("/..", "/"),
        ("/../..", "/"),
        ("/.", "/"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/./b", "/a/b"),
        (r"/a\..\b", "/b"),
        ("/%2e%2E/a", "/a"),
        ("/a/.b", "/a/.b"),
        ("/a/..b", "/a/..b"),
        ("", "/"),
        ("a", "/a"),
    ] {
        check(input, Base, Ok(expected));
    }
}

#[test]
fn what_is_decoded_never_completes_a_second_escape_sequence() {
    check("/%%34%31", Base, Ok("/%2541"));
    check("/%%341", Base, Ok("/%2541"));
    check("/%4%31", Base, Ok("/%2541"));
    check("/%2%46", DecodeAndMergeSlashes, Ok("/%252F"));
    check("/%", Base, Ok("/%"));
    check("/%zz%41", Base, Ok("/%zzA"));
}

#[test]
fn the_query_and_the_asterisk_form_are_left_alone() {
    for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
        check("/a/../b?c=/../%2f//%41", mode, Ok("/b?c=/../%2f//%41"));
        check("/b?c=//", mode, Ok("/b?c=//"));
        check("*", mode, Ok("*"));
    }
}

#[test]
fn the_usual_path_is_borrowed() {
    for mode in MODES {
        assert!(matches!(normalize("/v1/charges.json", mode), Ok(Cow::Borrowed(_))));
    }
}

proptest! {
    #[test]
    fn a_normalized_path_is_normalized(path in r"(/|\\|\.|%|2|e|E|F|f|5|c|4|1|a|\?| |%2e|%2F|%5c|%25|%41|\PC){0,24}") {
        for mode in MODES {
            if let Ok(once) = normalize(&path, mode) {
                let twice = normalize(&once, mode);
                prop_assert_eq!(twice.as_deref(), Ok(&*once), "{:?} in mode {:?}", path, mode);
            }
        }
    }

    #[test]
    fn no_dot_segment_and_no_backslash_is_left(path in r"/(/|\\|\.|%2e|%2E|a|;|%5c|%2f){0,24}") {
        let seen = normalize(&path, DecodeAndMergeSlashes).unwrap();
        prop_assert!(seen.starts_with('/') && !seen.contains('\\') && !seen.contains("//"), "{}", seen);
        prop_assert!(seen.split('/').all(|segment| segment != "." && segment != ".."), "{}", seen);
    }
}
