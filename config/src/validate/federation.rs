//! Federation with foreign trust domains: each document alone, and what all of them say together.
use super::relations::Relations;
use crate::{
    documents::{
        authorization_policy::{Action, Source},
        federation::{EndpointProfile, endpoint_url, initial_bundle},
        parse::{Node, shorten},
        report::Report,
    },
    problem,
};
use postern_identity::{SpiffeId, TrustDomain};
use std::collections::HashMap;

/// `ClusterFederatedTrustDomain`.
pub fn federated_trust_domain(report: &mut Report<'_>, node: &Node) {
    let Some(spec) = node.get("spec") else { return };
    let mut trust_domain = None;
    if let Some((at, text)) = texts(spec, "trustDomain") {
        match text.parse::<TrustDomain>() {
            Ok(read) => trust_domain = Some(read),
            Err(cause) => report.error(
                problem::BAD_TRUST_DOMAIN,
                at.place,
                format!("trust domain `{}`: {cause}", shorten(text)),
                "for example `other.example`",
            ),
        }
    }
    if let Some((at, text)) = texts(spec, "bundleEndpointURL")
        && let Err(why) = endpoint_url(text)
    {
        let reason = format!("the bundle endpoint `{}` cannot be used: {why}", shorten(text));
        report.error(
            problem::BAD_FEDERATION,
            at.place,
            reason,
            "write for example `https://bundles.other.example/`",
        );
    }
    let bundle = texts(spec, "trustDomainBundle").filter(|(_, text)| !text.trim().is_empty());
    if let (Some((at, text)), Some(trust_domain)) = (bundle, &trust_domain)
        && let Err(why) = initial_bundle(trust_domain.clone(), text)
    {
        report.error(
            problem::BAD_FEDERATION,
            at.place,
            format!("trustDomainBundle cannot be read: {why}"),
            "write the SPIFFE bundle document of that domain (`{\"keys\": [...]}`), or PEM certificates",
        );
    }
    profile(report, spec, trust_domain.as_ref(), bundle.is_some());
    if let Some((key, _)) = spec.entry("className").filter(|(_, value)| !value.is_null()) {
        report.warning(
            problem::NO_EFFECT,
            key.place,
            "className chooses among the controllers of SPIRE and has no meaning here",
            "remove it, or suppress the warning where SPIRE reads the document, too",
        );
    }
}

/// The profile and what it needs (SPIFFE Federation 5.2).
fn profile(report: &mut Report<'_>, spec: &Node, trust_domain: Option<&TrustDomain>, has_bundle: bool) {
    let Some((key, profile)) = spec.entry("bundleEndpointProfile") else { return };
    let id = texts(profile, "endpointSPIFFEID").filter(|(_, text)| !text.is_empty());
    match (profile.get("type").and_then(Node::text), id) {
        (Some("https_web"), Some((at, _))) => report.error(
            problem::BAD_FEDERATION,
            at.place,
            "endpointSPIFFEID beside https_web, where the endpoint proves itself by its host name",
            "remove it, or write `type: https_spiffe`",
        ),
        (Some("https_spiffe"), None) => report.error(
            problem::BAD_FEDERATION,
            key.place,
            "https_spiffe without endpointSPIFFEID: nothing says who the endpoint must be",
            "add `endpointSPIFFEID: spiffe://...`, as the other side tells you",
        ),
        (Some("https_spiffe"), Some((at, text))) => match text.parse::<SpiffeId>() {
            Err(cause) => report.error(
                problem::BAD_FEDERATION,
                at.place,
                format!("endpointSPIFFEID `{}`: {cause}", shorten(text)),
                "write it as the other side tells you, for example `spiffe://other.example/ns/postern-system/sa/control-plane`",
            ),
            Ok(id) if trust_domain.is_some_and(|own| own.as_str() == id.trust_domain()) && !has_bundle => {
                let reason = "https_spiffe without trustDomainBundle: nothing says by which authorities the endpoint is recognised at first contact";
                report.error(
                    problem::BAD_FEDERATION,
                    key.place,
                    reason,
                    "add the other side's bundle as `trustDomainBundle:`",
                );
            }
            Ok(_) => {}
        },
        _ => {}
    }
}

/// A text under a key, with its node.
fn texts<'n>(node: &'n Node, key: &str) -> Option<(&'n Node, &'n str)> {
    node.get(key).and_then(|value| Some((value, value.text()?)))
}

/// What needs more than one document.
pub fn relations(found: &mut Relations<'_>) {
    let documents = found.documents;
    let mesh = &documents.mesh;
    let mut seen = HashMap::new();
    for document in &documents.federated_trust_domains {
        let (origin, federated) = (&document.origin, &document.value);
        let name = federated.trust_domain.as_str();
        let at = (origin, "spec.trustDomain");
        if let Some(first) = seen.insert(name, origin) {
            let reason =
                format!("trust domain `{name}` is already federated in {}:{}", first.file, first.line);
            found.error(problem::BAD_FEDERATION, at, reason, "keep one of the two");
        } else if name == mesh.trust_domain {
            let reason = format!("`{name}` is the trust domain of this mesh and cannot be foreign");
            found.error(problem::BAD_FEDERATION, at, reason, "write the name of the other trust domain");
        } else if mesh.trust_domain_aliases.iter().any(|alias| alias == name) {
            let reason = format!(
                "`{name}` is one of trustDomainAliases: its workloads would have all the rights of ours with the same names"
            );
            found.error(
                problem::BAD_FEDERATION,
                at,
                reason,
                "remove the alias; principals of a federated domain are written with its own name",
            );
        } else if name == "cluster.local" {
            let reason = format!(
                "no principal can name the foreign domain `cluster.local`: there it stands for the mesh's own, `{}`",
                mesh.trust_domain
            );
            found.error(
                problem::BAD_FEDERATION,
                at,
                reason,
                "two meshes that federate need names of their own: change `trustDomain` of the other one",
            );
        }
        if let EndpointProfile::Spiffe(id) = &federated.profile
            && id.trust_domain() != name
            && id.trust_domain() != mesh.trust_domain
            && !documents
                .federated_trust_domains
                .iter()
                .any(|other| other.value.trust_domain.as_str() == id.trust_domain())
        {
            let reason = format!(
                "the endpoint is of trust domain `{}`, whose authorities nothing here names",
                id.trust_domain()
            );
            found.error(
                problem::BAD_FEDERATION,
                (origin, "spec.bundleEndpointProfile.endpointSPIFFEID"),
                reason,
                "add a ClusterFederatedTrustDomain for the endpoint's own trust domain, too",
            );
        }
    }
    if !documents.federated_trust_domains.is_empty() {
        foreign_namesakes(found);
    }
}

/// Sources of ALLOW rules that look at names in any trust domain.
fn foreign_namesakes(found: &mut Relations<'_>) {
    let documents = found.documents;
    let policies = documents.authorization_policies.iter().filter(|p| p.value.action == Action::Allow);
    for policy in policies {
        for (r, rule) in policy.value.rules.iter().enumerate() {
            for (f, from) in rule.from.iter().enumerate() {
                let Some(field) = any_domain(&from.source) else { continue };
                let reason = format!(
                    "`{field}` match in any trust domain, so that workloads of a federated one are let in, too"
                );
                let at = format!("spec.rules[{r}].from[{f}].source.{field}[0]");
                let hint = format!("add `trustDomains: [{}]` beside it", documents.mesh.trust_domain);
                found.warning(problem::ALLOWS_FOREIGN, (&policy.origin, &at), reason, hint);
            }
        }
    }
}

/// The field by which a source takes names of any trust domain, when nothing beside it names the domain.
fn any_domain(source: &Source) -> Option<&'static str> {
    if !source.trust_domains.is_empty() || !source.principals.is_empty() {
        return None;
    }
    let named = [("namespaces", &source.namespaces), ("serviceAccounts", &source.service_accounts)];
    named.into_iter().find(|(_, values)| !values.is_empty()).map(|(field, _)| field)
}
