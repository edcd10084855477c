//! The sidecar: takes over a workload's TCP traffic, proves both ends, decides, forwards, and records.
//!
//! Layers, nothing points up: run > app > admin | workload_api > inbound | outbound > traffic > http > workload_identity > control >
//! tls | state > net; telemetry, error, drain and ready are words that all use.

pub mod admin;
pub mod app;
pub mod bootstrap;
pub mod control;
pub mod drain;
pub mod error;
pub mod http;
pub mod inbound;
pub mod kept;
pub mod log;
pub mod net;
pub mod news;
pub mod outbound;
mod pages;
pub mod ready;
pub mod run;
pub mod state;
pub mod telemetry;
pub mod tls;
pub mod traffic;
pub mod workload_api;
pub mod workload_identity;

pub use app::{Sidecar, start};
pub use bootstrap::{Bootstrap, Flags, Interception};
pub use run::{avoid_huge_pages, run};
