//! What ends soon, and what of it is nobody's business.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T00:00:00Z";

fn authorities(all: &[(&str, &str, f64, &str, usize)]) -> Authorities {
    let one = |(kind, slot, remaining, end, holders): &(&str, &str, f64, &str, usize)| {
        json!({
            "kind": kind, "id": "ab".repeat(32), "subject": "", "slot": slot, "tainted": false, "revoked": false,
            "not_before": NOW, "not_after": end, "since": NOW, "remaining": remaining, "holders": holders,
        })
    };
    let all: Vec<Value> = all.iter().map(one).collect();
    serde_json::from_value(json!({
        "trust_domain": "cluster.local", "now": NOW, "trust_version": "v", "connected": 0, "behind": 0,
        "authorities": all, "pending": [],
    }))
    .unwrap()
}

fn certificates(remaining: f64, end: &str) -> Certificates {
    serde_json::from_value(json!({
        "now": NOW, "missing": [],
        "certificates": [{
            "namespace": "shop", "pod": "front", "identity": "spiffe://cluster.local/ns/shop/sa/front", "serial": "1",
            "not_before": NOW, "not_after": end, "issuer": null, "root": null, "remaining": remaining,
            "trust_acked": "", "connected_since": NOW,
        }],
    }))
    .unwrap()
}

#[test]
fn only_what_nobody_renews_counts() {
    let month = Duration::from_secs(30 * 24 * 3600);
    let (soon, later) = ("2026-01-20T00:00:00Z", "2026-03-01T00:00:00Z");
    for (kind, slot, remaining, end, holders, counts) in [
        ("root", "active", 0.5, soon, 1, true),
        ("root", "active", 0.5, later, 1, false),
        ("root", "active", 0.5, "nonsense", 1, true),
        ("root", "prepared", 0.9, soon, 0, true),
        ("root", "old", 0.1, soon, 1, true),
        ("root", "old", 0.1, soon, 0, false),
        ("intermediate", "active", 0.6, soon, 9, false),
        ("intermediate", "active", 0.1, soon, 9, true),
        ("jwt-key", "active", 0.1, soon, 0, true),
        ("jwt-key", "old", 0.1, soon, 0, false),
    ] {
        let found =
            ending(&authorities(&[(kind, slot, remaining, end, holders)]), &certificates(1.0, later), month);
        assert_eq!(found.len(), usize::from(counts), "{kind} {slot} {remaining} {end} {holders}: {found:?}");
    }
    for (remaining, end, counts) in [(0.6, soon, false), (0.1, soon, true), (0.1, later, false)] {
        let found = ending(&authorities(&[]), &certificates(remaining, end), month);
        assert_eq!(found.len(), usize::from(counts), "{remaining} {end}: {found:?}");
    }
}
