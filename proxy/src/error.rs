//! Why traffic failed: a closed list and one table that answers everything about each entry.
//!
//! `docs/errors.md` is printed from [`table`]. What the other side is told is the short public text; the `Display` of the
//! error, with its detail, goes to the log only.

use postern_identity::{Refusal, SpiffeId};
use tracing::Level;

/// Whose fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault {
    Downstream,
    Upstream,
    Policy,
    Us,
}

/// Everything that can go wrong with a connection or a request.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProxyError {
    #[error("no policy received yet; refusing until the control plane has spoken")]
    NoSnapshot,
    #[error("no usable certificate: {0}")]
    NoCertificate(String),
    #[error("connection to the proxy's own port {0}: a loop")]
    Loop(u16),
    #[error("plaintext on a port that is STRICT")]
    PlaintextRefused,
    #[error("TLS from the peer failed: {0}")]
    DownstreamTls(String),
    #[error("peer certificate refused by {own}: {refusal}")]
    PeerRefused { own: SpiffeId, refusal: Box<Refusal> },
    #[error("the peer is not trusted any more: {0}")]
    PeerDistrusted(Refusal),
    #[error("nothing decisive was received before the deadline")]
    DownstreamTimeout,
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    #[error("method not allowed: {0}")]
    MethodNotAllowed(&'static str),
    #[error("request target longer than {0} bytes")]
    TargetTooLong(usize),
    #[error("request headers too large: {0}")]
    HeadersTooLarge(String),
    #[error("expectation that cannot be met: {0}")]
    ExpectationFailed(&'static str),
    #[error("Host {host} on a connection that was opened for the server name {sni}")]
    Misdirected { sni: String, host: String },
    #[error("flood of HTTP/2 frames")]
    Flood,
    #[error("RBAC: access denied")]
    Denied,
    #[error("upgrade to {0} is not allowed any more")]
    UpgradeWithdrawn(String),
    #[error("no endpoint for {0}")]
    NoEndpoint(String),
    #[error("outbound traffic to {0} is blocked by REGISTRY_ONLY")]
    Blocked(std::net::SocketAddr),
    #[error("destination {0} could not be resolved in time")]
    ResolveTimeout(std::net::SocketAddr),
    #[error("as much is under way to the service as {0} allows")]
    CircuitOpen(&'static str),
    #[error("connect to {address} failed: {cause}")]
    Connect { address: std::net::SocketAddr, cause: std::io::Error },
    #[error("TLS to {address} failed: {cause}")]
    UpstreamTls { address: std::net::SocketAddr, cause: String },
    #[error("TLS to {address} failed: expected {expected}, refused: {refusal}")]
    UpstreamRefused { address: std::net::SocketAddr, expected: SpiffeId, refusal: Box<Refusal> },
    #[error("the upstream is not trusted any more: {0}")]
    UpstreamDistrusted(Refusal),
    #[error("upstream ended the exchange: {0}")]
    UpstreamReset(String),
    #[error("upstream broke the protocol: {0}")]
    UpstreamProtocol(String),
    #[error("no answer before the deadline that the caller set: {0:?}")]
    DeadlineExceeded(std::time::Duration),
    #[error("downstream went away")]
    DownstreamGone,
    #[error("shutting down")]
    Draining,
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    #[error("internal: {0}")]
    Internal(String),
}

/// One line of the table: what an error means to everyone who meets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Stable slug: `type` and `code` of a problem+json answer, `reason` of metrics, anchor in `docs/errors.md`.
    pub code: &'static str,
    /// Whose fault.
    pub fault: Fault,
    /// Whether another attempt is safe, since nothing can have been processed.
    pub retryable: bool,
    /// Status of the answer when one can still be sent.
    pub http_status: u16,
    /// gRPC status code of the same answer (google.rpc.Code).
    pub grpc_status: u16,
    /// Envoy's response flag in the access log, `-` when Envoy sets none.
    pub flag: &'static str,
    /// How loud the log is.
    pub level: Level,
    /// What the other side may read.
    pub public_text: &'static str,
    /// What it means and what to do, for `docs/errors.md`.
    pub help: &'static str,
}

macro_rules! rows {
    ($($name:ident: $code:literal, $fault:ident, $retryable:literal, $http:literal, $grpc:literal, $flag:literal, $level:ident, $public:literal, $help:literal;)*) => {
        $(static $name: Row = Row {
            code: $code, fault: Fault::$fault, retryable: $retryable, http_status: $http, grpc_status: $grpc,
            flag: $flag, level: Level::$level, public_text: $public, help: $help,
        };)*
        /// Every row, in the order of [`ProxyError`].
        pub fn table() -> Vec<Row> { vec![$($name.clone()),*] }
    };
}

// code, fault, may be retried, HTTP, gRPC, flag, level, public text, help
rows! {
    NO_SNAPSHOT: "no-policy", Us, true, 503, 14, "NR", WARN, "not ready", "The sidecar has not received its policy yet and refuses everything until then. Look at the readiness probe and at the control plane's log.";
    NO_CERTIFICATE: "no-certificate", Us, true, 503, 14, "NR", WARN, "not ready", "The sidecar has no certificate that it may use (none yet, ended, or below a revoked authority) and refuses everything that needs one. The access log says which; look at the authority's log for the refused attestation.";
    LOOP: "loop", Downstream, false, 508, 13, "NR", INFO, "loop detected", "Something connected to the sidecar's own port. Address the application's port instead.";
    PLAINTEXT_REFUSED: "plaintext-refused", Policy, false, 403, 16, "NR", INFO, "mutual TLS required", "A caller without mutual TLS reached a STRICT port and was reset. Put the caller into the mesh, or make the port PERMISSIVE with a PeerAuthentication.";
    DOWNSTREAM_TLS: "downstream-tls", Downstream, false, 403, 16, "DPE", INFO, "TLS handshake failed", "The caller's TLS handshake did not complete. The log names the reason.";
    PEER_REFUSED: "peer-refused", Downstream, false, 403, 16, "DPE", INFO, "certificate refused", "The caller's certificate breaks a rule of SPIFFE or is not signed by a trusted authority. The log names the rule.";
    PEER_DISTRUSTED: "peer-distrusted", Downstream, false, 403, 16, "DPE", INFO, "certificate refused", "The caller was trusted when it connected and is not any more: its certificate has ended, or an authority above it was removed or revoked. The connection was closed; the log names the rule.";
    DOWNSTREAM_TIMEOUT: "downstream-timeout", Downstream, false, 408, 4, "DT", INFO, "request timeout", "The caller opened a connection and did not send a complete request or handshake in time.";
    BAD_REQUEST: "bad-request", Downstream, false, 400, 3, "DPE", INFO, "bad request", "The request has no single safe reading (RFC 9112, RFC 9113), so no policy could be applied to it. The log names the rule.";
    METHOD_NOT_ALLOWED: "method-not-allowed", Downstream, false, 405, 12, "DPE", INFO, "method not allowed", "CONNECT is not forwarded where HTTP is spoken. Declare the port of an app that is a proxy itself as TCP (`tcp-…`): then it passes, and policy speaks of identity and port.";
    TARGET_TOO_LONG: "target-too-long", Downstream, false, 414, 3, "DPE", INFO, "request target too long", "The path is longer than the sidecar accepts.";
    HEADERS_TOO_LARGE: "headers-too-large", Downstream, false, 431, 8, "DPE", INFO, "request header fields too large", "More than 100 header lines or more than 64 KiB of them; in the caller's own sidecar 92 and 63 KiB, since it adds some for the other.";
    EXPECTATION_FAILED: "expectation-failed", Downstream, false, 417, 3, "DPE", INFO, "expectation failed", "The request carries an Expect other than 100-continue.";
    MISDIRECTED: "misdirected", Downstream, false, 421, 3, "DPE", INFO, "misdirected request", "The TLS connection was opened for one host name and the request names another. Open a connection for each host, or none with a server name.";
    FLOOD: "flood", Downstream, false, 429, 8, "DPE", INFO, "enhance your calm", "More HTTP/2 frames that carry nothing (WINDOW_UPDATE, PRIORITY, PING, SETTINGS, unknown types) than any honest peer sends. The connection was ended with GOAWAY and ENHANCE_YOUR_CALM.";
    DENIED: "policy-denied", Policy, false, 403, 7, "-", INFO, "RBAC: access denied", "An AuthorizationPolicy denies the call. The access log names policy and rule; GET /decisions/<id> on the admin port explains the decision.";
    UPGRADE_WITHDRAWN: "upgrade-withdrawn", Policy, false, 403, 7, "-", INFO, "upgrade not allowed", "A tunnel was open for a protocol that `postern.dev/upgrades` of the sidecar's pod does not name any more. It was closed.";
    NO_ENDPOINT: "no-endpoint", Upstream, true, 503, 14, "UH", WARN, "no healthy upstream", "The service has no endpoints, or all are ejected (outlierDetection; GET /ejections on the admin port lists them). Check that its selector matches running pods, or that the name of the ServiceEntry can be looked up.";
    BLOCKED: "outbound-blocked", Policy, false, 502, 7, "UH", INFO, "outbound traffic blocked", "outboundTrafficPolicy is REGISTRY_ONLY and the destination is neither a service of the mesh nor a name or address of a ServiceEntry that this namespace sees.";
    RESOLVE_TIMEOUT: "resolve-timeout", Us, true, 503, 14, "NC", WARN, "destination unknown", "The control plane did not say in time where the destination is. Is it reachable?";
    CIRCUIT_OPEN: "circuit-open", Upstream, false, 503, 14, "UO", WARN, "upstream overloaded", "As many requests or connections are under way to the service as connectionPool of its DestinationRule allows; the log names the limit. The answer carries x-envoy-overloaded: true.";
    CONNECT: "connect-failure", Upstream, true, 503, 14, "UF", WARN, "upstream connect error", "No TCP connection to the application or endpoint. Is it running, and listening on this port?";
    UPSTREAM_TLS: "upstream-tls", Upstream, true, 503, 14, "UF", WARN, "upstream connect error", "The other end did not prove the expected identity; the request was not sent. The log names what it showed.";
    UPSTREAM_REFUSED: "upstream-refused", Upstream, true, 503, 14, "UF", WARN, "upstream connect error", "The certificate of the other end breaks a rule of SPIFFE, is not signed by a trusted authority, or belongs to somebody else; the request was not sent. The log names the rule and the identity.";
    UPSTREAM_DISTRUSTED: "upstream-distrusted", Upstream, false, 503, 14, "UC", WARN, "upstream connection terminated", "The other end was trusted when we connected and is not any more: its certificate has ended, or an authority above it was removed or revoked. The connection was closed; the log names the rule.";
    UPSTREAM_RESET: "upstream-reset", Upstream, false, 503, 14, "UC", WARN, "upstream connection terminated", "The other end closed the connection before its answer was complete. Non-idempotent requests are not repeated.";
    UPSTREAM_PROTOCOL: "upstream-protocol", Upstream, false, 502, 14, "UPE", WARN, "upstream protocol error", "The answer of the other end was not valid HTTP, or it is not an HTTP server: check the port's name or appProtocol.";
    DEADLINE_EXCEEDED: "deadline-exceeded", Upstream, false, 504, 4, "UT", INFO, "deadline exceeded", "The caller's grpc-timeout, or the `postern.dev/request-timeout` of the DestinationRule, was over before the answer had come.";
    DOWNSTREAM_GONE: "downstream-gone", Downstream, false, 499, 1, "DC", DEBUG, "client closed the connection", "The caller closed the connection before it had the whole answer.";
    DRAINING: "draining", Us, true, 503, 14, "LR", INFO, "shutting down", "The sidecar is stopping and its drain deadline is over.";
    OVERLOADED: "overloaded", Us, true, 503, 14, "OM", WARN, "overloaded", "The sidecar has reached a limit: connections in all or of one source, or its share of memory. New work is refused so that what runs can go on; `postern_shed_total` says which limit.";
    INTERNAL: "internal", Us, false, 500, 13, "-", ERROR, "internal error", "A defect of the sidecar. Please report it with the log line.";
}

impl ProxyError {
    /// The line of the table that tells everything about this error.
    pub fn row(&self) -> &'static Row {
        match self {
            Self::NoSnapshot => &NO_SNAPSHOT,
            Self::NoCertificate(_) => &NO_CERTIFICATE,
            Self::Loop(_) => &LOOP,
            Self::PlaintextRefused => &PLAINTEXT_REFUSED,
            Self::DownstreamTls(_) => &DOWNSTREAM_TLS,
            Self::PeerRefused { .. } => &PEER_REFUSED,
            Self::PeerDistrusted(_) => &PEER_DISTRUSTED,
            Self::DownstreamTimeout => &DOWNSTREAM_TIMEOUT,
            Self::BadRequest(_) => &BAD_REQUEST,
            Self::MethodNotAllowed(_) => &METHOD_NOT_ALLOWED,
            Self::TargetTooLong(_) => &TARGET_TOO_LONG,
            Self::HeadersTooLarge(_) => &HEADERS_TOO_LARGE,
            Self::ExpectationFailed(_) => &EXPECTATION_FAILED,
            Self::Misdirected { .. } => &MISDIRECTED,
            Self::Flood => &FLOOD,
            Self::Denied => &DENIED,
            Self::UpgradeWithdrawn(_) => &UPGRADE_WITHDRAWN,
            Self::NoEndpoint(_) => &NO_ENDPOINT,
            Self::Blocked(_) => &BLOCKED,
            Self::ResolveTimeout(_) => &RESOLVE_TIMEOUT,
            Self::CircuitOpen(_) => &CIRCUIT_OPEN,
            Self::Connect { .. } => &CONNECT,
            Self::UpstreamTls { .. } => &UPSTREAM_TLS,
            Self::UpstreamRefused { .. } => &UPSTREAM_REFUSED,
            Self::UpstreamDistrusted(_) => &UPSTREAM_DISTRUSTED,
            Self::UpstreamReset(_) => &UPSTREAM_RESET,
            Self::UpstreamProtocol(_) => &UPSTREAM_PROTOCOL,
            Self::DeadlineExceeded(_) => &DEADLINE_EXCEEDED,
            Self::DownstreamGone => &DOWNSTREAM_GONE,
            Self::Draining => &DRAINING,
            Self::Overloaded(_) => &OVERLOADED,
            Self::Internal(_) => &INTERNAL,
        }
    }
    /// The rule that a certificate breaks, when that is the error.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::PeerDistrusted(refusal) | Self::UpstreamDistrusted(refusal) => Some(refusal),
            Self::PeerRefused { refusal, .. } | Self::UpstreamRefused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
    /// Stable slug.
    pub fn code(&self) -> &'static str {
        self.row().code
    }
    /// Whose fault.
    pub fn fault(&self) -> Fault {
        self.row().fault
    }
    /// Envoy's response flag.
    pub fn flag(&self) -> &'static str {
        self.row().flag
    }
    /// Status of the answer when one can still be sent.
    pub fn http_status(&self) -> u16 {
        self.row().http_status
    }
    /// gRPC status of the same answer.
    pub fn grpc_status(&self) -> u16 {
        self.row().grpc_status
    }
    /// Whether another attempt is safe.
    pub fn is_retryable(&self) -> bool {
        self.row().retryable
    }
    /// How loud the log is.
    pub fn level(&self) -> Level {
        self.row().level
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_row_has_its_own_code_and_a_valid_status() {
        let rows = table();
        assert_eq!(rows.iter().map(|row| row.code).collect::<BTreeSet<_>>().len(), rows.len());
        for row in &rows {
            assert!((400..600).contains(&row.http_status), "{}", row.code);
            assert!((1..=16).contains(&row.grpc_status), "{}", row.code);
            assert!(row.code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", row.code);
            assert!(row.help.ends_with(['.', '?']), "{}", row.code);
        }
    }

    #[test]
    fn every_error_is_in_the_table() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let all = [
            ProxyError::NoSnapshot,
            ProxyError::NoCertificate(String::new()),
            ProxyError::Loop(1),
            ProxyError::PlaintextRefused,
            ProxyError::DownstreamTls(String::new()),
            ProxyError::PeerDistrusted(Refusal::NoUriSan),
            ProxyError::PeerRefused {
                own: "spiffe://td/x".parse().unwrap(),
                refusal: Box::new(Refusal::NoUriSan),
            },
            ProxyError::UpstreamRefused {
                address,
                expected: "spiffe://td/x".parse().unwrap(),
                refusal: Box::new(Refusal::NoUriSan),
            },
            ProxyError::UpstreamDistrusted(Refusal::NoUriSan),
            ProxyError::DownstreamTimeout,
            ProxyError::BadRequest(""),
            ProxyError::MethodNotAllowed(""),
            ProxyError::TargetTooLong(1),
            ProxyError::HeadersTooLarge(String::new()),
            ProxyError::ExpectationFailed(""),
            ProxyError::Misdirected { sni: String::new(), host: String::new() },
            ProxyError::Flood,
            ProxyError::Denied,
            ProxyError::UpgradeWithdrawn(String::new()),
            ProxyError::NoEndpoint(String::new()),
            ProxyError::Blocked(address),
            ProxyError::ResolveTimeout(address),
            ProxyError::CircuitOpen(""),
            ProxyError::Connect { address, cause: std::io::Error::other("") },
            ProxyError::UpstreamTls { address, cause: String::new() },
            ProxyError::UpstreamReset(String::new()),
            ProxyError::UpstreamProtocol(String::new()),
            ProxyError::DeadlineExceeded(std::time::Duration::ZERO),
            ProxyError::DownstreamGone,
            ProxyError::Draining,
            ProxyError::Overloaded(""),
            ProxyError::Internal(String::new()),
        ];
        let rows = table();
        assert!(all.iter().all(|error| rows.contains(error.row())));
        assert_eq!(all.len(), rows.len(), "every variant is listed");
    }

    #[test]
    fn nothing_that_may_have_been_processed_is_retryable() {
        assert!(!ProxyError::UpstreamReset(String::new()).is_retryable());
        assert!(!ProxyError::Denied.is_retryable());
    }
}
