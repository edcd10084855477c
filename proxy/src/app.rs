//! Start-up in order: identity, control, listeners, workers; and the way down.
//!
//! Control, identity, telemetry and admin run on the runtime that calls [`start`]; each data-plane worker is a thread of its
//! own with a single-threaded runtime and listeners of its own (`SO_REUSEPORT`), so that no scrape or push delays a request.

mod departure;

use crate::{
    admin::{self, Admin, Door},
    bootstrap::{
        Bootstrap, Failure, Interception, InterceptionMode, TPROXY_MARK, app_metrics::AppMetrics,
        resources::Resources,
    },
    control::{ControlPlane, Destinations, destinations::Bounds, stream::Subscriber},
    drain, inbound,
    kept::{self, Folder},
    net::{Arrival, Listener, may_be_transparent},
    outbound,
    ready::{Guard, Ready},
    state::Store,
    telemetry::{self, Direction, Telemetry},
    traffic::{AppSource, Settings, Shared, governor::Governor},
    workload_api,
    workload_identity::{
        WorkloadIdentity,
        agent::Agent,
        source::{Authority, Source},
    },
};
use anyhow::Context;
use departure::Departure;
use postern_identity::{Bundle, TrustDomain};
use rustls_pki_types::UnixTime;
use std::{io, net::SocketAddr, sync::Arc, thread, time::Duration};
use tokio::{net::TcpListener, runtime::LocalOptions, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// What the writers of log and spans get at shutdown, beyond the drain.
const FLUSH: Duration = Duration::from_secs(6);
/// What the workers get after the drain's deadline, to notice it.
const NOTICE: Duration = Duration::from_secs(2);

/// A running sidecar. Dropping it stops it at once; `drain` stops it politely.
pub struct Sidecar {
    addresses: Addresses,
    ready: Ready,
    trigger: Arc<drain::Trigger>,
    drain_deadline: Duration,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    workers: Vec<thread::JoinHandle<()>>,
    writers: Option<telemetry::Writers>,
}

/// The real addresses after binding (port 0 resolved), in the order of the bootstrap's lists.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// One per inbound listener.
    pub inbound: Vec<SocketAddr>,
    /// One per outbound listener.
    pub outbound: Vec<SocketAddr>,
    /// Admin page.
    pub admin: Option<SocketAddr>,
    /// Probes.
    pub probes: Option<SocketAddr>,
    /// Prometheus.
    pub metrics: Option<SocketAddr>,
    /// Prometheus, with the app's own metrics.
    pub merged_metrics: Option<SocketAddr>,
}

/// Binds listeners, obtains the first certificate and policy in the background, and returns as soon as sockets are bound.
///
/// # Errors
/// A [`Failure`] when the bootstrap makes no sense or an address cannot be bound.
pub async fn start(bootstrap: Bootstrap) -> anyhow::Result<Sidecar> {
    let control = Arc::new(control_plane(&bootstrap)?);
    anyhow::ensure!(
        bootstrap.admin.ip().is_loopback(),
        Failure::error(
            format!("the admin address {} is not a loopback address.", bootstrap.admin),
            "Choose an address like 127.0.0.1:15000; metrics and probes have ports of their own."
        )
    );
    let folder =
        bootstrap.state.as_ref().map(|state| Folder::open(&state.folder, state.on_disk)).transpose()?;
    anyhow::ensure!(
        bootstrap.identity_from.is_none() || bootstrap.identity_from != bootstrap.workload_api,
        Failure::error(
            "the identity shall come from the sidecar's own socket.",
            "Give `--identity-from` the socket of a SPIRE agent, or of another sidecar."
        )
    );
    may_take(&bootstrap)?;
    let (telemetry, writers) = Telemetry::start(telemetry::Options {
        access_log: bootstrap.access_log.clone(),
        otel: bootstrap.otel.clone(),
        access_log_lines: bootstrap.access_log_lines.clone(),
        service: bootstrap.instance.clone(),
    })?;
    let (mut sets, mut addresses) = bind_all(&bootstrap.interception, bootstrap.workers.max(1))?;
    let admin_listener = bind_plain(bootstrap.admin).await?;
    let probes_listener = bind_plain(bootstrap.probes).await?;
    let metrics_listener = bind_plain(bootstrap.metrics).await?;
    let merged_listener = bind_plain(bootstrap.merged_metrics).await?;
    let workload_socket = bootstrap.workload_api.as_deref().map(workload_api::Socket::bind).transpose()?;
    addresses.admin = admin_listener.local_addr().ok();
    addresses.probes = probes_listener.local_addr().ok();
    addresses.metrics = metrics_listener.local_addr().ok();
    addresses.merged_metrics = merged_listener.local_addr().ok();
    not_our_own(bootstrap.app_metrics.as_ref(), &addresses)?;

    let ready = Ready::default();
    let store = Arc::new(Store::default());
    let stop = CancellationToken::new();
    let (trigger, draining) = drain::channel();
    let trigger = Arc::new(trigger);
    telemetry.follow(draining.clone());
    let destinations = Destinations::new(Bounds::default(), telemetry.clone());
    if let Some(folder) = &folder {
        kept::recall(folder, &store, &destinations, &control.trust_domain);
        if let Some(policy) = store.inbound() {
            telemetry.obey(&policy.snapshot);
        }
    }
    let keeping =
        folder.map(|folder| kept::follow(folder, store.clone(), destinations.clone(), stop.clone()));
    let settings = settings(&bootstrap, &addresses);
    let departure = Departure {
        trigger: trigger.clone(),
        draining: draining.clone(),
        store: store.clone(),
        telemetry: telemetry.clone(),
        app: app_addresses(&bootstrap.interception),
    };
    let source = match bootstrap.identity_from {
        Some(socket) => Source::Agent(Box::new(Agent::new(socket, control.trust_domain.clone()))),
        None => Source::Authority(Authority {
            control: control.clone(),
            lifetime: bootstrap.certificate_lifetime,
            join_token: bootstrap.join_token,
            sent: None,
            service_account_token: bootstrap.service_account_token,
        }),
    };
    let (identity, renewals) = WorkloadIdentity::new(source, store.clone(), telemetry.clone(), ready.clone());
    let subscriber = Subscriber::new(
        control.clone(),
        store.clone(),
        destinations.clone(),
        telemetry.clone(),
        bootstrap.instance.clone(),
        bootstrap.report_interval,
        store.inbound().is_none().then(|| ready.block("policy")),
    );
    let governor = Governor::new(Resources::of_this_process());
    let shared = Arc::new(Shared {
        store: store.clone(),
        destinations: destinations.clone(),
        telemetry: telemetry.clone(),
        settings,
        governor: governor.clone(),
        drain: draining.clone(),
    });
    let workload_api =
        workload_socket.map(|socket| workload_api::serve(socket, store.clone(), control, stop.clone()));
    let admin = Arc::new(Admin {
        store,
        destinations,
        telemetry,
        ready: ready.clone(),
        identity: renewals,
        drain: trigger.clone(),
        draining,
        drain_deadline: bootstrap.drain_deadline,
        instance: bootstrap.instance,
        app_metrics: bootstrap.app_metrics,
        mark: bootstrap.mark,
    });
    // From here on nothing fails: the handle exists before the first task, and dropping it ends them all.
    let mut sidecar = Sidecar {
        addresses,
        ready,
        trigger,
        drain_deadline: bootstrap.drain_deadline,
        stop: stop.clone(),
        tasks: vec![
            tokio::spawn(departure.follow(stop.clone())),
            tokio::spawn(identity.run(stop.clone())),
            tokio::spawn(subscriber.run(stop.clone())),
            tokio::spawn(admin::serve(admin_listener, Door::Admin, admin.clone(), stop.clone())),
            tokio::spawn(admin::serve(probes_listener, Door::Probes, admin.clone(), stop.clone())),
            tokio::spawn(admin::serve(metrics_listener, Door::Metrics, admin.clone(), stop.clone())),
            tokio::spawn(admin::serve(merged_listener, Door::Merged, admin, stop)),
            tokio::spawn(governor.keep_watch()),
        ],
        workers: Vec::new(),
        writers: Some(writers),
    };
    sidecar.tasks.extend(workload_api.map(tokio::spawn));
    sidecar.tasks.extend(keeping.map(tokio::spawn));
    for (number, set) in sets.drain(..).enumerate() {
        let (shared, guard) = (shared.clone(), sidecar.ready.block("listeners"));
        let worker = thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(move || work(set, shared, guard))
            .context("a worker thread cannot be started; raise the limit of processes")?;
        sidecar.workers.push(worker);
    }
    tracing::info!(addresses = ?sidecar.addresses, "sidecar listens");
    Ok(sidecar)
}

impl Sidecar {
    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Resolves when certificate and inbound policy are in force.
    pub async fn ready(&self) {
        self.ready.wait().await;
    }

    /// Not ready from now on, and every connection is asked to end. Accepts inbound connections for a while, and outbound ones until
    /// the app is gone; lets what is in flight finish until the deadline, and writes what is left to write.
    pub async fn drain(mut self) {
        let _not_ready = self.ready.block("draining");
        self.trigger.start(self.drain_deadline);
        let workers = std::mem::take(&mut self.workers);
        let joined =
            tokio::task::spawn_blocking(move || workers.into_iter().for_each(|worker| drop(worker.join())));
        if tokio::time::timeout(self.drain_deadline + NOTICE, joined).await.is_err() {
            tracing::warn!("a worker did not end in time and is left behind");
        }
        self.stop.cancel();
        let tasks = std::mem::take(&mut self.tasks);
        let ended = async {
            for task in tasks {
                let _ = task.await;
            }
        };
        // They end at once when told to; a bug in one must not hold up the shutdown.
        let _ = tokio::time::timeout(NOTICE, ended).await;
        if let Some(writers) = self.writers.take() {
            let _ = tokio::time::timeout(FLUSH, writers.finish()).await;
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.trigger.start(Duration::ZERO);
        self.stop.cancel();
    }
}

fn control_plane(bootstrap: &Bootstrap) -> anyhow::Result<ControlPlane> {
    let trust_domain: TrustDomain = bootstrap.trust_domain.parse().map_err(|cause| {
        Failure::error(
            format!("the trust domain `{}` is not one: {cause}.", bootstrap.trust_domain),
            "Use the trust domain of the mesh, e.g. `cluster.local`.",
        )
    })?;
    let bundle = Bundle::from_pem(trust_domain.clone(), &bootstrap.trust_bundle_pem).map_err(|cause| {
        Failure::error(
            format!("the trust bundle cannot be used: {cause}."),
            "Give the PEM file with the root certificate that the control plane wrote.",
        )
    })?;
    for problem in bundle.problems(UnixTime::now()) {
        tracing::warn!(%problem, "an authority of the trust bundle cannot be used");
    }
    let trust = [bundle].into_iter().collect();
    ControlPlane::new(bootstrap.control_plane.clone(), trust_domain, trust, bootstrap.mark)
        .map_err(anyhow::Error::msg)
}

fn settings(bootstrap: &Bootstrap, addresses: &Addresses) -> Settings {
    let own = addresses.inbound.iter().chain(&addresses.outbound).chain(&addresses.admin);
    Settings {
        mark: bootstrap.mark,
        workers: bootstrap.workers.max(1),
        app_source: match &bootstrap.interception {
            Interception::Redirect { mode: InterceptionMode::Redirect, .. } => AppSource::Passthrough,
            Interception::Redirect { mode: InterceptionMode::Tproxy, .. } => AppSource::Caller,
            Interception::Explicit { .. } => AppSource::Any,
        },
        own_ports: own.map(SocketAddr::port).collect(),
        ..Settings::default()
    }
}

/// A page that has itself in it would never end.
fn not_our_own(app: Option<&AppMetrics>, addresses: &Addresses) -> anyhow::Result<()> {
    let own = addresses.admin.iter().chain(&addresses.probes).chain(&addresses.metrics);
    let mut own = own.chain(&addresses.merged_metrics).chain(&addresses.inbound).chain(&addresses.outbound);
    let is_own = |app: &&AppMetrics| {
        own.any(|own| {
            own.port() == app.address.port() && (own.ip().is_unspecified() || own.ip() == app.address.ip())
        })
    };
    match app.filter(is_own) {
        None => Ok(()),
        Some(app) => Err(Failure::error(
            format!("the app's metrics are said to be on {}, which is the sidecar's own port.", app.address),
            "Name the port of the app, by `--app-metrics` or by the pod's annotation prometheus.io/port.",
        )),
    }
}

/// TPROXY without the right to it would leave every inbound connection unanswered, and the app a mesh that it cannot see into.
fn may_take(bootstrap: &Bootstrap) -> anyhow::Result<()> {
    let Interception::Redirect { mode: InterceptionMode::Tproxy, .. } = &bootstrap.interception else {
        return Ok(());
    };
    anyhow::ensure!(
        bootstrap.mark != Some(TPROXY_MARK),
        Failure::error(
            format!("the mark {TPROXY_MARK} is that of TPROXY's connections to the app."),
            "Give `--mark` another number, the same as `postern redirect` has."
        )
    );
    may_be_transparent(TPROXY_MARK).map_err(|cause| {
        Failure::error(
            format!("inbound connections cannot be taken by TPROXY: {cause}."),
            "Give the sidecar the capability CAP_NET_ADMIN, or leave `--interception-mode` and the rules at redirect.",
        )
    })
}

/// Where the app listens, when that is said; otherwise its ports are those that services declare.
fn app_addresses(interception: &Interception) -> Vec<SocketAddr> {
    match interception {
        Interception::Redirect { .. } => Vec::new(),
        Interception::Explicit { inbound, .. } => inbound.iter().map(|(_, app)| *app).collect(),
    }
}

type Set = Vec<(Direction, Listener)>;

/// One set of listeners per worker, all on the same addresses.
fn bind_all(interception: &Interception, workers: usize) -> anyhow::Result<(Vec<Set>, Addresses)> {
    let wanted: Vec<(Direction, SocketAddr, Arrival)> = match interception {
        Interception::Redirect { inbound, outbound, mode } => {
            let arrival = match mode {
                InterceptionMode::Redirect => Arrival::Redirected,
                InterceptionMode::Tproxy => Arrival::Transparent,
            };
            let inbound = inbound.iter().map(|address| (Direction::Inbound, *address, arrival));
            let outbound =
                outbound.iter().map(|address| (Direction::Outbound, *address, Arrival::Redirected));
            inbound.chain(outbound).collect()
        }
        Interception::Explicit { inbound, outbound } => {
            let inbound = inbound.iter().map(|(bind, app)| (Direction::Inbound, *bind, Arrival::Fixed(*app)));
            let outbound =
                outbound.iter().map(|(bind, to)| (Direction::Outbound, *bind, Arrival::Fixed(*to)));
            inbound.chain(outbound).collect()
        }
    };
    let mut sets: Vec<Set> = (0..workers).map(|_| Vec::new()).collect();
    let mut addresses = Addresses::default();
    for (direction, address, arrival) in wanted {
        let mut bound = address;
        for (number, set) in sets.iter_mut().enumerate() {
            if number == 0 {
                in_use(bound)?;
            }
            let listener = Listener::bind(bound, arrival).map_err(|cause| cannot_bind(bound, &cause))?;
            bound = listener.local_addr().map_err(|cause| cannot_bind(bound, &cause))?;
            set.push((direction, listener));
        }
        match direction {
            Direction::Inbound => addresses.inbound.push(bound),
            Direction::Outbound => addresses.outbound.push(bound),
        }
    }
    Ok((sets, addresses))
}

/// `SO_REUSEPORT` would let us share a port with another process of the same user, a second sidecar for example, and each
/// would get half of the connections. A plain bind finds out.
fn in_use(address: SocketAddr) -> anyhow::Result<()> {
    if address.port() == 0 {
        return Ok(());
    }
    let domain = socket2::Domain::for_address(address);
    let probe = || {
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())
    };
    probe().map_err(|cause| cannot_bind(address, &cause))
}

async fn bind_plain(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|cause| cannot_bind(address, &cause))
}

fn cannot_bind(address: SocketAddr, cause: &io::Error) -> anyhow::Error {
    let remedy = match cause.kind() {
        io::ErrorKind::AddrInUse => {
            "Stop the process that listens there, perhaps another sidecar, or choose another address."
        }
        io::ErrorKind::PermissionDenied => "Choose a port above 1023, or grant CAP_NET_BIND_SERVICE.",
        io::ErrorKind::AddrNotAvailable => "Choose an address that this host has.",
        _ => "Choose another address.",
    };
    Failure::error(format!("the address {address} cannot be listened on: {cause}."), remedy)
}

/// The life of one data-plane worker.
fn work(set: Set, shared: Arc<Shared>, guard: Guard) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // A runtime that is local itself: a `LocalSet` inside another one would pass each wake-up on a second time.
    let runtime = match builder.enable_all().build_local(LocalOptions::default()) {
        Ok(runtime) => runtime,
        Err(error) => {
            // The guard is kept: a sidecar without its workers never gets ready.
            std::mem::forget(guard);
            tracing::error!(%error, "a worker cannot start its runtime");
            return;
        }
    };
    runtime.block_on(async move {
        let serving: Vec<_> = set
            .into_iter()
            .map(|(direction, listener)| match direction {
                Direction::Inbound => tokio::task::spawn_local(inbound::serve(listener, shared.clone())),
                Direction::Outbound => tokio::task::spawn_local(outbound::serve(listener, shared.clone())),
            })
            .collect();
        drop(guard);
        for served in serving {
            if let Err(error) = served.await {
                shared.telemetry.metrics().panicked();
                tracing::error!(%error, "a listener ended by a bug; the others go on");
            }
        }
    });
}
