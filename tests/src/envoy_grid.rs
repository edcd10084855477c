//! The grid for the comparison with Envoy: policies and requests, the same ones in every run.
//!
//! Every field and every `when` key, each with values of every form, positive and negated, under ALLOW and DENY, against
//! requests that differ in what the field looks at; then policies and requests drawn at random from the same values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use postern_config::documents::{AuthorizationPolicy, Metadata, authorization_policy::Action};
use serde_json::{Value, json};

/// What a field looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    Peer,
    Source,
    Remote,
    Host,
    Destination,
    Method,
    Path,
    Header,
    Sni,
}

const FACTS: [Fact; 9] = {
    use Fact::{Destination, Header, Host, Method, Path, Peer, Remote, Sni, Source};
    [Peer, Source, Remote, Host, Destination, Method, Path, Header, Sni]
};

/// One request, as text; the numbers choose one of the lists below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ask {
    chosen: [usize; FACTS.len()],
}

pub const PEERS: [&str; 8] = [
    "spiffe://cluster.local/ns/checkout/sa/checkout-api",
    "",
    "spiffe://cluster.local/ns/checkout/sa/reports",
    "spiffe://cluster.local/ns/prod-eu/sa/default",
    "spiffe://old.example/ns/checkout/sa/checkout-api",
    "spiffe://td.example.com/ns/payments/sa/reports",
    "spiffe://cluster.local/ns/checkout/x/sa/reports",
    "spiffe://cluster.local/workload",
];
const SOURCES: [&str; 3] = ["127.0.0.1", "127.77.0.9", "127.77.1.1"];
/// X-Forwarded-For, line by line.
const REMOTES: [&[&str]; 11] = [
    &[],
    &["203.0.113.7"],
    &["10.0.0.1, 198.51.100.4"],
    &["198.51.100.4,203.0.113.200"],
    &["2001:db8::7"],
    &["garbage"],
    &["203.0.113.7, garbage"],
    &["198.51.100.4", "203.0.113.7"],
    &["203.0.113.7:8080"],
    &["  203.0.113.7  "],
    &["203.0.113.7,"],
];
const HOSTS: [&str; 8] = [
    "payments-api.payments",
    "Payments-API.Payments",
    "payments-api.payments:8080",
    "other.example",
    "a.other.example",
    "b.other.example:9",
    "a.other.example:8080",
    "payments-api.payments.",
];
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"];
const PATHS: [&str; 34] = [
    "/v1/charges",
    "/",
    "/v1/charges/",
    "/v1/charges?x=/admin",
    "/v1/charges/42",
    "/V1/charges",
    "/v1//charges",
    "/v1/./charges",
    "/v1/x/../charges",
    "/v1/%63harges",
    "/v1%2fcharges",
    "/admin",
    "/admin/",
    "/admin/users/7",
    "/x/..;/admin",
    "/%61dmin",
    "/%2561dmin",
    "/service/*health",
    "/service/my/health",
    "/a/productpage*",
    "/a/productpage",
    "/store//cart",
    "/store/a/b/cart",
    "/store/cart",
    "/store/a/cart/",
    "/foo/a.b-c_d~e/bar",
    "/foo/a!$&'()+,;:@=*/bar",
    "/foo/a|b/bar",
    "/foo/a[b]/bar",
    "/foo/%20/bar",
    "/foo/a\\bar",
    "/foo//bar",
    "/pkg.Service/Method",
    "/foo/%C3%A9/bar",
];
/// Lines of the header `x-tag`.
const HEADERS: [&[&str]; 11] = [
    &[],
    &["blue"],
    &["Blue"],
    &["blue", "red"],
    &["red", "blue"],
    &["red"],
    &[""],
    &["blue,red"],
    &["bluebird"],
    &["sky-blue"],
    &["", "blue"],
];
const SNIS: [&str; 3] = [
    "outbound_.80_._.payments-api.payments.svc.cluster.local",
    "payments-api.payments.svc.cluster.local",
    "other.example",
];
/// Where a request goes: address and number of the port.
const DESTINATIONS: [(&str, usize); 3] = [("127.0.0.1", 0), ("127.0.0.1", 1), ("127.0.0.2", 0)];

impl Ask {
    fn with(mut self, fact: Fact, choice: usize) -> Self {
        self.chosen[fact as usize] = choice;
        self
    }
    fn choice(&self, fact: Fact) -> usize {
        self.chosen[fact as usize]
    }
    /// A SPIFFE ID, or nothing for plaintext.
    pub fn peer(&self) -> Option<&'static str> {
        Some(PEERS[self.choice(Fact::Peer)]).filter(|peer| !peer.is_empty())
    }
    pub fn source(&self) -> &'static str {
        SOURCES[self.choice(Fact::Source)]
    }
    pub fn forwarded_for(&self) -> &'static [&'static str] {
        REMOTES[self.choice(Fact::Remote)]
    }
    pub fn host(&self) -> &'static str {
        HOSTS[self.choice(Fact::Host)]
    }
    pub fn destination(&self) -> (&'static str, usize) {
        DESTINATIONS[self.choice(Fact::Destination)]
    }
    pub fn method(&self) -> &'static str {
        METHODS[self.choice(Fact::Method)]
    }
    pub fn path(&self) -> &'static str {
        PATHS[self.choice(Fact::Path)]
    }
    pub fn tags(&self) -> &'static [&'static str] {
        HEADERS[self.choice(Fact::Header)]
    }
    /// There is none without TLS.
    pub fn sni(&self) -> Option<&'static str> {
        self.peer().map(|_| SNIS[self.choice(Fact::Sni)])
    }

    /// Every request that differs from this one in this fact, and this one.
    fn variants(self, fact: Fact) -> impl Iterator<Item = Self> {
        (0..count(fact)).map(move |choice| self.with(fact, choice))
    }
}

fn count(fact: Fact) -> usize {
    match fact {
        Fact::Peer => PEERS.len(),
        Fact::Source => SOURCES.len(),
        Fact::Remote => REMOTES.len(),
        Fact::Host => HOSTS.len(),
        Fact::Destination => DESTINATIONS.len(),
        Fact::Method => METHODS.len(),
        Fact::Path => PATHS.len(),
        Fact::Header => HEADERS.len(),
        Fact::Sni => SNIS.len(),
    }
}

/// A set of policies and the requests that it is asked about.
#[derive(Clone, Debug)]
pub struct Case {
    pub policies: Vec<AuthorizationPolicy>,
    pub asks: Vec<Ask>,
}

impl Case {
    /// Short, for messages.
    pub fn describe(&self) -> String {
        let one = |policy: &AuthorizationPolicy| {
            let rules: Vec<Value> = policy.rules.iter().map(|rule| pruned(json!(rule))).collect();
            format!("{:?} {}", policy.action, json!(rules))
        };
        self.policies.iter().map(one).collect::<Vec<_>>().join(" + ")
    }
}

/// One field or key, and what it is compared with: several lists of values.
struct Field {
    half: &'static str,
    name: &'static str,
    fact: Fact,
    values: Vec<Vec<String>>,
}

fn fields(ports: &[u16]) -> Vec<Field> {
    let field = |half, name, fact, values: &[&[&str]]| Field {
        half,
        name,
        fact,
        values: values.iter().map(|list| list.iter().map(ToString::to_string).collect()).collect(),
    };
    let (a, b) = (ports[0].to_string(), ports[1].to_string());
    let principals: &[&[&str]] = &[
        &["cluster.local/ns/checkout/sa/checkout-api"],
        &["*"],
        &["cluster.local/ns/checkout/*"],
        &["cluster.local/*", "td.example.com/ns/payments/sa/reports"],
        &["*/sa/reports"],
        &["*/ns/checkout/sa/checkout-api"],
        &["*checkout*"],
        &["spiffe://cluster.local/ns/checkout/sa/checkout-api"],
        &["Cluster.local/ns/checkout/sa/checkout-api"],
        &["cluster.local/ns/*/sa/reports"],
        &["old.example/ns/checkout/sa/checkout-api"],
        &["*.example/ns/checkout/sa/checkout-api"],
        &["td.example.com/ns/checkout/sa/checkout-api"],
    ];
    let namespaces: &[&[&str]] = &[
        &["checkout"],
        &["prod-*"],
        &["*-eu"],
        &["*"],
        &["p*d-*u", "none"],
        &["check"],
        &["CHECKOUT"],
        &["pay.ents"],
    ];
    let accounts: &[&[&str]] = &[
        &["checkout/reports"],
        &["reports"],
        &["checkout/checkout-api", "prod-eu/default"],
        &["check/reports"],
        &["checkout/report"],
    ];
    let domains: &[&[&str]] = &[
        &["cluster.local"],
        &["*"],
        &["td*"],
        &["*.example"],
        &["*.com", "none"],
        &["old.example"],
        &["cluster"],
    ];
    let sources: &[&[&str]] =
        &[&["127.0.0.1"], &["127.77.0.0/16"], &["127.77.0.0/24", "10.0.0.0/8"], &["0.0.0.0/0"], &["::/0"]];
    let remotes: &[&[&str]] = &[
        &["203.0.113.7"],
        &["203.0.113.0/25"],
        &["198.51.100.0/24", "2001:db8::/32"],
        &["127.0.0.0/8"],
        &["::/0"],
        &["0.0.0.0/0"],
        &["2001:db8::7"],
    ];
    let hosts: &[&[&str]] = &[
        &["payments-api.payments"],
        &["PAYMENTS-API.payments"],
        &["payments-api.payments:*"],
        &["*.other.example"],
        &["*.OTHER.example:*"],
        &["*"],
        &["payments*", "nobody"],
        &["*:8080"],
    ];
    let methods: &[&[&str]] = &[&["GET"], &["P*"], &["*T"], &["*"], &["get"], &["DELETE", "OPTIONS"]];
    let paths: &[&[&str]] = &[
        &["/v1/charges"],
        &["/v1/*"],
        &["*/charges"],
        &["*"],
        &["/service/*health"],
        &["*/productpage*"],
        &["/admin", "/admin/*"],
        &["/v1/{*}"],
        &["/v1/{**}"],
        &["/{*}/{*}/{*}"],
        &["/store/{**}/cart"],
        &["/foo/{*}/bar"],
        &["/foo/{**}"],
        &["/{**}"],
        &["/{*}/"],
        &["/v1/charges?x=/admin"],
        &["/ADMIN*"],
        &["/pkg.Service/{*}"],
        &["/foo/%20/bar", "/foo/a%7Cb/bar"],
    ];
    let tags: &[&[&str]] =
        &[&["blue"], &["*"], &["blue*"], &["*blue"], &["blue,red"], &["green", "red"], &["red*"], &["BLUE"]];
    let snis: &[&[&str]] = &[
        &["other.example"],
        &["*.payments-api.payments.svc.cluster.local"],
        &["outbound_.80_*"],
        &["*"],
        &["OTHER.example"],
    ];
    let port_lists: &[&[&str]] = &[&[&a], &[&a, "1"], &["1"], &[&b]];
    vec![
        field("source", "principals", Fact::Peer, principals),
        field("source", "namespaces", Fact::Peer, namespaces),
        field("source", "serviceAccounts", Fact::Peer, accounts),
        field("source", "trustDomains", Fact::Peer, domains),
        field("source", "ipBlocks", Fact::Source, sources),
        field("source", "remoteIpBlocks", Fact::Remote, remotes),
        field("operation", "hosts", Fact::Host, hosts),
        field("operation", "ports", Fact::Destination, port_lists),
        field("operation", "methods", Fact::Method, methods),
        field("operation", "paths", Fact::Path, paths),
        field("when", "source.principal", Fact::Peer, &principals[..9]),
        field("when", "source.namespace", Fact::Peer, namespaces),
        field("when", "source.serviceAccount", Fact::Peer, accounts),
        field("when", "source.trustDomain", Fact::Peer, domains),
        field("when", "source.ip", Fact::Source, sources),
        field("when", "remote.ip", Fact::Remote, remotes),
        field("when", "destination.ip", Fact::Destination, &[&["127.0.0.2"], &["127.0.0.0/31"], &["::/0"]]),
        field("when", "destination.port", Fact::Destination, port_lists),
        field("when", "connection.sni", Fact::Sni, snis),
        field("when", "request.headers[x-tag]", Fact::Header, tags),
        field("when", "request.headers[X-Tag]", Fact::Header, &tags[..2]),
        field("when", "request.headers[:authority]", Fact::Host, &hosts[..6]),
        field("when", "request.headers[host]", Fact::Host, &hosts[..3]),
        field("when", "request.headers[:method]", Fact::Method, &methods[..4]),
    ]
}

/// The grid for listeners on these ports.
pub fn cases(ports: &[u16]) -> Vec<Case> {
    let fields = fields(ports);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut cases = Vec::new();
    for field in &fields {
        for values in &field.values {
            for negated in [false, true] {
                let rule = json!({"from": [], "to": [], "when": []});
                let mut rules = [rule];
                insert(&mut rules[0], field, values, negated);
                let rules: Vec<Value> = rules.into_iter().collect();
                for action in [Action::Allow, Action::Deny] {
                    let mut asks: Vec<Ask> = Ask::default().variants(field.fact).collect();
                    // A plaintext caller has neither identity nor server name.
                    asks.push(Ask::default().with(Fact::Peer, 1));
                    asks.extend((0..2).map(|_| dice.ask()));
                    cases.push(Case { policies: vec![policy("one", action, &rules)], asks });
                }
            }
        }
    }
    for _ in 0..160 {
        let policies = (0..1 + dice.below(3)).map(|n| {
            let action = [Action::Allow, Action::Deny][dice.below(2)];
            let rules: Vec<Value> = (0..dice.below(4)).map(|_| dice.rule(&fields)).collect();
            // DENY without rules is refused.
            let rules =
                if rules.is_empty() && action == Action::Deny { vec![dice.rule(&fields)] } else { rules };
            policy(&format!("p{n}"), action, &rules)
        });
        let policies: Vec<_> = policies.collect();
        cases.push(Case { policies, asks: (0..20).map(|_| dice.ask()).collect() });
    }
    cases
}

/// A policy of these rules in the namespace payments.
pub fn policy(name: &str, action: Action, rules: &[Value]) -> AuthorizationPolicy {
    AuthorizationPolicy {
        metadata: Metadata { name: name.into(), namespace: "payments".into(), ..Metadata::default() },
        action,
        rules: rules.iter().map(|rule| serde_json::from_value(rule.clone()).unwrap()).collect(),
        ..AuthorizationPolicy::default()
    }
}

/// Adds one field to the last alternative of its half, or one condition.
fn insert(rule: &mut Value, field: &Field, values: &[String], negated: bool) {
    if field.half == "when" {
        let side = if negated { "notValues" } else { "values" };
        rule["when"].as_array_mut().unwrap().push(json!({"key": field.name, side: values}));
        return;
    }
    let list = rule[if field.half == "source" { "from" } else { "to" }].as_array_mut().unwrap();
    if list.is_empty() {
        list.push(json!({field.half: {}}));
    }
    let (first, rest) = field.name.split_at(1);
    let name = if negated { format!("not{}{rest}", first.to_uppercase()) } else { field.name.to_owned() };
    list.last_mut().unwrap()[field.half][name] = json!(values);
}

/// Without what is empty.
fn pruned(value: Value) -> Value {
    match value {
        Value::Object(map) => map
            .into_iter()
            .filter(|(_, v)| v.as_array().is_none_or(|list| !list.is_empty()))
            .map(|(key, v)| (key, pruned(v)))
            .collect(),
        Value::Array(list) => list.into_iter().map(pruned).collect(),
        other => other,
    }
}

/// The same throws in every run (xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    /// Mostly the usual request, in some facts another one.
    fn ask(&mut self) -> Ask {
        let mut ask = Ask::default();
        for fact in FACTS {
            if self.below(2) == 0 {
                ask = ask.with(fact, self.below(count(fact)));
            }
        }
        ask
    }

    fn rule(&mut self, fields: &[Field]) -> Value {
        let mut rule = json!({"from": [], "to": [], "when": []});
        for (half, list) in [("source", "from"), ("operation", "to"), ("when", "when")] {
            for _ in 0..self.below(3) {
                if half != "when" {
                    rule[list].as_array_mut().unwrap().push(json!({half: {}}));
                }
                let of_half: Vec<&Field> = fields.iter().filter(|field| field.half == half).collect();
                let mut accounts = None;
                for _ in 0..1 + self.below(2) {
                    let field = of_half[self.below(of_half.len())];
                    // Istio does not take serviceAccounts beside principals or namespaces.
                    let is_accounts = field.name == "serviceAccounts";
                    let clashes = matches!(field.name, "principals" | "namespaces" | "serviceAccounts");
                    if clashes && accounts.replace(is_accounts).is_some_and(|before| before != is_accounts) {
                        accounts = Some(!is_accounts);
                        continue;
                    }
                    let values = &field.values[self.below(field.values.len())];
                    insert(&mut rule, field, values, self.below(3) == 0);
                }
            }
        }
        rule
    }
}
