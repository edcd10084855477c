//! The authority and the publisher: issues certificates to attested sidecars and pushes policy and destinations.
//!
//! Read [`app`] first: it shows how [`authority`] (who signs), [`attest`] (who asks), [`registry`] (what is in the mesh) and
//! [`publish`] (what goes out to whom) are put together, and [`federation`] (whom else we trust).
//! [`rotation`] is the evidence by which authorities come and go, `upkeep` acts on it, [`admin`] is how operators ask.
//! [`traffic`] is what sidecars report of it, for people. [`run`](mod@run) is the same as a program of its own.

pub mod admin;
pub mod app;
pub mod attest;
pub mod authority;
pub mod federation;
pub mod publish;
pub mod registry;
pub mod rotation;
pub mod run;
pub mod traffic;
mod upkeep;

pub use app::{ControlPlane, Options, start};
pub use attest::{Attested, JoinTokens, KubernetesTokens};
pub use authority::Upstream;
pub use federation::FederationStatus;
pub use publish::status::SessionStatus;
pub use registry::from_files::{read_folder, watch};
pub use run::{Flags, run};
