//! `postern up DIR`: a folder of YAML becomes a running mesh on this machine.
//!
//! Four processes, each there for one reason:
//! the **outer** one (here) talks to the person, holds the lock and removes what is left;
//! **stage 1** leaves the host's namespaces (`stage`);
//! **init** is process 1 of the new ones: when it dies, the kernel ends everything in them;
//! the **supervisor** runs control plane, sidecars and apps (`supervisor`, `mesh`, `pod`).

pub mod attach;
pub mod control_socket;
pub mod hosts;
pub mod journal;
pub mod kernel;
pub mod launch;
pub mod loopback;
pub mod mesh;
pub mod namespaces;
pub mod network;
pub mod outer;
pub mod plan;
pub mod pod;
pub mod process;
pub mod runtime_dir;
pub mod sidecar;
pub mod stage;
pub mod summary;
pub mod supervisor;
pub mod telemetry_relay;

pub use mesh::{AdminAnswer, Mesh};
pub use outer::run;
pub use stage::{StageArgs, run as run_stage};

use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    process::ExitCode,
    time::Duration,
};

/// What `postern up` was asked to do; handed on from stage to stage.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// The folder, as the person named it.
    pub directory: PathBuf,
    /// Do without namespaces, on loopback addresses with explicit ports.
    pub loopback: bool,
    /// Print what apps and sidecars say.
    pub echo: bool,
    /// Run the story that belongs to this command (`postern demo`), then stay up.
    pub story: bool,
    /// With a story: do not stay up after it.
    pub once: bool,
    /// Lifetime of workload certificates; the control plane's default is one hour.
    pub certificate_lifetime: Option<Duration>,
    /// Where the sidecars' spans go, unless the story brings a collector of its own.
    pub telemetry_endpoint: Option<telemetry_relay::Endpoint>,
    /// Where a browser finds the page of the mesh.
    pub page: Page,
    /// This program as the person started it; apps find it in their `PATH`.
    pub program: PathBuf,
}

/// Where the page of a mesh is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Page {
    /// Nowhere.
    Off,
    /// At its usual port, or at any other when that is taken.
    Anywhere,
    /// Here, or the mesh does not start. An address of loopback; port 0 is any.
    At(SocketAddr),
}

/// A future of a story.
pub type Telling<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a command adds to a mesh: called in the supervisor with the address of the hub, before the first pod starts.
pub type Story = fn(hub: IpAddr) -> Telling<Result<Opened, Failure>>;

/// A story that is ready to be told.
pub struct Opened {
    /// Where sidecars send their spans; reachable from the pods.
    pub telemetry_endpoint: Option<telemetry_relay::Endpoint>,
    /// Told once all pods are ready; its exit code becomes that of the command.
    pub tell: Tell,
    /// What to try next, as pods and the commands to run in them; empty: calls that fit any mesh.
    pub suggestions: Vec<(&'static str, &'static str)>,
}

/// The telling of a story.
pub type Tell = Box<dyn FnOnce(Mesh) -> Telling<ExitCode> + Send>;
