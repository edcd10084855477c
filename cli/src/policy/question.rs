//! From names that people say to the facts that policy decides on: who calls, which workload, which port, how.
use super::mesh::{Mesh, Workload};
use crate::{failure::Failure, up::plan::Key};
use postern_config::{
    Claims, Facts, HttpFacts, Snapshot,
    documents::{peer_authentication::MtlsMode, service_host},
    path::normalize,
    snapshot::Protocol,
};
use postern_identity::SpiffeId;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// Stands for the address of a caller that the folder does not know (RFC 5737).
const UNKNOWN_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// A question as it was put.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Workload, deployment, service, service account, or SPIFFE ID.
    pub from: String,
    /// Workload, deployment, service or service account.
    pub to: String,
    /// Method and target of a request; `None` = a connection without one.
    pub request: Option<(String, String)>,
    /// Headers of the request.
    pub headers: Vec<(String, String)>,
    /// Host that the caller names.
    pub host: Option<String>,
    /// Of the service when `to` is one, else of the workload.
    pub port: Option<u16>,
    /// Payload of a verified token.
    pub claims: Option<serde_json::Map<String, serde_json::Value>>,
    /// The caller shows no certificate.
    pub plaintext: bool,
}

/// The facts of one call, owned.
#[derive(Clone, Debug)]
pub struct Call {
    /// Verified identity; `None` = plaintext.
    pub peer: Option<SpiffeId>,
    /// Address of the caller.
    pub source_ip: IpAddr,
    /// Address of the workload.
    pub destination_ip: IpAddr,
    /// Workload port.
    pub port: u16,
    /// Server name of the handshake.
    pub sni: Option<String>,
    /// `None` on TCP.
    pub http: Option<HttpCall>,
    /// Payload of a verified token.
    pub claims: Option<Claims>,
}

/// The request of a call.
#[derive(Clone, Debug)]
pub struct HttpCall {
    /// As sent.
    pub method: String,
    /// Normalized, without query.
    pub path: String,
    /// Host, with port when it is not the usual one.
    pub host: String,
    /// All headers.
    pub headers: http::HeaderMap,
}

impl Call {
    /// As policy takes them.
    pub fn facts(&self) -> Facts<'_> {
        Facts {
            peer: self.peer.as_ref(),
            source_ip: self.source_ip,
            remote_ip: self.source_ip,
            destination_ip: self.destination_ip,
            destination_port: self.port,
            sni: self.sni.as_deref(),
            http: self.http.as_ref().map(|http| HttpFacts {
                method: &http.method,
                path: &http.path,
                host: &http.host,
                headers: &http.headers,
            }),
            claims: self.claims.as_ref(),
        }
    }
}

/// A question with all names resolved.
pub struct Resolved<'m> {
    /// Who calls.
    pub caller: Caller,
    /// The workloads that may answer, one of each kind: replicas are alike.
    pub workloads: Vec<&'m Workload>,
    /// Service port, when `to` is a service.
    pub service_port: Option<u16>,
    /// Workload port.
    pub port: u16,
    /// What was assumed or translated, in sentences.
    pub notes: Vec<String>,
}

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// For people.
    pub name: String,
    /// `None`: without a sidecar.
    pub identity: Option<SpiffeId>,
    /// Where from.
    pub address: IpAddr,
}

/// Finds out who is meant by a question.
///
/// # Errors
/// A name means nobody or several, or the port cannot be told.
pub fn resolve<'m>(mesh: &'m Mesh, question: &Question) -> Result<Resolved<'m>, Failure> {
    let mut notes = Vec::new();
    let caller = caller(mesh, &question.from, &mut notes)?;
    let found = find(mesh, &question.to)?;
    let mut workloads: Vec<&Workload> = Vec::new();
    for workload in &found.workloads {
        if !workloads.iter().any(|known| known.name() == workload.name()) {
            workloads.push(workload);
        }
    }
    let Some(first) = workloads.first() else {
        return Err(Failure::new(
            format!("no pod stands behind `{}`.", question.to),
            "Name a workload, or a service whose selector fits a pod.",
        ));
    };
    let (service_port, port) = port(mesh, &found, first, question.port, &mut notes)?;
    Ok(Resolved { caller, workloads, service_port, port, notes })
}

/// The facts of a resolved question at one workload. `Err` holds why there is nothing to decide: the sidecar refuses
/// the request before policy.
pub fn call(
    question: &Question,
    resolved: &Resolved<'_>,
    workload: &Workload,
    snapshot: &Snapshot,
    notes: &mut Vec<String>,
) -> Result<Result<Call, String>, Failure> {
    let is_disabled = snapshot.mtls_mode(resolved.port) == MtlsMode::Disable;
    let peer = resolved.caller.identity.clone().filter(|_| !question.plaintext && !is_disabled);
    if is_disabled && resolved.caller.identity.is_some() && !question.plaintext {
        notes.push(format!("mutual TLS is DISABLE on port {}: policy sees no identity there", resolved.port));
    }
    let http = match &question.request {
        Some(_) if snapshot.protocol(resolved.port) == Protocol::Tcp => {
            notes.push(format!(
                "port {} is declared as TCP: policy sees a connection and no request",
                resolved.port
            ));
            None
        }
        None => None,
        Some((method, target)) => {
            let mode = snapshot.spec().mesh.path_normalization;
            let normalized = match normalize(target, mode) {
                Ok(normalized) => normalized,
                Err(error) => return Ok(Err(format!("the path has no safe reading (400): {error}"))),
            };
            let path = normalized.split('?').next().unwrap_or_default().to_owned();
            let written = target.split('?').next().unwrap_or_default();
            if path != written {
                notes.push(format!("the path {written} is read, and forwarded, as {path}"));
            }
            let headers = headers(&question.headers)?;
            let host = question.host.as_ref().map_or_else(
                || host(question, resolved, workload),
                |host| host.trim_end_matches('.').to_ascii_lowercase(),
            );
            Some(HttpCall { method: method.clone(), path, host, headers })
        }
    };
    let fits = |ip: &&IpAddr| ip.is_ipv4() == resolved.caller.address.is_ipv4();
    let destination = workload.addresses.iter().find(fits).or(workload.addresses.first());
    Ok(Ok(Call {
        peer,
        source_ip: resolved.caller.address,
        destination_ip: destination.copied().unwrap_or(UNKNOWN_ADDRESS),
        port: resolved.port,
        sni: None,
        http,
        claims: question.claims.clone().map(Claims::new),
    }))
}

/// What a caller would most likely say: the service's full name, else the address.
fn host(question: &Question, resolved: &Resolved<'_>, workload: &Workload) -> String {
    let name = match resolved.service_port {
        Some(_) => {
            let short = question.to.rsplit('/').next().unwrap_or(&question.to);
            let short = short.split('.').next().unwrap_or(short);
            service_host(short, &workload.key.namespace)
        }
        None => workload.addresses.first().map(ToString::to_string).unwrap_or_default(),
    };
    match resolved.service_port.unwrap_or(resolved.port) {
        80 => name,
        port => format!("{name}:{port}"),
    }
}

fn headers(pairs: &[(String, String)]) -> Result<http::HeaderMap, Failure> {
    let mut headers = http::HeaderMap::new();
    for (name, value) in pairs {
        let bad = || {
            Failure::usage(
                format!("`{name}` is no header that HTTP can carry."),
                "Write `--header name:value`, in visible ASCII.",
            )
        };
        let key = http::HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        headers.append(key, http::HeaderValue::try_from(value.as_str()).map_err(|_| bad())?);
    }
    Ok(headers)
}

fn caller(mesh: &Mesh, said: &str, notes: &mut Vec<String>) -> Result<Caller, Failure> {
    if said.starts_with("spiffe://") {
        let identity: SpiffeId = said.parse().map_err(|e| {
            Failure::usage(format!("{e}."), "Write spiffe://<trust domain>/ns/<namespace>/sa/<name>.")
        })?;
        let pod = mesh.workloads().iter().find(|w| w.identity.as_ref() == Some(&identity));
        let address = pod.and_then(|pod| pod.addresses.first().copied());
        if address.is_none() {
            notes.push(format!(
                "nobody in the folder has this identity; its address is taken to be {UNKNOWN_ADDRESS}"
            ));
        }
        return Ok(Caller {
            name: said.to_owned(),
            identity: Some(identity),
            address: address.unwrap_or(UNKNOWN_ADDRESS),
        });
    }
    let found = find(mesh, said)?;
    let identities: BTreeSet<String> = found
        .workloads
        .iter()
        .map(|w| w.identity.as_ref().map_or_else(|| "no identity".to_owned(), |id| id.to_string()))
        .collect();
    if identities.len() > 1 {
        return Err(Failure::new(
            format!("`{said}` stands for callers with different identities: {}.", list(&identities)),
            "Name one of them by its SPIFFE ID or its workload.",
        ));
    }
    match found.workloads.first() {
        Some(workload) => {
            if workload.identity.is_none() {
                notes.push(format!(
                    "{} has no sidecar: it calls in plaintext, without an identity",
                    workload.name()
                ));
            }
            Ok(Caller {
                name: workload.name(),
                identity: workload.identity.clone(),
                address: workload.addresses.first().copied().unwrap_or(UNKNOWN_ADDRESS),
            })
        }
        None => {
            let Key { namespace, name } = &found.key;
            let identity = SpiffeId::for_service_account(mesh.trust_domain(), namespace, name)
                .map_err(|e| Failure::new(format!("{e}."), "Name a workload."))?;
            notes.push(format!(
                "no pod runs as the service account {}; its address is taken to be {UNKNOWN_ADDRESS}",
                found.key
            ));
            Ok(Caller { name: found.key.to_string(), identity: Some(identity), address: UNKNOWN_ADDRESS })
        }
    }
}

/// What a name means.
struct Found<'m> {
    key: Key,
    workloads: Vec<&'m Workload>,
    is_service: bool,
}

/// `namespace/name`, `name.namespace` (with or without `.svc.cluster.local`), `name`, or the end of a name behind a
/// hyphen, when only one thing has it. A pod, a deployment, a service, a service account, in this order.
fn find<'m>(mesh: &'m Mesh, said: &str) -> Result<Found<'m>, Failure> {
    let mut known: BTreeSet<Key> = BTreeSet::new();
    for workload in mesh.workloads() {
        known.insert(workload.key.clone());
        if let Some(deployment) = &workload.deployment {
            known.insert(Key::new(&workload.key.namespace, deployment));
        }
    }
    known.extend(mesh.plan().services.keys().cloned());
    known.extend(mesh.service_accounts());
    let dotted = said.trim_end_matches('.');
    let dotted = dotted.strip_suffix(".svc.cluster.local").or(dotted.strip_suffix(".svc")).unwrap_or(dotted);
    let full = |key: &&Key| {
        said.split_once('/') == Some((&key.namespace, &key.name))
            || dotted.rsplit_once('.') == Some((&key.name, &key.namespace))
    };
    let (within, short) =
        said.split_once('/').map_or((None, said), |(namespace, name)| (Some(namespace), name));
    let is_within = |key: &&Key| within.is_none_or(|namespace| namespace == key.namespace);
    let ending = format!("-{short}");
    let mut meant: Vec<&Key> = known.iter().filter(full).collect();
    if meant.is_empty() {
        meant = known.iter().filter(is_within).filter(|key| key.name == short).collect();
    }
    if meant.is_empty() && !short.is_empty() {
        meant = known.iter().filter(is_within).filter(|key| key.name.ends_with(&ending)).collect();
    }
    match meant.as_slice() {
        [key] => Ok(behind(mesh, key)),
        [] => {
            let names: BTreeSet<String> = mesh.workloads().iter().map(Workload::name).collect();
            Err(Failure::new(
                format!("the folder has no workload, service or service account `{said}`."),
                format!("Name one of: {}.", list(&names)),
            ))
        }
        many => Err(Failure::new(
            format!("`{said}` may mean several things."),
            format!("Name one of: {}.", list(&many.iter().map(ToString::to_string).collect())),
        )),
    }
}

fn behind<'m>(mesh: &'m Mesh, key: &Key) -> Found<'m> {
    let all = || mesh.workloads().iter();
    let is_service = mesh.plan().services.contains_key(key);
    let of_service = || -> Vec<&Workload> {
        let service = mesh.plan().services.get(key);
        let keys: BTreeSet<&Key> = service
            .into_iter()
            .flat_map(|s| &s.ports)
            .flat_map(|p| &p.endpoints)
            .map(|(pod, _)| pod)
            .collect();
        all().filter(|w| keys.contains(&w.key)).collect()
    };
    let deployed =
        |w: &&Workload| w.key.namespace == key.namespace && w.deployment.as_ref() == Some(&key.name);
    let runs = |w: &&Workload| w.key.namespace == key.namespace && w.service_account == key.name;
    let pod: Vec<&Workload> = all().filter(|w| w.key == *key).collect();
    let (workloads, is_service) = if !pod.is_empty() {
        (pod, false)
    } else {
        let deployed: Vec<&Workload> = all().filter(deployed).collect();
        match (deployed.is_empty(), is_service) {
            (false, _) => (deployed, is_service),
            (true, true) => (of_service(), true),
            (true, false) => (all().filter(runs).collect(), false),
        }
    };
    Found { key: key.clone(), workloads, is_service }
}

/// Which port is meant: (of the service, of the workload).
fn port(
    mesh: &Mesh,
    found: &Found<'_>,
    workload: &Workload,
    said: Option<u16>,
    notes: &mut Vec<String>,
) -> Result<(Option<u16>, u16), Failure> {
    let service = mesh.plan().services.get(&found.key).filter(|_| found.is_service);
    let targets: Vec<(u16, u16)> = service
        .into_iter()
        .flat_map(|service| &service.ports)
        .filter(|port| !port.udp)
        .filter_map(|port| {
            let target = port.endpoints.iter().find(|(pod, _)| *pod == workload.key)?;
            Some((port.port, target.1))
        })
        .collect();
    let translated = |notes: &mut Vec<String>, from: u16, to: u16| {
        if from != to {
            notes.push(format!(
                "port {from} of service {} is port {to} of the workload, which is what policy sees",
                found.key
            ));
        }
        Ok((Some(from), to))
    };
    let choices = |ports: &[u16]| {
        let named: BTreeSet<String> = ports.iter().map(ToString::to_string).collect();
        Failure::new(
            format!("the port of `{}` is not clear.", found.key),
            format!("Say `--port` with one of: {}.", list(&named)),
        )
    };
    match (said, targets.as_slice(), workload.container_ports.as_slice()) {
        (Some(port), targets, _) => match targets.iter().find(|(from, _)| *from == port) {
            Some((from, to)) => translated(notes, *from, *to),
            None => {
                let is_known =
                    workload.container_ports.contains(&port) || targets.iter().any(|(_, to)| *to == port);
                if !is_known {
                    notes.push(format!("nothing in the folder names port {port} of {}", workload.name()));
                }
                Ok((None, port))
            }
        },
        (None, [(from, to)], _) => translated(notes, *from, *to),
        (None, [], [port]) => Ok((None, *port)),
        (None, [], []) => Err(Failure::new(
            format!("the folder names no port of {}.", workload.name()),
            "Say which with `--port`.",
        )),
        (None, [], many) => Err(choices(many)),
        (None, many, _) => Err(choices(&many.iter().map(|(from, _)| *from).collect::<Vec<_>>())),
    }
}

fn list(names: &BTreeSet<String>) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(", …");
    }
    text
}
