//! Random policies and random calls from one small world of values, so that they meet often. Every field, every `not`
//! form and every form of a pattern comes up; so do crowds of rules with the same values, long lists, and rules with
//! many alternatives.

use super::given::{Call, call, policy, spec};
use postern_config::documents::AuthorizationPolicy;
use postern_config::documents::authorization_policy::{Action, Condition, From, Operation, Rule, Source, To};
use postern_config::{Claims, InboundSpec};
use serde_json::{Value, json};

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    /// Once in `times`.
    fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    fn pick<'v, T>(&mut self, values: &'v [T]) -> &'v T {
        &values[self.below(values.len())]
    }
}

const PRINCIPALS: &[&str] = &[
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/b/sa/y",
    "td/ns/a/sa/x",
    "cluster.local/ns/a/*",
    "cluster.local/*",
    "td/*",
    "*/sa/x",
    "*/y",
    "*x",
    "*",
    "td",
    "t*",
    "*/ns/a/sa/x",
    "cluster.local/ns/ns/sa/sa",
    "*-td/ns/a/sa/x",
    "CLUSTER.local/ns/a/sa/x",
];
const NAMESPACES: &[&str] = &["a", "b", "ns", "sa", "*", "a*", "*b", "c*d", "a/sa", "x", "*/*", "c-d"];
const ACCOUNTS: &[&str] = &["a/x", "b/y", "x", "y", "ns/sa", "a/sa", "payments/x", "c-d/x"];
const DOMAINS: &[&str] = &["*", "td", "cluster.local", "t*", "*.local", "old-td", "*-td", "ns"];
const BLOCKS: &[&str] = &[
    "10.0.0.1",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "0.0.0.0/0",
    "203.0.113.0/24",
    "203.0.113.7",
    "fd00::/8",
    "fd00::1",
    "::/0",
    "::ffff:10.0.0.0/104",
    "10.0.0.2/31",
    "::ffff:0:0/96",
    "fd00::2/127",
];
const PORTS: &[&str] = &["8080", "9090", "443", "0", "65535"];
const SERVERS: &[&str] = &["*", "a.example", "*.example", "a*", "b.example", "outbound_*"];
const HOSTS: &[&str] =
    &["A.example", "a.example", "*.Example", "a*", "*", "b.example:80", "B.example:*", "*:80"];
const METHODS: &[&str] = &["GET", "POST", "P*", "*T", "*", "get"];
const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/*",
    "/a*",
    "/a/b/*",
    "*",
    "*/b",
    "*b",
    "*.txt",
    "/{*}",
    "/a/{*}",
    "/{*}/b",
    "/{*}/{*}",
    "/{**}",
    "/a/{**}",
    "/a/{**}/c",
    "/{**}/c",
    "/{*}/b/{**}",
    "/a/{*}/c/{**}/d/e",
    "/{**}/d/e",
    "/a/",
    "/{*}/",
    "/**",
    "/a/b/c",
    "/{*}/{*}/{*}",
    "/a/{*}/",
    "/%7B",
    "**",
];
const HEADERS: &[&str] = &[
    "request.headers[x-a]",
    "request.headers[X-B]",
    "request.headers[x-c]",
    "request.headers[:authority]",
    "request.headers[host]",
    "request.headers[:method]",
];
const TEXTS: &[&str] = &["a", "b", "ab", "a*", "*b", "*", "", "abc", "GET", "a.example", "**"];
const REQUEST_PRINCIPALS: &[&str] =
    &["*", "i/s", "i/*", "*/s", "i*", "*s", "i/s*", "*i/s", "i", "i/t", "j/s", "j/*", "i//s", "/s"];
const CLAIMS: &[&str] = &[
    "request.auth.claims[group]",
    "request.auth.claims[scope]",
    "request.auth.claims[a][b]",
    "request.auth.claims[a]",
    "request.auth.claims[permission]",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[aud]",
    "request.auth.claims[sub]",
];
const PEERS: &[&str] = &[
    "spiffe://cluster.local/ns/a/sa/x",
    "spiffe://cluster.local/ns/b/sa/y",
    "spiffe://td/ns/a/sa/x",
    "spiffe://old-td/ns/a/sa/x",
    "spiffe://td",
    "spiffe://ns/a/b",
    "spiffe://td/ns/ns/sa/sa",
    "spiffe://td/ns/a/q/sa/x",
    "spiffe://td/ns/a/sa/x/ns/b/sa/y",
    "spiffe://td/ns/a/sa/x/z",
    "spiffe://td/sa/x/ns/a",
    "spiffe://td/ns/a",
    "spiffe://td/ns/c-d/sa/x",
    "spiffe://td/ns/ns/a/sa/x",
    "spiffe://cluster.local/ns/payments/sa/x",
    "spiffe://new-td/ns/a/sa/x",
    "spiffe://td/ns/sa/sa/x",
    "spiffe://td/ns/cd/sa/sa",
];
const ADDRESSES: &[&str] = &[
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.9.0.1",
    "203.0.113.7",
    "192.0.2.1",
    "fd00::1",
    "fd00::2",
    "fe80::1",
    "::ffff:10.0.0.1",
    "::ffff:192.0.2.1",
];
const SEEN_PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/",
    "/a/b",
    "/a/b/",
    "/a/b/c",
    "/a/b/c/d/e",
    "/a//c",
    "/a/x/c",
    "/b",
    "/x/b",
    "/x/b/c",
    "/a/b.txt",
    "",
    "/a|b",
    "/a/b|/c",
    "/a/%7Bb",
    "/d/e",
    "/a/c",
    "//",
    "/a?q",
    "/a/b#f/c",
    "/é",
    "/%7B",
    "/a/x/c/y/d/e",
];

/// A taste: how many of the values of each kind a set of policies uses. Few values make crowds.
struct World {
    variety: usize,
    fields: usize,
}

fn some(random: &mut Random, world: &World, values: &[&str]) -> Vec<String> {
    if !random.once_in(world.fields) {
        return Vec::new();
    }
    let many = random.once_in(24);
    let count = if many { 9 + random.below(8) } else { 1 + random.below(2) };
    let usable = if many { values } else { &values[..values.len().min(world.variety)] };
    (0..count).map(|_| *random.pick(usable)).filter(|value| !value.is_empty()).map(str::to_string).collect()
}

fn source(random: &mut Random, world: &World) -> Source {
    let mut one = |values| some(random, world, values);
    let mut source = Source {
        principals: one(PRINCIPALS),
        not_principals: one(PRINCIPALS),
        request_principals: one(REQUEST_PRINCIPALS),
        not_request_principals: one(REQUEST_PRINCIPALS),
        namespaces: one(NAMESPACES),
        not_namespaces: one(NAMESPACES),
        service_accounts: one(ACCOUNTS),
        not_service_accounts: one(ACCOUNTS),
        trust_domains: one(DOMAINS),
        not_trust_domains: one(DOMAINS),
        ip_blocks: one(BLOCKS),
        not_ip_blocks: one(BLOCKS),
        remote_ip_blocks: one(BLOCKS),
        not_remote_ip_blocks: one(BLOCKS),
    };
    source.service_accounts.truncate(16);
    source.not_service_accounts.truncate(16);
    if random.once_in(2) {
        source.service_accounts.clear();
        source.not_service_accounts.clear();
    } else if !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty() {
        for named in [
            &mut source.principals,
            &mut source.not_principals,
            &mut source.namespaces,
            &mut source.not_namespaces,
        ] {
            named.clear();
        }
    }
    if source == Source::default() {
        source.namespaces.push("a".into());
    }
    source
}

fn operation(random: &mut Random, world: &World) -> Operation {
    let mut one = |values| some(random, world, values);
    let operation = Operation {
        hosts: one(HOSTS),
        not_hosts: one(HOSTS),
        ports: one(PORTS),
        not_ports: one(PORTS),
        methods: one(METHODS),
        not_methods: one(METHODS),
        paths: one(PATHS),
        not_paths: one(PATHS),
    };
    if operation == Operation::default() {
        return Operation { methods: vec!["GET".into()], ..operation };
    }
    operation
}

fn condition(random: &mut Random, world: &World) -> Condition {
    let (key, pool): (&str, &[&str]) = match random.below(14) {
        0 => ("source.ip", BLOCKS),
        1 => ("remote.ip", BLOCKS),
        2 => ("destination.ip", BLOCKS),
        3 => ("source.namespace", NAMESPACES),
        4 => ("source.principal", PRINCIPALS),
        5 => ("source.serviceAccount", ACCOUNTS),
        6 => ("source.trustDomain", DOMAINS),
        7 => ("destination.port", PORTS),
        8 => ("connection.sni", SERVERS),
        9 => ("request.auth.principal", REQUEST_PRINCIPALS),
        10 | 11 => (CLAIMS[random.below(CLAIMS.len())], TEXTS),
        _ => (HEADERS[random.below(HEADERS.len())], TEXTS),
    };
    let world = World { fields: 2, variety: world.variety };
    let mut condition = Condition {
        key: key.into(),
        values: some(random, &world, pool),
        not_values: some(random, &world, pool),
    };
    if condition.values.is_empty() && condition.not_values.is_empty() {
        condition.values.push(pool[0].into());
    }
    condition
}

fn alternatives(random: &mut Random) -> usize {
    match random.below(400) {
        0 => 19,
        1..40 => 3,
        40..120 => 2,
        120..280 => 1,
        _ => 0,
    }
}

fn rule(random: &mut Random, world: &World) -> Rule {
    let (from, to, mut when) = (alternatives(random), alternatives(random), random.below(3));
    // The rarest shape: more combinations than are multiplied out.
    let (from, to) = if random.once_in(300) { (19, 19) } else { (from, to) };
    if random.once_in(3) {
        when = 0;
    }
    Rule {
        from: (0..from).map(|_| From { source: source(random, world) }).collect(),
        to: (0..to).map(|_| To { operation: operation(random, world) }).collect(),
        when: (0..when).map(|_| condition(random, world)).collect(),
    }
}

/// Up to four policies; sometimes a crowd of rules.
pub fn any_spec(random: &mut Random) -> InboundSpec {
    let crowd = random.once_in(12);
    let world = World { variety: 1 + random.below(if crowd { 4 } else { 40 }), fields: 3 + random.below(8) };
    let policies = (0..random.below(5)).map(|index| {
        let action = *random.pick(&[Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit]);
        let rules =
            if crowd { 20 + random.below(60) } else { random.below(5) + usize::from(action == Action::Deny) };
        AuthorizationPolicy {
            rules: (0..rules).map(|_| rule(random, &world)).collect(),
            dry_run: action != Action::Audit && random.once_in(4),
            ..policy("payments", &format!("policy-{index}"), action, "[]")
        }
    });
    let mut spec = spec(policies.collect());
    if random.once_in(3) {
        spec.mesh.trust_domain = "new-td".into();
        spec.mesh.trust_domain_aliases = vec!["td".into(), "old-td".into()];
    }
    spec
}

fn text(random: &mut Random) -> Value {
    json!(random.pick(&["a", "b", "ab", "xb", "", "abc", "a b", "i", "s", "*b", "GET"]))
}

fn claim(random: &mut Random) -> Value {
    match random.below(6) {
        0 => json!([text(random), 7, text(random)]),
        1 => json!({"b": text(random)}),
        2 => json!({"b": [text(random), null]}),
        3 => json!(true),
        _ => text(random),
    }
}

fn token(random: &mut Random) -> Claims {
    let mut payload = serde_json::Map::new();
    for (name, values) in [("iss", ["i", "j", "", "xi", "i/"]), ("sub", ["s", "st", "", "xs", "t"])] {
        if !random.once_in(8) {
            payload.insert(name.into(), json!(random.pick(&values)));
        }
    }
    for name in ["group", "scope", "a", "permission", "aud", "azp", "other", "z"] {
        if random.once_in(2) {
            payload.insert(name.into(), claim(random));
        }
    }
    Claims::new(payload)
}

/// A call from the same world, HTTP or TCP.
pub fn any_call(random: &mut Random) -> Call {
    let mut one = call();
    one.peer = (!random.once_in(6)).then(|| random.pick(PEERS).parse().unwrap());
    let mut address = || random.pick(ADDRESSES).parse().unwrap();
    (one.source_ip, one.remote_ip, one.destination_ip) = (address(), address(), address());
    one.port = *random.pick(&[8080, 9090, 443, 0, 65535, 22]);
    let names = ["a.example", "b.example", "", "c", "outbound_.80_._.x"];
    one.sni = (!random.once_in(3)).then(|| random.pick(&names).to_string());
    one.method = random.pick(&["GET", "POST", "PUT", "get", "DELETE"]).to_string();
    one.host =
        random.pick(&["a.example", "A.EXAMPLE", "b.example:80", "x.example", "", "B.Example:80"]).to_string();
    one.path = random.pick(SEEN_PATHS).to_string();
    for _ in 0..random.below(4) {
        let name = *random.pick(&["x-a", "x-b", "x-c", "x-d", "x-e"]);
        one = one.header(name, ["a", "b", "ab", "", "abc", "*", "xb"][random.below(7)]);
    }
    one.claims = (!random.once_in(3)).then(|| token(random));
    if random.once_in(5) { one.tcp() } else { one }
}
