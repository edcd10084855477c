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
