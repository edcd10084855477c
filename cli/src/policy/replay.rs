//! One recorded flow, judged again under the policies of a folder.
use super::{
    answer::{Would, refuses_plaintext},
    flows::Flow,
    mesh::{Mesh, Workload},
    question::{Call, HttpCall},
};
use postern_config::documents::peer_authentication::MtlsMode;
use postern_config::{
    Snapshot, Verdict, authorize::judge, explain::explain, path::normalize, snapshot::Protocol,
};
use postern_identity::SpiffeId;
use std::collections::BTreeSet;

/// What a folder says about a flow.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Allowed or not.
    pub allowed: bool,
    /// Why, with the closest rule.
    pub reason: String,
    /// What the folder's dry-run policies would change.
    pub would: Option<Would>,
    /// Facts that the policies of the workload look at and that the log does not hold.
    pub unrecorded: BTreeSet<String>,
}

/// The workload that a flow went to.
///
/// # Errors
/// Why it cannot be told, in a few words.
pub fn workload<'m>(mesh: &'m Mesh, flow: &Flow) -> Result<&'m Workload, String> {
    let ip = flow.address.ip();
    let at_address = |w: &&Workload| w.addresses.contains(&ip);
    let Some(identity) = &flow.destination else {
        return mesh
            .workloads()
            .iter()
            .find(at_address)
            .ok_or_else(|| format!("no workload of the folder has the address {ip}"));
    };
    let is_it = |w: &&Workload| w.identity.as_ref().is_some_and(|id| id.as_str() == identity);
    let candidates: Vec<&Workload> = mesh.workloads().iter().filter(is_it).collect();
    let names: BTreeSet<String> = candidates.iter().map(|w| w.name()).collect();
    match (candidates.first(), names.len()) {
        (None, _) => Err(format!("no workload of the folder is {identity}")),
        (Some(one), 1) => Ok(one),
        _ => candidates
            .iter()
            .copied()
            .find(at_address)
            .ok_or_else(|| format!("several workloads of the folder are {identity}, none at {ip}")),
    }
}

/// Judges a flow.
///
/// # Errors
/// Why it cannot be judged, in a few words.
pub fn replay(mesh: &Mesh, flow: &Flow) -> Result<Judged, String> {
    let workload = workload(mesh, flow)?;
    if workload.identity.is_none() {
        return Ok(Judged {
            allowed: true,
            reason: format!("{} has no sidecar", workload.name()),
            would: None,
            unrecorded: BTreeSet::new(),
        });
    }
    let snapshot = mesh.snapshot(workload).map_err(|failure| failure.cause)?;
    let call = call(flow, &snapshot)?;
    let mut judged =
        Judged { allowed: false, reason: String::new(), would: None, unrecorded: unrecorded(&snapshot) };
    if refuses_plaintext(&snapshot, &call) {
        judged.reason = "plaintext: the port takes mutual TLS only (STRICT)".into();
        return Ok(judged);
    }
    let facts = call.facts();
    let judgement = judge(&snapshot, &facts);
    judged.allowed = judgement.decision.verdict == Verdict::Allow;
    judged.reason = explain(&snapshot, &facts).to_string();
    judged.would = Would::of(&judgement);
    Ok(judged)
}

fn call(flow: &Flow, snapshot: &Snapshot) -> Result<Call, String> {
    let port = flow.address.port();
    let peer = match &flow.source {
        Some(id) if snapshot.mtls_mode(port) != MtlsMode::Disable => {
            Some(id.parse::<SpiffeId>().map_err(|_| format!("its caller is no SPIFFE ID: {id}"))?)
        }
        _ => None,
    };
    let http = match &flow.request {
        Some(request) if snapshot.protocol(port) != Protocol::Tcp => {
            let mode = snapshot.spec().mesh.path_normalization;
            let path =
                normalize(&request.path, mode).map_err(|e| format!("its path has no safe reading: {e}"))?;
            Some(HttpCall {
                method: request.method.clone(),
                path: path.into_owned(),
                host: request.host.clone(),
                headers: http::HeaderMap::new(),
            })
        }
        _ => None,
    };
    Ok(Call {
        peer,
        source_ip: flow.source_ip,
        destination_ip: flow.address.ip(),
        port,
        sni: flow.sni.clone(),
        http,
        claims: None,
    })
}

/// Headers, tokens and X-Forwarded-For are in no log.
fn unrecorded(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for rule in snapshot.spec().authorization_policies.iter().flat_map(|policy| &policy.rules) {
        for condition in &rule.when {
            let key = condition.key.as_str();
            let is_host = key.eq_ignore_ascii_case("request.headers[:authority]")
                || key.eq_ignore_ascii_case("request.headers[host]");
            let is_missing = key.starts_with("request.headers[") && !is_host
                || key.starts_with("request.auth.")
                || key == "remote.ip";
            if is_missing {
                fields.insert(key.to_owned());
            }
        }
        for source in rule.from.iter().map(|from| &from.source) {
            let lists = [
                ("remoteIpBlocks", &source.remote_ip_blocks, &source.not_remote_ip_blocks),
                ("requestPrincipals", &source.request_principals, &source.not_request_principals),
            ];
            for (name, one, other) in lists {
                if !one.is_empty() || !other.is_empty() {
                    fields.insert(name.to_owned());
                }
            }
        }
    }
    fields
}
