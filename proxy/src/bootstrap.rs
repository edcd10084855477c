//! The only place that reads flags, environment and files: what a sidecar knows before it has spoken to anyone.
use std::{net::SocketAddr, path::PathBuf, time::Duration};
/// How connections reach us.
#[derive(Clone, Debug)]
pub enum Interception {
    /// Redirect rules bring them; the original destination is recovered from the kernel.
    Redirect { /** usually 15006, one per address family */ inbound: Vec<SocketAddr>, /** usually 15001 */ outbound: Vec<SocketAddr> },
    /// No rules and no privileges: each listener stands for one fixed original destination.
    Explicit { /** (bind, the app's address) */ inbound: Vec<(SocketAddr, SocketAddr)>, /** (bind, original destination) */ outbound: Vec<(SocketAddr, SocketAddr)> },
}
/// Where access-log lines go.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum AccessLogSink { Stdout, File(PathBuf), /** tests and embedding */ Channel(tokio::sync::mpsc::Sender<String>), Off }
/// Everything that is needed to start.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Bootstrap {
    pub instance: String,
    /// `ip:port` of the control plane.
    pub control_plane: SocketAddr,
    pub trust_domain: String,
    /// PEM of the authority's root, to trust the control plane at first contact.
    pub trust_bundle_pem: Vec<u8>,
    /// One-use join token; dropped after the first certificate.
    pub join_token: Option<JoinToken>,
    pub interception: Interception,
    /// Loopback admin (15000).
    pub admin: SocketAddr,
    /// Probes (15021) and Prometheus (15090); port 0 = any.
    pub probes: SocketAddr,
    pub metrics: SocketAddr,
    pub workers: usize,
    /// `SO_MARK` on every socket we open (when exemption is by mark); needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    pub access_log: AccessLogSink,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` (gRPC).
    pub otlp_endpoint: Option<String>,
    /// Wanted certificate lifetime; `None` = the authority's default.
    pub certificate_lifetime: Option<Duration>,
    pub drain_deadline: Duration,
}
/// A secret: never printed.
#[derive(Clone)]
pub struct JoinToken(pub String);
impl std::fmt::Debug for JoinToken { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("JoinToken(..)") } }
