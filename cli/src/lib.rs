//! The one binary people install, as a library: `up`, `exec`, `check`, `redirect`, `demo`, `app`, the questions about policy, those
//! about authorities and certificates, and what the mesh does now (`status`, `top`, `denials`,
//! `policies`, `dashboard`).
//!
//! `up` is the largest room: it turns a folder of YAML into a running mesh of processes. `interception` writes the
//! redirect rules. The rest are commands and the words that they share.

pub mod app;
pub mod authority;
pub mod bug_report;
pub mod check;
pub mod demo;
mod exchange;
pub mod failure;
pub mod folder;
pub mod interception;
pub mod live;
pub mod policy;
pub mod tools;
pub mod up;
pub mod why;
