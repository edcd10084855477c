//! The index and the plain scan give the same answer, rule for rule, whatever the policies and the call.

use super::given::{Call, allow, call, deny, snapshot};
use super::random::{Random, any_call, any_spec};
use postern_config::{Snapshot, Verdict, authorize::judge, snapshot::linear};

const CALLS_PER_POLICY: u64 = 40;

/// How many cases: `POSTERN_DIFFERENTIAL_CASES`, else as many as take seconds.
fn cases() -> u64 {
    std::env::var("POSTERN_DIFFERENTIAL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(100_000)
}

fn agree(snapshot: &Snapshot, call: &Call) -> Verdict {
    let facts = call.facts();
    let (index, scan) = (judge(snapshot, &facts), linear::judge(snapshot, &facts));
    assert_eq!(index, scan, "{call:#?}\n{:#?}", snapshot.spec().authorization_policies);
    index.decision.verdict
}

#[test]
fn random_policies_and_calls_show_no_difference() {
    let (mut allowed, mut denied, mut tried, mut audited) = (0, 0, 0, 0);
    for seed in 0..cases().div_ceil(CALLS_PER_POLICY) {
        let mut random = Random(seed.wrapping_mul(0x5851_f42d_4c95_7f2d));
        let spec = any_spec(&mut random);
        let snapshot =
            Snapshot::compile(spec).unwrap_or_else(|problems| panic!("seed {seed}: {problems:#?}"));
        for _ in 0..CALLS_PER_POLICY {
            let call = any_call(&mut random);
            match agree(&snapshot, &call) {
                Verdict::Allow => allowed += 1,
                Verdict::Deny => denied += 1,
            }
            let judgement = judge(&snapshot, &call.facts());
            tried += u64::from(judgement.dry_run.is_some());
            audited += u64::from(judgement.audit.is_some());
        }
    }
    // All kinds of answers come up, so the test is not about nothing.
    let total = allowed + denied;
    for (what, count) in [("allowed", allowed), ("denied", denied), ("tried", tried), ("audited", audited)] {
        assert!(count * 50 > total, "{what}: {count} of {total}");
    }
}

#[test]
fn more_fitting_patterns_than_are_kept_track_of_still_decide() {
    let long = format!("/{}", "a/".repeat(100));
    let prefix =
        |end: usize| format!("{{to: [{{operation: {{paths: ['{}*'], notMethods: [PUT]}}}}]}}", &long[..end]);
    let rules: Vec<String> = (1..long.len()).rev().map(prefix).collect();
    for policies in
        [vec![allow(&format!("[{}]", rules.join(",")))], vec![deny(&format!("[{}]", rules.join(",")))]]
    {
        let snapshot = snapshot(policies);
        for call in
            [call().path(&long), call().path(&long).method("PUT"), call().path("/b"), call().path("/a/a/b")]
        {
            agree(&snapshot, &call);
        }
    }
}

#[test]
fn a_crowd_of_rules_that_differ_in_what_they_exclude_only() {
    let rules: Vec<String> = (0..5_000)
        .map(|n| {
            format!("{{to: [{{operation: {{notPaths: ['/x{n}', '/admin*'], notMethods: [M{}]}}}}]}}", n % 7)
        })
        .collect();
    let snapshot = snapshot(vec![allow(&format!("[{}]", rules.join(",")))]);
    for (path, method) in [("/admin", "GET"), ("/x0", "GET"), ("/x0", "M1"), ("/x4999", "M1"), ("/", "M0")] {
        agree(&snapshot, &call().path(path).method(method));
    }
}
