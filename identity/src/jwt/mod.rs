//! JWT-SVIDs: tokens that say who, for one audience, for minutes (SPIFFE JWT-SVID).

pub mod algorithm;
pub mod compose;
pub mod key;
pub mod refusal;
pub mod svid;

pub use algorithm::Algorithm;
pub use compose::{assemble, signing_input};
pub use key::{Curve, JwtKey, PublicKey};
pub use refusal::TokenRefusal;
pub use svid::{JwtSvid, verify};
