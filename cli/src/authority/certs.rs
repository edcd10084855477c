//! `postern certs`: who holds a certificate, until when, by which authority.

use super::{
    shown::{left, life, short},
    socket::{ControlPlane, Where},
};
use crate::{
    failure::OK,
    policy::formats::{self, Output, Paint},
};
use clap::Args;
use postern_control_plane::admin::pages::{Certificate, Certificates};
use std::fmt::Write as _;

/// Flags of `postern certs`.
#[derive(Args, Debug, Clone)]
pub struct CertsArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// Runs the command: 0 with the list, 1 when the control plane cannot be asked.
pub fn run(args: &CertsArgs) -> u8 {
    let page = ControlPlane::find(&args.place).and_then(|control_plane| control_plane.page("/certificates"));
    match page {
        Ok(page) => {
            formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
            OK
        }
        Err(failure) => failure.report(),
    }
}

fn table(page: &Certificates, paint: Paint) -> String {
    let mut rows =
        vec![["POD", "IDENTITY", "AUTHORITY", "UNTIL", "LEFT", "LIFE"].map(str::to_owned).to_vec()];
    rows.extend(page.certificates.iter().map(|one| row(one, &page.now, paint)));
    let mut out = match page.certificates.is_empty() {
        true => "no sidecar is connected\n".to_owned(),
        false => formats::columns(&rows),
    };
    if !page.missing.is_empty() {
        out += "\nnot connected, so nothing is known of what they hold:\n";
        for one in &page.missing {
            let _ = writeln!(out, "  {} {}", one.who, one.reason);
        }
    }
    out
}

fn row(one: &Certificate, now: &str, paint: Paint) -> Vec<String> {
    let pod = format!("{}/{}", one.namespace, one.pod);
    let (Some(not_after), Some(remaining)) = (&one.not_after, one.remaining) else {
        let unknown = ["-", "has not said yet", "-", "-"].map(str::to_owned);
        return [vec![pod, one.identity.clone()], unknown.to_vec()].concat();
    };
    let authority = match (&one.issuer, &one.root) {
        (Some(issuer), Some(root)) if issuer != root => format!("{} < {}", short(issuer), short(root)),
        (Some(issuer), _) => short(issuer).to_owned(),
        _ => "unknown".to_owned(),
    };
    let left = left(now, not_after);
    vec![pod, one.identity.clone(), authority, not_after.clone(), left, life(remaining, paint)]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_the_life_of_each_certificate_as_a_bar_and_who_is_missing() {
        let page: Certificates = serde_json::from_value(json!({
            "now": "2026-01-01T00:00:00Z",
            "certificates": [
                {
                    "namespace": "shop", "pod": "cart", "identity": "spiffe://cluster.local/ns/shop/sa/cart",
                    "serial": "41", "not_before": "2025-12-31T23:42:00Z", "not_after": "2026-01-01T00:42:00Z",
                    "issuer": "aa01".repeat(16), "root": "bb02".repeat(16), "remaining": 0.7,
                    "trust_acked": "v", "connected_since": "2025-12-31T23:42:00Z",
                },
                {
                    "namespace": "shop", "pod": "new", "identity": "spiffe://cluster.local/ns/shop/sa/new",
                    "serial": null, "not_before": null, "not_after": null, "issuer": null, "root": null,
                    "remaining": null, "trust_acked": "", "connected_since": "2026-01-01T00:00:00Z",
                },
            ],
            "missing": [{"who": "shop/away", "reason": "has not been connected since noon"}],
        }))
        .unwrap();
        let text = table(&page, Paint::default());
        let lines: Vec<&str> = text.lines().collect();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
        assert_eq!(words(lines[0]), "POD IDENTITY AUTHORITY UNTIL LEFT LIFE");
        let cart = "shop/cart spiffe://cluster.local/ns/shop/sa/cart aa01aa01 < bb02bb02 2026-01-01T00:42:00Z 42 min ███████░░░ 70 %";
        assert_eq!(words(lines[1]), cart);
        assert!(words(lines[2]).starts_with("shop/new spiffe://cluster.local/ns/shop/sa/new"), "{text}");
        assert!(!lines[2].contains('█'), "nothing is known of it: {text}");
        assert!(text.ends_with("not connected, so nothing is known of what they hold:\n  shop/away has not been connected since noon\n"), "{text}");
        let none = Certificates { certificates: Vec::new(), missing: Vec::new(), ..page };
        assert_eq!(table(&none, Paint::default()), "no sidecar is connected\n");
    }
}
