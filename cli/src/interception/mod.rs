//! How a pod's TCP traffic comes to its sidecar, and how services get their addresses where there is no sidecar.
//!
//! `rules` and `services` make text and nothing else; `apply` hands text to `nft` or `iptables-restore`.

pub mod apply;
pub mod command;
pub mod rules;
pub mod services;

pub use rules::{Exemption, Redirect};
