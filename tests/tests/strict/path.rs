//! S-PATH: a path has one reading, and policy judges the one that the app gets.

use crate::arena::{Arena, BOTH};
use postern_tests::scenario::policy;

fn get(target: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes()
}

fn deny_admin() -> String {
    policy("admin", "action: DENY, rules: [{to: [{operation: {paths: [/admin, '/admin/*', '/admin;*']}}]}]")
}

fn normalization(mode: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: istio-system}}\n---\napiVersion: v1\nkind: ConfigMap\n\
         metadata: {{name: istio, namespace: istio-system}}\n\
         data: {{mesh: \"pathNormalization: {{normalization: {mode}}}\"}}\n"
    )
}

/// Lines 01, 03, 06, 11 with the strictest normalization; the twins differ in one fact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_denied_path_gets_by_a_deny_rule() {
    let arena = Arena::new(&(deny_admin() + &normalization("DECODE_AND_MERGE_SLASHES"))).await;
    for side in BOTH {
        for (line, target) in [
            ("S-PATH-01", "/admin"),
            ("S-PATH-01", "//admin"),
            ("S-PATH-01", "/x/../admin"),
            ("S-PATH-01", "/./admin"),
            ("S-PATH-01", "/%61dmin"),
            ("S-PATH-01", "/x/%2e%2e/admin"),
            ("S-PATH-01", "/x/%2E./admin"),
            ("S-PATH-01", "/\\admin"),
            ("S-PATH-01", "/x\\..\\admin"),
            ("S-PATH-01", "/admin%2f"),
            ("S-PATH-01", "/admin%5c"),
            ("S-PATH-01", "/%2fadmin"),
            ("S-PATH-01", "/%5Cadmin%5c\\x"),
            ("S-PATH-03", "/../admin"),
            ("S-PATH-03", "/../../../admin/x"),
            ("S-PATH-06", "/admin;x"),
            ("S-PATH-11", "/admin?x"),
            ("S-PATH-11", "/admin?/public"),
            ("S-PATH-11", "/admin?../public"),
        ] {
            arena.denied(side, line, &get(target)).await;
        }
        for (line, target, arrives) in [
            ("S-PATH-01", "//administrator", "/administrator"),
            ("S-PATH-01", "/x/../public", "/public"),
            ("S-PATH-03", "/..", "/"),
            ("S-PATH-07", "/Admin", "/Admin"),
            ("S-PATH-01", "/%2561dmin", "/%2561dmin"),
            ("S-PATH-01", "/..;/admin", "/..;/admin"),
            ("S-PATH-01", "/.../admin", "/.../admin"),
            ("S-PATH-01", "/%c0%ae%c0%ae/admin", "/%c0%ae%c0%ae/admin"),
            ("S-PATH-11", "/public?/../admin", "/public?/../admin"),
        ] {
            let got = arena.passes(side, line, &get(target)).await;
            assert!(got.starts_with(&format!("GET {arrives} HTTP/1.1\r\n")), "{line} {target}: {got}");
        }
    }
    arena.survived().await;
}

/// Line 01 with the default of Istio: slashes stay as they are, dots and unreserved characters do not. docs/security.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_istios_default_the_app_gets_the_slashes_that_policy_saw() {
    let arena = Arena::new(&deny_admin()).await;
    for side in BOTH {
        for target in ["/admin", "/x/../admin", "/./admin", "/%61dmin", "/x/%2e%2e/admin", "/\\admin"] {
            if target == "/\\admin" {
                // `\` becomes `/`, and two slashes are not one in this mode.
                let got = arena.passes(side, "S-PATH-01", &get(target)).await;
                assert!(got.starts_with("GET //admin HTTP/1.1\r\n"), "{got}");
            } else {
                arena.denied(side, "S-PATH-01", &get(target)).await;
            }
        }
        for (target, arrives) in
            [("//admin", "//admin"), ("/admin%2f", "/admin%2f"), ("/admin%5c", "/admin%5c")]
        {
            let got = arena.passes(side, "S-PATH-01", &get(target)).await;
            assert!(got.starts_with(&format!("GET {arrives} HTTP/1.1\r\n")), "{got}");
        }
    }
    arena.survived().await;
}

/// Line 02.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_an_allowed_path_leads_out_of_it() {
    let rules = "action: ALLOW, rules: [{to: [{operation: {paths: ['/public/*', /good]}}]}]";
    let arena = Arena::new(&(policy("public", rules) + &normalization("DECODE_AND_MERGE_SLASHES"))).await;
    for side in BOTH {
        for target in [
            "/public/../admin",
            "/public/..%2fadmin",
            "/public/%2e%2e%2fadmin",
            "/public/..\\admin",
            "/public/..%5Cadmin",
            "/public/x/../../admin",
            "/admin?/public/x",
        ] {
            arena.denied(side, "S-PATH-02", &get(target)).await;
        }
        let got = arena.passes(side, "S-PATH-02", &get("/public/x/..%2fadmin")).await;
        assert!(got.starts_with("GET /public/admin HTTP/1.1\r\n"), "{got}");
    }
    arena.survived().await;
}

/// Lines 04, 05, 08, 09, 12: what has no safe reading is refused, and the connection closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_a_safe_reading_is_refused() {
    let arena = Arena::new("").await;
    for side in BOTH {
        for (line, target, status) in [
            ("S-PATH-04", "/admin%00", 400),
            ("S-PATH-04", "/a%", 400),
            ("S-PATH-04", "/a%2", 400),
            ("S-PATH-04", "/a%zz", 400),
            ("S-PATH-04", "/a\u{1}b", 400),
            ("S-PATH-04", "/a\u{0}b", 400),
            ("S-PATH-04", "/a\u{7f}b", 400),
            ("S-PATH-04", "/\u{e4}", 400),
            ("S-PATH-05", "/admin#x", 400),
            ("S-PATH-05", "/public#/../admin", 400),
            ("S-PATH-08", "*", 400),
            ("S-PATH-09", "admin", 400),
            ("S-PATH-09", "\\admin", 400),
            ("S-PATH-09", "a:80", 400),
            ("S-PATH-09", "?x", 400),
        ] {
            arena.refused(side, line, &get(target), status).await;
        }
        let raw =
            [&b"GET /\x80\xff HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n"];
        for bytes in raw {
            arena.refused(side, "S-PATH-04", bytes, 400).await;
        }
        let long = |length: usize| get(&format!("/{}", "a".repeat(length - 1)));
        arena.refused(side, "S-PATH-12", &long(8 * 1024 + 1), 414).await;
        arena.refused(side, "S-PATH-12", &long(70 * 1024), 414).await;
        arena.passes(side, "S-PATH-12", &long(8 * 1024)).await;
        let got = arena.passes(side, "S-PATH-08", b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(got.starts_with("OPTIONS * HTTP/1.1\r\n"), "{got}");
    }
    arena.survived().await;
}
