//! Whole meshes in one process: a real control plane, real sidecars and real apps on loopback addresses, without
//! privileges and without a sleep. A test says what it wants to see; [`Mesh`] brings it up and takes it down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

pub mod apps;
pub mod browser;
pub mod cacerts;
pub mod calls;
pub mod certificates;
pub mod client;
pub mod envoy;
pub mod envoy_callers;
pub mod envoy_grid;
pub mod envoy_rbac;
pub mod envoy_sidecar;
pub mod faulty;
pub mod foreign;
pub mod ground;
pub mod load;
pub mod log;
pub mod mesh;
pub mod otlp;
pub mod pods;
pub mod ports;
pub mod processes;
pub mod raw;
pub mod relay;
pub mod scenario;
pub mod shared;
pub mod spire;
pub mod stand_in;
pub mod standalone;
pub mod tree;
pub mod up;
pub mod visitor;
pub mod watched;
pub mod workload_api;

pub use apps::{App, Received};
pub use client::{Answer, Broken, Request};
pub use log::AccessLog;
pub use mesh::{Mesh, within};
pub use raw::{Raw, Step};
