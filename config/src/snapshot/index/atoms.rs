//! Atoms: the distinct single values of all rules, such as one principal or one path pattern, and which of them given
//! facts satisfy.

use super::{
    addresses::Addresses,
    table::{Table, hash_bytes, hash_pair},
    templates::{MAX_DEPTH, Templates},
    texts::Texts,
};
use crate::{
    authorize::Facts,
    matchers::{
        AddressBlock, ClaimPath, Path, Principal, RequestPrincipal, ServiceAccount, Text, TrustDomainPattern,
        identity::Namespace,
    },
    snapshot::rules::{Test, without_query},
};
use http::HeaderName;
use std::{borrow::Cow, collections::BTreeMap};

/// Number of a distinct value.
pub(super) type Atom = u32;

/// The atoms that facts satisfy. What does not fit is not remembered, and the decision then takes the slow way.
#[derive(Debug)]
pub(super) struct Found {
    atoms: [Atom; Self::CAPACITY],
    len: usize,
    overflowed: bool,
}

impl Default for Found {
    fn default() -> Self {
        Self { atoms: [0; Self::CAPACITY], len: 0, overflowed: false }
    }
}

impl Found {
    const CAPACITY: usize = 64;

    #[inline]
    pub fn add(&mut self, atom: Atom) {
        match self.atoms.get_mut(self.len) {
            Some(slot) => {
                *slot = atom;
                self.len += 1;
            }
            None => self.overflowed = true,
        }
    }

    pub fn all(&self) -> &[Atom] {
        self.atoms.get(..self.len).unwrap_or_default()
    }

    pub fn overflow(&mut self) {
        self.overflowed = true;
    }

    pub fn overflowed(&self) -> bool {
        self.overflowed
    }
}

/// What an atom is. The order of the variants is the order in which two of a line are filed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key<'r> {
    Principal(&'r Principal),
    ServiceAccount(&'r ServiceAccount),
    Namespace(&'r Namespace),
    TrustDomain(&'r TrustDomainPattern),
    RequestPrincipal(&'r RequestPrincipal),
    SourceIp(AddressBlock),
    RemoteIp(AddressBlock),
    DestinationIp(AddressBlock),
    DestinationPort(u16),
    Sni(&'r Text),
    Method(&'r Text),
    /// In lower case.
    Host(Cow<'r, Text>),
    Authority(&'r Text),
    Path(&'r Path),
    Header(&'r HeaderName, &'r Text),
    Claim(&'r ClaimPath, &'r Text),
}

impl Key<'_> {
    /// Whether [`Lookup`] can find it; a few odd forms can only be compared.
    pub fn is_found_by_lookup(&self) -> bool {
        match self {
            Self::Namespace(value) => value.segment().is_some(),
            Self::ServiceAccount(value) => value.segments().is_some(),
            Self::Path(Path::Template(template)) => template.head().len() <= MAX_DEPTH,
            _ => true,
        }
    }
}

/// The values of a test.
pub(super) fn keys(test: &Test) -> Vec<Key<'_>> {
    match test {
        Test::Principal(values) => values.iter().map(Key::Principal).collect(),
        Test::Namespace(values) => values.iter().map(Key::Namespace).collect(),
        Test::ServiceAccount(values) => values.iter().map(Key::ServiceAccount).collect(),
        Test::TrustDomain(values) => values.iter().map(Key::TrustDomain).collect(),
        Test::SourceIp(values) => values.iter().copied().map(Key::SourceIp).collect(),
        Test::RemoteIp(values) => values.iter().copied().map(Key::RemoteIp).collect(),
        Test::DestinationIp(values) => values.iter().copied().map(Key::DestinationIp).collect(),
        Test::DestinationPort(values) => values.iter().copied().map(Key::DestinationPort).collect(),
        Test::Sni(values) => values.iter().map(Key::Sni).collect(),
        Test::Host(values) => values.iter().map(|text| Key::Host(lower(text))).collect(),
        Test::Method(values) => values.iter().map(Key::Method).collect(),
        Test::Path(values) => values.iter().map(Key::Path).collect(),
        Test::Authority(values) => values.iter().map(Key::Authority).collect(),
        Test::Header(name, values) => values.iter().map(|text| Key::Header(name, text)).collect(),
        Test::RequestPrincipal(values) => values.iter().map(Key::RequestPrincipal).collect(),
        Test::Claim(path, values) => values.iter().map(|text| Key::Claim(path, text)).collect(),
    }
}

fn lower(text: &Text) -> Cow<'_, Text> {
    let fold = |text: &str| text.to_ascii_lowercase().into();
    match text {
        Text::Exact(text) | Text::Prefix(text) | Text::Suffix(text)
            if !text.bytes().any(|byte| byte.is_ascii_uppercase()) => {}
        Text::Present => {}
        Text::Exact(text) => return Cow::Owned(Text::Exact(fold(text))),
        Text::Prefix(text) => return Cow::Owned(Text::Prefix(fold(text))),
        Text::Suffix(text) => return Cow::Owned(Text::Suffix(fold(text))),
    }
    Cow::Borrowed(text)
}

/// Finds the atoms that facts satisfy, attribute by attribute. None of it depends on the number of rules.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    principals: Texts,
    namespaces: Table<Box<str>>,
    service_accounts: Table<ServiceAccount>,
    trust_domains: Texts,
    source_ip: Addresses,
    remote_ip: Addresses,
    destination_ip: Addresses,
    ports: Table<u16>,
    sni: Texts,
    host: Texts,
    method: Texts,
    path: Texts,
    templates: Templates,
    authority: Texts,
    headers: Box<[(HeaderName, Texts)]>,
    /// Position in `headers`.
    header_names: Table<HeaderName>,
    /// In the order of the outermost names.
    claims: Box<[(ClaimPath, Texts)]>,
    /// By subject, and by issuer where any subject will do; both give a position in `request_principals`.
    subjects: Texts,
    issuers: Texts,
    request_principals: Box<[Vec<(RequestPrincipal, Atom)>]>,
}

impl Lookup {
    /// `atoms` are distinct and can be found by lookup.
    pub fn build<'r>(atoms: impl Iterator<Item = (Key<'r>, Atom)>) -> Self {
        let mut pile = Pile::default();
        for (key, atom) in atoms {
            pile.add(key, atom);
        }
        pile.build()
    }

    /// Adds all satisfied atoms.
    pub fn find(&self, facts: &Facts<'_>, found: &mut Found) {
        if let Some(peer) = facts.peer {
            self.find_identity(peer.as_str(), found);
        }
        self.source_ip.find(facts.source_ip, found);
        self.remote_ip.find(facts.remote_ip, found);
        self.destination_ip.find(facts.destination_ip, found);
        let port = facts.destination_port;
        if let Some(atom) = self.ports.find(u64::from(port), |key| *key == port) {
            found.add(atom);
        }
        self.sni.find(facts.sni.unwrap_or_default().as_bytes(), found);
        let Some(http) = &facts.http else { return };
        self.method.find(http.method.as_bytes(), found);
        self.host.find(http.host.as_bytes(), found);
        self.authority.find(http.host.as_bytes(), found);
        let path = without_query(http.path);
        self.path.find(path.as_bytes(), found);
        self.templates.find(path, found);
        self.find_headers(http.headers, found);
        if let Some(claims) = facts.claims {
            self.find_claims(claims.payload(), found);
        }
    }

    fn find_identity(&self, id: &str, found: &mut Found) {
        if let Some(rest) = id.strip_prefix("spiffe://") {
            self.principals.find_literal(rest.as_bytes(), found);
            self.trust_domains.present().into_iter().for_each(|atom| found.add(atom));
            if let Some((domain, _)) = rest.split_once('/') {
                self.trust_domains.find_literal(domain.as_bytes(), found);
            }
        }
        if !id.is_empty() {
            self.principals.present().into_iter().for_each(|atom| found.add(atom));
        }
        if self.namespaces.is_empty() && self.service_accounts.is_empty() {
            return;
        }
        let mut parts = id.split('/');
        while let Some(part) = parts.next() {
            if part != "ns" {
                continue;
            }
            let mut after = parts.clone();
            if let Some(namespace) = after.next() {
                self.find_namespace(id, namespace, after, found);
            }
        }
    }

    fn find_namespace(
        &self,
        id: &str,
        namespace: &str,
        mut after: std::str::Split<'_, char>,
        found: &mut Found,
    ) {
        let hash = hash_bytes(namespace.as_bytes(), false);
        // Something has to follow the namespace.
        if after.clone().next().is_some()
            && let Some(atom) = self.namespaces.find(hash, |key| **key == *namespace)
        {
            found.add(atom);
        }
        if self.service_accounts.is_empty() {
            return;
        }
        while let Some(part) = after.next() {
            if part != "sa" {
                continue;
            }
            let Some(account) = after.clone().next() else { return };
            let hash = hash_pair(hash, hash_bytes(account.as_bytes(), false));
            let same = |key: &ServiceAccount| key.segments() == Some((namespace, account)) && key.matches(id);
            if let Some(atom) = self.service_accounts.find(hash, same) {
                found.add(atom);
            }
        }
    }

    fn find_headers(&self, headers: &http::HeaderMap, found: &mut Found) {
        let mut add = |texts: &Texts, values: http::header::GetAll<'_, http::HeaderValue>| {
            for value in values {
                texts.present().into_iter().for_each(|atom| found.add(atom));
                texts.find_literal(value.as_bytes(), found);
            }
        };
        if self.headers.len() <= headers.keys_len() {
            for (name, texts) in &self.headers {
                add(texts, headers.get_all(name));
            }
        } else {
            for name in headers.keys() {
                let hash = hash_bytes(name.as_str().as_bytes(), false);
                let at = self.header_names.find(hash, |key| key == name);
                if let Some((_, texts)) = at.and_then(|at| self.headers.get(at as usize)) {
                    add(texts, headers.get_all(name));
                }
            }
        }
    }

    fn find_claims(&self, claims: &serde_json::Map<String, serde_json::Value>, found: &mut Found) {
        let mut add = |(path, texts): &(ClaimPath, Texts)| {
            path.any(claims, |value| {
                texts.find(value.as_bytes(), found);
                false
            });
        };
        if self.claims.len() <= claims.len() {
            self.claims.iter().for_each(&mut add);
        } else {
            for name in claims.keys() {
                let from = self.claims.partition_point(|(path, _)| path.first() < name.as_str());
                let same =
                    self.claims.iter().skip(from).take_while(|(path, _)| path.first() == name.as_str());
                same.for_each(&mut add);
            }
        }
        if self.request_principals.is_empty() {
            return;
        }
        let mut groups = Found::default();
        for (name, texts) in [("iss", &self.issuers), ("sub", &self.subjects)] {
            if let Some(text) = claims.get(name).and_then(serde_json::Value::as_str) {
                texts.find(text.as_bytes(), &mut groups);
            }
        }
        if groups.overflowed() {
            found.overflow();
        }
        for group in groups.all() {
            for (principal, atom) in self.request_principals.get(*group as usize).into_iter().flatten() {
                if principal.matches(claims) {
                    found.add(*atom);
                }
            }
        }
    }
}

type Patterns = Vec<(Text, Atom)>;

/// Atoms sorted by what finds them.
#[derive(Default)]
struct Pile {
    texts: BTreeMap<Attribute, Vec<(Text, Atom)>>,
    addresses: [Vec<(AddressBlock, Atom)>; 3],
    namespaces: Vec<(Box<str>, Atom)>,
    service_accounts: Vec<(ServiceAccount, Atom)>,
    ports: Vec<(u16, Atom)>,
    templates: Vec<(crate::matchers::PathTemplate, Atom)>,
    headers: BTreeMap<String, (HeaderName, Vec<(Text, Atom)>)>,
    /// By the outermost name, then by all of them.
    claims: BTreeMap<(String, String), Vec<(ClaimPath, Patterns)>>,
    request_principals: Vec<(RequestPrincipal, Atom)>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Attribute {
    Principal,
    TrustDomain,
    Sni,
    Host,
    Method,
    Path,
    Authority,
}

impl Pile {
    fn add(&mut self, key: Key<'_>, atom: Atom) {
        let (attribute, text) = match key {
            Key::Principal(value) => (Attribute::Principal, value.text().clone()),
            Key::TrustDomain(value) => (Attribute::TrustDomain, value.text().clone()),
            Key::Sni(text) => (Attribute::Sni, text.clone()),
            Key::Host(text) => (Attribute::Host, text.into_owned()),
            Key::Method(text) => (Attribute::Method, text.clone()),
            Key::Authority(text) => (Attribute::Authority, text.clone()),
            Key::Path(Path::Text(text)) => (Attribute::Path, text.clone()),
            Key::Path(Path::Template(template)) => return self.templates.push((template.clone(), atom)),
            Key::Namespace(value) => {
                return self.namespaces.push((value.segment().unwrap_or_default().into(), atom));
            }
            Key::ServiceAccount(value) => return self.service_accounts.push((value.clone(), atom)),
            Key::RequestPrincipal(value) => return self.request_principals.push((value.clone(), atom)),
            Key::SourceIp(block) => return self.address(0, block, atom),
            Key::RemoteIp(block) => return self.address(1, block, atom),
            Key::DestinationIp(block) => return self.address(2, block, atom),
            Key::DestinationPort(port) => return self.ports.push((port, atom)),
            Key::Header(name, text) => {
                let (_, texts) = self
                    .headers
                    .entry(name.as_str().to_string())
                    .or_insert_with(|| (name.clone(), Vec::new()));
                return texts.push((text.clone(), atom));
            }
            Key::Claim(path, text) => {
                let same_name = self.claims.entry((path.first().into(), path.to_string())).or_default();
                match same_name.iter_mut().find(|(known, _)| known == path) {
                    Some((_, texts)) => texts.push((text.clone(), atom)),
                    None => same_name.push((path.clone(), vec![(text.clone(), atom)])),
                }
                return;
            }
        };
        self.texts.entry(attribute).or_default().push((text, atom));
    }

    fn address(&mut self, which: usize, block: AddressBlock, atom: Atom) {
        if let Some(blocks) = self.addresses.get_mut(which) {
            blocks.push((block, atom));
        }
    }

    fn build(mut self) -> Lookup {
        let mut texts = |attribute| {
            let patterns = self.texts.remove(&attribute).unwrap_or_default();
            Texts::build(patterns, attribute == Attribute::Host)
        };
        let (principals, trust_domains) = (texts(Attribute::Principal), texts(Attribute::TrustDomain));
        let (sni, host, method) = (texts(Attribute::Sni), texts(Attribute::Host), texts(Attribute::Method));
        let (path, authority) = (texts(Attribute::Path), texts(Attribute::Authority));
        let [source_ip, remote_ip, destination_ip] = self.addresses.map(|blocks| Addresses::build(&blocks));
        let headers: Box<[(HeaderName, Texts)]> =
            self.headers.into_values().map(|(name, texts)| (name, Texts::build(texts, false))).collect();
        let names = headers.iter().enumerate().map(|(at, (name, _))| (name.clone(), at as Atom)).collect();
        let claims = self.claims.into_values().flatten();
        let (subjects, issuers, request_principals) = group(self.request_principals);
        Lookup {
            principals,
            trust_domains,
            sni,
            host,
            method,
            path,
            authority,
            source_ip,
            remote_ip,
            destination_ip,
            namespaces: Table::build(self.namespaces, |name| hash_bytes(name.as_bytes(), false)),
            service_accounts: Table::build(self.service_accounts, |value: &ServiceAccount| {
                let (namespace, account) = value.segments().unwrap_or_default();
                hash_pair(hash_bytes(namespace.as_bytes(), false), hash_bytes(account.as_bytes(), false))
            }),
            ports: Table::build(self.ports, |port| u64::from(*port)),
            templates: Templates::build(self.templates),
            headers,
            header_names: Table::build(names, |name: &HeaderName| {
                hash_bytes(name.as_str().as_bytes(), false)
            }),
            claims: claims.map(|(path, texts)| (path, Texts::build(texts, false))).collect(),
            subjects,
            issuers,
            request_principals,
        }
    }
}

type Groups = Box<[Vec<(RequestPrincipal, Atom)>]>;

/// Request principals with one subject belong together; those for any subject, with one issuer.
fn group(principals: Vec<(RequestPrincipal, Atom)>) -> (Texts, Texts, Groups) {
    let mut groups: Vec<Vec<(RequestPrincipal, Atom)>> = Vec::new();
    let mut numbers: std::collections::HashMap<(bool, Text), Atom> = std::collections::HashMap::new();
    for (principal, atom) in principals {
        let by_issuer = *principal.subject() == Text::Present;
        let text = if by_issuer { principal.issuer() } else { principal.subject() };
        let number = *numbers.entry((by_issuer, text.clone())).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() as Atom - 1
        });
        if let Some(group) = groups.get_mut(number as usize) {
            group.push((principal, atom));
        }
    }
    let (mut subjects, mut issuers) = (Vec::new(), Vec::new());
    for ((by_issuer, text), number) in numbers {
        if by_issuer { &mut issuers } else { &mut subjects }.push((text, number));
    }
    (Texts::build(subjects, false), Texts::build(issuers, false), groups.into())
}
