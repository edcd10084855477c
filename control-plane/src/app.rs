//! Start-up in order: authority, listener, publisher; and the handle that owners of the process use.

use crate::{
    admin,
    attest::{Attested, JoinTokens, KubernetesTokens, TokenReviews},
    authority::{Authority, INTERMEDIATE_LIFETIME, MAX_LIFETIME, Settings, Upstream},
    federation::{self, Federation, FederationStatus},
    publish::{self, Publisher, listener::Listener, rate::Rate, status::SessionStatus, trust::Trust},
    registry::Index,
    traffic::Traffic,
    upkeep::Upkeep,
};
use anyhow::{Context as _, bail};
use postern_config::Documents;
use postern_identity::TrustDomain;
use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// How to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where sidecars connect (usually `0.0.0.0:15012`); port 0 = any.
    pub listen: SocketAddr,
    /// Where root certificate and key live (key file 0600); made at first start. `None` = in memory only.
    pub state: Option<PathBuf>,
    /// Name of the trust domain, e.g. `cluster.local`.
    pub trust_domain: String,
    /// Default and upper bound of workload certificates; more than zero, at most 24 hours.
    pub certificate_lifetime: Duration,
    /// Where the root comes from.
    pub upstream: Upstream,
    /// Start also with an authority that ends before two lives of a workload certificate have passed.
    pub allow_ending_authority: bool,
    /// A unix socket that is served beside `listen`: its callers are attested by who they are. Any user may connect.
    pub unix_socket: Option<PathBuf>,
    /// How Kubernetes service account tokens are reviewed; `None` = they are refused.
    pub kubernetes: Option<KubernetesTokens>,
    /// How foreign trust domains get our bundle, and we theirs.
    pub federation: federation::Settings,
}

/// How long a join token that [`ControlPlane::join_token`] made is good.
pub const JOIN_TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// A running control plane; dropping it stops it.
pub struct ControlPlane {
    address: SocketAddr,
    bundle_endpoint: Option<SocketAddr>,
    publisher: Arc<Publisher>,
    upkeep: Arc<Upkeep>,
    tasks: TaskTracker,
    _socket: Option<Socket>,
}

/// Starts it on the current tokio runtime. It serves nobody before the first [`ControlPlane::apply`] but issues
/// certificates for join tokens.
///
/// # Errors
/// The trust domain or lifetime is not valid, the state folder cannot be used, or the address cannot be listened on. The
/// text is one sentence of cause and one of remedy.
pub async fn start(options: Options) -> anyhow::Result<ControlPlane> {
    let trust_domain: TrustDomain = options
        .trust_domain
        .parse()
        .with_context(|| format!("the trust domain `{}` is not valid", options.trust_domain))?;
    let lifetime = options.certificate_lifetime;
    if lifetime.is_zero() || lifetime > MAX_LIFETIME {
        bail!(
            "certificates cannot live {} s: choose more than zero and at most {} s",
            lifetime.as_secs(),
            MAX_LIFETIME.as_secs()
        );
    }
    let now = SystemTime::now();
    let settings = Settings {
        state: options.state.clone(),
        trust_domain: trust_domain.clone(),
        upstream: options.upstream,
        // At half of its life, when it is renewed, a leaf below it can still be whole.
        intermediate_lifetime: INTERMEDIATE_LIFETIME.max(lifetime * 2),
        leaf_lifetime: lifetime,
        allow_ending: options.allow_ending_authority,
    };
    let authority = Authority::open(settings, now).await.with_context(|| match &options.state {
        Some(folder) => format!("the state folder {} cannot be used", folder.display()),
        None => "the authority cannot be used".to_owned(),
    })?;
    for problem in authority.problems(now) {
        tracing::warn!("{problem}");
    }
    let reviews = options.kubernetes.map(TokenReviews::new).transpose().map_err(anyhow::Error::msg)?;
    let listener = listen(options.listen).await?;
    let address = listener.local_addr().context("the listening address is not known")?;
    let mut listeners = vec![Listener::Tcp(listener)];
    let socket = options.unix_socket.map(Socket::bind).transpose()?;
    let socket = socket.map(|(socket, listener)| {
        listeners.push(Listener::Unix(listener, Rate::new(200, 20)));
        socket
    });

    let authority = Arc::new(authority);
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let (federation, bundle_endpoint) = Federation::start(
        Arc::clone(&authority),
        options.federation,
        options.state.as_deref(),
        stop.clone(),
        tasks.clone(),
    )
    .await?;
    let trust = Trust::new(&authority.published(), &federation.bundles().borrow());
    let publisher = Arc::new(Publisher {
        authority,
        federation,
        tokens: JoinTokens::default(),
        reviews,
        trust_domain,
        index: watch::channel(None).0,
        trust: watch::channel(Arc::new(trust)).0,
        sessions: publish::status::Sessions::default(),
        counters: publish::Counters::default(),
        traffic: Traffic::new(now),
        taps: Default::default(),
        certificate_lifetime: lifetime,
        // A whole machine may start at once; a certificate costs about a millisecond.
        by_address: Rate::new(500, 50),
        // A user of this machine is one sidecar.
        by_user: Rate::new(20, 2),
        // All replicas of a deployment share an identity.
        by_identity: Rate::new(200, 20),
        // A token is good for minutes, and a sidecar keeps it as long.
        tokens_by_identity: Rate::new(500, 50),
        stop,
    });
    let upkeep = Arc::new(Upkeep::new(Arc::clone(&publisher), now)?);
    tasks.spawn(Arc::clone(&upkeep).run());
    tasks.spawn(publish::serve(Arc::clone(&publisher), listeners, upkeep.tls()));
    tasks.close();
    Ok(ControlPlane { address, bundle_endpoint, publisher, upkeep, tasks, _socket: socket })
}

impl ControlPlane {
    /// Where sidecars connect; with the real port when 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where our bundle is served to foreign trust domains; `None` when it is not.
    pub fn bundle_endpoint(&self) -> Option<SocketAddr> {
        self.bundle_endpoint
    }

    /// What is known of each foreign trust domain, by name.
    pub fn federation(&self) -> Vec<FederationStatus> {
        self.publisher.federation.status()
    }

    /// PEM of the root, for sidecars' bootstrap.
    pub fn trust_bundle_pem(&self) -> String {
        self.publisher.authority.bundle_pem()
    }

    /// A one-use token for one pod. Kept only as a hash; expires after [`JOIN_TOKEN_LIFETIME`].
    pub fn join_token(&self, namespace: &str, service_account: &str, pod: &str) -> String {
        let pod = Attested {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: pod.to_owned(),
        };
        self.publisher.tokens.issue(pod, JOIN_TOKEN_LIFETIME, SystemTime::now())
    }

    /// Whether a token of [`ControlPlane::join_token`] is neither used nor expired.
    pub fn is_join_token_good(&self, token: &str) -> bool {
        self.publisher.tokens.is_good(token, SystemTime::now())
    }

    /// Replaces the registry's content whole: pods with `pod_ips`, services, policies. Publishes what changed, to whom it
    /// concerns. The documents must have been read without errors. The number of this state of them, for
    /// [`SessionStatus::documents`].
    pub fn apply(&self, documents: Documents) -> u64 {
        self.publisher.federation.follow(documents.federated_trust_domains.iter().map(|one| &one.value));
        let mut index = Index::build(documents, &self.publisher.trust_domain);
        for warning in index.warnings() {
            tracing::warn!("{warning}");
        }
        let mut number = 0;
        self.publisher.index.send_modify(|current| {
            number = current.as_ref().map_or(0, |current| current.number) + 1;
            index.number = number;
            *current = Some(Arc::new(index));
        });
        number
    }

    /// The pods that get a sidecar, by the documents in force.
    pub fn sidecars(&self) -> Vec<Attested> {
        let index = self.publisher.index.borrow().clone();
        let named = |(namespace, service_account, pod): (&str, &str, &str)| Attested {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod: pod.to_owned(),
        };
        index.iter().flat_map(|index| index.sidecars().map(named).collect::<Vec<_>>()).collect()
    }

    /// The sidecars that are connected now, in the order in which they came.
    pub fn status(&self) -> Vec<SessionStatus> {
        self.publisher.sessions.all()
    }

    /// Gives the control plane a new certificate of its own, for connections to come. Happens by itself at half of its life.
    ///
    /// # Errors
    /// The authority cannot sign now; the current certificate stays.
    pub fn renew_own_certificate(&self) -> anyhow::Result<()> {
        self.upkeep.renew_own(SystemTime::now())
    }

    /// Opens the socket of operators (mode 0600; its owner and root may connect), which is closed and removed with the control
    /// plane. The pages are those of [`crate::admin::pages`].
    ///
    /// # Errors
    /// Something else has that name, or the folder may not be written.
    pub fn open_admin_socket(&self, path: PathBuf) -> anyhow::Result<()> {
        let socket = admin::Socket::bind(path)?;
        self.tasks.spawn(socket.serve(Arc::clone(&self.upkeep), self.publisher.stop.clone()));
        Ok(())
    }

    /// Serves `GET /metrics` in Prometheus' text format on a port, to whoever may reach it. Gives its address.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn serve_metrics(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let port = admin::MetricsPort::bind(address).await?;
        let address = port.address()?;
        self.tasks.spawn(port.serve(Arc::clone(&self.upkeep), self.publisher.stop.clone()));
        Ok(address)
    }

    /// Shows the live views to browsers on this machine. Gives the address.
    ///
    /// # Errors
    /// The address is not on loopback, or cannot be listened on.
    pub async fn serve_page(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        let port = admin::PagePort::bind(address).await?;
        let address = port.address();
        let upkeep = Arc::clone(&self.upkeep);
        let source =
            move |asked: String| std::future::ready(admin::browsed(&upkeep, &asked, SystemTime::now()));
        self.tasks.spawn(port.serve(source, self.publisher.stop.clone()));
        Ok(address)
    }

    /// Stops it and waits until the port is free and all connections are closed.
    pub async fn shutdown(self) {
        self.publisher.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.publisher.stop.cancel();
    }
}

/// The file of our unix socket; removed when we end.
struct Socket(PathBuf);

impl Socket {
    /// Binds it, in place of one that a control plane left behind which did not end in order.
    fn bind(path: PathBuf) -> anyhow::Result<(Self, UnixListener)> {
        let cannot = |why: String| {
            anyhow::anyhow!(
                "cannot listen on the unix socket {}: {why}; choose another --unix-socket",
                path.display()
            )
        };
        match fs::symlink_metadata(&path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(cannot("something that is no socket has this name".into()));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(&path).is_ok() => {
                return Err(cannot("another program serves it".into()));
            }
            Ok(_) => fs::remove_file(&path).map_err(|error| cannot(error.to_string()))?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(&path).map_err(|error| cannot(error.to_string()))?;
        let socket = Self(path.clone());
        // Who a caller is does not depend on the right to connect; who must not even ask is kept out by the folder.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))
            .map_err(|error| cannot(error.to_string()))?;
        Ok((socket, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let port = address.port();
        match error.kind() {
            io::ErrorKind::AddrInUse => anyhow::anyhow!(
                "port {port} is in use on {}: end the program that has it, or choose another one with --listen",
                address.ip()
            ),
            io::ErrorKind::PermissionDenied => anyhow::anyhow!(
                "no right to listen on port {port}: choose one above 1023 with --listen"
            ),
            io::ErrorKind::AddrNotAvailable => anyhow::anyhow!(
                "{} is no address of this machine: choose one that is, or 0.0.0.0, with --listen",
                address.ip()
            ),
            _ => anyhow::anyhow!("cannot listen on {address}: {error}; choose another address with --listen"),
        }
    })
}
