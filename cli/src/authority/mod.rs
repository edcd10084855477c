//! What operators ask the control plane about authorities and certificates: `postern ca`, `postern certs`, and
//! `postern check --expires-within`.
//!
//! The control plane decides and refuses; here is only how it is asked and how the answer is read.

pub mod ca;
pub mod certs;
pub mod expiry;
pub(crate) mod shown;
pub(crate) mod socket;

pub use socket::Where;
