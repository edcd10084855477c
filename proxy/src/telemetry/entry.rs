//! A finished record: the facts of one request or connection, owned, ready to be told.

use super::trace_context::Trace;
use http::HeaderName;
use postern_config::RuleRef;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

/// Which journey.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the network to our app.
    Inbound,
    /// From our app to the network.
    Outbound,
}

impl Direction {
    /// As the access log writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }

    /// Istio's `reporter` label.
    pub fn reporter(self) -> &'static str {
        match self {
            Self::Inbound => "destination",
            Self::Outbound => "source",
        }
    }
}

/// How policy decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// Allowed or denied.
    pub is_allowed: bool,
    /// Made for denials only; key of `/decisions/<id>`.
    pub id: Option<String>,
    /// The rule that decided, and its policy.
    pub rule: Option<Arc<RuleRef>>,
    /// In words.
    pub reason: &'static str,
    /// Version of the policy that decided.
    pub version: Arc<str>,
    /// What the dry-run policies would change.
    pub would: Option<Box<Would>>,
    /// The first AUDIT rule that matched, and its policy.
    pub audit: Option<Arc<RuleRef>>,
}

/// The other verdict that the dry-run policies would give, were they enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Would {
    /// Allowed or denied then.
    pub is_allowed: bool,
    /// `namespace/name` of the dry-run policy that makes the difference.
    pub policy: Option<String>,
    /// Index of its rule; `None` when the policy denies by default.
    pub rule: Option<usize>,
    /// `namespace/pod` of the workload that decided.
    pub workload: String,
}

/// Method, authority and path as decided on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// As sent.
    pub method: http::Method,
    /// Host and port as the client named them.
    pub authority: String,
    /// Normalized, without query.
    pub path: String,
    /// `x-request-id`: the client's, or the one that we made.
    pub id: Option<String>,
    /// Those headers that the access log shall have, each at most 256 bytes.
    pub headers: Vec<(HeaderName, String)>,
    /// Those that a filter or a custom tag looks at; they are in no line.
    pub noted: Option<Box<Noted>>,
}

/// Headers that somebody looks at, each at most 256 bytes. Apart, since nearly nobody does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Noted(pub Vec<(HeaderName, String)>);

/// Everything that is told about one request or connection.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which journey.
    pub direction: Direction,
    /// When it began.
    pub began: SystemTime,
    /// From beginning to end.
    pub duration: Duration,
    /// The part of it spent in the proxy itself.
    pub proxy: Duration,
    /// Until the other side's answer began; `None` when it was not asked.
    pub upstream_time: Option<Duration>,
    /// `http/1.1`, `http/2`, `grpc`, `tcp`.
    pub protocol: Option<&'static str>,
    /// `None` for a connection.
    pub request: Option<Request>,
    /// HTTP status sent to downstream.
    pub status: Option<u16>,
    /// gRPC status sent to downstream.
    pub grpc_status: Option<u16>,
    /// Envoy's short code, `-` when all is well.
    pub flag: &'static str,
    /// How it ended, when not well.
    pub reason: Option<String>,
    /// Code of the error, when it is a refusal: mutual TLS that was asked for, a certificate, a policy.
    pub refusal: Option<&'static str>,
    /// SPIFFE ID of the caller, when verified.
    pub source_principal: Option<Arc<str>>,
    /// SPIFFE ID of the called, when verified.
    pub destination_principal: Option<Arc<str>>,
    /// Direct peer of the socket.
    pub source_address: SocketAddr,
    /// Original destination.
    pub destination_address: SocketAddr,
    /// Host of the destination service.
    pub destination_service: Option<Arc<str>>,
    /// Where we connected to.
    pub upstream_address: Option<SocketAddr>,
    /// Policy's decision.
    pub decided: Option<Decided>,
    /// From downstream.
    pub bytes_received: u64,
    /// To downstream.
    pub bytes_sent: u64,
    /// Trace, span and parent.
    pub trace: Option<Trace>,
    /// E.g. `TLSv1.3`; of the mesh side.
    pub tls_version: Option<&'static str>,
    /// Server name asked for.
    pub sni: Option<Arc<str>>,
}

/// Several, each where its record had it: moving one is no copy.
#[allow(clippy::vec_box)]
pub type Entries = Vec<Box<Entry>>;

impl Entry {
    /// A new one with nothing known but its addresses.
    pub fn new(
        direction: Direction,
        began: SystemTime,
        source_address: SocketAddr,
        destination_address: SocketAddr,
    ) -> Self {
        Self {
            direction,
            began,
            duration: Duration::ZERO,
            proxy: Duration::ZERO,
            upstream_time: None,
            protocol: None,
            request: None,
            status: None,
            grpc_status: None,
            flag: "-",
            reason: None,
            refusal: None,
            source_principal: None,
            destination_principal: None,
            source_address,
            destination_address,
            destination_service: None,
            upstream_address: None,
            decided: None,
            bytes_received: 0,
            bytes_sent: 0,
            trace: None,
            tls_version: None,
            sni: None,
        }
    }

    /// The verified other end.
    pub fn peer(&self) -> &Option<Arc<str>> {
        match self.direction {
            Direction::Inbound => &self.source_principal,
            Direction::Outbound => &self.destination_principal,
        }
    }

    /// Why it counts as denied: policy's reason, or the code of the error.
    pub fn denial(&self) -> Option<&'static str> {
        match &self.decided {
            Some(decided) if !decided.is_allowed => Some(decided.reason),
            _ => self.refusal,
        }
    }

    /// Whether the app was called with a trace or, outbound, has called with one.
    pub fn is_traced(&self) -> bool {
        match self.direction {
            Direction::Inbound => self.trace.is_some(),
            Direction::Outbound => self.trace.is_some_and(|trace| trace.parent.is_some()),
        }
    }

    /// Istio's `request_protocol`: `http`, `grpc` or `tcp`.
    pub fn request_protocol(&self) -> &'static str {
        match self.protocol {
            Some("grpc") => "grpc",
            Some(protocol) if protocol.starts_with("http") => "http",
            _ if self.request.is_some() => "http",
            _ => "tcp",
        }
    }
}

#[cfg(test)]
pub(super) mod samples {
    //! Calls as tests want them.
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(crate) fn call(peer: Option<&str>, path: &str) -> Entry {
        let address = "10.0.0.1:8080".parse().unwrap();
        let mut entry = Entry::new(Direction::Inbound, SystemTime::UNIX_EPOCH, address, address);
        entry.source_principal = peer.map(Arc::from);
        entry.request = Some(Request {
            method: http::Method::GET,
            authority: "shop".into(),
            path: path.into(),
            id: None,
            headers: vec![],
            noted: None,
        });
        entry.status = Some(200);
        entry.duration = Duration::from_micros(100);
        entry.proxy = Duration::from_micros(30);
        entry.bytes_sent = 5;
        entry
    }

    pub(crate) fn denied(peer: &str, path: &str, id: &str) -> Entry {
        let mut entry = call(Some(peer), path);
        entry.status = Some(403);
        entry.decided = Some(Decided {
            is_allowed: false,
            id: Some(id.into()),
            rule: None,
            reason: "default deny: no ALLOW rule matched",
            version: "v1".into(),
            would: None,
            audit: None,
        });
        entry
    }
}
