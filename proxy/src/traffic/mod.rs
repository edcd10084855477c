//! What both journeys share: the surroundings, the accept loop, the choice of an endpoint, and the way of one exchange.

pub mod balance;
pub mod breaker;
pub mod forward;
pub mod governor;
pub mod requests;
mod shared;
pub mod upstream;
mod upstreams;
mod worker;

pub use shared::{AppSource, Limits, Settings, Shared};
pub use upstreams::Upstreams;
pub use worker::Worker;

#[cfg(test)]
mod journey_tests;
