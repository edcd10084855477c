//! AuthorizationPolicies as the RBAC filters that Istio's control plane makes of them (reference 2.3, 2.6 to 2.11).
//!
//! This is a translation of documents, written from the reference and not from our evaluator, so that the two can be
//! compared. Only expanding trust domain aliases is ours: that is Istio's own work, too, and nothing that Envoy knows of.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)]

use postern_config::documents::{
    AuthorizationPolicy, MeshConfig,
    authorization_policy::{Action, Condition, Operation, Rule, Source},
};
use postern_config::matchers::identity::TrustDomains;
use serde_json::{Map, Value, json};

/// The names of the two filters, in the order in which Istio puts them.
pub const FILTERS: [(&str, Action); 2] = [("rbac.deny", Action::Deny), ("rbac.allow", Action::Allow)];

/// What a filter does for these policies; `None` when no policy has its action, so that it lets everything pass.
pub fn rules(policies: &[AuthorizationPolicy], action: Action, mesh: &MeshConfig) -> Option<Value> {
    let mut chosen = policies.iter().filter(|policy| policy.action == action).peekable();
    chosen.peek()?;
    let mut map = Map::new();
    for policy in chosen {
        for (index, rule) in policy.rules.iter().enumerate() {
            let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
            let translation = Translation { mesh, namespace };
            map.insert(format!("ns[{namespace}]-policy[{name}]-rule[{index}]"), translation.rule(rule));
        }
    }
    // Without any policy inside: an ALLOW filter that never matches, which denies everything.
    Some(if map.is_empty() { json!({}) } else { json!({"action": filter_action(action), "policies": map}) })
}

/// The typed configuration of a route, for each of the two filters that has something to do.
pub fn per_route(policies: &[AuthorizationPolicy], mesh: &MeshConfig) -> Value {
    let given = FILTERS.iter().filter_map(|(name, action)| {
        let rules = rules(policies, *action, mesh)?;
        Some((
            (*name).to_owned(),
            json!({
                "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
                "rbac": {"rules": rules},
            }),
        ))
    });
    Value::Object(given.collect())
}

/// The two filters of a listener, which do nothing unless a route tells them to, or with these rules for all routes.
pub fn filters(policies: &[AuthorizationPolicy], mesh: &MeshConfig) -> Vec<Value> {
    let filter = |(name, action): &(&str, Action)| {
        let mut config = json!({"@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"});
        if let Some(rules) = rules(policies, *action, mesh) {
            config["rules"] = rules;
        }
        json!({"name": name, "typed_config": config})
    };
    FILTERS.iter().map(filter).collect()
}

fn filter_action(action: Action) -> &'static str {
    if action == Action::Deny { "DENY" } else { "ALLOW" }
}

struct Translation<'a> {
    mesh: &'a MeshConfig,
    /// What a bare service account belongs to.
    namespace: &'a str,
}

/// In which half of a rule Istio puts a condition.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Permission,
    Principal,
}

impl Translation<'_> {
    fn rule(&self, rule: &Rule) -> Value {
        let when = |half| -> Vec<Value> {
            let conditions = rule.when.iter().filter(|condition| half_of(&condition.key) == half);
            conditions.flat_map(|condition| self.condition(condition)).collect()
        };
        let operations: Vec<Vec<Value>> = rule.to.iter().map(|to| self.operation(&to.operation)).collect();
        let sources: Vec<Vec<Value>> = rule.from.iter().map(|from| self.source(&from.source)).collect();
        json!({
            "permissions": alternatives(operations, &when(Half::Permission), "rules"),
            "principals": alternatives(sources, &when(Half::Principal), "ids"),
        })
    }

    fn operation(&self, operation: &Operation) -> Vec<Value> {
        let mut all = Vec::new();
        let o = operation;
        self.both(&mut all, Half::Permission, &o.hosts, &o.not_hosts, host);
        self.both(&mut all, Half::Permission, &o.methods, &o.not_methods, |v| header(":method", v));
        self.both(&mut all, Half::Permission, &o.paths, &o.not_paths, path);
        self.both(&mut all, Half::Permission, &o.ports, &o.not_ports, port);
        all
    }

    fn source(&self, source: &Source) -> Vec<Value> {
        let mut all = Vec::new();
        let s = source;
        let mut side = |values, not_values, one: &dyn Fn(&str) -> Value| {
            self.both(&mut all, Half::Principal, values, not_values, one);
        };
        side(&s.ip_blocks, &s.not_ip_blocks, &|v| json!({"direct_remote_ip": cidr(v)}));
        side(&s.remote_ip_blocks, &s.not_remote_ip_blocks, &|v| json!({"remote_ip": cidr(v)}));
        side(&s.namespaces, &s.not_namespaces, &namespace);
        side(&s.service_accounts, &s.not_service_accounts, &|v| self.service_account(v));
        let domains = [&s.trust_domains, &s.not_trust_domains].map(|values| self.all_domains(values));
        side(&domains[0], &domains[1], &trust_domain);
        let principals = [&s.principals, &s.not_principals].map(|values| self.all_principals(values));
        side(&principals[0], &principals[1], &principal);
        all
    }

    fn condition(&self, condition: &Condition) -> Vec<Value> {
        let mut all = Vec::new();
        let key = condition.key.as_str();
        let (values, not_values) = match key {
            "source.principal" => {
                (self.all_principals(&condition.values), self.all_principals(&condition.not_values))
            }
            "source.trustDomain" => {
                (self.all_domains(&condition.values), self.all_domains(&condition.not_values))
            }
            _ => (condition.values.clone(), condition.not_values.clone()),
        };
        let one = |value: &str| match key {
            "source.ip" => json!({"direct_remote_ip": cidr(value)}),
            "remote.ip" => json!({"remote_ip": cidr(value)}),
            "source.namespace" => namespace(value),
            "source.serviceAccount" => self.service_account(value),
            "source.principal" => principal(value),
            "source.trustDomain" => trust_domain(value),
            "destination.ip" => json!({"destination_ip": cidr(value)}),
            "destination.port" => port(value),
            "connection.sni" => json!({"requested_server_name": text_or_any(value)}),
            _ => header(key.strip_prefix("request.headers[").unwrap().strip_suffix(']').unwrap(), value),
        };
        self.both(&mut all, half_of(key), &values, &not_values, one);
        all
    }

    /// One field: any of the values, and none of the others.
    #[allow(clippy::unused_self)]
    fn both(
        &self,
        all: &mut Vec<Value>,
        half: Half,
        values: &[String],
        not_values: &[String],
        one: impl Fn(&str) -> Value,
    ) {
        let (or, list, not) = match half {
            Half::Permission => ("or_rules", "rules", "not_rule"),
            Half::Principal => ("or_ids", "ids", "not_id"),
        };
        let any = |values: &[String]| -> Value {
            json!({or: {list: values.iter().map(|value| one(value)).collect::<Vec<_>>()}})
        };
        if !values.is_empty() {
            all.push(any(values));
        }
        if !not_values.is_empty() {
            all.push(json!({not: any(not_values)}));
        }
    }

    fn all_principals(&self, values: &[String]) -> Vec<String> {
        values.iter().flat_map(|value| self.domains().expand_principal(value)).collect()
    }

    fn all_domains(&self, values: &[String]) -> Vec<String> {
        values.iter().flat_map(|value| self.domains().expand_trust_domain(value)).collect()
    }

    fn domains(&self) -> TrustDomains<'_> {
        TrustDomains { own: &self.mesh.trust_domain, aliases: &self.mesh.trust_domain_aliases }
    }

    fn service_account(&self, value: &str) -> Value {
        let (namespace, account) = value.split_once('/').unwrap_or((self.namespace, value));
        let (namespace, account) = (quote(namespace), quote(account));
        authenticated(&regex(&format!("spiffe://.+/ns/{namespace}/(.+/)?sa/{account}(/.+)?")))
    }
}

fn half_of(key: &str) -> Half {
    if key.starts_with("destination.") || key == "connection.sni" {
        Half::Permission
    } else {
        Half::Principal
    }
}

/// The alternatives of a rule, each with the conditions; `any` where nothing is asked.
fn alternatives(written: Vec<Vec<Value>>, when: &[Value], list: &str) -> Vec<Value> {
    let written = if written.is_empty() { vec![vec![]] } else { written };
    let and = if list == "rules" { "and_rules" } else { "and_ids" };
    let one = |mut all: Vec<Value>| {
        all.extend_from_slice(when);
        if all.is_empty() {
            all.push(json!({"any": true}));
        }
        json!({and: {list: all}})
    };
    written.into_iter().map(one).collect()
}

fn host(value: &str) -> Value {
    let mut matcher = header(":authority", value);
    if let Some(text) = matcher["header"].get_mut("string_match") {
        text["ignore_case"] = json!(true);
    }
    matcher
}

fn header(name: &str, value: &str) -> Value {
    match value {
        "*" => json!({"header": {"name": name, "present_match": true}}),
        _ => json!({"header": {"name": name, "string_match": text(value)}}),
    }
}

fn path(value: &str) -> Value {
    if !value.contains("{*}") && !value.contains("{**}") {
        return json!({"url_path": {"path": text_or_any(value)}});
    }
    json!({"uri_template": {
        "name": "uri-template",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
            "path_template": value.replace("{**}", "**").replace("{*}", "*"),
        },
    }})
}

fn port(value: &str) -> Value {
    json!({"destination_port": value.parse::<u16>().unwrap()})
}

fn cidr(value: &str) -> Value {
    let whole = if value.contains(':') { 128 } else { 32 };
    let (address, length) = value.split_once('/').map_or((value, whole), |(a, l)| (a, l.parse().unwrap()));
    json!({"address_prefix": address, "prefix_len": length})
}

fn principal(value: &str) -> Value {
    authenticated(&match text(value) {
        _ if value == "*" => regex(".+"),
        one if one.get("suffix").is_some() => regex(&format!("spiffe://.*{}", quote(&value[1..]))),
        _ => text(&format!("spiffe://{value}")),
    })
}

fn namespace(value: &str) -> Value {
    let parts: Vec<String> = value.split('*').map(quote).collect();
    authenticated(&regex(&format!(".*/ns/{}/.*", parts.join(".*"))))
}

fn trust_domain(value: &str) -> Value {
    let parts: Vec<String> = value.split('*').map(quote).collect();
    authenticated(&match value {
        "*" => json!({"prefix": "spiffe://"}),
        _ if parts.len() == 1 => json!({"prefix": format!("spiffe://{value}/")}),
        _ => regex(&format!("spiffe://{}/.*", parts.join("[^/]*"))),
    })
}

fn authenticated(name: &Value) -> Value {
    json!({"authenticated": {"principal_name": name}})
}

/// The common form of reference 2.6, without `*`.
fn text(value: &str) -> Value {
    if let Some(suffix) = value.strip_prefix('*') {
        json!({"suffix": suffix})
    } else if let Some(prefix) = value.strip_suffix('*') {
        json!({"prefix": prefix})
    } else {
        json!({"exact": value})
    }
}

fn text_or_any(value: &str) -> Value {
    if value == "*" { regex(".+") } else { text(value) }
}

fn regex(expression: &str) -> Value {
    json!({"safe_regex": {"regex": expression}})
}

fn quote(literal: &str) -> String {
    let mut quoted = String::new();
    for letter in literal.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    quoted
}
