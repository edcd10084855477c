//! Compiled rules: conditions that hold or not for given facts, without allocating.

use crate::{
    authorize::{Facts, HttpFacts, RuleRef},
    matchers::{
        AddressBlock, Path, Principal, ServiceAccount, Text, TrustDomainPattern, identity::Namespace,
    },
};
use http::HeaderName;
use std::{net::IpAddr, sync::Arc};

/// All rules of a workload, in both forms; a connection meets one of them and nothing about that is decided later.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// For HTTP requests.
    pub http: Rules,
    /// For TCP connections: ALLOW rules with HTTP conditions are gone, DENY rules have lost those conditions.
    pub tcp: Rules,
    /// An ALLOW policy applies, whether or not any of its rules is left.
    pub allow_applies: bool,
}

/// In policy order. Rules without HTTP conditions are shared by both forms.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub deny: Vec<Arc<Rule>>,
    pub allow: Vec<Arc<Rule>>,
}

impl RuleSet {
    pub fn of(&self, http: bool) -> &Rules {
        if http { &self.http } else { &self.tcp }
    }
}

/// (any `from`) and (any `to`) and (all `when`).
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub reference: RuleRef,
    /// No alternative at all means true; an empty alternative is true, too.
    pub from: Vec<Vec<Clause>>,
    pub to: Vec<Vec<Clause>>,
    pub when: Vec<Clause>,
}

impl Rule {
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        any(&self.from, facts) && any(&self.to, facts) && self.when.iter().all(|clause| clause.holds(facts))
    }

    pub fn clauses(&self) -> impl Iterator<Item = &Clause> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

fn any(alternatives: &[Vec<Clause>], facts: &Facts<'_>) -> bool {
    alternatives.is_empty()
        || alternatives.iter().any(|clauses| clauses.iter().all(|clause| clause.holds(facts)))
}

/// One field of a source or operation, or one side of a condition: any of its values, or none of them.
#[derive(Clone, Debug)]
pub(crate) struct Clause {
    /// Istio's name of the place, such as `from[0].source.principals`.
    pub field: Box<str>,
    /// `notX`: none of the values.
    pub negated: bool,
    pub test: Test,
    /// The values as they are compared, for people.
    pub wanted: Box<[String]>,
}

impl Clause {
    pub fn holds(&self, facts: &Facts<'_>) -> bool {
        self.test.matches(facts).is_some_and(|matched| matched != self.negated)
    }
}

/// What is compared with what.
#[derive(Clone, Debug)]
pub(crate) enum Test {
    Principal(Box<[Principal]>),
    Namespace(Box<[Namespace]>),
    ServiceAccount(Box<[ServiceAccount]>),
    TrustDomain(Box<[TrustDomainPattern]>),
    SourceIp(Box<[AddressBlock]>),
    RemoteIp(Box<[AddressBlock]>),
    DestinationIp(Box<[AddressBlock]>),
    DestinationPort(Box<[u16]>),
    Sni(Box<[Text]>),
    /// `hosts`: the case of letters does not count.
    Host(Box<[Text]>),
    Method(Box<[Text]>),
    Path(Box<[Path]>),
    /// `request.headers[:authority]`, which Host is another name of.
    Authority(Box<[Text]>),
    Header(HeaderName, Box<[Text]>),
}

impl Test {
    /// Only a request can answer it.
    pub fn needs_http(&self) -> bool {
        matches!(
            self,
            Self::Host(_) | Self::Method(_) | Self::Path(_) | Self::Authority(_) | Self::Header(..)
        )
    }

    /// Whether any value matches; `None` when the question makes no sense because there is no request.
    fn matches(&self, facts: &Facts<'_>) -> Option<bool> {
        let identity = facts.peer.map(|peer| peer.as_str());
        Some(match self {
            Self::Principal(values) => {
                identity.is_some_and(|id| values.iter().any(|value| value.matches(id)))
            }
            Self::Namespace(values) => {
                identity.is_some_and(|id| values.iter().any(|value| value.matches(id)))
            }
            Self::ServiceAccount(values) => {
                identity.is_some_and(|id| values.iter().any(|value| value.matches(id)))
            }
            Self::TrustDomain(values) => {
                identity.is_some_and(|id| values.iter().any(|value| value.matches(id)))
            }
            Self::SourceIp(blocks) => holds(blocks, facts.source_ip),
            Self::RemoteIp(blocks) => holds(blocks, facts.remote_ip),
            Self::DestinationIp(blocks) => holds(blocks, facts.destination_ip),
            Self::DestinationPort(ports) => ports.contains(&facts.destination_port),
            Self::Sni(texts) => any_text(texts, facts.sni.unwrap_or_default().as_bytes()),
            _ => return facts.http.as_ref().map(|http| self.matches_request(http)),
        })
    }

    fn matches_request(&self, http: &HttpFacts<'_>) -> bool {
        match self {
            Self::Host(texts) => texts.iter().any(|text| text.matches_ignore_case(http.host)),
            Self::Method(texts) => any_text(texts, http.method.as_bytes()),
            Self::Path(paths) => {
                let path = without_query(http.path);
                paths.iter().any(|wanted| wanted.matches(path))
            }
            Self::Authority(texts) => any_text(texts, http.host.as_bytes()),
            // Value by value: a joined text could be made to match, or not to, by sending the header twice.
            Self::Header(name, texts) => http.headers.get_all(name).iter().any(|value| {
                texts.iter().any(|text| matches!(text, Text::Present) || text.matches(value.as_bytes()))
            }),
            _ => false,
        }
    }
}

fn holds(blocks: &[AddressBlock], address: IpAddr) -> bool {
    blocks.iter().any(|block| block.contains(address))
}

fn any_text(texts: &[Text], value: &[u8]) -> bool {
    texts.iter().any(|text| text.matches(value))
}

/// A rule must not be evaded by a query that the caller forgot to cut off.
fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or(path)
}
