//! `postern ca`: which authorities there are, and how the next one takes the place of the last without cutting anybody off.

use super::{
    shown::{left, life, short},
    socket::{ControlPlane, Where},
};
use crate::{
    failure::{Failure, NEGATIVE, OK},
    policy::formats::{self, Output, Paint},
};
use clap::{Args, Subcommand, ValueEnum};
use postern_control_plane::admin::pages::{
    Authorities, Authority, Done, Kind, Pending, Revoke, Rotate, Step,
};
use std::{
    fmt::Write as _,
    thread,
    time::{Duration, Instant},
};

/// From one look at a rotation to the next.
const LOOK: Duration = Duration::from_millis(200);

/// Flags of `postern ca`.
#[derive(Args, Debug, Clone)]
pub struct CaArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug, Clone)]
enum Command {
    /// Show roots, intermediates and token keys, and what a rotation waits for
    Status(StatusArgs),
    /// Replace an authority by its next one; each step waits until no sidecar would be cut off
    Rotate(RotateArgs),
    /// Let everybody who holds a certificate below an authority renew now
    Taint(TaintArgs),
    /// Trust nothing below an authority any more, on open connections too
    Revoke(RevokeArgs),
}

#[derive(Args, Debug, Clone)]
struct StatusArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug, Clone)]
struct RotateArgs {
    /// What is replaced
    #[arg(long, value_enum, default_value_t = Which::Root)]
    kind: Which,
    /// One step alone. Default: all of them, each as soon as it is safe
    #[arg(long, value_enum)]
    step: Option<Stage>,
    /// Make the step whomever it cuts off
    #[arg(long, requires = "step")]
    force: bool,
    /// Do not wait for the end of the rotation, which goes on by itself
    #[arg(long, conflicts_with = "step")]
    no_wait: bool,
    /// How long to wait for it
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug, Clone)]
struct TaintArgs {
    /// Key id of the authority, or a unique beginning of it
    id: String,
    #[command(flatten)]
    place: Where,
}

#[derive(Args, Debug, Clone)]
struct RevokeArgs {
    /// Key id of the authority, or a unique beginning of it
    id: String,
    /// Do it although sidecars hold certificates below it, which cuts them off
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    place: Where,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Which {
    /// The anchor of the trust bundle
    Root,
    /// What signs workload certificates
    Intermediate,
    /// The key of JWT-SVIDs
    Jwt,
}

impl Which {
    fn kind(self) -> Kind {
        match self {
            Self::Root => Kind::Root,
            Self::Intermediate => Kind::Intermediate,
            Self::Jwt => Kind::Jwt,
        }
    }

    /// As pages name it.
    fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Jwt => "jwt-key",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// Make the next one and publish it
    Prepare,
    /// Let it sign
    Activate,
    /// Publish the old one no more
    Retire,
}

impl From<Stage> for Step {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Prepare => Self::Prepare,
            Stage::Activate => Self::Activate,
            Stage::Retire => Self::Retire,
        }
    }
}

/// Runs the command: 0 when done, 2 when it would cut somebody off or is not over in time, 1 when it cannot be done.
pub fn run(args: &CaArgs) -> u8 {
    let done = match &args.command {
        Command::Status(args) => status(args),
        Command::Rotate(args) => rotate(args),
        Command::Taint(args) => taint(args),
        Command::Revoke(args) => revoke(args),
    };
    done.unwrap_or_else(|failure| failure.report())
}

fn status(args: &StatusArgs) -> Result<u8, Failure> {
    let page: Authorities = ControlPlane::find(&args.place)?.page("/authorities")?;
    formats::print(&formats::answer(args.output, &page, |paint| table(&page, paint)));
    Ok(OK)
}

fn taint(args: &TaintArgs) -> Result<u8, Failure> {
    let control_plane = ControlPlane::find(&args.place)?;
    let id = find(&control_plane.page("/authorities")?, &args.id)?;
    let done: Done = control_plane.change(&format!("/authorities/{id}/taint"), &Revoke::default())?;
    say(&done);
    Ok(OK)
}

fn revoke(args: &RevokeArgs) -> Result<u8, Failure> {
    let control_plane = ControlPlane::find(&args.place)?;
    let id = find(&control_plane.page("/authorities")?, &args.id)?;
    let wanted = Revoke { force: args.force };
    let done: Done = control_plane.change(&format!("/authorities/{id}/revoke"), &wanted)?;
    say(&done);
    Ok(OK)
}

fn rotate(args: &RotateArgs) -> Result<u8, Failure> {
    let control_plane = ControlPlane::find(&args.place)?;
    let wanted = Rotate { kind: args.kind.kind(), step: args.step.map(Step::from), force: args.force };
    let done: Done = control_plane.change("/authorities/rotate", &wanted)?;
    say(&done);
    if args.step.is_some() || args.no_wait {
        return Ok(OK);
    }
    follow(&control_plane, args)
}

/// Tells each thing that a rotation waits for, until it is over.
fn follow(control_plane: &ControlPlane, args: &RotateArgs) -> Result<u8, Failure> {
    let (began, patience) = (Instant::now(), Duration::from_secs(args.timeout));
    let mut told = String::new();
    loop {
        let page: Authorities = control_plane.page("/authorities")?;
        let left = open(&page, args.kind);
        if left.is_empty() {
            formats::print(&format!("the rotation is over after {:.1} s\n", began.elapsed().as_secs_f64()));
            return Ok(OK);
        }
        if began.elapsed() >= patience {
            return Err(Failure {
                cause: format!("the rotation is not over after {} s; it waits:\n{left}", args.timeout),
                remedy: "It goes on by itself as soon as nobody lags; look again with `postern ca status`."
                    .into(),
                code: NEGATIVE,
            });
        }
        if left != told {
            eprint!("{left}");
            told = left;
        }
        thread::sleep(LOOK);
    }
}

/// What a rotation of `kind` still waits for; empty when it is over.
fn open(page: &Authorities, kind: Which) -> String {
    if kind == Which::Intermediate {
        // It signs already; others may still hold what its predecessor signed.
        let tainted =
            |one: &&Authority| one.kind == kind.name() && one.tainted && one.holders.unwrap_or(0) > 0;
        return page.authorities.iter().filter(tainted).fold(String::new(), |mut out, one| {
            let holders = one.holders.unwrap_or(0);
            let _ = writeln!(
                out,
                "  holding a certificate below {}: {holders} of {}",
                short(&one.id),
                page.connected
            );
            out
        });
    }
    page.pending.iter().filter(|pending| pending.kind == kind.name()).map(waits).collect()
}

fn waits(pending: &Pending) -> String {
    let mut out = format!("  {} {} {}", pending.step, pending.kind, short(&pending.id));
    out += match (pending.lagging.is_empty(), pending.automatic) {
        (true, true) => ": about to happen\n",
        (true, false) => ": safe, nobody lags\n",
        (false, true) => ", by itself as soon as nobody lags:\n",
        (false, false) => ", when somebody asks for it; not safe yet:\n",
    };
    for one in &pending.lagging {
        let _ = writeln!(out, "    {} {}", one.who, one.reason);
    }
    out
}

/// The one authority whose key id begins so.
fn find(page: &Authorities, beginning: &str) -> Result<String, Failure> {
    let wanted = beginning.to_ascii_lowercase();
    let found: Vec<&Authority> = page.authorities.iter().filter(|one| one.id.starts_with(&wanted)).collect();
    match found.as_slice() {
        [one] => Ok(one.id.clone()),
        [] => Err(Failure::new(
            format!("no authority of `{}` has a key id that begins with `{beginning}`.", page.trust_domain),
            "`postern ca status` lists them; -o json with the whole ids.",
        )),
        _ => Err(Failure::usage(
            format!("{} authorities have key ids that begin with `{beginning}`.", found.len()),
            "Give more of it.",
        )),
    }
}

fn say(done: &Done) {
    formats::print(&format!("{}\n", done.done));
}

fn table(page: &Authorities, paint: Paint) -> String {
    let mut rows =
        vec![["KIND", "ID", "SLOT", "HOLDERS", "UNTIL", "LEFT", "LIFE"].map(str::to_owned).to_vec()];
    for one in &page.authorities {
        rows.push(vec![
            one.kind.clone(),
            short(&one.id).to_owned(),
            slot(one),
            one.holders.map_or_else(|| "-".to_owned(), |count| count.to_string()),
            one.not_after.clone(),
            left(&page.now, &one.not_after),
            life(one.remaining, paint),
        ]);
    }
    let mut out = format!(
        "trust domain {}, connected sidecars: {}, {}\n\n{}",
        page.trust_domain,
        page.connected,
        match page.behind {
            0 => "all with the trust in force".to_owned(),
            behind => paint.odd(&format!("{behind} without the trust in force")),
        },
        formats::columns(&rows)
    );
    if !page.pending.is_empty() {
        out += "\nwaiting:\n";
        out.extend(page.pending.iter().map(waits));
    }
    out
}

fn slot(one: &Authority) -> String {
    match (one.revoked, one.tainted) {
        (true, _) => "revoked".into(),
        (false, true) => format!("{}, tainted", one.slot),
        (false, false) => one.slot.clone(),
    }
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
