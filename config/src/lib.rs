//! What is allowed: documents -> [`Snapshot`] -> [`Decision`].
//!
//! Pure: no IO, no async, no clock; total on any input. The proxy, the control plane and the command line call the
//! same functions, so they cannot disagree.

pub mod authorize;
pub mod cel;
pub mod documents;
pub mod explain;
pub mod matchers;
pub mod path;
pub mod problem;
pub mod select;
pub mod snapshot;
pub mod telemetry;
pub mod validate;

pub use authorize::{Claims, Decision, Facts, HttpFacts, Judgement, PolicyRef, Reason, RuleRef, Verdict};
pub use documents::Documents;
pub use problem::{Problem, Severity};
pub use snapshot::{InboundSpec, Snapshot};
