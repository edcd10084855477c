//! Path normalization in Istio's four modes (reference 2.9), applied before any match and forwarded as matched.
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
/// `meshConfig.pathNormalization.normalization`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum Normalization { None, #[default] Base, MergeSlashes, DecodeAndMergeSlashes }
/// A path that has no safe reading; answered 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PathError(pub &'static str);
/// Normalizes a request target's path (without the query).
pub fn normalize(_path: &str, _mode: Normalization) -> Result<Cow<'_, str>, PathError> { todo!() }
