//! `postern bug-report`: one file to attach to an issue. It lists first what is in it, and nothing secret is.

pub mod archive;
pub mod redact;

use crate::{
    authority::{Where, socket::ControlPlane},
    failure::{Failure, NEGATIVE, OK},
    policy::formats::{self, Output},
};
use clap::Args;
use serde::{Deserialize as _, Serialize};
use serde_json::Value;
use std::{
    fs,
    io::{IsTerminal as _, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

/// The end of a log that is taken, in bytes.
const LOG_BYTES: u64 = 256 * 1024;
/// A document that is taken, and how many at most.
const DOCUMENT_BYTES: u64 = 1024 * 1024;
const DOCUMENTS: usize = 500;
/// Kinds that are secrets, or may be anything.
const LEFT_OUT: &[&str] = &["Secret", "ConfigMap"];
/// Pages of the control plane, with the name of each in the archive.
const PAGES: &[(&str, &str)] = &[
    ("/status", "status.json"),
    ("/policies", "policies.json"),
    ("/config", "policies-wanted.json"),
    ("/certificates", "certificates.json"),
    ("/authorities", "authorities.json"),
    ("/flows?since=3600", "flows.json"),
    ("/denials?since=3600", "denials.json"),
];
/// What the kernel says of the machine and of our control group.
const MACHINE: &[&str] = &[
    "/proc/sys/kernel/osrelease",
    "/proc/loadavg",
    "/proc/self/cgroup",
    "/proc/sys/net/netfilter/nf_conntrack_count",
    "/proc/sys/net/netfilter/nf_conntrack_max",
    "/proc/sys/net/ipv4/ip_local_port_range",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory.current",
    "/sys/fs/cgroup/cpu.max",
    "/sys/fs/cgroup/pids.max",
];

/// Flags of `postern bug-report`.
#[derive(Args, Debug, Clone)]
pub struct BugReportArgs {
    /// The file to write; it must not exist. Default: postern-bug-report-SECONDS.tar.gz here
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// A folder of YAML files that goes along, redacted; Secrets and ConfigMaps stay out
    #[arg(long, value_name = "DIR")]
    documents: Option<PathBuf>,
    /// Without the policies that each sidecar should have
    #[arg(long)]
    no_policies: bool,
    /// Without the last lines of the sidecars' logs
    #[arg(long)]
    no_logs: bool,
    /// Write it without asking
    #[arg(long, short)]
    yes: bool,
    /// Form of the list of what is in it
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

/// What is in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Contents {
    /// Where it is, or would be.
    pub file: String,
    /// By name.
    pub files: Vec<Part>,
    /// What could not be had, or stays out, with the reason.
    pub left_out: Vec<String>,
}

/// One file of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// In the archive.
    pub name: String,
    /// As it is there, redacted.
    pub bytes: usize,
}

/// Runs the command: 0 when the file is written, 1 when it cannot be, 2 when nobody said yes.
pub fn run(args: &BugReportArgs) -> u8 {
    match report(args) {
        Ok(true) => OK,
        Ok(false) => NEGATIVE,
        Err(failure) => failure.report(),
    }
}

fn report(args: &BugReportArgs) -> Result<bool, Failure> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let path = args.file.clone().unwrap_or_else(|| format!("postern-bug-report-{seconds}.tar.gz").into());
    let mut gathered = Gathered::default();
    gathered.mesh(args);
    gathered.machine();
    if let Some(folder) = &args.documents {
        gathered.documents(folder);
    }
    let contents = gathered.contents(&path);
    let list = serde_json::to_vec_pretty(&contents).unwrap_or_default();
    formats::print(&formats::answer(args.output, &contents, |_| table(&contents)));
    if !args.yes && !is_wanted() {
        return Ok(false);
    }
    gathered.files.insert(0, ("contents.json".to_owned(), list));
    archive::write(&path, &gathered.files, seconds).map_err(|cause| {
        Failure::new(
            format!("{} cannot be written: {cause}.", path.display()),
            "Name another file with --file; one that exists is never overwritten.",
        )
    })?;
    eprintln!("written to {}; look into it before you hand it on", path.display());
    Ok(true)
}

/// Asks, where somebody can answer.
fn is_wanted() -> bool {
    if !std::io::stdin().is_terminal() {
        eprintln!("nothing is written: say --yes, or ask from a terminal");
        return false;
    }
    eprint!("write it? [y/N] ");
    let _ = std::io::stderr().flush();
    let mut answer = String::new();
    let read = std::io::stdin().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

fn table(contents: &Contents) -> String {
    let mut rows = vec![vec!["FILE".to_owned(), "BYTES".to_owned()]];
    rows.extend(contents.files.iter().map(|part| vec![part.name.clone(), part.bytes.to_string()]));
    let left_out: String = contents.left_out.iter().map(|what| format!("left out: {what}\n")).collect();
    format!(
        "{}{left_out}all without keys, tokens, values of headers, and queries; for {}\n",
        formats::columns(&rows),
        contents.file
    )
}

/// What was found, redacted already.
#[derive(Default)]
struct Gathered {
    files: Vec<(String, Vec<u8>)>,
    left_out: Vec<String>,
}

impl Gathered {
    fn contents(&self, path: &Path) -> Contents {
        let part = |(name, content): &(String, Vec<u8>)| Part { name: name.clone(), bytes: content.len() };
        let files = self.files.iter().map(part).collect();
        Contents { file: path.display().to_string(), files, left_out: self.left_out.clone() }
    }

    /// A control plane that does not answer is a reason to write a report, not to refuse it.
    fn mesh(&mut self, args: &BugReportArgs) {
        let control_plane = match ControlPlane::find(&args.place) {
            Ok(control_plane) => control_plane,
            Err(failure) => return self.left_out.push(format!("the mesh: {}", redact::text(&failure.cause))),
        };
        for (page, name) in PAGES.iter().filter(|(page, _)| !(args.no_policies && *page == "/config")) {
            match control_plane.page::<Value>(page) {
                Ok(mut value) => {
                    redact::value(&mut value, true);
                    self.files
                        .push(((*name).to_owned(), serde_json::to_vec_pretty(&value).unwrap_or_default()));
                }
                Err(failure) => self.left_out.push(format!("{name}: {}", redact::text(&failure.cause))),
            }
        }
        match control_plane.text("/metrics") {
            Ok(text) => self.text("control-plane-metrics.txt", &text),
            Err(failure) => self.left_out.push(format!("metrics: {}", redact::text(&failure.cause))),
        }
        if !args.no_logs {
            self.logs(&control_plane.path().with_file_name("logs"));
        }
    }

    /// What sidecars say; what apps say is nobody's business.
    fn logs(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else {
            return self
                .left_out
                .push("logs: this control plane keeps none; see those of its pods".to_owned());
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.ends_with(".proxy.log") {
                match end(&path) {
                    Ok(text) => self.text(&format!("logs/{name}"), &text),
                    Err(cause) => self.left_out.push(format!("{name}: {cause}")),
                }
            }
        }
    }

    fn machine(&mut self) {
        let read = |path: &&str| fs::read_to_string(path).map(|text| format!("{path}: {}", text.trim_end()));
        let facts: Vec<String> = MACHINE.iter().filter_map(|path| read(path).ok()).collect();
        let about = format!("postern {}\n{}\n", env!("CARGO_PKG_VERSION"), facts.join("\n"));
        self.text("machine.txt", &about);
    }

    fn documents(&mut self, folder: &Path) {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml"));
        paths.sort();
        if paths.is_empty() || paths.len() > DOCUMENTS {
            self.left_out.push(format!(
                "documents: {} YAML files in {}, and 1 to {DOCUMENTS} are taken",
                paths.len(),
                folder.display()
            ));
            return;
        }
        for path in paths {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match self.document(&path) {
                Ok(text) => self.files.push((format!("documents/{name}"), text.into_bytes())),
                Err(why) => self.left_out.push(format!("documents/{name}: {why}")),
            }
        }
    }

    /// Read and written anew, so that comments are gone, too.
    fn document(&mut self, path: &Path) -> Result<String, String> {
        let size = fs::metadata(path).map_err(|cause| cause.to_string())?.len();
        if size > DOCUMENT_BYTES {
            return Err("it is longer than 1 MiB".to_owned());
        }
        let text = fs::read_to_string(path).map_err(|cause| cause.to_string())?;
        let mut out = String::new();
        for document in serde_yaml::Deserializer::from_str(&text) {
            // The cause would quote the document.
            let mut value =
                Value::deserialize(document).map_err(|_| "it is no YAML that can be read".to_owned())?;
            let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
            if LEFT_OUT.contains(&kind) {
                self.left_out.push(format!("a {kind} of {}", path.display()));
                continue;
            }
            redact::value(&mut value, false);
            out += &format!("---\n{}", serde_yaml::to_string(&value).unwrap_or_default());
        }
        Ok(out)
    }

    fn text(&mut self, name: &str, text: &str) {
        self.files.push((name.to_owned(), redact::text(text).into_bytes()));
    }
}

/// The end of a file, from the beginning of a line on.
fn end(path: &Path) -> std::io::Result<String> {
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let skipped = length.saturating_sub(LOG_BYTES);
    file.seek(SeekFrom::Start(skipped))?;
    let mut bytes = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(match (skipped, text.split_once('\n')) {
        (0, _) | (_, None) => text,
        // The first line may be the rest of one whose name was cut off.
        (_, Some((_, rest))) => rest.to_owned(),
    })
}
