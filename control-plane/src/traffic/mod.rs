//! What sidecars report of the traffic that they carry: the last hour, in steps of ten seconds, bounded whatever they say.
//!
//! `intake` reads a report with suspicion, `history` keeps what is left of it, `decision` explains one
//! denial, `events` tells of reports as they come, [`pages`] is how all is told. What a sidecar says of its own
//! calls is its word: it can lie about them, but about nobody else's, and it cannot make us grow.

pub(crate) mod decision;
mod denied;
pub(crate) mod events;
mod history;
pub(crate) mod intake;
pub mod pages;
pub(crate) mod sums;
pub(crate) mod tap;

pub(crate) use history::{End, Traffic};
