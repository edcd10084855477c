//! What the benches share: sets of rules of any size for one workload, and the calls that meet them.
#![allow(clippy::expect_used, clippy::indexing_slicing)] // benches stop at what should not be

pub mod beside;
pub mod budgets;
// The process and the client that the comparison of decisions uses. By path, so that benches need not build the tests.
#[path = "../../tests/src/envoy.rs"]
pub mod envoy;
#[path = "../../tests/src/foreign.rs"]
pub mod foreign;
pub mod heap;
pub mod process;

use http::HeaderMap;
use postern_config::{
    Facts, HttpFacts, InboundSpec,
    documents::{
        AuthorizationPolicy, MeshConfig, Metadata,
        authorization_policy::{Action, Condition, From, Operation, Rule, Source, To},
    },
    snapshot::{DeclaredPort, Protocol, Workload},
};
use postern_identity::SpiffeId;
use std::net::{IpAddr, Ipv4Addr};

/// Most rules of one policy (Istio's limit).
const RULES_PER_POLICY: usize = 512;
/// Calls for each set of rules; more than fit into the nearest caches together with what they touch.
pub const CALLS: usize = 2048;

/// A way to write rules. The first is what we expect to see; the others are made to hurt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Callers by principal, service account, namespace and address; paths exact, by prefix and by template; some DENY.
    Realistic,
    /// One rule for each pair of a hundred callers and a hundred paths: no value is selective by itself.
    Pairs,
    /// Templates with one literal segment that differs.
    Templates,
    /// Only `not` fields, and calls that every rule excludes: nothing leads to a rule.
    Negated,
    /// One caller and one method in all rules, with an exclusion of its own in each.
    Crowded,
    /// A header of its own in each rule.
    Headers,
}

impl Mix {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Realistic, Self::Pairs, Self::Templates, Self::Negated, Self::Crowded, Self::Headers];

    /// For tables and for `budgets.toml`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Realistic => "realistic",
            Self::Pairs => "pairs",
            Self::Templates => "templates",
            Self::Negated => "negated",
            Self::Crowded => "crowded",
            Self::Headers => "headers",
        }
    }

    /// `count` rules, 512 to a policy.
    pub fn spec(self, count: usize) -> InboundSpec {
        let mut allow: Vec<Rule> = Vec::new();
        let mut deny: Vec<Rule> = Vec::new();
        for n in 0..count {
            if self == Self::Realistic && n % 10 == 9 {
                deny.push(denied(n));
            } else {
                allow.push(self.rule(n, count));
            }
        }
        let policies =
            [(Action::Allow, allow), (Action::Deny, deny)].into_iter().flat_map(|(action, rules)| {
                let chunks: Vec<Vec<Rule>> = rules.chunks(RULES_PER_POLICY).map(<[Rule]>::to_vec).collect();
                chunks.into_iter().enumerate().map(move |(index, rules)| AuthorizationPolicy {
                    metadata: Metadata {
                        name: format!("{action}-{index}").to_lowercase(),
                        namespace: "payments".into(),
                        ..Metadata::default()
                    },
                    action,
                    rules,
                    ..AuthorizationPolicy::default()
                })
            });
        spec(policies.collect())
    }

    fn rule(self, n: usize, count: usize) -> Rule {
        match self {
            Self::Realistic => realistic(n, count),
            Self::Pairs => rule(
                Source { principals: vec![caller(n % 100)], ..Source::default() },
                Operation { paths: vec![format!("/v1/shared/{}", n / 100)], ..Operation::default() },
            ),
            Self::Templates => rule(
                Source { namespaces: vec!["checkout".into()], ..Source::default() },
                Operation { paths: vec![format!("/v1/{{*}}/items/{n}/{{**}}")], ..Operation::default() },
            ),
            Self::Negated => rule(
                Source { not_principals: vec![caller(n)], ..Source::default() },
                Operation { not_paths: vec![format!("/x{n}"), "/admin*".into()], ..Operation::default() },
            ),
            Self::Crowded => rule(
                Source { principals: vec![caller(0)], ..Source::default() },
                Operation {
                    methods: vec!["POST".into()],
                    not_paths: vec![format!("/x{n}"), "/admin*".into()],
                    ..Operation::default()
                },
            ),
            Self::Headers => Rule {
                when: vec![Condition {
                    key: format!("request.headers[x-tenant-{n}]"),
                    values: vec!["on".into()],
                    ..Condition::default()
                }],
                ..Rule::default()
            },
        }
    }

    /// Calls that meet the rules: about half are decided by one, the others by none.
    pub fn calls(self, count: usize) -> Vec<Call> {
        (0..CALLS).map(|index| self.call(index, count)).collect()
    }

    fn call(self, index: usize, count: usize) -> Call {
        // A stride without a common factor, so that all parts of the set are met, not in order.
        let n = index.wrapping_mul(7919) % (count * 2);
        let base = Call::new(&caller(n), "POST", &format!("/v1/items/{n}"));
        match self {
            Self::Realistic => match n % 10 {
                4 | 5 => Call { path: format!("/v1/accounts/{n}/history/today"), ..base },
                6 => Call { path: format!("/v1/orders/17/lines/{n}"), ..base },
                7 => Call { port: 9000 + (n % 50) as u16, ..base },
                8 => Call { path: format!("/files/{n}/a.txt"), ..base },
                _ => base,
            },
            Self::Pairs => Call::new(&caller(n % 120), "POST", &format!("/v1/shared/{}", n / 100)),
            Self::Templates => {
                Call::new("cluster.local/ns/checkout/sa/a", "GET", &format!("/v1/a/items/{n}/b/c"))
            }
            Self::Negated => Call::new("cluster.local/ns/n/sa/a", "GET", &format!("/admin/{n}")),
            Self::Crowded => Call::new(
                &caller(0),
                if n.is_multiple_of(2) { "GET" } else { "POST" },
                &format!("/admin/{n}"),
            ),
            Self::Headers => base.header(&format!("x-tenant-{n}"), "on"),
        }
    }
}

fn caller(n: usize) -> String {
    format!("cluster.local/ns/team-{}/sa/service-{n}", n % 97)
}

fn rule(source: Source, operation: Operation) -> Rule {
    Rule { from: vec![From { source }], to: vec![To { operation }], when: vec![] }
}

fn realistic(n: usize, count: usize) -> Rule {
    let any = Source::default();
    let post = Operation { methods: vec!["POST".into()], ..Operation::default() };
    let exact = Operation { paths: vec![format!("/v1/items/{n}")], ..post.clone() };
    match n % 10 {
        0..=3 => rule(Source { principals: vec![caller(n)], ..any }, exact),
        4 => rule(
            Source { namespaces: vec![format!("team-{}", n % 97)], ..any },
            Operation { paths: vec![format!("/v1/accounts/{n}/*")], ..Operation::default() },
        ),
        5 => rule(
            Source { principals: vec![caller(n), caller(n % 40), caller(n % 7)], ..any },
            Operation { paths: vec![format!("/v1/accounts/{n}/*"), format!("/v2/{n}*")], ..post },
        ),
        6 => rule(
            Source { principals: vec![caller(n)], ..any },
            Operation { paths: vec![format!("/v1/orders/{{*}}/lines/{n}")], ..post },
        ),
        7 => rule(
            Source { service_accounts: vec![format!("team-{}/service-{n}", n % 97)], ..any },
            Operation { ports: vec![(9000 + n % 50).to_string()], ..Operation::default() },
        ),
        _ => Rule {
            from: vec![From { source: Source { ip_blocks: vec![format!("10.{}.0.0/16", n % 200)], ..any } }],
            to: vec![To {
                operation: Operation { paths: vec![format!("/files/{n}/*")], ..Operation::default() },
            }],
            when: vec![Condition {
                key: "source.namespace".into(),
                not_values: vec![format!("team-{}", (n + count) % 97)],
                ..Condition::default()
            }],
        },
    }
}

/// Paths that nobody but one caller may use, methods that nobody may.
fn denied(n: usize) -> Rule {
    let source = Source { not_principals: vec![caller(n)], ..Source::default() };
    let operation = Operation { paths: vec![format!("/internal/{n}*")], ..Operation::default() };
    rule(source, operation)
}

fn spec(policies: Vec<AuthorizationPolicy>) -> InboundSpec {
    InboundSpec {
        workload: Workload {
            namespace: "payments".into(),
            name: "payments-api".into(),
            service_account: "payments-api".into(),
            ..Workload::default()
        },
        mesh: MeshConfig::default(),
        ports: vec![DeclaredPort { port: 8080, protocol: Protocol::Http }],
        peer_authentications: vec![],
        authorization_policies: policies,
        telemetries: vec![],
        upgrades: Default::default(),
    }
}

/// An HTTP request, owned.
#[derive(Clone, Debug)]
pub struct Call {
    peer: SpiffeId,
    method: &'static str,
    path: String,
    port: u16,
    headers: HeaderMap,
}

impl Call {
    fn new(principal: &str, method: &'static str, path: &str) -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("user-agent", "curl/8"), ("accept", "*/*"), ("x-request-id", "0b2f"), ("traceparent", "00")]
        {
            headers.insert(name, http::HeaderValue::from_static(value));
        }
        let peer = format!("spiffe://{principal}").parse().expect("a SPIFFE ID");
        Self { peer, method, path: path.into(), port: 8080, headers }
    }

    fn header(mut self, name: &str, value: &'static str) -> Self {
        let name: http::HeaderName = name.parse().expect("the name of a header");
        self.headers.insert(name, http::HeaderValue::from_static(value));
        self
    }

    /// As the evaluator takes it.
    pub fn facts(&self) -> Facts<'_> {
        let ip = IpAddr::V4(Ipv4Addr::new(10, 8, 0, 1));
        Facts {
            peer: Some(&self.peer),
            source_ip: ip,
            remote_ip: ip,
            destination_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
            destination_port: self.port,
            sni: Some("outbound_.80_._.payments-api.payments.svc.cluster.local"),
            http: Some(HttpFacts {
                method: self.method,
                path: &self.path,
                host: "payments-api.payments:80",
                headers: &self.headers,
            }),
            claims: None,
        }
    }
}
