//! What `postern ca` makes of a page.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use serde_json::{Value, json};

fn one(kind: &str, id: &str, slot: &str) -> Value {
    json!({
        "kind": kind, "id": id.repeat(16), "subject": "", "slot": slot, "tainted": false, "revoked": false,
        "not_before": "2026-01-01T00:00:00Z", "not_after": "2036-01-01T00:00:00Z", "since": "2026-01-01T00:00:00Z",
        "remaining": 0.5, "holders": 3,
    })
}

fn page(pending: &Value) -> Authorities {
    serde_json::from_value(json!({
        "trust_domain": "cluster.local", "now": "2031-01-01T00:00:00Z", "trust_version": "v", "connected": 3, "behind": 1,
        "authorities": [one("root", "aa01", "active"), one("root", "aa02", "prepared"), one("jwt-key", "bb03", "active")],
        "pending": pending,
    }))
    .unwrap()
}

fn activate(automatic: bool, lagging: &[&str]) -> Value {
    let lagging: Vec<Value> = lagging.iter().map(|who| json!({"who": who, "reason": "is asleep"})).collect();
    json!([{"step": "activate", "kind": "root", "id": "aa02".repeat(16), "automatic": automatic, "lagging": lagging}])
}

#[test]
fn an_authority_is_named_by_a_unique_beginning_of_its_key_id() {
    let page = page(&json!([]));
    assert_eq!(find(&page, "AA01").unwrap(), "aa01".repeat(16));
    assert_eq!(find(&page, "b").unwrap(), "bb03".repeat(16));
    assert_eq!(find(&page, "aa").unwrap_err().code, crate::failure::USAGE);
    assert!(find(&page, "cc").unwrap_err().cause.contains("cluster.local"));
}

#[test]
fn the_table_shows_lives_and_what_a_rotation_waits_for() {
    let text = table(&page(&activate(true, &["shop/front"])), Paint::default());
    for wanted in [
        "cluster.local, connected sidecars: 3, 1 without the trust in force",
        "root     aa01aa01  active    3        2036-01-01T00:00:00Z  1826 d  █████░░░░░  50 %",
        "activate root aa02aa02, by itself as soon as nobody lags:\n    shop/front is asleep",
    ] {
        assert!(text.contains(wanted), "`{wanted}` is not in\n{text}");
    }
}

#[test]
fn a_step_that_waits_says_for_whom_and_whether_it_goes_on_by_itself() {
    for (automatic, lagging, wanted) in [
        (true, &[][..], ": about to happen"),
        (false, &[][..], ": safe, nobody lags"),
        (false, &["shop/front"][..], "when somebody asks for it; not safe yet:\n    shop/front is asleep"),
    ] {
        let text = open(&page(&activate(automatic, lagging)), Which::Root);
        assert!(text.contains(wanted), "{text}");
    }
    assert_eq!(open(&page(&activate(true, &[])), Which::Jwt), "", "another rotation is not ours to wait for");
}
