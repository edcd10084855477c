//! `postern generate --flows FILE`: the least that policy must allow for the traffic that was observed, as YAML to read,
//! correct and try in dry run. What was observed is not what was intended, and the file says so.
use super::{
    flows::{Flow, Flows, Seen, short_identity},
    fold::fold,
    formats,
    mesh::{Mesh, Workload},
    replay::workload,
};
use crate::failure::{Failure, OK};
use clap::Args;
use postern_config::snapshot::Protocol;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

/// Flags of `postern generate`.
#[derive(Args, Debug, Clone)]
pub struct GenerateArgs {
    /// Access-log lines of sidecars; `-` is standard input
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
    /// The folder that describes the workloads, for their labels
    #[arg(short = 'f', long = "filename", value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Fold a path segment in which more different values than this stand
    #[arg(long, value_name = "N", default_value_t = 10)]
    fold_threshold: usize,
}

/// Runs the command: 0 when policies were written, 1 when there is nothing to write or the input cannot be read.
pub fn run(args: &GenerateArgs) -> u8 {
    let generated = Flows::load(&args.flows).and_then(|flows| {
        let mesh = args.folder.as_deref().map(Mesh::load).transpose()?;
        generate(&flows, mesh.as_ref(), args.fold_threshold)
    });
    match generated {
        Ok(text) => {
            formats::print(&text);
            OK
        }
        Err(failure) => failure.report(),
    }
}

/// The workload that a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    namespace: String,
    name: String,
    /// `None`: the labels are unknown, the policy is for the namespace.
    selector: Option<BTreeMap<String, String>>,
}

/// Who may call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Principal(String),
    Address(String),
}

/// What one caller did at one workload.
#[derive(Default)]
struct Calls {
    requests: BTreeMap<(u16, String, String), Seen>,
    connections: BTreeMap<u16, Seen>,
}

/// Policies for all allowed calls.
///
/// # Errors
/// There is none, or no workload can be named for any.
pub fn generate(flows: &Flows, mesh: Option<&Mesh>, threshold: usize) -> Result<String, Failure> {
    let mut targets: BTreeMap<Target, BTreeMap<Source, Calls>> = BTreeMap::new();
    let mut left_out = flows.skipped.clone();
    let (mut taken, mut denied) = (Seen::default(), 0);
    for (flow, seen) in &flows.flows {
        if !flow.allowed {
            denied += seen.count;
            continue;
        }
        match target(flow, mesh) {
            Ok(target) => {
                let is_tcp = mesh.is_some_and(|mesh| is_declared_tcp(mesh, flow));
                taken.add(seen);
                targets.entry(target).or_default().entry(source(flow)).or_default().add(flow, seen, is_tcp);
            }
            Err(why) => *left_out.entry(why).or_default() += seen.count,
        }
    }
    if targets.is_empty() {
        let reasons: Vec<String> = left_out.iter().map(|(why, count)| format!("{count}: {why}")).collect();
        return Err(Failure::new(
            format!(
                "there is no allowed inbound call to write a policy for ({denied} denied). {}",
                reasons.join("; ")
            ),
            "Give the access log of the sidecars of the called workloads.",
        ));
    }
    let mut out = header(&taken, denied, &left_out, mesh.is_some(), threshold);
    let mut names: BTreeSet<(String, String)> = BTreeSet::new();
    for (target, sources) in &targets {
        let name = policy_name(target, &mut names);
        policy(target, &name, sources, threshold, &mut out);
    }
    Ok(out)
}

impl Calls {
    fn add(&mut self, flow: &Flow, seen: &Seen, is_tcp: bool) {
        let port = flow.address.port();
        match &flow.request {
            Some(request) if !is_tcp => {
                let key = (port, request.method.clone(), request.path.clone());
                self.requests.entry(key).or_default().add(seen);
            }
            _ => self.connections.entry(port).or_default().add(seen),
        }
    }
}

/// Where a request was seen on a port that the folder declares as TCP, policy will see a connection.
fn is_declared_tcp(mesh: &Mesh, flow: &Flow) -> bool {
    let snapshot = workload(mesh, flow).ok().and_then(|workload| mesh.snapshot(workload).ok());
    snapshot.is_some_and(|snapshot| snapshot.protocol(flow.address.port()) == Protocol::Tcp)
}

fn source(flow: &Flow) -> Source {
    match &flow.source {
        Some(id) => Source::Principal(id.trim_start_matches("spiffe://").to_owned()),
        None => Source::Address(flow.source_ip.to_string()),
    }
}

fn target(flow: &Flow, mesh: Option<&Mesh>) -> Result<Target, String> {
    if let Some(mesh) = mesh {
        let workload = workload(mesh, flow)?;
        return Ok(Target {
            namespace: workload.key.namespace.clone(),
            name: workload.deployment.clone().unwrap_or_else(|| workload.key.name.clone()),
            selector: Some(selector(mesh, workload)),
        });
    }
    let id = flow
        .destination
        .as_deref()
        .ok_or("its destination shows no identity; -f would find it by address")?;
    let short = short_identity(id);
    let (namespace, name) = short.split_once('/').filter(|_| !short.contains(':')).ok_or_else(|| {
        format!("the identity {id} of its destination names no namespace and service account")
    })?;
    Ok(Target { namespace: namespace.to_owned(), name: name.to_owned(), selector: None })
}

/// One usual label when it picks this workload and nothing else in the namespace, else all of its labels.
fn selector(mesh: &Mesh, workload: &Workload) -> BTreeMap<String, String> {
    let is_other =
        |other: &&Workload| other.key.namespace == workload.key.namespace && other.name() != workload.name();
    for key in ["app.kubernetes.io/name", "app", "k8s-app"] {
        if let Some(value) = workload.labels.get(key)
            && !mesh.workloads().iter().filter(is_other).any(|other| other.labels.get(key) == Some(value))
        {
            return BTreeMap::from([(key.to_owned(), value.clone())]);
        }
    }
    workload.labels.clone()
}

fn header(
    taken: &Seen,
    denied: u64,
    left_out: &BTreeMap<String, u64>,
    with_folder: bool,
    threshold: usize,
) -> String {
    let mut out = format!(
        "# Written by `postern generate` from {} allowed calls, from {} to {}.\n#\n\
         # OBSERVED IS NOT INTENDED. Whoever called while the log was written is allowed here, an intruder too, and what\n\
         # happens once a month is missing. Read every rule before you keep it.\n#\n\
         # All policies are in dry run (istio.io/dry-run): they change no decision. Compare them with traffic\n\
         # (`postern impact`), then remove the annotation to enforce them.\n\
         # A path segment with more than {threshold} different values is folded to {{*}}.\n",
        taken.count, taken.first, taken.last
    );
    let selectors = if with_folder {
        "# Selectors are labels of the folder that was given with -f.\n"
    } else {
        "# No folder was given with -f, so the labels of the workloads are unknown: each policy is named after the identity\n\
         # of its destination and selects the WHOLE NAMESPACE. Add a selector, or generate again with -f.\n"
    };
    out.push_str(selectors);
    if denied > 0 {
        let _ = writeln!(out, "# Left out: {denied}: policy denied it.");
    }
    for (why, count) in left_out {
        let _ = writeln!(out, "# Left out: {count}: {}.", comment(why));
    }
    out
}

/// A name that Kubernetes takes and that no other policy of this file has.
fn policy_name(target: &Target, names: &mut BTreeSet<(String, String)>) -> String {
    let plain: String = target
        .name
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
        .take(200)
        .collect();
    let base = format!("observed-{}", plain.trim_matches('-'));
    let mut name = base.clone();
    let mut number = 2;
    while !names.insert((target.namespace.clone(), name.clone())) {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

fn policy(
    target: &Target,
    name: &str,
    sources: &BTreeMap<Source, Calls>,
    threshold: usize,
    out: &mut String,
) {
    let _ = write!(
        out,
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {}\n  \
         annotations:\n    istio.io/dry-run: \"true\"\nspec:\n",
        quoted(&target.namespace)
    );
    match &target.selector {
        Some(labels) if !labels.is_empty() => {
            out.push_str("  selector:\n    matchLabels:\n");
            for (key, value) in labels {
                let _ = writeln!(out, "      {key}: {}", quoted(value));
            }
        }
        Some(_) => out.push_str("  # The workload has no labels: this selects the whole namespace.\n"),
        None => out.push_str("  # No selector: the labels are unknown, this selects the whole namespace.\n"),
    }
    out.push_str("  action: ALLOW\n  rules:\n");
    for (source, calls) in sources {
        rule(source, calls, threshold, out);
    }
}

fn rule(source: &Source, calls: &Calls, threshold: usize, out: &mut String) {
    if !calls.requests.is_empty() {
        from(source, &total(calls.requests.values()), out);
        requests(calls, threshold, out);
    }
    // A rule of its own: on TCP an ALLOW rule that has anything of HTTP in it does not exist.
    if !calls.connections.is_empty() {
        from(source, &total(calls.connections.values()), out);
        for (port, seen) in &calls.connections {
            let _ = writeln!(
                out,
                "        - operation:\n            ports: [\"{port}\"] # TCP, {}",
                counted(seen)
            );
        }
    }
}

fn total<'s>(all: impl Iterator<Item = &'s Seen>) -> Seen {
    let mut total = Seen::default();
    all.for_each(|seen| total.add(seen));
    total
}

fn from(source: &Source, seen: &Seen, out: &mut String) {
    match source {
        Source::Principal(principal) => {
            let _ = writeln!(out, "    # {}", counted(seen));
            let principal = quoted(principal);
            let _ = writeln!(out, "    - from:\n        - source:\n            principals: [{principal}]");
        }
        Source::Address(address) => {
            let _ = writeln!(
                out,
                "    # {}; PLAINTEXT: the caller proved no identity, its address is all there is",
                counted(seen)
            );
            let _ =
                writeln!(out, "    - from:\n        - source:\n            ipBlocks: [{}]", quoted(address));
        }
    }
    out.push_str("      to:\n");
}

fn requests(calls: &Calls, threshold: usize, out: &mut String) {
    for ((port, methods), paths) in operations(calls, threshold) {
        let methods: Vec<String> = methods.iter().map(|method| quoted(method)).collect();
        let _ = writeln!(out, "        - operation:\n            ports: [\"{port}\"]");
        let _ = writeln!(out, "            methods: [{}]\n            paths:", methods.join(", "));
        for (path, (seen, is_wider)) in paths {
            let wider =
                if is_wider { "; WIDER than what was seen, which cannot be written exactly" } else { "" };
            let _ = writeln!(out, "              - {} # {}{wider}", quoted(&path), counted(&seen));
        }
    }
}

type Operation = (u16, BTreeSet<String>);
type Paths = BTreeMap<String, (Seen, bool)>;

/// Paths by port and by the set of methods that were seen on them.
fn operations(calls: &Calls, threshold: usize) -> BTreeMap<Operation, Paths> {
    let mut at_port: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    for (port, _, path) in calls.requests.keys() {
        at_port.entry(*port).or_default().insert(path.clone());
    }
    let folded: BTreeMap<u16, BTreeMap<String, String>> =
        at_port.into_iter().map(|(port, paths)| (port, fold(&paths, threshold))).collect();
    let mut by_pattern: BTreeMap<(u16, String), (BTreeSet<String>, Seen, bool)> = BTreeMap::new();
    for ((port, method, path), seen) in &calls.requests {
        let pattern = folded.get(port).and_then(|paths| paths.get(path)).unwrap_or(path);
        let (pattern, is_wider) = writable(path, pattern);
        let (methods, total, wider) = by_pattern.entry((*port, pattern)).or_default();
        methods.insert(method.clone());
        total.add(seen);
        *wider |= is_wider;
    }
    let mut operations: BTreeMap<Operation, Paths> = BTreeMap::new();
    for ((port, pattern), (methods, seen, is_wider)) in by_pattern {
        operations.entry((port, methods)).or_default().insert(pattern, (seen, is_wider));
    }
    operations
}

/// A pattern that policy reads as it is meant. An asterisk at an end is a wildcard and braces are operators, so that a path
/// which really has them can only be covered by the prefix before them.
fn writable(path: &str, pattern: &str) -> (String, bool) {
    if path != pattern {
        return (pattern.to_owned(), false);
    }
    let is_literal = path.starts_with('/') && !path.ends_with('*') && !path.contains(['{', '}']);
    if is_literal {
        return (path.to_owned(), false);
    }
    let end = path.find(['{', '}', '*']).unwrap_or(0);
    let kept = path.get(..end).and_then(|head| head.rfind('/').and_then(|at| head.get(..=at))).unwrap_or("");
    (format!("{kept}*"), true)
}

fn counted(seen: &Seen) -> String {
    let calls = if seen.count == 1 { "call" } else { "calls" };
    if seen.first == seen.last {
        return format!("{} {calls}, {}", seen.count, comment(&seen.first));
    }
    format!("{} {calls}, first {}, last {}", seen.count, comment(&seen.first), comment(&seen.last))
}

/// Text that stays in its comment.
fn comment(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() || c == '\u{2028}' || c == '\u{2029}' { '\u{fffd}' } else { c })
        .collect()
}

/// A double-quoted scalar: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
