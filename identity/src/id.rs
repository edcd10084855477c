//! SPIFFE IDs and trust domains: parsed once, canonical for ever (SPIFFE-ID sections 2 to 2.4).
//!
//! SPIFFE lets a parser fold the case of scheme and trust domain. We accept canonical lower case only, on the wire
//! and in configuration, so that two spellings of one identity never meet in a comparison; the error says what to write.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// Longest SPIFFE ID that is accepted, in bytes (SPIFFE-ID 2.3).
pub const MAX_ID_BYTES: usize = 2048;
/// Longest trust domain name that is accepted, in bytes (SPIFFE-ID 2.3).
pub const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// A trust domain name: `[a-z0-9.-_]`, 1 to 255 bytes. No DNS or IP rules apply (SPIFFE-ID 2.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID `spiffe://<trust domain>/<path>`; the path may be empty, then it names the trust domain itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain_end: usize,
}

/// Why a text is not a SPIFFE ID or trust domain, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct IdError(pub String);

impl TrustDomain {
    /// The name as written, e.g. `cluster.local`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl SpiffeId {
    /// `spiffe://<td>/ns/<ns>/sa/<sa>`, the form Istio and Kubernetes meshes use.
    ///
    /// # Errors
    /// When a name is empty or holds a character that a path segment may not hold.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdError> {
        check_segment(namespace)
            .map_err(|cause| IdError(format!("namespace {}: {cause}", quoted(namespace))))?;
        check_segment(service_account)
            .map_err(|cause| IdError(format!("service account {}: {cause}", quoted(service_account))))?;
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{service_account}").parse()
    }

    /// The ID of the trust domain itself, `spiffe://<td>`, as signing certificates carry it.
    pub fn for_trust_domain(trust_domain: &TrustDomain) -> Self {
        let text: Arc<str> = format!("{SCHEME}{trust_domain}").into();
        Self { trust_domain_end: text.len(), text }
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain part.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.trust_domain_end).unwrap_or_default()
    }

    /// The path with its leading slash, empty for a trust domain ID.
    pub fn path(&self) -> &str {
        self.text.get(self.trust_domain_end..).unwrap_or_default()
    }

    /// `(namespace, service account)` when the path is `/ns/<ns>/sa/<sa>`.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let (namespace, rest) = self.path().strip_prefix("/ns/")?.split_once('/')?;
        let service_account = rest.strip_prefix("sa/")?;
        (!service_account.contains('/')).then_some((namespace, service_account))
    }

    /// The ID without `spiffe://`, as Istio policies write principals.
    pub fn principal(&self) -> &str {
        self.text.get(SCHEME.len()..).unwrap_or_default()
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        check_trust_domain(text)
            .map_err(|cause| IdError(format!("{} is not a trust domain: {cause}", quoted(text))))?;
        Ok(Self(text.into()))
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let trust_domain_end = check_id(text)
            .map_err(|cause| IdError(format!("{} is not a SPIFFE ID: {cause}", quoted(text))))?;
        Ok(Self { text: text.into(), trust_domain_end })
    }
}

/// Returns where the trust domain ends.
fn check_id(text: &str) -> Result<usize, String> {
    if text.len() > MAX_ID_BYTES {
        return Err(format!("it has {} bytes, the limit is {MAX_ID_BYTES}", text.len()));
    }
    let Some(rest) = text.strip_prefix(SCHEME) else {
        return Err(match text.get(..SCHEME.len()) {
            Some(scheme) if scheme.eq_ignore_ascii_case(SCHEME) => {
                format!("the scheme must be lower case; write `{SCHEME}`")
            }
            _ => {
                format!("it must start with `{SCHEME}`, for example `spiffe://cluster.local/ns/shop/sa/cart`")
            }
        });
    };
    let (trust_domain, path) = match rest.split_once('/') {
        Some((trust_domain, path)) => (trust_domain, Some(path)),
        None => (rest, None),
    };
    check_trust_domain(trust_domain)?;
    if let Some(path) = path {
        if path.is_empty() || path.ends_with('/') {
            return Err("it ends with `/`; remove the trailing slash".into());
        }
        path.split('/').try_for_each(check_segment)?;
    }
    Ok(SCHEME.len() + trust_domain.len())
}

fn check_trust_domain(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("the trust domain is empty".into());
    }
    if name.len() > MAX_TRUST_DOMAIN_BYTES {
        return Err(format!(
            "the trust domain has {} bytes, the limit is {MAX_TRUST_DOMAIN_BYTES}",
            name.len()
        ));
    }
    let Some(wrong) = name.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_')) else {
        return Ok(());
    };
    Err(match wrong {
        'A'..='Z' => format!("the trust domain must be lower case; write `{}`", name.to_ascii_lowercase()),
        '@' => "user information is not allowed; remove everything up to `@`".into(),
        ':' if name.contains("://") => "a trust domain is a bare name; remove the scheme".into(),
        ':' => "a port is not allowed in the trust domain; remove `:` and what follows".into(),
        '%' => "percent-encoding is not allowed".into(),
        '?' => "a query is not allowed; remove `?` and what follows".into(),
        '#' => "a fragment is not allowed; remove `#` and what follows".into(),
        '/' => "a trust domain is a bare name; remove `/` and what follows".into(),
        other => format!(
            "the trust domain holds {}; only a-z, 0-9, `.`, `-` and `_` are allowed",
            quoted(other.encode_utf8(&mut [0; 4]))
        ),
    })
}

fn check_segment(segment: &str) -> Result<(), String> {
    match segment {
        "" => return Err("a path segment is empty; remove the doubled slash".into()),
        "." | ".." => {
            return Err(format!("the path segment `{segment}` is not allowed; write the path without it"));
        }
        _ => {}
    }
    let Some(wrong) =
        segment.chars().find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
    else {
        return Ok(());
    };
    Err(match wrong {
        '%' => "percent-encoding is not allowed in the path".into(),
        '?' => "a query is not allowed; remove `?` and what follows".into(),
        '#' => "a fragment is not allowed; remove `#` and what follows".into(),
        other => format!(
            "the path holds {}; only a-z, A-Z, 0-9, `.`, `-` and `_` are allowed between slashes",
            quoted(other.encode_utf8(&mut [0; 4]))
        ),
    })
}

/// The input as it may stand in a log line: escaped, since a peer chose it, and short.
pub(crate) fn quoted(text: &str) -> String {
    const SHOWN: usize = 120;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    format!("`{shown}`")
}

impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

macro_rules! serde_as_text {
    ($($type:ty),*) => {$(
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}
serde_as_text!(TrustDomain, SpiffeId);

#[cfg(test)]
#[path = "id_tests.rs"]
mod tests;
