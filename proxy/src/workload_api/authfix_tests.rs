//! Exact bytes of real clients and of hostile ones, split everywhere.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::{super::huffman, *};
use proptest::prelude::*;

const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
const C_CORE: &str = "tmp%2Fidexp%2Fagent.sock";
const JAVA: &str = "/tmp/idexp/agent.sock";

fn fixed(text: &str) -> String {
    "x".repeat(text.len())
}

fn string(text: &str, is_huffman: bool) -> Vec<u8> {
    let bytes = if is_huffman { huffman::encode(text.as_bytes()) } else { text.as_bytes().to_vec() };
    assert!(bytes.len() < 127, "one byte of length is enough here");
    let mark = if is_huffman { 0x80 } else { 0 };
    [vec![bytes.len() as u8 | mark], bytes].concat()
}

/// `:method: POST`, `:scheme: http`, the authority as given, and a path that goes into the dynamic table.
fn block(authority: &[u8]) -> Vec<u8> {
    [&[0x83, 0x86], authority, &[0x44], &string("/SpiffeWorkloadAPI/FetchX509SVID", false)].concat()
}

fn framed(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

fn headers(block: &[u8]) -> Vec<u8> {
    framed(HEADERS, END_HEADERS, block)
}

fn started(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, SETTINGS, &frames.concat()].concat()
}

fn through<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut rewriter, mut output) = (Rewriter::new(), BytesMut::new());
    for chunk in chunks {
        rewriter.feed(chunk, &mut output);
        assert!(rewriter.held.len() <= HELD + FRAME + FRAME_HEAD);
    }
    rewriter.finish(&mut output);
    output.to_vec()
}

/// Whole, byte by byte, and cut in two at every place: always the same.
fn check(what: &str, input: &[u8], expected: &[u8]) {
    assert_eq!(through([input]), expected, "{what}");
    assert_eq!(through(input.chunks(1)), expected, "{what}, byte by byte");
    for at in 1..input.len() {
        let (left, right) = input.split_at(at);
        assert_eq!(through([left, right]), expected, "{what}, cut at {at}");
    }
}

#[test]
fn an_illegal_authority_becomes_a_legal_one_of_the_same_length_in_every_representation() {
    let name = |is_huffman| string(":authority", is_huffman);
    for text in [C_CORE, JAVA, "a b", "%", "user@[", "\u{e9}"] {
        for (what, before) in [
            ("incremental, static name", vec![0x41]),
            ("without indexing", vec![0x01]),
            ("never indexed", vec![0x11]),
            ("incremental, name as literal", [vec![0x40], name(false)].concat()),
            ("incremental, name by Huffman", [vec![0x40], name(true)].concat()),
            ("never indexed, name as literal", [vec![0x10], name(false)].concat()),
        ] {
            let with = |value: Vec<u8>| started(&[headers(&block(&[before.clone(), value].concat()))]);
            let expected = with(string(&fixed(text), false));
            check(what, &with(string(text, false)), &expected);
            check(what, &with(string(text, true)), &expected);
        }
    }
}

#[test]
fn a_legal_authority_and_all_other_bytes_pass_unchanged() {
    for text in ["localhost", "localhost:80", "[::1]:80", "unix", "a.b-c_d~e"] {
        for is_huffman in [false, true] {
            let frames = [headers(&block(&[vec![0x41], string(text, is_huffman)].concat()))];
            let input = started(&frames);
            check(text, &input, &input);
        }
    }
    // An empty one has no legal form of its length; a path may hold what it likes.
    let empty = started(&[headers(&block(&[0x41, 0]))]);
    check("empty", &empty, &empty);
    let data = started(&[framed(0, 1, C_CORE.as_bytes()), framed(8, 0, &[0, 0, 0, 1])]);
    check("other frames", &data, &data);
    check("HTTP/1", b"GET / HTTP/1.1\r\nhost: a%2Fb\r\n\r\n", b"GET / HTTP/1.1\r\nhost: a%2Fb\r\n\r\n");
    check("an end in the preface", &PREFACE[..7], &PREFACE[..7]);
}

#[test]
fn an_authority_whose_name_is_in_the_dynamic_table_is_found() {
    let first = headers(&block(&[vec![0x41], string("localhost", false)].concat()));
    // The path was added after it: 62 is the path, 63 the authority.
    let second = |value: &str| headers(&block(&[vec![0x7f, 0x00], string(value, false)].concat()));
    check(
        "by dynamic name",
        &started(&[first.clone(), second(C_CORE)]),
        &started(&[first.clone(), second(&fixed(C_CORE))]),
    );
    // The path's name with an illegal host as its value is a path.
    let path = headers(&block(&[vec![0x7e], string(C_CORE, false)].concat()));
    let input = started(&[first, path]);
    check("another dynamic name", &input, &input);
}

#[test]
fn an_indexed_authority_was_rewritten_when_it_entered_the_table() {
    let first = |value: &str| headers(&block(&[vec![0x41], string(value, false)].concat()));
    let again = headers(&[0x83, 0x86, 0xbf, 0xbe]);
    check("indexed", &started(&[first(C_CORE), again.clone()]), &started(&[first(&fixed(C_CORE)), again]));
}

#[test]
fn what_the_table_no_longer_holds_is_not_guessed() {
    let first = headers(&block(&[vec![0x41], string("localhost", false)].concat()));
    // Table size 0, then a name that is gone: malformed, and h2 will say so.
    let second = headers(&[&[0x20, 0x7f, 0x00], &string(C_CORE, false)[..]].concat());
    let third = headers(&block(&[vec![0x41], string(C_CORE, false)].concat()));
    let input = started(&[first, second, third]);
    check("after eviction", &input, &input);
}

#[test]
fn a_block_in_pieces_with_padding_and_priority_is_put_together() {
    let original = block(&[vec![0x41], string(C_CORE, false)].concat());
    let rewritten = block(&[vec![0x41], string(&fixed(C_CORE), false)].concat());
    let priority = [0x80, 0, 0, 3, 200];
    for at in 0..=original.len() {
        let (left, right) = original.split_at(at);
        let (end, flags) = (0x1, PADDED | PRIORITY | 0x1);
        let first = [&[4][..], &priority, left, &[0; 4]].concat();
        let frames = [
            framed(HEADERS, flags, &first),
            framed(CONTINUATION, 0, &[]),
            framed(CONTINUATION, END_HEADERS, right),
        ];
        let expected = [&priority[..], &rewritten].concat();
        let expected = started(&[framed(HEADERS, end | PRIORITY | END_HEADERS, &expected)]);
        let input = started(&frames);
        assert_eq!(through([&input[..]]), expected, "cut at {at}");
        assert_eq!(through(input.chunks(1)), expected, "cut at {at}, byte by byte");
    }
}

#[test]
fn a_rewritten_block_that_outgrows_its_frame_is_continued() {
    // Huffman's shortest letters, so that the plain form is longer; the rest is one long header.
    let long = "a".repeat(FRAME - 40);
    let field = [&[0x00, 1, b'n', 0x7f][..], &length_after_127(long.len()), long.as_bytes()].concat();
    let with = |value: Vec<u8>| [vec![0x41], value, field.clone()].concat();
    let (original, rewritten) = (
        with(string("%aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", true)),
        with(string(&"x".repeat(51), false)),
    );
    assert!(original.len() <= FRAME && rewritten.len() > FRAME);
    let (first, rest) = rewritten.split_at(FRAME);
    let expected = started(&[framed(HEADERS, 0, first), framed(CONTINUATION, END_HEADERS, rest)]);
    assert_eq!(through([&started(&[headers(&original)])[..]]), expected);
}

fn length_after_127(length: usize) -> Vec<u8> {
    let mut rest = length - 127;
    let mut bytes = Vec::new();
    while rest >= 128 {
        bytes.push((rest & 127) as u8 | 128);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

#[test]
fn what_breaks_the_protocol_passes_unchanged_and_is_never_held_without_bound() {
    let authority = [vec![0x41], string(C_CORE, false)].concat();
    let begun = framed(HEADERS, 0, &authority);
    let other_stream = {
        let mut frame = framed(CONTINUATION, END_HEADERS, &[0x83]);
        frame[8] = 3;
        frame
    };
    for (what, frames) in [
        ("data inside a block", vec![begun.clone(), framed(0, 0, b"x"), headers(&block(&authority))]),
        ("a block of two streams", vec![begun.clone(), other_stream]),
        ("padding longer than the frame", vec![framed(HEADERS, PADDED | END_HEADERS, &[200, 0x83])]),
        ("a string longer than the block", vec![headers(&[0x41, 100, b'%'])]),
        ("an integer without end", vec![headers(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff])]),
        ("a continuation of nothing", vec![framed(CONTINUATION, END_HEADERS, &authority)]),
    ] {
        let input = started(&frames);
        check(what, &input, &input);
    }
    for piece in [vec![], vec![0; 1000], vec![0; FRAME]] {
        let frames: Vec<_> = (0..200).map(|_| framed(CONTINUATION, 0, &piece)).collect();
        let input = started(&[vec![begun.clone()], frames].concat());
        assert_eq!(through(input.chunks(1000)), input);
    }
    let huge = started(&[framed(HEADERS, END_HEADERS, &vec![0x83; FRAME + 1])]);
    assert_eq!(through(huge.chunks(1000)), huge);
}

/// A frame, or the frames of one block, as a client may send them.
fn traffic() -> impl Strategy<Value = Vec<u8>> {
    let other = (any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300))
        .prop_filter("blocks are made below", |(kind, _, _)| ![HEADERS, CONTINUATION].contains(kind))
        .prop_map(|(kind, flags, payload)| framed(kind, flags, &payload));
    let text = || ("[a-z]{1,12}(:[0-9]{1,4})?", any::<bool>()).prop_map(|(text, coded)| string(&text, coded));
    let field = prop_oneof![
        (1u8..62).prop_map(|index| vec![0x80 | index]),
        (prop::sample::select(vec![0x41u8, 0x01, 0x11, 0x44]), text())
            .prop_map(|(kind, v)| [vec![kind], v].concat()),
        (text(), text()).prop_map(|(n, v)| [vec![0x40], n, v].concat()),
        (0u8..31).prop_map(|size| vec![0x20 | size]),
    ];
    let headers = (prop::collection::vec(field, 0..8), any::<prop::sample::Index>(), any::<bool>(), 0u8..20)
        .prop_map(|(fields, cut, is_whole, padding)| {
            let block = fields.concat();
            if is_whole {
                let padded = [&[padding][..], &block, &vec![0; usize::from(padding)]].concat();
                return framed(HEADERS, PADDED | END_HEADERS, &padded);
            }
            let (left, right) = block.split_at(cut.index(block.len() + 1));
            [framed(HEADERS, 0, left), framed(CONTINUATION, END_HEADERS, right)].concat()
        });
    prop_oneof![other, headers]
}

proptest! {
    #[test]
    fn legal_traffic_passes_byte_for_byte(frames in prop::collection::vec(traffic(), 0..12), chunk in 1usize..400) {
        let input = started(&frames);
        prop_assert_eq!(through(input.chunks(chunk)), input);
    }

    #[test]
    fn any_bytes_give_the_same_however_they_arrive(bytes in prop::collection::vec(any::<u8>(), 0..600), chunk in 1usize..50) {
        let input = [PREFACE, &bytes[..]].concat();
        prop_assert_eq!(through(input.chunks(chunk)), through([&input[..]]));
    }
}
