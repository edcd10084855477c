//! Patterns on the verified identity of a peer (reference 2.7), and trust domain aliases (reference 2.11).
//!
//! Every matcher takes the whole SPIFFE ID, `spiffe://…`. A peer without identity is asked about nowhere here: its
//! positive conditions are false and its negative ones true.

use super::Text;

const SCHEME: &str = "spiffe://";

/// One value of `principals`: a text pattern behind `spiffe://`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal(Text);

impl Principal {
    /// Reads a principal as policies write it, without `spiffe://`.
    pub fn parse(value: &str) -> Self {
        Self(Text::parse(value))
    }

    /// The pattern on what follows `spiffe://`.
    pub(crate) fn text(&self) -> &Text {
        &self.0
    }

    /// `*` takes any identity; the other forms compare what follows `spiffe://`.
    pub fn matches(&self, id: &str) -> bool {
        match &self.0 {
            Text::Present => !id.is_empty(),
            text => id.strip_prefix(SCHEME).is_some_and(|rest| text.matches(rest.as_bytes())),
        }
    }
}

/// One value of `namespaces`: Istio's `.*/ns/<value>/.*`, where each `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(Box<[Box<str>]>);

impl Namespace {
    /// Reads a namespace, possibly with asterisks.
    pub fn parse(value: &str) -> Self {
        Self(format!("/ns/{value}/").split('*').map(Into::into).collect())
    }

    /// The one path segment that it names; `None` when it holds an asterisk or more than a segment.
    pub(crate) fn segment(&self) -> Option<&str> {
        let [only] = &*self.0 else { return None };
        only.strip_prefix("/ns/")?.strip_suffix('/').filter(|name| !name.contains('/'))
    }

    /// The literal parts have to follow one another; both ends are open, so the leftmost find of each is enough.
    pub fn matches(&self, id: &str) -> bool {
        let mut rest = id;
        self.0.iter().all(|part| match rest.split_once(&**part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }
}

/// One value of `serviceAccounts`: Istio's `spiffe://.+/ns/<ns>/(.+/)?sa/<sa>(/.+)?`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAccount {
    namespace: Box<str>,
    account: Box<str>,
}

impl ServiceAccount {
    /// Reads `namespace/account`, or `account`, which means the namespace of the policy.
    ///
    /// # Errors
    /// Istio's words for a bad value.
    pub fn parse(value: &str, policy_namespace: &str) -> Result<Self, String> {
        let expected = "expected format 'serviceAccount' or 'namespace/serviceAccount'";
        if value.chars().count() > 320 {
            return Err(format!("value cannot exceed 320 characters, found \"{value}\""));
        }
        if value.contains('*') {
            return Err(format!("wildcard not allowed, found \"{value}\""));
        }
        let (namespace, account) = value.split_once('/').unwrap_or((policy_namespace, value));
        match (namespace, account) {
            ("", _) => Err(format!("{expected}, found empty namespace in \"{value}\"")),
            (_, "") => Err(format!("{expected}, found empty serviceAccount in \"{value}\"")),
            (_, account) if account.contains('/') => Err(format!("{expected}, found \"{value}\"")),
            _ => Ok(Self { namespace: namespace.into(), account: account.into() }),
        }
    }

    /// Namespace and account, when both are one path segment.
    pub(crate) fn segments(&self) -> Option<(&str, &str)> {
        let slash = self.namespace.contains('/') || self.account.contains('/');
        (!slash).then_some((&*self.namespace, &*self.account))
    }

    /// In any trust domain.
    pub fn matches(&self, id: &str) -> bool {
        let Some(rest) = id.strip_prefix(SCHEME) else { return false };
        let mut chars = rest.chars();
        // The trust domain has at least one character.
        if chars.next().is_none() {
            return false;
        }
        // A later occurrence lies within what follows the first one, where `(.+/)?` reaches it as well.
        let Some(inner) = after_namespace(chars.as_str(), &self.namespace) else { return false };
        let mut at = Some(inner);
        let mut skipped = 0;
        while let Some(here) = at {
            if skipped != 1 && self.is_account(here) {
                return true;
            }
            at = here.split_once('/').map(|(before, after)| {
                skipped += before.len() + 1;
                after
            });
        }
        false
    }

    /// `sa/<sa>(/.+)?` as a whole.
    fn is_account(&self, text: &str) -> bool {
        text.strip_prefix("sa/")
            .and_then(|text| text.strip_prefix(&*self.account))
            .is_some_and(|rest| rest.is_empty() || (rest.starts_with('/') && rest.len() > 1))
    }
}

impl std::fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.account)
    }
}

/// What follows the first `/ns/<namespace>/`; two markers may share a slash.
fn after_namespace<'a>(text: &'a str, namespace: &str) -> Option<&'a str> {
    let mut rest = text;
    loop {
        let (_, after) = rest.split_once("/ns")?;
        let inner = after.strip_prefix('/').and_then(|name| name.strip_prefix(namespace)?.strip_prefix('/'));
        if inner.is_some() {
            return inner;
        }
        rest = after;
    }
}

/// One value of `trustDomains`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrustDomainPattern(Text);

impl TrustDomainPattern {
    /// Reads a trust domain with at most one asterisk, at one of its ends.
    ///
    /// # Errors
    /// Istio's words for a bad value.
    pub fn parse(value: &str) -> Result<Self, String> {
        if value.contains('/') {
            return Err(format!("trust domain must not contain '/', found in {value}"));
        }
        match value.bytes().filter(|byte| *byte == b'*').count() {
            0 => {}
            1 if value.starts_with('*') || value.ends_with('*') => {}
            1 => return Err(format!("wildcard is only allowed at the start or end, found in {value}")),
            _ => return Err(format!("at most one wildcard is allowed, found in {value}")),
        }
        Ok(Self(Text::parse(value)))
    }

    /// The pattern on the trust domain.
    pub(crate) fn text(&self) -> &Text {
        &self.0
    }

    /// `*` takes any SPIFFE ID; the other forms need a path behind the trust domain.
    pub fn matches(&self, id: &str) -> bool {
        let Some(rest) = id.strip_prefix(SCHEME) else { return false };
        match &self.0 {
            Text::Present => true,
            text => rest.split_once('/').is_some_and(|(domain, _)| text.matches(domain.as_bytes())),
        }
    }
}

/// The mesh's own trust domain and the names that it was known by before.
#[derive(Clone, Copy, Debug)]
pub struct TrustDomains<'a> {
    /// `meshConfig.trustDomain`.
    pub own: &'a str,
    /// `meshConfig.trustDomainAliases`.
    pub aliases: &'a [String],
}

impl TrustDomains<'_> {
    fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.own).chain(self.aliases.iter().map(String::as_str))
    }

    /// The principals that `principal` stands for. Only a five-part one names a trust domain; when that is one of
    /// ours, or the pointer `cluster.local`, it is replaced by one principal for each of ours.
    pub fn expand_principal(&self, principal: &str) -> Vec<String> {
        let unchanged = || vec![principal.to_string()];
        let Some((domain, path)) = principal.split_once('/') else { return unchanged() };
        let names_a_domain = path.split('/').count() == 4 && domain != "*";
        let concerns_us = domain == "cluster.local" || self.all().any(|ours| related(domain, ours));
        if !names_a_domain || !concerns_us {
            return unchanged();
        }
        let mut expanded = Vec::new();
        for ours in self.all() {
            let one = if has_suffix_pattern(ours, domain) {
                principal.to_string()
            } else {
                format!("{ours}/{path}")
            };
            if !expanded.contains(&one) {
                expanded.push(one);
            }
        }
        expanded
    }

    /// A value that is one of ours stands for all of ours; there is no pointer and no wildcard comparison here.
    pub fn expand_trust_domain(&self, value: &str) -> Vec<String> {
        if !self.all().any(|ours| ours == value) {
            return vec![value.to_string()];
        }
        let mut expanded: Vec<String> = Vec::new();
        for ours in self.all() {
            if !expanded.iter().any(|known| known == ours) {
                expanded.push(ours.to_string());
            }
        }
        expanded
    }
}

/// Equal, or either is a prefix or suffix pattern that the other fits.
fn related(a: &str, b: &str) -> bool {
    let has_prefix_pattern =
        |text: &str, pattern: &str| pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix));
    a == b
        || has_prefix_pattern(a, b)
        || has_prefix_pattern(b, a)
        || has_suffix_pattern(a, b)
        || has_suffix_pattern(b, a)
}

fn has_suffix_pattern(text: &str, pattern: &str) -> bool {
    pattern.strip_prefix('*').is_some_and(|suffix| text.ends_with(suffix))
}
