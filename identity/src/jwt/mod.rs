//! JWT-SVIDs: tokens that say who, for one audience, for minutes (SPIFFE JWT-SVID).

pub mod algorithm;
pub mod compose;
pub mod refusal;
pub mod svid;

pub use algorithm::Algorithm;
pub use compose::{assemble, signing_input};
pub use refusal::TokenRefusal;
pub use svid::{JwtSvid, verify};

pub use crate::jwt_key::{Curve, JwtKey, PublicKey};
