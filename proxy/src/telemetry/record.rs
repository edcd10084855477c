//! What we note per connection or request: opened once, written once when dropped, whichever way it ends.
//!
//! A connection that carried requests writes no line of its own: its requests did.

use super::{
    Denial, Telemetry,
    access_log::cut,
    connections::Open,
    entry::{Decided, Direction, Entry, Noted, Request, Would},
    trace_context::{REQUEST_ID, Trace},
};
use crate::{
    error::{Fault, ProxyError},
    tls::open::{Watch, is_about_time},
};
use http::{HeaderMap, HeaderName};
use postern_config::{Decision, Facts, Judgement, Reason, Verdict, snapshot::Workload};
use postern_identity::Peer;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Paths longer than this are cut in the log (bytes).
pub const PATH_KEPT: usize = 2048;
/// Other texts longer than this are cut in the log (bytes).
pub const TEXT_KEPT: usize = 256;
/// Reasons longer than this are cut in the log (bytes): two identities, a rule, and both clocks must fit.
pub const REASON_KEPT: usize = 1024;

/// One line of the access log in the making. Dropping it writes it: access line, metrics, span, exactly once.
pub struct Record {
    telemetry: Telemetry,
    // Taken by drop; boxed so that the futures of connections stay small.
    entry: Option<Box<Entry>>,
    scope: Scope,
    clock: Stopwatch,
    // Of the connection to the other sidecar: the one we accepted on the way in, the one we made on the way out.
    watch: Watch,
    // When the caller gives up, and how long it has waited by then.
    deadline: Option<(Instant, Duration)>,
}

/// What one record stands for.
enum Scope {
    Connection { carried_requests: bool, open: Open },
    Request,
}

impl Record {
    /// Opens the record of a connection, as soon as its addresses are known. `telemetry.connection(..)` is the same.
    pub fn open(
        telemetry: &Telemetry,
        direction: Direction,
        downstream: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        telemetry.metrics().connection_opened(direction);
        Self {
            telemetry: telemetry.clone(),
            entry: Some(Box::new(Entry::new(direction, SystemTime::now(), downstream, destination))),
            scope: Scope::Connection {
                carried_requests: false,
                open: telemetry.connections().enter(direction, downstream, destination),
            },
            clock: Stopwatch::started(Instant::now()),
            watch: Watch::default(),
            deadline: None,
        }
    }

    /// The record of one request on this connection: inherits addresses, peer, TLS facts. From the first request on, the connection itself writes no line.
    pub fn request(&mut self) -> Record {
        if let Scope::Connection { carried_requests, open } = &mut self.scope {
            *carried_requests = true;
            open.count_request();
        }
        let entry = self.entry.as_ref().map(|connection| {
            Box::new(Entry {
                began: SystemTime::now(),
                // What the connection's own end says is not what the request's end says.
                decided: None,
                flag: "-",
                reason: None,
                refusal: None,
                status: None,
                grpc_status: None,
                bytes_received: 0,
                bytes_sent: 0,
                trace: None,
                request: None,
                ..(**connection).clone()
            })
        });
        Record {
            telemetry: self.telemetry.clone(),
            entry,
            scope: Scope::Request,
            clock: Stopwatch::started(Instant::now()),
            watch: self.watch.clone(),
            deadline: None,
        }
    }

    /// The caller waits for so long and no longer: dropped without an answer after that, the deadline is the reason, and the
    /// caller was told so (gRPC status 4).
    pub fn set_deadline(&mut self, patience: Duration) {
        let deadline = Instant::now().checked_add(patience).map(|end| (end, patience));
        // Of several the first counts.
        self.deadline = [self.deadline, deadline].into_iter().flatten().min();
    }

    /// The connection to the other sidecar: when it is closed since its peer is not trusted any more, that is how this ended.
    pub fn set_watch(&mut self, watch: Watch) {
        self.watch = watch;
    }

    /// The connection to the other sidecar; one that never ends when there is none.
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// The verified other end: the caller on the way in, the called on the way out.
    pub fn set_peer(&mut self, peer: &Peer) {
        let id = Arc::from(peer.id().as_str());
        self.show(|open| open.set_peer(&id));
        let id = Some(id);
        self.note(|entry| match entry.direction {
            Direction::Inbound => entry.source_principal = id,
            Direction::Outbound => entry.destination_principal = id,
        });
    }

    /// Our own SPIFFE ID.
    pub fn set_own_identity(&mut self, id: &str) {
        let id = Some(Arc::from(id));
        self.note(|entry| match entry.direction {
            Direction::Inbound => entry.destination_principal = id,
            Direction::Outbound => entry.source_principal = id,
        });
    }

    /// Facts of the TLS connection on the mesh side.
    pub fn set_tls(&mut self, facts: &crate::tls::TlsFacts) {
        let sni = facts.sni.as_deref().map(|sni| Arc::from(cut(sni, TEXT_KEPT)));
        self.note(|entry| {
            entry.tls_version = facts.version;
            entry.sni = sni;
        });
    }

    /// `http/1.1`, `http/2`, `grpc`, `tcp`.
    pub fn set_protocol(&mut self, protocol: &'static str) {
        self.show(|open| open.set_protocol(protocol));
        self.note(|entry| entry.protocol = Some(protocol));
    }

    /// Method, authority and path (without query) as decided on; continues the trace that the headers name, or starts one.
    pub fn set_request(
        &mut self,
        method: &http::Method,
        authority: &str,
        path: &str,
        headers: &http::HeaderMap,
    ) {
        let id = headers.get(&REQUEST_ID).and_then(|id| id.to_str().ok());
        let without_query = path.split('?').next().unwrap_or_default();
        let (trace, noted) = if self.telemetry.told().is_said() {
            self.begin_as_told(headers)
        } else {
            (self.telemetry.trace(None, headers), None)
        };
        let request = Request {
            method: method.clone(),
            authority: cut(authority, TEXT_KEPT).to_owned(),
            path: cut(without_query, PATH_KEPT).to_owned(),
            id: id.map(|id| cut(id, TEXT_KEPT).to_owned()),
            headers: named(self.telemetry.logged_headers(), headers),
            noted,
        };
        self.note(|entry| {
            entry.request = Some(request);
            entry.trace = trace;
        });
    }

    /// The trace that a `Telemetry` wants, and the headers that it looks at. Out of the way of the many for whom nobody says anything.
    #[cold]
    fn begin_as_told(&self, headers: &HeaderMap) -> (Option<Trace>, Option<Box<Noted>>) {
        let said = self.telemetry.told().said();
        let way = said.as_ref().zip(self.entry.as_ref()).map(|(said, entry)| said.of(entry.direction));
        let noted = way.filter(|way| !way.headers.is_empty());
        let noted = noted.map(|way| Box::new(Noted(named(&way.headers, headers))));
        (self.telemetry.trace(way, headers), noted)
    }

    /// The request ID that we made, where the client sent none: by it the lines of both sidecars are found.
    pub fn set_request_id(&mut self, made: Option<http::HeaderValue>) {
        let Some(made) = made else { return };
        self.note(|entry| {
            if let Some(request) = &mut entry.request {
                request.id = made.to_str().ok().map(str::to_owned);
            }
        });
    }

    /// Our span as the parent of what follows. Where no spans are sent, the caller's headers stay: a parent that nobody ever
    /// sees would break its trace.
    pub fn pass_trace_on(&self, headers: &mut http::HeaderMap) {
        if self.telemetry.is_tracing()
            && let Some(trace) = self.entry.as_ref().and_then(|entry| entry.trace)
            && trace.is_ours()
        {
            trace.pass_on(headers);
        }
    }

    /// The decision with its reason, and what dry-run and AUDIT policies have to say beside it. A denial makes a decision
    /// id and remembers the facts for `GET /decisions/<id>`.
    pub fn set_decision(
        &mut self,
        judgement: &Judgement<'_>,
        facts: &Facts<'_>,
        workload: &Workload,
        policy_version: &Arc<str>,
    ) {
        let decision = &judgement.decision;
        let is_allowed = decision.verdict == Verdict::Allow;
        let rule = match decision.reason {
            Reason::Rule(rule) => Some(rule.clone()),
            Reason::NoPolicy | Reason::DefaultDeny => None,
        };
        let reason = in_words(decision);
        let id = (!is_allowed).then(|| format!("{:016x}", rand::random::<u64>()));
        if let Some(id) = &id {
            let denial =
                Denial::new(id.clone(), SystemTime::now(), policy_version, reason, rule.clone(), facts);
            self.telemetry.denials().remember(denial);
        }
        let version = policy_version.clone();
        let (would, audit) = (would(judgement, workload), judgement.audit.cloned());
        let decided = Decided { is_allowed, id, rule, reason, version, would, audit };
        self.note(|entry| entry.decided = Some(decided));
    }

    /// Set by a denial.
    pub fn decision_id(&self) -> Option<&str> {
        self.entry.as_ref()?.decided.as_ref()?.id.as_deref()
    }

    /// Where we connect to, and whom we expect there.
    pub fn set_upstream(&mut self, address: SocketAddr, identity: Option<&str>) {
        let identity = identity.map(Arc::from);
        self.note(|entry| {
            entry.upstream_address = Some(address);
            if identity.is_some() && entry.direction == Direction::Outbound {
                entry.destination_principal = identity;
            }
        });
    }

    /// Destination service host, for labels.
    pub fn set_service(&mut self, host: &str) {
        let host = Arc::from(cut(host, TEXT_KEPT));
        self.show(|open| open.set_service(&host));
        self.note(|entry| entry.destination_service = Some(host));
    }

    /// HTTP status sent to downstream.
    pub fn set_status(&mut self, status: u16) {
        self.note(|entry| entry.status = Some(status));
    }

    /// gRPC status sent to downstream.
    pub fn set_grpc_status(&mut self, status: u16) {
        self.note(|entry| entry.grpc_status = Some(status));
    }

    /// How it failed. The first failure is the cause, later ones follow from it: the first stays.
    pub fn set_error(&mut self, error: &ProxyError) {
        let Some(entry) = &mut self.entry else { return };
        if entry.reason.is_some() {
            return;
        }
        // Whatever failed on a connection that we have cut failed by that.
        let cut = self.watch.refusal().map(|refusal| match entry.direction {
            Direction::Inbound => ProxyError::PeerDistrusted(refusal),
            Direction::Outbound => ProxyError::UpstreamDistrusted(refusal),
        });
        let error = cut.as_ref().unwrap_or(error);
        let mut reason = error.to_string();
        let metrics = self.telemetry.metrics();
        if let Some(refusal) = error.refusal() {
            if is_about_time(refusal)
                && let Some(skew) = metrics.clock_skew()
            {
                reason.push_str(&format!("; the authority's clock is {skew:+.1} s from ours"));
            }
            // Open connections are counted where they are judged, once each and not once a request.
            if cut.is_none() {
                metrics.peer_refused(entry.direction, refusal.code());
            }
        }
        let is_refusal = error.fault() == Fault::Policy || error.refusal().is_some();
        entry.flag = error.flag();
        entry.reason = Some(reason);
        entry.refusal = is_refusal.then(|| error.code());
    }

    /// From downstream.
    pub fn add_received(&mut self, bytes: u64) {
        self.note(|entry| entry.bytes_received = entry.bytes_received.saturating_add(bytes));
    }

    /// To downstream.
    pub fn add_sent(&mut self, bytes: u64) {
        self.note(|entry| entry.bytes_sent = entry.bytes_sent.saturating_add(bytes));
    }

    /// Called when we hand the request to the other side: from here on the time is not ours.
    pub fn upstream_started(&mut self, now: Instant) {
        self.clock.wait(now);
    }

    /// Called when the other side's answer begins (or, for TCP, when it is connected): the time is ours again. For a
    /// connection this is the end of our share: what follows is copying, as fast as the two ends are.
    pub fn upstream_answered(&mut self, now: Instant) {
        self.clock.resume(now);
        if matches!(self.scope, Scope::Connection { .. }) {
            self.clock.stop(now);
        }
    }

    /// Called when the head of the answer is handed to downstream: a body that streams afterwards takes the time of
    /// the two ends, not ours.
    pub fn answer_handed_over(&mut self) {
        self.clock.stop(Instant::now());
    }

    /// What people see of an open connection.
    fn show(&self, write: impl FnOnce(&Open)) {
        if let Scope::Connection { open, .. } = &self.scope {
            write(open);
        }
    }

    fn note(&mut self, write: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut self.entry {
            write(entry);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else { return };
        let now = Instant::now();
        (entry.duration, entry.proxy) = self.clock.read(now);
        entry.upstream_time = (!self.clock.waited.is_zero()).then_some(self.clock.waited);
        match self.scope {
            Scope::Connection { carried_requests, .. } => {
                self.telemetry.metrics().connection_closed(entry.direction);
                if carried_requests {
                    return;
                }
            }
            Scope::Request if entry.reason.is_none() && self.watch.refusal().is_some() => {
                self.entry = Some(entry);
                self.set_error(&ProxyError::DownstreamGone);
                let Some(noted) = self.entry.take() else { return };
                entry = noted;
            }
            Scope::Request
                if entry.status.is_none()
                    && entry.reason.is_none()
                    && self.deadline.is_some_and(|(end, _)| now >= end) =>
            {
                let patience = self.deadline.map_or(Duration::ZERO, |(_, patience)| patience);
                let error = ProxyError::DeadlineExceeded(patience);
                (entry.status, entry.grpc_status) = if entry.protocol == Some("grpc") {
                    (Some(200), Some(error.grpc_status()))
                } else {
                    (Some(error.row().http_status), None)
                };
                (entry.flag, entry.reason) = (error.flag(), Some(error.to_string()));
            }
            Scope::Request
                if entry.status.is_none() && entry.reason.is_none() && self.telemetry.is_over() =>
            {
                let error = ProxyError::Draining;
                (entry.flag, entry.reason) = (error.flag(), Some(error.to_string()));
            }
            // The server dropped the exchange before we could answer: the client is gone.
            Scope::Request if entry.status.is_none() && entry.reason.is_none() => {
                entry.flag = "DC";
                entry.reason = Some("downstream went away before the answer".to_owned());
            }
            Scope::Request => {}
        }
        if std::thread::panicking() {
            self.telemetry.metrics().panicked();
            entry.flag = "LR";
            entry.reason = Some("internal: the proxy failed on this one".to_owned());
        }
        self.telemetry.write(entry);
    }
}

/// The headers that the access log shall have, as far as they are there; several of one name with a comma between them.
fn named(names: &[HeaderName], headers: &HeaderMap) -> Vec<(HeaderName, String)> {
    let value = |name: &HeaderName| {
        let mut all = headers.get_all(name).iter();
        let mut text = String::from_utf8_lossy(all.next()?.as_bytes()).into_owned();
        for more in all {
            if text.len() >= TEXT_KEPT {
                break;
            }
            text.push(',');
            text.push_str(&String::from_utf8_lossy(more.as_bytes()));
        }
        text.truncate(cut(&text, TEXT_KEPT).len());
        text.shrink_to_fit();
        Some((name.clone(), text))
    };
    names.iter().filter_map(value).collect()
}

/// Divides the time of a record into ours and the other side's.
struct Stopwatch {
    started: Instant,
    waited: Duration,
    waiting_since: Option<Instant>,
    stopped: Option<Instant>,
}

impl Stopwatch {
    fn started(now: Instant) -> Self {
        Self { started: now, waited: Duration::ZERO, waiting_since: None, stopped: None }
    }

    fn wait(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    fn resume(&mut self, now: Instant) {
        if let Some(since) = self.waiting_since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    fn stop(&mut self, now: Instant) {
        self.resume(now);
        self.stopped.get_or_insert(now);
    }

    /// (total, ours)
    fn read(&mut self, now: Instant) -> (Duration, Duration) {
        self.stop(now);
        let total = now.saturating_duration_since(self.started);
        let until = self.stopped.unwrap_or(now).saturating_duration_since(self.started);
        (total, until.saturating_sub(self.waited))
    }
}

/// What the dry-run policies would change; nothing in the usual case.
fn would(judgement: &Judgement<'_>, workload: &Workload) -> Option<Box<Would>> {
    let is_allowed = judgement.dry_run?.verdict == Verdict::Allow;
    let blamed = judgement.would_blame();
    Some(Box::new(Would {
        is_allowed,
        policy: blamed.map(|(namespace, policy, _)| format!("{namespace}/{policy}")),
        rule: blamed.and_then(|(.., rule)| rule),
        workload: format!("{}/{}", workload.namespace, workload.name),
    }))
}

fn in_words(decision: &Decision<'_>) -> &'static str {
    match (decision.verdict, decision.reason) {
        (Verdict::Deny, Reason::DefaultDeny) => "default deny: no ALLOW rule matched",
        (Verdict::Deny, _) => "DENY rule matched",
        (Verdict::Allow, Reason::Rule(_)) => "ALLOW rule matched",
        (Verdict::Allow, _) => "no ALLOW policy applies",
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
