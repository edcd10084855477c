//! Documents to rules. Whatever cannot be enforced exactly is a problem: never ignored, never widened silently.

mod keys;

use self::keys::Kind;
use super::{
    InboundSpec,
    rules::{Clause, Rule, RuleSet, Test},
};
use crate::{
    authorize::{PolicyRef, RuleRef},
    documents::{
        AuthorizationPolicy, Metadata,
        authorization_policy::{Action, Condition, Operation, Rule as WrittenRule, Source},
    },
    matchers::{
        AddressBlock, Path, Principal, RequestPrincipal, ServiceAccount, Text, TrustDomainPattern,
        identity::{Namespace, TrustDomains},
        parse_port,
    },
    problem::{self, Problem, Severity},
    select::{by_age, concerns, created},
};
use std::sync::Arc;

/// Compiles all authorization policies of a spec, in policy order.
pub(super) fn rule_set(spec: &InboundSpec) -> Result<RuleSet, Vec<Problem>> {
    let mut compiler = Compiler {
        domains: TrustDomains { own: &spec.mesh.trust_domain, aliases: &spec.mesh.trust_domain_aliases },
        problems: Vec::new(),
        place: String::new(),
        rule: None,
        policy_namespace: "",
    };
    for document in &spec.peer_authentications {
        compiler.enter("PeerAuthentication", &document.metadata);
        compiler.time_stamp(&document.metadata);
    }
    let mut policies: Vec<&AuthorizationPolicy> = spec.authorization_policies.iter().collect();
    policies.sort_by(|a, b| by_age(&a.metadata, &b.metadata));
    let mut set = RuleSet::default();
    for policy in policies {
        compiler.enter("AuthorizationPolicy", &policy.metadata);
        compiler.policy(spec, policy, &mut set);
    }
    if !compiler.problems.is_empty() {
        return Err(compiler.problems);
    }
    set.http.build_index();
    set.tcp.build_index();
    Ok(set)
}

/// What a rule becomes where there is no request (reference 2.4): ALLOW loses the whole rule, DENY and AUDIT only the
/// conditions that need a request, which makes it wider.
fn tcp_form(rule: &Arc<Rule>) -> Option<Arc<Rule>> {
    if !rule.clauses().any(|clause| clause.test.needs_http()) {
        return Some(Arc::clone(rule));
    }
    if rule.reference.action == Action::Allow {
        return None;
    }
    let mut wider = Rule::clone(rule);
    for clauses in wider.from.iter_mut().chain(&mut wider.to).chain([&mut wider.when]) {
        clauses.retain(|clause| !clause.test.needs_http());
    }
    Some(Arc::new(wider))
}

struct Compiler<'a> {
    domains: TrustDomains<'a>,
    problems: Vec<Problem>,
    /// The document at work, for people.
    place: String,
    /// The rule at work.
    rule: Option<usize>,
    /// What a bare service account means.
    policy_namespace: &'a str,
}

impl<'a> Compiler<'a> {
    fn enter(&mut self, kind: &str, metadata: &'a Metadata) {
        self.place = format!("{kind} {}/{}", metadata.namespace, metadata.name);
        self.rule = None;
        self.policy_namespace = &metadata.namespace;
    }

    fn policy(&mut self, spec: &InboundSpec, policy: &AuthorizationPolicy, set: &mut RuleSet) {
        let workload = &spec.workload;
        self.time_stamp(&policy.metadata);
        if !concerns(policy, &spec.mesh.root_namespace, &workload.namespace, &workload.labels) {
            self.problem(
                problem::NOT_SELECTED,
                format!("the policy does not apply to workload {}/{}", workload.namespace, workload.name),
                "send a workload only the policies that select it; one with targetRefs selects no sidecar",
            );
        }
        if policy.dry_run && matches!(policy.action, Action::Audit | Action::Custom) {
            self.problem(
                problem::BAD_ACTION,
                format!("dry run (annotation istio.io/dry-run) does not go with action {}", policy.action),
                "remove the annotation; only ALLOW and DENY can be tried out",
            );
        }
        match policy.action {
            Action::Custom => {
                self.not_enforced("action CUSTOM", "use ALLOW, DENY or AUDIT, or remove the policy");
            }
            Action::Deny if policy.rules.is_empty() => self.problem(
                problem::BAD_ACTION,
                "DENY action without `rules` is meaningless as it will never be triggered".into(),
                "add an empty rule {} if it is to be triggered for every request",
            ),
            Action::Allow if policy.dry_run => {
                set.dry_run_allow.get_or_insert_with(|| PolicyRef {
                    namespace: policy.metadata.namespace.clone(),
                    policy: policy.metadata.name.clone(),
                });
            }
            Action::Allow => set.allow_applies = true,
            Action::Deny | Action::Audit => {}
        }
        if policy.provider.is_some() && policy.action != Action::Custom {
            self.problem(
                problem::BAD_ACTION,
                "`provider` must not be with non CUSTOM action".into(),
                "remove `provider`, which only CUSTOM policies use",
            );
        }
        for (index, written) in policy.rules.iter().enumerate() {
            self.rule = Some(index);
            let reference = Arc::new(RuleRef {
                namespace: policy.metadata.namespace.clone(),
                policy: policy.metadata.name.clone(),
                rule: index,
                action: policy.action,
            });
            let rule = Arc::new(self.rule(written, reference));
            let tcp = tcp_form(&rule);
            if let Some(rules) = set.http.kind_mut(policy.action, policy.dry_run) {
                rules.push(rule);
            }
            if let Some(rules) = set.tcp.kind_mut(policy.action, policy.dry_run) {
                rules.extend(tcp);
            }
        }
    }

    fn rule(&mut self, written: &WrittenRule, reference: Arc<RuleRef>) -> Rule {
        let mut from = Vec::with_capacity(written.from.len());
        for (index, one) in written.from.iter().enumerate() {
            from.push(self.source(&format!("from[{index}].source"), &one.source));
        }
        let mut to = Vec::with_capacity(written.to.len());
        for (index, one) in written.to.iter().enumerate() {
            to.push(self.operation(&format!("to[{index}].operation"), &one.operation));
        }
        let mut when = Vec::new();
        for (index, condition) in written.when.iter().enumerate() {
            self.condition(index, condition, &mut when);
        }
        Rule { reference, from, to, when }
    }

    fn source(&mut self, at: &str, source: &Source) -> Vec<Clause> {
        if *source == Source::default() {
            self.empty(at, "from: absent `from` means any source");
        }
        let named = [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
        let accounts = [&source.service_accounts, &source.not_service_accounts];
        if accounts.iter().any(|values| !values.is_empty()) && named.iter().any(|values| !values.is_empty()) {
            self.problem(
                problem::BAD_SERVICE_ACCOUNT,
                format!("{at}: cannot set serviceAccounts with namespaces or principals"),
                "write two sources when either is to be enough",
            );
        }
        if accounts.iter().any(|values| values.len() > 16) {
            self.problem(
                problem::BAD_SERVICE_ACCOUNT,
                format!("{at}.serviceAccounts may not have more than 16 values"),
                "split them into several sources",
            );
        }
        let fields: [(&str, bool, &[String], Kind); 14] = [
            ("principals", false, &source.principals, Kind::Principal),
            ("notPrincipals", true, &source.not_principals, Kind::Principal),
            ("requestPrincipals", false, &source.request_principals, Kind::RequestPrincipal),
            ("notRequestPrincipals", true, &source.not_request_principals, Kind::RequestPrincipal),
            ("namespaces", false, &source.namespaces, Kind::Namespace),
            ("notNamespaces", true, &source.not_namespaces, Kind::Namespace),
            ("serviceAccounts", false, &source.service_accounts, Kind::ServiceAccount),
            ("notServiceAccounts", true, &source.not_service_accounts, Kind::ServiceAccount),
            ("trustDomains", false, &source.trust_domains, Kind::TrustDomain),
            ("notTrustDomains", true, &source.not_trust_domains, Kind::TrustDomain),
            ("ipBlocks", false, &source.ip_blocks, Kind::SourceIp),
            ("notIpBlocks", true, &source.not_ip_blocks, Kind::SourceIp),
            ("remoteIpBlocks", false, &source.remote_ip_blocks, Kind::RemoteIp),
            ("notRemoteIpBlocks", true, &source.not_remote_ip_blocks, Kind::RemoteIp),
        ];
        self.clauses(at, fields)
    }

    fn operation(&mut self, at: &str, operation: &Operation) -> Vec<Clause> {
        if *operation == Operation::default() {
            self.empty(at, "to: absent `to` means any operation");
        }
        let fields: [(&str, bool, &[String], Kind); 8] = [
            ("hosts", false, &operation.hosts, Kind::Host),
            ("notHosts", true, &operation.not_hosts, Kind::Host),
            ("ports", false, &operation.ports, Kind::DestinationPort),
            ("notPorts", true, &operation.not_ports, Kind::DestinationPort),
            ("methods", false, &operation.methods, Kind::Method),
            ("notMethods", true, &operation.not_methods, Kind::Method),
            ("paths", false, &operation.paths, Kind::Path),
            ("notPaths", true, &operation.not_paths, Kind::Path),
        ];
        self.clauses(at, fields)
    }

    fn clauses<const N: usize>(
        &mut self,
        at: &str,
        fields: [(&str, bool, &[String], Kind); N],
    ) -> Vec<Clause> {
        let given = fields.into_iter().filter(|(_, _, values, _)| !values.is_empty());
        given
            .map(|(name, negated, values, kind)| self.clause(format!("{at}.{name}"), negated, values, &kind))
            .collect()
    }

    fn condition(&mut self, index: usize, condition: &Condition, clauses: &mut Vec<Clause>) {
        let key = &condition.key;
        let Some(kind) = self.key(index, key) else { return };
        if condition.values.is_empty() && condition.not_values.is_empty() {
            self.problem(
                problem::BAD_CONDITION,
                format!("when[{index}]: at least one of `values` or `notValues` must be set for key {key}"),
                "give the values that are wanted, or remove the condition",
            );
        }
        for (name, negated, values) in
            [("values", false, &condition.values), ("notValues", true, &condition.not_values)]
        {
            if !values.is_empty() {
                clauses.push(self.clause(format!("when[{index}].{name} ({key})"), negated, values, &kind));
            }
        }
    }

    fn clause(&mut self, field: String, negated: bool, values: &[String], kind: &Kind) -> Clause {
        let code = kind.code();
        let mut wanted: Vec<String> = values.to_vec();
        let test = match kind {
            Kind::Principal => {
                let domains = self.domains;
                wanted = values.iter().flat_map(|value| domains.expand_principal(value)).collect();
                Test::Principal(self.read(&field, &wanted, code, |value| Ok(Principal::parse(value))))
            }
            Kind::Namespace => {
                Test::Namespace(self.read(&field, values, code, |value| Ok(Namespace::parse(value))))
            }
            Kind::ServiceAccount => {
                let namespace = self.policy_namespace;
                let accounts =
                    self.read(&field, values, code, |value| ServiceAccount::parse(value, namespace));
                wanted = accounts.iter().map(ToString::to_string).collect();
                Test::ServiceAccount(accounts)
            }
            Kind::TrustDomain => {
                let domains = self.domains;
                wanted = values.iter().flat_map(|value| domains.expand_trust_domain(value)).collect();
                Test::TrustDomain(self.read(&field, &wanted, code, TrustDomainPattern::parse))
            }
            Kind::SourceIp => Test::SourceIp(self.read(&field, values, code, AddressBlock::parse)),
            Kind::RemoteIp => Test::RemoteIp(self.read(&field, values, code, AddressBlock::parse)),
            Kind::DestinationIp => Test::DestinationIp(self.read(&field, values, code, AddressBlock::parse)),
            Kind::DestinationPort => Test::DestinationPort(self.read(&field, values, code, parse_port)),
            Kind::Sni => Test::Sni(self.read(&field, values, code, text)),
            Kind::Host => Test::Host(self.read(&field, values, code, text)),
            Kind::Method => Test::Method(self.read(&field, values, code, text)),
            Kind::Path => Test::Path(self.read(&field, values, code, Path::parse)),
            Kind::Authority => Test::Authority(self.read(&field, values, code, text)),
            Kind::RequestPrincipal => {
                let parsed = self.read(&field, values, code, |value| Ok(RequestPrincipal::parse(value)));
                Test::RequestPrincipal(parsed)
            }
            Kind::Claim(path) => Test::Claim(path.clone(), self.read(&field, values, code, text)),
            Kind::Header(name) => Test::Header(name.clone(), self.read(&field, values, code, text)),
        };
        Clause { field: field.into(), negated, test, wanted: wanted.into() }
    }

    /// Parses every value; those that do not parse become problems.
    fn read<T>(
        &mut self,
        field: &str,
        values: &[String],
        code: &'static str,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Box<[T]> {
        let mut parsed = Vec::with_capacity(values.len());
        for value in values {
            if value.is_empty() {
                self.problem(
                    problem::EMPTY_VALUE,
                    format!("{field}: empty value not allowed"),
                    "remove it, or write * for any",
                );
                continue;
            }
            match parse(value) {
                Ok(one) => parsed.push(one),
                Err(why) => self.problem(code, format!("{field}: {why}"), "correct the value, or remove it"),
            }
        }
        parsed.into()
    }

    fn time_stamp(&mut self, metadata: &Metadata) {
        if metadata.creation_timestamp.is_some() && created(metadata).is_none() {
            self.problem(
                problem::WRONG_TYPE,
                "metadata.creationTimestamp is no time in RFC 3339, so the order of documents is unknown"
                    .into(),
                "write it like 2026-01-31T12:00:00Z, or remove it",
            );
        }
    }

    fn empty(&mut self, at: &str, remedy: &'static str) {
        self.problem(problem::EMPTY_RULE, format!("`{at}` must not be nil/empty"), remedy);
    }

    fn not_enforced(&mut self, what: &str, remedy: &'static str) {
        self.problem(
            problem::FIELD_NOT_ENFORCED,
            format!("{what} is not enforced by this version of Postern"),
            remedy,
        );
    }

    fn problem(&mut self, code: &'static str, reason: String, hint: &'static str) {
        let rule = self.rule.map(|rule| format!(" rule {rule}")).unwrap_or_default();
        self.problems.push(Problem {
            severity: Severity::Error,
            code,
            file: self.place.clone(),
            line: 0,
            column: 0,
            reason: format!("{}{rule}: {reason}", self.place),
            hint: hint.into(),
            source_line: None,
        });
    }
}

#[allow(clippy::unnecessary_wraps)] // the shape that `read` wants
fn text(value: &str) -> Result<Text, String> {
    Ok(Text::parse(value))
}
