//! `PolicyTest` (postern.dev/v1), a kind of ours: a table of questions and the answers that policy must give. It is
//! read by `postern test`; to everything that runs it changes nothing, so that it may stand beside what it tests.
use super::{Metadata, Origin};
use std::collections::BTreeMap;

/// The document.
#[derive(Clone, Debug, Default)]
pub struct PolicyTest {
    /// `metadata`.
    pub metadata: Metadata,
    /// `tests`.
    pub tests: Vec<Case>,
}

/// One entry of `tests`.
#[derive(Clone, Debug, Default)]
pub struct Case {
    /// Where it was written.
    pub origin: Origin,
    /// `name`; empty when unset.
    pub name: String,
    /// `from`: a workload, service account or SPIFFE ID.
    pub from: String,
    /// `to`: a workload or service.
    pub to: String,
    /// `method`.
    pub method: Option<String>,
    /// `path`, a query is cut off.
    pub path: Option<String>,
    /// `headers`.
    pub headers: BTreeMap<String, String>,
    /// `host`.
    pub host: Option<String>,
    /// `port`: of the service when `to` is one, else of the workload.
    pub port: Option<u16>,
    /// `claims`: payload of a verified token.
    pub claims: Option<serde_json::Map<String, serde_json::Value>>,
    /// `tcp: true`: a connection without a request.
    pub tcp: bool,
    /// `plaintext: true`: the caller shows no certificate.
    pub plaintext: bool,
    /// `expect` is `allow`.
    pub expect_allow: bool,
    /// `because`: a part of the explanation, of the policy's name or of the reason.
    pub because: Option<String>,
}
