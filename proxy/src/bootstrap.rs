//! The only place that reads flags, environment and files: what a sidecar knows before it has spoken to anyone.

pub mod access_log;
pub mod app_metrics;
pub mod otel;
pub mod resources;

pub use access_log::Sink as AccessLogSink;

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

/// How connections reach us.
#[derive(Clone, Debug)]
pub enum Interception {
    /// Redirect rules bring them; the original destination is recovered from the kernel.
    Redirect {
        /// Usually 15006, one per address family.
        inbound: Vec<SocketAddr>,
        /// Usually 15001.
        outbound: Vec<SocketAddr>,
        /// How the inbound ones are taken; outbound ones are always redirected.
        mode: InterceptionMode,
    },
    /// No rules and no privileges: each listener stands for one fixed original destination.
    Explicit {
        /// (bind, the app's address)
        inbound: Vec<(SocketAddr, SocketAddr)>,
        /// (bind, original destination)
        outbound: Vec<(SocketAddr, SocketAddr)>,
    },
}

/// Istio's `interceptionMode`: how inbound connections are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum InterceptionMode {
    /// Their destination is rewritten; the app sees 127.0.0.6 or ::6.
    #[default]
    Redirect,
    /// They keep both addresses, and the app sees that of the caller; needs CAP_NET_ADMIN.
    Tproxy,
}

/// `SO_MARK` of connections to the app that come from their caller's address (TPROXY). By it the rules know what is
/// between sidecar and app, so that it must differ from the mark that exempts a sidecar.
pub const TPROXY_MARK: u32 = 1338;

/// Where a control plane is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `ip:port`.
    Tcp(SocketAddr),
    /// A unix socket on this machine, whose other end attests us by our user.
    Unix(PathBuf),
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Everything that is needed to start.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Pod name, for people.
    pub instance: String,
    /// Where the control plane is.
    pub control_plane: Address,
    /// Ours.
    pub trust_domain: String,
    /// PEM of the authority's root, to trust the control plane at first contact.
    pub trust_bundle_pem: Vec<u8>,
    /// One-use join tokens.
    pub join_token: Option<JoinTokens>,
    /// Kubernetes' projected service account token, with the control plane's audience.
    pub service_account_token: Option<TokenFile>,
    /// Where certificate, key, bundles, policy and destinations survive a restart.
    pub state: Option<State>,
    /// How connections reach us.
    pub interception: Interception,
    /// Loopback admin (15000).
    pub admin: SocketAddr,
    /// Probes (15021); port 0 = any.
    pub probes: SocketAddr,
    /// Prometheus (15090); port 0 = any.
    pub metrics: SocketAddr,
    /// Ours and the app's own metrics on one page (15020); port 0 = any.
    pub merged_metrics: SocketAddr,
    /// Where the app's own are; `None`: it has none.
    pub app_metrics: Option<app_metrics::AppMetrics>,
    /// Where our identity comes from instead of the control plane: the socket of a SPIFFE Workload API.
    pub identity_from: Option<PathBuf>,
    /// Where the pod gets its identity from us: the socket of the SPIFFE Workload API and of Envoy's SDS.
    pub workload_api: Option<PathBuf>,
    /// Threads of the data plane; at least 1.
    pub workers: usize,
    /// `SO_MARK` on every socket we open (when exemption is by mark); needs CAP_NET_ADMIN.
    pub mark: Option<u32>,
    /// Where access-log lines go.
    pub access_log: AccessLogSink,
    /// `OTEL_*`: which spans are made, and where they go.
    pub otel: otel::Settings,
    /// What they are like.
    pub access_log_lines: access_log::Written,
    /// Wanted certificate lifetime; `None` = the authority's default.
    pub certificate_lifetime: Option<Duration>,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// From one report of traffic to the control plane to the next.
    pub report_interval: Duration,
}

/// A folder of our own.
#[derive(Clone, Debug)]
pub struct State {
    /// Which; made when it is not there.
    pub folder: PathBuf,
    /// Accept one that is not memory-backed.
    pub on_disk: bool,
}

/// A secret: never printed.
#[derive(Clone)]
pub struct JoinToken(pub String);

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

impl Drop for JoinToken {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// Where one-use join tokens come from.
#[derive(Clone, Debug)]
pub enum JoinTokens {
    /// One, for the first certificate.
    Given(JoinToken),
    /// A file that is removed when its token is spent. The control plane writes it anew, so that a sidecar without a valid
    /// certificate comes back by itself.
    File(TokenFile),
}

impl JoinTokens {
    /// The token to use now; `None` where there is none.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn read(&self) -> Result<Option<JoinToken>, String> {
        match self {
            Self::Given(token) => Ok(Some(token.clone())),
            Self::File(file) if !file.0.exists() => Ok(None),
            Self::File(file) => file.read().map(Some),
        }
    }

    /// What is left after `token` was spent. A file that says something else by now stays.
    #[must_use]
    pub fn spent(self, token: &JoinToken) -> Option<Self> {
        let Self::File(file) = self else { return None };
        if file.read().is_ok_and(|now| now.0 == token.0) {
            // On a read-only mount it stays; it is worth nothing any more.
            let _ = std::fs::remove_file(&file.0);
        }
        Some(Self::File(file))
    }
}

/// A file with a token that somebody else keeps fresh (the kubelet, the control plane): read again at each use.
#[derive(Clone, Debug)]
pub struct TokenFile(pub PathBuf);

/// Tokens are a few kilobytes.
const LARGEST_TOKEN: u64 = 64 * 1024;

impl TokenFile {
    /// The token as it is now.
    ///
    /// # Errors
    /// When the file cannot be read, is empty, or holds more than 64 KiB.
    pub fn read(&self) -> Result<JoinToken, String> {
        use std::io::Read;
        let unusable = |cause: String| format!("the token file {} {cause}", self.0.display());
        let mut text = zeroize::Zeroizing::new(String::new());
        std::fs::File::open(&self.0)
            .and_then(|file| file.take(LARGEST_TOKEN + 1).read_to_string(&mut text))
            .map_err(|cause| unusable(format!("cannot be read: {cause}")))?;
        match text.trim() {
            "" => Err(unusable("is empty".into())),
            _ if text.len() as u64 > LARGEST_TOKEN => Err(unusable("is larger than 64 KiB".into())),
            token => Ok(JoinToken(token.to_owned())),
        }
    }
}

/// The flags of `postern-proxy` and `postern proxy`.
#[derive(Clone, Debug, clap::Args)]
pub struct Flags {
    /// Address of the control plane, `host:port`, or `unix:/path` of its socket on this machine
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub control_plane: String,
    /// Trust domain of the mesh
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: String,
    /// PEM file with the root certificate of the mesh
    #[arg(long, value_name = "FILE")]
    pub trust_bundle: PathBuf,
    /// File with a one-use join token; read at each use, deleted when the token is spent. With a certificate kept in --state it may
    /// come later
    #[arg(long, value_name = "FILE")]
    pub join_token_file: Option<PathBuf>,
    /// File with a projected Kubernetes service account token; read again at each use
    #[arg(long, value_name = "FILE")]
    pub service_account_token_file: Option<PathBuf>,
    /// Folder in memory (tmpfs) where certificate, key and policy survive a restart of the sidecar
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Accept a state folder on a disk, where the key outlives its certificate
    #[arg(long, requires = "state")]
    pub state_on_disk: bool,
    /// Name of this instance (the pod), for people
    #[arg(long, value_name = "NAME", default_value = "sidecar")]
    pub instance: String,
    /// Where redirected inbound connections arrive; repeatable [default: 0.0.0.0:15006 and [::]:15006]
    #[arg(long, value_name = "ADDR")]
    pub inbound: Vec<SocketAddr>,
    /// Where redirected outbound connections arrive; repeatable [default: 0.0.0.0:15001 and [::]:15001]
    #[arg(long, value_name = "ADDR")]
    pub outbound: Vec<SocketAddr>,
    /// How redirect rules take inbound connections; with `tproxy` the app sees the caller's address, which needs CAP_NET_ADMIN
    #[arg(long, value_enum, ignore_case = true, default_value_t, value_name = "redirect|tproxy",
        conflicts_with_all = ["explicit_inbound", "explicit_outbound"])]
    pub interception_mode: InterceptionMode,
    /// Without redirect rules: inbound connections to BIND are for the app at APP; repeatable
    #[arg(long, value_name = "BIND=APP", value_parser = pair, conflicts_with_all = ["inbound", "outbound"])]
    pub explicit_inbound: Vec<(SocketAddr, SocketAddr)>,
    /// Without redirect rules: outbound connections to BIND are meant for DEST; repeatable
    #[arg(long, value_name = "BIND=DEST", value_parser = pair, conflicts_with_all = ["inbound", "outbound"])]
    pub explicit_outbound: Vec<(SocketAddr, SocketAddr)>,
    /// Admin page; loopback only
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15000")]
    pub admin: SocketAddr,
    /// Probes: /healthz/ready and /healthz/live
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15021")]
    pub probes: SocketAddr,
    /// Prometheus: /metrics
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15090")]
    pub metrics: SocketAddr,
    /// Prometheus: /stats/prometheus, with the app's own metrics behind ours; and /healthz/ready
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:15020")]
    pub merged_metrics: SocketAddr,
    /// The app's own page for Prometheus [default: what ISTIO_PROMETHEUS_ANNOTATIONS names]
    #[arg(long, value_name = "http://IP:PORT/PATH", value_parser = app_metrics::url)]
    pub app_metrics: Option<app_metrics::AppMetrics>,
    /// Take certificate and key from the SPIFFE Workload API on this socket, a SPIRE agent's for example, not from the control plane
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path,
        conflicts_with_all = ["join_token_file", "service_account_token_file", "certificate_lifetime"])]
    pub identity_from: Option<PathBuf>,
    /// Serve the SPIFFE Workload API and Envoy's SDS to the pod on this socket
    #[arg(long, value_name = "unix:PATH", value_parser = unix_path)]
    pub workload_api: Option<PathBuf>,
    /// Threads of the data plane [default: number of processors, at most 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,
    /// Mark (SO_MARK) of our own connections, when the redirect rules exempt by mark; needs CAP_NET_ADMIN
    #[arg(long, value_name = "N")]
    pub mark: Option<u32>,
    /// The access log.
    #[command(flatten)]
    pub access_log: access_log::AccessLogFlags,
    /// Wanted lifetime of certificates; the authority caps it
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..))]
    pub certificate_lifetime: Option<u32>,
    /// How long requests in flight may take at shutdown
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub drain_deadline: u32,
    /// From one report of what has passed to the control plane to the next, 2 to 10
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=10))]
    pub report_interval: u32,
}

/// A start-up failure as people read it: one sentence of cause, one of remedy.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Failure {
    /// What went wrong.
    pub cause: String,
    /// What to do.
    pub remedy: String,
}

impl Failure {
    /// For `map_err` and friends.
    pub fn error(cause: impl Into<String>, remedy: impl Into<String>) -> anyhow::Error {
        Self { cause: cause.into(), remedy: remedy.into() }.into()
    }
}

impl Bootstrap {
    /// Reads the files and the environment that the flags name.
    ///
    /// # Errors
    /// A [`Failure`] for the first thing that is missing or wrong.
    pub fn from_flags(flags: Flags) -> anyhow::Result<Self> {
        let trust_bundle_pem = std::fs::read(&flags.trust_bundle).map_err(|cause| {
            Failure::error(
                format!("the trust bundle {} cannot be read: {cause}.", flags.trust_bundle.display()),
                "Give `--trust-bundle` the PEM file with the root certificate that the control plane wrote.",
            )
        })?;
        let is_explicit = !flags.explicit_inbound.is_empty() || !flags.explicit_outbound.is_empty();
        let interception = if is_explicit {
            Interception::Explicit { inbound: flags.explicit_inbound, outbound: flags.explicit_outbound }
        } else {
            Interception::Redirect {
                inbound: listen(flags.inbound, 15006),
                outbound: listen(flags.outbound, 15001),
                mode: flags.interception_mode,
            }
        };
        let (access_log, access_log_lines) = flags.access_log.read()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            control_plane: located(&flags.control_plane)?,
            instance: flags.instance,
            trust_domain: flags.trust_domain,
            trust_bundle_pem,
            join_token: flags
                .join_token_file
                .map(|file| join_tokens(file, flags.state.is_some()))
                .transpose()?,
            service_account_token: flags.service_account_token_file.map(TokenFile),
            state: flags.state.map(|folder| State { folder, on_disk: flags.state_on_disk }),
            interception,
            admin: flags.admin,
            probes: flags.probes,
            metrics: flags.metrics,
            merged_metrics: flags.merged_metrics,
            app_metrics: match flags.app_metrics {
                Some(named) => Some(named),
                None => app_metrics::AppMetrics::of_environment()?,
            },
            identity_from: flags.identity_from,
            workload_api: flags.workload_api,
            workers: flags.workers.map_or(processors.min(2), usize::from),
            mark: flags.mark,
            otel: otel::of_environment()?,
            access_log,
            access_log_lines,
            certificate_lifetime: flags
                .certificate_lifetime
                .map(|seconds| Duration::from_secs(seconds.into())),
            drain_deadline: Duration::from_secs(flags.drain_deadline.into()),
            report_interval: Duration::from_secs(flags.report_interval.into()),
        })
    }
}

/// Without a token nothing begins, so a start without one fails, unless there may be a certificate of before.
fn join_tokens(path: PathBuf, may_come_later: bool) -> anyhow::Result<JoinTokens> {
    let file = TokenFile(path);
    match file.read() {
        Err(cause) if !may_come_later || file.0.exists() => Err(Failure::error(
            format!("there is no join token: {cause}."),
            "Ask the control plane for a new join token; each is good for one certificate.",
        )),
        _ => Ok(JoinTokens::File(file)),
    }
}

fn located(address: &str) -> anyhow::Result<Address> {
    let Some(path) = address.strip_prefix("unix:") else { return Ok(Address::Tcp(resolve(address)?)) };
    if !path.starts_with('/') {
        return Err(Failure::error(
            format!("the control plane `{address}` is not an absolute path."),
            "Give `--control-plane` as `unix:/path/to/socket`.",
        ));
    }
    Ok(Address::Unix(path.into()))
}

fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let remedy = "Give `--control-plane` as `ip:port` or as `name:port` with a name that resolves here.";
    address
        .to_socket_addrs()
        .map_err(|cause| {
            Failure::error(format!("the control plane `{address}` cannot be resolved: {cause}."), remedy)
        })?
        .next()
        .ok_or_else(|| Failure::error(format!("the control plane `{address}` has no address."), remedy))
}

/// The addresses given, or the port on all addresses of both families; IPv6 only where the host has it.
fn listen(given: Vec<SocketAddr>, port: u16) -> Vec<SocketAddr> {
    if !given.is_empty() {
        return given;
    }
    let mut all = vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))];
    let has_ipv6 = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
    all.extend(has_ipv6.then_some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))));
    all
}

fn pair(text: &str) -> Result<(SocketAddr, SocketAddr), String> {
    let (bind, to) = text.split_once('=').ok_or("expected two addresses, `ip:port=ip:port`")?;
    let address = |text: &str| text.parse().map_err(|_| format!("`{text}` is not `ip:port`"));
    Ok((address(bind)?, address(to)?))
}

/// `unix:/path` and `unix:///path` (SPIFFE Workload Endpoint 4).
fn unix_path(text: &str) -> Result<PathBuf, String> {
    let wrong = || format!("`{text}` is not a socket; write `unix:` and an absolute path");
    let path = text.strip_prefix("unix:").ok_or_else(wrong)?;
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.starts_with('/') { Ok(path.into()) } else { Err(wrong()) }
}

#[cfg(test)]
#[path = "bootstrap_tests.rs"]
mod tests;
