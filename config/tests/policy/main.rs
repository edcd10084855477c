//! What the mesh allows, table by table: the semantics of Istio's documents as the reference states them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod decisions;
mod differential;
mod explanations;
mod fields;
mod given;
mod identity_patterns;
mod modes;
mod path_normalization;
mod properties;
mod random;
mod refusals;
mod selection;
mod tcp;
mod trials;
