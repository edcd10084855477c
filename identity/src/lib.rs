//! Who: SPIFFE IDs, trust domains, bundles, and the one verifier that makes a [`Peer`].
//!
//! This crate does no IO, reads no clock and spawns nothing; it is total on any input.

pub mod bundle;
mod bundle_map;
pub mod id;
mod json;
pub mod jwks;
pub mod jwt;
mod jwt_key;
pub mod key_id;
mod provider;
pub mod refusal;
pub mod svid;
pub mod tls;
pub mod verify;

pub use bundle::{Bundle, TrustBundles};
pub use id::{IdError, SpiffeId, TrustDomain};
pub use jwt::{JwtSvid, TokenRefusal};
pub use jwt_key::JwtKey;
pub use key_id::KeyId;
pub use refusal::Refusal;
pub use verify::{Accept, Peer};
