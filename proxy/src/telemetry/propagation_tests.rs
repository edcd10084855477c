//! Traces that come in each form, and what goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
use super::*;

const W3C: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

/// What `read` makes of these: the parent, and whether it is recorded under the default sampler.
fn check(all: &[(&'static str, &str)], parent: Option<(u128, u64)>, is_sampled: bool) {
    let trace = Propagation::default().begin(&headers(all));
    assert_eq!(trace.parent, parent.map(|(_, span)| span), "{all:?}");
    assert_eq!(parent.is_some_and(|(id, _)| id == trace.trace_id), parent.is_some(), "{all:?}");
    assert_eq!(trace.is_sampled(), is_sampled, "{all:?}");
    assert!(trace.span_id != 0 && trace.trace_id != 0 && Some(trace.span_id) != trace.parent);
}

#[test]
fn a_trace_is_continued_in_whichever_form_it_comes() {
    let known = Some((TRACE, SPAN));
    let (id, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    check(&[("traceparent", W3C)], known, true);
    check(&[("traceparent", &W3C.replace("-01", "-00"))], known, false);
    check(&[("b3", &format!("{id}-{span}-1"))], known, true);
    check(&[("b3", &format!("{id}-{span}-d"))], known, true);
    check(&[("b3", &format!("{id}-{span}-0"))], known, false);
    check(&[("b3", &format!("{id}-{span}-1-05e3ac9a4f6e3b90"))], known, true);
    // Who says nothing leaves it to us.
    check(&[("b3", &format!("{id}-{span}"))], known, true);
    check(&[("b3", &format!("a3ce929d0e0e4736-{span}-1"))], Some((0xa3ce_929d_0e0e_4736, SPAN)), true);
    check(&[("b3", "0")], None, false);
    check(&[("x-b3-traceid", id), ("x-b3-spanid", span), ("x-b3-sampled", "1")], known, true);
    check(
        &[("x-b3-traceid", &id.to_uppercase()), ("x-b3-spanid", span), ("x-b3-sampled", "0")],
        known,
        false,
    );
    check(&[("x-b3-traceid", id), ("x-b3-spanid", span), ("x-b3-flags", "1")], known, true);
    check(&[("x-b3-sampled", "0")], None, false);
    // The standard before the other.
    check(&[("b3", "0"), ("traceparent", W3C)], known, true);
}

#[test]
fn what_is_not_exactly_right_starts_a_trace() {
    let (id, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    check(&[], None, true);
    check(&[("traceparent", W3C), ("traceparent", W3C)], None, true);
    check(&[("traceparent", &W3C.to_uppercase())], None, true);
    let zeros = format!("{}-{span}-1", "0".repeat(32));
    for wrong in
        ["", "-", "--", "1-2-3", "x", &format!("{id}-{span}-7"), &format!("{id}-{span}-1-a-b"), &zeros]
    {
        check(&[("b3", wrong)], None, true);
    }
    check(&[("b3", &"f".repeat(64 * 1024))], None, true);
    check(&[("b3", &format!("{id}-{span}-0")), ("b3", &format!("{id}-{span}-0"))], None, true);
    check(&[("x-b3-traceid", id)], None, true);
    check(&[("x-b3-traceid", id), ("x-b3-spanid", "1"), ("x-b3-sampled", "1")], None, true);
    check(&[("x-b3-traceid", &id[..31]), ("x-b3-spanid", span)], None, true);
}

#[test]
fn a_propagator_that_is_not_named_is_not_read() {
    let mut doubts = Vec::new();
    let only = |names: &str, doubts: &mut Vec<String>| Propagation {
        propagators: Propagators::read(names, doubts),
        ..Propagation::default()
    };
    let b3 = headers(&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")]);
    let w3c = headers(&[("traceparent", W3C)]);
    assert_eq!(only("tracecontext,baggage", &mut doubts).begin(&b3).parent, None);
    assert_eq!(only("tracecontext", &mut doubts).begin(&w3c).parent, Some(SPAN));
    assert_eq!(only("b3multi", &mut doubts).begin(&w3c).parent, None);
    assert_eq!(only("b3", &mut doubts).begin(&b3).parent, Some(SPAN));
    assert!(doubts.is_empty());
    only("tracecontext, jaeger", &mut doubts);
    assert!(doubts[0].contains("`jaeger`"), "{doubts:?}");
}

#[test]
fn the_sampler_decides_where_the_caller_does_not() {
    let mut doubts = Vec::new();
    let w3c = headers(&[("traceparent", W3C)]);
    let unsampled = headers(&[("traceparent", &W3C.replace("-01", "-00"))]);
    let table = [
        // name, argument, a caller that records, one that does not, no caller
        ("always_on", None, true, true, true),
        ("always_off", None, false, false, false),
        ("parentbased_always_on", None, true, false, true),
        ("parentbased_always_off", None, true, false, false),
        ("traceidratio", Some("0"), false, false, false),
        ("traceidratio", Some("1"), true, true, true),
        ("parentbased_traceidratio", Some("0.0"), true, false, false),
        ("parentbased_traceidratio", None, true, false, true),
    ];
    for (name, argument, recording, silent, none) in table {
        let sampler = Sampler::read(name, argument, &mut doubts);
        let propagation = Propagation { sampler, ..Propagation::default() };
        let said =
            [&w3c, &unsampled, &HeaderMap::new()].map(|headers| propagation.begin(headers).is_sampled());
        assert_eq!(said, [recording, silent, none], "{name} {argument:?}");
    }
    assert!(doubts.is_empty());
    for (name, argument) in [("sometimes", None), ("traceidratio", Some("2")), ("traceidratio", Some("NaN"))]
    {
        let sampler = Sampler::read(name, argument, &mut doubts);
        assert!((sampler.ratio - 1.0).abs() < f64::EPSILON, "{name}");
        assert!(!doubts.is_empty(), "{name}");
        doubts.clear();
    }
}

#[test]
fn a_ratio_takes_its_part_and_the_same_traces_everywhere() {
    let sampler = Sampler { is_parent_based: false, ratio: 0.25 };
    let taken = (0..4000).filter(|_| takes(sampler, rand::random())).count();
    assert!((800..1200).contains(&taken), "{taken} of 4000");
    for id in [TRACE, 1, u128::MAX] {
        // Whoever takes a part takes what those who take less have taken.
        let higher = Sampler { ratio: 0.5, ..sampler };
        assert!(!takes(sampler, id) || takes(higher, id));
    }
    assert!(takes(sampler, 1) && !takes(sampler, u128::MAX));
}

/// What is sent on for what came: all of it.
fn passed(all: &[(&'static str, &str)]) -> (Trace, HeaderMap) {
    let mut headers = headers(all);
    let trace = Propagation::default().begin(&headers);
    trace.pass_on(&mut headers);
    (trace, headers)
}

#[test]
fn our_span_is_the_parent_of_what_follows_in_every_form() {
    let w3c = |trace: &Trace| format!("00-{:032x}-{:016x}-01", trace.trace_id, trace.span_id);
    let (trace, seen) = passed(&[("traceparent", W3C), ("tracestate", "a=1"), ("baggage", "user=7")]);
    assert_eq!(seen["traceparent"], w3c(&trace));
    assert_eq!(
        (&seen["tracestate"], &seen["baggage"]),
        (&"a=1".parse().unwrap(), &"user=7".parse().unwrap())
    );
    assert_eq!(seen.len(), 3);

    let (trace, seen) = passed(&[("b3", "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1")]);
    assert_eq!(seen["b3"], format!("{TRACE:032x}-{:016x}-1", trace.span_id));
    assert_eq!(seen["traceparent"], w3c(&trace));

    let (trace, seen) = passed(&[
        ("x-b3-traceid", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("x-b3-spanid", "00f067aa0ba902b7"),
        ("x-b3-parentspanid", "1111111111111111"),
        ("x-b3-flags", "1"),
    ]);
    assert_eq!(seen["x-b3-traceid"], format!("{TRACE:032x}"));
    assert_eq!(seen["x-b3-spanid"], format!("{:016x}", trace.span_id));
    assert_eq!(seen["x-b3-parentspanid"], "00f067aa0ba902b7");
    assert_eq!(seen["x-b3-sampled"], "1");
    assert!(!seen.contains_key("x-b3-flags"));
}

#[test]
fn the_state_of_a_trace_that_could_not_be_read_goes_with_it() {
    let (trace, seen) = passed(&[("traceparent", "nonsense"), ("tracestate", "a=1"), ("baggage", "user=7")]);
    assert_eq!(trace.parent, None);
    assert!(!seen.contains_key("tracestate"));
    assert_eq!(seen["baggage"], "user=7");
}
