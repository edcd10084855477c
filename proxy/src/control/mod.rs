//! The stream to the control plane: policy in, destinations on demand, ack and nack, and reports of what passed.

pub mod backoff;
pub mod channel;
pub mod destinations;
pub mod reports;
mod slot;
pub mod stream;
pub mod taps;
pub mod translate;

pub use channel::ControlPlane;
pub use destinations::Destinations;
