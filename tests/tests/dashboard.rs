//! The page of a running mesh in a real browser: it shows what has passed, changes by itself, and breaks none of its own rules.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::{
    tree,
    up::{Place, Run, User, find, skipped},
};
use std::{
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Reports come every ten seconds.
const SOON: Duration = Duration::from_secs(60);

/// The page after this long of the browser's own time, in which it has asked at least once.
fn browser(chromium: &Path, url: &str, what: &[&str]) -> Output {
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"])
        .args(["--virtual-time-budget=3000", "--window-size=1280,900"])
        .args(what)
        .arg(url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    let broken: Vec<_> =
        said.lines().filter(|line| line.contains("CONSOLE") || line.contains("Content Security")).collect();
    assert!(broken.is_empty(), "{broken:?}");
    output
}

/// What the browser made of the page, as soon as it is as wanted.
fn page_becomes(chromium: &Path, url: &str, wanted: impl Fn(&str) -> bool) -> String {
    let began = Instant::now();
    loop {
        let page = String::from_utf8(browser(chromium, url, &["--dump-dom"]).stdout).unwrap();
        if wanted(&page) {
            return page;
        }
        assert!(began.elapsed() < SOON, "the page does not become as wanted: {page}");
    }
}

#[test]
fn a_browser_shows_who_calls_whom_and_what_is_denied_while_it_happens() {
    let Some(chromium) = find("chromium").or_else(|| find("google-chrome")) else {
        return skipped("no Chromium is installed");
    };
    let place = Place::new(User::Root);
    place.copy("manifests/examples/payments");
    let up = place.up(&[]);
    let mut command = up.place.postern();
    command.args(["dashboard", "--dir", "yaml", "--listen", "127.0.0.1:0"]);
    let dashboard = Run::start(command);
    let line = dashboard.line(0, |line| line.contains("http://"));
    let url = line.split_whitespace().find(|word| word.starts_with("http://")).unwrap().to_owned();

    let call = |pod: &str, method: &str, path: &str| {
        let url = format!("http://payments-api.payments{path}");
        up.exec(pod, &["postern", "app", "call", "-X", method, &url])
    };
    assert!(call("checkout-api", "POST", "/v1/charges").status.success());
    let page = page_becomes(&chromium, &url, |page| page.contains("100 % (1/1)"));
    assert!(page.contains("3/3 sidecars in sync"), "{page}");
    assert!(!page.contains("403"), "nothing was denied yet: {page}");

    // What a caller writes is text, whatever it looks like.
    call("reports", "POST", "/v1/&lt;img&gt;'onerror=alert(1)");
    let page = page_becomes(&chromium, &url, |page| page.contains("403"));
    assert!(page.contains("onerror=alert(1)") && !page.contains("<img"), "{page}");
    assert!(page.contains("closest: payments/charges rule 0"), "{page}");
    for command in ["postern top", "postern denials", "postern status"] {
        assert!(page.contains(command), "each panel names its command: {page}");
    }

    if std::env::var_os("POSTERN_WRITE_DOCS").is_some() {
        let folder = tree::root().join("docs/images");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("dashboard.png");
        browser(&chromium, &url, &[&format!("--screenshot={}", file.display())]);
    }
    dashboard.signal(nix::sys::signal::Signal::SIGINT);
}
