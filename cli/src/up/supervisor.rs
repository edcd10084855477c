//! The process that runs a mesh: control plane and pods up, changes applied as files change, everything down in order.
use super::{
    Opened, Options, Story, Tell, control_socket,
    journal::Journal,
    loopback::Layout,
    mesh::{self, Ground, Mesh, Parts},
    network::Network,
    plan::Plan,
    runtime_dir, stage, summary, telemetry_relay,
};
use crate::{
    failure::{ERROR, Failure, OK},
    folder,
    interception::{Exemption, rules::PROXY_MARK},
    tools::Tools,
};
use postern_control_plane::registry::from_files;
use std::{
    io::{IsTerminal, Read},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The port of the control plane.
const CONTROL_PLANE_PORT: u16 = 15012;
/// How long a mesh with a story may take to be ready.
const STORY_PATIENCE: Duration = Duration::from_secs(30);
/// The longest that workload certificates live.
const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(3600);

/// Runs the mesh until its standard input ends (the outer process asks so), a signal comes, or a story with `once` is over.
///
/// # Errors
/// The mesh cannot be brought up.
pub fn run(
    options: Options,
    runtime: &Path,
    user_namespace: bool,
    story: Option<Story>,
) -> Result<ExitCode, Failure> {
    let _ = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(|e| {
            Failure::new(format!("no event loop: {e}."), "Check the limits of this process (ulimit -n).")
        })?;
    let done = threads.block_on(bring_up(options, runtime, user_namespace, story));
    // A blocking thread may still sit in a read; nobody waits for it.
    threads.shutdown_background();
    done
}

async fn bring_up(
    options: Options,
    runtime: &Path,
    user_namespace: bool,
    story: Option<Story>,
) -> Result<ExitCode, Failure> {
    let began = Instant::now();
    let stop = stop_asked();
    let directory = folder::locate(&options.directory)?;
    // Before the first reading, so that no edit falls in between.
    let mut changes = from_files::watch(&options.directory)
        .map_err(|e| Failure::new(format!("the folder cannot be watched: {e}."), "Look at its rights."))?;
    let first = folder::examine(&options.directory)?;
    if first.has_errors() {
        first.print_problems();
        return Ok(ExitCode::from(ERROR));
    }
    let ground = if options.loopback {
        let layout = Layout::new(runtime_dir::fingerprint(&directory));
        let plan = Plan::make(&first.documents, &Plan::default())?;
        layout.admit(&plan)?;
        check_free(&layout.listeners(&plan))?;
        Ground::Loopback(layout)
    } else {
        let exemption = if user_namespace { Exemption::Mark(PROXY_MARK) } else { Exemption::default() };
        let network = Network::build(Tools::from_environment(), exemption)?;
        Ground::Bridge { network, user_namespace, ipv6: Path::new("/proc/sys/net/ipv6").is_dir() }
    };
    let hub = mesh::hub(&ground);
    let opened = match story {
        Some(story) => Some(story(hub.into()).await?),
        None => None,
    };
    let (tell, telemetry_endpoint) = match opened {
        Some(Opened { telemetry_endpoint, tell, suggestions }) => {
            (Some((tell, suggestions)), telemetry_endpoint)
        }
        None => (None, telemetry_endpoint(&options, runtime, hub).await?),
    };
    let trust_domain = first.documents.mesh.trust_domain.clone();
    let control_plane = postern_control_plane::start(control_plane_options(&options, &ground, &trust_domain))
        .await
        .map_err(|e| {
            Failure::new(
                format!("the control plane did not start: {e:#}."),
                "Free its port, or stop the other one.",
            )
        })?;
    control_plane.open_admin_socket(runtime.join(runtime_dir::ADMIN_SOCKET)).map_err(|e| {
        Failure::new(format!("the mesh cannot be asked: {e:#}."), "Free the place, or stop who is there.")
    })?;
    let folder = runtime.join(stage::MESH);
    let parts = Parts {
        journal: Arc::new(Journal::new(Some(folder.join("logs")), options.echo)),
        app_path: app_path(&options),
        executable: stage::executable()?,
        directory,
        folder,
        ground,
        control_plane,
        trust_domain,
        telemetry_endpoint,
        options,
    };
    let mesh = Mesh::new(parts);
    let socket = control_socket::listen(&runtime.join(runtime_dir::SOCKET), mesh.clone(), user_namespace)?;
    let result = attend(&mesh, &mut changes, &stop, first, tell, began).await;
    drop(socket);
    mesh.stop().await;
    result
}

async fn attend(
    mesh: &Mesh,
    changes: &mut from_files::Changes,
    stop: &CancellationToken,
    first: folder::Folder,
    story: Option<(Tell, Vec<(&'static str, &'static str)>)>,
    began: Instant,
) -> Result<ExitCode, Failure> {
    mesh.apply(&first.documents).await?;
    // A person who runs `up` reads what is missing and may repair it; a story is not told to somebody who waits for ever.
    let patience = if story.is_some() { STORY_PATIENCE } else { Duration::MAX };
    tokio::select! {
        ready = mesh.ready() => ready?,
        () = stop.cancelled() => return Ok(ExitCode::from(OK)),
        () = tokio::time::sleep(patience) => return Err(mesh.what_is_missing()),
    }
    summary::print(mesh, began.elapsed());
    let once = mesh.options().once;
    let mut code = ExitCode::from(OK);
    let mut suggestions = Vec::new();
    if let Some((tell, suggested)) = story {
        suggestions = suggested;
        tokio::select! {
            told = tell(mesh.clone()) => code = told,
            () = stop.cancelled() => return Ok(ExitCode::from(130)),
        }
        if once {
            return Ok(code);
        }
    }
    summary::print_next_steps(mesh, &suggestions);
    loop {
        tokio::select! {
            () = changes.changed() => renew(mesh).await,
            () = stop.cancelled() => return Ok(code),
        }
    }
}

/// Applies what the folder says now; when that is wrong, everything stays as it is.
async fn renew(mesh: &Mesh) {
    let began = Instant::now();
    let kept = "the mesh keeps its last good state";
    let directory = mesh.options().directory.clone();
    let read = tokio::task::spawn_blocking(move || folder::examine(&directory)).await;
    let folder = match read {
        Ok(Ok(folder)) => folder,
        Ok(Err(failure)) => return mesh.journal().note(&format!("{failure}\n({kept})")),
        Err(e) => return mesh.journal().note(&format!("the folder was not read: {e} ({kept})")),
    };
    folder.print_problems();
    if folder.has_errors() {
        return mesh.journal().note(&format!("{}; {kept}.", folder.tally()));
    }
    match mesh.apply(&folder.documents).await {
        Ok(touched) => {
            if touched && let Err(failure) = mesh.ready().await {
                eprintln!("{failure}");
            }
            mesh.journal().note(&format!("the change is in force after {} ms.", began.elapsed().as_millis()));
        }
        Err(failure) => mesh.journal().note(&format!("{failure}\n({kept})")),
    }
}

/// What the person named, as the pods can reach it.
async fn telemetry_endpoint(
    options: &Options,
    runtime: &Path,
    hub: Ipv4Addr,
) -> Result<Option<telemetry_relay::Endpoint>, Failure> {
    match &options.telemetry_endpoint {
        Some(endpoint) if !options.loopback => {
            let inside = telemetry_relay::serve_inside(runtime, hub.into())
                .await
                .map_err(|e| Failure::new(format!("spans cannot be taken in the hub: {e}."), "Try again."))?;
            Ok(Some(endpoint.clone().through(inside)))
        }
        as_named => Ok(as_named.clone()),
    }
}

fn control_plane_options(
    options: &Options,
    ground: &Ground,
    trust_domain: &str,
) -> postern_control_plane::Options {
    let listen = match ground {
        Ground::Bridge { .. } => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), CONTROL_PLANE_PORT),
        Ground::Loopback(_) => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0),
    };
    postern_control_plane::Options {
        listen,
        // The authority lives as long as the mesh; its key never touches a disk.
        state: None,
        trust_domain: trust_domain.to_owned(),
        certificate_lifetime: options
            .certificate_lifetime
            .map_or(CERTIFICATE_LIFETIME, |wanted| wanted.min(CERTIFICATE_LIFETIME)),
        unix_socket: None,
        kubernetes: None,
        federation: postern_control_plane::federation::Settings::default(),
        upstream: postern_control_plane::Upstream::Own,
        allow_ending_authority: false,
    }
}

/// Cancelled when our standard input ends or says anything, or on SIGTERM and Ctrl-C when somebody sends them here.
fn stop_asked() -> CancellationToken {
    let stop = CancellationToken::new();
    let asked = stop.clone();
    std::thread::spawn(move || {
        let mut byte = [0_u8; 1];
        let _ = std::io::stdin().read(&mut byte);
        asked.cancel();
    });
    let asked = stop.clone();
    tokio::spawn(async move {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        asked.cancel();
    });
    stop
}

/// Without namespaces somebody else may have a port that the mesh needs.
fn check_free(listeners: &[SocketAddr]) -> Result<(), Failure> {
    for address in listeners {
        if let Err(e) = TcpListener::bind(address) {
            return Err(Failure::new(
                format!("the mesh needs {address}, which cannot be listened on: {e}."),
                format!(
                    "Find who has it (ss -ltnp 'sport = :{}') and stop that, or choose another port.",
                    address.port()
                ),
            ));
        }
    }
    Ok(())
}

/// Our own folder first, so that `postern app …` works in a container's command.
fn app_path(options: &Options) -> String {
    let own = options.program.parent().map(|p| p.display().to_string()).unwrap_or_default();
    let rest = Tools::from_environment().path();
    format!("{own}:{}", rest.to_string_lossy())
}
