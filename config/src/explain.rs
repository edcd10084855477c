//! Why, and the closest rule that would have allowed. Computed only when someone asks.
use crate::{authorize::{Facts, RuleRef}, snapshot::Snapshot};
use serde::Serialize;
/// The first condition of a rule that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct FailedCondition { /** Istio's field, e.g. `from[0].source.principals` */ pub field: String, pub saw: String, pub wanted: Vec<String> }
/// An explanation a person can act on; `Display` is one or two sentences.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Explanation { pub allowed: bool, /** one sentence */ pub summary: String, pub decided_by: Option<RuleRef>, /** for a default deny */ pub closest: Option<(RuleRef, FailedCondition)> }
/// Explains the decision that [`crate::authorize::authorize`] takes on the same input.
pub fn explain(_snapshot: &Snapshot, _facts: &Facts<'_>) -> Explanation { todo!() }
