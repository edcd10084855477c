//! Compiled rules: conditions that hold or not for given facts, without allocating.

use super::index::Index;
use crate::{
    authorize::{Claims, Facts, HttpFacts, Matched, PolicyRef, RuleRef},
    documents::authorization_policy::Action,
    matchers::{
        AddressBlock, ClaimPath, Path, Principal, RequestPrincipal, ServiceAccount, Text, TrustDomainPattern,
        identity::Namespace,
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
    /// An enforced ALLOW policy applies, whether or not any of its rules is left.
    pub allow_applies: bool,
    /// The first dry-run ALLOW policy. It denies nothing; with the dry-run policies enforced, it would.
    pub dry_run_allow: Option<PolicyRef>,
}

/// Each kind in policy order. Rules without HTTP conditions are shared by both forms.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub deny: Vec<Arc<Rule>>,
    pub dry_run_deny: Vec<Arc<Rule>>,
    pub allow: Vec<Arc<Rule>>,
    pub dry_run_allow: Vec<Arc<Rule>>,
    pub audit: Vec<Arc<Rule>>,
    /// Of all of these.
    index: Index,
}

impl Rules {
    /// The first matching rule of each kind, in policy order.
    pub fn first_matches<'s>(&'s self, facts: &Facts<'_>) -> Matched<'s> {
        self.index.first_matches(facts).unwrap_or_else(|| super::linear::first_matches(self, facts))
    }

    /// After the last rule.
    pub fn build_index(&mut self) {
        self.index =
            Index::build([&self.deny, &self.dry_run_deny, &self.allow, &self.dry_run_allow, &self.audit]);
    }

    /// Where the rules of a policy belong; CUSTOM is compiled nowhere.
    pub fn kind_mut(&mut self, action: Action, dry_run: bool) -> Option<&mut Vec<Arc<Rule>>> {
        Some(match (action, dry_run) {
            (Action::Deny, false) => &mut self.deny,
            (Action::Deny, true) => &mut self.dry_run_deny,
            (Action::Allow, false) => &mut self.allow,
            (Action::Allow, true) => &mut self.dry_run_allow,
            (Action::Audit, _) => &mut self.audit,
            (Action::Custom, _) => return None,
        })
    }
}

impl RuleSet {
    pub fn of(&self, http: bool) -> &Rules {
        if http { &self.http } else { &self.tcp }
    }
}

/// (any `from`) and (any `to`) and (all `when`).
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub reference: Arc<RuleRef>,
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
    /// Issuer and subject of a verified token.
    RequestPrincipal(Box<[RequestPrincipal]>),
    /// A claim of a verified token.
    Claim(ClaimPath, Box<[Text]>),
}

impl Test {
    /// Only a request can answer it.
    pub fn needs_http(&self) -> bool {
        matches!(
            self,
            Self::Host(_)
                | Self::Method(_)
                | Self::Path(_)
                | Self::Authority(_)
                | Self::Header(..)
                | Self::RequestPrincipal(_)
                | Self::Claim(..)
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
            _ => return facts.http.as_ref().map(|http| self.matches_request(http, facts.claims)),
        })
    }

    fn matches_request(&self, http: &HttpFacts<'_>, claims: Option<&Claims>) -> bool {
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
            Self::RequestPrincipal(values) => {
                claims.is_some_and(|claims| values.iter().any(|value| value.matches(claims.payload())))
            }
            Self::Claim(path, texts) => claims
                .is_some_and(|claims| path.any(claims.payload(), |value| any_text(texts, value.as_bytes()))),
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
pub(super) fn without_query(path: &str) -> &str {
    path.split(['?', '#']).next().unwrap_or(path)
}
