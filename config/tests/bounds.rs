//! Hostile input costs bounded time and memory: bombs, very long strings, very many documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]
use postern_config::{
    Documents, Problem, Severity,
    documents::{self, SourceFile},
    problem,
};
use std::{
    fmt::Write,
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

/// One measurement at a time.
static TURN: Mutex<()> = Mutex::new(());

const MIB: usize = 1 << 20;

/// A line of the kernel's account of this process, such as `VmHWM` (the most memory it ever had), in bytes.
fn status(line: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let found = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
    found.and_then(|text| text.trim().trim_end_matches(" kB").parse::<usize>().ok()).unwrap_or_default() << 10
}

struct Cost {
    time: Duration,
    /// Bytes above what was in use before, at the worst moment.
    memory: usize,
}

fn measured(files: &[SourceFile]) -> (Documents, Vec<Problem>, Cost) {
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Forgets the peak of earlier measurements (proc(5), clear_refs); where that is not allowed they count, too.
    let _ = fs::write("/proc/self/clear_refs", "5");
    let before = status("VmRSS");
    let started = Instant::now();
    let (documents, problems) = documents::read(files);
    let shown: usize = problems.iter().map(|p| p.to_string().len()).sum();
    let cost = Cost { time: started.elapsed(), memory: status("VmHWM").saturating_sub(before) };
    assert!(shown < 4 * MIB, "{shown} bytes of findings");
    println!("{:?}, {} MiB, {} findings", cost.time, cost.memory / MIB, problems.len());
    (documents, problems, cost)
}

/// Bounds that are wide enough for a debug build on a busy machine, and far below what a bomb would cost.
fn read(name: &str, text: String) -> (Documents, Vec<Problem>) {
    let file = SourceFile { name: "t.yaml".into(), text };
    println!("{name}: {} bytes", file.text.len());
    let (documents, problems, cost) = measured(&[file]);
    assert!(cost.time < Duration::from_secs(60), "{name}: {:?}", cost.time);
    assert!(cost.memory < 1024 * MIB, "{name}: {} MiB", cost.memory / MIB);
    assert!(problems.len() <= 410, "{name}: {}", problems.len());
    (documents, problems)
}

fn policy(rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  rules:\n{rules}"
    )
}

fn repeated(count: usize, each: impl Fn(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, i| {
        text.push_str(&each(i));
        text
    })
}

#[test]
fn bombs_are_defused() {
    let mut aliases = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for i in 1..12 {
        let uses = vec![format!("*a{}", i - 1); 10].join(", ");
        aliases.push_str(&format!("a{i}: &a{i} [{uses}]\n"));
    }
    let merges = format!(
        "a: &a {{{}}}\n<<: [{}]\n",
        (0..2000).map(|i| format!("k{i}: 1")).collect::<Vec<_>>().join(", "),
        vec!["*a"; 20_000].join(", ")
    );
    let bombs = [
        ("aliases", aliases),
        ("merge keys", merges),
        ("deep flow", "[".repeat(100_000)),
        ("deep block", (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect()),
        ("deep list", "- ".repeat(100_000)),
        ("wide", "- 1\n".repeat(300_000)),
        ("big", "#".repeat((4 << 20) + 1)),
        ("markers", "---\n- a\n".repeat(100_000)),
        (
            "findings",
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n{}",
                (0..50_000).map(|i| format!("x{i}: 1\n")).collect::<String>()
            ),
        ),
    ];
    for (name, text) in &bombs {
        let (_, problems) = read(name, text.clone());
        assert!(problems.iter().any(|p| p.severity == Severity::Error), "{name}");
        assert!(problems.len() <= 201, "{name}: {}", problems.len());
        let expected = if *name == "markers" { problem::NOT_A_DOCUMENT } else { problem::TOO_LARGE };
        assert!(problems.iter().any(|p| p.code == expected), "{name}: {}", problems[0]);
    }
}

#[test]
fn a_policy_of_a_hundred_thousand_rules_is_refused_for_its_length() {
    let (_, problems) = read("empty rules", policy(&"  - {}\n".repeat(50_000)));
    assert!(
        problems.iter().any(|p| p.code == problem::OUT_OF_RANGE && p.reason.contains("512")),
        "{}",
        problems[0]
    );
    let (_, problems) = read("twice as many", policy(&"  - {}\n".repeat(100_000)));
    assert!(problems.iter().any(|p| p.severity == Severity::Error), "{}", problems[0]);
    let rules = repeated(100_000, |i| format!("  - to: [{{operation: {{paths: [/{i}]}}}}]\n"));
    let (_, problems) = read("rules with a path", policy(&rules));
    assert!(problems.iter().any(|p| p.code == problem::TOO_LARGE), "{:?}", problems[0]);
}

#[test]
fn the_lints_of_the_largest_legal_policy_are_quick() {
    let rules = repeated(512, |i| {
        let values = repeated(40, |v| format!("/{i}/{v}*, "));
        format!(
            "  - from: [{{source: {{principals: [cluster.local/ns/a/sa/b{i}]}}}}]\n    to: [{{operation: {{paths: [{values}]}}}}]\n"
        )
    });
    let (documents, problems) = read("512 rules", policy(&rules));
    assert_eq!(documents.authorization_policies[0].value.rules.len(), 512);
    assert!(problems.is_empty(), "{:?}", problems[0]);
}

#[test]
fn a_string_of_a_megabyte_is_only_long() {
    let long = "a".repeat(MIB);
    let stars = "*/".repeat(MIB / 2);
    for value in
        [long.clone(), stars, "{*}/".repeat(MIB / 4), "%2e/".repeat(MIB / 4), format!("http://{long}")]
    {
        let rules = format!(
            "  - from: [{{source: {{principals: [\"{value}\"], namespaces: [\"{value}\"], ipBlocks: [\"{value}\"]}}}}]\n"
        );
        read("source", policy(&rules));
        let rules = format!(
            "  - to: [{{operation: {{paths: [\"/{value}\"], hosts: [\"{value}:80\"], methods: [\"{value}\"]}}}}]\n    when: [{{key: \"request.headers[{}]\", values: [a]}}]\n",
            &value[..value.len().min(500_000)]
        );
        let (_, problems) = read("operation", policy(&rules));
        assert!(problems.iter().all(|p| p.reason.len() < 2000 && p.hint.len() < 2000));
    }
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n";
    let suppress = format!(
        "{namespace}apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: b, annotations: {{postern.dev/suppress: \"{}\"}}}}\n",
        "x,".repeat(MIB / 2)
    );
    read("suppressions", suppress);
}

#[test]
fn many_documents_that_all_concern_each_other_are_looked_at_in_bounds() {
    let mut text = String::from("apiVersion: v1\nkind: Namespace\nmetadata: {name: default}\n");
    for i in 0..4000 {
        write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, labels: {{a: b}}}}\nspec: {{containers: [{{name: c}}]}}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{i}}}\nspec: {{selector: {{a: b}}, ports: [{{name: tcp, port: {}}}]}}\n\
             ---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a{i}}}\nspec: {{rules: [{{to: [{{operation: {{paths: [/{i}]}}}}]}}]}}\n",
            i + 1
        )
        .unwrap();
    }
    let (_, problems) = read("a dense folder", text);
    assert!(
        problems.iter().any(|p| p.code == problem::TOO_LARGE && p.reason.contains("so many")),
        "{problems:?}"
    );
    assert!(problems.iter().all(|p| p.severity == Severity::Warning), "{problems:?}");
}

#[test]
fn names_that_lead_nowhere_are_counted_and_not_all_kept() {
    let values = repeated(30_000, |i| format!("n{i}, "));
    let rules = format!("  - from: [{{source: {{namespaces: [{values}]}}}}]\n");
    let text =
        format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: default}}\n---\n{}", policy(&rules));
    let (_, problems) = read("unknown namespaces", text);
    assert_eq!(problems.iter().filter(|p| p.code == problem::NO_NAMESPACE).count(), 200);
    assert!(problems.iter().any(|p| p.code == problem::TOO_LARGE), "the rest is said");
}
