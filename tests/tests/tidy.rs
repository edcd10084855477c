//! The promises about the tree that a machine can hold (ARCHITECTURE.md, "Layers" and "Rules of the house").
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use postern_tests::tree::{self, Source};
use std::collections::{BTreeMap, BTreeSet};

/// Longest file, tests aside.
const LINES: usize = 500;

/// What each crate may depend on.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("identity", "postern-identity", &[]),
    ("config", "postern-config", &["postern-identity"]),
    ("api", "postern-api", &[]),
    ("proxy", "postern-proxy", &["postern-identity", "postern-config", "postern-api"]),
    ("control-plane", "postern-control-plane", &["postern-identity", "postern-config", "postern-api"]),
    (
        "cli",
        "postern",
        &["postern-identity", "postern-config", "postern-api", "postern-proxy", "postern-control-plane"],
    ),
];

/// The layers of the proxy, top first. A module may use what stands below its own line, never its line or above.
const PROXY_LAYERS: &[&[&str]] = &[
    &["main", "run"],
    &["app"],
    &["admin", "workload_api"],
    &["inbound", "outbound"],
    &["traffic"],
    &["http"],
    &["workload_identity", "kept"],
    &["control"],
    &["state"],
    &["tls"],
    &["net"],
    // Words: used by all, and by each other.
    &["telemetry", "error", "news", "drain", "ready", "bootstrap", "log", "pages"],
];

/// Arrows that point the wrong way, each with what keeps it. The list may only get shorter.
const EXCEPTIONS: &[(&str, &str, &str, &str)] = &[
    (
        "proxy",
        "telemetry",
        "tls",
        "the record notes TLS facts, a plain struct, and the standing of its connection",
    ),
    (
        "config",
        "snapshot",
        "authorize",
        "compiled rules are tested against facts, which the evaluator defines",
    ),
    ("config", "snapshot", "select", "compiling orders documents by age, as selecting does"),
    ("config", "documents", "validate", "reading ends with validating, so that nobody can forget it"),
];

/// Where `unsafe` is allowed, and what for.
const UNSAFE: &[(&str, &str)] = &[
    ("proxy/src/net/", "socket options that no safe wrapper offers"),
    ("proxy/src/pages.rs", "telling the kernel which of the program's pages are of no more use"),
    ("cli/src/up/", "between fork and exec: entering namespaces, dropping rights"),
    ("cli/src/demo/", "a raw socket that captures the wire"),
    (
        "config/tests/allocation.rs",
        "an allocator that counts, so that a decision can be shown to allocate nothing",
    ),
    ("benches/src/heap.rs", "an allocator that counts bytes"),
];

fn report(promise: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{promise}; broken {} times:\n  {}", broken.len(), broken.join("\n  "));
}

#[test]
fn crates_depend_only_on_crates_below_them() {
    let mut broken = Vec::new();
    for (folder, name, allowed) in CRATES {
        let manifest = std::fs::read_to_string(tree::root().join(folder).join("Cargo.toml")).unwrap();
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        for line in normal.lines() {
            let dependency = line.split(['.', '=', ' ']).next().unwrap_or_default();
            let is_ours = CRATES.iter().any(|(_, n, _)| *n == dependency);
            if is_ours && dependency != *name && !allowed.contains(&dependency) {
                broken.push(format!(
                    "{folder}/Cargo.toml depends on {dependency}, which stands beside or above it"
                ));
            }
        }
    }
    report(
        "dependencies between crates point one way (identity <- config <- proxy, control-plane <- cli)",
        broken,
    );
}

#[test]
fn proxy_modules_use_only_what_is_below_them() {
    let rank = |module: &str| PROXY_LAYERS.iter().position(|layer| layer.contains(&module));
    let words = PROXY_LAYERS.len() - 1;
    let mut broken = Vec::new();
    for arrow in arrows("proxy") {
        let (Some(from), Some(to)) = (rank(&arrow.from), rank(&arrow.to)) else {
            let stranger = if rank(&arrow.from).is_none() { &arrow.from } else { &arrow.to };
            broken.push(format!(
                "{}: the module `{stranger}` has no place in PROXY_LAYERS of this test",
                arrow.place
            ));
            continue;
        };
        let excepted = is_exception("proxy", &arrow);
        if !(from < to || (from == words && to == words) || excepted) {
            broken.push(format!(
                "{}: `{}` uses `{}`, which stands beside or above it",
                arrow.place, arrow.from, arrow.to
            ));
        }
    }
    report("modules of the proxy use only what stands below them (ARCHITECTURE.md, Layers)", broken);
}

#[test]
fn no_crate_has_modules_that_use_each_other_in_a_circle() {
    let mut broken = Vec::new();
    for (folder, ..) in CRATES {
        let mut graph: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for arrow in arrows(folder).into_iter().filter(|arrow| !is_exception(folder, arrow)) {
            graph.entry(arrow.from).or_default().entry(arrow.to).or_insert(arrow.place);
        }
        if *folder == "proxy" {
            // The words may know each other.
            for (from, to) in graph.iter_mut() {
                let words = PROXY_LAYERS.last().unwrap();
                if words.contains(&from.as_str()) {
                    to.retain(|t, _| !words.contains(&t.as_str()));
                }
            }
        }
        for start in graph.keys() {
            if let Some(circle) = path_back(&graph, start)
                && circle.iter().min() == Some(start)
            {
                let places: Vec<String> = circle
                    .iter()
                    .zip(circle.iter().cycle().skip(1))
                    .map(|(a, b)| format!("{a} -> {b} at {}", graph[a][b]))
                    .collect();
                broken.push(format!("{folder}: {}", places.join(", ")));
            }
        }
    }
    report("modules of a crate form no circle", broken);
}

#[test]
fn every_exception_is_still_needed() {
    let stale = EXCEPTIONS
        .iter()
        .filter(|(folder, from, to, _)| !arrows(folder).iter().any(|a| a.from == *from && a.to == *to))
        .map(|(folder, from, to, _)| format!("{folder}: {from} -> {to}"))
        .collect();
    report("an exception that is no longer needed goes away", stale);
}

#[test]
fn every_rust_file_opens_with_what_it_is_for() {
    let broken = tree::rust()
        .into_iter()
        .filter(|file| !file.text.starts_with("//! ") || file.text.starts_with("//! x\n"))
        .map(|file| format!("{} does not begin with `//! ` and its purpose", file.path))
        .collect();
    report("every file opens by saying what the room is for", broken);
}

#[test]
fn no_file_is_too_long_to_read() {
    let mut broken = Vec::new();
    for file in tree::rust().into_iter().filter(|file| !file.is_test()) {
        let lines = file.text.lines().take_while(|line| line.trim_start() != "#[cfg(test)]").count();
        if lines > LINES {
            broken.push(format!("{} has {lines} lines, {} too many", file.path, lines - LINES));
        }
    }
    report("no file has more than 500 lines (tests aside): split it by what it is for", broken);
}

#[test]
fn unsafe_stands_only_where_it_is_allowed_and_says_why_it_is_sound() {
    let keyword = ["un", "safe"].concat();
    let mut broken = Vec::new();
    for file in tree::rust().iter().filter(|file| !file.path.starts_with("tests/")) {
        let lines: Vec<&str> = file.text.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            let opens =
                [" {", " fn", " impl"].iter().any(|after| code.contains(&format!("{keyword}{after}")));
            if !opens {
                continue;
            }
            if !UNSAFE.iter().any(|(place, _)| file.path.starts_with(place)) {
                broken.push(format!(
                    "{}:{} uses {keyword}, and the file is not in UNSAFE of this test",
                    file.path,
                    n + 1
                ));
            }
            let before = &lines[n.saturating_sub(8)..=n];
            if !before.iter().any(|line| line.contains("SAFETY:") || line.contains("# Safety")) {
                broken.push(format!("{}:{} has no `// SAFETY:` comment above it", file.path, n + 1));
            }
        }
    }
    report("unsafe code is where the design allows it, with its reason", broken);
}

#[test]
fn nothing_is_left_unfinished() {
    let marks =
        ["to|do!(", "unimplemen|ted!(", "db|g!(", "FIX|ME", "TO|DO:", "XX|X:"].map(|m| m.replace('|', ""));
    let mut broken = Vec::new();
    for file in tree::rust() {
        for (n, line) in file.text.lines().enumerate() {
            for mark in marks.iter().filter(|mark| line.contains(mark.as_str())) {
                broken.push(format!("{}:{} says {mark}", file.path, n + 1));
            }
        }
    }
    report(
        "nothing is left unfinished in the code: what is not there is in the documents or an issue",
        broken,
    );
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // In two halves, so that this file does not find itself.
    let places = [("/wo", "rk/"), ("/ro", "ot/"), ("/tmp", "/t/"), ("/tmp", "/plan"), ("/ho", "me/")]
        .map(|(a, b)| [a, b].concat());
    // A route of Vault's, which begins like one of them.
    let route = ["/ro", "ot/sign-intermediate"].concat();
    let mut broken = Vec::new();
    for file in tree::files(&[".rs", ".toml", ".md", ".yaml", ".yml", ".sh", "Makefile", "run", ".proto"]) {
        for (n, line) in file.text.lines().enumerate() {
            for place in places.iter().filter(|place| line.replace(&route, "").contains(place.as_str())) {
                broken.push(format!("{}:{} names {place}", file.path, n + 1));
            }
        }
    }
    report("no file names a path of the machine it was written on", broken);
}

#[test]
fn no_file_carries_both_sides_of_a_merge() {
    // Put together here, so that this file does not find itself.
    let marks = ["<", ">"].map(|mark| format!("{} ", mark.repeat(7)));
    let mut broken = Vec::new();
    for file in tree::files(&[".rs", ".toml", ".md", ".yaml", ".yml", ".sh", "Makefile", "run", ".proto"]) {
        let found = file.text.lines().filter(|line| marks.iter().any(|mark| line.starts_with(mark.as_str())));
        broken.extend(found.map(|line| format!("{}: {line}", file.path)));
    }
    report("a merge is finished before it is kept", broken);
}

#[test]
fn names_say_what_a_thing_is() {
    let empty = ["Manager", "Helper", "Util", "Utils", "Common"];
    let mut broken = Vec::new();
    for file in tree::rust() {
        for (n, line) in file.code() {
            let words: Vec<&str> = line.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            for pair in words.windows(2) {
                let (kind, name) = (pair[0], pair[1]);
                let is_type = matches!(kind, "struct" | "enum" | "trait" | "type");
                if is_type && empty.iter().any(|e| name.ends_with(e)) {
                    broken.push(format!("{}:{n}: the name {name} says nothing", file.path));
                }
                if kind == "fn" && name.starts_with("get_") {
                    broken.push(format!(
                        "{}:{n}: {name}: a function that gives a thing is named like the thing",
                        file.path
                    ));
                }
            }
        }
    }
    report("names follow the vocabulary of the house", broken);
}

fn is_exception(folder: &str, arrow: &Arrow) -> bool {
    EXCEPTIONS.iter().any(|(f, from, to, _)| *f == folder && *from == arrow.from && *to == arrow.to)
}

/// One `crate::x` of one module in another.
struct Arrow {
    from: String,
    to: String,
    place: String,
}

fn arrows(folder: &str) -> Vec<Arrow> {
    let prefix = format!("{folder}/src/");
    let files: Vec<Source> =
        tree::rust().into_iter().filter(|f| f.path.starts_with(&prefix) && !f.is_test()).collect();
    let module =
        |path: &str| path[prefix.len()..].split('/').next().unwrap().trim_end_matches(".rs").to_owned();
    let modules: BTreeSet<String> = files.iter().map(|f| module(&f.path)).collect();
    let root_names = reexports(files.iter().find(|f| f.path == format!("{prefix}lib.rs")));
    let mut found = Vec::new();
    for file in files.iter().filter(|f| module(&f.path) != "lib") {
        let from = module(&file.path);
        let is_room =
            file.path == format!("{prefix}{from}.rs") || file.path == format!("{prefix}{from}/mod.rs");
        let code: Vec<(usize, &str)> = file.code().collect();
        let text: String = code.iter().map(|(_, line)| format!("{line}\n")).collect();
        let line_of = |at: usize| code[text[..at].matches('\n').count()].0;
        // `super::` in a module's own room is the crate's root.
        for start in ["crate::", if is_room { "super::" } else { "crate::" }].iter().collect::<BTreeSet<_>>()
        {
            for (at, _) in text.match_indices(*start) {
                for name in first_names(&text[at + start.len()..]) {
                    let to = root_names.get(&name).cloned().unwrap_or(name);
                    if modules.contains(&to) && to != from {
                        found.push(Arrow {
                            from: from.clone(),
                            to,
                            place: format!("{}:{}", file.path, line_of(at)),
                        });
                    }
                }
            }
        }
    }
    found
}

/// `a::b` -> a; `{a::b, c::{d, e}}` -> a, c.
fn first_names(text: &str) -> Vec<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = text.strip_prefix('{') else { return vec![ident(text)] };
    let (mut depth, mut names, mut fresh) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => fresh = true,
            c if fresh && c.is_alphabetic() => {
                names.push(ident(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

/// What the crate's root re-exports, and from which module.
fn reexports(lib: Option<&Source>) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    let text = lib.map(|l| l.text.as_str()).unwrap_or_default();
    for (at, _) in text.match_indices("pub use ") {
        let statement = text[at + 8..].split(';').next().unwrap();
        if let Some((module, rest)) = statement.split_once("::") {
            for name in rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|n| !n.is_empty()) {
                names.insert(name.to_owned(), module.to_owned());
            }
        }
    }
    names
}

/// A way from `start` back to itself.
fn path_back(graph: &BTreeMap<String, BTreeMap<String, String>>, start: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop() {
        for next in graph.get(path.last().unwrap()).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                return Some(path);
            }
            if seen.insert(next.clone()) {
                let mut longer = path.clone();
                longer.push(next.clone());
                paths.push(longer);
            }
        }
    }
    None
}
