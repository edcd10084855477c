//! From the wire to our types. What is not exactly right rejects the update: the last good one stays.

use super::destinations::Asked;
use crate::state::{Destination, Endpoint, Lookup, ServiceTarget, Tainted};
use postern_api::v1;
use postern_config::{InboundSpec, Snapshot, matchers::AddressBlock, snapshot::Protocol};
use postern_identity::{Bundle, KeyId, SpiffeId, TrustBundles, TrustDomain};
use std::{net::SocketAddr, sync::Arc, time::Duration};

/// The longest reason of a nack, in bytes.
const REASON_KEPT: usize = 8 * 1024;

/// Compiles the inbound policy.
///
/// # Errors
/// All problems, one a line, bounded.
pub fn inbound(policy: &v1::InboundPolicy) -> Result<Snapshot, String> {
    let spec: InboundSpec = serde_json::from_slice(&policy.spec)
        .map_err(|cause| format!("the policy is of a form that this sidecar does not know: {cause}"))?;
    Snapshot::compile(spec).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        crate::telemetry::access_log::cut(&all.join("\n"), REASON_KEPT).to_owned()
    })
}

/// Reads a destination and the address it is for.
///
/// # Errors
/// What is wrong with it.
pub fn destination(wire: v1::Destination) -> Result<(Asked, Destination), String> {
    let address = Asked::parse(&wire.address)?;
    let destination = match wire.kind {
        Some(v1::destination::Kind::Service(wire)) => Destination::Service(service(wire)?),
        Some(v1::destination::Kind::Workload(workload)) => Destination::Workload(endpoint(workload)?),
        Some(v1::destination::Kind::Outside(outside)) => {
            let v1::Outside { blocked, by_name, in_mesh } = outside;
            Destination::Outside { blocked, by_name, in_mesh }
        }
        None => return Err(format!("destination {address} is of a kind that this sidecar does not know")),
    };
    Ok((address, destination))
}

fn service(wire: v1::Service) -> Result<ServiceTarget, String> {
    let lookup = |wire: v1::Lookup| Ok::<_, String>(Lookup { port: port(wire.port)?, name: wire.name });
    let block = |text: &String| AddressBlock::parse(text);
    Ok(ServiceTarget {
        port: port(wire.port)?,
        protocol: protocol(wire.protocol)?,
        endpoints: wire.endpoints.into_iter().map(endpoint).collect::<Result<_, _>>()?,
        lookups: wire.lookups.into_iter().map(lookup).collect::<Result<_, _>>()?,
        looked_up: 0,
        original_within: wire.original_within.iter().map(block).collect::<Result<_, _>>()?,
        traffic: match wire.traffic.as_slice() {
            [] => Default::default(),
            text => serde_json::from_slice(text)
                .map(Arc::new)
                .map_err(|cause| format!("the traffic policy of {} is not known here: {cause}", wire.host))?,
        },
        namespace: wire.namespace,
        name: wire.name,
        host: wire.host,
    })
}

/// Reads an update of trust: all bundles, and the authorities that are about to go.
///
/// # Errors
/// What is wrong with it.
pub fn trust(wire: v1::BundleUpdate, own: &TrustDomain) -> Result<(TrustBundles, Tainted), String> {
    let keys = wire.tainted.iter().map(|id| KeyId::try_from(&id[..])).collect::<Result<_, _>>()?;
    let spread = Duration::from_secs(wire.renewal_spread_seconds.into());
    Ok((bundles(wire.bundles, own)?, Tainted { keys, spread }))
}

/// Reads all bundles; that of `own` must be among them.
///
/// # Errors
/// What is wrong with them.
pub fn bundles(wire: Vec<v1::Bundle>, own: &TrustDomain) -> Result<TrustBundles, String> {
    let bundles =
        wire.into_iter()
            .map(|bundle| {
                let trust_domain: TrustDomain = bundle.trust_domain.parse().map_err(|cause| {
                    format!("trust domain `{}` of a bundle: {cause}", bundle.trust_domain)
                })?;
                let mut read = Bundle::from_document(trust_domain, &bundle.document)?;
                read.revoked =
                    bundle.revoked.iter().map(|id| KeyId::try_from(&id[..])).collect::<Result<_, _>>()?;
                Ok(read)
            })
            .collect::<Result<Vec<_>, String>>()?;
    let bundles = TrustBundles::distinct(bundles)?;
    match bundles.get(own.as_str()) {
        Some(_) => Ok(bundles),
        None => Err(format!("no bundle of our own trust domain `{own}`")),
    }
}

/// Addresses of one host have one spelling: IPv4-mapped IPv6 is IPv4, without flow and scope.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn endpoint(wire: v1::Endpoint) -> Result<Endpoint, String> {
    // An endpoint whose identity cannot be read must never become a plain one.
    let identity = match wire.identity.as_str() {
        "" => None,
        id => {
            Some(id.parse::<SpiffeId>().map_err(|cause| format!("identity of {}: {cause}", wire.workload))?)
        }
    };
    Ok(Endpoint {
        dial: socket_address(&wire.dial)?,
        port: port(wire.port)?,
        identity,
        protocol: protocol(wire.protocol)?,
        workload: wire.workload,
    })
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map(canonical).map_err(|_| format!("`{text}` is not `ip:port`"))
}

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).map_err(|_| format!("port {number} is not in 0..=65535"))
}

fn protocol(number: i32) -> Result<Protocol, String> {
    match v1::Protocol::try_from(number) {
        Ok(v1::Protocol::Auto) => Ok(Protocol::Auto),
        Ok(v1::Protocol::Http) => Ok(Protocol::Http),
        Ok(v1::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(v1::Protocol::Tcp) => Ok(Protocol::Tcp),
        Err(_) => Err(format!("protocol {number} is not known to this sidecar")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]
    use super::*;

    fn wire(identity: &str, dial: &str) -> v1::Destination {
        v1::Destination {
            address: "[::ffff:10.0.0.9]:80".into(),
            kind: Some(v1::destination::Kind::Workload(v1::Endpoint {
                workload: "shop/web".into(),
                dial: dial.into(),
                port: 8080,
                identity: identity.into(),
                protocol: 1,
            })),
        }
    }

    #[test]
    fn an_endpoint_with_an_unreadable_identity_rejects_the_update_and_never_becomes_plain() {
        let (address, destination) =
            destination(wire("spiffe://td/ns/shop/sa/web", "10.0.0.9:8080")).unwrap();
        assert_eq!(address, Asked::Address("10.0.0.9:80".parse().unwrap()));
        let Destination::Workload(endpoint) = destination else { panic!("{destination:?}") };
        assert_eq!(endpoint.identity.unwrap().as_str(), "spiffe://td/ns/shop/sa/web");
        for identity in ["spiffe:/td/x", "td/ns/shop/sa/web", "spiffe://TD/ns/shop/sa/web", " "] {
            assert!(super::destination(wire(identity, "10.0.0.9:8080")).is_err(), "{identity}");
        }
        assert!(super::destination(wire("", "10.0.0.9")).is_err());
        let (_, plain) = super::destination(wire("", "10.0.0.9:8080")).unwrap();
        assert!(matches!(plain, Destination::Workload(Endpoint { identity: None, .. })));
    }

    #[test]
    fn a_kind_from_the_future_is_refused() {
        let wire = v1::Destination { address: "10.0.0.9:80".into(), kind: None };
        assert!(destination(wire).is_err());
    }

    #[test]
    fn a_policy_that_is_not_ours_is_refused_with_a_reason() {
        let reason = inbound(&v1::InboundPolicy { spec: b"{\"surprise\":1}".to_vec() }).unwrap_err();
        assert!(reason.contains("surprise") || reason.contains("missing field"), "{reason}");
    }

    #[test]
    fn bundles_without_our_own_trust_domain_are_refused() {
        let own: TrustDomain = "cluster.local".parse().unwrap();
        assert!(bundles(Vec::new(), &own).is_err());
    }
}
