//! Keys of `when` conditions (reference 2.10), and what each kind of value is compared with.

use super::Compiler;
use crate::{matchers::ClaimPath, problem};
use http::HeaderName;

impl Compiler<'_> {
    /// Reads a `when` key (reference 2.10).
    pub(super) fn key(&mut self, index: usize, key: &str) -> Option<Kind> {
        Some(match key {
            "source.ip" => Kind::SourceIp,
            "remote.ip" => Kind::RemoteIp,
            "source.namespace" => Kind::Namespace,
            "source.serviceAccount" => Kind::ServiceAccount,
            "source.principal" => Kind::Principal,
            "source.trustDomain" => Kind::TrustDomain,
            "destination.ip" => Kind::DestinationIp,
            "destination.port" => Kind::DestinationPort,
            "connection.sni" => Kind::Sni,
            "request.auth.principal" => Kind::RequestPrincipal,
            "request.auth.audiences" => Kind::Claim(ClaimPath::audiences()),
            "request.auth.presenter" => Kind::Claim(ClaimPath::presenter()),
            _ => {
                if let Some(name) = key.strip_prefix("request.headers") {
                    return self.header(index, key, name);
                }
                if let Some(path) = key.strip_prefix("request.auth.claims") {
                    return self.claim(index, key, path);
                }
                self.unusable_key(index, key);
                return None;
            }
        })
    }

    fn header(&mut self, index: usize, key: &str, bracketed: &str) -> Option<Kind> {
        let name = bracketed
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .filter(|name| !name.is_empty());
        let Some(name) = name else {
            self.problem(
                problem::BAD_CONDITION,
                format!("when[{index}]: bad key ({key}): should have format a[b]"),
                "write request.headers[name]",
            );
            return None;
        };
        match name.to_ascii_lowercase().as_str() {
            ":authority" | "host" => return Some(Kind::Authority),
            ":method" => return Some(Kind::Method),
            pseudo if pseudo.starts_with(':') => {
                self.not_enforced(&format!("when[{index}] key {key}"), "use to.operation.paths for the path");
                return None;
            }
            _ => {}
        }
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => Some(Kind::Header(name)),
            Err(_) => {
                self.problem(
                    problem::BAD_CONDITION,
                    format!("when[{index}]: {name} in key {key} can not be the name of a header"),
                    "write request.headers[name] with letters, digits and hyphens",
                );
                None
            }
        }
    }

    fn claim(&mut self, index: usize, key: &str, bracketed: &str) -> Option<Kind> {
        let path = ClaimPath::parse(bracketed);
        if path.is_none() {
            self.problem(
                problem::BAD_CONDITION,
                format!("when[{index}]: bad key ({key}): should have format a[b]"),
                "write request.auth.claims[name], or request.auth.claims[outer][inner]",
            );
        }
        path.map(Kind::Claim)
    }

    fn unusable_key(&mut self, index: usize, key: &str) {
        if key.starts_with("experimental.") {
            self.not_enforced(
                &format!("when[{index}] key {key}"),
                "remove the condition and what depends on it",
            );
            return;
        }
        let why = match key {
            "" => "`key` must not be empty".to_string(),
            "destination.namespace" => format!("attribute {key} is replaced by the metadata.namespace"),
            "destination.name" | "destination.user" => {
                format!("deprecated attribute {key}: only supported in v1alpha1")
            }
            _ if key.starts_with("destination.labels") => {
                format!("attribute {key} is replaced by the workload selector")
            }
            _ => format!("unknown attribute: {key}"),
        };
        self.problem(
            problem::BAD_CONDITION,
            format!("when[{index}]: {why}"),
            "use source.*, remote.ip, destination.ip, destination.port, connection.sni, request.headers[name] or \
             request.auth.*",
        );
    }
}

/// What a field or key is compared with.
pub(super) enum Kind {
    Principal,
    Namespace,
    ServiceAccount,
    TrustDomain,
    SourceIp,
    RemoteIp,
    DestinationIp,
    DestinationPort,
    Sni,
    Host,
    Method,
    Path,
    Authority,
    Header(HeaderName),
    RequestPrincipal,
    Claim(ClaimPath),
}

impl Kind {
    /// The code of a value that does not parse.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::ServiceAccount => problem::BAD_SERVICE_ACCOUNT,
            Self::TrustDomain => problem::BAD_TRUST_DOMAIN,
            Self::SourceIp | Self::RemoteIp | Self::DestinationIp => problem::BAD_ADDRESS,
            Self::DestinationPort => problem::BAD_PORT,
            Self::Path => problem::BAD_TEMPLATE,
            _ => problem::UNKNOWN_VALUE,
        }
    }
}
