//! Why traffic failed: a closed list and one table that answers everything about each entry.
use postern_identity::Refusal;
/// Whose fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault { Downstream, Upstream, Policy, Us }
/// Everything that can go wrong with a connection or a request.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProxyError {
    #[error("no policy received yet; refusing until the control plane has spoken")]
    NoSnapshot,
    #[error("no certificate yet; refusing until the authority has issued one")]
    NoCertificate,
    #[error("connection to the proxy's own port {0}: a loop")]
    Loop(u16),
    #[error("plaintext on a port that is STRICT")]
    PlaintextRefused,
    #[error("TLS from the peer failed: {0}")]
    DownstreamTls(String),
    #[error("peer certificate refused: {0}")]
    PeerRefused(Refusal),
    #[error("nothing decisive was received before the deadline")]
    DownstreamTimeout,
    #[error("malformed request: {0}")]
    BadRequest(&'static str),
    #[error("RBAC: access denied")]
    Denied,
    #[error("no endpoint for {0}")]
    NoEndpoint(String),
    #[error("outbound traffic to {0} is blocked by REGISTRY_ONLY")]
    Blocked(std::net::SocketAddr),
    #[error("destination {0} could not be resolved in time")]
    ResolveTimeout(std::net::SocketAddr),
    #[error("connect to {address} failed: {cause}")]
    Connect { address: std::net::SocketAddr, cause: std::io::Error },
    #[error("TLS to {address} failed: {cause}")]
    UpstreamTls { address: std::net::SocketAddr, cause: String },
    #[error("upstream ended the exchange: {0}")]
    UpstreamReset(String),
    #[error("upstream broke the protocol: {0}")]
    UpstreamProtocol(String),
    #[error("downstream went away")]
    DownstreamGone,
    #[error("shutting down")]
    Draining,
    #[error("too many connections")]
    Overloaded,
    #[error("internal: {0}")]
    Internal(String),
}
