//! Questions about policy, answered from files: `why`, `test`, `impact`, `generate`.
//!
//! `mesh` reads a folder, `question` finds out who is meant, `answer` asks the evaluator that the sidecar has; `flows`
//! reads access logs, `fold` makes templates of paths; `formats` prints.

pub mod answer;
pub mod flows;
pub mod fold;
pub mod formats;
pub mod generate;
pub mod impact;
pub mod mesh;
pub mod question;
pub mod replay;
pub mod test;
pub mod why;

#[cfg(test)]
mod policy_tests;
