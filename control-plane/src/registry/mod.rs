//! What is in the mesh: workloads, services, addresses and policies, from documents.
//!
//! [`index`] is pure: it answers "what does this pod enforce" and "where does a call to this address go".
//! [`from_files`] brings the documents of a folder; Kubernetes becomes a second source beside it.

pub mod destination;
pub mod from_files;
pub mod index;
pub mod interception;
mod named;
mod outside;
mod rules;
mod selected;

pub use index::{Index, Policy};

#[cfg(test)]
mod outside_tests;
#[cfg(test)]
mod tests;
