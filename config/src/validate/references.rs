//! Names in policies that nothing in the folder has: namespaces, service accounts, trust domains.
use super::relations::Relations;
use crate::{
    documents::{Located, authorization_policy::AuthorizationPolicy, parse::shorten, schema::nearest},
    problem,
};
use std::collections::BTreeSet;

/// What exists, as far as the folder says it.
struct Known<'d> {
    /// `None` when the folder declares no namespaces.
    namespaces: Option<BTreeSet<&'d str>>,
    /// `None` when the folder declares no service accounts.
    accounts: Option<BTreeSet<(&'d str, &'d str)>>,
    trust_domains: Vec<&'d str>,
    /// Foreign, and known by a ClusterFederatedTrustDomain.
    federated: BTreeSet<&'d str>,
}

/// All names of all policies.
pub fn check(found: &mut Relations<'_>) {
    let documents = found.documents;
    let pods = || {
        documents.deployments.iter().map(|d| &d.value.template).chain(documents.pods.iter().map(|p| &p.value))
    };
    let namespaces = (!documents.namespaces.is_empty()).then(|| {
        let declared = documents.namespaces.iter().map(|ns| ns.value.metadata.name.as_str());
        let used = pods().map(|pod| pod.metadata.namespace.as_str());
        let accounts = documents.service_accounts.iter().map(|sa| sa.value.metadata.namespace.as_str());
        let always = ["default", "kube-system", "postern-system", documents.mesh.root_namespace.as_str()];
        declared.chain(used).chain(accounts).chain(always).collect()
    });
    let accounts = (!documents.service_accounts.is_empty()).then(|| {
        let declared = documents.service_accounts.iter();
        let declared =
            declared.map(|sa| (sa.value.metadata.namespace.as_str(), sa.value.metadata.name.as_str()));
        declared
            .chain(pods().map(|pod| (pod.metadata.namespace.as_str(), pod.spec.service_account.as_str())))
            .collect()
    });
    let mesh = &documents.mesh;
    let trust_domains = std::iter::once(mesh.trust_domain.as_str())
        .chain(mesh.trust_domain_aliases.iter().map(String::as_str))
        .chain(["cluster.local"])
        .collect();
    let federated =
        documents.federated_trust_domains.iter().map(|federated| federated.value.trust_domain.as_str());
    let federated: BTreeSet<&str> = federated.collect();
    let known = Known { namespaces, accounts, trust_domains, federated };
    for policy in &documents.authorization_policies {
        home(found, &known, policy);
        names(found, &known, policy);
    }
}

/// The policy's own namespace; one with a selector has its own finding when it selects nothing.
fn home(found: &mut Relations<'_>, known: &Known<'_>, policy: &Located<AuthorizationPolicy>) {
    let namespace = &policy.value.metadata.namespace;
    let Some(namespaces) = known.namespaces.as_ref().filter(|known| !known.contains(namespace.as_str()))
    else {
        return;
    };
    let reason = format!("no Namespace `{}` in these files: the policy protects nothing", shorten(namespace));
    let hint = nearest_or(namespace, namespaces.iter().copied(), "add the Namespace, or correct the name");
    found.warning(problem::NO_NAMESPACE, (&policy.origin, "metadata.namespace"), reason, hint);
}

fn names(found: &mut Relations<'_>, known: &Known<'_>, policy: &Located<AuthorizationPolicy>) {
    let home = policy.value.metadata.namespace.as_str();
    for (r, rule) in policy.value.rules.iter().take(512).enumerate() {
        for (f, from) in rule.from.iter().enumerate() {
            let s = &from.source;
            let fields: [(&str, &[String], Names); 6] = [
                ("namespaces", &s.namespaces, Names::Namespace),
                ("notNamespaces", &s.not_namespaces, Names::Namespace),
                ("principals", &s.principals, Names::Principal),
                ("notPrincipals", &s.not_principals, Names::Principal),
                ("serviceAccounts", &s.service_accounts, Names::Account),
                ("notServiceAccounts", &s.not_service_accounts, Names::Account),
            ];
            for (field, values, names) in fields {
                for (v, value) in values.iter().enumerate() {
                    let at = || format!("spec.rules[{r}].from[{f}].source.{field}[{v}]");
                    name(found, known, policy, home, names, value, at);
                }
            }
        }
        for (w, when) in rule.when.iter().enumerate() {
            let names = match when.key.as_str() {
                "source.namespace" => Names::Namespace,
                "source.principal" => Names::Principal,
                "source.serviceAccount" => Names::Account,
                _ => continue,
            };
            for (field, values) in [("values", &when.values), ("notValues", &when.not_values)] {
                for (v, value) in values.iter().enumerate() {
                    let at = || format!("spec.rules[{r}].when[{w}].{field}[{v}]");
                    name(found, known, policy, home, names, value, at);
                }
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Names {
    Namespace,
    Principal,
    Account,
}

fn name(
    found: &mut Relations<'_>,
    known: &Known<'_>,
    policy: &Located<AuthorizationPolicy>,
    home: &str,
    names: Names,
    value: &str,
    at: impl Fn() -> String,
) {
    let account = |namespace: &str, name: &str| {
        let accounts = known.accounts.as_ref()?;
        let declares = known.namespaces.as_ref().is_none_or(|namespaces| namespaces.contains(namespace));
        if accounts.contains(&(namespace, name))
            || name == "default" && declares
            || name.contains('*')
            || namespace.contains('*')
        {
            return None;
        }
        let here = accounts.iter().filter(|(ns, _)| *ns == namespace).map(|(_, name)| *name);
        let hint = nearest_or(name, here, "add the ServiceAccount, or correct the namespace and the name");
        let reason = format!(
            "no ServiceAccount {}/{} in these files: no caller has this identity",
            shorten(namespace),
            shorten(name)
        );
        Some((problem::NO_PRINCIPAL, reason, hint))
    };
    let finding = match names {
        Names::Namespace => known.namespaces.as_ref().and_then(|namespaces| {
            if value.is_empty() || namespaces.iter().any(|namespace| glob(value, namespace)) {
                return None;
            }
            let reason = format!("no Namespace `{}` in these files: no caller is in it", shorten(value));
            let hint =
                nearest_or(value, namespaces.iter().copied(), "correct the name, or add the Namespace");
            Some((problem::NO_NAMESPACE, reason, hint))
        }),
        Names::Account => match value.split_once('/') {
            Some((namespace, name)) => account(namespace, name),
            None => account(home, value),
        },
        Names::Principal => match value.splitn(6, '/').collect::<Vec<_>>().as_slice() {
            [domain, "ns", namespace, "sa", name] => {
                if domain.contains('*') || known.trust_domains.contains(domain) {
                    account(namespace, name)
                } else if known.federated.contains(domain) {
                    None // whoever lives there is not in these files
                } else {
                    let reason = format!(
                        "trust domain `{}` is neither the mesh's (`{}`), nor an alias of it, nor federated: such callers fail the handshake",
                        shorten(domain),
                        found.documents.mesh.trust_domain
                    );
                    let hint =
                        "write the mesh's trust domain, or add a ClusterFederatedTrustDomain for this one";
                    Some((problem::FOREIGN_TRUST_DOMAIN, reason, hint.to_owned()))
                }
            }
            _ => None,
        },
    };
    if let Some((code, reason, hint)) = finding {
        found.warning(code, (&policy.origin, &at()), reason, hint);
    }
}

fn nearest_or<'n>(name: &str, known: impl Iterator<Item = &'n str>, otherwise: &str) -> String {
    match nearest(name, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None => otherwise.to_owned(),
    }
}

/// `*` is any text, at any place (reference 2.7, namespaces).
fn glob(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut left) = text.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        let Some(at) = left.find(part) else { return false };
        left = left.split_at(at + part.len()).1;
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_of_a_namespace_stands_anywhere() {
        for (pattern, text) in
            [("*", "a"), ("a*", "a"), ("a*", "ab"), ("*b", "ab"), ("a*c", "abc"), ("a*b*c", "axbxc")]
        {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*", "ba"), ("a*a", "a"), ("a*b*c", "axc")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
