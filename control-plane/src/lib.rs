//! The authority and the publisher: issues certificates to attested sidecars and pushes policy and destinations.

pub mod app;
pub mod attest;
pub mod authority;
pub mod publish;
pub mod registry;

pub use app::{ControlPlane, Options, start};
pub use attest::{Attested, JoinTokens};
