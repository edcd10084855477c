//! `postern impact -f NEW --against OLD --flows FILE`: what another set of policies would have said to recorded traffic.
use super::{
    flows::{Flow, Flows, Seen, short_identity},
    fold::fold,
    formats::{self, Output, Paint},
    mesh::Mesh,
    replay::{Judged, replay, workload},
};
use crate::failure::{Failure, NEGATIVE, OK};
use clap::Args;
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
};

/// Flags of `postern impact`.
#[derive(Args, Debug, Clone)]
pub struct ImpactArgs {
    /// The folder with the new policies
    #[arg(short = 'f', long = "filename", value_name = "NEW")]
    new: PathBuf,
    /// The folder with the policies in force
    #[arg(long, value_name = "OLD")]
    against: PathBuf,
    /// Access-log lines of sidecars; `-` is standard input
    #[arg(long, value_name = "FILE")]
    flows: PathBuf,
    /// Fold a path segment in which more different values than this stand
    #[arg(long, value_name = "N", default_value_t = 10)]
    fold_threshold: usize,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// What changes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Impact {
    /// Different flows that were replayed.
    pub flows: usize,
    /// Calls, and when.
    pub calls: Seen,
    /// Allowed by the old policies, denied by the new ones.
    pub becomes_denied: Vec<Change>,
    /// Denied by the old policies, allowed by the new ones.
    pub becomes_allowed: Vec<Change>,
    /// What the dry-run policies of the new folder would change on top, once they are enforced.
    pub would_change: Vec<Change>,
    /// What the dry-run policies of then would have changed, as the log says.
    pub recorded_would: Vec<Change>,
    /// Calls of which the old policies now say something else than the log says they said.
    pub recorded_otherwise: u64,
    /// Calls to workloads whose policies look at facts that no log holds: judged as if those were absent.
    pub uncertain: BTreeMap<String, u64>,
    /// Lines and calls that could not be judged, by reason.
    pub not_judged: BTreeMap<String, u64>,
}

/// Calls of one caller to one workload that change alike.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Caller.
    pub from: String,
    /// Called workload.
    pub to: String,
    /// Workload port.
    pub port: u16,
    /// Absent on TCP.
    pub method: Option<String>,
    /// A path, or the template that stands for many.
    pub path: Option<String>,
    /// The verdict before.
    pub before: &'static str,
    /// The verdict after.
    pub after: &'static str,
    /// Why after, of one of the calls.
    pub reason: String,
    /// How often, first and last.
    #[serde(flatten)]
    pub seen: Seen,
}

/// Runs the command: 0 when nothing becomes denied, 2 when something does, 1 when it cannot be told.
pub fn run(args: &ImpactArgs) -> u8 {
    match measured(args) {
        Ok(impact) => {
            formats::print(&formats::answer(args.output, &impact, |paint| table(&impact, paint)));
            if impact.becomes_denied.is_empty() { OK } else { NEGATIVE }
        }
        Err(failure) => failure.report(),
    }
}

fn measured(args: &ImpactArgs) -> Result<Impact, Failure> {
    let (old, new) = (Mesh::load(&args.against)?, Mesh::load(&args.new)?);
    let flows = Flows::load(&args.flows)?;
    if flows.flows.is_empty() {
        let skipped: Vec<String> = flows.skipped.iter().map(|(why, n)| format!("{n} lines: {why}")).collect();
        return Err(Failure::new(
            format!(
                "`{}` holds no inbound call that policy decided on. {}",
                args.flows.display(),
                skipped.join("; ")
            ),
            "Give the access log of the sidecars of the called workloads.",
        ));
    }
    Ok(measure(&old, &new, &flows, args.fold_threshold))
}

/// Replays all flows through both meshes.
pub fn measure(old: &Mesh, new: &Mesh, flows: &Flows, threshold: usize) -> Impact {
    let mut impact = Impact {
        flows: flows.flows.len(),
        calls: flows.seen.clone(),
        not_judged: flows.skipped.clone(),
        ..Impact::default()
    };
    let [mut denied, mut allowed, mut would, mut recorded] = [const { Vec::new() }; 4];
    for (flow, seen) in &flows.flows {
        if let Some(then) = &flow.would {
            let policy = then.policy.as_deref().unwrap_or("a dry-run policy");
            let by = then.rule.map_or_else(String::new, |rule| format!(" rule {rule}"));
            recorded.push(entry(old, flow, seen, flow.allowed, then.allowed, format!("{policy}{by}")));
        }
        let (before, after) = match (replay(old, flow), replay(new, flow)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(why), _) => {
                *impact.not_judged.entry(format!("old: {why}")).or_default() += seen.count;
                continue;
            }
            (_, Err(why)) => {
                *impact.not_judged.entry(format!("new: {why}")).or_default() += seen.count;
                continue;
            }
        };
        note(&mut impact, flow, seen, &before, &after);
        if let Some(other) = &after.would {
            would.push(entry(new, flow, seen, after.allowed, other.allowed, other.in_words()));
        }
        if before.allowed != after.allowed {
            let list = if after.allowed { &mut allowed } else { &mut denied };
            list.push(entry(new, flow, seen, before.allowed, after.allowed, after.reason));
        }
    }
    impact.becomes_denied = grouped(denied, threshold);
    impact.becomes_allowed = grouped(allowed, threshold);
    impact.would_change = grouped(would, threshold);
    impact.recorded_would = grouped(recorded, threshold);
    impact
}

fn note(impact: &mut Impact, flow: &Flow, seen: &Seen, before: &Judged, after: &Judged) {
    if before.allowed != flow.allowed {
        impact.recorded_otherwise = impact.recorded_otherwise.saturating_add(seen.count);
    }
    let unrecorded: BTreeSet<&String> = before.unrecorded.union(&after.unrecorded).collect();
    for field in unrecorded {
        *impact.uncertain.entry(field.clone()).or_default() += seen.count;
    }
}

fn entry(mesh: &Mesh, flow: &Flow, seen: &Seen, before: bool, after: bool, reason: String) -> Change {
    let word = |allowed: bool| if allowed { "allowed" } else { "denied" };
    let caller = |w: &&super::mesh::Workload| flow.source.is_none() && w.addresses.contains(&flow.source_ip);
    let from = match &flow.source {
        Some(id) => short_identity(id),
        None => {
            let known = mesh.workloads().iter().find(caller);
            let name = known.map_or_else(|| flow.source_ip.to_string(), |w| w.name());
            format!("{name} (plaintext)")
        }
    };
    let to = workload(mesh, flow).map_or_else(
        |_| flow.destination.as_deref().map_or_else(|| flow.address.ip().to_string(), short_identity),
        |workload| workload.name(),
    );
    Change {
        from,
        to,
        port: flow.address.port(),
        method: flow.request.as_ref().map(|request| request.method.clone()),
        path: flow.request.as_ref().map(|request| request.path.clone()),
        before: word(before),
        after: word(after),
        reason,
        seen: seen.clone(),
    }
}

/// One entry for each caller, workload, port, method and folded path; most calls first.
fn grouped(changes: Vec<Change>, threshold: usize) -> Vec<Change> {
    type Route = (String, String, u16, Option<String>, &'static str);
    let route = |c: &Change| -> Route { (c.from.clone(), c.to.clone(), c.port, c.method.clone(), c.after) };
    let mut paths: BTreeMap<Route, BTreeSet<String>> = BTreeMap::new();
    for change in &changes {
        paths.entry(route(change)).or_default().extend(change.path.clone());
    }
    let patterns: BTreeMap<Route, BTreeMap<String, String>> =
        paths.into_iter().map(|(route, paths)| (route, fold(&paths, threshold))).collect();
    let mut groups: BTreeMap<(Route, Option<String>), Change> = BTreeMap::new();
    for mut change in changes {
        let key = route(&change);
        let pattern = change.path.as_ref().and_then(|path| patterns.get(&key)?.get(path).cloned());
        change.path.clone_from(&pattern);
        match groups.get_mut(&(key.clone(), pattern.clone())) {
            Some(known) => known.seen.add(&change.seen),
            None => {
                groups.insert((key, pattern), change);
            }
        }
    }
    let mut all: Vec<Change> = groups.into_values().collect();
    all.sort_by_key(|change| std::cmp::Reverse(change.seen.count));
    all
}

fn plural(calls: u64) -> String {
    format!("{calls} call{}", if calls == 1 { "" } else { "s" })
}

/// The column says what the row is about already.
fn without_verdict(reason: &str) -> &str {
    reason.strip_prefix("denied: ").or(reason.strip_prefix("allowed: ")).unwrap_or(reason)
}

/// What changes, for people.
pub fn table(impact: &Impact, paint: Paint) -> String {
    let mut out = format!(
        "{} different flows, {}, from {} to {}\n",
        impact.flows,
        plural(impact.calls.count),
        impact.calls.first,
        impact.calls.last
    );
    let sections = [
        ("becomes denied", &impact.becomes_denied),
        ("becomes allowed", &impact.becomes_allowed),
        ("would change once the dry-run policies are enforced", &impact.would_change),
        ("would have changed, as the log says", &impact.recorded_would),
    ];
    for (title, changes) in sections {
        if changes.is_empty() {
            continue;
        }
        let calls: u64 = changes.iter().map(|change| change.seen.count).sum();
        let _ = writeln!(out, "\n{title}: {}", plural(calls));
        let mut rows = vec![
            ["", "FROM", "TO", "REQUEST", "COUNT", "FIRST", "LAST", "BECAUSE"].map(str::to_owned).to_vec(),
        ];
        for change in changes {
            let request = match (&change.method, &change.path) {
                (Some(method), Some(path)) => format!("{method} {path}"),
                _ => "TCP".to_owned(),
            };
            let is_allowed = change.after == "allowed";
            rows.push(vec![
                paint.mark(is_allowed),
                change.from.clone(),
                format!("{}:{}", change.to, change.port),
                request,
                change.seen.count.to_string(),
                change.seen.first.clone(),
                change.seen.last.clone(),
                without_verdict(&change.reason).to_owned(),
            ]);
        }
        out.push_str(&formats::columns(&rows));
    }
    if impact.becomes_denied.is_empty() && impact.becomes_allowed.is_empty() {
        out.push_str("\nno decision changes\n");
    }
    for (why, count) in &impact.not_judged {
        let _ = writeln!(out, "not judged: {count} ({why})");
    }
    for (field, count) in &impact.uncertain {
        let _ = writeln!(out, "uncertain: {count} calls meet rules on {field}, which no log holds");
    }
    if impact.recorded_otherwise > 0 {
        let _ = writeln!(
            out,
            "note: {} calls were decided otherwise than the old folder decides them; is it what was in force?",
            impact.recorded_otherwise
        );
    }
    out
}
