//! The control plane as a program: a folder of YAML in, sidecars served, until a signal comes.

use crate::{
    Attested, KubernetesTokens,
    app::{self, ControlPlane, JOIN_TOKEN_LIFETIME, Options},
    authority::{DEFAULT_LIFETIME, MAX_LIFETIME, Upstream, VaultPki},
    federation,
    registry::from_files::{Changes, read_folder, watch},
};
use anyhow::{Context as _, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use postern_api::process::harden;
use postern_config::{Documents, Severity, documents};
use std::{
    collections::BTreeMap,
    fs, io,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use tokio::signal::unix::{SignalKind, signal};

/// Writes a line for people. That nobody reads it any more is no reason to end.
macro_rules! tell {
    ($($text:tt)*) => {{
        let _ = writeln!(io::stderr(), $($text)*);
    }};
}

/// Name of the admin socket in the state folder.
pub const ADMIN_SOCKET: &str = "control.sock";

/// Flags of `postern control-plane`.
#[derive(clap::Args, Clone, Debug)]
pub struct Flags {
    /// Folder of the YAML files: Pods with `status.podIP` are the endpoints; watched for changes
    #[arg(long, value_name = "DIR")]
    pub config: PathBuf,
    /// Where sidecars connect
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:15012")]
    pub listen: SocketAddr,
    /// Where the root certificate and its key live; made at first start
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Trust domain of the certificates; default: `trustDomain` of the mesh configuration in the folder
    #[arg(long, value_name = "NAME")]
    pub trust_domain: Option<String>,
    /// Write a one-use join token for each pod with a sidecar to DIR/NAMESPACE.POD.token (readable by you only)
    #[arg(long, value_name = "DIR")]
    pub join_token_dir: Option<PathBuf>,
    /// Serve sidecars of this machine on a unix socket, too: they need no token, since the kernel says which user they are,
    /// and the Pod annotation `postern.dev/attest-uid` says which pod that user is
    #[arg(long, value_name = "PATH")]
    pub unix_socket: Option<PathBuf>,
    /// Accept projected Kubernetes service account tokens for this audience, e.g. `postern`
    #[arg(long, value_name = "AUDIENCE")]
    pub kubernetes_token_audience: Option<String>,
    /// How to reach the API server that reviews those tokens; default: as a pod of its cluster
    #[arg(long, value_name = "FILE", requires = "kubernetes_token_audience")]
    pub kubeconfig: Option<PathBuf>,
    /// Serve our trust bundle to foreign trust domains, by default as https_spiffe with the control plane's own SVID
    #[arg(long, value_name = "IP:PORT")]
    pub federation_listen: Option<SocketAddr>,
    /// Serve it as https_web: PEM file of the certificate chain for the host name of the endpoint; read again when renewed
    #[arg(long, value_name = "FILE", requires = "federation_listen", requires = "federation_key")]
    pub federation_cert: Option<PathBuf>,
    /// PEM file of the key of --federation-cert
    #[arg(long, value_name = "FILE", requires = "federation_cert")]
    pub federation_key: Option<PathBuf>,
    /// PEM file of the authorities by which https_web endpoints of others are recognised; default: those of the system
    #[arg(long, value_name = "FILE")]
    pub federation_ca: Option<PathBuf>,
    /// Where `postern ca` and `postern certs` come in; default: control.sock in the state folder
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,
    /// Serve Prometheus metrics on a port, too, e.g. 127.0.0.1:15014
    #[arg(long, value_name = "IP:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Show the mesh to browsers on this machine, e.g. on 127.0.0.1:15013: read-only, and readable for all users of the machine
    #[arg(long, value_name = "IP:PORT")]
    pub page: Option<SocketAddr>,
    /// Life of workload certificates in seconds, 300 to 86400
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_LIFETIME.as_secs())]
    pub certificate_lifetime: u64,
    /// Folder of an authority in Istio's layout: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem; watched for changes.
    /// Default: a root of our own, in --state
    #[arg(long, value_name = "DIR", conflicts_with = "vault_addr")]
    pub cacerts: Option<PathBuf>,
    /// Vault whose PKI secrets engine signs for us, e.g. https://vault:8200
    #[arg(long, value_name = "URL", requires = "vault_token_file")]
    pub vault_addr: Option<String>,
    /// Where that engine is mounted
    #[arg(long, value_name = "MOUNT", default_value = "pki", requires = "vault_addr")]
    pub vault_pki_path: String,
    /// File of a Vault token that may use root/sign-intermediate; read for each request
    #[arg(long, value_name = "FILE", requires = "vault_addr")]
    pub vault_token_file: Option<PathBuf>,
    /// Certificates in PEM that vouch for Vault's server; default: those of this system
    #[arg(long, value_name = "FILE", requires = "vault_addr")]
    pub vault_ca: Option<PathBuf>,
    /// Start also when the authority ends before two lives of a workload certificate have passed
    #[arg(long)]
    pub allow_ending_authority: bool,
}

/// How often spent join tokens are looked for. Whoever spends one removes its file, unless it is killed in between.
const SPENT_TOKENS: Duration = Duration::from_secs(5);
/// The shortest life of a workload certificate that an operator may choose, in seconds: renewal needs time to be tried again.
const SHORTEST_LIFETIME: u64 = 300;

impl Flags {
    fn lifetime(&self) -> anyhow::Result<Duration> {
        let (seconds, longest) = (self.certificate_lifetime, MAX_LIFETIME.as_secs());
        if !(SHORTEST_LIFETIME..=longest).contains(&seconds) {
            bail!(
                "workload certificates cannot live {seconds} s: give --certificate-lifetime {SHORTEST_LIFETIME} (5 minutes) to {longest} (24 hours)"
            );
        }
        Ok(Duration::from_secs(seconds))
    }

    fn upstream(&self) -> Upstream {
        match (&self.cacerts, &self.vault_addr, &self.vault_token_file) {
            (Some(folder), ..) => Upstream::Files(folder.clone()),
            (None, Some(address), Some(token_file)) => Upstream::Vault(VaultPki {
                address: address.clone(),
                mount: self.vault_pki_path.trim_matches('/').to_owned(),
                token_file: token_file.clone(),
                server_roots: self.vault_ca.clone(),
            }),
            _ => Upstream::Own,
        }
    }
}

/// Keeps the kernel from giving this process memory by 2 MiB at a time. Of the buffers of an idle connection most bytes are
/// never touched, and so never cost memory, unless a huge page around them is there as a whole. Best effort.
pub fn avoid_huge_pages() {
    let _ = nix::sys::prctl::set_thp_disable(true);
}

/// Runs the control plane until SIGTERM or SIGINT. Exit code 0, or 1 with the reason on standard error.
pub fn run(flags: Flags) -> ExitCode {
    avoid_huge_pages();
    // The keys of the authority are read or made below.
    harden();
    // The program around us may have set up a log already; then that one stays.
    let filter = tracing_subscriber::EnvFilter::new("warn,postern_control_plane=info");
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .try_init();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime could not be started")
        .and_then(|runtime| runtime.block_on(serve(flags)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(flags: Flags) -> anyhow::Result<()> {
    // Before anything is served, so that a signal at any time ends us cleanly.
    let mut terminated = signal(SignalKind::terminate()).context("no signal handler could be set")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("no signal handler could be set")?;

    let lifetime = flags.lifetime()?;
    // Watched before it is read: a change between the two is not lost.
    let changes = watch(&flags.config)?;
    let mut documents = read_documents(&flags.config)?;
    let trust_domain = agree_on_trust_domain(&mut documents, flags.trust_domain.as_deref())?;
    let control_plane = app::start(Options {
        listen: flags.listen,
        state: Some(flags.state.clone()),
        trust_domain: trust_domain.clone(),
        certificate_lifetime: lifetime,
        upstream: flags.upstream(),
        allow_ending_authority: flags.allow_ending_authority,
        unix_socket: flags.unix_socket.clone(),
        kubernetes: kubernetes_tokens(&flags).await?,
        federation: federation::Settings {
            listen: flags.federation_listen,
            certificate: flags.federation_cert.clone().zip(flags.federation_key.clone()),
            web_authorities: flags.federation_ca.clone(),
            timing: federation::Timing::default(),
        },
    })
    .await?;
    control_plane
        .open_admin_socket(flags.admin_socket.clone().unwrap_or_else(|| flags.state.join(ADMIN_SOCKET)))?;
    if let Some(address) = flags.metrics {
        control_plane.serve_metrics(address).await?;
    }
    if let Some(address) = flags.page {
        let address = control_plane.serve_page(address).await?;
        tell!("the page of the mesh: http://{address}/");
    }
    let mut tokens = flags.join_token_dir.clone().map(TokenFiles::open).transpose()?;
    control_plane.apply(documents);
    if let Some(tokens) = &mut tokens {
        tokens.write(&control_plane, Refresh::Missing)?;
    }
    let _ = writeln!(
        io::stdout(),
        "postern control plane: listening on {}, trust domain {trust_domain}, root certificate in {}",
        control_plane.address(),
        flags.state.join("root.pem").display(),
    );
    // Whoever started us may wait for that line through a pipe.
    let _ = io::stdout().flush();

    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        () = follow(&flags, &trust_domain, changes, &control_plane, tokens) => {}
    }
    control_plane.shutdown().await;
    Ok(())
}

/// How to reach the API server, when its tokens are wanted.
async fn kubernetes_tokens(flags: &Flags) -> anyhow::Result<Option<KubernetesTokens>> {
    let Some(audience) = flags.kubernetes_token_audience.clone() else { return Ok(None) };
    if audience.is_empty() {
        bail!(
            "--kubernetes-token-audience is empty: write the `audience` of the pods' projected volume, e.g. postern"
        );
    }
    let api_server = match &flags.kubeconfig {
        Some(file) => {
            let cannot = || format!("the kubeconfig {} cannot be used", file.display());
            let kubeconfig = Kubeconfig::read_from(file).with_context(cannot)?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(cannot)?
        }
        None => kube::Config::incluster()
            .context("this is no pod of a Kubernetes cluster with a service account: name a --kubeconfig")?,
    };
    Ok(Some(KubernetesTokens { api_server, audience }))
}

/// Applies each new state of the folder; a bad one is told and the last good one stays.
async fn follow(
    flags: &Flags,
    trust_domain: &str,
    mut changes: Changes,
    control_plane: &ControlPlane,
    mut tokens: Option<TokenFiles>,
) {
    let mut refresh = tokio::time::interval(JOIN_TOKEN_LIFETIME / 2);
    let mut look = tokio::time::interval(SPENT_TOKENS);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick of an interval comes at once.
    refresh.tick().await;
    loop {
        let (is_news, renew) = tokio::select! {
            () = changes.changed() => (true, Refresh::Missing),
            _ = refresh.tick() => (false, Refresh::All),
            _ = look.tick(), if tokens.is_some() => (false, Refresh::Missing),
        };
        if is_news {
            let next = read_documents(&flags.config).and_then(|mut next| {
                agree_on_trust_domain(&mut next, Some(trust_domain))
                    .context("restart to change the trust domain")?;
                Ok(next)
            });
            match next {
                Ok(next) => {
                    control_plane.apply(next);
                    tell!("postern control plane: {} was read again", flags.config.display());
                }
                Err(error) => {
                    tell!(
                        "error: {error:#}\nthe last good state of {} stays in force",
                        flags.config.display()
                    );
                    continue;
                }
            }
        }
        if let Some(tokens) = &mut tokens
            && let Err(error) = tokens.write(control_plane, renew)
        {
            tell!("error: {error:#}");
        }
    }
}

/// Reads the folder; everything that is wrong with it is printed at once.
fn read_documents(folder: &Path) -> anyhow::Result<Documents> {
    let (documents, problems) = documents::read(&read_folder(folder)?);
    for problem in &problems {
        tell!("{problem}\n");
    }
    match problems.iter().filter(|problem| problem.severity == Severity::Error).count() {
        0 => Ok(documents),
        1 => bail!("1 error in {}: correct it as said above", folder.display()),
        count => bail!("{count} errors in {}: correct them as said above", folder.display()),
    }
}

/// The folder and the flag must not say different things. A folder that says nothing takes what the flag says.
fn agree_on_trust_domain(documents: &mut Documents, flag: Option<&str>) -> anyhow::Result<String> {
    let unsaid = documents::MeshConfig::default().trust_domain;
    let said = &mut documents.mesh.trust_domain;
    match flag {
        Some(flag) if *said == unsaid => flag.clone_into(said),
        Some(flag) if flag != said => {
            bail!(
                "the trust domain is {flag}, but trustDomain in the folder is {said}: make them equal, or leave one out"
            )
        }
        _ => {}
    }
    Ok(said.clone())
}

/// Which token files to write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refresh {
    /// For pods that have none that is good: new ones, and those that have used theirs and may have to begin again.
    Missing,
    /// For all: tokens end.
    All,
}

/// A folder with one file for each pod that gets a sidecar.
struct TokenFiles {
    folder: PathBuf,
    /// Written by us: the file for (namespace, service account, pod).
    written: BTreeMap<(String, String, String), PathBuf>,
}

impl TokenFiles {
    fn open(folder: PathBuf) -> anyhow::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder).with_context(|| {
            format!(
                "the folder for join tokens {} cannot be made: name one that you may write",
                folder.display()
            )
        })?;
        Ok(Self { folder, written: BTreeMap::new() })
    }

    fn write(&mut self, control_plane: &ControlPlane, refresh: Refresh) -> anyhow::Result<()> {
        let mut wanted = BTreeMap::new();
        for Attested { namespace, service_account, pod } in control_plane.sidecars() {
            if ![&namespace, &pod].into_iter().all(|name| is_plain_name(name)) {
                bail!("the pod {namespace}/{pod} has a name that cannot be a file name: rename it");
            }
            let file = self.folder.join(format!("{namespace}.{pod}.token"));
            wanted.insert((namespace, service_account, pod), file);
        }
        for (pod, file) in &self.written {
            if !wanted.contains_key(pod) {
                let _ = fs::remove_file(file);
            }
        }
        self.written.retain(|pod, _| wanted.contains_key(pod));
        for (pod, file) in wanted {
            let is_good = || {
                self.written.contains_key(&pod)
                    && fs::read_to_string(&file).is_ok_and(|token| control_plane.is_join_token_good(&token))
            };
            if refresh == Refresh::All || !is_good() {
                let token = control_plane.join_token(&pod.0, &pod.1, &pod.2);
                replace_secret(&file, &token).with_context(|| {
                    format!(
                        "the join token {} cannot be written: name a folder that you may write",
                        file.display()
                    )
                })?;
                self.written.insert(pod, file);
            }
        }
        Ok(())
    }
}

fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Writes a file that only we may read, whole or not at all. The name of the draft begins with a dot and must not exist.
fn replace_secret(file: &Path, secret: &str) -> io::Result<()> {
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let draft = file.with_file_name(format!(".{name}.{}", std::process::id()));
    let _ = fs::remove_file(&draft);
    let mut writer = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    writer.write_all(secret.as_bytes())?;
    writer.sync_all()?;
    fs::rename(&draft, file)
}
