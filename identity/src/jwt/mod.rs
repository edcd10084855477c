//! JWT-SVIDs: tokens that say who, for one audience, for minutes (SPIFFE JWT-SVID).

pub mod key;

pub use key::{Curve, JwtKey, PublicKey};
